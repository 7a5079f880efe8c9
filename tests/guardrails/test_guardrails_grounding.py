"""Grounding: what an answer says is held against the sources that it was given, sentence by sentence."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import aibox
from aibox.guardrails.grounding import Grounding, Sources, claims, score
from aibox.guardrails.guardrail import Guardrail
from aibox.memory.memory import Memory
from aibox.policy.policy import Policy
from aibox.protocols import Check
from aibox.testing import ScriptedBackend, call
from aibox.testing.check_contract import CheckContract
from aibox.types import Decision, Scope

pytestmark = pytest.mark.anyio

SOURCE = (
    "The clinic in Brno was founded in 1921 by Jana Horáková. It has 240 beds and is open to visitors from 2 to 6 in "
    "the afternoon. Parking is free for patients."
)
TRUE = "The clinic was founded in 1921 by Jana Horáková."
FALSE = "The university in Vienna employs 900 surgeons."
FLAGGED = Policy.read({"checks": {"grounding": {"output": {"0.5": "flag"}}}})


class TestGroundingHoldsTheContract(CheckContract):
    """It looks at answers only, and to an input nothing is found in."""

    found = clean = ""

    @pytest.fixture
    def check(self) -> Check:
        return Grounding(Sources(passages=[SOURCE]))

    @pytest.mark.anyio
    async def test_it_flags_what_it_finds(self, check: Check, scope: Scope) -> None:
        """A sentence that no source holds is found, with its place, with a high score; one that stands there, low."""
        verdict = await check.check(f"{TRUE} {FALSE}", where="output", scope=scope)
        good, bad = verdict.findings
        assert good.score < 0.2 < 0.8 < bad.score
        assert f"{TRUE} {FALSE}"[slice(*bad.span)] == FALSE
        assert (await check.check(FALSE, where="input", scope=scope)).findings == ()


def test_a_wrong_name_or_number_weighs_more_than_another_word() -> None:
    """Of two sentences with one word changed, the one with a wrong number or name is the less supported."""
    kept = score("It has 240 beds and is open to visitors.", [SOURCE])
    word = score("It has 240 rooms and is open to visitors.", [SOURCE])
    number = score("It has 950 beds and is open to visitors.", [SOURCE])
    name = score("The clinic was founded in 1921 by Petra Malá.", [SOURCE])
    assert kept < word < number
    assert score(TRUE, [SOURCE]) < name


@pytest.mark.parametrize(
    ("said", "stands"),
    [
        ("It has 1200 beds in all.", "It has 1,200 beds in all."),
        ("It was the 2nd clinic of Brno.", "It was the second clinic of Brno."),
        ("It opened on 25 August 2016.", "It opened: 2016-08-25."),
        ("It grew by 5 % in the 1980s.", "It grew by 5.0 % in the 1980s."),
    ],
)
def test_a_number_is_the_same_however_it_is_written(said: str, stands: str) -> None:
    """Separators, ordinals, days and trailing zeros do not make another number of it; another number does."""
    other = re.sub(r"\d+", "77", said, count=1)
    assert score(said, [stands]) < 0.2 < score(other, [stands])


async def test_no_source_is_a_result_of_its_own(scope: Scope) -> None:
    """An answer that was given nothing is neither supported nor not; a greeting claims nothing."""
    for text, rules in ((TRUE, ["no-source"]), ("Hello! How are you?", [])):
        verdict = await Grounding().check(text, where="output", scope=scope)
        assert [finding.rule for finding in verdict.findings] == rules
    only_said = Sources(said=[TRUE])
    assert [f.rule for f in (await Grounding(only_said).check(TRUE, where="output", scope=scope)).findings] == [
        "no-source"
    ]


async def test_a_citation_must_resolve(scope: Scope) -> None:
    """A number that no passage has is found; numbers that a tool gave its own passages count."""
    sources = Sources(passages=[SOURCE], others=['<passage number="7">Parking is free.</passage>'])
    verdict = await Grounding(sources).check(
        "Parking is free [1]. Parking is free [7]. So it is [4].", where="output", scope=scope
    )
    assert [f.reason for f in verdict.findings if f.rule == "citation"] == ["cites a passage [4] that there is not"]


@given(st.text(max_size=200), st.lists(st.text(max_size=200), max_size=3))
def test_any_text_has_claims_within_it(answer: str, sources: list[str]) -> None:
    """Whatever is written: claims are in order, lie in the text, and score from 0 to 1."""
    at = 0
    for claim in claims(answer, sources):
        assert at <= claim.span[0] < claim.span[1] <= len(answer)
        assert 0.0 <= claim.score <= 1.0
        assert -1 <= claim.source < len(sources)
        at = claim.span[1]


@given(st.permutations([TRUE, SOURCE, "Parking is free."]))
def test_what_stands_in_a_source_is_supported(sources: list[str]) -> None:
    """A sentence copied from a source is supported, whatever other sources there are and in whatever order."""
    assert score("Parking is free for patients.", sources) < 0.1


@pytest.mark.parametrize("stream", [False, True])
async def test_an_agents_answer_rests_on_what_the_turn_has_read(tmp_path: Path, scope: Scope, stream: bool) -> None:
    """Passages, results of tools and the user's own words are the sources of a turn, and of that turn only."""

    @aibox.tool(side_effects=False)
    def beds() -> str:
        """How many beds."""
        return "The clinic has 240 beds in 12 wards."

    memory = Memory(tmp_path / "memory")
    page = tmp_path / "page.md"
    page.write_text(SOURCE, "utf-8")
    await memory.add(page, scope=scope)
    said = f"{TRUE} There are 240 beds in 12 wards. The red umbrella is lost, number 77. {FALSE}"
    model = ScriptedBackend(call("beds", {}), said, said)
    agent = aibox.Agent("Answer.", router=model, tools=[beds], memory=memory, guardrail=Guardrail(FLAGGED))
    question = "When was the clinic in Brno founded? My red umbrella is lost, number 77."
    if stream:
        *_, reply = [event async for event in agent.stream(question, scope=scope)]
    else:
        reply = await agent.run(question, scope=scope)
    await memory.close()
    assert isinstance(reply, aibox.Reply)
    found = [said[slice(*f.span)].strip() for v in reply.verdicts for f in v.findings if f.rule == "unsupported"]
    assert found == [FALSE]
    alone = aibox.Agent("Answer.", router=model, guardrail=Guardrail(FLAGGED))
    other = await alone.run("What do you know?", scope=scope)
    assert [f.rule for v in other.verdicts for f in v.findings] == ["no-source"]


async def test_a_policy_may_take_out_what_is_not_supported(scope: Scope) -> None:
    """With `redact` an unsupported sentence is removed, with its reason, and the others stay."""
    policy = Policy.read({"checks": {"grounding": {"output": {"0.8": "redact"}}}})
    guardrail = Guardrail(policy).about(sources=Sources(passages=[SOURCE]))
    verdict = await guardrail.check(f"{TRUE} {FALSE}", where="output", scope=scope)
    assert verdict.decision == Decision.REDACT
    assert verdict.text == f"{TRUE} [removed: is not in the sources]"
