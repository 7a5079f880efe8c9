"""A whole turn asks nobody: no dependency looks up a name or connects, on either event loop."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from aibox.inference import demo_model

TURN = """
import asyncio, sys
import aibox
from aibox.sealing import attempts

aibox.seal()

@aibox.tool
def owed(customer: str) -> float:
    "Open invoices of a customer, in EUR."
    return 1240.5

async def main():
    async with aibox.open() as box:
        agent = box.agent(tools=[owed], sandbox=box.sandbox, settings={"max_tokens": 80, "temperature": 0})
        scope = aibox.Scope.local(session="s")
        reply = await agent.run("Remember that Acme pays on 14 March. My e-mail is eva@example.org.", scope=scope)
        assert reply.receipt is not None
        reply = await agent.run("What does Acme owe?", scope=scope, tool_choice="owed")
        assert reply.tool_calls[0].ok
        async with box.sandbox.session(scope=scope) as session:
            assert (await session.python("print(1)")).ok
        assert await box.memory.recall("When does Acme pay?", scope=scope)
        await box.audit.verify()

if sys.argv[1] == "uvloop":
    import uvloop
    uvloop.run(main())
else:
    asyncio.run(main())
print("attempts", attempts())
"""


@pytest.mark.skipif(demo_model.find() is None, reason="the demo model is not installed: make setup")
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_no_dependency_looks_up_or_connects_during_a_turn(loop: str, tmp_path: Path) -> None:
    """Model, tool, sandbox, memory and evidence, sealed: nothing was refused, because nothing was tried."""
    script = tmp_path / "turn.py"
    script.write_text(TURN)
    done = subprocess.run([sys.executable, script, loop], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "attempts ()"
