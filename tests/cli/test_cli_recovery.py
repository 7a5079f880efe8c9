"""A server that is killed in the middle of a turn, and started again: the turn ends once, and nothing runs twice."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import openai
import pytest

import aibox
from aibox.testing import ScriptedBackend

AGENT = '''
import os

import aibox
from aibox.testing import ScriptedBackend, call


@aibox.tool(idempotency_key="order", side_effects=True)
def pay(order: str) -> str:
    """Pay an order."""
    with open("paid", "a") as file:
        file.write(order + "\\n")
    if os.environ["KILLED"] == "in the call":
        os.kill(os.getpid(), 9)
    return "paid " + order


def answer(request):
    if request.messages[-1]["role"] != "tool":
        return call("pay", {"order": "A-17"})
    if os.environ["KILLED"] == "after the call":
        os.kill(os.getpid(), 9)
    return "The model read: " + request.messages[-1]["content"]


def office(box):
    model = ScriptedBackend(*[answer] * 9)
    said = os.environ.get("SAID", "Books.")
    return aibox.Agent(said, name="office", router=model, tools=[pay], state=box.state, audit=box.audit)
'''


@contextmanager
def served(folder: Path, **env: str) -> Iterator[tuple[str, subprocess.Popen[str], str]]:
    """The URL of `aibox serve books:office`, its process, and its key where it is new."""
    command = [sys.executable, "-m", "aibox", "serve", "books:office", "--port", "0"]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "200", **env}, cwd=folder
    ) as server:
        assert server.stderr is not None
        url = re.search(r"http://\S+", server.stderr.readline())
        assert url is not None
        key = folder / "key"
        if not key.exists():
            printed = re.search(r"aibox-local-\S+", server.stderr.readline())
            assert printed is not None
            key.write_text(printed[0])
        try:
            yield url[0], server, key.read_text()
        finally:
            server.send_signal(signal.SIGINT)
            server.communicate(timeout=300)


async def asked(url: str, key: str) -> str:
    """What the agent says to the order."""
    messages: Any = [{"role": "user", "content": "pay A-17"}]
    async with openai.AsyncOpenAI(base_url=url, api_key=key, max_retries=0) as client:
        reply = await client.chat.completions.create(model="agent:office", messages=messages)
    return reply.choices[0].message.content or ""


async def ends(home: Path) -> list[tuple[str, str]]:
    """The terminal entries of the turns, and what each says."""
    async with aibox.AuditChain(home / "audit.db") as chain:
        found = [entry async for entry in chain.entries("default")]
    return [(e.kind, e.detail["outcome"]) for e in found if e.kind in ("turn.sealed", "turn.failed")]


@pytest.mark.anyio
@pytest.mark.loopback
@pytest.mark.parametrize("killed", ["in the call", "after the call"])
async def test_a_server_that_starts_again_ends_what_was_left_under_way(killed: str, tmp_path: Path) -> None:
    """kill -9 in a tool, or while the model reads its result: the next start goes on, and pays no second time."""
    (tmp_path / "books.py").write_text(AGENT)
    home = Path(os.environ["AIBOX_HOME"])
    with served(tmp_path, KILLED=killed) as (url, server, key):
        with suppress(openai.APIConnectionError):
            await asked(url, key)
        assert await asyncio.to_thread(server.wait, 300) == -signal.SIGKILL
    assert (tmp_path / "paid").read_text() == "A-17\n"
    assert await ends(home) == []

    with served(tmp_path, KILLED="no more") as (url, _, key):
        async with aibox.AuditChain(home / "audit.db") as chain:

            async def sealed() -> bool:
                return any([e.kind == "turn.sealed" async for e in chain.entries("default")])

            while not await sealed():
                await asyncio.sleep(0.05)
        # Who asks with the same key again gets what is known of the first call, and it is not made.
        said = await asked(url, key)
        assert ("not known" in said) == (killed == "in the call")
        assert ("paid A-17" in said) == (killed == "after the call")
    assert (tmp_path / "paid").read_text() == "A-17\n"
    assert await ends(home) == [
        ("turn.failed", "interrupted"),
        ("turn.sealed", "answered"),
        ("turn.sealed", "answered"),
    ]


@pytest.mark.anyio
@pytest.mark.loopback
async def test_another_agent_reports_what_it_cannot_go_on_with(tmp_path: Path) -> None:
    """After a deploy the interrupted turn is on record as failed, and the server serves."""
    (tmp_path / "books.py").write_text(AGENT)
    home = Path(os.environ["AIBOX_HOME"])
    with served(tmp_path, KILLED="in the call") as (url, server, key):
        with suppress(openai.APIConnectionError):
            await asked(url, key)
        await asyncio.to_thread(server.wait, 300)
    with served(tmp_path, KILLED="no more", SAID="Other books."):
        async with aibox.AuditChain(home / "audit.db") as chain:
            while not [e async for e in chain.entries("default") if e.kind == "turn.failed"]:
                await asyncio.sleep(0.05)
    assert await ends(home) == [("turn.failed", "interrupted")]


@pytest.mark.anyio
async def test_a_box_ends_what_was_left_when_its_agent_is_made(tmp_path: Path) -> None:
    """Without a server too: the next `box.agent`, for each tenant; what is under way elsewhere is left alone."""
    program = """
        import asyncio, os, sys
        import aibox
        from aibox.testing import ScriptedBackend, call
        from aibox.types import Scope

        tenants, paying = sys.argv[2:], []

        @aibox.tool(side_effects=True)
        async def pay(to: str) -> str:
            "Pay."
            paying.append(to)
            if len(paying) == len(tenants):
                print("paying", flush=True)
                if sys.argv[1] == "die":
                    os.kill(os.getpid(), 9)
            return await asyncio.to_thread(sys.stdin.readline)

        async def main():
            async with aibox.open() as box:
                model = ScriptedBackend(*[call("pay", {"to": "Acme"})] * len(tenants), "Done.")
                agent = box.agent("x", name="clerk", router=model, tools=[pay])
                runs = [agent.run("go", scope=Scope(tenant=tenant, user="eva")) for tenant in tenants]
                print((await asyncio.gather(*runs))[0].text, flush=True)

        asyncio.run(main())
    """
    script = tmp_path / "clerk.py"
    script.write_text(re.sub(r"^ {8}", "", program, flags=re.MULTILINE))

    @aibox.tool(side_effects=True)
    def pay(to: str) -> str:
        "Pay."
        raise AssertionError("a second time")

    words = [sys.executable, str(script), "live", "third"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as alive:
        assert alive.stdout is not None
        assert alive.stdout.readline() == "paying\n"
        dying = [sys.executable, str(script), "die", "acme", "rival"]
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL}
        with subprocess.Popen(dying, **pipes) as killed:
            assert killed.wait(300) == -signal.SIGKILL
        async with aibox.open() as box:
            model = ScriptedBackend("I cannot tell.", "I cannot tell.")
            box.agent("x", name="clerk", router=model, tools=[pay])
            await box.recovery.done()
            model.assert_done()
            for tenant in ("acme", "rival"):
                kinds = [e.kind async for e in box.audit.entries(tenant)]
                assert [k for k in kinds if k in ("turn.failed", "turn.sealed")] == ["turn.failed", "turn.sealed"]
        out, _ = alive.communicate("on\n", timeout=300)
        assert out == "Done.\n"
