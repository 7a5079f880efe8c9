"""A real MCP server from the npm registry, over each transport: its tools are listed, called, and filtered."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from waiting import free_port, until_listening

import aibox
from aibox.agents.mcp import McpServer, connect
from aibox.policy.egress import EgressRules
from aibox.policy.policy import Policy
from aibox.testing import ScriptedBackend, call
from aibox.types import Label, Scope

pytestmark = [pytest.mark.anyio, pytest.mark.live, pytest.mark.loopback]

MODULES = os.environ.get("AIBOX_TEST_NODE_MODULES", "")
SCOPE = Scope(tenant="live", user="eva")
OPEN = Policy(egress=EgressRules(hosts=frozenset({"127.0.0.1"}), ceiling=Label.parse("internal")))


def command(transport: str) -> list[str]:
    package = Path(MODULES) / "@modelcontextprotocol" / "server-everything"
    if not MODULES or not package.is_dir():
        pytest.skip("the reference server is not installed; `make test-live` does that")
    return ["node", str(package / "dist" / "index.js"), transport]


@pytest.fixture(params=["stdio", "streamableHttp", "sse"])
def server(request: pytest.FixtureRequest) -> Iterator[McpServer]:
    line = command(request.param)
    if request.param == "stdio":
        yield McpServer(name="everything", command=line[0], args=tuple(line[1:]), trusted=True)
        return
    port = free_port()
    env = {"PATH": os.environ["PATH"], "PORT": str(port)}
    with subprocess.Popen(line, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            until_listening(port)
            path, transport = ("sse", "sse") if request.param == "sse" else ("mcp", "http")
            yield McpServer(name="everything", url=f"http://127.0.0.1:{port}/{path}", transport=transport)  # type: ignore[arg-type]  # one of its literals
        finally:
            process.terminate()


async def test_the_reference_server_over_each_transport(server: McpServer) -> None:
    """An agent calls `echo` of the protocol's own reference server, and reads what it said."""
    async with connect(server) as mcp:
        names = [tool.name for tool in mcp.tools]
        model = ScriptedBackend(call("everything__echo", {"message": "Bergen"}), "done")
        agent = aibox.Agent("x", router=model, tools=mcp.tools, policy=OPEN)
        reply = await agent.run("go", scope=SCOPE)
    assert "everything__echo" in names
    assert reply.tool_calls[0].ok
    assert "Bergen" in reply.tool_calls[0].text


async def test_the_reference_server_inside_the_sandbox() -> None:
    """It runs without a network in a copy of its folder, and needs nobody's word and no opened door."""
    _, script, transport = command("stdio")
    place = Path(script).parents[4]
    words = (str(Path(script).relative_to(place)), transport)
    server = McpServer(name="everything", command="node", args=words, folder=place, timeout_s=120)
    # What it was installed with, and as many addresses as its machine code wants, which it does not use.
    sandbox = aibox.Sandbox("bubblewrap", limits=aibox.Limits(memory_mib=4096, workspace_mib=512))
    try:
        async with connect(server, sandbox=sandbox, scope=SCOPE) as mcp:
            model = ScriptedBackend(call("everything__echo", {"message": "Bergen"}), "done")
            reply = await aibox.Agent("x", router=model, tools=mcp.tools).run("go", scope=SCOPE)
    finally:
        await sandbox.close()
    assert reply.tool_calls[0].ok
    assert "Bergen" in reply.tool_calls[0].text
