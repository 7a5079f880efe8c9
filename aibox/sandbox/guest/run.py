"""One run: a process of the guest, watched until its work is over, and what it prints passed on up to the limit."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # `signal` would import enum, which costs more than all the rest
import _socket
import posix
import time
from posix import _exit

from aibox.sandbox.guest import line
from aibox.sandbox.guest.processes import INTERRUPT, KILL

TYPE_CHECKING = False  # `typing` and `collections` would cost more time to import than all the rest
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

PIECE = 32 * 1024
_POLLIN, _POLLOUT = 1, 4  # poll(2)
_LOOK_MS = 5
_COUNT_MS, _IDLE_MS = 10, 80
"""Between two looks at how many files there are: the longer nothing changes, the longer. It takes two processors more
than the longest to make `FAR` files."""
FAR = 65_536
"""Files above the limit on their number at which nothing is waited for any more; some 64 MiB of the kernel's memory."""
BACKLOG = 1024 * 1024
"""Bytes that a program which is spoken with may leave unread; as long as there are more, the host has to wait."""
GRACE_S = 0.5
"""Between asking a piece of code to stop and killing the interpreter with all its variables."""


class Run:
    """Watches one process of the guest until its work is over, passing on what it prints up to the limit."""

    def __init__(
        self, pid: int, out: int, err: int, *, output: int, errors: int, files: int, folders: tuple[str, ...]
    ) -> None:
        self._pid = pid
        self._folders = folders
        # More than there may be already, from the host or another run: then it may remove some, and make no more.
        self._files = files and max(files, count(folders))
        self._made = 0
        self._left = {out: output, err: errors}
        self._letters = {out: b"o", err: b"e"}
        self._into, self._rest, self._more = -1, bytearray(), False
        import select

        self._poll = select.poll()
        for descriptor in self._left:
            self._poll.register(descriptor, _POLLIN)
        self._poll.register(0, _POLLIN)
        self.code = 0
        self.ended = False
        self.crowded = False
        self.dropped = ""

    def cell(self, channel: Any, token: bytes) -> None:
        """Until the interpreter says with the token that it is done, or has died."""
        self._poll.register(channel.fileno(), _POLLIN)
        over = False

        def heard() -> None:
            nonlocal over
            try:
                message = channel.recv(PIECE + 64, _socket.MSG_DONTWAIT)
            except OSError:
                message = b""
            if not message:
                self._poll.unregister(
                    channel.fileno()
                )  # its other end was closed: it cannot say any more that it is done
            if message[:16] != token or over:
                return  # something else in there wrote to the channel
            if message[16:17] == b"x":
                self.code, over = int(message[18:] or b"1"), True
            elif message[16:17] in (b"v", b"t", b"p"):
                line.send(message[16:17], message[17:])

        self._watch({channel.fileno(): heard}, lambda: over, polite=True)

    def command(self, into: int, stdin: bytes, *, more: bool = False) -> None:
        """Until the process has ended; `stdin` is written meanwhile, and with `more` what the host sends after it."""
        posix.set_blocking(into, False)
        self._into, self._rest, self._more = into, bytearray(stdin), more
        self._give()
        self._watch({into: self._write})
        self._hang_up()

    def _give(self) -> None:
        if self._rest:
            self._poll.register(self._into, _POLLOUT)
        elif not self._more:
            self._hang_up()

    def _write(self) -> None:
        try:
            del self._rest[: posix.write(self._into, self._rest[:PIECE])]
        except BlockingIOError:
            return
        except OSError:  # it reads no more
            self._rest.clear()
            self._more = False
        if len(self._rest) <= BACKLOG:
            self._poll.register(0, _POLLIN)
        if not self._rest:
            self._poll.unregister(self._into)
            self._give()

    def _hang_up(self) -> None:
        if self._into >= 0:
            posix.close(self._into)
            self._into = -1

    def _asked(self) -> bool:
        """A frame of the host: more for the program to read (nothing is its end), or that it is to stop."""
        kind, data = line.receive()
        if kind == b"S" and self._more and self._into >= 0:
            self._more = bool(data)
            idle = not self._rest
            self._rest += data
            if idle:
                self._give()
            if len(self._rest) > BACKLOG:
                self._poll.unregister(0)
        return kind == b"I"

    def _watch(
        self, handlers: dict[int, Callable[[], None]], over: Callable[[], bool] = lambda: False, *, polite: bool = False
    ) -> None:
        try:
            watched = posix.pidfd_open(self._pid)
            self._poll.register(watched, _POLLIN)
        except OSError:
            watched = -1  # an older gVisor has none: look at it again and again
        every_ms = _LOOK_MS if watched < 0 else _COUNT_MS if self._files else None
        counted = self._files > 0 and watched >= 0
        deadline: float | None = None
        try:
            while not over():
                wait_ms = None if deadline is None else max(0, int((deadline - time.monotonic()) * 1000))
                ready = dict(self._poll.poll(every_ms if wait_ms is None else min(wait_ms, every_ms or wait_ms)))
                for descriptor in ready:
                    if descriptor in self._left:
                        self._pass_on(descriptor)
                    elif descriptor in handlers:
                        handlers[descriptor]()
                if (watched in ready or watched < 0) and self._over():
                    return
                before = self._made
                stop = self._to_stop(asked=0 in ready and self._asked())
                if counted and every_ms is not None:
                    every_ms = min(2 * every_ms, _IDLE_MS) if self._made == before else _COUNT_MS
                if stop:
                    if not polite:
                        return
                    posix.kill(self._pid, INTERRUPT)
                    deadline = time.monotonic() + GRACE_S
                if deadline is not None and (time.monotonic() >= deadline or self._made > self._files + FAR):
                    posix.kill(self._pid, KILL)
                    deadline = None
        finally:
            if watched >= 0:
                posix.close(watched)

    def _to_stop(self, *, asked: bool) -> bool:
        """Because the host says so, or because there are too many files, which is said once."""
        self._made = count(self._folders)
        crowded = self._made > self._files and not self.crowded
        self.crowded = self.crowded or crowded
        return asked or crowded

    def _over(self) -> bool:
        pid, status = posix.waitpid(self._pid, posix.WNOHANG)
        if pid:
            self.code = posix.waitstatus_to_exitcode(status)
            self.ended = True
        return self.ended

    def _pass_on(self, descriptor: int) -> bool:
        chunk = posix.read(descriptor, 65536)
        if not chunk:
            self._poll.unregister(descriptor)
            return False
        room = self._left[descriptor]
        if room:
            line.send(self._letters[descriptor], chunk[:room])
        self._left[descriptor] = max(0, room - len(chunk))
        if len(chunk) > room:
            letter = self._letters[descriptor].decode()
            self.dropped += "" if letter in self.dropped else letter
            time.sleep(0.001)  # the writer has to wait for the pipe: a flood takes little of the host's time
        return True

    def drain(self) -> None:
        """What was printed before the end; by now nobody is left who could print more."""
        while ready := [row for row in self._poll.poll(0) if row[0] in self._left]:
            for descriptor, _ in ready:
                self._pass_on(descriptor)


def prepare() -> None:
    """Load what would take a quarter of a millisecond of the start, before anything of the guest has run."""
    import select  # noqa: F401 - `Run` finds it then


def count(folders: tuple[str, ...]) -> int:
    """Files and folders of the file system that has the most of them."""
    found = [posix.statvfs(folder) for folder in folders]
    return max([one.f_files - one.f_ffree for one in found], default=0)


def become(argv: list[bytes], into: int, out: int, err: int, bound: Callable[[], None]) -> None:
    try:
        posix.setsid()
        for descriptor, place in ((into, 0), (out, 1), (err, 2)):
            posix.dup2(descriptor, place)
        posix.closerange(3, 256)
        bound()
        _signal.signal(_signal.SIGPIPE, _signal.SIG_DFL)
        _signal.signal(_signal.SIGXFSZ, _signal.SIG_DFL)
        _execute(argv)
    except OSError as error:
        posix.write(2, argv[0] + b": " + (error.strerror or "cannot be run").encode() + b"\n")
        _exit(127 if isinstance(error, FileNotFoundError) else 126)
    finally:
        _exit(126)


def _execute(argv: list[bytes]) -> None:
    """Become the program that PATH finds first. Raises OSError: the first refusal, or that there is none."""
    folders = [b""] if b"/" in argv[0] else [folder + b"/" for folder in posix.environ[b"PATH"].split(b":")]
    failed: OSError | None = None
    for folder in folders:
        try:
            posix.execve(folder + argv[0], argv, posix.environ)
        except OSError as error:
            missing = isinstance(error, FileNotFoundError | NotADirectoryError)
            if failed is None or (isinstance(failed, FileNotFoundError | NotADirectoryError) and not missing):
                failed = error
    if failed is not None:
        raise failed
