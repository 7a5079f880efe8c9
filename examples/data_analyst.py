"""A data analyst: what the model writes runs in a sandbox, without a network, and nowhere else."""

import asyncio

import aibox
from aibox.testing import ScriptedBackend, call

CODE = """
import statistics
sales = [120, 95, 180, 160, 210]
print("mean", statistics.mean(sales))
for month, sold in enumerate(sales, 1):
    print(month, "#" * (sold // 10))
"""
MODEL = ScriptedBackend(call("python", {"code": CODE}), "On average 153 were sold a month.")


async def main() -> None:
    sandbox = aibox.Sandbox()
    try:
        agent = aibox.Agent("You analyse data.", router=MODEL, sandbox=sandbox)
        reply = await agent.run("How many did we sell a month?")
        print(reply.tool_calls[0].text)
        print(reply.text)
        async with sandbox.session(scope=aibox.Scope.local()) as session:
            result = await session.python("import socket\nsocket.create_connection(('192.0.2.1', 80), timeout=1)")
            print("and out to the network:", result.stderr.strip().splitlines()[-1])
    finally:
        await sandbox.close()


if __name__ == "__main__":
    asyncio.run(main())
