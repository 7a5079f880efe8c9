"""The first process inside, and the only one that speaks with the host; everything else in there is hostile.

It is process 1 of its namespace, so nothing inside can kill or stop it, and when it ends everything ends. It cannot be
traced or looked into, so nothing inside can put words into its mouth: results travel in frames of its own, and what
code prints is the content of a frame and never part of one. It uses no module that costs time to import.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # `signal` would import enum, which costs more than all the rest
import _socket
import marshal
import posix
import resource
import sys
from posix import _exit

from aibox.sandbox.guest import interpreter, line
from aibox.sandbox.guest.processes import (
    CONTINUE,
    GET_DUMPABLE,
    INTERRUPT,
    SET_DUMPABLE,
    STOP,
    limit,
    others,
    own_group,
    part,
    prctl,
    settle,
    signal_one,
    surroundings,
    sweep,
)
from aibox.sandbox.guest.run import FAR, GRACE_S, PIECE, Run, become, count, prepare

TYPE_CHECKING = False  # `typing` and `collections` would cost more time to import than all the rest
if TYPE_CHECKING:
    from typing import Any

    from aibox.sandbox.guest.files import Writer

_PRIVATE = 2
"""Processes that are ours: this one and the interpreter."""
_ENDLESS = 1 << 62


class Supervisor:
    """One guest: at most one interpreter, and one run at a time."""

    def __init__(self) -> None:
        self._worker = 0
        self._channel: Any = None
        self._out = self._err = -1
        self._hidden = False
        self._limits: dict[str, Any] = {}

    def serve(self) -> None:
        """Do what the host asks for until it closes the line."""
        while True:
            kind, data = line.receive()
            try:
                if kind == b"H":
                    self._begin(marshal.loads(data))
                elif kind == b"C":
                    self._cell(data)
                elif kind == b"R":
                    self._command(*marshal.loads(data))
                elif kind == b"T":
                    self._command(marshal.loads(data), b"", more=True)
                elif kind in (b"I", b"S"):
                    pass  # it came after the end of what it was for
                else:
                    self._file_call(kind, marshal.loads(data))
            except line.Refused as refused:
                self._done(error=str(refused))
            except OSError as error:
                self._done(error=line.fault(error))
            except MemoryError:
                self._done(error="memory")

    def _done(self, **facts: object) -> None:
        facts.update(own_group())
        line.send(b"x", ";".join(f"{name}={value}" for name, value in facts.items()).encode())

    def _begin(self, limits: dict[str, Any]) -> None:
        """Set limits that the kernel keeps, before anything of the guest has run."""
        self._limits = limits
        if limits["uid"]:
            part(limits["uid"])
        _signal.signal(INTERRUPT, _signal.SIG_DFL)  # which process 1 never gets from inside
        posix.umask(0o022)
        wanted = {
            resource.RLIMIT_CORE: 0,
            resource.RLIMIT_NOFILE: limits["files"],
            resource.RLIMIT_FSIZE: limits["file_bytes"],
        }
        if limits["pids"]:
            # Where it is another user than the guest, only the guest's own are counted.
            wanted[resource.RLIMIT_NPROC] = limits["pids"] + (0 if limits["uid"] else _PRIVATE)
        for kind, value in wanted.items():
            limit(kind, value)
        posix.chdir(limits["top"])
        surroundings(limits["env"])
        self._interpreter()  # it makes itself ready meanwhile, and gets no code before this one is protected
        if not self._protected():
            self._done(error="unprotected")
            _exit(1)
        self._done(code=0)
        prepare()

    def _protected(self) -> bool:
        """Whether nothing inside can end it, look into it, or outlive it."""
        prctl(SET_DUMPABLE, 0)
        self._hidden = True
        return posix.getpid() == 1 and prctl(GET_DUMPABLE, 0) == 0

    # The interpreter.

    def _interpreter(self) -> None:
        """Fork it, unless it lives."""
        if self._worker:
            return
        ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        out, err = posix.pipe(), posix.pipe()
        pid = posix.fork()
        if pid == 0:
            self._become(theirs, out[1], err[1])
        for descriptor in (out[1], err[1], theirs.detach()):
            posix.close(descriptor)
        self._worker, self._channel, self._out, self._err = pid, ours, out[0], err[0]

    def _become(self, channel: Any, out: int, err: int) -> None:
        """In the fork: let go of everything of the supervisor's, above all of the line to the host."""
        try:
            posix.setsid()
            nothing = posix.open("/dev/null", posix.O_RDONLY)
            for descriptor, place in ((nothing, 0), (out, 1), (err, 2)):
                posix.dup2(descriptor, place)
            kept = channel.fileno()
            posix.closerange(3, kept)
            posix.closerange(kept + 1, self._limits["files"])
            self._bound()
            _signal.signal(INTERRUPT, _signal.default_int_handler)
            env = self._limits["env"]
            surroundings({**env, "MPLBACKEND": "agg", "MPLCONFIGDIR": env["HOME"]})
            for name in [name for name in sys.modules if name.partition(".")[0] == "aibox"]:
                del sys.modules[name]
            version = f"{sys.version_info[0]}.{sys.version_info[1]}"
            places = [folder.format(version=version) for folder in self._limits["packages"]]
            sys.path += places  # where one is not there nothing inside can put it there
            sys.argv = [""]
            # Nothing has gone through these in the supervisor, so there is nothing in them.
            sys.stdin.reconfigure(encoding="utf-8")  # type: ignore[union-attr]  # what every start of Python makes
            for stream in (sys.stdout, sys.stderr):
                stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)  # type: ignore[union-attr]
            interpreter.serve(channel)
        finally:
            _exit(0)

    def _bound(self) -> None:
        """What holds for the guest's own processes and not for the supervisor."""
        if self._hidden or self._limits["uid"]:  # who changes its user is hidden by the kernel
            prctl(SET_DUMPABLE, 1)  # else its own /proc/self is not its own
        score = posix.open("/proc/self/oom_score_adj", posix.O_WRONLY)
        posix.write(score, b"1000")  # when memory runs out, never the supervisor first
        posix.close(score)
        if self._limits["address_bytes"]:
            limit(resource.RLIMIT_AS, self._limits["address_bytes"])
        if uid := self._limits["uid"]:
            posix.setresuid(uid, uid, uid)

    def _cell(self, code: bytes) -> None:
        self._room()
        self._interpreter()
        token = posix.urandom(16)
        posix.kill(self._worker, CONTINUE)
        run = self._run(self._worker, self._out, self._err)
        try:
            self._channel.send(token + len(code).to_bytes(8, "big"))
            for start in range(0, len(code), PIECE):
                self._channel.send(code[start : start + PIECE])
        except OSError:
            pass  # it has died, which the run is about to see
        run.cell(self._channel, token)
        lost = run.ended
        if not lost:
            signal_one(self._worker, STOP)  # and it stops while the others are looked for
        sweep(keep=0 if lost else self._worker)
        if not lost and others(self._worker):
            lost = self._bury()
        # Whoever wanted to kill it is gone by now, but a kill may still be on its way.
        lost = lost or settle(self._worker)
        run.drain()
        if lost:
            self._forget()
        self._ran(run, lost=lost)

    def _room(self) -> None:
        """Run nothing more where far too many files are: each run may have made some between two looks."""
        most = self._limits["inodes"]
        if most and count(self._limits["folders"]) > most + FAR:
            raise line.Refused("files")

    def _run(self, pid: int, out: int, err: int, *, spoken: bool = False) -> Run:
        most, folders, output = self._limits["inodes"], self._limits["folders"], self._limits["output"]
        return Run(pid, out, err, output=_ENDLESS if spoken else output, errors=output, files=most, folders=folders)

    def _ran(self, run: Run, *, lost: bool) -> None:
        self._done(code=run.code, dropped=run.dropped, lost=int(lost), crowded=int(run.crowded))

    def _lost(self) -> bool:
        """Whether a command has ended the interpreter (`kill -9 -1` does); then it is no more."""
        if not self._worker or not settle(self._worker):
            return False
        self._forget()
        return True

    def _forget(self) -> None:
        for descriptor in (self._out, self._err, self._channel.detach()):
            posix.close(descriptor)
        self._worker = 0

    def _bury(self) -> bool:
        """Have the interpreter let go of its dead children, which count as processes; True when it had to be killed."""
        token = posix.urandom(16)
        posix.kill(self._worker, CONTINUE)
        heard = b""
        try:
            self._channel.send(token + interpreter.REAP.to_bytes(8, "big"), _socket.MSG_DONTWAIT)
            self._channel.settimeout(GRACE_S)
            while heard[:16] != token:
                heard = self._channel.recv(PIECE + 64) or token
        except OSError:
            pass
        self._channel.settimeout(None)
        if heard[:16] == token and len(heard) > 16:
            posix.kill(self._worker, STOP)
            sweep(keep=self._worker)
            return False
        sweep(keep=0)
        return True

    def _command(self, argv: list[bytes], stdin: bytes, *, more: bool = False) -> None:
        """Run a program; with `more` the host speaks with it, and what it prints has no bound but the line."""
        self._room()
        into, out, err = posix.pipe(), posix.pipe(), posix.pipe()
        pid = posix.fork()
        if pid == 0:
            become(argv, into[0], out[1], err[1], self._bound)
        for descriptor in (into[0], out[1], err[1]):
            posix.close(descriptor)
        run = self._run(pid, out[0], err[0], spoken=more)
        run.command(into[1], stdin, more=more)
        sweep(keep=self._worker)
        run.drain()
        for descriptor in (out[0], err[0]):
            posix.close(descriptor)
        self._ran(run, lost=self._lost())

    def _file_call(self, kind: bytes, data: Any) -> None:
        from aibox.sandbox.guest import files

        top = self._limits["top"].encode()
        if kind == b"G":
            files.read(data[0], data[1], lambda chunk: line.send(b"d", chunk), top=top)
        elif kind == b"L":
            path, deep, limit = data
            rows = files.tree(path, deep=deep, limit=limit, top=top)
            body = b"\0".join(rows)
            for start in range(0, len(body), 1 << 18):
                line.send(b"d", body[start : start + (1 << 18)])
        elif kind == b"W":
            self._write(data, top)
        else:
            self._done(error="unknown")
            return
        self._done(code=0)

    def _write(self, path: bytes, top: bytes) -> None:
        """Take the pieces that follow, also when there is no room for them: the host sends all."""
        from aibox.sandbox.guest import files

        full = 0 < self._limits["inodes"] < count(self._limits["folders"])
        failed: BaseException | None = line.Refused("full") if full else None
        writer: Writer | None = None
        try:
            writer = None if full else files.Writer(path, top=top)
        except (OSError, line.Refused) as error:
            failed = error
        while True:
            kind, data = line.receive()
            if kind != b"D":
                break
            try:
                if writer is not None and failed is None:
                    writer.add(data)
            except OSError as error:
                failed = error
        try:
            if writer is not None and failed is None and kind == b"E":
                writer.done()
        finally:
            if writer is not None:
                writer.close()
        if failed is not None:
            raise failed


def main() -> None:
    Supervisor().serve()
