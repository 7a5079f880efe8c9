"""The memory that the settings describe."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aibox.memory.memory import Memory
from aibox.memory.redis_buffer import RedisBuffer
from aibox.settings import Settings, read_secret
from aibox.types import Scope


def make_memory(
    settings: Settings,
    *,
    secret: Callable[[str], bytes],
    router: Callable[[], Any],
    embedder: Any,
    guardrail: Any,
    groups: Callable[[Scope], set[str]],
) -> Memory:
    """`secret` gives the key of a name; `router` is asked for only where a model is named for memory."""
    wanted = settings.memory
    url = wanted.buffer_url.get_secret_value() if wanted.buffer_url is not None else None
    return Memory(
        settings.place(wanted.url, "memory"),
        folder=settings.home / "memory",
        key=secret("memory"),
        api_key=read_secret(wanted.api_key, wanted.api_key_file),
        model=router() if wanted.model is not None else None,
        model_name=wanted.model or "default",
        embedder=embedder,
        guardrail=guardrail,
        groups=groups,
        reranker=router() if wanted.reranker is not None else None,
        reranker_name=wanted.reranker or "default",
        buffer=RedisBuffer(url, key=secret("buffer")) if url is not None else None,
    )
