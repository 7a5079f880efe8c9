"""A command in a network namespace of its own: loopback, and behind it a broker for the hosts that an operator listed.

The kernel holds it, native code and children included: the namespace has no interface but loopback. A listed host is an
address on that loopback, where this process, outside, accepts and connects on. Linux only.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import fcntl
import ipaddress
import json
import os
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aibox.errors import AIBoxError, ConfigError

Record = Callable[[str, dict[str, object]], Awaitable[None]]
"""Told of `seal.connected` and `seal.refused` with the host and the port. What it raises stops the connection."""

MAX_HOSTS = 200
READY_S = 30.0
_NEWNS, _NEWUSER, _NEWNET = 0x20000, 0x10000000, 0x40000000
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 0x40000
_NO_NEW_PRIVS = 38
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _SIOCSIFADDR = 0x8913, 0x8914, 0x8916
_IFF_UP = 1
# Sockets of services that look names up for others, outside the namespace.
_RESOLVERS = ("/run/nscd", "/run/systemd/resolve", "/run/avahi-daemon", "/run/dbus")


@dataclass(frozen=True, slots=True)
class Host:
    """A listed host: where the broker connects to, and the address that stands for it inside."""

    name: str
    port: int
    inside: str


def listed(entries: Sequence[str]) -> list[Host]:
    """Hosts as `name:port`, `10.0.0.7:port` or `[fd00::7]:port`. Raises ConfigError for anything else."""
    found: list[Host] = []
    addresses: dict[str, str] = {}
    for entry in entries:
        name, _, port = entry.strip().lower().rpartition(":")
        if "/" in name or "-" in port:
            raise ConfigError(
                f"{entry!r} is a network or a range, of which each address and port would need a listener inside",
                hint="list the hosts one by one: db.internal:5432, 10.0.0.7:8000, [fd00::7]:443",
            )
        bare = ":" in name and not (name.startswith("[") and name.endswith("]"))
        if not name or bare or not port.isdecimal() or not 0 < int(port) < 65536 or len(entries) > MAX_HOSTS:
            raise ConfigError(
                f"{entry!r} is no host and port", hint="write db.internal:5432, 10.0.0.7:8000 or [fd00::7]:443"
            )
        try:
            address = ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            if not all(part and part.replace("-", "a").isalnum() and part.isascii() for part in name.split(".")):
                raise ConfigError(f"{name!r} is no host", hint="write db.internal:5432") from None
            inside = addresses.setdefault(name, f"127.77.{len(addresses) // 250}.{len(addresses) % 250 + 1}")
        else:
            mapped = address.version == 6 and address.ipv4_mapped is not None
            if address.is_loopback or address.is_unspecified or address.is_multicast or address.is_link_local or mapped:
                raise ConfigError(
                    f"{name} cannot be listed: loopback is the inside's own, and the others name no one host",
                    hint="list the address by which other machines reach it",
                )
            name = inside = str(address)
        found.append(Host(name, int(port), inside))
    return found


async def run(command: Sequence[str], hosts: Sequence[Host], *, record: Record) -> int:
    """Run a command enclosed and return its exit code; 128 + n when signal n ended it.

    Raises ConfigError where the kernel does not allow it, and then nothing has run.
    """
    if sys.platform != "linux":
        raise ConfigError("only Linux can enclose a command", hint="a container without a network does the same")
    ours, theirs = socket.socketpair()
    with tempfile.TemporaryDirectory(prefix="aibox-seal-") as folder, ours, theirs:
        _write_files(Path(folder), hosts)
        setup = json.dumps({
            "folder": folder, "command": list(command), "listen": [[host.inside, host.port] for host in hosts],
        })  # fmt: skip
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "aibox.enclosure", str(theirs.fileno()), setup, pass_fds=(theirs.fileno(),)
        )
        theirs.close()
        async with contextlib.AsyncExitStack() as stack:
            try:
                sockets = await asyncio.to_thread(_received, ours, len(hosts) + 1)
                await _serve(stack, sockets, hosts, record)
                ours.sendall(b"go")
            except BaseException:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
                raise
            code = await process.wait()
    return code if code >= 0 else 128 - code


async def _serve(
    stack: contextlib.AsyncExitStack, sockets: Sequence[socket.socket], hosts: Sequence[Host], record: Record
) -> None:
    loop = asyncio.get_running_loop()
    *listening, names = sockets
    for sock, host in zip(listening, hosts, strict=True):
        broker = _Broker(host, record)
        server = await asyncio.start_server(broker.accepted, sock=sock)
        stack.push_async_callback(broker.close)
        stack.callback(server.close)
    transport, _ = await loop.create_datagram_endpoint(lambda: _Names(record), sock=names)
    stack.callback(transport.close)


class _Broker:
    """Connects on for whoever has connected inside, to one host."""

    def __init__(self, host: Host, record: Record) -> None:
        self._host = host
        self._record = record
        self._open: set[asyncio.Task[None]] = set()

    async def accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            await self._connect(reader, writer)
        finally:
            self._open.discard(task)
            await _shut(writer)

    async def close(self) -> None:
        """End the connections that are open still: the command has ended."""
        for task in tuple(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host = self._host
        try:
            # On record before anything is connected; where that fails nothing is.
            await self._record("seal.connected", {"host": host.name, "port": host.port})
            there, onwards = await asyncio.open_connection(host.name, host.port)
        except (OSError, AIBoxError):
            writer.transport.abort()
            return
        try:
            await asyncio.gather(_pump(reader, onwards), _pump(there, writer))
        finally:
            await _shut(onwards)


async def _shut(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
    except OSError:
        writer.transport.abort()


class _Names(asyncio.DatagramProtocol):
    """Answers every question for a name with "there is none", and tells who was asked for."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self._tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport  # asyncio's own is no instance of DatagramTransport

    def datagram_received(self, data: bytes, addr: object) -> None:
        if (name := _question(data)) is None:
            return
        # RFC 1035 sec. 4.1.1: the same question, marked as an answer, with the code for a name that does not exist.
        self._transport.sendto(data[:2] + b"\x81\x83" + data[4:6] + bytes(6) + data[12:], addr)
        task = asyncio.ensure_future(self._tell(name))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _tell(self, name: str) -> None:
        # Nothing is let through here: a record that fails changes nothing for the one who asked.
        with contextlib.suppress(AIBoxError):
            await self._record("seal.refused", {"host": name, "port": 0})


def _question(data: bytes) -> str | None:
    labels: list[str] = []
    at = 12
    while at < len(data) and (length := data[at]):
        if length > 63 or at + 1 + length > len(data):
            return None
        labels.append(data[at + 1 : at + 1 + length].decode("ascii", "replace"))
        at += 1 + length
    return ".".join(labels)[:253].lower() if labels and at + 5 <= len(data) else None


def _write_files(folder: Path, hosts: Sequence[Host]) -> None:
    names = {host.name: host.inside for host in hosts if host.name != host.inside}
    lines = ["127.0.0.1 localhost", "::1 localhost", *(f"{inside} {name}" for name, inside in names.items())]
    (folder / "hosts").write_text("\n".join(lines) + "\n")
    (folder / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
    (folder / "nsswitch.conf").write_text("passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n")
    (folder / "nothing").mkdir()


def _received(ours: socket.socket, count: int) -> list[socket.socket]:
    """The sockets of the inside, or the reason why there are none."""
    sockets: list[socket.socket] = []
    while len(sockets) < count:
        data, fds, _, _ = socket.recv_fds(ours, 4096, 200)
        if not fds:
            said = data.decode("utf-8", "replace") or "it ended without a reason"
            raise ConfigError(f"the command cannot be enclosed here: {said}", hint="are user namespaces allowed?")
        sockets += [socket.socket(fileno=fd) for fd in fds]
    for sock in sockets:
        sock.setblocking(False)
    return sockets


# What follows runs in the child, before the command takes its place.


def _enter(theirs: socket.socket, folder: Path, listen: Sequence[tuple[str, int]], command: Sequence[str]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)

    def call(name: str, *arguments: object) -> None:
        if getattr(libc, name)(*arguments) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"{name}: {os.strerror(number)}")

    uid, gid = os.geteuid(), os.getegid()
    call("unshare", _NEWUSER | _NEWNET | _NEWNS)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        Path(f"/proc/self/{name}").write_text(text)
    call("mount", None, b"/", None, _MS_REC | _MS_PRIVATE, None)
    for name in ("hosts", "resolv.conf", "nsswitch.conf"):
        if Path("/etc", name).exists():
            call("mount", os.fsencode(folder / name), os.fsencode(f"/etc/{name}"), None, _MS_BIND, None)
    for place in _RESOLVERS:
        if Path(place).is_dir():
            call("mount", os.fsencode(folder / "nothing"), os.fsencode(place), None, _MS_BIND, None)
    sockets = []
    _stand({address for address, _ in listen if not address.startswith("127.")})
    for address, port in listen:
        sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _bind(sock, address, port)
        sock.listen(128)
        sockets.append(sock)
    names = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    names.bind(("127.0.0.1", 53))
    sockets.append(names)
    for sock in sockets:
        socket.send_fds(theirs, [b"s"], [sock.fileno()])
    if theirs.recv(2) != b"go":
        raise OSError("the broker has ended")
    theirs.close()
    call("prctl", _NO_NEW_PRIVS, 1, 0, 0, 0)
    os.execvp(command[0], list(command))  # noqa: S606 - the operator's own command


def _stand(addresses: set[str]) -> None:
    """Bring loopback up, with these addresses on it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        _up(control)
        for number, address in enumerate(sorted(a for a in addresses if ":" not in a)):
            packed = struct.pack("16sH2s4s8x", f"lo:{number}".encode(), socket.AF_INET, b"", socket.inet_aton(address))
            fcntl.ioctl(control, _SIOCSIFADDR, packed)
    if sixes := sorted(a for a in addresses if ":" in a):
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as control:
            for address in sixes:
                # struct in6_ifreq of linux/ipv6.h. Loopback asks nobody whether an address is free.
                there = socket.inet_pton(socket.AF_INET6, address)
                fcntl.ioctl(control, _SIOCSIFADDR, struct.pack("16sIi", there, 128, socket.if_nametoindex("lo")))


def _bind(sock: socket.socket, address: str, port: int) -> None:
    """Bind, as soon as the address is there: the kernel readies an IPv6 address a moment after it was given."""
    deadline = time.monotonic() + READY_S
    while True:
        try:
            sock.bind((address, port))
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL or time.monotonic() > deadline:
                raise
            time.sleep(0.005)
        else:
            return


def _up(control: socket.socket) -> None:
    request = struct.pack("16sH14x", b"lo", 0)
    flags = struct.unpack("16sH14x", fcntl.ioctl(control, _SIOCGIFFLAGS, request))[1]
    fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | _IFF_UP))


if __name__ == "__main__":
    channel = socket.socket(fileno=int(sys.argv[1]))
    given = json.loads(sys.argv[2])
    try:
        _enter(channel, Path(given["folder"]), [(a, p) for a, p in given["listen"]], given["command"])
    except OSError as error:
        # Before the command runs the broker tells; afterwards there is nobody but the terminal.
        with contextlib.suppress(OSError):
            channel.sendall(str(error).encode())
        sys.stderr.write(f"aibox seal: {error}\n")
        sys.exit(127)
