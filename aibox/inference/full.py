"""HTTP with TLS, certificates and proxies, by aiohttp, which nothing else here imports.

It answers as `plain` does: what aiohttp raises comes out as UnreachableError, BrokenError or TimeoutError.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from aibox.inference.connection import AFTER_END_S, BrokenError, Reader, UnreachableError, waiting
from aibox.inference.plain import Pool, Resolve, serves
from aibox.inference.transport import Transport

_NUMERIC = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV

if TYPE_CHECKING:
    from aiohttp import ClientResponse, TCPConnector
    from aiohttp.connector import Connection


class Session:
    """Connections to one server, on one event loop. See `plain.Pool`; `origin` stands before each target."""

    def __init__(
        self,
        origin: str,
        fields: Mapping[str, str],
        *,
        transport: Transport,
        resolve: Resolve,
        silence_s: float,
        connect_s: float,
        idle_s: float,
    ) -> None:
        import aiohttp

        self._origin = origin
        self._proxy = transport.proxy
        self._silence_s = silence_s
        self.loop = asyncio.get_running_loop()
        tls = transport.tls() if origin.startswith("https:") else True
        resolver: Any = _Resolver(resolve)
        connector = _connector()(limit=0, keepalive_timeout=idle_s, resolver=resolver, ssl=tls)
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=fields,
            timeout=aiohttp.ClientTimeout(total=None, connect=silence_s, sock_connect=connect_s, sock_read=silence_s),
            trust_env=False,
        )

    async def ask(self, method: str, target: str, more: Mapping[str, str], body: bytes | None) -> Response:
        """As `plain.Pool.ask`."""
        with _translated():
            # aiohttp's own limit begins anew with every byte of a head.
            async with asyncio.timeout(self._silence_s):
                response = await self._session.request(
                    method, self._origin + target, data=body, headers=more, allow_redirects=False, proxy=self._proxy
                )
            return Response(response, silence_s=self._silence_s)

    async def close(self) -> None:
        await self._session.close()

    def detach(self) -> None:
        """Forget what a loop held that has ended."""
        self._session.detach()


def reaching(
    origin: str, fields: Mapping[str, str], *, transport: Transport, path: str = "", **options: Any
) -> Pool | Session:
    """A client for one server: plain where that can be, and else with all that a Session has."""
    if transport.proxy is None and serves(origin, path, fields):
        return Pool(origin, fields, **options)
    return Session(origin, fields, transport=transport, **options)


class Response:
    """As `plain.Response`."""

    def __init__(self, response: ClientResponse, *, silence_s: float) -> None:
        self._response = response
        self._silence_s = self._wait_s = silence_s
        self.status = response.status
        self.reason = response.reason or ""
        self.headers: Mapping[str, str] = {name.lower(): value for name, value in response.headers.items()}

    async def readany(self) -> bytes:
        # aiohttp closes the connection over a chunk that is none, and tells nobody who waits (3.14).
        with _translated():
            async with asyncio.timeout(self._wait_s):
                return await self._response.content.readany()

    async def each(self, reader: Reader) -> None:
        while not reader.ended and (data := await self.readany()):
            if (busy := reader.feed(data)) is not None:
                await busy
            self._wait_s = min(self._silence_s, AFTER_END_S) if reader.said else self._silence_s

    def close(self) -> None:
        if self._response.content.at_eof():
            self._response.release()
        self._response.close()


@functools.cache
def _connector() -> type[TCPConnector]:
    import aiohttp

    class Connector(aiohttp.TCPConnector):
        """Gives out no kept connection over which something has come: aiohttp would take it for the answer (3.14)."""

        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self._given: WeakSet[Any] = WeakSet()

        async def connect(self, req: Any, traces: Any, timeout: Any) -> Connection:
            while True:
                connection = await super().connect(req, traces, timeout)
                protocol = connection.protocol
                assert protocol is not None
                if protocol not in self._given:
                    self._given.add(protocol)
                    return connection
                transport = connection.transport
                read = transport is not None and not waiting(transport.get_extra_info("socket").fileno())()
                if read and not protocol.should_close:
                    return connection
                connection.close()

    return Connector


class _Resolver:
    """Gives aiohttp the addresses that were looked up once and are allowed."""

    def __init__(self, resolve: Resolve) -> None:
        self._resolve = resolve

    async def resolve(self, host: str, port: int = 0, family: Any = 0) -> list[dict[str, Any]]:
        del family
        return [
            {"hostname": host, "host": address, "port": port, "family": family, "proto": 0, "flags": _NUMERIC}
            for family, address in await self._resolve(host, port)
        ]

    async def close(self) -> None:
        """Nothing is held open."""


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    import aiohttp

    try:
        yield
    except TimeoutError:
        raise
    except aiohttp.ClientConnectorError as error:
        raise UnreachableError(error.strerror or str(error)) from None
    except aiohttp.ClientError as error:
        raise BrokenError(str(error) or type(error).__name__) from None
