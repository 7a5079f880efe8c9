"""The checks that a policy can name: built in, or brought by an installed package.

A package brings one by an entry point of the group `aibox.checks`: a callable without arguments that returns a Check,
under the check's name. It is loaded only where a policy names it, and what is built in cannot be replaced by it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import entry_points

from aibox.errors import ConfigError
from aibox.guardrails import entity_model, meaning
from aibox.guardrails.content import Content
from aibox.guardrails.entities import Entities
from aibox.guardrails.form import Form
from aibox.guardrails.grounding import Grounding
from aibox.guardrails.injection import Injection
from aibox.guardrails.jailbreak import Jailbreak
from aibox.guardrails.leak import PromptLeak
from aibox.guardrails.links import Links
from aibox.guardrails.meaning import Meaning
from aibox.guardrails.pii import PII
from aibox.guardrails.reading import LONG_CHARS
from aibox.guardrails.secrets import Secrets
from aibox.guardrails.tokens import Tokens
from aibox.guardrails.topics import Topics
from aibox.policy.policy import Policy
from aibox.protocols import Check, Embedder

GROUP = "aibox.checks"
OF_POLICY = ("topics", "tokens", "form")
"""The checks that are made of a policy's own lists and limits."""

_COMPUTE: frozenset[type] = frozenset(
    {Jailbreak, Injection, Content, PII, Secrets, Links, PromptLeak, Topics, Tokens, Form}
)


def waits(check: Check, text: str) -> bool:
    """Whether looking at this text may wait for anything. Of a class that is not exactly one of ours: yes."""
    return type(check) not in _COMPUTE or len(text) >= LONG_CHARS or getattr(check, "waits", False)


def built_in(policy: Policy | None = None, *, embedder: Embedder | None = None) -> dict[str, Check]:
    """The checks that come with aibox, by name, as the policy's lists and limits have them.

    Raises ConfigError for a phrase or a schema that is none, or for `meaning` without its embedder; MissingExtraError
    for a check that the policy asks for and that needs more than the base install.
    """
    policy = policy or Policy()
    if "entities" in policy.checks and not entity_model.installed():
        raise entity_model.missing()
    if "meaning" in policy.checks:
        meaning.require(embedder)
    parts: tuple[Check, ...] = (
        *(Jailbreak(), Injection(), Content(), PII(), Entities(), Secrets(), Links(), PromptLeak(), Grounding()),
        *(Meaning(embedder), Topics(policy.topics, embedder=embedder), Tokens(policy.tokens), Form(policy.form)),
    )
    return {check.name: check for check in parts}


def brought(names: Iterable[str]) -> dict[str, Check]:
    """Those of the names that an installed package brings. Raises ConfigError for one that cannot be loaded or made.

    Of two packages that bring the same name neither is believed.
    """
    found: dict[str, Check] = {}
    for name in names:
        entries = {entry.value: entry for entry in entry_points(group=GROUP, name=name)}
        if len(entries) > 1:
            raise ConfigError(
                f"two packages bring a check {name!r}: {', '.join(sorted(entries))}",
                hint="remove one of them, or give the check yourself: checks={name: check}",
            )
        for entry in entries.values():
            found[name] = _made(name, entry.load)
    return found


def offered() -> list[str]:
    """The names of the checks that installed packages bring, without loading any."""
    return sorted({entry.name for entry in entry_points(group=GROUP)})


def _made(name: str, load: Callable[[], Callable[[], Check]]) -> Check:
    try:
        check = load()()
    except Exception as error:  # a stranger's code may raise anything, and then there is no such check
        raise ConfigError(f"the check {name!r} cannot be loaded: {type(error).__name__}: {error}") from error
    # Findings carry the check's own name, and a policy is asked about that name.
    if getattr(check, "name", None) != name:
        raise ConfigError(f"the check {name!r} calls itself {getattr(check, 'name', None)!r}", hint="one name for both")
    return check


def checks_of(policy: Policy, *, given: Mapping[str, Check], embedder: Embedder | None = None) -> dict[str, Check]:
    """All that come with aibox, those given by name in their place or beside them, and what else the policy asks for.

    Raises ConfigError for a check that is not there, and as `built_in` and `brought` do.
    """
    here = {**built_in(policy, embedder=embedder), **given}
    # What is installed is looked at only for a name that is not there otherwise.
    checks = {**here, **brought(sorted(set(policy.checks) - set(here)))}
    unknown = sorted(set(policy.checks) - set(checks))
    if unknown:
        known = ", ".join(sorted({*checks, *offered()}))
        raise ConfigError(
            f"the policy {policy.name!r} asks for checks that are not there: {', '.join(unknown)}",
            hint=f"known are {known}; give others as checks={{name: check}}",
        )
    return checks
