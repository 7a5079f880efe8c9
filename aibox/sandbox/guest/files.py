"""File calls, made inside: the host never opens a path that a guest can name.

While one is made no code of the guest runs. Still nothing relies on that: a path is walked folder by folder without
following links, so that exchanging a folder for a link on the way leads to a refusal and not outside.
"""

from __future__ import annotations

import os
import stat

from aibox.sandbox.guest.line import Refused

TYPE_CHECKING = False  # `typing` and `collections` would cost more time to import than all the rest
if TYPE_CHECKING:
    from collections.abc import Callable

_CHUNK = 256 * 1024


def _folder(path: bytes, top: bytes, *, make: bool = False) -> int:
    """A descriptor of a folder below `top`, which no link on the way can lead elsewhere; with `make` it is made."""
    real = os.path.realpath(path)
    if real != top and not real.startswith(top + b"/"):
        raise Refused("outside")
    descriptor = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    for part in real[len(top) :].split(b"/"):
        if not part:
            continue
        try:
            if make:
                try:
                    os.mkdir(part, 0o755, dir_fd=descriptor)
                except FileExistsError:
                    pass
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=descriptor)
        finally:
            os.close(descriptor)
        descriptor = inner
    return descriptor


def read(path: bytes, limit: int, send: Callable[[bytes], None], *, top: bytes) -> None:
    """A regular file, in pieces. A FIFO that nobody writes to does not make it wait."""
    real = os.path.realpath(os.path.join(top, path))
    if real == top:
        raise Refused("irregular")
    parent = _folder(os.path.dirname(real), top)
    try:
        source = os.open(os.path.basename(real), os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW, dir_fd=parent)
    finally:
        os.close(parent)
    try:
        status = os.fstat(source)
        if not stat.S_ISREG(status.st_mode):
            raise Refused("irregular")
        if status.st_size > limit:
            raise Refused("large")
        while (limit := limit) >= 0 and (chunk := os.read(source, min(_CHUNK, limit + 1))):
            limit -= len(chunk)
            if limit < 0:  # it grew
                raise Refused("large")
            send(chunk)
    finally:
        os.close(source)


class Writer:
    """A new file in place of the old one, whatever that is but a folder: a link is replaced, not followed."""

    def __init__(self, path: bytes, *, top: bytes) -> None:
        folder, self._name = os.path.split(os.path.join(top, path))
        self._parent = _folder(folder, top, make=True)
        self._temporary = b".put-" + os.urandom(8).hex().encode()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        self._file = os.open(self._temporary, flags, 0o644, dir_fd=self._parent)

    def add(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._file, view) :]

    def done(self) -> None:
        os.rename(self._temporary, self._name, src_dir_fd=self._parent, dst_dir_fd=self._parent)
        self._temporary = b""

    def close(self) -> None:
        os.close(self._file)
        if self._temporary:
            os.unlink(self._temporary, dir_fd=self._parent)
        os.close(self._parent)


def tree(path: bytes, *, deep: bool, limit: int, top: bytes) -> list[bytes]:
    """`kind size changed name` of what is in a folder, links not followed; `kind` is one letter: f, d, l or o.

    `changed` is in nanoseconds, by the clock of inodes, which a program cannot set. Names are relative to `top`. Ends
    after `limit` entries with an entry of kind `+`.
    """
    found: list[bytes] = []
    real = os.path.realpath(os.path.join(top, path))
    waiting = [real]
    while waiting:
        folder = waiting.pop()
        descriptor = _folder(folder, top)
        try:
            with os.scandir(descriptor) as entries:
                for entry in entries:
                    if len(found) >= limit:
                        return [*found, b"+ 0 0 "]
                    name = os.path.join(folder, os.fsencode(entry.name))
                    mode = entry.stat(follow_symlinks=False)
                    kind = b"o"
                    for letter, test in ((b"f", stat.S_ISREG), (b"d", stat.S_ISDIR), (b"l", stat.S_ISLNK)):
                        kind = letter if test(mode.st_mode) else kind
                    found.append(kind + b" %d %d " % (mode.st_size, mode.st_ctime_ns) + name[len(top) + 1 :])
                    if deep and kind == b"d":
                        waiting.append(name)
        except PermissionError:
            if folder == real:
                raise
        finally:
            os.close(descriptor)
    return found
