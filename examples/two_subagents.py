"""Two subagents as Markdown: each has its own instructions and tools, and the parent hands them questions."""

import asyncio
from pathlib import Path

import aibox
from aibox.agents.events import Subagent, ToolCalled
from aibox.testing import ScriptedBackend, call
from aibox.testing.scripted import Call

READER = """---
name: reader
description: Reads the files of a customer.
tools: files
---
You read files and say what is in them.
"""
WRITER = """---
name: writer
description: Writes letters to customers.
tools:
---
You write short letters.
"""


@aibox.tool
def files(customer: str) -> str:
    """The files of a customer."""
    return f"{customer}: pays late"


def task(subagent: str, prompt: str) -> Call:
    return call("delegate", {"description": "a task", "subagent_type": subagent, "prompt": prompt})


async def main() -> None:
    for text, name in ((READER, "reader.md"), (WRITER, "writer.md")):
        Path(name).write_text(text, "utf-8")
    model = ScriptedBackend(
        task("reader", "What do the files of Acme say?"),
        call("files", {"customer": "Acme"}),
        "Acme pays late.",
        task("writer", "Remind Acme, kindly."),
        "Dear Acme, a kind reminder.",
        "The letter: Dear Acme, a kind reminder.",
    )
    agent = aibox.Agent("You run an office.", router=model, tools=[files], subagents=["reader.md", "writer.md"])
    async for event in agent.stream("Remind Acme if they pay late."):
        if isinstance(event, Subagent) and isinstance(event.event, ToolCalled):
            print(f"{event.name} called {event.event.name}")
        elif isinstance(event, aibox.Reply):
            print(event.text)


if __name__ == "__main__":
    asyncio.run(main())
