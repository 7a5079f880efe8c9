"""Model calls recorded and played back at the model boundary: whatever the wire, and also for a model in this process.

One JSON line a call. A request is found by its canonical form: ids, times and pseudonyms do not count. Equal requests
are answered in the order in which they were recorded. Secrets and personal data that are found never reach the file.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from aibox.chat import ChatRequest, Chunk, Completion, Health, ModelInfo, Weights, assemble
from aibox.errors import BackendError, ConfigError
from aibox.evals.scrub import Names
from aibox.inference.chunks import chunks_of, wants_usage
from aibox.protocols import Backend
from aibox.types import Scope

FORMAT = "aibox/cassette/v1"
MAX_FILE_BYTES = 256 * 2**20
CHUNK_CHARS = 8
DIFF_LINES = 60

Mode = Literal["none", "once", "new", "all"]
"""`none`: only play back. `once`: record where there is no file yet, else play back. `new`: play back what is known and
record the rest. `all`: record everything anew."""

# How an answer is delivered is no part of what was asked.
_DELIVERY = ("stream", "stream_options", "user", "metadata", "store")


class CassetteMissError(ConfigError):
    """A request that the cassette does not hold and may not record; `diff` is against the nearest that it does."""

    code = "config.cassette"

    def __init__(self, message: str, *, diff: str) -> None:
        super().__init__(message, hint=f"if the change is meant: --aibox-record=new\n{diff}")
        self.diff = diff


@dataclass(frozen=True, slots=True)
class Recorded:
    """One call: the request and the answer in canonical form, or the error that came instead."""

    request: dict[str, Any]
    answer: dict[str, Any] | None
    error: dict[str, Any] | None = None
    backend: str = ""
    weights: Weights = field(default_factory=Weights)

    @property
    def key(self) -> str:
        return key_of(self.request)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        body: dict[str, Any] = {"request": self.request}
        body |= {"answer": self.answer} if self.error is None else {"error": self.error}
        return {**body, "backend": self.backend, "weights": asdict(self.weights)}

    @classmethod
    def read(cls, value: Mapping[str, Any]) -> Recorded:
        weights = Weights(**value["weights"])
        return cls(value["request"], value.get("answer"), value.get("error"), value["backend"], weights)


def canonical_request(request: ChatRequest) -> tuple[dict[str, Any], Names]:
    """What was asked, as a cassette compares it, and the names that its values got."""
    names = Names()
    body = {key: value for key, value in request.body.items() if key not in _DELIVERY and value is not None}
    return names.hide(body), names


def key_of(canonical: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(canonical, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


class Cassette:
    """A Backend that records what `backend` answers, or plays it back. `backend` None, or a function that makes one
    when it is first needed, lets a test run where there is no model.

    What was recorded is written by `save`, or on leaving `async with`, and only when something is new. Raises
    ConfigError for a file that is no cassette, and CassetteMissError for a request that is not in it.
    """

    def __init__(
        self, path: str | Path, backend: Backend | Callable[[], Backend] | None = None, *, mode: Mode = "once"
    ) -> None:
        if mode not in get_args(Mode):
            raise ConfigError(f"no mode of a cassette is called {mode!r}", hint=f"one of {', '.join(get_args(Mode))}")
        self.path = Path(path)
        self.mode = mode
        self._source = backend
        self._backend: Backend | None = None
        exists = self.path.exists()
        self._head, self._known = ({}, []) if mode == "all" or not exists else _load(self.path)
        self._records = mode in ("new", "all") or (mode == "once" and not exists)
        self._asked: Counter[str] = Counter()
        self._fresh: list[Recorded] = []
        self.played = 0

    @property
    def name(self) -> str:
        return str(self._head.get("name") or self._real().name)

    @property
    def external(self) -> bool:
        """As the backend that was recorded: a replay obeys the door as the recording did."""
        return bool(self._head["external"]) if "external" in self._head else self._real().external

    @property
    def unused(self) -> int:
        """Recorded calls that nobody has asked for."""
        return len(self._known) - self.played

    async def models(self) -> Sequence[ModelInfo]:
        if "models" in self._head:
            return [ModelInfo(**{**m, "weights": Weights(**m["weights"])}) for m in self._head["models"]]
        return await self._real().models()

    async def complete(self, request: ChatRequest, *, scope: Scope) -> Completion:
        canonical, names = canonical_request(request)
        if (found := self._find(canonical)) is not None:
            return _played(found, names)
        backend = await self._recording()
        try:
            completion = await backend.complete(request, scope=scope)
        except BackendError as error:
            self._keep_error(canonical, names, error)
            raise
        self._keep(canonical, names, completion)
        return completion

    async def stream(self, request: ChatRequest, *, scope: Scope) -> AsyncIterator[Chunk]:
        canonical, names = canonical_request(request)
        if (found := self._find(canonical)) is not None:
            for chunk in chunks_of(_played(found, names), size=CHUNK_CHARS, usage=wants_usage(request)):
                yield chunk
            return
        backend = await self._recording()
        chunks: list[Chunk] = []
        try:
            async for chunk in backend.stream(request, scope=scope):
                chunks.append(chunk)
                yield chunk
        except BackendError as error:
            self._keep_error(canonical, names, error)
            raise
        # A reader who left early has no whole answer to keep.
        self._keep(canonical, names, assemble(chunks))

    async def health(self) -> Health:
        return await self._real().health() if self._records else Health(ok=True, detail=f"playing {self.path.name}")

    async def close(self) -> None:
        if self._backend is not None:
            await self._backend.close()

    def over(self, backend: Backend | Callable[[], Backend] | None) -> Cassette:
        """The same cassette over another backend: what is recorded or played goes on where it stood."""
        self._source, self._backend = backend, None
        return self

    def save(self) -> None:
        """Write what was recorded, in one step: a reader sees the old file or the new one."""
        if not self._fresh:
            return
        lines = [{"format": FORMAT, **self._head}, *(call.as_dict() for call in [*self._known, *self._fresh])]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        fresh.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), "utf-8")
        fresh.replace(self.path)
        self._known, self._fresh, self.played = [*self._known, *self._fresh], [], self.played + len(self._fresh)

    async def __aenter__(self) -> Cassette:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.save()
        await self.close()

    def _real(self) -> Backend:
        if self._backend is None:
            if self._source is None:
                raise ConfigError(f"there is no cassette {self.path} and no model to record", hint="give a backend")
            self._backend = self._source() if callable(self._source) else self._source
        return self._backend

    def _find(self, canonical: dict[str, Any]) -> Recorded | None:
        key = key_of(canonical)
        same = [call for call in self._known if call.key == key]
        turn = self._asked[key]
        self._asked[key] += 1
        if turn < len(same):
            self.played += 1
            return same[turn]
        if self._records:
            return None
        said = (
            f"{len(same)} recorded answers to this request are used up" if same else "no recorded request is like this"
        )
        raise CassetteMissError(f"{self.path.name}: {said}", diff=self._difference(canonical))

    def _difference(self, canonical: dict[str, Any]) -> str:
        """What is asked against the nearest of what was recorded, as people read a diff."""
        asked = shown(canonical)
        others = [shown(call.request) for call in self._known]
        if not others:
            return "the cassette is empty; asked was:\n" + "\n".join(asked[:DIFF_LINES])
        nearest = max(others, key=lambda other: difflib.SequenceMatcher(None, other, asked, autojunk=False).ratio())
        lines = list(difflib.unified_diff(nearest, asked, "recorded", "asked now", lineterm="", n=2))
        more = [f"... and {len(lines) - DIFF_LINES} lines more"] if len(lines) > DIFF_LINES else []
        return "\n".join([*lines[:DIFF_LINES], *more])

    async def _recording(self) -> Backend:
        backend = self._real()
        if "models" not in self._head:
            models = [asdict(info) for info in await backend.models()]
            self._head |= {"name": backend.name, "external": backend.external, "models": models}
        return backend

    def _keep(self, canonical: dict[str, Any], names: Names, completion: Completion) -> None:
        body = {key: completion.body[key] for key in ("model", "choices", "usage") if key in completion.body}
        self._fresh.append(Recorded(canonical, names.hide(body), None, completion.backend, completion.weights))

    def _keep_error(self, canonical: dict[str, Any], names: Names, error: BackendError) -> None:
        said = {"message": names.hide(error.message), "retryable": error.retryable, "timeout": error.timeout}
        self._fresh.append(Recorded(canonical, None, said, self.name))

    def __repr__(self) -> str:
        return f"Cassette({str(self.path)!r}, mode={self.mode!r}, {len(self._known)} calls)"


def shown(canonical: Mapping[str, Any]) -> list[str]:
    """A request as lines for people: settings, tools, then the conversation."""
    lines = [f"{key}: {json.dumps(canonical[key])}" for key in sorted(canonical) if key not in ("messages", "tools")]
    tools = [tool.get("function", tool) for tool in canonical.get("tools") or ()]
    lines += [f"tool: {json.dumps(tool, ensure_ascii=False, sort_keys=True)}" for tool in tools]
    for message in canonical.get("messages") or ():
        content = message.get("content")
        text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False) if content else ""
        lines += [f"[{message.get('role')}]", *(f"  {line}" for line in text.splitlines())]
        lines += [
            f"  calls {c['function']['name']}({c['function']['arguments']})" for c in message.get("tool_calls") or ()
        ]
    return lines


def _played(call: Recorded, names: Names) -> Completion:
    if call.error is not None:
        error = call.error
        raise BackendError(names.show(error["message"]), retryable=error["retryable"], timeout=error["timeout"])
    body = {"id": f"chatcmpl-{call.key[:24]}", "object": "chat.completion", "created": 0, **(call.answer or {})}
    return Completion(names.show(body), call.backend, call.weights)


def _load(path: Path) -> tuple[dict[str, Any], list[Recorded]]:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ConfigError(f"the cassette {path} is longer than {MAX_FILE_BYTES} bytes")
        lines = path.read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the cassette {path}: {error}") from None
    try:
        head = json.loads(lines[0])
        if head.pop("format") != FORMAT:
            raise ValueError("unknown format")  # noqa: TRY301 - told with the others
        return head, [Recorded.read(json.loads(line)) for line in lines[1:] if line.strip()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} is not a cassette: {error}", hint="record it anew: --aibox-record=all") from None
