"""A real MCP server for the tests whose tools check what they are given: `python mcp_bank.py`."""

from __future__ import annotations

from typing import Annotated

from mcp.server.mcpserver import MCPServer
from pydantic import Field
from stdnum import iban, luhn

server = MCPServer("bank")


@server.tool()
def pay(
    to: Annotated[str, Field(pattern=r"^[A-Z]{2}[0-9]{2}[A-Z0-9]{11,30}$")],
    card: Annotated[str, Field(pattern=r"^[0-9]{12,19}$")],
) -> str:
    """Pay to an account, by card."""
    return f"paid to {iban.validate(to)} by {luhn.validate(card)}"


if __name__ == "__main__":
    server.run("stdio")
