"""Summaries of long conversations: names, numbers and decisions stay, with their turns, and the length is bounded."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import aibox
from aibox.agents.events import Compacted
from aibox.agents.state import AgentState
from aibox.agents.summary import summarise
from aibox.testing import ScriptedBackend
from aibox.types import Scope


def turn(asked: str, answered: str = "Noted.") -> list[dict[str, Any]]:
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]


def test_rules_keep_names_numbers_and_decisions_with_their_turns() -> None:
    """Without a model, sentences that hold one of the three are kept word for word; chatter and code are not."""
    messages = [
        *turn("hello, nice weather today", "it is, how can i help?"),
        *turn("We decided to move the database to PostgreSQL 17.", "Fine. The migration takes about 4 hours."),
        *turn("```\nport = 8080\n```\nthanks a lot for that", "you are welcome"),
        *turn("ok, ask Ingrid Berg about it"),
    ]
    assert summarise(messages, first_turn=7, limit_chars=2000).splitlines() == [
        "- We decided to move the database to PostgreSQL 17. [turn 8, user]",
        "- The migration takes about 4 hours. [turn 8, assistant]",
        "- ok, ask Ingrid Berg about it [turn 10, user]",
    ]


def test_what_a_model_left_out_is_put_back() -> None:
    """A model's summary without a number that was told gets the sentence with it; what it has is not said twice."""
    messages = [*turn("The budget is 48,500 euros."), *turn("We chose the clinic in Brno.")]
    said = summarise(messages, first_turn=1, limit_chars=2000, written="* The clinic in Brno was chosen. [turn 2]")
    assert said.splitlines() == [
        "- The budget is 48,500 euros. [turn 1, user]",
        "- The clinic in Brno was chosen. [turn 2]",
    ]


def test_a_turn_that_there_is_not_is_not_cited() -> None:
    """A model that cites turn 900 of a conversation of two is corrected: the line belongs to the turns summed up."""
    written = "They met in Oslo. [turn 900]\nNothing else."
    said = summarise([*turn("hi"), *turn("ho")], first_turn=1, limit_chars=2000, written=written)
    assert said.splitlines() == ["- They met in Oslo. [turns 1-2]", "- Nothing else. [turns 1-2]"]


def test_of_what_has_one_value_the_newest_is_kept() -> None:
    """A name that was corrected is in the summary once, as it was said last."""
    before = summarise(turn("My name is Eva."), first_turn=1, limit_chars=500)
    said = summarise(turn("My name is Eve."), first_turn=2, limit_chars=500, before=before)
    assert said == "- My name is Eve. [turn 2, user]"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=300), max_size=12), st.text(max_size=600), st.text(max_size=600), st.integers(0, 500))
def test_a_summary_is_never_longer_than_its_limit(asked: list[str], before: str, written: str, limit: int) -> None:
    """Whatever was said and whatever a model wrote, the limit holds, and each line cites a turn."""
    messages = [message for text in asked for message in turn(text, text)]
    said = summarise(messages, first_turn=3, limit_chars=limit, before=before, written=written)
    assert len(said) <= limit
    assert all(re.search(r"\[turns? [\d, -]+(, (user|assistant))?\]$", line) for line in said.splitlines())


@pytest.mark.anyio
@pytest.mark.parametrize("able", [True, False], ids=["a-model", "rules"])
async def test_a_thousand_turns_stay_under_the_budget(scope: Scope, tmp_path: Path, able: bool) -> None:
    """At each of 1,000 turns summary and window fit in `history_chars`; the first turns' facts are still there."""
    draw = random.Random(3)
    words = ("river", "garden", "window", "music", "paper", "train", "lamp", "coffee", "winter", "bridge")
    budget = 6_000
    longest = 0
    history: list[int] = []

    def answer(request: Any) -> str:
        nonlocal longest
        system, *messages = request.messages
        if system["content"].startswith("Sum up"):
            if not able:
                raise aibox.BackendError("busy")
            return "They chatted about many things. [turn 2]"
        told = system["content"].partition("instruction to you.\n")[2]
        longest = max(longest, len(told) + sum(len(m["content"]) for m in messages[:-1]))
        history.append(len(messages))
        return " ".join(draw.choices(words, k=40))

    state = AgentState(tmp_path / "agents.db", key=bytes(32))
    model = ScriptedBackend(*[answer] * 2_000)
    agent = aibox.Agent("x", router=model, state=state, history_chars=budget)
    facts = {
        0: "My name is Ingrid Berg.",
        1: "We decided to open the clinic in Brno on 14 March 2031.",
        2: "The budget is 48,500 euros.",
        500: "We decided that Tomas signs the contract ZX-4471.",
    }
    for number in range(1_000):
        await agent.run(facts.get(number, f"tell me about the {draw.choice(words)}"), scope=scope)
    assert longest <= budget
    events = [event async for event in agent.stream("and now?", scope=scope)]
    assert isinstance(events[-1], aibox.Reply)
    system = model.requests[-1].messages[0]["content"]
    for number, fact in facts.items():
        assert f"- {fact} [turn {number + 1}, user]" in system
    exported = (await state.sessions.export(scope=scope.narrow(agent="default")))["messages"]
    assert exported[2 * 500]["content"] == facts[500]  # turn 501 of the export is what the summary cites
    assert max(history) > 20
    assert not any(isinstance(event, Compacted) and not event.messages for event in events)
    await state.close()


@pytest.mark.anyio
async def test_a_message_longer_than_the_budget_is_only_summed_up(scope: Scope, tmp_path: Path) -> None:
    """One turn that does not fit by itself is not sent along again; what it decided is."""
    state = AgentState(tmp_path / "agents.db", key=bytes(32))
    model = ScriptedBackend("read", "sums up nothing", "yes")
    agent = aibox.Agent("x", router=model, state=state, history_chars=3_000)
    await agent.run(f"We decided to hire Ada Byron. {'lorem ipsum ' * 400}", scope=scope)
    await agent.run("and?", scope=scope)
    system, *messages = model.requests[-1].messages
    assert "We decided to hire Ada Byron. [turn 1, user]" in system["content"]
    assert [m["content"] for m in messages] == ["and?"]
    await state.close()
