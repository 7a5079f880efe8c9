"""One object for everything that may be restricted. Joining two policies only ever restricts.

The law: for every event, `(a & b)` decides at least as strictly as a and as b; order, grouping and repetition of joins
change nothing. It holds because each part merges by an operation of a lattice: decisions and ladders by the maximum,
deny-lists by union, allow-lists and ceilings by the meet, limits by the minimum. There is no construct that relaxes.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    WithJsonSchema,
)

from aibox.audit import canonical
from aibox.errors import ConfigError
from aibox.execution import Limits
from aibox.types import PLACES, Decision, Label, Level, Where

PROFILES = ("permissive", "balanced", "strict")


def _decision(value: object) -> object:
    return Decision.parse(value) if isinstance(value, str) else value


DecisionField = Annotated[
    Decision,
    BeforeValidator(_decision),
    PlainSerializer(str),
    WithJsonSchema({"enum": [str(d) for d in Decision]}),
]


def _label(value: object) -> object:
    return Label.parse(value) if isinstance(value, str) else value


LabelField = Annotated[Label, BeforeValidator(_label), PlainSerializer(str), WithJsonSchema({"type": "string"})]


Steps = tuple[tuple[int, Decision], ...]
"""`(score in thousandths, decision)`: at or above the score, at least that decision."""


def _ladder(value: object) -> object:
    """`"block"` means: block whatever the score. `{"0.5" = "flag", "0.9" = "block"}` is a ladder of thresholds."""
    if isinstance(value, str):
        value = {"0": value}
    if not isinstance(value, Mapping):
        return value
    steps = tuple((_threshold(score), Decision.parse(str(decision))) for score, decision in value.items())
    return _join_ladders(steps, ())


def _threshold(score: object) -> int:
    """Thresholds are kept in thousandths, so that a policy has one canonical form without floats."""
    try:
        thousandths = round(float(str(score)) * 1000)
    except ValueError:
        raise ValueError(f"a threshold is a number from 0 to 1, not {score!r}") from None
    if not 0 <= thousandths <= 1000:
        raise ValueError(f"a threshold is a number from 0 to 1, not {score!r}")
    return thousandths


def _ladder_out(steps: Steps) -> dict[str, str]:
    return {f"{score / 1000:g}": str(decision) for score, decision in steps}


Ladder = Annotated[
    Steps,
    BeforeValidator(_ladder),
    PlainSerializer(_ladder_out),
    WithJsonSchema({"type": ["string", "object"]}),
]


def _join_ladders(a: Steps, b: Steps) -> Steps:
    """The pointwise maximum of two step functions, with the steps that change nothing left out."""
    joined: list[tuple[int, Decision]] = []
    for score, decision in sorted((*a, *b), key=lambda step: (step[0], -step[1])):
        if not joined or decision > joined[-1][1]:
            joined.append((score, decision))
    return tuple(step for step in joined if step[1] > Decision.ALLOW)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, use_attribute_docstrings=True)


def _universe(names: frozenset[str]) -> frozenset[str]:
    """`"*"` beside other names is `"*"`: one set, one way to write it."""
    return frozenset({"*"}) if "*" in names else names


class ToolRules(_Part):
    """Which tools an agent may call. `allow = None` is every tool; an empty list is none."""

    allow: frozenset[str] | None = None
    """Names of tools. Lists of several levels intersect."""
    deny: frozenset[str] = frozenset()
    """Names of tools. Lists of several levels unite, and win over `allow`."""
    approve: frozenset[str] = frozenset()
    """Names of tools that need a person's yes; `"*"` is every tool."""

    def __and__(self, other: ToolRules) -> ToolRules:
        allow = other.allow if self.allow is None else self.allow if other.allow is None else self.allow & other.allow
        return ToolRules(allow=allow, deny=self.deny | other.deny, approve=self.approve | other.approve)

    def allows(self, name: str) -> bool:
        return name not in self.deny and (self.allow is None or name in self.allow)

    def needs_approval(self, name: str) -> bool:
        return name in self.approve or "*" in self.approve


class EgressRules(_Part):
    """The door out. Shut unless every level opens it, for models by name and for text up to a label."""

    models: Annotated[frozenset[str], AfterValidator(_universe)] = frozenset()
    """`backend/model` as the router names them, or `"*"`. Lists of several levels intersect; empty is shut."""
    ceiling: LabelField = Label(Level.PUBLIC)
    """The highest label that may leave. Of several levels the lowest holds."""

    def __and__(self, other: EgressRules) -> EgressRules:
        if "*" in self.models:
            models = other.models
        elif "*" in other.models:
            models = self.models
        else:
            models = self.models & other.models
        return EgressRules(models=models, ceiling=self.ceiling & other.ceiling)

    @property
    def open(self) -> bool:
        return bool(self.models)

    def allows(self, model: str) -> bool:
        return "*" in self.models or model in self.models


class TurnLimits(_Part):
    """What one turn may take. Of several levels the smallest number holds."""

    input_kib: int = Field(default=256, gt=0)
    """Size of a user's message, in KiB of UTF-8."""
    model_calls: int = Field(default=16, gt=0)
    """Calls of the model in one turn."""
    output_tokens: int = Field(default=4096, gt=0)
    """Tokens that one model call may write."""
    turn_s: float = Field(default=600.0, gt=0)
    """Seconds from the message to the last byte of the answer."""
    check_s: float = Field(default=10.0, gt=0)
    """Seconds that one check may take before it counts as failed."""

    def __and__(self, other: TurnLimits) -> TurnLimits:
        return TurnLimits(**{name: min(getattr(self, name), getattr(other, name)) for name in TurnLimits.model_fields})


Rules = dict[Where, Ladder]


class Policy(_Part):
    """What is allowed, for a platform, a tenant or an agent. Immutable; `a & b` is the stricter of both everywhere.

    A check that a policy names must exist, or the guardrail refuses to be built. What a policy does not mention: checks
    allow, tools are allowed, the door is shut.
    """

    version: Literal[1] = 1
    name: str = ""
    """For people; it takes no part in decisions and none in the digest."""
    checks: dict[str, Rules] = Field(default_factory=dict)
    """Check name -> place (input, tool_arguments, tool_result, retrieved, output) -> decision or ladder."""
    on_check_failure: DecisionField = Decision.BLOCK
    """What a check counts as that raises or is too slow. Of several levels the strictest holds."""
    tools: ToolRules = ToolRules()
    egress: EgressRules = EgressRules()
    limits: TurnLimits = TurnLimits()
    sandbox: Limits = Limits()

    @classmethod
    def load(cls, path: str | Path) -> Policy:
        """Read a TOML file. Raises ConfigError that names the file, the key and, for a mistyped one, the likely key."""
        path = Path(path)
        try:
            data = tomllib.loads(path.read_text("utf-8"))
        except OSError as error:
            raise ConfigError(f"cannot read the policy {path}: {error.strerror}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is not TOML: {error}") from None
        return cls.read(data, source=str(path))

    @classmethod
    def profile(cls, name: str) -> Policy:
        """One of the shipped policies: permissive, balanced or strict. None of them opens the door."""
        if name not in PROFILES:
            raise ConfigError(f"no policy profile is called {name!r}", hint=f"one of {', '.join(PROFILES)}")
        text = resources.files("aibox").joinpath("policies", f"{name}.toml").read_text("utf-8")
        return cls.read(tomllib.loads(text), source=f"{name}.toml")

    @classmethod
    def read(cls, data: Mapping[str, Any], *, source: str = "policy") -> Policy:
        """From parsed TOML or JSON."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise ConfigError(f"{source}: {explain_validation(error, cls)}") from None
        except ConfigError as error:
            raise ConfigError(f"{source}: {error.message}", hint=error.hint) from None

    def __and__(self, other: Policy) -> Policy:
        checks = {
            check: _join_rules(self.checks.get(check, {}), other.checks.get(check, {}))
            for check in sorted({*self.checks, *other.checks})
        }
        return Policy(
            name=" & ".join(dict.fromkeys(n for n in (self.name, other.name) if n)),
            checks=checks,
            on_check_failure=max(self.on_check_failure, other.on_check_failure),
            tools=self.tools & other.tools,
            egress=self.egress & other.egress,
            limits=self.limits & other.limits,
            sandbox=self.sandbox & other.sandbox,
        )

    def decide(self, check: str, *, where: Where, score: float) -> Decision:
        """What follows when `check` found something with `score` (0 to 1) in a text of that place."""
        decision = Decision.ALLOW
        for threshold, step in self.checks.get(check, {}).get(where, ()):
            if score * 1000 >= threshold:
                decision = max(decision, step)
        return decision

    def checks_for(self, where: Where) -> tuple[str, ...]:
        """Names of the checks that this policy asks for at a place."""
        return tuple(name for name, rules in self.checks.items() if rules.get(where))

    @cached_property
    def digest(self) -> str:
        """`sha256:` and the SHA-256, in hex, of the policy's canonical JSON (RFC 8785) without its name."""
        body = self.model_dump(mode="json", exclude={"name"})
        # Sets have no order and floats no canonical text in our subset of JSON: both are made definite here.
        return "sha256:" + hashlib.sha256(canonical.dumps(_definite(body))).hexdigest()


def _join_rules(a: Rules, b: Rules) -> Rules:
    return {where: _join_ladders(a.get(where, ()), b.get(where, ())) for where in PLACES if where in a or where in b}


def _definite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _definite(item) for key, item in value.items()}
    if isinstance(value, list):
        return sorted((_definite(item) for item in value), key=str)
    return f"{value:g}" if isinstance(value, float) else value


def explain_validation(error: ValidationError, model: type[BaseModel]) -> str:
    """The first thing that is wrong, in one line, with the likely key where an unknown one was given."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] != "extra_forbidden":
        return f"{where}: {first['msg'].removeprefix('Value error, ')}"
    known: Any = model
    for part in first["loc"][:-1]:
        field = getattr(known, "model_fields", {}).get(part)
        known = field.annotation if field else None
    names = list(getattr(known, "model_fields", {}))
    close = get_close_matches(str(first["loc"][-1]), names, n=1)
    suggestion = f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(names)}" if names else ""
    return f"unknown key {where!r}{suggestion}"
