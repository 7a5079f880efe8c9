"""The seal: what it refuses, what it lets pass, whom it names. Each sealed process is a child of its own.

Where the system lets us, a child lives in a network namespace with loopback only, so that a test that fails sends
nothing either; all targets are documentation addresses (RFC 5737, RFC 3849) and names under `.invalid` (RFC 2606).
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import textwrap
from functools import cache
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import aibox
from aibox.errors import ConfigError, EgressError
from aibox.sealing import SealError, _entry, _Gate, telemetry_off

LOOPS = ("asyncio", "uvloop")
ROOT = Path(aibox.__file__).parent.parent

PRELUDE = """
import asyncio, fcntl, json, os, socket, struct, sys, threading
import aibox.sealing as s

def interface(request, name, value):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, request, struct.pack("16s24s", name, value))

def address(text):
    return struct.pack("HH4s", socket.AF_INET, 0, socket.inet_aton(text))

if os.environ.get("ISOLATED"):
    interface(0x8914, b"lo", struct.pack("H", 0x1 | 0x8 | 0x40))    # SIOCSIFFLAGS: up, loopback, running
    interface(0x8916, b"lo:1", address("10.9.8.7"))                 # SIOCSIFADDR
    interface(0x891C, b"lo:1", address("255.255.255.255"))          # SIOCSIFNETMASK

def outcome(call):
    before = len(s.attempts())
    try:
        result = call()
        error = None
    except Exception as caught:
        result, error = None, caught
    return {
        "result": repr(result),
        "error": type(error).__name__,
        "os_error": isinstance(error, OSError),
        "said": str(error),
        "attempts": [(a.operation, a.target, a.module) for a in s.attempts()[before:]],
    }

def new_loop(name):
    if name == "asyncio":
        return asyncio.new_event_loop()
    import uvloop
    return uvloop.new_event_loop()

def run(coroutine, loop):
    with asyncio.Runner(loop_factory=lambda: new_loop(loop)) as runner:
        return runner.run(coroutine)

def report(value):
    print(json.dumps(value))
"""


@cache
def _namespaces() -> bool:
    """Whether this user may make network namespaces here."""
    if not shutil.which("unshare"):
        return False
    return subprocess.run(["unshare", "-rnm", "true"], capture_output=True, check=False).returncode == 0


def child(code: str, *arguments: str, hosts: Path | None = None, path: Path | None = None) -> Any:
    """What a fresh interpreter reports that runs `code`; `hosts` replaces /etc/hosts for it."""
    command = [sys.executable, "-W", "error", "-c", PRELUDE + textwrap.dedent(code), *arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(str(p) for p in (ROOT, path) if p)}
    if _namespaces():
        environment["ISOLATED"] = "1"
        if hosts:
            command = ["sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"', str(hosts), *command]
        command = ["unshare", "-rnm", *command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


needs_namespaces = pytest.mark.skipif(not _namespaces(), reason="needs network namespaces")


# --- what plain Python is refused --------------------------------------------------------------------------------

TCP = "socket.socket()"
UDP = "socket.socket(socket.AF_INET, socket.SOCK_DGRAM)"
TCP6 = "socket.socket(socket.AF_INET6)"

SYNC = {
    "connect": (f'{TCP}.connect(("192.0.2.1", 80))', "connect to", "192.0.2.1:80"),
    "connect by name": (f'{TCP}.connect(("a.invalid", 80))', "connect to", "a.invalid:80"),
    "connect_ex": (f'{TCP}.connect_ex(("192.0.2.1", 80))', "connect to", "192.0.2.1:80"),
    "connect_ex by name": (f'{TCP}.connect_ex(("a.invalid", 80))', "connect to", "a.invalid:80"),
    "connect of the C type": (
        '__import__("_socket").socket().connect(("192.0.2.1", 80))',
        "connect to",
        "192.0.2.1:80",
    ),
    "connect to every address": (f'{TCP}.connect(("0.0.0.0", 80))', "connect to", "0.0.0.0:80"),
    "connect to no address": (f'{TCP}.connect(("", 80))', "connect to", ":80"),
    "connect non-blocking": (
        '(k := socket.socket(), k.setblocking(False), k.connect(("192.0.2.1", 80)))',
        "connect to",
        "192.0.2.1:80",
    ),
    "sendto": (f'{UDP}.sendto(b"x", ("192.0.2.1", 53))', "send to", "192.0.2.1:53"),
    "sendto with flags": (f'{UDP}.sendto(b"x", 0, ("192.0.2.1", 53))', "send to", "192.0.2.1:53"),
    "sendto by name": (f'{UDP}.sendto(b"x", ("a.invalid", 53))', "send to", "a.invalid:53"),
    "sendto broadcast": (f'{UDP}.sendto(b"x", ("<broadcast>", 53))', "send to", "<broadcast>:53"),
    "sendmsg": (f'{UDP}.sendmsg([b"x"], [], 0, ("192.0.2.1", 53))', "send to", "192.0.2.1:53"),
    "sendmsg by name": (f'{UDP}.sendmsg([b"x"], [], 0, ("a.invalid", 53))', "send to", "a.invalid:53"),
    "bind by name": (f'{TCP}.bind(("a.invalid", 0))', "look up", "a.invalid"),
    "getaddrinfo": ('socket.getaddrinfo("a.invalid", 443)', "look up", "a.invalid"),
    "getaddrinfo of bytes": ('socket.getaddrinfo(b"a.invalid", 443)', "look up", "a.invalid"),
    "gethostbyname": ('socket.gethostbyname("a.invalid")', "look up", "a.invalid"),
    "gethostbyname_ex": ('socket.gethostbyname_ex("a.invalid")', "look up", "a.invalid"),
    "gethostbyaddr": ('socket.gethostbyaddr("192.0.2.1")', "look up", "192.0.2.1"),
    "gethostbyaddr by name": ('socket.gethostbyaddr("a.invalid")', "look up", "a.invalid"),
    "getnameinfo": ('socket.getnameinfo(("192.0.2.1", 80), 0)', "look up", "192.0.2.1"),
    "create_connection": ('socket.create_connection(("a.invalid", 80))', "look up", "a.invalid"),
    "IPv6": (f'{TCP6}.connect(("2001:db8::1", 80))', "connect to", "[2001:db8::1]:80"),
    "IPv6 with a zone": (f'{TCP6}.connect(("fe80::1%lo", 80))', "connect to", "[fe80::1]:80"),
    "IPv4 in IPv6": (f'{TCP6}.connect(("::ffff:192.0.2.1", 80))', "connect to", "192.0.2.1:80"),
    "NAT64 of loopback": (f'{TCP6}.connect(("64:ff9b::7f00:1", 80))', "connect to", "[64:ff9b::7f00:1]:80"),
    "decimal": (f'{TCP}.connect(("3221225985", 80))', "connect to", "192.0.2.1:80"),
    "hexadecimal": (f'{TCP}.connect(("0xc0000201", 80))', "connect to", "192.0.2.1:80"),
    "short": (f'{TCP}.connect(("192.0.513", 80))', "connect to", "192.0.2.1:80"),
    "octal, which systems read differently": (f'{TCP}.connect(("0177.0.0.1", 80))', "connect to", "0177.0.0.1:80"),
    "loopback with a dot at its end": ('socket.getaddrinfo("127.0.0.1.", 80)', "look up", "127.0.0.1."),
    "loopback with a tail": ('socket.getaddrinfo("127.0.0.1 a.invalid", 80)', "look up", "127.0.0.1 a.invalid"),
    "loopback with a zone": ('socket.getaddrinfo("127.0.0.1%a.invalid", 80)', "look up", "127.0.0.1%a.invalid"),
    "a name in localhost": ('socket.getaddrinfo("a.localhost", 80)', "look up", "a.localhost"),
    "a name that begins with localhost": (
        'socket.getaddrinfo("localhost.invalid", 80)',
        "look up",
        "localhost.invalid",
    ),
    "localhost with a dot, which /etc/hosts does not know": (
        'socket.getaddrinfo("localhost.", 80)',
        "look up",
        "localhost.",
    ),
    "dot at the end": ('socket.getaddrinfo("a.invalid.", 80)', "look up", "a.invalid."),
    "upper case": ('socket.getaddrinfo("A.INVALID", 80)', "look up", "a.invalid"),
    "IDN": ('socket.getaddrinfo("bücher.invalid", 80)', "look up", "xn--bcher-kva.invalid"),
    "wide digits": (f'{TCP}.connect(("１９２．０．２．１", 80))', "connect to", "192.0.2.1:80"),
    "an unknown family": (
        "socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).connect((2, 80))",
        "connect to",
        "(2, 80) in a socket of family 40",
    ),
    "urllib": ('__import__("urllib.request").request.urlopen("http://a.invalid/")', "look up", "a.invalid"),
    "http.client": (
        '__import__("http.client").client.HTTPConnection("192.0.2.1").request("GET", "/")',
        "connect to",
        "192.0.2.1:80",
    ),
    "ssl": (
        'with_tls().connect(("192.0.2.1", 443))',
        "connect to",
        "192.0.2.1:443",
    ),
    "httpx2": ('__import__("httpx2").get("http://192.0.2.1/")', "connect to", "192.0.2.1:80"),
    "a thread pool": (
        'in_pool(socket.create_connection, ("192.0.2.1", 80))',
        "connect to",
        "192.0.2.1:80",
    ),
    "a forked child": ("in_fork()", "connect to", "192.0.2.1:80"),
}


@pytest.fixture(scope="module")
def sync_outcomes() -> Any:
    return child(
        """
        import concurrent.futures, ssl

        def with_tls():
            return ssl.create_default_context().wrap_socket(socket.socket(), server_hostname="a.invalid")

        def in_pool(*call):
            with concurrent.futures.ThreadPoolExecutor() as pool:
                return pool.submit(*call).result()

        def in_fork():
            # A child's attempts are its own: what it met comes back through its exit code.
            if (pid := os.fork()) == 0:
                try:
                    socket.socket().connect(("192.0.2.1", 80))
                except s.SealError:
                    os._exit(7)
                os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
            socket.socket().connect(("192.0.2.1", 80))

        s.seal()
        report({name: outcome(lambda: eval(code)) for name, code in json.loads(sys.argv[1]).items()})
        """,
        json.dumps({name: code for name, (code, *_) in SYNC.items()}),
    )


@pytest.mark.parametrize("name", SYNC)
def test_a_sealed_process_refuses(sync_outcomes: Any, name: str) -> None:
    """Every way in which plain Python reaches out is refused, as an OSError, and recorded once with its target."""
    _, operation, target = SYNC[name]
    got = sync_outcomes[name]
    assert got["os_error"] or got["error"] == "ConnectError", got
    assert [attempt[:2] for attempt in got["attempts"]] == [[operation, target]]


def test_a_name_is_refused_before_it_is_resolved(sync_outcomes: Any) -> None:
    """A socket given a name raises the refusal itself: had the resolver been asked first, its error would come."""
    for name in ("connect by name", "connect_ex by name", "sendto by name", "sendmsg by name", "bind by name"):
        assert sync_outcomes[name]["error"] == "SealError", name


# --- what event loops are refused --------------------------------------------------------------------------------

ASYNC = {
    "open_connection by name": ('asyncio.open_connection("a.invalid", 80)', "a.invalid"),
    "open_connection by address": ('asyncio.open_connection("192.0.2.1", 80)', "192.0.2.1:80"),
    "open_connection by IPv6": ('asyncio.open_connection("2001:db8::1", 80)', "[2001:db8::1]:80"),
    "open_connection with tls": ('asyncio.open_connection("192.0.2.1", 443, ssl=True)', "192.0.2.1:443"),
    "create_connection in decimal": ('loop.create_connection(asyncio.Protocol, "3221225985", 80)', "192.0.2.1:80"),
    "create_connection from a name": (
        'loop.create_connection(asyncio.Protocol, "127.0.0.1", 80, local_addr=("a.invalid", 0))',
        "a.invalid",
    ),
    "getaddrinfo": ('loop.getaddrinfo("a.invalid", 80)', "a.invalid"),
    "getnameinfo": ('loop.getnameinfo(("192.0.2.1", 80))', "192.0.2.1"),
    "sock_connect": ('loop.sock_connect(nonblocking(), ("192.0.2.1", 80))', "192.0.2.1:80"),
    "sock_connect by name": ('loop.sock_connect(nonblocking(), ("a.invalid", 80))', "a.invalid"),
    "datagram endpoint": (
        'loop.create_datagram_endpoint(asyncio.DatagramProtocol, remote_addr=("192.0.2.1", 53))',
        "192.0.2.1:53",
    ),
    "datagram endpoint by name": (
        'loop.create_datagram_endpoint(asyncio.DatagramProtocol, remote_addr=("a.invalid", 53))',
        "a.invalid",
    ),
    "datagram endpoint on a name": (
        'loop.create_datagram_endpoint(asyncio.DatagramProtocol, local_addr=("a.invalid", 0))',
        "a.invalid",
    ),
    "server on a name": ('loop.create_server(asyncio.Protocol, "a.invalid", 0)', "a.invalid"),
    "server on several": ('loop.create_server(asyncio.Protocol, ["127.0.0.1", "a.invalid"], 0)', "a.invalid"),
    "aiohttp by name": ('aiohttp_get("http://a.invalid/")', "a.invalid"),
    "aiohttp by address": ('aiohttp_get("http://192.0.2.1/")', "192.0.2.1:80"),
    "httpx2 by name": ('httpx2_get("http://a.invalid/")', "a.invalid"),
    "httpx2 by address": ('httpx2_get("http://192.0.2.1/")', "192.0.2.1:80"),
    "anyio by address": ('__import__("anyio").connect_tcp("192.0.2.1", 80)', "192.0.2.1:80"),
    "a thread": ('asyncio.to_thread(socket.create_connection, ("192.0.2.1", 80))', "192.0.2.1:80"),
}


@pytest.fixture(scope="module", params=LOOPS)
def async_outcomes(request: pytest.FixtureRequest) -> Any:
    return child(
        """
        import aiohttp, httpx2

        async def aiohttp_get(url):
            async with aiohttp.ClientSession() as session, session.get(url) as response:
                return response.status

        async def httpx2_get(url):
            async with httpx2.AsyncClient() as client:
                return await client.get(url)

        def nonblocking():
            sock = socket.socket()
            sock.setblocking(False)
            return sock

        async def attempt(code):
            loop = asyncio.get_running_loop()
            return await eval(code, globals(), {"loop": loop})

        s.seal()
        report({name: outcome(lambda: run(attempt(c), sys.argv[1])) for name, c in json.loads(sys.argv[2]).items()})
        """,
        request.param,
        json.dumps({name: code for name, (code, _) in ASYNC.items()}),
    )


@pytest.mark.parametrize("name", ASYNC)
def test_sealed_loops_refuse(async_outcomes: Any, name: str) -> None:
    """Under asyncio and under uvloop, by name and by address, through clients and without: refused as an OSError."""
    got = async_outcomes[name]
    assert got["os_error"] or got["error"] == "ConnectError", got
    # Some start with a look-up and others do not: the host of the refusal is the same.
    assert {target.removesuffix(":80").removesuffix(":53") for _, target, _ in got["attempts"]} == {
        ASYNC[name][1].removesuffix(":80").removesuffix(":53")
    }


@pytest.mark.parametrize("loop", LOOPS)
def test_datagrams_to_anywhere_never_leave(loop: str) -> None:
    """An unconnected endpoint sends nothing: asyncio refuses each datagram, uvloop the endpoint as a whole."""
    got = child(
        """
        async def scatter():
            transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
                asyncio.DatagramProtocol, local_addr=("127.0.0.1", 0))
            try:
                transport.sendto(b"x", ("192.0.2.1", 53))
            finally:
                transport.close()

        s.seal()
        report(outcome(lambda: run(scatter(), sys.argv[1])))
        """,
        loop,
    )
    expected = "192.0.2.1:53" if loop == "asyncio" else "any address"
    assert [(operation, target.partition(",")[0]) for operation, target, _ in got["attempts"]] == [
        ("send to", expected)
    ]
    assert loop == "asyncio" or "remote_addr" in got["said"]


def test_a_seal_taken_inside_a_running_loop_holds_it() -> None:
    """seal() called while uvloop runs holds the loop that runs."""
    got = child(
        """
        async def main():
            s.seal()
            await asyncio.open_connection("a.invalid", 80)

        report(outcome(lambda: run(main(), "uvloop")))
        """
    )
    assert got["error"] == "SealError"


def test_a_loop_that_cannot_be_held_is_refused() -> None:
    """Where the running loop is native code that lets nothing be put before it, seal() raises and does not pretend."""
    got = child(
        """
        import uvloop.loop

        async def main():
            s.seal()

        def bare():
            with asyncio.Runner(loop_factory=uvloop.loop.Loop) as runner:
                runner.run(main())

        report([outcome(bare)["error"], s.sealed()])
        """
    )
    assert got == ["ConfigError", False]


# --- what passes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loop", LOOPS)
def test_loopback_passes_in_every_spelling(loop: str) -> None:
    """A server on loopback answers under any name and number that means loopback."""
    spellings = ["127.0.0.1", "localhost", "LOCALHOST", "127.1", "0x7f.1", "2130706433", "127.9.9.9"]
    got = child(
        """
        async def echo(reader, writer):
            writer.write(await reader.readline())
            writer.close()

        async def say(host, port):
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(b"hello\\n")
            line = await reader.readline()
            writer.close()
            return line.decode()

        async def main():
            server = await asyncio.start_server(echo, "0.0.0.0", 0)
            port = server.sockets[0].getsockname()[1]
            answers = {host: await say(host, port) for host in json.loads(sys.argv[2])}
            server.close()
            return answers

        s.seal()
        report([run(main(), sys.argv[1]), s.attempts()])
        """,
        loop,
        json.dumps(spellings),
    )
    assert got == [dict.fromkeys(spellings, "hello\n"), []]


@pytest.mark.parametrize("loop", LOOPS)
def test_clients_reach_a_server_on_loopback(loop: str) -> None:
    """aiohttp and httpx2 talk to a server on loopback as if nothing were sealed."""
    got = child(
        """
        import aiohttp, httpx2
        from aiohttp import web

        async def main():
            app = web.Application()
            async def answer(request):
                return web.Response(text="here")
            app.router.add_get("/", answer)
            runner = web.AppRunner(app)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            url = f"http://localhost:{runner.addresses[0][1]}/"
            async with aiohttp.ClientSession() as session, session.get(url) as response:
                first = await response.text()
            async with httpx2.AsyncClient() as client:
                second = (await client.get(url)).text
            await runner.cleanup()
            return [first, second, s.attempts()]

        s.seal()
        report(run(main(), sys.argv[1]))
        """,
        loop,
    )
    assert got == ["here", "here", []]


@pytest.mark.parametrize("loop", LOOPS)
def test_unix_sockets_and_pairs_pass(loop: str, tmp_path: Path) -> None:
    """Unix sockets, socket pairs and datagrams over loopback are no egress."""
    got = child(
        """
        async def main():
            transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
                asyncio.DatagramProtocol, remote_addr=udp.getsockname())
            transport.sendto(b"3")
            transport.close()

            async def echo(reader, writer):
                writer.write(await reader.readline())
                writer.close()
            server = await asyncio.start_unix_server(echo, sys.argv[2])
            reader, writer = await asyncio.open_unix_connection(sys.argv[2])
            writer.write(b"hello\\n")
            line = await reader.readline()
            writer.close()
            server.close()
            return line.decode()

        s.seal()
        a, b = socket.socketpair()
        a.send(b"1")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.bind(("127.0.0.1", 0))
            udp.sendto(b"2", udp.getsockname())
            got = [run(main(), sys.argv[1]), b.recv(1), udp.recv(1), udp.recv(1)]
        report([str(got), s.attempts()])
        """,
        loop,
        str(tmp_path / "socket"),
    )
    assert got == [str(["hello\n", b"1", b"2", b"3"]), []]


def test_a_connection_that_exists_stays() -> None:
    """Sealing touches no open connection: it is the kernel's, and costs nothing more than before."""
    got = child(
        """
        with socket.create_server(("127.0.0.1", 0)) as server:
            client = socket.create_connection(server.getsockname())
            peer, _ = server.accept()
            s.seal()
            client.sendall(b"still")
            report([peer.recv(5).decode(), s.attempts()])
        """
    )
    assert got == ["still", []]


# --- the list ----------------------------------------------------------------------------------------------------


@pytest.fixture
def hosts(tmp_path: Path) -> Path:
    path = tmp_path / "hosts"
    path.write_text("127.0.0.1 localhost\n10.9.8.7 db.aibox.invalid other.aibox.invalid\n")
    return path


LISTED = """
    server = socket.create_server(("10.9.8.7", 0))
    port = server.getsockname()[1]
    threading.Thread(target=lambda: [server.accept() for _ in range(9)], daemon=True).start()

    def connected(host, port):
        async def main():
            _, writer = await asyncio.open_connection(host, port)
            writer.close()
        return outcome(lambda: run(main(), sys.argv[1]))["error"]
"""


@needs_namespaces
@pytest.mark.parametrize("loop", LOOPS)
def test_an_allowed_name_opens_what_it_resolves_to(loop: str, hosts: Path) -> None:
    """A listed name connects; its address was shut before the look-up, is open after it, and no other name is."""
    got = child(
        textwrap.dedent(LISTED)
        + textwrap.dedent("""
        s.seal([f"DB.aibox.invalid:{port}"])
        before = connected("10.9.8.7", port)
        by_name = connected("db.aibox.invalid", port)
        found = socket.gethostbyname("DB.AIBOX.INVALID")
        after = connected(found, port)
        other_port = connected(found, port + 1)
        other_name = connected("other.aibox.invalid", port)
        report([before, by_name, after, other_port, other_name])
        """),
        loop,
        hosts=hosts,
    )
    assert got == ["SealError", "NoneType", "NoneType", "SealError", "SealError"]


@needs_namespaces
@pytest.mark.parametrize("loop", LOOPS)
def test_the_clients_of_a_listed_name_connect(loop: str, hosts: Path) -> None:
    """A client that resolves first and connects to the address afterwards reaches a listed name."""
    got = child(
        textwrap.dedent(LISTED)
        + textwrap.dedent("""
        async def main():
            loop = asyncio.get_running_loop()
            found = await loop.getaddrinfo("db.aibox.invalid", port, type=socket.SOCK_STREAM)
            with socket.socket() as sock:
                sock.setblocking(False)
                await loop.sock_connect(sock, found[0][4])

        s.seal(["db.aibox.invalid"])
        report([outcome(lambda: run(main(), sys.argv[1])), port])
        """),
        loop,
        hosts=hosts,
    )
    assert got[0]["error"] == "NoneType", got
    assert got[0]["attempts"] == []


@needs_namespaces
@pytest.mark.parametrize("loop", LOOPS)
def test_sealing_again_only_narrows(loop: str) -> None:
    """A second call takes away what it does not list, and lists in vain what the first did not."""
    got = child(
        textwrap.dedent(LISTED)
        + textwrap.dedent("""
        s.seal(["10.0.0.0/8"])
        first = connected("10.9.8.7", port)
        s.seal([f"10.9.8.7:{port}", "192.0.2.1"])
        second = [connected("10.9.8.7", port), connected("10.9.8.7", port + 1), connected("192.0.2.1", 80)]
        s.seal()
        third = connected("10.9.8.7", port)
        s.seal(["10.0.0.0/8"])
        report([first, second, third, connected("10.9.8.7", port)])
        """),
        loop,
    )
    assert got == ["NoneType", ["NoneType", "SealError", "SealError"], "SealError", "SealError"]


def gate(*lists: list[str]) -> _Gate:
    """The decision alone, without a process to hold."""
    made = _Gate()
    made.lists = tuple(frozenset(map(_entry, entries)) for entries in lists)
    return made


def admits(made: _Gate, host: object, port: object = 443) -> bool:
    try:
        made.check_host("connect to", host, port)
    except SealError:
        return False
    return True


@pytest.mark.parametrize(
    ("entry", "inside", "outside"),
    [
        ("db.example", ("db.example", 1), ("x.db.example", 1)),
        ("Db.Example.", ("DB.EXAMPLE", 1), ("db.example.org", 1)),
        ("db.example:5432", ("db.example.", 5432), ("db.example", 5433)),
        ("db.example:5432", ("db.example", "5432"), ("db.example", "postgresql")),
        ("bücher.example", ("xn--bcher-kva.example", 1), ("bucher.example", 1)),
        ("my_db", ("my_db", 1), ("my-db", 1)),
        ("192.0.2.1", ("192.0.2.1", 1), ("192.0.2.2", 1)),
        ("192.0.2.1", ("::ffff:192.0.2.1", 1), ("64:ff9b::c000:201", 1)),
        ("192.0.2.1:80", ("3221225985", 80), ("192.0.2.1", 81)),
        ("192.0.2.0/24", ("192.0.2.255", 1), ("192.0.3.0", 1)),
        ("192.0.2.0/24:443", ("192.0.2.9", 443), ("192.0.2.9", 80)),
        ("2001:db8::/32", ("2001:db8:1::1", 1), ("2001:db9::1", 1)),
        ("[2001:db8::1]:443", ("2001:DB8::1", 443), ("2001:db8::1", 80)),
        ("::ffff:192.0.2.0/120", ("192.0.2.7", 1), ("192.0.3.7", 1)),
        ("fe80::/10", ("fe80::1%eth0", 1), ("fec0::1", 1)),
    ],
)
def test_an_entry_admits_what_it_says(entry: str, inside: tuple[str, Any], outside: tuple[str, Any]) -> None:
    """Names, ports, addresses and networks on the list are read as an operator means them, and no further."""
    assert admits(gate([entry]), *inside)
    assert not admits(gate([entry]), *outside)


@pytest.mark.parametrize(
    "entry",
    ["", " ", "http://db.example/", "db.example/x", "*.example", "db.example:", "db.example:0", "db.example:65536",
     "db.example:x", ":443", "10.0.0.1/8", "10.0.0.0/33", "0x7f.1", "2130706433", "0177.0.0.1", "256.1.1.1",
     "[::1", "::1]:80", "fe80::1%eth0", "a b", "a@b", "-a.example", "a..b", "a\x00b"],
)  # fmt: skip
def test_an_unreadable_entry_is_refused(entry: str) -> None:
    """What is no host, address or network, or could be read in two ways, is a ConfigError that says what to write."""
    with pytest.raises(ConfigError) as caught:
        _entry(entry)
    assert caught.value.hint


def test_a_list_is_not_a_text() -> None:
    """seal("host") would be a list of letters; it is a ConfigError, and nothing is sealed."""
    got = child('report([outcome(lambda: s.seal("db:1")), s.sealed(), s.attempts()])')
    assert got[0]["error"] == "ConfigError"
    assert got[1:] == [False, []]


def test_an_entry_that_cannot_be_read_seals_nothing() -> None:
    """seal() either holds or raises; a list with one bad entry changes nothing."""
    got = child('report([outcome(lambda: s.seal(["10.0.0.7", "http://x/"]))["error"], s.sealed()])')
    assert got == ["ConfigError", False]


octets = st.integers(0, 2**32 - 1)


@given(octets)
def test_all_spellings_of_an_address_are_decided_alike(number: int) -> None:
    """Dotted, decimal, hexadecimal, short and IPv4-in-IPv6 forms mean one address and get one answer."""
    address = IPv4Address(number)
    a, b = number >> 24, number & 0xFFFFFF
    made = gate(["0.0.0.0/1"])
    spellings = [str(address), str(number), hex(number), f"{a}.{b}", f"{a:#x}.{b:#X}", f"::ffff:{address}"]
    assert {admits(made, text) for text in spellings} == {address.is_loopback or number < 2**31}


entries = st.lists(st.sampled_from(["a.example", "b.example:1", "10.0.0.0/8", "10.1.0.0/16:1", "10.1.2.3"]))


@given(entries, entries, st.sampled_from(["a.example", "b.example", "10.0.0.1", "10.1.2.3"]), st.integers(1, 2))
def test_two_lists_admit_what_each_admits(first: list[str], second: list[str], host: str, port: int) -> None:
    """Sealing twice is the intersection, whatever the order."""
    both = admits(gate(first), host, port) and admits(gate(second), host, port)
    assert admits(gate(first, second), host, port) == admits(gate(second, first), host, port) == both


def test_the_addresses_of_a_name_are_forgotten_oldest_first() -> None:
    """What allowed names resolved to is kept in a bounded map; what falls out of it is shut, not open."""
    made = gate(["db.example"])
    made.remember("db.example", [str(IPv4Address(0x0A000000 + n)) for n in range(5000)])
    assert not admits(made, "10.0.0.0")
    assert admits(made, str(IPv4Address(0x0A000000 + 4999)))


def test_refusals_are_kept_in_a_bounded_list() -> None:
    """A dependency that tries for ever fills no memory."""
    made = gate([])
    for port in range(1001):
        assert not admits(made, "192.0.2.1", port)
    assert len(made.attempts) == 1000
    assert made.attempts[-1].target == "192.0.2.1:1000"


# --- who is named ------------------------------------------------------------------------------------------------


@pytest.fixture
def chatty(tmp_path: Path) -> Path:
    """A dependency that phones home, in every way it knows."""
    package = tmp_path / "chatty"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "report.py").write_text(
        textwrap.dedent("""
        import asyncio, socket, urllib.request

        def plain():
            urllib.request.urlopen("http://stats.invalid/")

        async def loop():
            await asyncio.open_connection("stats.invalid", 80)

        async def in_a_task():
            await asyncio.gather(loop())

        async def with_aiohttp(url="http://stats.invalid/"):
            import aiohttp
            async with aiohttp.ClientSession() as session, session.get(url) as response:
                await response.read()

        async def with_httpx2(url="http://stats.invalid/"):
            import httpx2
            async with httpx2.AsyncClient() as client:
                await client.get(url)
        """)
    )
    return tmp_path


@pytest.mark.parametrize("loop", LOOPS)
def test_the_module_that_tried_is_named(loop: str, chatty: Path) -> None:
    """Whatever client it uses, and whoever started the loop, the dependency is named and not what it stands on."""
    got = child(
        """
        from chatty import report as c
        s.seal()
        loop = sys.argv[1]
        literal = "http://192.0.2.1/"
        found = {
            "plain": outcome(c.plain),
            "loop": outcome(lambda: run(c.loop(), loop)),
            "in_a_task": outcome(lambda: run(c.in_a_task(), loop)),
            "with_aiohttp": outcome(lambda: run(c.with_aiohttp(), loop)),
            "with_aiohttp by address": outcome(lambda: run(c.with_aiohttp(literal), loop)),
            "with_httpx2": outcome(lambda: run(c.with_httpx2(), loop)),
            "with_httpx2 by address": outcome(lambda: run(c.with_httpx2(literal), loop)),
        }
        report({way: sorted({module for *_, module in o["attempts"]}) for way, o in found.items()})
        """,
        loop,
        path=chatty,
    )
    assert got == {way: ["chatty.report"] for way in got}


def test_the_message_says_who_where_and_what_to_do(chatty: Path) -> None:
    """The error names the module and the host, says that nothing was sent, and what an operator would set."""
    got = child(
        "from chatty.report import loop; s.seal(); report(outcome(lambda: run(loop(), 'asyncio')))", path=chatty
    )
    assert "chatty.report tried to look up stats.invalid; nothing was sent" in got["said"]
    assert 'list "stats.invalid" in seal.allow (AIBOX_SEAL__ALLOW)' in got["said"]


def test_a_thread_without_a_caller_names_what_it_runs() -> None:
    """Where no package is to be found, the message says the nearest that is known rather than nothing."""
    got = child(
        """
        s.seal()
        pool = __import__("concurrent.futures").futures.ThreadPoolExecutor()
        report(outcome(lambda: pool.submit(socket.create_connection, ("192.0.2.1", 80)).result())["attempts"])
        """
    )
    assert got == [["connect to", "192.0.2.1:80", "concurrent.futures.thread"]]


def test_a_refusal_is_an_egress_error_and_an_os_error() -> None:
    """It is caught as a policy's refusal and as a failed connection alike, and survives pickling."""
    error = SealError("no", hint="list it", host="a.invalid", module="chatty")
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, EgressError)
    assert isinstance(again, OSError)
    assert (str(again), again.host, again.module, again.code) == (
        "no (list it)",
        "a.invalid",
        "chatty",
        "policy.egress",
    )


# --- the process and its surroundings ----------------------------------------------------------------------------


def test_a_hook_that_forbids_the_seal_is_noticed() -> None:
    """Python drops an audit hook silently where an earlier one objects; seal() raises instead of pretending."""
    got = child(
        """
        def objects(event, arguments):
            if event == "sys.addaudithook":
                raise RuntimeError

        sys.addaudithook(objects)
        report([outcome(s.seal)["error"], s.sealed()])
        """
    )
    assert got == ["ConfigError", False]


@pytest.mark.parametrize("first", ["import aibox.sealing, aibox", "import aibox", "import aibox; aibox.seal"])
def test_it_is_called_by_the_name_of_its_module(first: str) -> None:
    """`aibox.seal()` seals, whether its module was imported before or not."""
    code = f"{first}; aibox.seal(allow=['10.0.0.7']); from aibox.sealing import sealed; print(sealed())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_sealed_says_whether() -> None:
    """sealed() is False before, True ever after."""
    assert child("before = s.sealed(); s.seal(); report([before, s.sealed()])") == [False, True]


@needs_namespaces
def test_the_kernels_isolation_is_told() -> None:
    """A process in a network namespace with loopback only says so, although /sys still shows the host's devices."""
    assert child("report(s.kernel_isolated())") is True


def test_telemetry_is_turned_off_and_the_rest_is_left() -> None:
    """Telemetry is off whatever was set; variables that are nobody's telemetry stay."""
    environ = {"MEM0_TELEMETRY": "True", "DO_NOT_TRACK": "1", "HOME": "/home/eva"}
    telemetry_off(environ)
    assert environ["MEM0_TELEMETRY"] == "False"
    assert environ["DO_NOT_TRACK"] == "1"
    assert environ["OPENAI_AGENTS_DISABLE_TRACING"] == "1"
    assert environ["HOME"] == "/home/eva"


def test_the_agents_sdk_understands_that_its_tracing_is_off() -> None:
    """The SDK that is installed reads the variable as we set it: it hands out traces that record nothing."""
    got = child(
        """
        s.telemetry_off(os.environ)
        from agents.tracing import trace
        report(type(trace("t")).__name__)
        """
    )
    assert got == "NoOpTrace"
