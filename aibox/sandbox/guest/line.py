"""The line to the host: a letter, a length of four bytes, and as many bytes. No process but the first one has it."""

from __future__ import annotations

import errno
import posix  # `os` costs a millisecond to import, and so do others that this folder does without
from posix import _exit

_FAULTS = {
    errno.ENOSPC: "full",
    errno.EDQUOT: "full",
    errno.EFBIG: "full",
    errno.ENOENT: "missing",
    errno.EACCES: "denied",
    errno.EPERM: "denied",
    errno.EAGAIN: "processes",
}


class Refused(Exception):
    """Why a file call was not done; one of the words that the host knows."""


def fault(error: OSError) -> str:
    return _FAULTS.get(error.errno or 0, "irregular")


def receive() -> tuple[bytes, bytes]:
    """The next frame. The host is gone at the end of the line, and with this process goes everything."""
    head = _exactly(5)
    return head[:1], _exactly(int.from_bytes(head[1:], "big"))


def _exactly(size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        chunk = posix.read(0, size - len(data))
        if not chunk:
            _exit(0)
        data += chunk
    return bytes(data)


def send(kind: bytes, data: bytes) -> None:
    view = memoryview(kind + len(data).to_bytes(4, "big") + data)
    while view:
        view = view[posix.write(1, view) :]
