"""What may be written as a tenant's policy over HTTP: whether it holds, and what it may not say.

A tenant's administrator is not the operator. What they write is read and run by everybody's server, so it says nothing
that costs more than the text itself: no schema, no examples, no words for the judge, no check that was not in use.
"""

from __future__ import annotations

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
_EVERYBODYS = {
    "retention": "how long evidence is kept",
    "sandbox": "the limits of the sandbox, which are everybody's,",
    "gpus": "who has GPUs",
}
"""Parts that the operator's files alone say; a server that runs does not take them up."""


def read(given: Mapping[str, Any] | str) -> tuple[Policy, str]:
    """The policy in TOML, or as an object, and its text to be kept. Raises ConfigError, LimitError."""
    data = files.parse(given.encode("utf-8", "replace"), source=SOURCE) if isinstance(given, str) else dict(given)
    if _depth(data) > MAX_DEPTH:
        raise ConfigError(f"{SOURCE} is nested too deeply", hint=f"{MAX_DEPTH} levels are read")
    for part in sorted(_EVERYBODYS.keys() & data.keys()):
        raise ConfigError(
            f"{SOURCE} says {_EVERYBODYS[part]} which is not written over HTTP", hint=f"leave out [{part}]"
        )
    policy = Policy.read(data, source=SOURCE)
    text = msgspec.json.encode(policy.model_dump(mode="json", exclude_unset=True), order="deterministic").decode()
    if len(text.encode()) > MAX_BYTES:
        raise LimitError(f"{SOURCE} is longer than {MAX_BYTES >> 10} KiB", hint="write less", code="policy.limit.body")
    try:
        same = kept(text).digest == policy.digest
    except ConfigError:
        same = False
    if not same:
        raise ConfigError(f"{SOURCE} holds a number that cannot be kept", hint="no inf and no nan")
    return policy, text


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
