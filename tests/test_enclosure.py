"""`aibox seal -- COMMAND`: what the kernel holds, what the broker lets through, and what is on record."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from aibox import enclosure
from aibox.errors import ConfigError, StoreError

pytestmark = [pytest.mark.anyio, pytest.mark.loopback]

needs_namespaces = pytest.mark.skipif(
    sys.platform != "linux" or subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode != 0,
    reason="no user namespace can be made here",
)


class Log:
    def __init__(self, *, broken: bool = False) -> None:
        self.entries: list[tuple[str, dict[str, object]]] = []
        self.broken = broken

    async def __call__(self, kind: str, detail: dict[str, object]) -> None:
        if self.broken:
            raise StoreError("the disk is full")
        self.entries.append((kind, detail))


async def enclosed(code: str, *allow: str, log: Log | None = None, out: Path) -> Any:
    """What a program prints inside, as JSON."""
    program = f"import json, socket, os\ndef tell(x): open({str(out)!r}, 'w').write(json.dumps(x))\n{code}"
    assert await enclosure.run([sys.executable, "-c", program], enclosure.listed(allow), record=log or Log()) == 0
    return json.loads(out.read_text())


async def echo() -> tuple[asyncio.Server, int]:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"you said " + await reader.read(100))
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    return server, server.sockets[0].getsockname()[1]


TRY = """
def attempt(host, port, family=socket.AF_INET):
    s = socket.socket(family, socket.SOCK_STREAM); s.settimeout(60)
    try: s.connect((host, port)); s.sendall(b"hi"); return s.recv(100).decode()
    except OSError as e: return type(e).__name__
"""


@needs_namespaces
async def test_nothing_is_reached_but_what_is_listed(tmp_path: Path) -> None:
    """The host's own loopback, the internet and IPv6 are all closed; there is one interface."""
    server, port = await echo()
    code = f"""{TRY}
lines = open("/proc/self/net/dev").read().splitlines()[2:]
tell([attempt("127.0.0.1", {port}), attempt("8.8.8.8", 53), attempt("2001:4860:4860::8888", 53, socket.AF_INET6),
      [line.split(":")[0].strip() for line in lines]])"""
    found = await enclosed(code, out=tmp_path / "out")
    assert found[:3] == ["ConnectionRefusedError", "OSError", "OSError"]
    assert found[3] == ["lo"]
    server.close()


@needs_namespaces
async def test_a_child_in_another_language_is_held_as_well(tmp_path: Path) -> None:
    """A shell's own sockets fail too, for the kernel holds them and not the interpreter."""
    script = "exec 3<>/dev/tcp/8.8.8.8/53 && echo out || echo held"
    code = f"import subprocess\ntell(subprocess.run(['bash', '-c', {script!r}], capture_output=True, text=True).stdout)"
    assert await enclosed(code, out=tmp_path / "out") == "held\n"


@needs_namespaces
async def test_a_listed_host_is_reached_by_its_name_and_on_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program connects as it always does; the broker connects on, and has recorded it before."""
    server, port = await echo()
    connect = asyncio.open_connection

    async def there(host: str, to: int) -> Any:
        assert (host, to) == ("db.internal", 5432)
        return await connect("127.0.0.1", port)

    monkeypatch.setattr(asyncio, "open_connection", there)
    log = Log()
    code = f"""{TRY}
def look(name):
    try: return socket.gethostbyname(name)
    except OSError: return "unknown"
tell([attempt("db.internal", 5432), attempt("db.internal", 5433), look("evil.example")])"""
    found = await enclosed(code, "db.internal:5432", log=log, out=tmp_path / "out")
    assert found == ["you said hi", "ConnectionRefusedError", "unknown"]
    assert log.entries[0] == ("seal.connected", {"host": "db.internal", "port": 5432})
    assert ("seal.refused", {"host": "evil.example", "port": 0}) in log.entries
    server.close()


@needs_namespaces
async def test_a_listed_address_is_reached_as_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An address outside stands on the inside's loopback, on its one port."""
    server, port = await echo()
    connect = asyncio.open_connection
    monkeypatch.setattr(asyncio, "open_connection", lambda host, to: connect("127.0.0.1", port))
    code = f'{TRY}\ntell([attempt("10.9.8.7", 8000), attempt("10.9.8.7", 8001)])'
    assert await enclosed(code, "10.9.8.7:8000", out=tmp_path / "out") == ["you said hi", "ConnectionRefusedError"]
    server.close()


@needs_namespaces
async def test_an_ipv6_address_is_reached_as_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In any spelling of it, on its one port; another address of its network is not there. It is on record."""
    server, port = await echo()
    connect = asyncio.open_connection
    asked: list[Any] = []

    def there(host: str, to: int) -> Any:
        asked.append((host, to))
        return connect("127.0.0.1", port)

    monkeypatch.setattr(asyncio, "open_connection", there)
    log = Log()
    code = f"""{TRY}
six = socket.AF_INET6
tell([attempt("fd00:0::7", 443, six), attempt("fd00::7", 444, six), attempt("fd00::8", 443, six)])"""
    found = await enclosed(code, "[FD00:0:0::7]:443", log=log, out=tmp_path / "out")
    assert found == ["you said hi", "ConnectionRefusedError", "OSError"]
    assert asked == [("fd00::7", 443)]
    assert log.entries == [("seal.connected", {"host": "fd00::7", "port": 443})]
    server.close()


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ("10.0.0.0/8:443", "network"),
        ("[fd00::]/64:443", "network"),
        ("db.internal:5000-6000", "range"),
        ("[::1]:443", "loopback"),
        ("[fe80::1]:443", "no one host"),
        ("[::ffff:10.0.0.7]:443", "no one host"),
        ("0.0.0.0:443", "no one host"),
        ("fd00::7:443", "no host and port"),
        ("[fd00::7]", "no host and port"),
    ],
)
def test_what_cannot_be_listed_is_refused_with_its_reason(entry: str, says: str) -> None:
    """Before anything runs, and with the words for what to write instead."""
    with pytest.raises(ConfigError, match=says):
        enclosure.listed([entry])


@needs_namespaces
async def test_what_cannot_be_recorded_is_not_connected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chain that fails keeps the broker shut."""

    async def never(*_: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr(asyncio, "open_connection", never)
    code = f'{TRY}\ntell(attempt("10.9.8.7", 8000))'
    found = await enclosed(code, "10.9.8.7:8000", log=Log(broken=True), out=tmp_path / "out")
    assert found in ("", "ConnectionResetError")


@needs_namespaces
async def test_the_exit_code_is_the_commands_own(tmp_path: Path) -> None:
    """Also when a signal ends it, or when there is no such command."""
    for command, code in ((["sh", "-c", "exit 3"], 3), (["sh", "-c", "kill -9 $$"], 137), (["no-such-thing"], 127)):
        assert await enclosure.run(command, [], record=Log()) == code


@needs_namespaces
def test_the_command_line_seals_and_records(tmp_path: Path) -> None:
    """End to end: the command runs, cannot get out, and the chain holds."""
    env = {**os.environ, "AIBOX_HOME": str(tmp_path)}
    program = "import socket\ntry: socket.create_connection(('8.8.8.8', 53), 2)\nexcept OSError: raise SystemExit(5)"
    command = [
        sys.executable,
        "-m",
        "aibox",
        "seal",
        "--allow",
        "db.internal:5432",
        "--",
        sys.executable,
        "-c",
        program,
    ]
    assert subprocess.run(command, env=env, timeout=300).returncode == 5


@pytest.mark.parametrize(
    "entry", ["db", "db:0", "db:x", ":80", "db:99999", "[::1]:80", "127.0.0.1:80", "a b:80", "*.x:80"]
)
def test_a_list_that_cannot_be_read_is_refused(entry: str) -> None:
    """A host has a name or an IPv4 address, and a port; nothing is run with half of a list."""
    with pytest.raises(ConfigError):
        enclosure.listed([entry])
