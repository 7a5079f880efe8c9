"""What a model file gives that does not chat: a vector for each text, or a score for each document.

Runs in the engine's thread, one text after another, and looks between two of them whether anybody still waits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from aibox.errors import BackendError, ConfigError
from aibox.inference import embeddings
from aibox.inference.gguf import Header

Task = Literal["chat", "embeddings", "rerank"]
Pooling = Literal["mean", "cls", "last", "rank"]
"""How a model's token vectors become one of the text; `rank` gives the score of a pair of texts."""

_KINDS: Mapping[int, Pooling] = {1: "mean", 2: "cls", 3: "last", 4: "rank"}


def pooling_of(header: Header, pooling: Pooling | None) -> Pooling | None:
    """What was asked for, else what the file says; None is a model that chats. Raises ConfigError for no such thing."""
    if pooling is not None and pooling not in _KINDS.values():
        raise ConfigError(f"pooling is one of {', '.join(_KINDS.values())}, not {pooling!r}")
    return pooling or _KINDS.get(header.pooling or 0)


def task_of(pooling: Pooling | None) -> Task:
    return "chat" if pooling is None else "rerank" if pooling == "rank" else "embeddings"


def prepare(params: Any, pooling: Pooling, kinds: Any, *, context_tokens: int) -> None:
    """Set the engine's parameters; `kinds` is its own enumeration. A text has to fit in one batch."""
    params.embedding = True
    params.pooling_type = getattr(kinds, f"LLAMA_POOLING_TYPE_{pooling.upper()}")
    params.n_batch = params.n_ubatch = context_tokens


Hold = Callable[[Any], dict[str, Any]]
"""An answer of the engine, held to be none of its errors, which it raises."""


def embed(server: Any, body: Mapping[str, Any], *, model: str, hold: Hold) -> dict[str, Any]:
    """An answer of the Embeddings API. Raises ConfigError for what are no texts."""
    vectors, tokens = [], 0
    for text in embeddings.texts_of(body):
        answer = hold(server.handle_embeddings({"input": [text]}))
        vectors.append(answer["data"][0]["embedding"])
        tokens += answer["usage"]["prompt_tokens"]
    return embeddings.answer(body, vectors, model=model, tokens=tokens)


def rerank(server: Any, body: Mapping[str, Any], *, model: str, hold: Hold) -> dict[str, Any]:
    """Scores as vLLM and llama.cpp give them at `/rerank`, the best first. Raises ConfigError for what are no texts."""
    query, documents, top = body.get("query"), body.get("documents"), body.get("top_n")
    if not isinstance(query, str) or not query:
        raise ConfigError("`query` is a text")
    if not isinstance(documents, list) or not documents or not all(isinstance(d, str) and d for d in documents):
        raise ConfigError("`documents` is a list of texts")
    if top is not None and (type(top) is not int or top < 1):
        raise ConfigError("`top_n` is a whole number above 0")
    scored, tokens = [], 0
    for index, document in enumerate(documents):
        answer = hold(server.handle_rerank({"query": query, "documents": [document]}))
        score = answer["results"][0]["relevance_score"]
        if not isinstance(score, int | float):
            raise BackendError(f"{model} gave a document no score")
        scored.append({"index": index, "relevance_score": score})
        tokens += answer["usage"]["prompt_tokens"]
    scored.sort(key=lambda one: -one["relevance_score"])
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "model": model, "results": scored[:top], "usage": usage}
