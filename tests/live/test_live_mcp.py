"""A real MCP server from the npm registry, over each transport: by an agent in this process, and by one over HTTP."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import pytest_socket
from front import REPLICAS, Front, front
from services import BACKEND, modelling
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
TRANSPORTS = ("stdio", "streamableHttp", "sse")
OPEN = Policy(egress=EgressRules(hosts=frozenset({"127.0.0.1"}), ceiling=Label.parse("internal")))

OPENED = 'version = 1\n[egress]\nhosts = ["127.0.0.1"]\nceiling = "internal"\n'
DESK = """
from aibox.agents.mcp import McpServer, connect

class Echo:
    '''A tool of a server that is connected to when it is called.'''

    untrusted = sends = side_effects = True
    description = "Says it again."
    schema = {{"type": "object", "properties": {{"message": {{"type": "string"}}}}, "required": ["message"]}}

    def __init__(self, name, server):
        self.name, self.server = name, server

    async def call(self, arguments, *, scope):
        raise AssertionError("an agent calls it inside a turn")

    async def call_in(self, arguments, *, call_id, turn):
        async with connect(self.server) as mcp:
            echo = next(tool for tool in mcp.tools if tool.name == "everything__echo")
            return await echo.call_in(arguments, call_id=call_id, turn=turn)

def made(box):
    return box.agent("You repeat.", tools=[Echo(f"{{name}}__echo", server) for name, server in {servers!r}.items()])
"""


def command(transport: str) -> list[str]:
    package = Path(MODULES) / "@modelcontextprotocol" / "server-everything"
    if not MODULES or not package.is_dir():
        pytest.skip("the reference server is not installed; `make test-live` does that")
    return ["node", str(package / "dist" / "index.js"), transport]


@contextmanager
def running(transport: str) -> Iterator[McpServer]:
    line = command(transport)
    if transport == "stdio":
        yield McpServer(name="everything", command=line[0], args=tuple(line[1:]), trusted=True)
        return
    port = free_port()
    env = {"PATH": os.environ["PATH"], "PORT": str(port)}
    with subprocess.Popen(line, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            until_listening(port)
            path, kind = ("sse", "sse") if transport == "sse" else ("mcp", "http")
            yield McpServer(name="everything", url=f"http://127.0.0.1:{port}/{path}", transport=kind)  # type: ignore[arg-type]  # one of its literals
        finally:
            process.terminate()


@pytest.fixture(params=TRANSPORTS)
def server(request: pytest.FixtureRequest) -> Iterator[McpServer]:
    with running(request.param) as server:
        yield server


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


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, postgres_copy: Callable[[], str]) -> Iterator[Front]:
    pytest_socket.enable_socket()  # for one that is made before a test says that it may
    port = free_port()
    tables = BACKEND.replace("{model}", str(port))
    with ExitStack() as stack:
        servers = {transport: stack.enter_context(running(transport)) for transport in TRANSPORTS}
        desk = DESK.format(servers=servers)
        stack.enter_context(modelling(port))
        folder = tmp_path_factory.mktemp("mcp")
        yield stack.enter_context(front(folder, tables, database=postgres_copy, desk=desk, policy=OPENED))


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_an_agent_that_is_served_calls_the_reference_server(served: Front, transport: str) -> None:
    """Whoever is asked over HTTP calls it, tells that it did, and has the call and its result on record."""
    async with aibox.Client(served.url, await served.key(transport)) as client:
        for number in range(2 * REPLICAS):
            said = f'call {transport}__echo {{"message": "Bergen {number}"}}'
            events = [event async for event in client.stream(said)]
            (returned,) = [event for event in events if event.type == "tool_returned"]
            assert returned.ok
            assert events[-1].text == f"I was told: Echo: Bergen {number}"
    kinds = [entry.kind for entry in await served.entries(transport)]
    assert kinds.count("tool.returned") == kinds.count("turn.sealed") == 2 * REPLICAS
