"""llama.cpp in this process: one GGUF file, loaded when first needed, one call at a time in order of asking.

The engine binds a port on 127.0.0.1 whether one wants it or not: it has a random key that nobody is told.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import importlib.util
import os
import secrets
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from aibox.chat import ChatRequest, Chunk, Completion, Health, ModelInfo, Weights, assemble
from aibox.errors import OPERATORS, AIBoxError, BackendError, ConfigError, MissingExtraError
from aibox.inference import demo_model, envelope, pooled
from aibox.inference.capabilities import Api
from aibox.inference.chunks import wants_usage
from aibox.inference.gguf import Header, read_header
from aibox.inference.pooled import Pooling
from aibox.types import Scope

T = TypeVar("T")
MAX_THREADS = 8
BATCH_TOKENS = 256
"""Of the prompt between two looks at whether anybody still waits for the answer: under a second of work."""
EXPLAIN_S = 120.0


@dataclass(frozen=True, slots=True)
class _Model:
    """A model file as it was looked at: what it says of itself, and its digest."""

    path: Path
    stamp: tuple[int, int, int]
    header: Header
    sha256: str


class Embedded:
    """A GGUF file through llama.cpp, in this process. `path` None is the demo model.

    `context_tokens` is bounded by what the model was trained on. `threads` None is all cores but one, 8 at
    most. `model_id` names the model (default: the file's name). `verified_sha256` is the digest, in hex, that the file
    must have: any other file is refused, and the weights count as verified. `demo` marks a model too small to rely on.

    A file that says how its vectors are pooled embeds texts, or ranks documents, and does not chat; `pooling` says it
    for a file that does not.
    """

    external = False
    calls_at_once = 4
    """One runs, and few stand before it, so that tenants take turns; who reads a stream may ask again meanwhile."""

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        name: str = "embedded",
        context_tokens: int = 4096,
        threads: int | None = None,
        model_id: str | None = None,
        demo: bool | None = None,
        verified_sha256: str | None = None,
        pooling: Pooling | None = None,
    ) -> None:
        self.name = name
        self._path = None if path is None else Path(path).expanduser()
        self._context_tokens = context_tokens
        # Threads wait for each other at every layer: one that must share its core with the event loop, or with anything
        # else, stalls them all. On 2 busy cores 2 threads were measured to be 4 to 60 times slower than 1.
        self._threads = threads or max(1, min(len(os.sched_getaffinity(0)) - 1, MAX_THREADS))
        self._model_id = model_id
        self._demo = demo
        self._verified_sha256 = verified_sha256.lower() if verified_sha256 else None
        self._pooling = pooling
        self._lock = threading.Lock()
        # One thread: loading, and then one generation after the other, first come, first served.
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="aibox-llama")
        self._running: set[threading.Event] = set()
        self._closed = False
        self._loaded: tuple[Any, _Model] | None = None
        self._last_tenant = ""

    async def models(self) -> tuple[ModelInfo, ...]:
        """The one model. Reads and hashes the file, without loading it. Raises ConfigError."""
        return (self._info(await asyncio.to_thread(self._model)),)

    async def complete(self, request: ChatRequest, *, scope: Scope) -> Completion:
        """One whole answer. Raises ConfigError for a file that is no model, BackendError otherwise."""
        # Streamed inside: only between two tokens can a generation be stopped when nobody waits for it any more.
        request = request.with_fields(stream_options={"include_usage": True})
        return assemble([chunk async for chunk in self.stream(request, scope=scope)])

    async def stream(self, request: ChatRequest, *, scope: Scope) -> AsyncIterator[Chunk]:
        """The answer token by token; leaving the iteration stops the generation. Raises as `complete`."""
        loop = asyncio.get_running_loop()
        arrived: asyncio.Queue[Chunk | None] = asyncio.Queue()

        def put(item: Chunk | None) -> None:
            try:
                loop.call_soon_threadsafe(arrived.put_nowait, item)
            except RuntimeError:
                stop.set()  # the loop has ended: nobody will read the answer

        stop = threading.Event()
        generation = self._submit(functools.partial(self._generate, request, scope, put, stop), stop)
        generation.add_done_callback(lambda _: put(None))
        try:
            finished = False
            while (chunk := await arrived.get()) is not None:
                finished = finished or bool(chunk.finish_reason)
                yield chunk
            if generation.cancelled():
                raise _closed(self.name)
            generation.result()
            if not finished:
                raise BackendError(f"{self.name} broke off in the middle of its answer", retryable=True)
        finally:
            stop.set()
            generation.cancel()
            self._running.discard(stop)

    async def post(self, api: Api, request: ChatRequest, *, scope: Scope) -> Completion:
        """An answer of the API that the model is for: chat, embeddings or rerank. Raises ConfigError for another."""
        if api == "chat":
            return await self.complete(request, scope=scope)
        stop = threading.Event()
        work = self._submit(functools.partial(self._pooled, api, request, stop), stop)
        try:
            return await asyncio.wrap_future(work)
        except asyncio.CancelledError:
            if self._closed:
                raise _closed(self.name) from None
            raise
        finally:
            stop.set()
            self._running.discard(stop)

    async def health(self) -> Health:
        """Whether the engine is installed and the file can be read. Never raises."""
        if importlib.util.find_spec("xllamacpp") is None:
            return Health(ok=False, detail=str(_missing()))
        try:
            path = self._file()
            await asyncio.to_thread(read_header, path)
        except AIBoxError as error:
            return Health(ok=False, detail=str(error))
        return Health(ok=True, detail=f"{path.name} is {'loaded' if self._loaded else 'there'}")

    async def close(self) -> None:
        """Stop what is being generated and free the model. A call that was under way raises BackendError."""
        self._closed = True
        for stop in tuple(self._running):
            stop.set()
        await asyncio.to_thread(self._executor.shutdown, cancel_futures=True)
        loaded, self._loaded = self._loaded, None
        if loaded is not None:
            await asyncio.to_thread(_free, loaded)

    def _submit(self, work: Callable[[], T], stop: threading.Event) -> Future[T]:
        if self._closed:
            raise _closed(self.name)
        self._running.add(stop)
        return self._executor.submit(work)

    # What follows runs in threads.

    def _generate(
        self, request: ChatRequest, scope: Scope, put: Callable[[Chunk], None], stop: threading.Event
    ) -> None:
        server, model = self._load()
        if (task := self._task(model)) != "chat":
            raise ConfigError(f"the model of {self.name} does not chat", hint=f"it can do: {task}")
        body = _body(request, template=model.header.template)
        # The time that a cached prompt saves would tell one tenant what another has asked.
        body["cache_prompt"] = scope.tenant == self._last_tenant
        self._last_tenant = scope.tenant
        weights, usage, failed = self._weights(model), wants_usage(request), []

        def on_chunk(chunk: dict[str, Any]) -> bool:
            """True stops the generation."""
            if "error" in chunk:
                failed.append(chunk["error"])
            elif "prompt_progress" not in chunk and (usage or chunk.get("choices")):
                put(Chunk(chunk, self.name, weights))
            return stop.is_set()

        if stop.is_set():
            raise _closed(self.name)
        try:
            server.handle_chat_completions(body, on_chunk)
        except (RuntimeError, ValueError, TypeError) as error:
            raise BackendError(f"{self.name} could not use the request: {_short(error)}") from None
        if failed:
            raise _failure(self.name, failed[0])
        if stop.is_set():
            raise _closed(self.name)

    def _pooled(self, api: Api, request: ChatRequest, stop: threading.Event) -> Completion:
        model = self._model()
        if api != (task := self._task(model)):
            raise ConfigError(f"the model of {self.name} has no /{api}", hint=f"it can do: {task}")
        server, model = self._load()

        def hold(answer: Any) -> dict[str, Any]:
            if stop.is_set():
                raise _closed(self.name)
            if "error" in answer:
                raise _failure(self.name, answer["error"])
            return dict(answer)

        makes = pooled.embed if task == "embeddings" else pooled.rerank
        try:
            body = makes(server, request.body, model=self._id(model), hold=hold)
        except (RuntimeError, ValueError, TypeError, KeyError, IndexError) as error:
            raise BackendError(f"{self.name} could not use the request: {_short(error)}") from None
        return Completion(body, self.name, self._weights(model))

    def _task(self, model: _Model) -> pooled.Task:
        return pooled.task_of(pooled.pooling_of(model.header, self._pooling))

    def _load(self) -> tuple[Any, _Model]:
        if self._loaded is None:
            try:
                import xllamacpp
            except ImportError:
                raise _missing() from None
            model = self._model()
            params = self._params(xllamacpp.CommonParams(), model)
            if (pooling := pooled.pooling_of(model.header, self._pooling)) is not None:
                kinds = xllamacpp.llama_pooling_type
                pooled.prepare(params, pooling, kinds, context_tokens=self._context(model))
            try:
                server = xllamacpp.Server(params)
            except RuntimeError:
                raise ConfigError(
                    f"the model file {model.path} could not be loaded: {_explain(model.path)}",
                    hint="is it whole, and of a kind that llama.cpp knows?",
                    code=OPERATORS,
                ) from None
            if _stamp(model.path) != model.stamp:
                raise ConfigError(
                    f"the model file {model.path} was changed while it was loaded", hint="try again", code=OPERATORS
                )
            self._loaded = server, model
        return self._loaded

    def _params(self, params: Any, model: _Model) -> Any:
        params.model.path = str(model.path)
        params.model_alias = {self._id(model)}
        params.n_ctx = self._context(model)
        params.n_parallel = 1
        params.n_batch = params.n_ubatch = BATCH_TOKENS
        params.cache_ram_mib = 0
        params.cpuparams.n_threads = self._threads
        params.verbosity = 0
        params.hostnames = ["127.0.0.1"]
        params.port = 0
        params.api_keys = [secrets.token_urlsafe(32)]
        params.n_threads_http = 1
        params.ui = False
        return params

    def _file(self) -> Path:
        path = self._path or demo_model.find()
        if path is None:
            raise ConfigError(
                "no model file was given, and the demo model is not installed",
                hint=f"give the path of a GGUF file, or run: {demo_model.INSTALL}",
            )
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "does not exist" if not path.exists() else "is not a file"
            raise ConfigError(f"the model file {path} {what}", hint="give the path of a GGUF file", code=OPERATORS)
        return path

    def _model(self) -> _Model:
        """The file, looked at now, or as it was when it was loaded."""
        if self._loaded is not None:
            return self._loaded[1]
        path = self._file()
        header = read_header(path)
        with self._lock:
            stamp = _stamp(path)
            model = _Model(path, stamp, header, _sha256(path, stamp))
        if self._verified_sha256 not in (None, model.sha256):
            raise ConfigError(
                f"the model file {path} has the SHA-256 {model.sha256}, not {self._verified_sha256}",
                hint="get the file again from whom you trust, and do not use this one",
                code=OPERATORS,
            )
        return model

    def _info(self, model: _Model) -> ModelInfo:
        return ModelInfo(
            id=self._id(model),
            backend=self.name,
            tools=False,
            context_tokens=self._context(model),
            weights=self._weights(model),
            demo=model.sha256 == demo_model.SHA256 if self._demo is None else self._demo,
            capabilities=frozenset({self._task(model)}),
        )

    def _id(self, model: _Model) -> str:
        return self._model_id or (demo_model.ID if model.sha256 == demo_model.SHA256 else model.path.stem)

    def _context(self, model: _Model) -> int:
        return min(self._context_tokens, model.header.context_tokens or self._context_tokens)

    def _weights(self, model: _Model) -> Weights:
        known = model.sha256 in (self._verified_sha256, demo_model.SHA256)
        template = model.header.template
        return Weights(
            known="verified" if known else "declared",
            sha256=model.sha256,
            template_sha256=hashlib.sha256(template.encode()).hexdigest() if template else "",
        )

    def __repr__(self) -> str:
        return f"Embedded({str(self._path) if self._path else 'the demo model'!r}, name={self.name!r})"


def _body(request: ChatRequest, *, template: str) -> dict[str, Any]:
    """The request as the engine takes it; progress is asked for so that a long prompt can be stopped too."""
    if "tool" not in template:
        # The template would drop the tools and print their results under a role that the model has never seen.
        request = envelope.without_tools(request).with_fields(messages=envelope.plain(request.messages))
    return {**request.body, "stream": True, "return_progress": True, "stream_options": {"include_usage": True}}


def _stamp(path: Path) -> tuple[int, int, int]:
    stat = path.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


@functools.lru_cache(maxsize=64)
def _sha256(path: Path, stamp: tuple[int, int, int]) -> str:  # noqa: ARG001 - part of the cache's key
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _explain(path: Path) -> str:
    """Why the engine refuses a file. It says so only on stderr: a child process is asked, whose stderr is ours."""
    code = (
        "import sys, xllamacpp; p = xllamacpp.CommonParams(); p.model.path = sys.argv[1]; p.verbosity = 1;"
        "p.hostnames = ['127.0.0.1']; p.port = 0; p.ui = False; xllamacpp.Server(p)"
    )
    try:
        child = subprocess.run(  # noqa: S603 - this interpreter, with a fixed program
            [sys.executable, "-c", code, str(path)], capture_output=True, timeout=EXPLAIN_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return "the engine gives no reason"
    for line in child.stderr.decode("utf-8", "replace").splitlines():
        if "error loading model: " in line:
            return _short(line.partition("error loading model: ")[2])
    return "the engine gives no reason"


def _free(loaded: tuple[Any, _Model]) -> None:
    """Dropping the last reference stops the engine, which takes a moment."""
    del loaded


def _failure(name: str, error: Mapping[str, Any]) -> BackendError:
    if "too large to process" in str(error.get("message")):
        hint = "send less, or give the backend more context_tokens"
        return BackendError(f"a text is longer than the context of {name}: {_short(error['message'])}", hint=hint)
    if error.get("type") == "exceed_context_size_error":
        asked, held = error.get("n_prompt_tokens"), error.get("n_ctx")
        return BackendError(
            f"the request has {asked} tokens and the context of {name} holds {held}",
            hint="send less, or give the backend more context_tokens",
        )
    return BackendError(f"{name} failed: {_short(error.get('message'))}", retryable=error.get("code") == 503)


def _closed(name: str) -> BackendError:
    return BackendError(f"the backend {name} was closed", hint="keep it open as long as it is used")


def _missing() -> MissingExtraError:
    return MissingExtraError("A model in this process", extra="embedded")


def _short(message: object) -> str:
    return " ".join(str(message).split())[:300]
