"""Where Python code reaches the network, and how each of these places is made to ask a gate first.

An audit hook, which nothing can remove, sees the sockets of this interpreter. It comes too late where a method of
`socket.socket` resolves a name on its way, and it never hears of what an event loop in C does: both are wrapped.
"""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import socket
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from aibox.errors import ConfigError

LOCAL_FAMILIES = frozenset(
    getattr(socket, name) for name in ("AF_UNIX", "AF_NETLINK", "AF_ALG") if hasattr(socket, name)
)
"""Families of sockets that do not leave the machine."""

_wrappers: set[Any] = set()


class Gate(Protocol):
    """What is asked before anything happens. Each method raises to refuse."""

    def check_address(self, operation: str, family: int, address: Any) -> None:
        """A socket of a family is about to use an address."""

    def check_host(self, operation: str, host: object, port: object) -> None:
        """A name or an address is about to be connected to."""

    def check_name(self, host: object) -> None:
        """A host is about to be resolved; an address asks nobody."""

    def check_reverse(self, host: object) -> None:
        """The name of an address is about to be asked for."""

    def remember(self, host: object, addresses: Iterable[object]) -> None:
        """A host has been resolved."""

    def check_unconnected(self) -> None:
        """A datagram endpoint is about to be opened that may send anywhere without asking."""


def hold(gate: Gate) -> None:
    """Wrap `socket`, the loops of asyncio and uvloop, and the loop that runs now. Again is harmless.

    Raises ConfigError when the running loop is native code that does not let itself be wrapped.
    """
    _hold_sockets(gate)
    # asyncio connects through sockets; its look-ups are wrapped so that the task that asks is seen, not a thread.
    _hold_look_ups(gate, asyncio.BaseEventLoop)
    native: list[type] = []
    if "uvloop" in sys.modules or importlib.util.find_spec("uvloop"):
        import uvloop

        native.append(uvloop.Loop)
    try:
        running = type(asyncio.get_running_loop())
    except RuntimeError:
        pass
    else:
        if not issubclass(running, asyncio.SelectorEventLoop):
            native.append(running)
    for loop in native:
        _hold_look_ups(gate, loop)
        _wrap(loop, "create_connection", lambda original: _connection(gate, original))
        _wrap(loop, "create_datagram_endpoint", lambda original: _datagram_endpoint(gate, original))
        _wrap(loop, "create_server", lambda original: _server(gate, original))


def add_hook(gate: Gate) -> None:
    """Add the audit hook. Raises ConfigError when a hook that came before forbids it, which Python does not say."""
    seen: list[bool] = []
    checks: Mapping[str, Callable[..., None]] = {
        "aibox.sealed": lambda: seen.append(True),
        "socket.connect": lambda sock, address: gate.check_address("connect to", sock.family, address),
        "socket.sendto": lambda sock, address: gate.check_address("send to", sock.family, address),
        "socket.sendmsg": lambda sock, address: gate.check_address("send to", sock.family, address),
        "socket.bind": lambda sock, address: gate.check_address("bind to", sock.family, address),
        "socket.getaddrinfo": lambda host, *_: gate.check_name(host),
        "socket.gethostbyname": gate.check_name,
        "socket.gethostbyaddr": gate.check_reverse,
        "socket.getnameinfo": lambda sockaddr: gate.check_reverse(sockaddr[0]),
    }
    find = checks.get

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if (check := find(event)) is not None:
            check(*arguments)

    sys.addaudithook(hook)
    sys.audit("aibox.sealed")
    if not seen:
        raise ConfigError("an audit hook of this process forbids the seal", hint="call aibox.seal() before it is added")


def _wrap(owner: Any, name: str, make: Callable[[Any], Any]) -> None:
    original = getattr(owner, name)
    if original in _wrappers:
        return
    wrapper = functools.wraps(original)(make(original))
    try:
        setattr(owner, name, wrapper)
    except (AttributeError, TypeError):
        raise ConfigError(f"the seal cannot hold {owner!r}", hint="use the event loop of asyncio or uvloop") from None
    _wrappers.add(wrapper)


def _hold_sockets(gate: Gate) -> None:
    def checked(operation: str, where: slice) -> Callable[[Any], Any]:
        def make(original: Any) -> Any:
            def method(self: socket.socket, *arguments: Any) -> Any:
                # The C method resolves a name first and raises its audit event afterwards.
                for address in arguments[where]:
                    gate.check_address(operation, self.family, address)
                return original(self, *arguments)

            return method

        return make

    def remembering(addresses: Callable[[Any], list[object]]) -> Callable[[Any], Any]:
        def make(original: Any) -> Any:
            def look_up(host: Any, *arguments: Any, **options: Any) -> Any:
                found = original(host, *arguments, **options)
                gate.remember(host, addresses(found))
                return found

            return look_up

        return make

    last = slice(-1, None)
    for name, operation, where in (
        ("connect", "connect to", last),
        ("connect_ex", "connect to", last),
        ("bind", "bind to", last),
        ("sendto", "send to", last),
        ("sendmsg", "send to", slice(3, 4)),
    ):
        _wrap(socket.socket, name, checked(operation, where))
    _wrap(socket, "getaddrinfo", remembering(_sockaddr_hosts))
    _wrap(socket, "gethostbyname", remembering(lambda found: [found]))
    _wrap(socket, "gethostbyname_ex", remembering(lambda found: found[2]))


def _sockaddr_hosts(found: Any) -> list[object]:
    return [sockaddr[0] for *_, sockaddr in found]


def _hold_look_ups(gate: Gate, loop: type) -> None:
    def getaddrinfo(original: Any) -> Any:
        async def look_up(self: Any, host: Any, *arguments: Any, **options: Any) -> Any:
            gate.check_name(host)
            found = await original(self, host, *arguments, **options)
            gate.remember(host, _sockaddr_hosts(found))
            return found

        return look_up

    def getnameinfo(original: Any) -> Any:
        async def look_up(self: Any, sockaddr: Any, *arguments: Any, **options: Any) -> Any:
            gate.check_reverse(sockaddr[0])
            return await original(self, sockaddr, *arguments, **options)

        return look_up

    _wrap(loop, "getaddrinfo", getaddrinfo)
    _wrap(loop, "getnameinfo", getnameinfo)


def _connection(gate: Gate, original: Any) -> Any:
    async def create_connection(
        self: Any, protocol_factory: Any, host: Any = None, port: Any = None, **options: Any
    ) -> Any:
        if options.get("local_addr") is not None:
            gate.check_name(options["local_addr"][0])
        if host is not None:
            gate.check_host("connect to", host, port)
        return await original(self, protocol_factory, host, port, **options)

    return create_connection


def _datagram_endpoint(gate: Gate, original: Any) -> Any:
    async def create_datagram_endpoint(
        self: Any, protocol_factory: Any, local_addr: Any = None, remote_addr: Any = None, **options: Any
    ) -> Any:
        sock = options.get("sock")
        if local_addr is not None:
            gate.check_name(local_addr[0])
        if remote_addr is not None:
            gate.check_host("connect to", *remote_addr[:2])
        elif sock is None or (sock.family not in LOCAL_FAMILIES and not _is_connected(sock)):
            # Its transport would send to any address in native code; a connected one is sure to stay where it is.
            gate.check_unconnected()
        return await original(self, protocol_factory, local_addr, remote_addr, **options)

    return create_datagram_endpoint


def _server(gate: Gate, original: Any) -> Any:
    async def create_server(
        self: Any, protocol_factory: Any, host: Any = None, port: Any = None, **options: Any
    ) -> Any:
        for name in [host] if host is None or isinstance(host, str | bytes) else list(host):
            gate.check_name(name)
        return await original(self, protocol_factory, host, port, **options)

    return create_server


def _is_connected(sock: Any) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True
