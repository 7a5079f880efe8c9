"""A text after its checks: what is to be redacted taken out, and what was taken out put back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import msgspec

from aibox.guardrails.marks import json_might_hold_tokens, might_hold_tokens
from aibox.guardrails.pseudonyms import Pseudonyms, with_look_alikes
from aibox.guardrails.stream import Decided
from aibox.policy.pseudonyms import PseudonymRules
from aibox.types import Decision, Finding, Scope, Where

# On its way to a model a text gets pseudonyms, which are restored later. A model's own text does not: what is taken out
# of it stays out, or restoring would put it back.
_TO_MODEL: tuple[Where, ...] = ("input", "tool_result", "retrieved")
# Retrieved text is memory's own, and rightly holds pseudonyms; from elsewhere nothing may pass for one.
_FOREIGN: tuple[Where, ...] = ("input", "tool_result")
PERSONAL = ("pii", "entities")
"""The checks whose findings become pseudonyms."""


async def rewritten(
    text: str,
    decided: Sequence[Decided],
    *,
    where: Where,
    scope: Scope,
    pseudonyms: Pseudonyms,
    rules: PseudonymRules,
) -> str:
    """The text with what is to be redacted taken out, and with what only looks like a pseudonym made safe."""
    if not decided and (where not in _FOREIGN or not might_hold_tokens(text)):
        return text
    reversible = where in _TO_MODEL
    spans: list[tuple[int, int, str]] = []
    removed: dict[int, str] = {}
    for start, end, findings in _united(decided):
        if reversible and all(finding.check in PERSONAL for finding in findings):
            # Of two that overlap the longer one knows more: a name may stand in an address.
            spans.append((start, end, max(findings, key=lambda finding: finding.span[1] - finding.span[0]).rule))
        else:
            removed[start] = f"[removed: {_reason(findings)}]"
            spans.append((start, end, "REMOVED"))
    if where in _FOREIGN:
        spans = with_look_alikes(text, spans)
    return await pseudonyms.put(text, spans, scope=scope, rules=rules, fixed=removed)


async def restored_json(text: str, restore: Callable[[str], Awaitable[str]]) -> str:
    """A JSON text with each of its strings restored; one that is no JSON is restored as it is."""
    if not json_might_hold_tokens(text.encode("utf-8", "surrogatepass")):
        return text
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return await restore(text)
    return msgspec.json.encode(await _restored(value, restore)).decode()


async def _restored(value: Any, restore: Callable[[str], Awaitable[str]]) -> Any:
    if isinstance(value, str):
        return await restore(value)
    if type(value) is int and (shown := await restore(written := str(value))) != written:
        # A number of digits alone may have been written as a number, and is one where its value is.
        plain = shown.replace(" ", "").replace("-", "")
        return int(plain) if plain.isascii() and plain.isdecimal() else shown
    if isinstance(value, list):
        return [await _restored(item, restore) for item in value]
    if isinstance(value, dict):
        return {await _restored(key, restore): await _restored(item, restore) for key, item in value.items()}
    return value


def _united(decided: Iterable[Decided]) -> list[tuple[int, int, list[Finding]]]:
    """What is to be redacted: spans in order, those that overlap as one, each with its findings."""
    united: list[tuple[int, int, list[Finding]]] = []
    redacted = (f for f, decision in decided if decision >= Decision.REDACT and f.span[0] < f.span[1])
    for finding in sorted(redacted, key=lambda f: f.span):
        start, end = finding.span
        if united and start < united[-1][1]:
            first, last, findings = united[-1]
            united[-1] = (first, max(last, end), [*findings, finding])
        else:
            united.append((start, end, [finding]))
    return united


def _reason(findings: Sequence[Finding]) -> str:
    strongest = max(findings, key=lambda finding: finding.score)
    return strongest.reason or strongest.rule
