"""The folder of an embedded memory and the one thread that works in it. What both stores of it have in common."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar

from aibox.audit.keys import Keyring
from aibox.errors import StoreError
from aibox.memory.cipher import KEY_BYTES

P = ParamSpec("P")
T = TypeVar("T")


class Folder:
    """Where rows and indexes lie. `given` None is a private temporary folder, removed by `close`.

    `key` is the master key of 32 bytes; None draws one, for a given folder into `keys/memory.key` in it, which then
    must be kept as carefully as the data.
    """

    def __init__(self, given: Path | None, *, key: bytes | None = None) -> None:
        self.given = given
        self._key = key
        self._made: Path | None = None
        self._remove: Callable[[], object] = lambda: None
        self._lock = threading.RLock()  # two stores of one memory, each with its thread, share a folder

    def __str__(self) -> str:
        return repr(str(self.given)) if self.given else "a temporary folder"

    def make(self) -> Path:
        """The folder, made when it is first asked for. Raises StoreError."""
        with self._lock:
            if self._made is None:
                folder = self.given
                try:
                    if folder is None:
                        folder = Path(tempfile.mkdtemp(prefix="aibox-memory-"))
                        self._remove = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
                    else:
                        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                except OSError as error:
                    hint = "name a folder that can be written"
                    raise StoreError(f"the folder {folder} cannot be made: {error.strerror}", hint=hint) from error
                self._made = folder
            return self._made

    def key(self) -> bytes:
        """The master key. Raises StoreError or ConfigError where it cannot be read."""
        with self._lock:
            if self._key is None:
                self._key = Keyring(self.make() / "keys").secret("memory") if self.given else os.urandom(KEY_BYTES)
            return self._key

    def remove(self) -> None:
        """Remove a temporary folder."""
        self._remove()


class Worker:
    """A thread of its own, in which things happen in turn."""

    def __init__(self, name: str) -> None:
        self._threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._closed = False

    async def do(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run it there. Raises StoreError once the worker is closed."""
        if self._closed:
            raise StoreError("the memory is closed", hint="open it again, or do this before closing")
        return await asyncio.get_running_loop().run_in_executor(self._threads, lambda: function(*args, **kwargs))

    async def close(self, last: Callable[[], None]) -> None:
        """Run `last` and end. Closing twice is allowed."""
        if not self._closed:
            await self.do(last)
            self._closed = True
            self._threads.shutdown(wait=False)
