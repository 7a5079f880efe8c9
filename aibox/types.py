"""The values that travel everywhere: for whom (Scope), how secret (Label), what was decided (Verdict, Entry).

All are frozen; changing one returns a new one.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import msgspec

from aibox.errors import ConfigError

LOCAL_TENANT = "local"

_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
# OpenID Connect Core 1.0 sec. 2: `sub` is at most 255 ASCII characters. Users, agents and sessions get the same room.
_NAME = re.compile(r"[!-~]{0,255}")
_CORRELATION = re.compile(r"(?:[A-Za-z0-9_-]{8,64})?")
_TRACE = re.compile(r"[0-9a-f]{32}-[0-9a-f]{16}|-")
COMPARTMENT = r"[A-Z][A-Z0-9_-]{0,31}"
_COMPARTMENT = re.compile(COMPARTMENT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """For whom something is done. Passed as `scope=` to everything that stores, finds or decides; never ambient.

    `tenant` is 1-128 characters of `A-Z a-z 0-9 . _ -`, beginning with a letter or digit; `user`, `agent` and `session`
    are up to 255 printable ASCII characters without spaces, and so is `case`, a matter that the caller names: the
    pseudonyms of one case are not those of another (no case is one of its own). `correlation` names the request that
    this is part of, in 8-64 characters of `A-Z a-z 0-9 _ -`: it goes into entries and calls. `trace` is where that
    request stands in a trace (W3C Trace Context: trace and span in hex, `-` between), `-` alone for one that is not
    traced. Neither takes part in comparison. Raises ConfigError otherwise.
    """

    tenant: str
    user: str
    agent: str = ""
    session: str = ""
    case: str = ""
    correlation: str = field(default="", compare=False, repr=False)
    trace: str = field(default="", compare=False, repr=False)

    def __post_init__(self) -> None:
        if not _TENANT.fullmatch(self.tenant):
            raise ConfigError(f"not a tenant name: {self.tenant[:40]!r}", hint="1-128 letters, digits, '.', '_' or '-'")
        if not self.user:
            raise ConfigError("a scope needs a user", hint="Scope(tenant=..., user=...), or Scope.local() on a laptop")
        for name in ("user", "agent", "session", "case"):
            value = getattr(self, name)
            if not _NAME.fullmatch(value):
                raise ConfigError(
                    f"no {name} name: {value[:40]!r}", hint="up to 255 printable ASCII characters, no spaces"
                )
        if not _CORRELATION.fullmatch(self.correlation):
            raise ConfigError("not a correlation id", hint="8-64 letters, digits, '_' or '-'")
        if self.trace and not _TRACE.fullmatch(self.trace):
            raise ConfigError("not a place in a trace", hint="32 hex digits, '-', 16 hex digits")

    @classmethod
    def local(cls, *, agent: str = "", session: str = "") -> Scope:
        """The scope of one person on their own machine. A server refuses it."""
        return cls(tenant=LOCAL_TENANT, user="me", agent=agent, session=session)

    @property
    def is_local(self) -> bool:
        return self.tenant == LOCAL_TENANT

    def narrow(self, *, agent: str | None = None, session: str | None = None) -> Scope:
        """The same tenant and user, for a given agent or session. Tenant and user cannot be changed on the way."""
        return replace(
            self,
            agent=self.agent if agent is None else agent,
            session=self.session if session is None else session,
        )

    def under(self, correlation: str, trace: str = "", *, case: str | None = None) -> Scope:
        """The same, as part of the request of this id, and of this case where one is given."""
        if not _CORRELATION.fullmatch(correlation):
            raise ConfigError("not a correlation id", hint="8-64 letters, digits, '_' or '-'")
        if case is not None:
            return replace(self, correlation=correlation, trace=trace, case=case)
        # For every request: what was looked at once is copied, and not looked at again.
        made = object.__new__(Scope)
        for name in ("tenant", "user", "agent", "session", "case"):
            object.__setattr__(made, name, getattr(self, name))
        object.__setattr__(made, "correlation", correlation)
        object.__setattr__(made, "trace", trace)
        return made


class Level(enum.IntEnum):
    """How secret a text is. Bell and LaPadula's order: nothing flows down."""

    PUBLIC = 0
    INTERNAL = 1
    CONFIDENTIAL = 2
    RESTRICTED = 3


@dataclass(frozen=True, slots=True)
class Label:
    """A level and a set of compartments, written `"confidential"` or `"confidential/PHI,MNPI"`.

    Labels form a lattice: `a | b` is the join (higher level, both sets of compartments), `a <= b` says that b may hold
    what a marks. `why` names what raised the label and takes no part in comparison.
    """

    level: Level = Level.INTERNAL
    compartments: frozenset[str] = frozenset()
    why: tuple[str, ...] = field(default=(), compare=False)

    @classmethod
    def parse(cls, text: str) -> Label:
        """Read `"level"` or `"level/COMPARTMENT,..."`. Raises ConfigError for anything else."""
        level, _, rest = text.partition("/")
        names = frozenset(part.strip() for part in rest.split(",")) if rest else frozenset()
        if level.strip().upper() not in Level.__members__ or not all(_COMPARTMENT.fullmatch(n) for n in names):
            raise ConfigError(
                f"not a label: {text[:60]!r}",
                hint='one of public, internal, confidential, restricted, then "/PHI,MNPI" for compartments in capitals',
            )
        return cls(Level[level.strip().upper()], names)

    @classmethod
    def of(cls, value: Label | str | None) -> Label:
        """A label from whatever a label is taken as. Unlabelled text (None) is `internal`."""
        if value is None:
            return cls()
        return value if isinstance(value, Label) else cls.parse(value)

    def because(self, reason: str) -> Label:
        """The same label, with one more reason for it."""
        return replace(self, why=(*self.why, reason))

    def __or__(self, other: Label) -> Label:
        if other <= self:
            return self
        if self <= other:
            return other
        why = (*self.why, *(reason for reason in other.why if reason not in self.why))
        return Label(max(self.level, other.level), self.compartments | other.compartments, why)

    def __and__(self, other: Label) -> Label:
        """The meet: the lower level and the compartments of both. For ceilings, which only ever come down."""
        return Label(min(self.level, other.level), self.compartments & other.compartments)

    def __le__(self, other: Label) -> bool:
        return self.level <= other.level and self.compartments <= other.compartments

    def __str__(self) -> str:
        name = self.level.name.lower()
        return f"{name}/{','.join(sorted(self.compartments))}" if self.compartments else name


def join(labels: Iterable[Label]) -> Label:
    """The join of labels; `public`, the lattice's bottom, when there are none."""
    result = Label(Level.PUBLIC)
    for label in labels:
        result = result | label
    return result


class Decision(enum.IntEnum):
    """What to do with a text. A total order: of several decisions the strictest holds."""

    ALLOW = 0
    FLAG = 1
    REDACT = 2
    REQUIRE_APPROVAL = 3
    BLOCK = 4

    @classmethod
    def parse(cls, text: str) -> Decision:
        try:
            return cls[text.upper()]
        except KeyError:
            raise ConfigError(
                f"not a decision: {text!r}", hint="one of allow, flag, redact, require_approval, block"
            ) from None

    def __str__(self) -> str:
        return self.name.lower()


Where = Literal["input", "tool_arguments", "tool_result", "retrieved", "output"]
PLACES: tuple[Where, ...] = ("input", "tool_arguments", "tool_result", "retrieved", "output")


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check saw. `span` is a half-open range of characters in the text as it was given; `score` is 0 to 1."""

    check: str
    rule: str
    span: tuple[int, int]
    score: float = 1.0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was decided about one text. `text` is what may be used further on: redacted where the decision says so."""

    decision: Decision
    text: str
    findings: tuple[Finding, ...] = ()
    policy_digest: str = ""
    where: Where = "input"
    shadow: Verdict | None = None
    """What a policy in shadow would have decided, without a text; None where there is none."""

    @property
    def blocked(self) -> bool:
        """True when the text may not be used: blocked, or waiting for an approval that nobody has given."""
        return self.decision >= Decision.REQUIRE_APPROVAL

    def reasons(self) -> tuple[str, ...]:
        """One short sentence a finding; never the text itself."""
        return tuple(dict.fromkeys(f.reason or f"{f.check}: {f.rule}" for f in self.findings))

    def why(self) -> str:
        """The reasons of a refusal as one text, which is never empty."""
        return "; ".join(self.reasons()) or "a safety check refused it"


class Entry(msgspec.Struct, frozen=True):
    """One durable line of evidence: `seq` counts from 0 in the tenant's log, `leaf` is its RFC 6962 leaf hash."""

    tenant: str
    seq: int
    kind: str
    leaf: bytes
    ts_us: int

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; `leaf` in hex."""
        return {"tenant": self.tenant, "seq": self.seq, "kind": self.kind, "leaf": self.leaf.hex(), "ts_us": self.ts_us}
