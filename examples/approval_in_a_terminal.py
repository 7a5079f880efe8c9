"""A person says yes or no to a call with consequences, in the terminal, before it happens."""

import asyncio
from collections.abc import Mapping
from typing import Any

import aibox
from aibox.testing import ScriptedBackend, call

SENT: list[str] = []


@aibox.tool(approve=True, side_effects=True)
def send(to: str, text: str) -> str:
    """Send a message."""
    SENT.append(f"{to}: {text}")
    return "sent"


class Terminal:
    """An Approver: whatever has this one method is."""

    async def approve(self, tool: str, arguments: Mapping[str, Any], *, scope: aibox.Scope, label: aibox.Label) -> bool:
        shown = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        answer = await asyncio.to_thread(input, f"{scope.user} [{label}] {tool}({shown})? [y/N] ")
        return answer.strip().lower() == "y"


async def main() -> None:
    model = ScriptedBackend(call("send", {"to": "bob", "text": "The report is ready."}), "Done, if you agreed.")
    agent = aibox.Agent("You write messages.", router=model, tools=[send], approver=Terminal())
    reply = await agent.run("Tell Bob that the report is ready.")
    print(f"\n{reply.tool_calls[0].text}")
    print("sent:", SENT or "nothing")


if __name__ == "__main__":
    asyncio.run(main())
