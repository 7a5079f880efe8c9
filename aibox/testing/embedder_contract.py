"""What every Embedder must do, as tests. Subclass, return yours from the fixture `embedder`, and run pytest."""

from __future__ import annotations

import math

import pytest

from aibox.protocols import Embedder

RELATED = ("Which medicines must I avoid?", "I am allergic to penicillin.")
UNRELATED = "The train to the airport leaves every ten minutes."


class EmbedderContract:
    """Override `embedder`. The tests need pytest with anyio's plugin."""

    @pytest.fixture
    def embedder(self) -> Embedder:
        raise NotImplementedError("return the embedder to test")

    @pytest.mark.anyio
    async def test_one_vector_of_unit_length_a_text(self, embedder: Embedder) -> None:
        """Each text gets one vector of the stated size and of length 1, both as query and as passage."""
        for vectors in (
            await embedder.embed(["one", "two", "three"], kind="query"),
            await embedder.embed(["one", "two", "three"], kind="passage"),
        ):
            assert [len(vector) for vector in vectors] == [embedder.dimensions] * 3
            assert all(math.isclose(math.hypot(*vector), 1.0, abs_tol=1e-3) for vector in vectors)

    @pytest.mark.anyio
    async def test_no_text_gives_no_vector(self, embedder: Embedder) -> None:
        """An empty sequence is answered with an empty list."""
        assert await embedder.embed([], kind="passage") == []

    @pytest.mark.anyio
    async def test_order_and_company_do_not_matter(self, embedder: Embedder) -> None:
        """A text has the same vector alone, in company, in another place and asked again."""
        texts = ["The invoice is due in June.", "My cat is called Mio.", "The invoice is due in June."]
        together = await embedder.embed(texts, kind="passage")
        alone = [(await embedder.embed([text], kind="passage"))[0] for text in texts]
        for one, other in [*zip(together, alone, strict=True), (together[0], together[2])]:
            assert _cosine(one, other) > 0.999

    @pytest.mark.anyio
    async def test_related_texts_are_nearer(self, embedder: Embedder) -> None:
        """A question is nearer to the sentence that answers it than to one that has nothing to do with it."""
        question, answer = RELATED
        [asked] = await embedder.embed([question], kind="query")
        related, unrelated = await embedder.embed([answer, UNRELATED], kind="passage")
        assert _cosine(asked, related) > _cosine(asked, unrelated)

    @pytest.mark.anyio
    @pytest.mark.parametrize("text", ["", " ", "\0", "a\0b", "\ud800", "日本語", "word " * 20_000, "\n\t"])
    async def test_any_text_has_a_vector(self, embedder: Embedder, text: str) -> None:
        """Empty, very long and odd texts get a vector of finite numbers instead of an exception."""
        for vectors in (await embedder.embed([text], kind="query"), await embedder.embed([text], kind="passage")):
            assert len(vectors) == 1
            assert all(math.isfinite(number) for number in vectors[0])


def _cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))
