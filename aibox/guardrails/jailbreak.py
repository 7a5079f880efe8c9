"""Plain attempts to take over an assistant, found by rules. English only, and a clever rewriting passes.

Every pattern has a bounded length and runs on the normal form, so the time is linear in the text, whatever is in it.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from importlib import resources

from aibox.guardrails.encodings import SELECTORS, views
from aibox.guardrails.normalise import normalise
from aibox.guardrails.reading import flagged
from aibox.types import Finding, Label, Scope, Verdict, Where

_SENTENCE_CHARS = 400  # how far a finding is widened at most, on each side, to the sentence it stands in


@dataclass(frozen=True, slots=True)
class _Pattern:
    """`anchors` are plain strings of which one must be in the text: they spare most texts most patterns."""

    rule: str
    reason: str
    anchors: tuple[str, ...]
    score: float
    match: re.Pattern[str]


@cache
def _patterns() -> tuple[_Pattern, ...]:
    """The rules in `jailbreak.toml`, which says how to read them."""
    data = tomllib.loads(resources.files("aibox.guardrails").joinpath("jailbreak.toml").read_text("utf-8"))
    words: dict[str, str] = data["vocabulary"]

    def compiled(pattern: str) -> re.Pattern[str]:
        while "@" in pattern:
            pattern = re.sub("@(\\w+)@", lambda word: words[word[1]], pattern)
        return re.compile(pattern.replace(" ", r"\s"))

    return tuple(
        _Pattern(rule["id"], rule["reason"], tuple(pattern["anchors"]), pattern["score"], compiled(pattern["match"]))
        for rule in data["rules"]
        for pattern in rule["patterns"]
    )


@cache
def _anchors() -> frozenset[str]:
    """Of all rules, each once: many share theirs."""
    return frozenset(anchor for pattern in _patterns() for anchor in pattern.anchors)


# Unicode tags spell ASCII text that no screen shows; the only honest use is in the flags of regions. Variation
# selectors can be the bytes of any text; an honest one stands alone behind what it selects.
_HIDDEN = re.compile(
    f"(?<!\U0001f3f4)(?<![\U000e0020-\U000e007f])[\U000e0020-\U000e007f]{{4,256}}|(?<!{SELECTORS}){SELECTORS}{{4,256}}"
)

_SENTENCE_END = re.compile(r"[.!?][\"')\]]{0,8}\s|\n")


class Jailbreak:
    """Finds plain attempts to take over an assistant: a Check. Its findings score 0.6 (odd) to 0.95 (plain).

    Rules: instruction-override, new-instructions, prompt-extraction, persona, restriction-bypass, fake-role,
    encoded-payload, note-to-assistant, hidden-text. In tool results and retrieved texts a finding spans its whole
    sentence, so that what is removed takes the order along. Measured on open data in `docs/guardrails-measured.md`.
    """

    @property
    def name(self) -> str:
        return "jailbreak"

    async def check(self, text: str, *, where: Where = "input", scope: Scope, label: Label | None = None) -> Verdict:  # noqa: ARG002 - the protocol's arguments
        """FLAG with findings in order, or ALLOW. The text is never changed."""
        return await flagged(text, partial(scan, sentences=where in ("tool_result", "retrieved")), where=where)

    def __repr__(self) -> str:
        return "Jailbreak()"


def scan(text: str, *, sentences: bool = False) -> tuple[Finding, ...]:
    """All findings in a text; of those of one rule that overlap only the strongest."""
    normal = normalise(text)
    found: list[Finding] = []
    for pattern, start, end in _matches(normal.text):
        span = _sentence(normal.text, start, end) if sentences else (start, end)
        found.append(Finding("jailbreak", pattern.rule, normal.span(*span), pattern.score, pattern.reason))
    for view in views(text):
        for pattern, _, _ in _matches(normalise(view.text).text):
            reason = f"{pattern.reason}, in {view.how}"
            found.append(Finding("jailbreak", pattern.rule, view.span, pattern.score, reason))
        if view.deep:
            reason = "hides a text under more encodings than are undone"
            found.append(Finding("jailbreak", "encoded-payload", view.span, 0.9, reason))
    if not text.isascii():
        found += (
            Finding("jailbreak", "hidden-text", match.span(), 0.95, "carries text that no screen shows")
            for match in _HIDDEN.finditer(text)
        )
    return tuple(_strongest(found))


def _matches(text: str) -> Iterator[tuple[_Pattern, int, int]]:
    there = {anchor for anchor in _anchors() if anchor in text}
    if not there:
        return
    for pattern in _patterns():
        if not there.isdisjoint(pattern.anchors):
            for match in pattern.match.finditer(text):
                yield pattern, *match.span()


def _sentence(text: str, start: int, end: int) -> tuple[int, int]:
    first = max(0, start - _SENTENCE_CHARS)
    for stop in _SENTENCE_END.finditer(text, first, start):
        first = stop.end()
    stop_after = _SENTENCE_END.search(text, max(start, end - 1), min(len(text), end + _SENTENCE_CHARS))
    return first, stop_after.end() if stop_after else min(len(text), end + _SENTENCE_CHARS)


def _strongest(found: list[Finding]) -> Iterator[Finding]:
    last: dict[str, Finding] = {}
    for finding in sorted(found, key=lambda f: (f.rule, f.span[0], -f.score)):
        before = last.get(finding.rule)
        if before is None or finding.span[0] >= before.span[1]:
            if before is not None:
                yield before
            last[finding.rule] = finding
        elif finding.score > before.score:
            last[finding.rule] = finding
    yield from last.values()
