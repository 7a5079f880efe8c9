"""Checks a text while it is written. Nothing is released before the sentence that it belongs to was checked.

Where a text is cut depends on the text alone, so the result is the same for every chunking, and what was released is
never judged again. Built-in checks find what they find in the whole text: no pattern reaches over a sentence's end.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from aibox.guardrails.pseudonyms import Restorer
from aibox.policy.policy import Policy
from aibox.types import Decision, Finding, Label, Scope, Verdict, Where

SEGMENT_CHARS = 200
"""A sentence longer than this is checked and released in pieces of this length."""
BEHIND_CHARS = 300
"""How much of what was released is looked at again, so that a check sees what a sentence begins with."""
AHEAD_CHARS = 100
"""How much must have come after a piece of a long sentence, so that nothing is cut in two."""

RUN_CHARS = 4_096
"""An unbroken run of plain signs, such as a link or a token, is not cut in two until it is as long as this."""
_RUN_BEFORE = re.compile(r"[!-~]{1,4096}\Z")
_RUN_AFTER = re.compile(r"[!-~]{0,4096}")

# A full stop after one letter, a day of a month or a usual abbreviation ends no sentence; an empty line ends one. The
# sign comes first and what stands before it is looked at after: the other way round costs a hundred times as much.
_ABBREVIATIONS = "mr|mrs|ms|dr|st|no|ext|tel|prof|jan|feb|mar|apr|jun|jul|aug|sep|sept|oct|nov|dec"
_NO_END = "".join(rf"(?<!\b{word}\.)" for word in ("[a-z]", r"\d", r"\d\d", *_ABBREVIATIONS.split("|")))
_AFTER = r"[\"')\]]{0,3}\s"
_SENTENCE_END = re.compile(rf"[.!?\n](?:(?<=\.)(?i:{_NO_END}){_AFTER}|(?<=[!?]){_AFTER}|(?<=\n)[ \t]{{0,8}}\n)")

Decided = tuple[Finding, Decision]


@dataclass(frozen=True, slots=True)
class Judged:
    """The findings that a policy cares about, in order, each with what it decides; the same of one in shadow."""

    decided: tuple[Decided, ...]
    shadow: tuple[Decided, ...] | None = None


class Judge(Protocol):
    """What a filter asks of a Guardrail."""

    @property
    def policy(self) -> Policy: ...

    def for_tenant(self, tenant: str) -> Judge:
        """Itself, as it is for a tenant."""
        ...

    def looks(self, where: Where) -> bool:
        """Whether anything is looked for at this place."""
        ...

    def whole(self, where: Where) -> bool:
        """Whether a text of this place can be judged only when there is all of it."""
        ...

    @property
    def shadow(self) -> Policy | None: ...

    async def judge(self, text: str, *, where: Where, scope: Scope, label: Label | None, piece: bool) -> Judged:
        """What is found and decided; nothing is changed. Of a `piece` nothing is asked that needs the whole."""
        ...

    async def rewrite(self, text: str, decided: Sequence[Decided], *, where: Where, scope: Scope) -> str:
        """The text as it may be used after these decisions."""
        ...

    def restorer(self, *, scope: Scope) -> Restorer | None: ...


class OutputFilter:
    """One text of a model on its way out. `push` and `finish` return what may be shown now: checked, then restored.

    `guardrail` None lets everything through. When `verdict.blocked`, nothing more comes. At most a sentence is held
    back, or SEGMENT_CHARS + AHEAD_CHARS (an unbroken run of RUN_CHARS), and for pseudonyms TOKEN_CHARS more; all of it
    where a check can judge a whole text only.
    """

    def __init__(
        self,
        guardrail: Judge | None,
        *,
        scope: Scope,
        label: Label | None = None,
        where: Where = "output",
        restore: bool = True,
    ) -> None:
        guardrail = None if guardrail is None else guardrail.for_tenant(scope.tenant)
        self._guardrail = guardrail
        self._scope = scope
        self._label = label
        self._where: Where = where
        self._checked = guardrail is not None and guardrail.looks(where)
        self._whole = guardrail is not None and guardrail.whole(where)
        self._restorer = guardrail.restorer(scope=scope) if guardrail is not None and restore else None
        self._pending = ""
        self._behind = ""
        self._offset = 0
        self._decision = Decision.ALLOW
        self._findings: list[Finding] = []
        self._shadow = guardrail.shadow if guardrail is not None else None
        self._shadow_found: dict[Finding, Decision] = {}
        self._passed: list[str] = []
        self._shown: list[str] = []

    @property
    def decision(self) -> Decision:
        """That of `verdict`, without gathering the text."""
        return self._decision

    @property
    def verdict(self) -> Verdict:
        """What has been decided so far. `text` is what passed, with pseudonyms; spans are of the text as it came."""
        digest = self._guardrail.policy.digest if self._guardrail is not None else ""
        shadow = None
        if self._shadow is not None:
            found = self._shadow_found
            decision = max(found.values(), default=Decision.ALLOW)
            shadow = Verdict(decision, "", tuple(found), self._shadow.digest, self._where)
        return Verdict(self._decision, "".join(self._passed), tuple(self._findings), digest, self._where, shadow)

    @property
    def text(self) -> str:
        """All that has been released."""
        return "".join(self._shown)

    async def push(self, text: str) -> str:
        """Take the next piece of the text; returns what may be shown."""
        return await self._take(text, final=False)

    async def finish(self) -> str:
        """There is no more text; returns the rest that may be shown."""
        return await self._take("", final=True)

    async def _take(self, text: str, *, final: bool) -> str:
        if self._decision >= Decision.REQUIRE_APPROVAL:
            return ""
        released: list[str] = []
        if self._checked:
            self._pending += text
            while self._pending and (passed := await self._segment(final=final)) is not None:
                released.append(await self._restore(passed))
        else:
            self._passed.append(text)
            released.append(await self._restore(text))
        if self._restorer is not None and (final or self._decision >= Decision.REQUIRE_APPROVAL):
            released.append(await self._restorer.finish())
        shown = "".join(released)
        self._shown.append(shown)
        return shown

    async def _restore(self, text: str) -> str:
        return text if self._restorer is None else await self._restorer.push(text)

    async def _segment(self, *, final: bool) -> str | None:
        """Check and take the next segment from what is pending; None when more must come first, or nothing may."""
        if self._decision >= Decision.REQUIRE_APPROVAL:
            return None
        if self._whole and not final:
            return None
        end = None if self._whole else _SENTENCE_END.search(self._pending, 0, SEGMENT_CHARS)
        if self._whole:
            cut = seen = len(self._pending)
        elif end is not None:
            cut = seen = end.end()
        elif len(self._pending) >= SEGMENT_CHARS + AHEAD_CHARS or (final and len(self._pending) > SEGMENT_CHARS):
            cut = _beside_run(self._pending, SEGMENT_CHARS)
            seen = cut + AHEAD_CHARS
            if cut > SEGMENT_CHARS and len(self._pending) < seen and not final:
                return None
        elif final:
            cut = seen = len(self._pending)
        else:
            return None
        assert self._guardrail is not None
        window = self._behind + self._pending[:seen]
        judged = await self._guardrail.judge(
            window, where=self._where, scope=self._scope, label=self._label, piece=not self._whole
        )
        decided = _moved(judged.decided, -len(self._behind))
        cut = _beside(decided, cut, min(seen, len(self._pending)))
        # By their place in the whole text, so that what two windows see counts once.
        for finding, decision in _moved(judged.shadow or (), self._offset - len(self._behind)):
            if finding.span[0] < self._offset + cut:
                self._shadow_found[finding] = decision
        return await self._pass(decided, cut)

    async def _pass(self, decided: tuple[Decided, ...], cut: int) -> str | None:
        assert self._guardrail is not None
        segment, self._pending = self._pending[:cut], self._pending[cut:]
        mine = tuple((f, d) for f, d in decided if f.span[0] < cut and f.span[1] > 0)
        self._decision = max(self._decision, *(d for _, d in mine), Decision.ALLOW)
        self._findings += (f for f, _ in _moved(mine, self._offset))
        self._offset += cut
        self._behind = (self._behind + segment)[-BEHIND_CHARS:]
        if self._decision >= Decision.REQUIRE_APPROVAL:
            return None
        passed = await self._guardrail.rewrite(segment, _clipped(mine, cut), where=self._where, scope=self._scope)
        self._passed.append(passed)
        return passed


class CheckedStream:
    """The text of a model as an async iterator of what may be shown. Ends early when a check refuses: see `verdict`."""

    def __init__(self, chunks: AsyncIterator[str], *, through: OutputFilter) -> None:
        self._filter = through
        self._pieces = self._iterate(chunks)

    @property
    def verdict(self) -> Verdict:
        """What has been decided so far."""
        return self._filter.verdict

    def __aiter__(self) -> AsyncIterator[str]:
        return self._pieces

    async def __anext__(self) -> str:
        return await anext(self._pieces)

    async def _iterate(self, chunks: AsyncIterator[str]) -> AsyncIterator[str]:
        async for chunk in chunks:
            if piece := await self._filter.push(chunk):
                yield piece
            if self._filter.verdict.blocked:
                return
        if piece := await self._filter.finish():
            yield piece


def _moved(decided: Sequence[Decided], by: int) -> tuple[Decided, ...]:
    return tuple((Finding(f.check, f.rule, (f.span[0] + by, f.span[1] + by), f.score, f.reason), d) for f, d in decided)


def _clipped(decided: Sequence[Decided], cut: int) -> tuple[Decided, ...]:
    return tuple(
        (Finding(f.check, f.rule, (max(0, f.span[0]), min(cut, f.span[1])), f.score, f.reason), d) for f, d in decided
    )


def _beside_run(text: str, cut: int) -> int:
    """The cut, moved before the unbroken run that it would divide, or behind one that the text begins with."""
    before = _RUN_BEFORE.search(text, 0, cut)
    if before is None or not (after := _RUN_AFTER.match(text, cut)) or after.end() == cut:
        return cut
    return before.start() or min(after.end(), RUN_CHARS)


def _beside(decided: Sequence[Decided], cut: int, limit: int) -> int:
    """The cut, moved so that it divides no finding: before one that begins in the segment, else behind it."""
    for finding, _ in sorted(decided, key=lambda pair: pair[0].span, reverse=True):
        start, end = finding.span
        if start < cut < end:
            cut = start if start > 0 else min(end, limit)
    return cut
