"""What every Check keeps to. A check of your own runs this suite by subclassing it and overriding what is marked."""

from __future__ import annotations

import anyio
import pytest

from aibox.protocols import Check
from aibox.types import PLACES, Decision, Scope

SCOPE = Scope(tenant="contract", user="somebody")


class CheckContract:
    """Override the fixture `check`, and give a text in which it finds something and one in which it does not."""

    found = ""
    clean = ""

    @pytest.fixture
    def anyio_backend(self) -> str:
        return "asyncio"

    @pytest.fixture
    def check(self) -> Check:
        raise NotImplementedError("override the fixture `check` and return the check under test")

    @pytest.mark.anyio
    async def test_it_flags_what_it_finds(self, check: Check) -> None:
        """A text with something in it gets at least FLAG, and a finding."""
        verdict = await check.check(self.found, scope=SCOPE)
        assert verdict.decision >= Decision.FLAG
        assert verdict.findings

    @pytest.mark.anyio
    async def test_it_allows_what_is_clean(self, check: Check) -> None:
        """A text with nothing in it gets ALLOW and no finding."""
        verdict = await check.check(self.clean, scope=SCOPE)
        assert (verdict.decision, verdict.findings) == (Decision.ALLOW, ())

    @pytest.mark.anyio
    async def test_its_findings_are_well_formed(self, check: Check) -> None:
        """Spans lie in the text, scores from 0 to 1, and rules are named."""
        verdict = await check.check(f"{self.clean}\n{self.found}\n{self.clean}", scope=SCOPE)
        for finding in verdict.findings:
            assert 0 <= finding.span[0] <= finding.span[1] <= len(self.found) + 2 * len(self.clean) + 2
            assert 0.0 <= finding.score <= 1.0
            assert finding.rule
            assert finding.check == check.name

    @pytest.mark.anyio
    async def test_it_leaves_the_text_alone_when_it_only_flags(self, check: Check) -> None:
        """Changing a text is for whom the policy tells to; a verdict below REDACT holds the text as it came."""
        for text in (self.found, self.clean):
            verdict = await check.check(text, scope=SCOPE)
            assert verdict.decision >= Decision.REDACT or verdict.text == text

    @pytest.mark.anyio
    async def test_it_answers_for_every_place(self, check: Check) -> None:
        """Every place can be asked about, and the verdict names it."""
        for where in PLACES:
            assert (await check.check(self.clean, where=where, scope=SCOPE)).where == where

    @pytest.mark.anyio
    async def test_it_bears_any_text(self, check: Check) -> None:
        """Empty, broken, invisible and long texts get an answer, not an exception."""
        for text in ("", " ", "\x00", "\ud800", "\u200b\u202e\ufeff", "e\u0301" * 50, "x" * 100_000):
            assert (await check.check(text, scope=SCOPE)).decision in Decision

    @pytest.mark.anyio
    async def test_it_keeps_calls_apart(self, check: Check) -> None:
        """Calls at the same time give what they give one after the other."""
        texts = [self.found, self.clean] * 8
        answers: dict[int, Decision] = {}

        async def ask(index: int) -> None:
            answers[index] = (await check.check(texts[index], scope=SCOPE)).decision

        async with anyio.create_task_group() as group:
            for index in range(len(texts)):
                group.start_soon(ask, index)
        alone = [(await check.check(text, scope=SCOPE)).decision for text in texts]
        assert [answers[index] for index in range(len(texts))] == alone
