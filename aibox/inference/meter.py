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
    """Of a request that was sent: sees what comes back, in pieces or whole.

    With `digest` it hashes it, as the door's record needs.
    """

    def __init__(self, model: ModelInfo, request: ChatRequest, *, digest: bool) -> None:
        self._model = model
        self._request = request
        self._started = time.monotonic()
        self._first: float | None = None
        self._pieces = 0
        self._answered = False
        self._told = Usage()
        self._hash = hashlib.sha256() if digest else None
        self.size = 0

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest() if self._hash else ""

    def whole(self, completion: Completion) -> Completion:
        """Count a whole answer; it comes back with its cost in `usage.cost`, where the price is known."""
        self._hashed(completion)
        self._answered = True
        usage = completion.body.get("usage")
        self._told = Usage.read(usage)
        if not self._told.output_tokens:
            self._pieces = _said(completion)
        body = self._with_cost(completion.body, usage)
        return completion if body is completion.body else replace(completion, body=body)

    def batch(self, batch: list[Chunk]) -> list[Chunk]:
        """Count pieces of a stream that came together."""
        if self._first is None:
            self._first = time.monotonic()
            self._answered = True
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
        self._told = _most(self._told, Usage.read(usage))
        if "usage" not in body or (told := self._with_cost(body, usage)) is body:
            return chunk
        return Chunk(told, chunk.backend, chunk.weights)

    @property
    def counted(self) -> bool:
        """Whether the server's counts are all there is to know: of the prompt, and of what was said."""
        return self._told.input_tokens > 0 and (self._told.output_tokens > 0 or not self._pieces)

    @property
    def usage(self) -> Usage:
        """As the server counted, and as estimated where its counts say nothing: of an answer, never nothing."""
        told = self._told
        if not self.counted:
            asked = told.input_tokens or max(1, len(self._request.encoded()) // BYTES_PER_TOKEN)
            said = told.output_tokens or self._pieces
            told = msgspec.structs.replace(told, input_tokens=asked, output_tokens=said)
        return self._priced(told)

    def call(
        self, scope: Scope, *, backend: str, external: bool, outcome: Literal["answered", "failed", "left"]
    ) -> Call:
        # Who leaves has had the prompt read; a server that failed before its first word has given nothing.
        used = self._answered or outcome == "left"
        return Call(
            scope=scope,
            model=self._model.id,
            backend=backend,
            external=external,
            usage=self.usage if used else self._priced(Usage()),
            total_s=time.monotonic() - self._started,
            first_token_s=None if self._first is None else self._first - self._started,
            outcome=outcome,
            counted=self.counted,
        )

    def _priced(self, usage: Usage) -> Usage:
        # The operator's own price goes before what a server says, which may be 0.
        price = self._model.price
        return usage if price is None else msgspec.structs.replace(usage, cost_usd=price.cost_usd(usage))

    def _with_cost(self, body: dict[str, Any], usage: object) -> dict[str, Any]:
        if not isinstance(usage, Mapping) or (cost_usd := self.usage.cost_usd) is None:
            return body
        return {**body, "usage": {**usage, "cost": cost_usd}}

    def _hashed(self, came: Completion | Chunk) -> None:
        if self._hash is not None:
            data = came.encoded()
            self.size += len(data)
            self._hash.update(data)


def _most(one: Usage, other: Usage) -> Usage:
    """Of two counts of one answer the larger: a later one that says less must not take back what was used."""
    costs = [cost for cost in (one.cost_usd, other.cost_usd) if cost is not None]
    return Usage(
        max(one.input_tokens, other.input_tokens),
        max(one.output_tokens, other.output_tokens),
        max(one.cached_tokens, other.cached_tokens),
        max(one.reasoning_tokens, other.reasoning_tokens),
        max(costs, default=None),
    )


def _said(completion: Completion) -> int:
    """What an answer says, in tokens as they are estimated; vectors and ranks say nothing."""
    body = completion.body
    choice = (body.get("choices") or [{}])[0]
    said = choice.get("message") or choice.get("text") or body.get("output")
    return max(1, len(str(said).encode("utf-8", "replace")) // BYTES_PER_TOKEN) if said else 0
