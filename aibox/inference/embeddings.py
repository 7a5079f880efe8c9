"""An embedder of this process as a backend: `/embeddings` for models that need no server."""

from __future__ import annotations

import base64
import struct
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Literal

from aibox.chat import ChatRequest, Chunk, Completion, Health, ModelInfo
from aibox.errors import ConfigError
from aibox.inference.capabilities import Api
from aibox.protocols import Embedder
from aibox.types import Scope

BYTES_PER_TOKEN = 4


class Embeddings:
    """Answers `/embeddings` by `embedder`, as the model of its name. `input_type` `"query"` embeds questions.

    Token counts are estimates, by length. Raises ConfigError for anything but embeddings of texts.
    """

    external = False

    def __init__(self, embedder: Embedder, *, name: str = "embeddings") -> None:
        self.name = name
        self._embedder = embedder

    async def models(self) -> tuple[ModelInfo, ...]:
        return (ModelInfo(id=self._embedder.name, backend=self.name, capabilities=frozenset({"embeddings"})),)

    async def post(self, api: Api, request: ChatRequest, *, scope: Scope) -> Completion:  # noqa: ARG002 - one model for all
        """An answer of the Embeddings API, in floats or in base64 as asked."""
        if api != "embeddings":
            raise self._only_embeds()
        texts = texts_of(request.body)
        kind: Literal["query", "passage"] = "query" if request.body.get("input_type") == "query" else "passage"
        vectors = await self._embedder.embed(texts, kind=kind)
        tokens = sum(len(text.encode("utf-8", "replace")) for text in texts) // BYTES_PER_TOKEN + 1
        return Completion(answer(request.body, vectors, model=self._embedder.name, tokens=tokens), self.name)

    async def complete(self, request: ChatRequest, *, scope: Scope) -> Completion:  # noqa: ARG002 - Backend's signature
        raise self._only_embeds()

    def stream(self, request: ChatRequest, *, scope: Scope) -> AsyncIterator[Chunk]:  # noqa: ARG002 - likewise
        raise self._only_embeds()

    async def health(self) -> Health:
        return Health(ok=True, detail=f"{self._embedder.name} is there")

    async def close(self) -> None:
        """The embedder is its owner's to close."""

    def _only_embeds(self) -> ConfigError:
        return ConfigError(f"the backend {self.name} embeds texts, and does nothing else")

    def __repr__(self) -> str:
        return f"Embeddings({self._embedder!r}, name={self.name!r})"


def texts_of(body: Mapping[str, Any]) -> list[str]:
    """The texts to embed. Raises ConfigError for what are none."""
    asked = body.get("input")
    texts = [asked] if isinstance(asked, str) else asked
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text for text in texts):
        raise ConfigError("`input` is a text or a list of texts", hint="token ids cannot be embedded here")
    return texts


def answer(body: Mapping[str, Any], vectors: Sequence[list[float]], *, model: str, tokens: int) -> dict[str, Any]:
    """The answer of the Embeddings API to a request, in floats or in base64 as asked. Raises ConfigError."""
    size = len(vectors[0])
    if body.get("dimensions") not in (None, size):
        raise ConfigError(f"{model} has {size} dimensions, and no other number")
    packed = body.get("encoding_format") == "base64"
    data: list[dict[str, Any]] = [
        {"object": "embedding", "index": index, "embedding": _packed(vector) if packed else vector}
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": model, "usage": usage}


def _packed(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode("ascii")
