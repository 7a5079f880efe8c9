"""Sandbox and Session: lifetimes, refusals, and what a person reads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aibox.errors import AccessError, ConfigError, SandboxError
from aibox.execution import Limits
from aibox.sandbox.bubblewrap import Bubblewrap
from aibox.sandbox.cgroup import ControlGroups, Place
from aibox.sandbox.paths import inside
from aibox.sandbox.runtime import Runtime
from aibox.sandbox.sandbox import Sandbox
from aibox.types import Scope


@pytest.mark.anyio
async def test_a_session_runs_python_and_bash_over_the_same_files(scope: Scope) -> None:
    """What one run writes the next reads, from either language and from outside."""
    async with Sandbox().session(scope=scope) as session:
        await session.write("in.txt", "grüße")
        result = await session.python("text = open('in.txt').read()\nopen('out.txt', 'w').write(text.upper())")
        assert result.ok, result
        assert (await session.bash("cat out.txt")).stdout == "GRÜSSE"
        assert await session.read("out.txt") == "GRÜSSE".encode()


@pytest.mark.anyio
async def test_a_program_that_fails_says_where(scope: Scope) -> None:
    """A traceback is a result: exit code 1, with the line."""
    async with Sandbox().session(scope=scope) as session:
        result = await session.python("x = 1\n1 / 0\n")
    assert result.exit_code == 1
    assert "line 2" in result.stderr
    assert "ZeroDivisionError" in result.stderr


@pytest.mark.anyio
async def test_python_is_the_interpreter_that_runs_aibox(scope: Scope) -> None:
    """Same version, its own standard library, and none of its packages."""
    async with Sandbox().session(scope=scope) as session:
        result = await session.python("import sys, sqlite3, ssl, ctypes; print(*sys.version_info[:3]); import aibox")
    assert result.stdout.split() == [str(part) for part in sys.version_info[:3]]
    assert "No module named 'aibox'" in result.stderr


@pytest.mark.anyio
async def test_the_guest_can_open_its_standard_streams_by_name(scope: Scope) -> None:
    """/dev/stdin, /dev/stdout and /dev/stderr work, whoever runs the sandbox."""
    async with Sandbox().session(scope=scope) as session:
        result = await session.bash("echo out >/dev/stdout; echo err >/dev/stderr; echo piped | cat /dev/stdin")
    assert (result.stdout, result.stderr) == ("out\npiped\n", "err\n")


@pytest.mark.anyio
async def test_close_ends_every_session(scope: Scope) -> None:
    """Closing stops what runs, which gets a SandboxError; closing twice is allowed."""
    sandbox = Sandbox()
    failed: list[SandboxError] = []

    async def one() -> None:
        try:
            async with sandbox.session(scope=scope) as session:
                await session.bash("sleep 60")
        except SandboxError as error:
            failed.append(error)

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one)
            tasks.start_soon(one)
            while sum(held.session.busy for held in sandbox._held.values()) < 2:
                await anyio.sleep(0.05)
            await sandbox.close()
    await sandbox.close()
    assert len(failed) == 2


@pytest.mark.anyio
async def test_a_session_works_on_uvloop(tmp_path: Path) -> None:
    """The server's event loop runs code as well as asyncio's own."""
    code = (
        "import asyncio, uvloop\nfrom aibox.sandbox.sandbox import Sandbox\nfrom aibox.types import Scope\n"
        "async def main():\n    async with Sandbox().session(scope=Scope.local()) as session:\n"
        "        print((await session.python('print(6 * 7)')).stdout)\n"
        "uvloop.run(main())\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "42", done.stderr


@pytest.mark.anyio
async def test_where_user_namespaces_are_forbidden_nothing_runs() -> None:
    """It says so and what to do, for `available` and for a session; no code runs with less isolation."""
    bwrap = Runtime.candidates()[-1].bwrap_on_host
    code = (
        "import asyncio\nfrom aibox.errors import SandboxError\nfrom aibox.sandbox.sandbox import Sandbox\n"
        "from aibox.types import Scope\n"
        "async def main():\n    sandbox = Sandbox()\n    health = await sandbox.available()\n"
        "    print(health.ok, health.detail)\n"
        "    try:\n        async with sandbox.session(scope=Scope.local()) as s:\n"
        "            print('ran', await s.bash('id'))\n"
        "    except SandboxError as error:\n        print('refused:', error.hint)\n"
        "asyncio.run(main())\n"
    )
    command = [bwrap, "--unshare-user", "--disable-userns", "--uid", "7", "--gid", "7", "--dev-bind", "/", "/"]
    done = subprocess.run([*command, sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("False bubblewrap: code cannot be isolated here, so none is run"), (
        done.stdout,
        done.stderr,
    )
    assert "ran" not in done.stdout.split()
    assert "refused: " in done.stdout
    assert "apt install bubblewrap" in done.stdout


@pytest.mark.anyio
@pytest.mark.parametrize("system", ["darwin", "win32"])
async def test_another_system_is_refused(monkeypatch: pytest.MonkeyPatch, scope: Scope, system: str) -> None:
    """macOS and Windows have no namespaces: nothing runs, and the message says why."""
    monkeypatch.setattr(sys, "platform", system)
    sandbox = Sandbox()
    health = await sandbox.available()
    assert not health.ok
    assert "Linux namespaces" in health.detail
    with pytest.raises(SandboxError):
        async with sandbox.session(scope=scope):
            pass


@pytest.mark.anyio
async def test_without_bubblewrap_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, scope: Scope, tmp_path: Path
) -> None:
    """Neither on the system nor as a wheel: SandboxError whose hint is the line to type."""
    monkeypatch.setattr("aibox.sandbox.runtime._SEARCH", str(tmp_path))
    monkeypatch.setattr("aibox.sandbox.runtime.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SandboxError) as refused:
        async with Sandbox().session(scope=scope):
            pass
    assert refused.value.hint == 'apt install bubblewrap, or pip install "aibox-sdk[sandbox]"'


@pytest.mark.anyio
async def test_success_is_remembered_and_failure_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """`available` tries until it works, and then does not start a process again."""
    driver = Bubblewrap()
    with monkeypatch.context() as without:
        without.setattr(sys, "platform", "darwin")
        assert not (await driver.available()).ok
    assert (await driver.available()).ok
    monkeypatch.setattr(Runtime, "candidates", lambda: pytest.fail("tried again"))
    assert (await driver.available()).ok


@pytest.mark.anyio
async def test_a_command_must_be_one(scope: Scope) -> None:
    """An empty command, a name that is an option, and NUL are wiring errors."""
    async with Sandbox().session(scope=scope) as session:
        for argv in ((), ("-c",), ("echo", "a\0b")):
            with pytest.raises(ConfigError):
                await session.run(argv)


def test_repr_says_driver_and_limits() -> None:
    """What a person sees in a notebook."""
    text = repr(
        Sandbox("bubblewrap", limits=Limits(memory_mib=64, pids=8, wall_s=2.5, output_kib=16, workspace_mib=32))
    )
    assert text == "Sandbox(bubblewrap, memory 64 MiB, 8 processes, 2.5 s, output 16 KiB, workspace 32 MiB)"


def test_an_unknown_driver_is_refused() -> None:
    """A mistyped name is a ConfigError that names the known ones."""
    with pytest.raises(ConfigError, match="auto, bubblewrap or docker"):
        Sandbox("docker-ish")


@given(st.text(max_size=40) | st.lists(st.sampled_from(["..", ".", "a", "-rf", "/", "", "x y"])).map("/".join))
def test_a_path_is_inside_or_refused(path: str) -> None:
    """Whatever `inside` returns stays below the workspace, names something there, and is its own normal form."""
    try:
        normal = inside(path)
    except AccessError:
        return
    assert normal
    assert not normal.startswith("/")
    assert ".." not in normal.split("/")
    assert inside(normal) == normal


@pytest.mark.parametrize("unified", [False, True])
def test_groups_of_processes_that_are_gone_are_swept(tmp_path: Path, *, unified: bool) -> None:
    """Only ours, and only those whose process does not exist."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    for name in (f"aibox-{gone.pid}-1", "aibox-1-1", "other", "aibox-x"):
        (tmp_path / name).mkdir()
    ControlGroups([Place(tmp_path, unified, ("memory",), tmp_path)]).sweep()
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["aibox-1-1", "aibox-x", "other"]
