"""A sealed process reaches loopback, unix sockets and what its operator listed. In the process there is no way back.

Held is the Python code of this interpreter. Native code, child processes and subinterpreters are the kernel's to hold:
docs/seal.md says how.
"""

from __future__ import annotations

import asyncio
import errno
import inspect
import re
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any, NoReturn

from aibox import _sockets
from aibox.errors import ConfigError, EgressError

ATTEMPTS_KEPT = 1000
ADDRESSES_KEPT = 4096

TELEMETRY_OFF: Mapping[str, str] = {
    "ANONYMIZED_TELEMETRY": "False",
    "DO_NOT_TRACK": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "LANGSMITH_TRACING": "false",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "MEM0_TELEMETRY": "False",
    "OPENAI_AGENTS_DISABLE_TRACING": "1",
    "QDRANT__TELEMETRY_DISABLED": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
    "SCARF_NO_ANALYTICS": "true",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "VLLM_NO_USAGE_STATS": "1",
}
"""Variables that tell dependencies to report nothing and to download nothing, each at its strictest."""

_Address = IPv4Address | IPv6Address
_Network = IPv4Network | IPv6Network

# HTTP clients and what they stand on: whoever calls them is responsible.
_CLIENTS = frozenset((
    "aiohappyeyeballs", "aiohttp", "anyio", "httpcore", "httpcore2", "httpx", "httpx2", "requests", "sniffio",
    "urllib3", "uvloop", "websockets",
))  # fmt: skip
_OURS = (__name__, _sockets.__name__)
_MAPPED = IPv6Network("::ffff:0:0/96")
_INET_ATON = re.compile(r"(0x[0-9a-f]+|0|[1-9][0-9]*)(\.(0x[0-9a-f]+|0|[1-9][0-9]*)){0,3}")
_NAME = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*")
_ENTRY = re.compile(
    r"(?:\[(?P<bracketed>[^]]*)]|(?P<plain>[^:]*))(?::(?P<port>[0-9]{1,5}))?|(?P<ipv6>[0-9a-f:./]+)", re.IGNORECASE
)


class SealError(EgressError, PermissionError):
    """The seal refused a connection or a look-up; nothing was sent. `host` and `module` say where to and by whom.

    Also a PermissionError (an OSError), so that libraries clean up and report it as they do any failed connection.
    """

    def __init__(self, message: str, *, hint: str = "", host: str = "", module: str = "") -> None:
        super().__init__(message, hint=hint)
        self.host = host
        self.module = module
        self.errno = errno.EACCES
        self.strerror = str(self)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One refusal."""

    operation: str
    """`connect to`, `send to`, `bind to` or `look up`."""
    target: str
    """`host:port`, or the host of a look-up."""
    module: str
    """The first module outside the standard library and the HTTP clients; in doubt several, joined by "or"."""
    at_s: float
    """Seconds since the epoch."""


def seal(allow: Iterable[str] = ()) -> None:
    """Refuse, from now on, every connection and every name look-up of this process that is not on the list.

    `allow` holds `host`, `host:port`, addresses (IPv6 with a port in brackets) and networks in CIDR notation. Loopback,
    `localhost` and unix sockets are always allowed. A look-up of an allowed name opens the addresses that it gives.
    Connections that exist stay; accepting connections is not held. It cannot be undone, and a further call only
    narrows: what is reached must be on every list.

    What is refused raises SealError, an EgressError and an OSError. Raises ConfigError, and refuses nothing new, when
    an entry cannot be read or when the seal cannot hold here.
    """
    if isinstance(allow, str):
        raise ConfigError("allow is a list of hosts, not a text", hint=f"write allow=[{allow!r}]")
    entries = frozenset(map(_entry, allow))
    if sys.platform == "win32":
        raise ConfigError("the seal does not hold on Windows, whose event loop connects in native code", hint="use WSL")
    _gate.narrow(entries)


def sealed() -> bool:
    """Whether seal() has been called in this process."""
    return bool(_gate.lists)


def attempts() -> tuple[Attempt, ...]:
    """The last 1000 refusals, oldest first."""
    return tuple(_gate.attempts)


def telemetry_off(environ: MutableMapping[str, str]) -> None:
    """Turn the telemetry and the downloads of dependencies off in `environ`, before they are imported.

    Each value is the strictest that its reader knows: what an operator had set is tightened, never loosened.
    """
    environ.update(TELEMETRY_OFF)


def kernel_isolated() -> bool:
    """Whether the kernel gives this process no network interface but loopback, as under `unshare -n`. Linux only."""
    # Not /sys/class/net: it shows the namespace in which /sys was mounted, whatever `unshare -n` did since.
    try:
        lines = Path("/proc/thread-self/net/dev").read_text("ascii").splitlines()[2:]
    except OSError:
        return False
    return {line.partition(":")[0].strip() for line in lines} <= {"lo"}


@dataclass(frozen=True, slots=True)
class _Entry:
    host: str | _Network
    port: int | None

    def admits(self, host: str | _Address, port: int | None) -> bool:
        if None not in (port, self.port) and port != self.port:
            return False
        if isinstance(host, str) or isinstance(self.host, str):
            return host == self.host
        return host in self.host


class _Gate:
    """The seal of this process. `lists` holds the list of every call of seal(), and each of them must admit."""

    def __init__(self) -> None:
        self.lists: tuple[frozenset[_Entry], ...] = ()
        self.attempts: deque[Attempt] = deque(maxlen=ATTEMPTS_KEPT)
        self._names: dict[_Address, frozenset[str]] = {}
        self._lock = threading.Lock()

    def narrow(self, entries: frozenset[_Entry]) -> None:
        with self._lock:
            if not self.lists:
                _sockets.add_hook(self)
            _sockets.hold(self)
            if entries not in self.lists:
                self.lists = (*self.lists, entries)

    def remember(self, host: object, addresses: Iterable[object]) -> None:
        """An admitted name may be connected to at the addresses that it resolved to, and at no other."""
        name = _text(host).removesuffix(".")
        if not self.lists or _address(name) or not self._admits(name, None):
            return
        with self._lock:
            for text in addresses:
                if (address := _address(_text(text))) is not None:
                    self._names[address] = self._names.pop(address, frozenset()) | {name}
            while len(self._names) > ADDRESSES_KEPT:
                del self._names[next(iter(self._names))]

    def check_address(self, operation: str, family: int, address: Any) -> None:
        """One of a wrong shape is left to the socket, which says so."""
        if address is None or family in _sockets.LOCAL_FAMILIES or not self.lists:
            return
        if family not in (socket.AF_INET, socket.AF_INET6):
            self.refuse(operation, f"{address!r} in a socket of family {int(family)}", hint="the seal knows IP only")
        if not isinstance(address, tuple) or len(address) < 2:
            return
        if operation == "bind to":
            self.check_name(address[0])
        else:
            self.check_host(operation, address[0], address[1])

    def check_host(self, operation: str, host: object, port: object) -> None:
        text = _text(host)
        if (address := _address(text)) is None:
            admitted = text == "localhost" or self._admits(text.removesuffix("."), _port(port))
        else:
            admitted, text = address.is_loopback or self._admits(address, _port(port)), str(address)
        if not admitted:
            self.refuse(operation, f"[{text}]:{port}" if ":" in text else f"{text}:{port}")

    def check_name(self, host: object) -> None:
        """Addresses need no look-up, and no host means every address of this machine."""
        text = "" if host is None else _text(host)
        # Not `localhost.`: /etc/hosts does not know it by that spelling, and it would be asked for outside.
        if text in ("", "<broadcast>", "localhost") or _address(text):
            return
        if not self._admits(text.removesuffix("."), None):
            self.refuse("look up", text)

    def check_reverse(self, host: object) -> None:
        if (address := _address(_text(host))) is None:
            self.check_name(host)
        elif not (address.is_loopback or self._admits(address, None)):
            self.refuse("look up", str(address))

    def check_unconnected(self) -> None:
        if self.lists:
            self.refuse(
                "send to",
                "any address, through an unconnected datagram endpoint of a native event loop",
                hint="give remote_addr, or use the event loop of asyncio, whose datagrams are seen one by one",
            )

    def refuse(self, operation: str, target: str, *, hint: str = "") -> NoReturn:
        module = _responsible()
        self.attempts.append(Attempt(operation, target, module, time.time()))
        raise SealError(
            f"this process is sealed: {module} tried to {operation} {target}; nothing was sent",
            hint=hint or f'to allow it, list "{target}" in seal.allow (AIBOX_SEAL__ALLOW) or in aibox.seal(allow=...)',
            host=target if operation == "look up" else target.rpartition(":")[0],
            module=module,
        )

    def _admits(self, host: str | _Address, port: int | None) -> bool:
        """`port` None asks about any port."""
        hosts = (host,) if isinstance(host, str) else (host, *self._names.get(host, ()))
        return all(any(entry.admits(h, port) for entry in entries for h in hosts) for entries in self.lists)


_gate = _Gate()


def _entry(text: str) -> _Entry:
    hint = "write host, host:port, 10.0.0.7, [fd00::7]:443 or 10.0.0.0/8"
    if not (parts := _ENTRY.fullmatch(text.strip())):
        raise ConfigError(f"{text!r} is no host, address or network for the seal", hint=hint)
    host = parts["bracketed"] or parts["plain"] or parts["ipv6"] or ""
    port = int(parts["port"]) if parts["port"] else None
    if port is not None and not 0 < port < 65536:
        raise ConfigError(f"{text!r} has no valid port for the seal", hint="a port is a number from 1 to 65535")
    try:
        network = ip_network(host)
    except ValueError as error:
        name = _text(host).removesuffix(".")
        # A name that ends in a number is an address in one of its other spellings, on which systems disagree.
        if not _NAME.fullmatch(name) or re.fullmatch(r"(.*\.)?([0-9]+|0x[0-9a-f]*)", name):
            raise ConfigError(f"the seal cannot allow {text!r}: {error}", hint=hint) from None
        return _Entry(name, port)
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        network = IPv4Network((int(network.network_address) & 0xFFFFFFFF, network.prefixlen - _MAPPED.prefixlen))
    return _Entry(network, port)


def _text(host: object) -> str:
    """A host as the resolver gets it, in lower case: Python hands names on in the form of IDNA 2003."""
    if isinstance(host, bytes | bytearray):
        return bytes(host).decode("ascii", "backslashreplace").lower()
    try:
        return str(host).encode("idna").decode("ascii").lower()
    except UnicodeError:
        return str(host)


def _address(text: str) -> _Address | None:
    """The address that a text spells, in any form that resolvers take without asking anybody; None for a name."""
    try:
        address = ip_address(text)
    except ValueError:
        try:
            return IPv4Address(socket.inet_aton(text)) if _INET_ATON.fullmatch(text) else None
        except OSError:
            return None
    if isinstance(address, IPv4Address):
        return address
    return address.ipv4_mapped or IPv6Address(int(address))


def _port(port: object) -> int:
    """A port as a number. The name of a service is none: only an entry without a port admits it."""
    try:
        return int(str(port))
    except ValueError:
        return -1


def _responsible() -> str:
    try:
        task = asyncio.current_task()
    except RuntimeError:
        task = None
    # Below a task's own frames lie those of whoever started the loop, who did not ask for this.
    last = getattr(task.get_coro(), "cr_frame", None) if task else None
    names: list[str] = []
    frame = inspect.currentframe()
    while frame is not None:
        names.append(frame.f_globals.get("__name__") or "?")
        frame = None if frame is last else frame.f_back
    if module := next(filter(_is_responsible, names), None):
        return module
    clients = {_package(name) for name in names} & _CLIENTS
    found = sorted(set(_waiting_for(clients))) or sorted(clients)
    return " or ".join(found) or next((name for name in names if name not in (*_OURS, "socket")), "?")


def _waiting_for(clients: set[str]) -> Iterator[str]:
    """The modules whose tasks wait in one of these clients: they resolve and connect in tasks of their own."""
    try:
        tasks = asyncio.all_tasks() if clients else set()
    except RuntimeError:
        return
    for task in tasks:
        names: list[str] = []
        awaited: Any = task.get_coro()
        while awaited is not None:
            frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "gi_frame", None)
            if frame is not None:
                names.insert(0, frame.f_globals.get("__name__") or "?")
            awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "gi_yieldfrom", None)
        if clients & set(map(_package, names)) and (module := next(filter(_is_responsible, names), None)):
            yield module


def _is_responsible(module: str) -> bool:
    package = _package(module)
    return not (module in _OURS or package in _CLIENTS or package in sys.stdlib_module_names)


def _package(module: str) -> str:
    return module.partition(".")[0]
