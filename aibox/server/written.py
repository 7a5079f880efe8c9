"""What may be written as a tenant's policy over HTTP: whether it holds, and what it may not say.

A tenant's administrator is not the operator. What they write is read and run by everybody's server, so it says nothing
that costs more than the text itself: no schema, no examples, no words for the judge, no check that was not in use.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from aibox.errors import ConfigError, LimitError
from aibox.guardrails.catalogue import built_in
from aibox.policy import files
from aibox.policy.policy import Policy
from aibox.policy.texts import EXAMPLE
from aibox.server.policies import Level

MAX_BYTES = 32 << 10
"""Of a policy as JSON."""
MAX_DEPTH = 16
SOURCE = "the policy"
_PART = r"""(?:(?:[A-Za-z0-9_-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+)"""
_LONG_KEY = re.compile(rf"(?<![A-Za-z0-9_-]){_PART}{{{MAX_DEPTH}}}")
_EVERYBODYS = {
    "retention": "how long evidence is kept",
    "sandbox": "the limits of the sandbox, which are everybody's,",
    "gpus": "who has GPUs",
}
"""Parts that the operator's files alone say; a server that runs does not take them up."""


def read(given: Mapping[str, Any] | str) -> tuple[Policy, str]:
    """The policy in TOML, or as an object, and its text to be kept. Raises ConfigError, LimitError."""
    data = _parsed(given) if isinstance(given, str) else given
    if _depth(data) > MAX_DEPTH:
        raise _too_deep()
    for part in sorted(_EVERYBODYS.keys() & data.keys()):
        raise ConfigError(
            f"{SOURCE} says {_EVERYBODYS[part]} which is not written over HTTP", hint=f"leave out [{part}]"
        )
    try:
        policy = Policy.read(data, source=SOURCE)
        said = policy.model_dump(mode="json", exclude_unset=True)
        text = msgspec.json.encode(said, order="deterministic").decode()
        digest = policy.digest
    except (ValueError, OverflowError):
        raise _no_value() from None
    if len(text.encode()) > MAX_BYTES:
        raise LimitError(f"{SOURCE} is longer than {MAX_BYTES >> 10} KiB", hint="write less", code="policy.limit.body")
    # No part is known to be read otherwise than it was written; what is kept binds everybody, and so this is seen to.
    if kept(text).digest != digest:
        raise _no_value()
    return policy, text


def _no_value() -> ConfigError:
    return ConfigError(
        f"{SOURCE} holds a value that cannot be kept", hint="numbers below 2^53, no inf, and text that is Unicode"
    )


def _parsed(toml: str) -> dict[str, Any]:
    # A key of thousands of parts takes the parser half a minute.
    if _LONG_KEY.search(toml):
        raise _too_deep()
    try:
        return files.parse(toml.encode("utf-8", "replace"), source=SOURCE)
    except ValueError as error:  # such as a number of more digits than Python reads
        raise ConfigError(f"{SOURCE} is not TOML: {error}") from None


def _too_deep() -> ConfigError:
    return ConfigError(f"{SOURCE} is nested too deeply", hint=f"{MAX_DEPTH} levels are read")


def kept(text: str) -> Policy:
    """A policy that was kept. Raises ConfigError for one that this version cannot read."""
    try:
        data = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise ConfigError(f"{SOURCE} that was kept is no JSON: {error}") from None
    return Policy.read(data, source=SOURCE)


def hold(policy: Policy, level: Level, *, in_use: Collection[str]) -> None:
    """Raises ConfigError for what the level may not say. `in_use` are the checks of the levels above."""
    if level == "operator":
        return
    refused = [
        (bool(policy.form.output), "form.output", "a schema"),
        (bool(policy.judge.principles), "judge.principles", "words for the judge"),
        (any(map(_has_examples, (*policy.topics.banned.values(), *policy.topics.allowed))), "topics", "examples (~)"),
    ]
    for there, part, what in refused:
        if there:
            raise ConfigError(f"{SOURCE} has {what}, which the operator alone gives", hint=f"leave it out of {part}")
    if strange := sorted(set(policy.checks) - {*built_in(), *in_use}):
        raise ConfigError(
            f"{SOURCE} asks for a check that is not in use here: {strange[0][:100]}",
            hint="the operator names it first, in the policy of the box or of the tenant",
        )


def _has_examples(phrases: Collection[str]) -> bool:
    return any(phrase.startswith(EXAMPLE) for phrase in phrases)


def _depth(value: Any) -> int:
    """How deep lists and tables stand in one another, as far as it matters."""
    deep, level = 0, [value]
    while level and deep <= MAX_DEPTH:
        level = [
            item
            for one in level
            if isinstance(one, dict | list)
            for item in (one.values() if isinstance(one, dict) else one)
        ]
        deep += 1
    return deep
