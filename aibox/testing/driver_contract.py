"""What every sandbox driver must hold, whoever wrote it: subclass DriverContract and give it a driver."""

from __future__ import annotations

import time

import pytest

from aibox.errors import AccessError, LimitError, SandboxError, StoreError
from aibox.execution import Limits
from aibox.protocols import Driver
from aibox.types import Scope

SCOPE = Scope(tenant="acme", user="eva")
LIMITS = Limits(memory_mib=256, pids=32, wall_s=10, output_kib=16, workspace_mib=4)


class DriverContract:
    """Override the fixture `driver`. The guest must have `/bin/sh`, the usual commands and `python3`."""

    @pytest.fixture
    def driver(self) -> Driver:
        raise NotImplementedError("give the contract a driver")

    @pytest.mark.anyio
    async def test_it_says_that_it_isolates(self, driver: Driver) -> None:
        """A driver that is put to the contract can isolate here."""
        health = await driver.available()
        assert health.ok, health.detail

    @pytest.mark.anyio
    async def test_a_command_is_not_given_to_a_shell(self, driver: Driver) -> None:
        """Arguments arrive as they are, and what was printed comes back apart."""
        handle = await driver.start(scope=SCOPE, limits=LIMITS)
        result = await driver.exec(handle, ["sh", "-c", 'echo "$1"; echo e >&2', "sh", "$(id) ; *"])
        await driver.stop(handle)
        assert (result.stdout, result.stderr, result.exit_code) == ("$(id) ; *\n", "e\n", 0)
        assert result.ok
        assert not result.truncated
        assert not result.limits_hit

    @pytest.mark.anyio
    async def test_a_command_that_fails_is_a_result(self, driver: Driver) -> None:
        """Exit codes, signals and unknown programs are results, not exceptions."""
        handle = await driver.start(scope=SCOPE, limits=LIMITS)
        failed = await driver.exec(handle, ["sh", "-c", "exit 7"])
        killed = await driver.exec(handle, ["sh", "-c", "kill -9 $$"])
        unknown = await driver.exec(handle, ["no-such-program"])
        await driver.stop(handle)
        assert (failed.exit_code, killed.exit_code, unknown.exit_code) == (7, 137, 127)

    @pytest.mark.anyio
    async def test_stdin_arrives_whole(self, driver: Driver) -> None:
        """A megabyte of bytes goes in, and ends."""
        handle = await driver.start(scope=SCOPE, limits=LIMITS)
        result = await driver.exec(handle, ["sh", "-c", "wc -c"], stdin=bytes(range(256)) * 4096)
        unread = await driver.exec(handle, ["true"], stdin=b"x" * 1_000_000)
        await driver.stop(handle)
        assert result.stdout.strip() == str(1024 * 1024)
        assert unread.ok

    @pytest.mark.anyio
    async def test_files_live_as_long_as_the_session(self, driver: Driver) -> None:
        """Files survive a run and no other session sees them, though it has the same scope."""
        one = await driver.start(scope=SCOPE, limits=LIMITS)
        two = await driver.start(scope=SCOPE, limits=LIMITS)
        await driver.exec(one, ["sh", "-c", "echo kept > note"])
        again = await driver.exec(one, ["cat", "note"])
        elsewhere = await driver.exec(two, ["sh", "-c", "ls -A; find / -maxdepth 3 -name note 2>/dev/null"])
        await driver.stop(one)
        await driver.stop(two)
        assert again.stdout == "kept\n"
        assert elsewhere.stdout == ""

    @pytest.mark.anyio
    async def test_a_stopped_session_is_gone(self, driver: Driver) -> None:
        """Stopping twice is allowed; a command afterwards is a SandboxError, as with a handle that never was."""
        handle = await driver.start(scope=SCOPE, limits=LIMITS)
        await driver.stop(handle)
        await driver.stop(handle)
        for unknown in (handle, "never-was"):
            with pytest.raises(SandboxError):
                await driver.exec(unknown, ["true"])
            with pytest.raises(SandboxError):
                await driver.get(unknown, "note")

    @pytest.mark.anyio
    async def test_files_go_in_and_out_unchanged(self, driver: Driver) -> None:
        """Any bytes under any odd name, in folders that are made on the way; writing again replaces."""
        handle = await driver.start(scope=SCOPE, limits=LIMITS)
        data = bytes(range(256)) * 1000
        names = ("plain", "-rf", "in/a/folder", "with space", "new\nline", "ünï", ".hidden", "$(id)")
        for name in names:
            await driver.put(handle, name, b"old")
            await driver.put(handle, name, data)
            assert await driver.get(handle, name) == data
        await driver.put(handle, "empty", b"")
        assert await driver.get(handle, "empty") == b""
        await driver.stop(handle)

    @pytest.mark.anyio
    @pytest.mark.parametrize(
        "path", ["", ".", "/etc/passwd", "..", "../x", "a/../../x", "a\0b", "x" * 300, "a/" * 3000]
    )
    async def test_a_path_outside_is_refused(self, driver: Driver, path: str) -> None:
        """Absolute, climbing, empty, too long or with NUL: AccessError, for reading and for writing."""
        handle = await driver.start(scope=SCOPE, limits=LIMITS)
        with pytest.raises(AccessError):
            await driver.get(handle, path)
        with pytest.raises(AccessError):
            await driver.put(handle, path, b"x")
        await driver.stop(handle)

    @pytest.mark.anyio
    async def test_a_link_that_leads_out_is_refused(self, driver: Driver) -> None:
        """Reading through a link out of the workspace is refused, writing does not follow it, inner links are read."""
        handle = await driver.start(scope=SCOPE, limits=LIMITS)
        links = "ln -s /etc/passwd file; ln -s /etc folder; ln -s / up; echo in > real; ln -s real inner; ln -s me me"
        await driver.exec(handle, ["sh", "-c", links])
        for path in ("file", "folder/passwd", "up/etc/passwd", "me"):
            with pytest.raises((AccessError, StoreError)):
                await driver.get(handle, path)
        with pytest.raises(AccessError):
            await driver.put(handle, "folder/new", b"x")
        assert await driver.get(handle, "inner") == b"in\n"
        await driver.put(handle, "file", b"mine")
        assert await driver.get(handle, "file") == b"mine"
        assert (await driver.exec(handle, ["grep", "-c", "mine", "/etc/passwd"])).stdout == "0\n"
        await driver.stop(handle)

    @pytest.mark.anyio
    async def test_what_is_no_regular_file_is_refused_at_once(self, driver: Driver) -> None:
        """A FIFO does not make the reader wait; folders are refused; a missing file is a StoreError."""
        handle = await driver.start(scope=SCOPE, limits=LIMITS)
        await driver.exec(handle, ["sh", "-c", "mkfifo pipe; mkdir folder"])
        began = time.monotonic()
        for path in ("pipe", "folder"):
            with pytest.raises(AccessError):
                await driver.get(handle, path)
        with pytest.raises(StoreError):
            await driver.get(handle, "missing")
        with pytest.raises(AccessError):
            await driver.put(handle, "folder", b"x")
        await driver.put(handle, "pipe", b"a file now")
        assert await driver.get(handle, "pipe") == b"a file now"
        assert time.monotonic() - began < LIMITS.wall_s
        await driver.stop(handle)

    @pytest.mark.anyio
    async def test_the_workspace_is_bounded(self, driver: Driver) -> None:
        """More than fits is refused, by one file or by many, and what was there stays readable."""
        handle = await driver.start(scope=SCOPE, limits=LIMITS)
        await driver.put(handle, "kept", b"kept")
        with pytest.raises(LimitError):
            await driver.put(handle, "large", b"x" * (5 * 1024 * 1024))
        fill = 'for i in 1 2 3 4 5 6 7 8; do head -c 1048576 /dev/zero > "fill$i" || exit 3; done'
        assert not (await driver.exec(handle, ["sh", "-c", fill])).ok
        with pytest.raises(LimitError):
            await driver.put(handle, "late", b"x" * (2 * 1024 * 1024))
        assert await driver.get(handle, "kept") == b"kept"
        await driver.stop(handle)

    @pytest.mark.anyio
    async def test_time_is_bounded_and_the_session_goes_on(self, driver: Driver) -> None:
        """A command that ignores SIGTERM is stopped at the wall limit, with its children; the files stay."""
        handle = await driver.start(scope=SCOPE, limits=LIMITS & Limits(wall_s=0.6))
        began = time.monotonic()
        endless = "trap '' TERM INT HUP; echo begun | tee note; sleep 60 & while :; do :; done"
        result = await driver.exec(handle, ["sh", "-c", endless])
        assert time.monotonic() - began < 5
        assert result.exit_code is None
        assert "0.6 s" in result.limits_hit[0]
        assert result.stdout == "begun\n"
        assert await driver.get(handle, "note") == b"begun\n"
        await driver.stop(handle)

    @pytest.mark.anyio
    async def test_output_is_bounded(self, driver: Driver) -> None:
        """The first part is kept, also of a line that never ends; the result says so in words."""
        handle = await driver.start(scope=SCOPE, limits=LIMITS)
        result = await driver.exec(handle, ["sh", "-c", "head -c 1000000 /dev/zero | tr '\\0' x; echo done >&2"])
        await driver.stop(handle)
        assert result.stdout == "x" * LIMITS.output_kib * 1024
        assert result.stderr == "done\n"
        assert result.truncated
        assert "stdout" in result.limits_hit[0]

    @pytest.mark.anyio
    async def test_output_that_is_no_text_is_replaced(self, driver: Driver) -> None:
        """Invalid UTF-8 becomes U+FFFD."""
        handle = await driver.start(scope=SCOPE, limits=LIMITS)
        result = await driver.exec(handle, ["sh", "-c", "printf 'a\\377b'"])
        await driver.stop(handle)
        assert result.stdout == "a�b"

    @pytest.mark.anyio
    async def test_nothing_keeps_running_after_a_run(self, driver: Driver) -> None:
        """A process that left its session, its parent and its output behind ends with the run."""
        handle = await driver.start(scope=SCOPE, limits=LIMITS)
        daemon = "setsid sh -c 'while :; do date +%s%N > tick; sleep 0.02; done' </dev/null >/dev/null 2>&1 & sleep 0.2"
        await driver.exec(handle, ["sh", "-c", daemon])
        before = await driver.get(handle, "tick")
        assert before
        await driver.exec(handle, ["sleep", "0.2"])
        assert await driver.get(handle, "tick") == before
        await driver.stop(handle)

    @pytest.mark.anyio
    async def test_processes_are_bounded(self, driver: Driver) -> None:
        """A fork bomb stops at the limit and harms no later run."""
        handle = await driver.start(scope=SCOPE, limits=LIMITS & Limits(pids=16))
        bomb = "i=0; while [ $i -lt 40 ]; do sleep 30 & i=$((i+1)); echo $i; done"
        result = await driver.exec(handle, ["sh", "-c", bomb])
        assert len(result.stdout.split()) <= 16
        assert (await driver.exec(handle, ["echo", "alive"])).stdout == "alive\n"
        await driver.stop(handle)

    @pytest.mark.anyio
    async def test_there_is_no_network(self, driver: Driver) -> None:
        """No interface but loopback, and no route anywhere."""
        handle = await driver.start(scope=SCOPE, limits=LIMITS)
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
        result = await driver.exec(handle, ["python3", "-c", code])
        await driver.stop(handle)
        assert result.stdout == "['lo']\n", result.stderr
