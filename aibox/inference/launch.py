"""A vLLM server of one's own: started offline, watched, restarted with patience, stopped with everything it started."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from aibox.errors import BackendError, ConfigError
from aibox.inference.vllm import VLLM
from aibox.sealing import telemetry_off

READY_S = 900.0
STOP_S = 30.0
BACKOFF_S = (1.0, 5.0, 30.0, 120.0)
"""Waits before the restarts of a server that ends by itself; one that has lived for STEADY_S begins anew."""
STEADY_S = 600.0
LOG_BYTES = 10 << 20
"""Of one log; the one before it is kept beside it."""

_MODULE = ("-m", "vllm.entrypoints.openai.api_server")
_NO_MEMORY = (
    r"CUDA out of memory|OutOfMemoryError|No available memory for the cache blocks|available KV cache memory|"
    r"Cannot allocate memory|DefaultCPUAllocator: (can't|not enough)|Free memory on device .* is less than"
)
_NO_MODEL = (
    r"does not appear to have a file|Repo id must be|is not a valid model|Can't load the configuration|"
    r"OSError: .*config\.json|Invalid repository ID or local directory"
)
_CAUSES = (
    (_NO_MEMORY, "there is not enough memory for it", "a smaller model, less max_model_len or gpu_memory_utilization"),
    (r"Address already in use|Errno 98", "its port is in use", "leave port out, and a free one is taken"),
    (r"No module named '?vllm", "vLLM is not installed for that Python", "python= names one that has it"),
    (_NO_MODEL, "the model folder is not one that vLLM can load", "a folder with config, tokenizer and safetensors"),
    (r"unrecognized arguments: ", "it does not know an option", "options are those of vllm serve, with underscores"),
)
"""What the log says of a failure, what that means, and what helps."""


class LaunchedVLLM(VLLM):
    """A VLLM whose server is ours. Made by `launch`; closing it stops the server."""

    def __init__(self, server: Server, **options: Any) -> None:
        super().__init__(server.url, api_key=server.key, external=False, **options)
        self._server = server

    async def close(self) -> None:
        await super().close()
        await self._server.stop()


async def launch(
    model_path: str | Path,
    *,
    name: str = "vllm",
    served_name: str | None = None,
    python: str | Path = sys.executable,
    port: int | None = None,
    log: str | Path | None = None,
    env: Mapping[str, str] | None = None,
    ready_s: float = READY_S,
    progress: Callable[[str], None] | None = None,
    options: Mapping[str, object] | None = None,
    **backend_options: Any,
) -> LaunchedVLLM:
    """Start a vLLM server for a model folder on this machine and return when it answers.

    It listens on 127.0.0.1, with a random key, and reads nothing from any hub. `options` are those of `vllm serve`
    (`{"max_model_len": 2048}`; True is a bare flag). `env` is added to the little of the environment that it gets.
    `log` keeps what it says, by default in the present folder; `progress` is told its last line.

    Raises ConfigError for a folder that is none or an option that is unknown, BackendError, with the reason in its own
    words and ours, when it does not come up within `ready_s`.
    """
    folder = Path(model_path)
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{folder} is no model folder: it has no config.json", hint="safetensors and their config")
    server = Server(
        folder.absolute(),
        served_name=served_name or folder.name,
        python=str(python),
        port=port or _free_port(),
        log=Path(log or f"vllm-{folder.name}.log").absolute(),
        env=dict(env or {}),
        options=dict(options or {}),
    )
    backend = LaunchedVLLM(server, name=name, **backend_options)
    try:
        await server.start()
        await server.ready(backend, ready_s=ready_s, progress=progress)
    except BaseException:
        await backend.close()
        raise
    server.watch(backend, progress=progress)
    return backend


class Server:
    """The process, in a group of its own, so that its workers end with it."""

    def __init__(
        self,
        folder: Path,
        *,
        served_name: str,
        python: str,
        port: int,
        log: Path,
        env: dict[str, str],
        options: dict[str, object],
    ) -> None:
        self.url = f"http://127.0.0.1:{port}/v1"
        self.key = secrets.token_urlsafe(32)
        self.restarts = 0
        self._command = [
            python, *_MODULE, "--model", str(folder), "--served-model-name", served_name,
            "--host", "127.0.0.1", "--port", str(port), *_flags(options),
        ]  # fmt: skip
        self._env = env
        self._log = log
        self._process: asyncio.subprocess.Process | None = None
        self._watching: asyncio.Task[None] | None = None
        self._started = 0.0

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    async def start(self) -> None:
        if self._log.exists() and self._log.stat().st_size > LOG_BYTES:
            self._log.replace(self._log.with_name(self._log.name + ".1"))
        self._started = time.monotonic()
        try:
            with self._log.open("ab") as out:
                self._process = await asyncio.create_subprocess_exec(
                    *self._command,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    env=self._environment(),
                    start_new_session=True,
                )
        except OSError as error:
            raise ConfigError(
                f"vLLM cannot be started: {error}", hint="python= names an interpreter with vLLM"
            ) from None

    async def ready(self, backend: VLLM, *, ready_s: float, progress: Callable[[str], None] | None) -> None:
        """Wait until it answers. Raises BackendError when it ends first, or takes too long."""
        deadline, told = time.monotonic() + ready_s, ""
        while not (await backend.health()).ok:
            assert self._process is not None
            if self._process.returncode is not None:
                raise self._failure(f"vLLM ended with {self._process.returncode} before it was ready")
            if time.monotonic() > deadline:
                raise self._failure(f"vLLM was not ready after {ready_s:g} s")
            if progress is not None and (line := self._tail(1)) != told:
                told = line
                progress(line)
            await asyncio.sleep(0.5)

    def watch(self, backend: VLLM, *, progress: Callable[[str], None] | None) -> None:
        """Start it again whenever it ends by itself, each time after a longer wait."""
        self._watching = asyncio.get_running_loop().create_task(self._watch(backend, progress), name="aibox-vllm")

    async def stop(self) -> None:
        """End the server and its workers: asked first, then killed."""
        watching, self._watching = self._watching, None
        if watching is not None:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        process, self._process = self._process, None
        if process is None:
            return
        if process.returncode is None:
            _signal(process.pid, signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_S):
                    await process.wait()
        # What is left of the group has no parent to end it any more.
        _signal(process.pid, signal.SIGKILL)
        await process.wait()

    async def _watch(self, backend: VLLM, progress: Callable[[str], None] | None) -> None:
        in_a_row = 0
        while True:
            assert self._process is not None
            await self._process.wait()
            _signal(self._process.pid, signal.SIGKILL)
            in_a_row = 0 if time.monotonic() - self._started > STEADY_S else in_a_row
            wait_s = BACKOFF_S[min(in_a_row, len(BACKOFF_S) - 1)]
            in_a_row += 1
            self.restarts += 1
            if progress is not None:
                progress(f"vLLM ended with {self._process.returncode} and is started again in {wait_s:g} s")
            await asyncio.sleep(wait_s)
            await self.start()
            # Until it answers the router's circuit keeps it without traffic; should it end again, so does this wait.
            with contextlib.suppress(BackendError):
                await self.ready(backend, ready_s=READY_S, progress=progress)

    def _environment(self) -> dict[str, str]:
        """What a server needs, and no key or address of anybody's; telemetry off and no download, whatever was set."""
        passed = (
            "PATH",
            "HOME",
            "LANG",
            "TMPDIR",
            "LD_LIBRARY_PATH",
            "LD_PRELOAD",
            "CUDA_VISIBLE_DEVICES",
            "CUDA_HOME",
        )
        env = {name: os.environ[name] for name in passed if name in os.environ}
        env |= {key: value for key, value in os.environ.items() if key.startswith(("VLLM_", "OMP_", "NCCL_", "ROCR_"))}
        env |= self._env
        telemetry_off(env)
        return {**env, "VLLM_API_KEY": self.key}

    def _failure(self, what: str) -> BackendError:
        tail = self._tail(200)
        for pattern, cause, hint in _CAUSES:
            if re.search(pattern, tail):
                return BackendError(f"{what}: {cause}", hint=f"{hint}; its log is {self._log}")
        errors = [line for line in tail.splitlines() if "Error" in line]
        last = " ".join((errors or tail.splitlines() or ["it said nothing"])[-1].split())[:300]
        return BackendError(f"{what}: {last}", hint=f"its log is {self._log}")

    def _tail(self, lines: int) -> str:
        try:
            with self._log.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - (64 << 10)))
                text = file.read().decode("utf-8", "replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-lines:])


def _flags(options: Mapping[str, object]) -> Sequence[str]:
    """Options of the command line. Raises ConfigError for one that would undo what is promised."""
    flags: list[str] = []
    for key, value in options.items():
        flag = "--" + key.replace("_", "-")
        if flag in _OURS:
            raise ConfigError(f"{flag} is not for options", hint="launch() has an argument for it, or it is refused")
        if value is True:
            flags.append(flag)
        elif value is not None and value is not False:
            flags += [flag, str(value)]
    return flags


_OURS = (
    "--model",
    "--host",
    "--port",
    "--api-key",
    "--served-model-name",
    "--trust-remote-code",
    "--allow-credentials",
)


def _signal(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port
