"""The plain HTTP client of tools that reach out: one request at a time, to an address that was looked at first.

A name is resolved here, every address of it is checked, and the connection goes to one of those: what a name means
cannot change between the look and the connection. Redirects are followed here too, each as a request of its own.
The only file of the agents that imports `httpx2`.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, urljoin, urlsplit

from aibox.errors import EgressError, LimitError, UpstreamError

MAX_REDIRECTS = 5
TIMEOUT_S = 20.0
_REDIRECTS = (301, 302, 303, 307, 308)
# Addresses that carry another address inside: what they reach is not what they say.
_CARRIERS = tuple(ipaddress.ip_network(net) for net in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32"))

CORRELATION = "X-Correlation-ID"
Passing = Callable[[str], Awaitable[str]]
"""Asked with the host before every request, a redirect's too: the id that goes along. Raises what refuses it."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """An answer, whole: `url` is where it came from in the end."""

    url: str
    status: int
    type: str
    body: bytes


class Http:
    """Requests to http and https. `private_hosts` are names or addresses of the operator's own that may be private.

    `inside`: they must be, so that what was meant for the operator's own network goes nowhere else.
    """

    def __init__(
        self, *, private_hosts: Collection[str] = (), inside: bool = False, timeout_s: float = TIMEOUT_S
    ) -> None:
        self._private = frozenset(private_hosts)
        self._inside = inside
        self._timeout_s = timeout_s

    async def get(
        self,
        url: str,
        *,
        passing: Passing,
        types: Collection[str],
        max_kib: int,
        headers: Mapping[str, str] | None = None,
    ) -> Fetched:
        """GET, redirects followed. Raises EgressError, LimitError for size and type, UpstreamError."""
        for _ in range(MAX_REDIRECTS + 1):
            async with self.request("GET", url, passing=passing, headers=headers) as answer:
                if answer.status_code in _REDIRECTS and (to := answer.headers.get("location")):
                    url = urljoin(url, to)
                    continue
                kind = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
                if answer.status_code < 400 and kind not in types:
                    raise LimitError(f"the answer is {kind[:60] or 'of no type'}, and only {', '.join(types)} are read")
                return Fetched(url, answer.status_code, kind, await whole(answer, max_kib=max_kib))
        raise UpstreamError(f"more than {MAX_REDIRECTS} redirects", hint="the last one led to another")

    @asynccontextmanager
    async def request(
        self,
        method: str,
        url: str,
        *,
        passing: Passing,
        headers: Mapping[str, str] | None = None,
        body: Any = None,
        form: tuple[bytes, str] | None = None,
        read_timeout_s: float | None = None,
    ) -> AsyncIterator[Any]:
        """One request, no redirect followed; the answer is still to be read. Raises EgressError, UpstreamError.

        `body` is sent as JSON, `form` as the bytes that it is and under its own content type.
        """
        import httpx2

        parts = _read(url)
        passed = await passing(parts.hostname or "")
        address = await self._address(parts)
        literal = f"[{address}]" if ":" in address else address
        port = f":{parts.port}" if parts.port else ""
        target = parts._replace(netloc=f"{literal}{port}", fragment="").geturl()
        host = f"{parts.hostname}{port}"
        sent = {
            "Accept-Encoding": "identity",
            "User-Agent": "aibox",
            CORRELATION: passed,
            **(headers or {}),
            "Host": host,
        }
        content = None
        if form is not None:
            content, sent["Content-Type"] = form
        elif body is not None:
            content = json.dumps(body).encode()
            sent["Content-Type"] = "application/json"
        limit = httpx2.Timeout(self._timeout_s, read=read_timeout_s or self._timeout_s)
        client = httpx2.AsyncClient(trust_env=False, follow_redirects=False, timeout=limit)
        # The certificate is the name's, whatever address is connected to.
        extensions = {"sni_hostname": parts.hostname} if parts.scheme == "https" else {}
        try:
            async with (
                client,
                client.stream(method, target, headers=sent, content=content, extensions=extensions) as answer,
            ):
                if answer.headers.get("content-encoding", "identity").lower() not in ("", "identity"):
                    raise LimitError("the answer is compressed, which was not asked for; its size cannot be known")
                yield answer
        except httpx2.TimeoutException:
            raise UpstreamError(f"{parts.hostname} took longer than {self._timeout_s:g} s", retryable=True) from None
        except httpx2.HTTPError as error:
            raise UpstreamError(f"{parts.hostname} could not be reached: {error}", retryable=True) from None

    async def _address(self, parts: SplitResult) -> str:
        """An address of the host, when all of them may be reached. Raises EgressError."""
        host = parts.hostname or ""
        port = parts.port or (443 if parts.scheme == "https" else 80)
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            raise UpstreamError(f"the name {host[:80]} does not resolve") from None
        addresses = [str(info[4][0]) for info in found]
        if host in self._private:
            outside = [address for address in addresses if is_public(address)] if self._inside else []
            if outside:
                raise EgressError(
                    f"{host[:80]} leads to {outside[0]}, which is not an address of your own network",
                    hint="external = true in its settings sends it through the door",
                )
        else:
            for address in addresses:
                if not is_public(address):
                    raise EgressError(
                        f"{host[:80]} leads to {address}, which is not a public address",
                        hint="an operator names hosts of their own as private_hosts",
                    )
        return addresses[0]


def is_public(address: str) -> bool:
    """Whether an address is somebody else's on the open Internet: not loopback, private, link-local or metadata."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            found = found.ipv4_mapped
        elif any(found in net for net in _CARRIERS):
            return False
    return found.is_global and not found.is_multicast


def _read(url: str) -> SplitResult:
    """Raises EgressError for what is not a plain http or https address of a host."""
    try:
        parts = urlsplit(url.strip())
        port = parts.port
    except ValueError:
        raise EgressError(f"not an address: {url[:80]!r}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise EgressError(f"only http and https can be reached, not {url[:80]!r}")
    if parts.username is not None or parts.password is not None:
        raise EgressError("an address with a user name in it is not followed")
    if any(char.isspace() or ord(char) < 32 or char in '\\"<>' for char in url.strip()) or port == 0:
        raise EgressError(f"not an address: {url[:80]!r}")
    return parts


async def whole(answer: Any, *, max_kib: int) -> bytes:
    """The body of an answer. Raises LimitError when it is too long."""
    data = b""
    async for piece in answer.aiter_raw():
        data += piece
        if len(data) > max_kib << 10:
            raise LimitError(f"the answer is longer than {max_kib} KiB")
    return data


async def lines(answer: Any, *, max_kib: int) -> AsyncIterator[str]:
    """The lines of a streamed answer. Raises LimitError when one is too long."""
    held = b""
    async for piece in answer.aiter_raw():
        held += piece
        *whole, held = held.split(b"\n")
        for line in whole:
            yield line.rstrip(b"\r").decode("utf-8", "replace")
        if len(held) > max_kib << 10:
            raise LimitError(f"a line of the answer is longer than {max_kib} KiB")
    if held:
        yield held.decode("utf-8", "replace")
