"""The sandbox as a tool: code that a model wrote runs there and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aibox.execution import Result
from aibox.sandbox.sandbox import Sandbox
from aibox.types import Scope


class PythonTool:
    """`python(code)`: run a program in a new sandbox session and return what it printed."""

    name = "python"
    description = "Run a Python program in an isolated sandbox without network and return what it prints."
    schema: Mapping[str, Any] = {
        "type": "object",
        "properties": {"code": {"type": "string", "description": "A complete program; print what should be returned."}},
        "required": ["code"],
        "additionalProperties": False,
    }
    # Nothing that it does outlives the session.
    side_effects = False

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox

    async def call(self, arguments: Mapping[str, Any], *, scope: Scope) -> str:
        code = arguments.get("code")
        if not isinstance(code, str) or not code.strip():
            return "Wrong arguments for python: code must be a program. Correct them and try again."
        async with self._sandbox.session(scope=scope) as session:
            return describe(await session.python(code))


def describe(result: Result) -> str:
    """A run in words that a model can act on: what was printed, how it ended, which limit stopped it."""
    parts = [result.stdout.rstrip()] if result.stdout.strip() else []
    if result.stderr.strip():
        parts.append(f"stderr:\n{result.stderr.rstrip()}")
    if result.limits_hit:
        parts.append("; ".join(result.limits_hit))
    elif not result.ok:
        parts.append(f"exit code {result.exit_code}")
    if result.truncated:
        parts.append("(output was cut)")
    return "\n".join(parts) or "(the program printed nothing)"
