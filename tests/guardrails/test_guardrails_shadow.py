"""A policy in shadow: it sees what the policy in force sees, decides nothing, and costs no second look."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aibox.guardrails.guardrail import Guardrail
from aibox.policy.policy import Policy
from aibox.types import Decision, Finding, Label, Scope, Verdict, Where

pytestmark = pytest.mark.anyio

LADDERS = st.dictionaries(st.sampled_from(["0", "0.5", "0.9"]), st.sampled_from([str(d) for d in Decision]), max_size=3)
SCOPE = Scope.local()
TEXT = "It is darn late. All is well. And darn again, dear! Good night to you all."


class Counted:
    """Finds every `darn`, and counts how often it was asked."""

    name = "words"

    def __init__(self) -> None:
        self.asked = 0

    async def check(self, text: str, *, where: Where = "input", scope: Scope, label: Label | None = None) -> Verdict:
        self.asked += 1
        places = [at for at in range(len(text)) if text.startswith("darn", at)]
        found = tuple(Finding("words", "darn", (at, at + 4), 0.7, "swears") for at in places)
        return Verdict(Decision.FLAG if found else Decision.ALLOW, text, found, where=where)


def policy(ladder: Any, where: str = "input") -> Policy:
    return Policy.read({"checks": {"words": {where: ladder}}})


@given(LADDERS, LADDERS)
async def test_the_shadow_decides_as_it_would_alone_and_changes_nothing(force: Any, shadow: Any) -> None:
    """With any two policies the verdict is that of the first alone, and its shadow is that of the second alone."""
    words = {"words": Counted()}
    both = await Guardrail(policy(force), checks=words, shadow=policy(shadow)).check(TEXT, scope=SCOPE)
    alone = await Guardrail(policy(force), checks=words).check(TEXT, scope=SCOPE)
    other = await Guardrail(policy(shadow), checks=words).check(TEXT, scope=SCOPE)
    assert (both.decision, both.text, both.findings) == (alone.decision, alone.text, alone.findings)
    assert both.shadow is not None
    assert (both.shadow.decision, both.shadow.findings) == (other.decision, other.findings)
    assert both.shadow.policy_digest == policy(shadow).digest


async def test_a_check_of_both_is_asked_once() -> None:
    """What both policies ask is looked at once."""
    words = Counted()
    guardrail = Guardrail(policy("flag"), checks={"words": words}, shadow=policy("block"))
    await guardrail.check(TEXT, scope=SCOPE)
    assert words.asked == 1


async def test_lists_of_the_shadow_are_its_own() -> None:
    """Topics of the second policy are found for the second alone."""
    topics = Policy.read({"topics": {"banned": {"x": ["late"]}}, "checks": {"topics": {"input": "block"}}})
    verdict = await Guardrail(Policy(), shadow=topics).check(TEXT, scope=SCOPE)
    assert (verdict.decision, verdict.findings) == (Decision.ALLOW, ())
    assert verdict.shadow is not None
    assert verdict.shadow.blocked
    assert (await Guardrail(topics, shadow=Policy()).check(TEXT, scope=SCOPE)).blocked


@given(st.lists(st.integers(1, 20), min_size=1, max_size=8))
async def test_in_a_stream_each_finding_of_the_shadow_counts_once(sizes: list[int]) -> None:
    """However the text is cut, the shadow's findings are those of the whole text, and the text is not touched."""
    guardrail = Guardrail(Policy(), checks={"words": Counted()}, shadow=policy("block", "output"))

    async def chunks() -> AsyncIterator[str]:
        at = 0
        for size in (*sizes, len(TEXT)):
            yield TEXT[at : at + size]
            at += size

    stream = guardrail.stream(chunks(), scope=SCOPE)
    assert "".join([piece async for piece in stream]) == TEXT
    shadow = stream.verdict.shadow
    assert shadow is not None
    assert shadow.blocked
    assert [TEXT[slice(*finding.span)] for finding in shadow.findings] == ["darn", "darn"]


async def test_a_shadow_whose_check_breaks_harms_nobody() -> None:
    """A check that only the shadow asks for may fail: the verdict in force is untouched, and the shadow says so."""

    class Broken(Counted):
        async def check(self, text: str, **_: Any) -> Verdict:
            raise RuntimeError("boom")

    guardrail = Guardrail(Policy(), checks={"words": Broken()}, shadow=policy("flag"))
    verdict = await guardrail.check(TEXT, scope=SCOPE)
    assert verdict.decision == Decision.ALLOW
    assert verdict.shadow is not None
    assert [finding.rule for finding in verdict.shadow.findings] == ["failed"]
