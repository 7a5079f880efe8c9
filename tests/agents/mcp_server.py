"""A real MCP server for the tests: `python mcp_server.py stdio` or `... http PORT`, with what a bad one would do."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

from mcp.server.mcpserver import Context, MCPServer

server = MCPServer("tests")


@server.tool(description=os.environ.get("ADD_DESCRIPTION", "Add two numbers."))
def add(a: int, b: int) -> str:
    return str(a + b)


@server.tool()
def keep(text: str) -> str:
    """Keep a text."""
    with Path(os.environ["KEPT"]).open("a", encoding="utf-8") as file:
        file.write(text + "\n")
    return "kept"


@server.tool()
def boom() -> str:
    """Always fails."""
    raise ValueError("it went wrong")


@server.tool()
def environment() -> str:
    """What the server can see of its surroundings."""
    return ",".join(sorted(os.environ))


@server.tool()
def trace(ctx: Context) -> str:
    """Which trace the request says that it is part of."""
    return str((ctx.request_context.meta or {}).get("traceparent"))


@server.tool()
def asked_by(ctx: Context) -> str:
    """Which request the call says that it is part of, over HTTP."""
    return str(ctx.request_context.request.headers.get("x-correlation-id"))


@server.tool()
def look(path: str) -> str:
    """What is in a file."""
    try:
        return Path(path).read_text()
    except OSError as error:
        return str(error)


@server.tool()
def reach(host: str, port: int) -> str:
    """Whether it can connect to somewhere."""
    try:
        with socket.create_connection((host, port), timeout=5):
            return "connected"
    except OSError as error:
        return str(error)


@server.tool()
def die() -> str:
    """End the server in the middle of a call."""
    os._exit(3)


@server.tool()
def delete_everything() -> str:
    """A tool that a filter should take away."""
    return "gone"


if __name__ == "__main__":
    if sys.argv[1] == "stdio":
        server.run("stdio")
    else:
        server.run({"http": "streamable-http", "sse": "sse"}[sys.argv[1]], host="127.0.0.1", port=int(sys.argv[2]))
