"""An agent with a typed tool, in a box: guarded, recorded, and a receipt that anybody can check."""

import asyncio
from pathlib import Path

import aibox
from aibox.testing import ScriptedBackend, call

INVOICES = {"acme": 1240.50, "globex": 310.00}


@aibox.tool
def owed(customer: str) -> float:
    """Open invoices of a customer, in EUR."""
    return INVOICES[customer.lower()]


# Scripted, so that this runs anywhere. Leave `router=` out for the model of the box.
MODEL = ScriptedBackend(call("owed", {"customer": "Acme"}), "Acme owes 1240.50 EUR.")


async def main() -> None:
    async with aibox.open() as box:
        agent = box.agent("You keep the books. Answer in one sentence.", tools=[owed], router=MODEL, memory=None)
        reply = await agent.run("What does Acme owe us? Tell eva@example.org.")
        print(reply.text)
        print("called:", [tool.name for tool in reply.tool_calls], " label:", reply.label)
        assert reply.receipt is not None
        reply.receipt.save("receipt.json")
    print("holds:", aibox.verify(Path("receipt.json")))


if __name__ == "__main__":
    asyncio.run(main())
