"""A sentence about each passage: it makes the passage found, is shown to nobody, and its lack is said."""

from __future__ import annotations

from pathlib import Path

import pytest
from memory_words import WordEmbedder

from aibox.chat import ModelInfo
from aibox.errors import BackendError, EgressError
from aibox.memory.memory import Memory
from aibox.memory.quote import quote
from aibox.testing import ScriptedBackend
from aibox.types import Label, Scope

pytestmark = pytest.mark.anyio
LEASE = b"# Lease\n\n## Terms\n\nIt ends on 30 June and may be prolonged once.\n"
SENTENCE = "This is about how long the warehouse in Rotterdam is rented."


async def test_a_passage_is_found_by_the_sentence_about_it(tmp_path: Path, scope: Scope) -> None:
    """What the passage itself does not say is found; the sentence is neither in its text nor shown to a model."""
    model = ScriptedBackend(SENTENCE)
    async with Memory(tmp_path, embedder=WordEmbedder(), model=model) as memory:
        added = await memory.add(LEASE, name="lease.md", scope=scope, label="confidential", situate=True)
        assert added.note == ""
        [hit] = await memory.recall("warehouse Rotterdam", scope=scope)
        assert "30 June" in hit.record.text
        assert "Rotterdam" not in f"{hit.record} {quote([hit])}"
        assert len(await memory.add(LEASE, name="lease.md", scope=scope, label="confidential", situate=True)) == 0
    [request] = model.requests
    assert request.label == Label.parse("confidential")
    assert "It ends on 30 June" in request.messages[1]["content"]
    model.assert_done()


async def test_the_sentence_survives_another_embedder(tmp_path: Path, scope: Scope) -> None:
    """Read anew, a passage is still searched with its sentence, and no model is asked again."""
    other = WordEmbedder()
    other.name = "other-words"
    async with Memory(tmp_path, embedder=WordEmbedder(), model=ScriptedBackend(SENTENCE)) as memory:
        await memory.add(LEASE, name="lease.md", scope=scope, situate=True)
    async with Memory(tmp_path, embedder=other) as memory:
        assert await memory.reindex(scope=scope) == 1
        [hit] = await memory.recall("warehouse Rotterdam", scope=scope)
        assert "30 June" in hit.record.text


class Demo(ScriptedBackend):
    async def models(self) -> tuple[ModelInfo, ...]:
        return (ModelInfo(id="tiny", backend=self.name, demo=True),)


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (None, "this memory has no model"),
        (Demo(), "too small"),
        (ScriptedBackend(BackendError("gone")), "gone"),
        (ScriptedBackend(EgressError("shut")), "shut"),
        (ScriptedBackend("  \n "), "said nothing"),
    ],
)
async def test_without_a_sentence_the_name_stands_for_it(
    tmp_path: Path, scope: Scope, model: ScriptedBackend | None, why: str
) -> None:
    """Whatever keeps the model from it, the document is kept, found by its name too, and the result says why."""
    async with Memory(tmp_path, embedder=WordEmbedder(), model=model) as memory:
        added = await memory.add(LEASE, name="rotterdam.md", scope=scope, situate=True)
        assert why in str(added)
        [hit] = await memory.recall("rotterdam", scope=scope)
        assert "30 June" in hit.record.text
