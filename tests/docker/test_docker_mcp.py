"""An MCP server that nobody vouches for, in a container: what it may not, what it hears, and how it ends."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

import aibox
from aibox.agents.mcp import connect
from aibox.errors import UpstreamError
from aibox.protocols import Driver
from aibox.sandbox.engine import Engine
from aibox.testing import ScriptedBackend, call
from aibox.types import Scope

sys.path.insert(0, str(Path(__file__).parent.parent / "agents"))
from mcp_folder import boxed, packed
from test_docker_contract import docker, gvisor

pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(tmp_path_factory.mktemp("a server"))


@pytest.fixture(params=["runc", "runsc"])
async def driver(request: pytest.FixtureRequest, engine_host: str) -> Driver:
    return docker(engine_host) if request.param == "runc" else await gvisor(engine_host)


async def test_a_server_in_a_container(driver: Driver, engine_host: str, folder: Path, scope: Scope) -> None:
    """Its tools answer; it has no network, no file, no environment of ours; it dies in a call, and nothing is left."""
    sandbox = aibox.Sandbox(driver)
    host = sys.executable  # a file that is here, and not in there
    asked = [
        call("t__add", {"a": 2, "b": 3}),
        call("t__environment", {}),
        call("t__look", {"path": host}),
        call("t__reach", {"host": "127.0.0.1", "port": 9}),
        call("t__reach", {"host": "192.0.2.1", "port": 9}),
        call("t__keep", {"text": "a text"}),
        call("t__look", {"path": "kept"}),
        call("t__die", {}),
        call("t__add", {"a": 1, "b": 1}),
    ]
    try:
        async with connect(boxed(folder), sandbox=sandbox, scope=scope) as mcp:
            model = ScriptedBackend(*asked, "done")
            reply = await aibox.Agent("x", router=model, tools=mcp.tools).run("go", scope=scope)
        with pytest.raises(UpstreamError, match="ended at once"):
            async with connect(boxed(None, env={"PYTHONPATH": ""}), sandbox=sandbox, scope=scope):
                raise AssertionError("it was never open")
        assert not sandbox.ids(scope=scope)
    finally:
        await sandbox.close()
    added, environment, looked, near, far, kept, held, died, after = reply.tool_calls
    assert (added.text, kept.text, held.text) == ("5", "kept", "a text\n")
    assert "No such file" in looked.text
    assert {"HOME", "KEPT", "PATH", "PYTHONPATH"} <= set(environment.text.split(","))
    assert not [name for name in environment.text.split(",") if name.startswith(("AIBOX", "VIRTUAL", "USER"))]
    assert "refused" in near.text or "unreachable" in near.text
    assert "unreachable" in far.text or "No route" in far.text
    assert (died.ok, after.ok) == (False, False)
    # Others may be tried beside it: only this process's are looked for.
    assert f"aibox-{os.getpid()}-" not in await Engine(engine_host).ask("ps", "-a", "--format", "{{.Names}}")
