"""Citations in an answer resolve to document, page and passage; what no source says is marked."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import aibox
from aibox.agents.citations import cited
from aibox.agents.memory_tools import memory_tools
from aibox.guardrails.guardrail import Guardrail
from aibox.memory.memory import Memory
from aibox.memory.record import Passage
from aibox.policy.policy import Policy
from aibox.testing import ScriptedBackend, call
from aibox.types import Scope

pytestmark = pytest.mark.anyio


class Letters:
    """Texts that share letters are near."""

    name = "letters"
    dimensions = 26
    floor = 0.0

    async def embed(self, texts: list[str], *, kind: str) -> list[list[float]]:
        del kind
        counted = [[float(text.casefold().count(chr(97 + i))) for i in range(26)] for text in texts]
        return [[n / (sum(v * v for v in row) ** 0.5 or 1.0) for n in row] for row in counted]


@pytest.fixture
async def memory(tmp_path: Path, scope: Scope) -> AsyncIterator[Memory]:
    async with Memory(tmp_path / "memory", embedder=Letters()) as memory:  # type: ignore[arg-type]  # a list is a sequence
        await memory.add(
            b"# Clinic\n\n## History\n\nThe clinic in Brno was founded in 1921. It has 240 beds.",
            name="clinic.md",
            scope=scope,
        )
        yield memory


async def test_a_citation_resolves_to_its_passage(memory: Memory, scope: Scope) -> None:
    """`[1]` in the answer is the passage that the model was shown as number 1, which memory can look up."""
    model = ScriptedBackend("The clinic was founded in 1921 [1], and burned down [7].")
    reply = await aibox.Agent("x", router=model, memory=memory).run("When was the clinic founded?", scope=scope)
    [citation] = reply.citations
    assert (citation.number, citation.name, citation.heading) == (1, "clinic.md", "Clinic > History")
    passage = await memory.get(citation.id, scope=scope)
    assert isinstance(passage, Passage)
    assert "1921" in passage.text
    assert (passage.start, passage.end) == (citation.start, citation.end)
    assert "clinic.md, Clinic &gt; History" in reply._repr_markdown_()


async def test_passages_that_a_tool_shows_have_numbers_of_their_own(memory: Memory, scope: Scope) -> None:
    """What `memory_recall` finds in the middle of a turn goes on counting: a number means one passage in a turn."""
    await memory.add(b"The autoclave ZX-4471 is serviced each March.", name="autoclave.txt", scope=scope)
    model = ScriptedBackend(call("memory_recall", {"query": "autoclave", "limit": 1}), "Each March [3], not [1].")
    agent = aibox.Agent("x", router=model, memory=memory, tools=memory_tools(memory))
    reply = await agent.run("clinic and autoclave?", scope=scope)
    shown = str(model.requests[1].messages)
    assert all(shown.count(f'number=\\"{n}\\"') + shown.count(f'number="{n}"') == 1 for n in (1, 2, 3))
    assert [c.name for c in reply.citations] == ["autoclave.txt", reply.citations[1].name]
    assert [c.number for c in reply.citations] == [3, 1]


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_sentence_that_stands_in_no_source_is_marked(memory: Memory, scope: Scope, streamed: bool) -> None:
    """The grounding check finds it, and the reply says which sentence it is; what the source says is not marked."""
    guardrail = Guardrail(Policy.model_validate({"checks": {"grounding": {"output": "flag"}}}))
    model = ScriptedBackend("The clinic in Brno was founded in 1921 [1]. It employs nine hundred famous surgeons.")
    agent = aibox.Agent("x", router=model, memory=memory, guardrail=guardrail)
    if streamed:
        *_, reply = [event async for event in agent.stream("When was the clinic founded?", scope=scope)]
    else:
        reply = await agent.run("When was the clinic founded?", scope=scope)
    assert isinstance(reply, aibox.Reply)
    assert "It employs nine hundred famous surgeons." in reply.unsupported
    assert [c.number for c in reply.citations] == [1]
    assert "in no source" in reply._repr_markdown_()


def test_only_numbers_of_passages_are_citations() -> None:
    """Numbers of nothing, zero, and brackets with words are no citations; lists are, each number once."""
    passages = [Passage(id=f"d:{n}", document="d", name="a.txt", text="x", page=n, start=0, end=1) for n in range(1, 4)]
    answer = "[2, 1] and [2], [0], [9], [x], [1a], [1234]"
    assert [c.page for c in cited(answer, passages)] == [2, 1]
