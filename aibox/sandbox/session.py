"""One session: code, commands and files over the line to its guest, each call bounded, one after the other."""

from __future__ import annotations

import hashlib
import marshal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio

from aibox.errors import AccessError, ConfigError, LimitError, SandboxError
from aibox.execution import Artifact, FileEntry, Limits, Result
from aibox.protocols import Guest
from aibox.sandbox.answer import Answer, OnOutput
from aibox.sandbox.line import Frames
from aibox.sandbox.paths import inside, matches, refusal
from aibox.sandbox.talk import Talk, unpack

_MIB = 1024 * 1024
_WORD_KIB = 127  # the kernel's MAX_ARG_STRLEN is 128
_STDIN_MIB = 8
_STOP_S = 3.0
"""For the supervisor to stop a run; then the whole session ends."""
_FILE_S = 60.0
_ENTRIES = 10_000
_MATCHES = 500
_KINDS = {b"f": "file", b"d": "folder", b"l": "link", b"o": "other"}

Record = Callable[[str, dict[str, object]], None]


class Session:
    """A workspace and an interpreter that remembers. Nothing survives the session.

    Variables and imports survive from one `python` call to the next, files from every call to every other; processes
    end with the call that started them. Calls of one session take turns.
    """

    def __init__(
        self,
        guest: Guest,
        *,
        limits: Limits,
        id: str = "",  # noqa: A002 - what it is
        record: Record | None = None,
        ended: Callable[[Session], None] | None = None,
    ) -> None:
        self.id = id
        self.limits = limits
        self.last_used = time.monotonic()
        self._guest = guest
        self._frames = Frames(guest)
        self._lock = anyio.Lock()
        self.record: Record = record or (lambda *_: None)
        """Of the request that has come last; each run keeps the one that it began with."""
        self._ended = ended or (lambda _: None)
        self._put: dict[str, str] = {}
        self._known: frozenset[FileEntry] = frozenset()
        self._kills = 0
        self._open = True
        self._waiting = 0

    @property
    def busy(self) -> bool:
        return self._waiting > 0

    async def python(self, code: str, *, on_output: OnOutput | None = None) -> Result:
        """Run code in the session's interpreter, whose variables remain; the last expression's text is `value`.

        Modules in the workspace are not found by `import`, so that no file there can pose as one. `on_output` gets
        ("stdout" or "stderr", text) while it runs. At the wall limit the code gets a KeyboardInterrupt; what does not
        stop then loses the interpreter. Raises SandboxError.
        """
        # Half a surrogate pair is the program's mistake: its interpreter says so, in a result.
        source = code.encode("utf-8", errors="surrogatepass")
        if len(source) > _MIB:
            raise ConfigError("the code is larger than 1 MiB", hint="write data to a file and read that")
        return await self._run("python", b"C", source, [source], on_output)

    async def bash(self, command: str, *, stdin: bytes = b"", on_output: OnOutput | None = None) -> Result:
        """Run a command line of bash, up to 127 KiB, in the workspace. Raises SandboxError."""
        return await self.run(("bash", "--noprofile", "--norc", "-c", command), stdin=stdin, on_output=on_output)

    async def run(self, argv: tuple[str, ...], *, stdin: bytes = b"", on_output: OnOutput | None = None) -> Result:
        """Run a program with arguments, without a shell. Raises SandboxError, ConfigError when it is no command."""
        words = _words(argv)
        if len(stdin) > _STDIN_MIB * _MIB:
            raise ConfigError(f"stdin is larger than {_STDIN_MIB} MiB", hint="write it to a file and read that")
        return await self._run("command", b"R", _marshal((words, bytes(stdin))), words, on_output)

    @asynccontextmanager
    async def talk(self, argv: tuple[str, ...]) -> AsyncIterator[Talk]:
        """Run a program that is spoken with while it runs, without a shell; it ends with the block.

        `wall_s` does not bound it, nor `output_kib` its stdout: who speaks with it does. Other calls of the session
        wait for its end. Raises SandboxError, ConfigError when it is no command.
        """
        words, began, record = _words(argv), time.perf_counter(), self.record
        self._waiting += 1
        try:
            async with self._lock:
                if not self._open:
                    raise SandboxError("the sandbox session is over", hint="start another; files are lost")
                talk = Talk(self._frames, answer := Answer(self.limits.output_kib * 1024))
                await self._frames.send(b"T", _marshal(words))
                try:
                    yield talk
                finally:
                    talk.stopped, talk.over = not talk.over, True
                    if talk.stopped:
                        await self._halt(answer)
                    came_of = replace(answer.result(self.limits), exit_code=talk.exit_code)
                    _ran(record, "talk", words, came_of, began)
        finally:
            self._waiting -= 1
            self.last_used = time.monotonic()

    async def write(self, path: str, data: str | bytes) -> None:
        """Write a file of the workspace, and the folders above it; text as UTF-8. A link is replaced, not followed.

        Raises AccessError for a path that is not inside, LimitError when it does not fit.
        """
        path = inside(path)
        body = data.encode("utf-8", errors="surrogatepass") if isinstance(data, str) else bytes(data)
        if len(body) > self.limits.workspace_mib * _MIB:
            raise refusal("full", path, limit_mib=self.limits.workspace_mib)
        parts = [(b"W", _marshal(path.encode()))]
        parts += [(b"D", body[start : start + (_MIB >> 1)]) for start in range(0, len(body), _MIB >> 1)]
        answer = await self._call([*parts, (b"E", b"")], Answer(0))
        self._raise_for(answer, path)
        self._put[path] = hashlib.sha256(body).hexdigest()

    async def read(self, path: str, *, limit_mib: float | None = None) -> bytes:
        """Read a regular file. Raises AccessError, StoreError when there is none, or LimitError when it is larger."""
        path = inside(path)
        limit = min(limit_mib or self.limits.workspace_mib, self.limits.workspace_mib)
        answer = await self._call([(b"G", _marshal((path.encode(), int(limit * _MIB))))], Answer(int(limit * _MIB)))
        self._raise_for(answer, path, limit_mib=limit)
        return bytes(answer.data)

    async def ls(self, path: str = ".", *, deep: bool = False) -> list[FileEntry]:
        """What is in a folder, by name; with `deep` also below it. Links are not followed. At most 10,000 entries.

        Raises AccessError, StoreError when there is no such folder, LimitError when there is more.
        """
        name = "" if path in ("", ".") else inside(path)
        answer = await self._call([(b"L", _marshal((name.encode(), deep, _ENTRIES)))], Answer(64 * _MIB))
        self._raise_for(answer, path)
        rows = [row.split(b" ", 3) for row in bytes(answer.data).split(b"\0") if row]
        if rows and rows[-1][0] == b"+":
            raise LimitError(f"there are more than {_ENTRIES} files in {path!r}", hint="name a folder with less")
        return sorted(
            (
                FileEntry(name.decode(errors="replace"), _KINDS.get(kind, "other"), int(size), int(changed))
                for kind, size, changed, name in rows
            ),
            key=lambda entry: entry.path,
        )

    async def glob(self, pattern: str) -> list[str]:
        """Paths of files that match: `*` and `?` within a name, `**` any number of folders. Links are not followed."""
        wanted = [part for part in inside(pattern).split("/") if part]
        if len(wanted) > 16:
            raise ConfigError("a pattern has at most 16 parts")
        return [
            entry.path
            for entry in await self.ls(deep=True)
            if entry.kind == "file" and matches(entry.path.split("/"), wanted)
        ]

    async def grep(self, pattern: str, path: str = ".") -> list[tuple[str, int, str]]:
        """(path, line number, line) where an extended regular expression matches in text files; at most 500.

        Runs inside, under the session's limits. Raises ConfigError for a pattern that is none.
        """
        name = "." if path in ("", ".") else f"./{inside(path)}"
        argv = ("grep", "-rnIEZs", "-D", "skip", "-m", str(_MATCHES), "-e", pattern, "--", name)
        result = await self.run(argv)
        if result.exit_code == 2 and result.stderr:
            raise ConfigError(f"grep: {result.stderr.strip()[:200]}", hint="POSIX extended regular expressions")
        found = []
        for line in result.stdout.split("\n")[:_MATCHES]:
            file, _, rest = line.partition("\0")
            number, colon, text = rest.partition(":")
            if colon and number.isdecimal():
                found.append((file.removeprefix("./"), int(number), text))
        return found

    async def copy_in(self, source: str | Path, path: str | None = None) -> None:
        """Copy a file of the host into the workspace, by default under its own name. Archives are not unpacked.

        Of a folder all that is in it is put right into the workspace; links stay links, which lead nowhere outside.
        """
        file = Path(source)
        if file.is_dir():
            async with self.talk(("tar", "-xf", "-")) as talk:
                await unpack(file, talk, limit_mib=self.limits.workspace_mib)
            return
        limit = self.limits.workspace_mib * _MIB
        if not file.is_file():
            raise ConfigError(f"there is no file {file}")
        if file.stat().st_size > limit:
            raise refusal("full", path or file.name, limit_mib=self.limits.workspace_mib)
        await self.write(path or file.name, await anyio.to_thread.run_sync(file.read_bytes))

    async def copy_out(self, path: str, target: str | Path) -> Artifact:
        """Copy a file of the workspace to a path of the host that the caller chose. Recorded with its digest.

        A folder as `target` gets it under its own last name. An existing file or link there is not written through.
        """
        path = inside(path)
        data = await self.read(path)
        place = Path(target)
        place = place / path.rpartition("/")[2] if place.is_dir() else place

        def save() -> None:
            with place.open("xb") as file:
                file.write(data)

        try:
            await anyio.to_thread.run_sync(save)
        except FileExistsError:
            raise AccessError(f"{place} exists already", hint="remove it first, or choose another name") from None
        except OSError as error:
            raise ConfigError(f"cannot write {place}: {error.strerror}") from None
        return self._artifact(path, data)

    async def changed(self) -> list[FileEntry]:
        """Files that code made or changed since this was asked last. What was put in counts when it is another since.

        Nothing is recorded of it. Raises LimitError where there are more than 10,000 files.
        """
        found = [entry for entry in await self.ls(deep=True) if entry.kind == "file"]
        fresh = [entry for entry in found if entry not in self._known]
        self._known = frozenset(found)
        return [entry for entry in fresh if not await self._as_put(entry.path)]

    async def _as_put(self, path: str) -> bool:
        return path in self._put and self._put[path] == hashlib.sha256(await self.read(path)).hexdigest()

    async def artifacts(self, pattern: str = "**") -> list[Artifact]:
        """Files that code made or changed, with their digests; each is recorded. What was put in is left out.

        At most 1,000 of them. Raises LimitError when there are more.
        """
        paths = await self.glob(pattern)
        if len(paths) > 1000:
            raise LimitError("there are more than 1,000 files", hint="give a narrower pattern, or pack them inside")
        found = []
        for path in paths:
            data = await self.read(path)
            if self._put.get(path) != hashlib.sha256(data).hexdigest():
                found.append(self._artifact(path, data))
        return found

    def _artifact(self, path: str, data: bytes) -> Artifact:
        made = Artifact(path, len(data), hashlib.sha256(data).hexdigest())
        # The name is the guest's and may be anybody's data: in the evidence stands its digest.
        name = hashlib.sha256(path.encode("utf-8", "surrogatepass")).hexdigest()
        self.record("sandbox.artifact", {"path_sha256": name, "bytes": made.size, "sha256": made.sha256})
        return made

    async def close(self) -> None:
        """End everything in the session and remove its files. What runs is stopped. Closing twice is allowed."""
        was_open, self._open = self._open, False
        try:
            await self._guest.close()
        finally:
            if was_open:
                self._ended(self)

    async def _run(
        self, kind: str, letter: bytes, data: bytes, shown: list[bytes], on_output: OnOutput | None
    ) -> Result:
        limits, began, record = self.limits, time.perf_counter(), self.record
        answer = Answer(limits.output_kib * 1024, on_output)
        try:
            await self._call([(letter, data)], answer, wall_s=limits.wall_s)
        except BaseException:
            if answer.begun:  # whoever left, or ended the session, has stopped what was running
                _ran(record, kind, shown, replace(answer.result(limits), exit_code=None), began)
            raise
        return _ran(record, kind, shown, answer.result(limits), began)

    async def _call(self, frames: list[tuple[bytes, bytes]], answer: Answer, *, wall_s: float = _FILE_S) -> Answer:
        self._waiting += 1
        try:
            async with self._lock:
                if not self._open:
                    raise SandboxError("the sandbox session is over", hint="start another; files are lost")
                answer.begun = True
                try:
                    await self._exchange(frames, answer, wall_s)
                except SandboxError as error:
                    if not (answer.timed_out or self._open):
                        raise SandboxError("the sandbox session was ended while a command ran") from None
                    await self.close()
                    raise self._explained(error) from None
        finally:
            self._waiting -= 1
            self.last_used = time.monotonic()
        usage = self._guest.usage() or answer.inside()
        answer.killed_for_memory = usage.memory_kills > self._kills
        answer.peak_memory_mib = usage.peak_memory_mib
        self._kills = max(self._kills, usage.memory_kills)
        return answer

    def _explained(self, error: SandboxError) -> SandboxError:
        usage = self._guest.usage()
        if usage is not None and usage.memory_kills > self._kills:
            message = f"the session was ended at {self.limits.memory_mib} MiB (memory limit), which files count to"
            return SandboxError(message, hint="start another; files are lost")
        return error

    async def _exchange(self, frames: list[tuple[bytes, bytes]], answer: Answer, wall_s: float) -> None:
        """Send, and take frames to the last of the answer; at the wall limit, and when cancelled, have it stopped."""
        try:
            with anyio.move_on_after(wall_s) as clock:
                for kind, data in frames:
                    await self._frames.send(kind, data)
                await self._listen(answer)
        except SandboxError:
            raise
        except BaseException:
            await self._halt(answer)
            raise
        if clock.cancelled_caught:
            answer.timed_out = True
            if not await self._halt(answer):
                raise SandboxError(
                    f"the sandbox did not answer within {wall_s:g} s, nor stop when told to, so the session was ended",
                    hint="start another; files are lost. If none starts, is the container engine well?",
                )

    async def _listen(self, answer: Answer) -> None:
        while not answer.take(*await self._frames.receive()):
            pass

    async def _halt(self, answer: Answer) -> bool:
        """Ask the supervisor to stop the run. If it does not answer the session ends; either way nothing goes on."""
        answer.on_output = None
        with anyio.CancelScope(shield=True):
            with anyio.move_on_after(_STOP_S) as clock:
                try:
                    await self._frames.send(b"I")
                    await self._listen(answer)
                except SandboxError:
                    await self.close()
                    return False
            if clock.cancelled_caught:
                await self.close()
        return not clock.cancelled_caught

    def _raise_for(self, answer: Answer, path: str, *, limit_mib: float | None = None) -> None:
        if answer.timed_out:
            raise SandboxError(f"{path!r} could not be copied in time")
        if (word := answer.facts.get("error")) is not None:
            raise refusal(word, path, limit_mib=limit_mib or self.limits.workspace_mib)


def _ran(record: Record, kind: str, shown: list[bytes], result: Result, began: float) -> Result:
    result = replace(result, duration_s=time.perf_counter() - began)
    record(
        "sandbox.ran",
        {
            "kind": kind,
            "code_sha256": hashlib.sha256(b"\0".join(shown)).hexdigest(),
            "exit_code": result.exit_code,
            "duration_us": round(result.duration_s * 1e6),
            "limits_hit": [hit.partition("(")[2].partition(")")[0] for hit in result.limits_hit],
        },
    )
    return result


def _marshal(value: Any) -> bytes:
    """For the way in only: what comes out of a guest is never unmarshalled."""
    return marshal.dumps(value, 2)


def _words(argv: tuple[str, ...]) -> list[bytes]:
    if any("\ud800" <= character <= "\udfff" for word in argv for character in word):
        raise ConfigError("a command is Unicode text")
    words = [word.encode() for word in argv]
    if not words or words[0][:1] in (b"", b"-") or any(b"\0" in word for word in words):
        raise ConfigError("a command is a program and its arguments, without NUL, and its name begins with no '-'")
    if max(map(len, words)) > _WORD_KIB * 1024 or sum(map(len, words)) > 8 * _WORD_KIB * 1024:
        raise ConfigError(f"a word of a command is longer than {_WORD_KIB} KiB", hint="write it to a file and run that")
    return words
