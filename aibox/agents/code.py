"""The sandbox as tools: code that a model wrote runs there and nowhere else.

The calls of one conversation share a session, so that variables and files are there at the next call.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, ClassVar

from aibox.agents.artifacts import hand_out
from aibox.agents.turn_state import TurnState
from aibox.execution import Result
from aibox.sandbox.sandbox import Sandbox
from aibox.sandbox.session import Session
from aibox.types import Scope

_SHOWN_CHARACTERS = 20_000


class _CodeTool:
    """What the four have in common. None has side effects: nothing outlives the sandbox."""

    name: ClassVar[str]
    description: ClassVar[str]
    properties: ClassVar[Mapping[str, str]]
    side_effects = False

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox

    @property
    def schema(self) -> Mapping[str, Any]:
        return {
            "type": "object",
            "properties": {name: {"type": "string", "description": text} for name, text in self.properties.items()},
            "required": list(self.properties),
            "additionalProperties": False,
        }

    async def call(self, arguments: Mapping[str, Any], *, scope: Scope) -> str:
        if (words := self._words(arguments)) is None:
            return self._wrong
        async with self._session(scope) as session:
            done = await self._do(session, *words)
        return done if isinstance(done, str) else describe(done)

    async def call_in(self, arguments: Mapping[str, Any], *, call_id: str, turn: TurnState) -> str:
        """As `call`; what the code made goes to the person whose turn it is."""
        if (words := self._words(arguments)) is None:
            return self._wrong
        async with self._session(turn.scope) as session:
            done = await self._do(session, *words)
            if isinstance(done, str):
                return done
            return await handed(session, done, tool=self.name, call_id=call_id, turn=turn)

    def _words(self, arguments: Mapping[str, Any]) -> list[str] | None:
        words = [arguments.get(name) for name in self.properties]
        return [str(w) for w in words] if words[0] and all(isinstance(w, str) for w in words) else None

    @property
    def _wrong(self) -> str:
        needed = " and ".join(self.properties)
        return f"Wrong arguments for {self.name}: {needed} must be text. Correct them and try again."

    @asynccontextmanager
    async def _session(self, scope: Scope) -> AsyncIterator[Session]:
        """The conversation's; outside of one, a session for this call alone."""
        if scope.session:
            yield await self._sandbox.keep(scope=scope)
        else:
            async with self._sandbox.session(scope=scope) as session:
                yield session

    async def _do(self, session: Session, *words: str) -> str | Result:
        raise NotImplementedError


class PythonTool(_CodeTool):
    """`python(code)`: run code in the conversation's interpreter."""

    name = "python"
    description = (
        "Run Python in an isolated sandbox without network. Variables and files remain for the next call of the same "
        "conversation. Returns what it prints and the value of the last expression. The user is shown figures and new "
        "files."
    )
    properties: ClassVar[Mapping[str, str]] = {"code": "Python code; print what should be returned."}

    async def _do(self, session: Session, *words: str) -> Result:
        return await session.python(words[0])


class BashTool(_CodeTool):
    """`bash(command)`: run a command line over the same files."""

    name = "bash"
    description = (
        "Run a bash command line in an isolated sandbox without network, over the files of the conversation. "
        "The user is shown new files."
    )
    properties: ClassVar[Mapping[str, str]] = {"command": "The command line."}

    async def _do(self, session: Session, *words: str) -> Result:
        return await session.bash(words[0])


class ReadFileTool(_CodeTool):
    """`read_file(path)`: a text file of the sandbox."""

    name = "read_file"
    description = "Read a text file of the sandbox's workspace."
    properties: ClassVar[Mapping[str, str]] = {"path": "A path in the workspace, such as 'out/report.txt'."}

    async def _do(self, session: Session, *words: str) -> str:
        text = (await session.read(words[0])).decode("utf-8", errors="replace")
        if len(text) > _SHOWN_CHARACTERS:
            return f"{text[:_SHOWN_CHARACTERS]}\n(the first {_SHOWN_CHARACTERS} of {len(text)} characters)"
        return text or "(the file is empty)"


class WriteFileTool(_CodeTool):
    """`write_file(path, text)`: a text file of the sandbox."""

    name = "write_file"
    description = "Write a text file of the sandbox's workspace; folders are made on the way, a file there is replaced."
    properties: ClassVar[Mapping[str, str]] = {
        "path": "A path in the workspace, such as 'in/data.csv'.",
        "text": "What the file shall hold.",
    }

    async def _do(self, session: Session, *words: str) -> str:
        path, text = words
        await session.write(path, text)
        return f"wrote {len(text.encode('utf-8', 'surrogatepass'))} bytes to {path}"


def code_tools(sandbox: Sandbox) -> tuple[PythonTool | BashTool | ReadFileTool | WriteFileTool, ...]:
    """All four. A policy's `tools` says which an agent may use, and which only after a person's approval."""
    return PythonTool(sandbox), BashTool(sandbox), ReadFileTool(sandbox), WriteFileTool(sandbox)


async def handed(session: Session, done: Result, *, tool: str, call_id: str, turn: TurnState) -> str:
    """A run in words for the model, and what of its files and figures the person got."""
    given = await hand_out(session, done.figures, tool=tool, call_id=call_id, turn=turn)
    return "\n".join(filter(None, (describe(done), given)))


def describe(result: Result) -> str:
    """A run in words that a model can act on: what was printed, how it ended, which limit stopped it."""
    parts = [result.stdout.rstrip()] if result.stdout.strip() else []
    parts += [str(table) for table in result.tables]
    if result.value is not None and not result.tables:
        parts.append(result.value)
    if result.figures:
        parts.append(f"({len(result.figures)} figures were drawn)")
    if result.stderr.strip():
        parts.append(f"stderr:\n{result.stderr.rstrip()}")
    if result.limits_hit:
        parts.append("; ".join(result.limits_hit))
    elif not result.ok:
        parts.append(f"exit code {result.exit_code}")
    if result.truncated:
        parts.append("(output was cut)")
    return "\n".join(parts) or "(the program printed nothing)"
