"""Puts what was found in the order that a model of its own gives it: slower than vectors and words, and more exact."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

from aibox.chat import ChatRequest, Completion
from aibox.errors import IntegrityError, PolicyError, UpstreamError
from aibox.memory.record import Hit
from aibox.types import Label, Level, Scope

CANDIDATES = 4
"""For each hit that is asked for, how many are given to the model; it costs a pass of the model each."""
MOST_CHARS = 2_000
"""Of a text; models that rank read some 512 tokens."""


class Ranks(Protocol):
    """What can be asked for `/rerank`: a Router, also over a GGUF file with the pooling `rank`."""

    async def post(self, api: Literal["rerank"], request: ChatRequest, /, *, scope: Scope) -> Completion: ...


class Reranker:
    """Asks `model_name` of a backend. `how` says what came of the last time."""

    def __init__(self, backend: Ranks, *, model_name: str) -> None:
        self._backend = backend
        self._model_name = model_name
        self.how = f"reranked by {model_name!r}"

    async def order(self, query: str, hits: Sequence[Hit], *, scope: Scope) -> list[Hit]:
        """The hits, best first; as they were where the model fails or the policy does not let it see them.

        The request has the join of the hits' labels, so that a ceiling holds for it. Raises IntegrityError only.
        """
        if len(hits) < 2:
            return [*hits]
        label = Label(Level.PUBLIC)
        for hit in hits:
            label = label | hit.label
        texts = [hit.record.text[:MOST_CHARS] for hit in hits]
        body = {"model": self._model_name, "query": query[:MOST_CHARS], "documents": texts}
        try:
            answer = await self._backend.post("rerank", ChatRequest(body, label), scope=scope)
            scores = _scores(answer.body.get("results"), len(hits))
        except IntegrityError:
            raise
        except (UpstreamError, PolicyError, ValueError) as error:
            self.how = f"not reranked, this time: {getattr(error, 'message', error)}"
            return [*hits]
        self.how = f"reranked by {self._model_name!r}"
        return [hits[at] for at in sorted(range(len(hits)), key=lambda at: (-scores[at], at))]


def _scores(results: object, count: int) -> list[float]:
    """One for each text, in the order of the texts. Raises ValueError for anything else."""
    found: dict[int, float] = {}
    for one in results if isinstance(results, list) else ():
        if isinstance(one, dict) and isinstance(one.get("index"), int):
            score = one.get("relevance_score")
            if isinstance(score, int | float):
                found[one["index"]] = float(score)
    if sorted(found) != list(range(count)):
        raise ValueError("the model did not give one score a text")
    return [found[at] for at in range(count)]
