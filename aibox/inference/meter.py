"""What one attempt used and how long it took, whether the server counted or not."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import msgspec

from aibox.chat import ChatRequest, Chunk, Completion, ModelInfo, Usage
from aibox.inference.accounts import Call
from aibox.types import Scope

BYTES_PER_TOKEN = 4
"""Of English text, roughly: for answers that nobody counted."""


class Meter:
    """Sees what comes back, in pieces or whole. With `digest` it hashes it, as the door's record needs."""

    def __init__(self, model: ModelInfo, request: ChatRequest, *, digest: bool) -> None:
        self._model = model
        self._request = request
        self._started = time.monotonic()
        self._first: float | None = None
        self._pieces = 0
        self._usage: Usage | None = None
        self._hash = hashlib.sha256() if digest else None
        self.size = 0

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest() if self._hash else ""

    def whole(self, completion: Completion) -> Completion:
        """Count a whole answer; it comes back with its cost in `usage.cost`, where the price is known."""
        self._hashed(completion)
        usage = completion.body.get("usage")
        if not isinstance(usage, Mapping):
            self._pieces = max(1, len(completion.text.encode("utf-8", "replace")) // BYTES_PER_TOKEN)
            return completion
        self._usage = self._priced(Usage.read(usage))
        body = self._with_cost(completion.body, usage)
        return completion if body is completion.body else replace(completion, body=body)

    def batch(self, batch: list[Chunk]) -> list[Chunk]:
        """Count pieces of a stream that came together."""
        if self._first is None:
            self._first = time.monotonic()
        self._pieces += len(batch)
        if self._hash is not None:
            for chunk in batch:
                self._hashed(chunk)
        for chunk in batch:
            if chunk.body.get("usage") or "response" in chunk.body:
                return [self._counted(chunk) for chunk in batch]
        return batch

    def _counted(self, chunk: Chunk) -> Chunk:
        body = chunk.body
        usage = body.get("usage")
        if not usage and isinstance(response := body.get("response"), Mapping):
            usage = response.get("usage")
        if not usage or not isinstance(usage, Mapping):
            return chunk
        self._usage = self._priced(Usage.read(usage))
        if "usage" not in body or (told := self._with_cost(body, usage)) is body:
            return chunk
        return Chunk(told, chunk.backend, chunk.weights)

    @property
    def usage(self) -> Usage:
        """As the server counted, else as estimated: of a call that reached it, never nothing."""
        if self._usage is not None:
            return self._usage
        asked = len(self._request.encoded()) // BYTES_PER_TOKEN
        return self._priced(Usage(input_tokens=asked if self._pieces else 0, output_tokens=self._pieces))

    def call(
        self, scope: Scope, *, backend: str, external: bool, outcome: Literal["answered", "failed", "left"]
    ) -> Call:
        return Call(
            scope=scope,
            model=self._model.id,
            backend=backend,
            external=external,
            usage=self.usage,
            total_s=time.monotonic() - self._started,
            first_token_s=None if self._first is None else self._first - self._started,
            outcome=outcome,
            counted=self._usage is not None,
        )

    def _priced(self, usage: Usage) -> Usage:
        if usage.cost_usd is None and self._model.price is not None:
            return msgspec.structs.replace(usage, cost_usd=self._model.price.cost_usd(usage))
        return usage

    def _with_cost(self, body: dict[str, Any], usage: Mapping[str, Any]) -> dict[str, Any]:
        assert self._usage is not None
        if self._usage.cost_usd is None:
            return body
        return {**body, "usage": {**usage, "cost": self._usage.cost_usd}}

    def _hashed(self, came: Completion | Chunk) -> None:
        if self._hash is not None:
            data = came.encoded()
            self.size += len(data)
            self._hash.update(data)
