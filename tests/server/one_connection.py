"""One connection to the server's own protocol over real sockets, and applications to be asked over it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from uvicorn.server import ServerState

from aibox.server.asked import App, Receive, Scope, Send
from aibox.server.protocol import BoundedProtocol, protocol
from aibox.settings_server import ServerLimits

ASK = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


class Written:
    """A transport that remembers what was written to it."""

    def __init__(self, transport: asyncio.Transport, pieces: list[bytes]) -> None:
        self._transport = transport
        self._pieces = pieces

    def write(self, data: bytes) -> None:
        self._pieces.append(data)
        self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class Served:
    """A connection to a server: what the server wrote to it, piece by piece, and its own end of it."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.protocol: BoundedProtocol

    async def ask(self, data: bytes = ASK) -> bytes:
        """What comes until the server closes."""
        self.writer.write(data)
        return await self.reader.read()


@asynccontextmanager
async def served(app: App) -> AsyncIterator[Served]:
    found = Served()
    bounded = protocol(ServerLimits(), lambda _error, _correlation: None)

    class Watched(bounded):  # type: ignore[misc, valid-type]  # made by a function
        def connection_made(self, transport: asyncio.Transport) -> None:
            found.protocol = self
            super().connection_made(Written(transport, found.pieces))

    config = uvicorn.Config(app, http=Watched, log_config=None, lifespan="off")  # type: ignore[arg-type]  # an ASGI app
    config.load()
    state = ServerState()
    make: Callable[[], Any] = lambda: Watched(config=config, server_state=state, app_state={})  # noqa: E731
    server = await asyncio.get_running_loop().create_server(make, "127.0.0.1", 0)
    try:
        place = server.sockets[0].getsockname()
        found.reader, found.writer = await asyncio.open_connection(*place)
        yield found
        found.writer.close()
    finally:
        server.close()


def answering(*fields: tuple[bytes, bytes], status: int = 200, body: bytes = b"Paris.", more: bytes = b"") -> App:
    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "http.response.start", "status": status, "headers": [*fields]})
        if more:
            await send({"type": "http.response.body", "body": more, "more_body": True})
        await send({"type": "http.response.body", "body": body})

    return app


def length(size: int) -> tuple[bytes, bytes]:
    return (b"content-length", str(size).encode())


class Echo:
    """Answers with the method, the path and the body of what it was asked; a path `/wait...` when it is let go on."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.left: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        if scope["path"].startswith("/wait"):
            going, leaving = asyncio.ensure_future(self.go.wait()), asyncio.ensure_future(receive())
            await asyncio.wait([going, leaving], return_when=asyncio.FIRST_COMPLETED)
            going.cancel()
            if leaving.done():
                self.left.append(scope["path"])
                return
            leaving.cancel()
        said = b"<%b %b %b>" % (scope["method"].encode(), scope["path"].encode(), body)
        await send({"type": "http.response.start", "status": 200, "headers": [length(len(said))]})
        await send({"type": "http.response.body", "body": said})
