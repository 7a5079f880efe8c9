"""Reranking: the order is the model's, what it may see is the policy's, and its failure costs the order only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from memory_words import WordEmbedder

import aibox
from aibox.chat import ChatRequest, Completion
from aibox.errors import BackendError, ConfigError, EgressError, IntegrityError
from aibox.inference import demo_model
from aibox.inference.embedded import Embedded
from aibox.inference.router import Router
from aibox.memory.memory import Memory
from aibox.settings import Settings
from aibox.settings_parts import MemorySettings
from aibox.types import Label, Scope

pytestmark = pytest.mark.anyio
FACTS = ("The red heron nests in March.", "The red fox hunts at dawn.", "The red deer sleeps in the fern.")


@pytest.fixture
def demo_file() -> Path:
    pytest.importorskip("xllamacpp", reason="xllamacpp is not installed")
    path = demo_model.find()
    if path is None:
        pytest.skip(f"the demo model is not installed: {demo_model.INSTALL}")
    return path


class Scored:
    """A ranking model: gives each text what `score` says, or does what `answer` says instead."""

    def __init__(self, score: Callable[[str], float] | None = None, answer: Any = None) -> None:
        self.requests: list[ChatRequest] = []
        self._score, self._answer = score, answer

    async def post(self, api: str, request: ChatRequest, /, *, scope: Scope) -> Completion:
        assert api == "rerank"
        self.requests.append(request)
        if isinstance(self._answer, BaseException):
            raise self._answer
        texts = request.body["documents"]
        score = self._score or (lambda _: 0.0)
        results = [{"index": i, "relevance_score": score(text)} for i, text in enumerate(texts)]
        return Completion(body={"results": results if self._answer is None else self._answer})


async def recalled(folder: Path, scope: Scope, reranker: Scored | None, **how: Any) -> tuple[list[str], str]:
    async with Memory(folder, embedder=WordEmbedder(), reranker=reranker, reranker_name="ranks") as memory:
        for fact in FACTS:
            await memory.remember(fact, scope=scope, label="confidential/PHI" if "fox" in fact else "internal")
        await memory.add(b"The red squirrel buries nuts.", name="squirrel.txt", scope=scope)
        hits = await memory.recall("red", scope=scope, **how)
        return [hit.record.text for hit in hits], repr(memory)


async def test_the_order_is_the_rerankers(tmp_path: Path, scope: Scope) -> None:
    """Memories and passages are put in one order, and the best of more than were asked for are returned."""
    model = Scored(lambda text: {"squirrel": 3.0, "deer": 2.0, "fox": 1.0}.get(text.split()[2], 0.0))
    found, said = await recalled(tmp_path, scope, model, limit=2)
    assert found == ["The red squirrel buries nuts.", FACTS[2]]
    assert "reranked by 'ranks'" in said
    [request] = model.requests
    assert request.body["query"] == "red"
    assert len(request.body["documents"]) == 4
    assert request.label == Label.parse("confidential/PHI")


async def test_it_can_be_left_out_for_one_recall(tmp_path: Path, scope: Scope) -> None:
    """`rerank=False` asks no model; `rerank=True` without one is an error that says what to give."""
    model = Scored()
    await recalled(tmp_path / "a", scope, model, rerank=False)
    assert model.requests == []
    with pytest.raises(ConfigError, match="no reranker"):
        await recalled(tmp_path / "b", scope, None, rerank=True)


@pytest.mark.parametrize(
    "answer",
    [BackendError("gone"), EgressError("shut"), [], "no list", [{"index": 0, "relevance_score": 1}],
     [{"index": i, "relevance_score": "much"} for i in range(4)], [{"index": "0", "relevance_score": 1}] * 4],
)  # fmt: skip
async def test_a_reranker_that_fails_costs_the_order_only(tmp_path: Path, scope: Scope, answer: Any) -> None:
    """Nonsense, no answer, or a door that is shut: everything is found as without it, and the memory says so."""
    plain, _ = await recalled(tmp_path / "plain", scope, None)
    found, said = await recalled(tmp_path / "ranked", scope, Scored(answer=answer))
    assert found == plain
    assert "not reranked, this time" in said


async def test_broken_evidence_is_not_swallowed(tmp_path: Path, scope: Scope) -> None:
    """An IntegrityError is nobody's to hide."""
    with pytest.raises(IntegrityError):
        await recalled(tmp_path, scope, Scored(answer=IntegrityError("the chain is broken")))


async def test_a_model_in_this_process_ranks(tmp_path: Path, scope: Scope, demo_file: Path) -> None:
    """A GGUF file with the pooling `rank` behind a Router scores every text; the demo model's scores mean nothing."""
    router = Router(Embedded(demo_file, name="r", context_tokens=256, pooling="rank", model_id="ranks"))
    found, said = await recalled(tmp_path, scope, router)  # type: ignore[arg-type]  # a Router is no Scored
    assert sorted(found) == sorted([*FACTS, "The red squirrel buries nuts."])
    assert "reranked by 'ranks'" in said
    await router.close()


async def test_the_demo_model_learns_nothing(tmp_path: Path, scope: Scope, demo_file: Path) -> None:
    """Asked to learn, the embedded demo model is said to be too small; rules learn, and no model is loaded for it."""
    backend = Embedded(demo_file, name="demo")
    async with Memory(tmp_path, embedder=WordEmbedder(), model=Router(backend)) as memory:
        assert [r.text for r in await memory.learn("I like tea.", scope=scope)] == ["I like tea."]
        assert "learns by rules: the model" in repr(memory)
        assert "is too small to do it" in repr(memory)
    await backend.close()


async def test_a_box_wires_the_reranker_and_the_groups(tmp_path: Path) -> None:
    """`[memory] reranker` asks the box's router; `[tenants.acme.groups]` says who reads restricted documents."""
    settings = Settings.model_validate(
        {
            "home": tmp_path,
            "memory": MemorySettings(reranker="ranks"),
            "tenants": {"acme": {"groups": {"ward": ["tom"]}}},
        }
    )
    eva, tom, rival = (Scope(tenant=t, user=u) for t, u in (("acme", "eva"), ("acme", "tom"), ("rival", "tom")))
    async with aibox.open(settings=settings) as box:
        assert "reranked by 'ranks'" in repr(box.memory)
        await box.memory.add(b"The alarm is tested.", name="a.txt", scope=eva, visibility="restricted", groups=["ward"])
        seen = [
            len(await box.memory.documents(scope=who)) for who in (eva, tom, rival, Scope(tenant="acme", user="zoe"))
        ]
        assert seen == [1, 1, 0, 0]
