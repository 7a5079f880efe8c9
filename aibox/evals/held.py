"""Model calls of real turns, kept for later tests: only where the policy allows it, and scrubbed as they are written.

Each is kept under the digest by which the audit chain knows it, so that a receipt finds its own words again and nothing
else. The file is a copy of what people said: it has an owner, a mode of 0600, and `erase`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from aibox.chat import ChatRequest, Chunk, Completion, Health, ModelInfo, assemble
from aibox.errors import ConfigError
from aibox.evals.cassette import canonical_request
from aibox.policy.policy import Policy
from aibox.protocols import Backend
from aibox.types import Scope

FORMAT = "aibox/held/v1"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class HeldCall:
    """One model call, scrubbed. Its digests are those that the chain recorded, of the words as they were."""

    sha256: str
    answer_sha256: str
    tenant: str
    user: str
    """Pseudonymous: a digest of tenant and user."""
    at_us: int
    request: dict[str, Any]
    message: dict[str, Any]
    model: str = ""

    @property
    def key(self) -> tuple[str, str]:
        return self.sha256, self.answer_sha256

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"format": FORMAT, **{name: getattr(self, name) for name in self.__dataclass_fields__}}


Held = Mapping[tuple[str, str], HeldCall]


class HeldTurns:
    """A Backend that keeps what passes through it to `backend`, in a file of JSON lines. An Erasable.

    Put it around a router: `Agent(router=HeldTurns(box.router, "held.jsonl", policy=box.policy))`. What is above the
    policy's `reuse.ceiling` is not kept. A file that cannot be written is logged, counted in `lost`, and stops no turn.
    Raises ConfigError unless the policy, and every policy that is joined in it, says `reuse.evals`.
    """

    def __init__(self, backend: Backend, path: str | Path, *, policy: Policy) -> None:
        require_consent(policy)
        self.path = Path(path)
        self.name = backend.name
        self.external = backend.external
        self.lost = 0
        self._backend = backend
        self._ceiling = policy.reuse.ceiling

    async def models(self) -> Sequence[ModelInfo]:
        return await self._backend.models()

    async def complete(self, request: ChatRequest, *, scope: Scope) -> Completion:
        completion = await self._backend.complete(request, scope=scope)
        self._keep(request, completion, scope)
        return completion

    async def stream(self, request: ChatRequest, *, scope: Scope) -> AsyncIterator[Chunk]:
        chunks: list[Chunk] = []
        async for chunk in self._backend.stream(request, scope=scope):
            chunks.append(chunk)
            yield chunk
        # How an answer is delivered is no part of what the chain recorded.
        self._keep(request.with_fields(stream=None, stream_options=None), assemble(chunks), scope)

    async def health(self) -> Health:
        return await self._backend.health()

    async def close(self) -> None:
        await self._backend.close()

    async def erase(self, *, scope: Scope, subject: str | None = None) -> int:
        """Forget the calls of a user of the scope's tenant (None: of all its users); how many there were."""
        user = None if subject is None else user_digest(scope.tenant, subject)
        calls = list(read_held(self.path).values()) if self.path.exists() else []
        kept = [call for call in calls if call.tenant != scope.tenant or user not in (None, call.user)]
        fresh = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        fresh.touch(mode=0o600)
        fresh.write_text("".join(_line(call) for call in kept), "utf-8")
        fresh.replace(self.path)
        return len(calls) - len(kept)

    def _keep(self, request: ChatRequest, completion: Completion, scope: Scope) -> None:
        if not request.label <= self._ceiling:
            return
        canonical, names = canonical_request(request)
        call = HeldCall(
            sha256=hashlib.sha256(msgspec.json.encode(request.body)).hexdigest(),
            answer_sha256=hashlib.sha256(msgspec.json.encode(completion.message)).hexdigest(),
            tenant=scope.tenant,
            user=user_digest(scope.tenant, scope.user),
            at_us=time.time_ns() // 1000,
            request=canonical,
            message=names.hide(completion.message),
            model=completion.model,
        )
        try:
            # One write to a file opened for appending: lines of several processes do not mix.
            handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.write(handle, _line(call).encode())
            finally:
                os.close(handle)
        except OSError as error:
            self.lost += 1
            _log.warning("a model call could not be kept in %s: %s", self.path, error.strerror)

    def __repr__(self) -> str:
        return f"HeldTurns({self._backend!r}, {str(self.path)!r})"


def require_consent(policy: Policy) -> None:
    """Raises ConfigError unless the policy lets turns be kept for tests."""
    if not policy.reuse.evals:
        raise ConfigError(
            "the policy does not let turns be kept for tests",
            hint="[reuse] evals = true, in every policy that is joined",
        )


def read_held(path: str | Path) -> Held:
    """The calls of a file by their digests. Raises ConfigError for what is no such file."""
    try:
        lines = Path(path).read_text("utf-8").split("\n")
        calls = [_read(json.loads(line)) for line in lines if line.strip()]
    except OSError as error:
        raise ConfigError(f"cannot read the kept turns {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} holds no kept turns: {error}") from None
    return {call.key: call for call in calls}


def user_digest(tenant: str, user: str) -> str:
    return hashlib.sha256(f"{tenant}\0{user}".encode()).hexdigest()[:32]


def _read(value: Mapping[str, Any]) -> HeldCall:
    fields = dict(value)
    if fields.pop("format") != FORMAT:
        raise ValueError("unknown format")
    return HeldCall(**fields)


def _line(call: HeldCall) -> str:
    return json.dumps(call.as_dict(), ensure_ascii=False) + "\n"
