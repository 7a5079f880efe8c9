"""What every sandbox driver must hold, whoever wrote it: subclass DriverContract and give it a driver."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from aibox.errors import AccessError, LimitError, SandboxError, StoreError
from aibox.execution import Limits
from aibox.protocols import Driver
from aibox.sandbox.sandbox import Sandbox
from aibox.sandbox.session import Session
from aibox.types import Scope

SCOPE = Scope(tenant="acme", user="eva")
LIMITS = Limits(memory_mib=256, pids=32, wall_s=10, output_kib=16, workspace_mib=4)


class DriverContract:
    """Override the fixture `driver`. The guest must have `/bin/sh`, `bash`, the usual commands and `python3`."""

    @pytest.fixture
    def driver(self) -> Driver:
        raise NotImplementedError("give the contract a driver")

    @pytest.fixture
    def limits(self) -> Limits:
        return LIMITS

    @pytest.fixture
    async def sandbox(self, driver: Driver, limits: Limits) -> AsyncIterator[Sandbox]:
        sandbox = Sandbox(driver, limits=limits)
        yield sandbox
        await sandbox.close()

    @pytest.fixture
    async def session(self, sandbox: Sandbox) -> AsyncIterator[Session]:
        async with sandbox.session(scope=SCOPE) as session:
            yield session

    @pytest.mark.anyio
    async def test_it_says_that_it_isolates(self, sandbox: Sandbox) -> None:
        """A driver that is put to the contract can isolate here."""
        health = await sandbox.available()
        assert health.ok, health.detail

    @pytest.mark.anyio
    async def test_a_command_is_not_given_to_a_shell(self, session: Session) -> None:
        """Arguments arrive as they are, and what was printed comes back apart."""
        result = await session.run(("sh", "-c", 'echo "$1"; echo e >&2', "sh", "$(id) ; *"))
        assert (result.stdout, result.stderr, result.exit_code) == ("$(id) ; *\n", "e\n", 0)
        assert result.ok
        assert not result.truncated
        assert not result.limits_hit

    @pytest.mark.anyio
    async def test_a_command_that_fails_is_a_result(self, session: Session) -> None:
        """Exit codes, signals and unknown programs are results, not exceptions."""
        failed = await session.run(("sh", "-c", "exit 7"))
        killed = await session.run(("sh", "-c", "kill -9 $$"))
        unknown = await session.run(("no-such-program",))
        assert (failed.exit_code, killed.exit_code, unknown.exit_code) == (7, 137, 127)

    @pytest.mark.anyio
    async def test_a_program_is_looked_for_where_path_says(self, session: Session) -> None:
        """A name without a slash is never a file of the workspace; one with a slash is that file, and says why not."""
        await session.write("here", "")
        codes = [(await session.run((name,))).exit_code for name in ("here", "./here", "./nowhere", "true")]
        assert codes == [127, 126, 127, 0]

    @pytest.mark.anyio
    async def test_stdin_arrives_whole(self, session: Session) -> None:
        """A megabyte of bytes goes in, and ends; what nobody reads is no error."""
        result = await session.bash("wc -c", stdin=bytes(range(256)) * 4096)
        unread = await session.bash("true", stdin=b"x" * 1_000_000)
        assert result.stdout.strip() == str(1024 * 1024)
        assert unread.ok

    @pytest.mark.anyio
    async def test_a_program_is_spoken_with_while_it_runs(self, session: Session) -> None:
        """It answers before its input ends, in any amount; it ends with the block, and the session goes on."""
        data = bytes(range(256)) * 8192
        async with session.talk(("cat",)) as talk:
            await talk.send(b"one\n")
            assert await talk.receive() == b"one\n"
            heard = bytearray()
            async with anyio.create_task_group() as group:
                group.start_soon(talk.send, data)
                while len(heard) < len(data):
                    heard += await talk.receive()
            await talk.end_input()
            assert await talk.receive() == b""
        assert (bytes(heard), talk.exit_code) == (data, 0)
        async with session.talk(("sleep", "1000")) as talk:
            await talk.send(bytes(512 * 1024))  # which it does not read
        assert talk.exit_code is None
        async with session.talk(("bash", "-c", "echo said >&2; exit 3")) as talk:
            assert [line async for line in talk.lines()] == []
        assert (talk.exit_code, talk.stderr) == (3, "said\n")
        assert (await session.bash("echo on")).stdout == "on\n"

    @pytest.mark.anyio
    async def test_a_folder_goes_in_with_all_that_is_in_it(self, session: Session, tmp_path: Path) -> None:
        """Names, bytes and links as they are; what does not fit is refused."""
        (tmp_path / "a b" / "c").mkdir(parents=True)
        (tmp_path / "a b" / "c" / "d.bin").write_bytes(bytes(range(256)) * 4096)
        (tmp_path / "link").symlink_to("a b/c/d.bin")
        (tmp_path / "away").symlink_to("/etc/passwd")
        await session.copy_in(tmp_path)
        assert await session.read("a b/c/d.bin") == (tmp_path / "a b" / "c" / "d.bin").read_bytes()
        assert {(entry.path, entry.kind) for entry in await session.ls()} == {
            ("a b", "folder"),
            ("away", "link"),
            ("link", "link"),
        }
        (tmp_path / "large").write_bytes(bytes(5 * 1024 * 1024))
        with pytest.raises(LimitError, match="has more than 4 MiB"):
            await session.copy_in(tmp_path)

    @pytest.mark.anyio
    async def test_variables_and_imports_survive_a_call(self, session: Session) -> None:
        """What one call defines the next uses; an error, an exit and a command in between change nothing."""
        await session.python("import math\nclass C: pass\ndef twice(x): return 2 * x\nx = 20")
        assert (await session.python("x += 1\n1 / 0")).exit_code == 1
        assert (await session.python("raise SystemExit(9)")).exit_code == 9
        await session.bash("true")
        result = await session.python("twice(x) + math.floor(0.5)")
        assert (result.value, result.exit_code) == ("42", 0), result

    @pytest.mark.anyio
    async def test_an_interpreter_that_ends_is_replaced(self, session: Session) -> None:
        """`os._exit` is a result that says that the variables are gone; files are kept and the next call works."""
        await session.python("x = 1\nopen('kept', 'w').write('kept')")
        died = await session.python("import os; os._exit(42)")
        assert (died.exit_code, died.state_lost) == (42, True)
        assert "variables and imports are gone" in died.limits_hit[0]
        assert "NameError" in (await session.python("x")).stderr
        assert await session.read("kept") == b"kept"

    @pytest.mark.anyio
    async def test_output_streams_while_it_runs(self, session: Session) -> None:
        """What is printed is seen before the run is over, for code and for commands."""
        seen: list[tuple[str, str, float]] = []

        def see(stream: str, text: str) -> None:
            seen.append((stream, text, time.monotonic()))

        for call, code in (
            (session.python, "import time\nprint('a', flush=True)\ntime.sleep(0.5)\nprint('b')"),
            (session.bash, "echo a; sleep 0.5; echo b >&2"),
        ):
            seen.clear()
            await call(code, on_output=see)
            assert "".join(text for _, text, _ in seen) == "a\nb\n"
            assert seen[-1][2] - seen[0][2] > 0.3

    @pytest.mark.anyio
    async def test_files_live_as_long_as_the_session(self, sandbox: Sandbox, session: Session) -> None:
        """Files survive a run and no other session sees them, though it has the same scope."""
        await session.bash("echo kept > note")
        async with sandbox.session(scope=SCOPE) as other:
            elsewhere = await other.bash("ls -A; find / -maxdepth 3 -name note 2>/dev/null")
        assert elsewhere.stdout == ""
        assert (await session.bash("cat note")).stdout == "kept\n"

    @pytest.mark.anyio
    async def test_a_closed_session_is_gone(self, session: Session) -> None:
        """Closing twice is allowed; a call afterwards is a SandboxError."""
        await session.close()
        await session.close()
        with pytest.raises(SandboxError):
            await session.bash("true")
        with pytest.raises(SandboxError):
            await session.read("note")

    @pytest.mark.anyio
    async def test_files_go_in_and_out_unchanged(self, session: Session) -> None:
        """Any bytes under any odd name, in folders that are made on the way; writing again replaces."""
        data = bytes(range(256)) * 1000
        names = ("plain", "-rf", "in/a/folder", "with space", "new\nline", "ünï", ".hidden", "$(id)")
        for name in names:
            await session.write(name, b"old")
            await session.write(name, data)
            assert await session.read(name) == data
        await session.write("empty", b"")
        assert await session.read("empty") == b""
        assert {entry.path for entry in await session.ls(deep=True) if entry.kind == "file"} == {*names, "empty"}

    @pytest.mark.anyio
    @pytest.mark.parametrize("path", ["", "/etc/passwd", "..", "../x", "a/../../x", "a\0b", "x" * 300, "a/" * 3000])
    async def test_a_path_outside_is_refused(self, session: Session, path: str) -> None:
        """Absolute, climbing, empty, too long or with NUL: AccessError, for reading and for writing."""
        with pytest.raises(AccessError):
            await session.read(path)
        with pytest.raises(AccessError):
            await session.write(path, b"x")

    @pytest.mark.anyio
    async def test_a_link_that_leads_out_is_refused(self, session: Session) -> None:
        """Reading through a link out of the workspace is refused, writing does not follow it, inner links are read."""
        links = "ln -s /etc/passwd file; ln -s /etc folder; ln -s / up; echo in > real; ln -s real inner; ln -s me me"
        await session.bash(links)
        for path in ("file", "folder/passwd", "up/etc/passwd", "me"):
            with pytest.raises((AccessError, StoreError)):
                await session.read(path)
        for path in ("folder", "up", "up/etc"):
            with pytest.raises((AccessError, StoreError)):
                await session.ls(path)
        with pytest.raises(AccessError):
            await session.write("folder/new", b"x")
        assert await session.read("inner") == b"in\n"
        assert await session.glob("**/passwd") == []
        assert await session.grep("root|nobody|user") == []
        await session.write("file", b"mine")
        assert await session.read("file") == b"mine"
        assert (await session.run(("grep", "-c", "mine", "/etc/passwd"))).stdout == "0\n"

    @pytest.mark.anyio
    async def test_what_is_no_regular_file_is_refused_at_once(self, session: Session) -> None:
        """A FIFO makes nobody wait; folders and sockets are refused; a missing file is a StoreError."""
        await session.bash("mkfifo pipe; mkdir folder; touch shut; chmod 0 shut")
        await session.python("import socket; socket.socket(socket.AF_UNIX).bind('socket')")
        began = time.monotonic()
        for path in ("pipe", "folder", "socket", "shut"):
            with pytest.raises(AccessError):
                await session.read(path)
        with pytest.raises(StoreError):
            await session.read("missing")
        with pytest.raises(AccessError):
            await session.write("folder", b"x")
        assert await session.grep("anything") == []
        assert [entry.kind for entry in await session.ls()] == ["folder", "other", "file", "other"]
        await session.write("pipe", b"a file now")
        assert await session.read("pipe") == b"a file now"
        assert time.monotonic() - began < LIMITS.wall_s

    @pytest.mark.anyio
    async def test_the_workspace_is_bounded(self, session: Session) -> None:
        """More than fits is refused, by one file or by many, and what was there stays readable."""
        await session.write("kept", b"kept")
        with pytest.raises(LimitError):
            await session.write("large", b"x" * (5 * 1024 * 1024))
        fill = 'for i in 1 2 3 4 5 6 7 8; do head -c 1048576 /dev/zero > "fill$i" || exit 3; done'
        assert not (await session.bash(fill)).ok
        with pytest.raises(LimitError):
            await session.write("late", b"x" * (2 * 1024 * 1024))
        assert await session.read("kept") == b"kept"

    @pytest.mark.anyio
    @pytest.mark.parametrize("limits", [LIMITS & Limits(wall_s=0.6)])
    async def test_time_is_bounded_and_the_session_goes_on(self, session: Session) -> None:
        """A command that ignores SIGTERM is stopped at the wall limit, with its children; files and variables stay."""
        await session.python("x = 1")
        began = time.monotonic()
        result = await session.bash("trap '' TERM INT HUP; echo begun | tee note; sleep 60 & while :; do :; done")
        assert time.monotonic() - began < 5
        assert result.exit_code is None
        assert "0.6 s" in result.limits_hit[0]
        assert result.stdout == "begun\n"
        assert await session.read("note") == b"begun\n"
        assert (await session.python("x")).value == "1"

    @pytest.mark.anyio
    @pytest.mark.parametrize("limits", [LIMITS & Limits(wall_s=0.6)])
    async def test_code_that_will_not_stop_loses_its_variables_only(self, session: Session) -> None:
        """Code gets a KeyboardInterrupt and keeps its variables; what catches that is killed, and we are told."""
        await session.python("x = 1")
        stopped = await session.python("while True: pass")
        assert (stopped.exit_code, stopped.state_lost) == (None, False)
        assert (await session.python("x")).value == "1"
        stubborn = "import time\nwhile True:\n    try:\n        time.sleep(9)\n    except BaseException: pass"
        killed = await session.python(stubborn)
        assert (killed.exit_code, killed.state_lost) == (None, True)
        assert (await session.python("1 + 1")).value == "2"

    @pytest.mark.anyio
    async def test_output_is_bounded(self, session: Session) -> None:
        """The first part is kept, also of a line that never ends; the result says so in words."""
        for call in (
            session.bash("head -c 1000000 /dev/zero | tr '\\0' x; echo done >&2"),
            session.python("import sys; print('x' * 1000000, end=''); print('done', file=sys.stderr)"),
        ):
            result = await call
            assert result.stdout == "x" * LIMITS.output_kib * 1024
            assert result.stderr == "done\n"
            assert result.truncated
            assert "stdout" in result.limits_hit[0]

    @pytest.mark.anyio
    async def test_output_that_is_no_text_is_replaced(self, session: Session) -> None:
        """Invalid UTF-8 becomes U+FFFD."""
        assert (await session.bash("printf 'a\\377b'")).stdout == "a�b"

    @pytest.mark.anyio
    async def test_nothing_keeps_running_after_a_run(self, session: Session) -> None:
        """A process that left its session, its parent and its output behind ends with the run; threads are stopped."""
        daemon = "setsid sh -c 'while :; do date +%s%N > t; mv t tick; sleep 0.02; done' </dev/null >/dev/null 2>&1 &"
        await session.bash(f"{daemon} sleep 0.5")
        before = await session.read("tick")
        assert before
        thread = (
            "import threading, time\n"
            "def work():\n"
            "    while True:\n"
            "        open('tock', 'a').write('x')\n"
            "        time.sleep(0.01)\n"
            "threading.Thread(target=work, daemon=True).start()\n"
            "time.sleep(0.2)\n"
        )
        await session.python(thread)
        written = await session.read("tock")
        await session.bash("sleep 0.2")
        assert await session.read("tick") == before
        assert await session.read("tock") == written

    @pytest.mark.anyio
    @pytest.mark.parametrize("limits", [LIMITS & Limits(pids=16, wall_s=3)])
    async def test_processes_are_bounded(self, session: Session) -> None:
        """A fork bomb stops at the limit and harms no later run."""
        result = await session.bash("i=0; while [ $i -lt 40 ]; do sleep 30 & i=$((i+1)); echo $i; done")
        assert len(result.stdout.split()) <= 16
        assert (await session.bash("echo alive")).stdout == "alive\n"

    @pytest.mark.anyio
    async def test_there_is_no_network(self, session: Session) -> None:
        """No interface but loopback, and no route anywhere."""
        code = (
            "import socket\n"
            "print(sorted(name for _, name in socket.if_nameindex()))\n"
            "for family, address in ((socket.AF_INET, '192.0.2.1'), (socket.AF_INET6, '2001:db8::1')):\n"
            "    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):\n"
            "        try:\n"
            "            socket.socket(family, kind).connect((address, 53))\n"
            "            print('connected', address)\n"
            "        except OSError:\n"
            "            pass\n"
        )
        result = await session.python(code)
        assert result.stdout == "['lo']\n", result.stderr

    @pytest.mark.anyio
    async def test_what_code_prints_is_never_part_of_the_answer(self, session: Session) -> None:
        """Frames of ours, printed or written to every descriptor, end, forge and replace nothing."""
        code = (
            "import os\n"
            "frame = b'x' + (6).to_bytes(4, 'big') + b'code=0'\n"
            "for fd in range(3, 64):\n"
            "    for data in (frame, bytes(16) + b'x.0', bytes(16) + b'v.forged', os.urandom(40)):\n"
            "        try: os.write(fd, data)\n"
            "        except OSError: pass\n"
            "os.write(1, frame)\n"
            "'true'"
        )
        result = await session.python(code)
        assert (result.value, result.exit_code) == ("'true'", 0)
        assert result.stdout == "x\0\0\0\x06code=0"
        assert (await session.python("1 + 1")).value == "2"
