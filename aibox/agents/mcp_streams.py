"""The two streams over which a client of MCP speaks with a server: a process, one in a sandbox, or one at a URL.

Only this file and `mcp` import the package of that name.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from typing import Any

import anyio

from aibox.agents.http import CORRELATION
from aibox.sandbox.talk import Talk

# The client takes no headers for one call; what it sends for it, it sends in the context of who made the call.
_REQUEST: ContextVar[str] = ContextVar("the request that a call is part of", default="")


@contextmanager
def part_of(correlation: str) -> Iterator[None]:
    """Calls in the block say over HTTP that they are part of the request of this id; nothing where it is empty."""
    token = _REQUEST.set(correlation)
    try:
        yield
    finally:
        _REQUEST.reset(token)


@asynccontextmanager
async def process(command: str, args: Sequence[str], env: Mapping[str, str]) -> AsyncIterator[Any]:
    """To a process that is started here, with the rights of this one, and ends with the block."""
    from mcp.client.stdio import StdioServerParameters, stdio_client

    told = StdioServerParameters(command=command, args=list(args), env=dict(env))
    # What a server says on its standard error is nobody's log line here.
    with open(os.devnull, "w") as quiet:  # noqa: ASYNC230, PTH123 - a device, not a file
        async with stdio_client(told, errlog=quiet) as streams:
            yield streams


@asynccontextmanager
async def remote(url: str, *, sse: bool, headers: Mapping[str, str], timeout_s: float) -> AsyncIterator[Any]:
    """To a server that runs, over streamable HTTP or SSE."""
    import httpx2

    async def name(request: httpx2.Request) -> None:
        if correlation := _REQUEST.get():
            request.headers[CORRELATION] = correlation

    def client(*_: Any, **__: Any) -> httpx2.AsyncClient:
        limit = httpx2.Timeout(timeout_s, read=300.0)
        return httpx2.AsyncClient(headers=headers, trust_env=False, timeout=limit, event_hooks={"request": [name]})

    if sse:
        from mcp.client.sse import sse_client

        async with sse_client(url, httpx_client_factory=client) as streams:
            yield streams
    else:
        from mcp.client.streamable_http import streamable_http_client

        async with client() as made, streamable_http_client(url, http_client=made) as streams:
            yield streams


@asynccontextmanager
async def spoken(talk: Talk) -> AsyncIterator[Any]:
    """To a process that is spoken with, such as one in a sandbox: a message a line."""
    from mcp.shared.message import SessionMessage
    from mcp.types import jsonrpc_message_adapter

    heard, read = anyio.create_memory_object_stream[Any](0)
    write, said = anyio.create_memory_object_stream[Any](0)

    async def hear() -> None:
        # At the end of the line the client's waiting calls fail, and do not hang.
        async with heard:
            async for line in talk.lines():
                try:
                    message: Any = SessionMessage(jsonrpc_message_adapter.validate_json(line, by_name=False))
                except ValueError as error:
                    message = error
                await heard.send(message)

    async def say() -> None:
        async with said:
            async for message in said:
                body = message.message.model_dump_json(by_alias=True, exclude_unset=True)
                await talk.send(body.encode() + b"\n")

    async with read, write, anyio.create_task_group() as group:
        group.start_soon(hear)
        group.start_soon(say)
        yield read, write
        group.cancel_scope.cancel()
