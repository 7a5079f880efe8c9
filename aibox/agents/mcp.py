"""MCP servers as tools: over stdio, SSE and streamable HTTP, under names of their own, their descriptions held to.

What a server says of a tool goes into a prompt, so a description that changed is held back until somebody looked. All
that a server returns is a stranger's, and what it gets has left.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec

from aibox.agents import mcp_streams
from aibox.agents.boxed import started
from aibox.agents.dispatch import Refused
from aibox.agents.evidence import digest
from aibox.agents.mcp_text import meta_of, text_of
from aibox.agents.passage import passage
from aibox.agents.pins import Pins
from aibox.agents.secret import Secret
from aibox.agents.state import AgentState
from aibox.agents.turn_state import TurnState
from aibox.errors import ConfigError, MissingExtraError, UpstreamError
from aibox.guardrails.guardrail import Guardrail
from aibox.sandbox.sandbox import Sandbox
from aibox.sandbox.talk import Talk
from aibox.types import Label, Scope

MAX_PAGES = 50
_NAME = re.compile(r"[a-z][a-z0-9-]{0,31}")
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]")


@dataclass(frozen=True, slots=True, kw_only=True)
class McpServer:
    """One server. `command` and `args` start one over stdio; `url` is one that runs, over `http` or `sse`.

    A stdio server runs inside the sandbox, without a network, in an empty workspace but for what is in `folder`, where
    it begins. With `trusted` it has the rights of this process instead. Its environment is `env` and a bare minimum.
    `allow` and `deny` filter tools by the server's own names. `headers` may hold Secrets. `label` marks what its tools
    return; `sends` False says that nothing it is told can leave the box, and is so of one in the sandbox.
    """

    name: str
    command: str = ""
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    folder: str | Path | None = None
    url: str = ""
    transport: Literal["stdio", "http", "sse"] = "http"
    headers: Mapping[str, str | Secret] = field(default_factory=dict)
    trusted: bool = False
    allow: frozenset[str] | None = None
    deny: frozenset[str] = frozenset()
    approve: bool = False
    sends: bool | None = None
    label: Label | None = None
    timeout_s: float = 30.0

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ConfigError(
                f"not a name for an MCP server: {self.name!r}", hint="lower case letters, digits, hyphens"
            )
        if bool(self.command) == bool(self.url):
            raise ConfigError(f"the MCP server {self.name} needs a command or a url, and not both")
        if self.folder is not None and not self.boxed:
            raise ConfigError(
                f"the folder of the MCP server {self.name} would be copied into a sandbox that it is not in"
            )

    @property
    def boxed(self) -> bool:
        """Whether it runs inside the sandbox."""
        return bool(self.command) and not self.trusted

    @property
    def lets_out(self) -> bool:
        """Whether what it is told may leave the box."""
        return not self.boxed if self.sends is None else self.sends

    def streams(self) -> AbstractAsyncContextManager[Any]:
        """The way to it, where it does not run inside the sandbox."""
        if self.command:
            return mcp_streams.process(self.command, self.args, self.env)
        headers = {
            name: value.resolve(scope=Scope.local()).reveal() if isinstance(value, Secret) else value
            for name, value in self.headers.items()
        }
        return mcp_streams.remote(self.url, sse=self.transport == "sse", headers=headers, timeout_s=self.timeout_s)


class McpTool:
    """One tool of a server, as `server__tool`."""

    untrusted = True
    # Its description is in every prompt, long before it is called.
    told_by_stranger = True
    side_effects = True

    def __init__(self, connection: McpConnection, told: Any) -> None:
        self._connection = connection
        self.told_name: str = told.name
        server = connection.server
        self.server = server.name
        self.name = f"{server.name}__{_UNSAFE.sub('_', told.name)}"[:64]
        self.description = str(told.description or told.title or told.name)
        self.schema: Mapping[str, Any] = told.input_schema
        self.label = server.label
        self.sends = server.lets_out
        self.approve = server.approve
        self.timeout_s = server.timeout_s

    @property
    def digest(self) -> str:
        """Of all that a model is told of it."""
        told = {"name": self.told_name, "description": self.description, "schema": self.schema}
        return digest(msgspec.json.encode(told, order="deterministic"))

    async def call(self, arguments: Mapping[str, Any], *, scope: Scope) -> str:  # noqa: ARG002 - Tool's face
        raise Refused(f"{self.name} works inside a turn only.", "invalid")

    async def call_in(self, arguments: Mapping[str, Any], *, call_id: str, turn: TurnState) -> str:  # noqa: ARG002
        server, passed, correlation = self._connection.server, "", turn.scope.correlation
        if server.url and server.lets_out:
            correlation = ""
            passed = await passage(
                urlsplit(server.url).hostname or "", what=self.name, text=json.dumps(dict(arguments)), turn=turn
            )
        self._connection.told(turn)
        with mcp_streams.part_of(correlation):
            return await self._connection.call(self, arguments, passed=passed)

    def __repr__(self) -> str:
        return f"<tool {self.name} of an MCP server>"


class McpConnection:
    """An open server: `tools` for an agent, and `held`, whose descriptions changed since they were accepted."""

    def __init__(
        self,
        server: McpServer,
        *,
        state: AgentState | None,
        guardrail: Guardrail | None,
        sandbox: Sandbox | None = None,
        scope: Scope | None = None,
    ) -> None:
        if server.boxed and sandbox is None:
            raise ConfigError(
                f"the MCP server {server.name} runs inside a sandbox, and there is none",
                hint="connect(server, sandbox=box.sandbox); trusted=True gives it the rights of this process",
            )
        self.server = server
        self.tools: tuple[McpTool, ...] = ()
        self.held: dict[str, str] = {}
        """A tool's name, and why it is not offered."""
        self._pins = Pins((state or AgentState()).store, server=server.name)
        self._guardrail = guardrail
        self._sandbox = sandbox
        self._scope = scope or Scope.local()
        self._knows = Label()
        self._session: Any = None
        self._stale = False

    def told(self, turn: TurnState) -> None:
        """A server in the sandbox remembers: it is one tenant's, and what it says is as secret as all it was told."""
        if not self.server.boxed:
            return
        if turn.scope.tenant != self._scope.tenant:
            raise Refused(f"The MCP server {self.server.name} belongs to another tenant. Do without it.", "denied")
        self._knows |= turn.label
        turn.touch(self._knows)

    async def call(self, tool: McpTool, arguments: Mapping[str, Any], *, passed: str = "") -> str:
        """Raises UpstreamError for a server that fails, Refused for a tool that is held. `passed` goes along."""
        if self._stale:
            await self.refresh()
        if tool.name in self.held:
            raise Refused(f"{tool.name} is held back: {self.held[tool.name]}. Do without it.", "held")
        from mcp import MCPError

        try:
            result = await self._session.call_tool(
                tool.told_name, dict(arguments), self.server.timeout_s, meta=meta_of(passed)
            )
        except MCPError as error:
            raise UpstreamError(f"the MCP server {self.server.name}: {str(error)[:500]}") from None
        text = text_of(result)
        if result.is_error:
            raise UpstreamError(text or "the server reported an error without words")
        return text or "(nothing was returned)"

    async def refresh(self) -> None:
        """Ask for the tools anew, and hold back those that are told otherwise than they were accepted."""
        self._stale = False
        found: dict[str, McpTool] = {}
        for told in await self._listed():
            if told.name in self.server.deny or (self.server.allow is not None and told.name not in self.server.allow):
                continue
            tool = McpTool(self, told)
            if tool.name in found:
                raise ConfigError(f"the MCP server {self.server.name} has two tools that would be {tool.name}")
            found[tool.name] = tool
        known = await self._pins.of({name: tool.digest for name, tool in found.items()})
        held = {}
        for name, tool in found.items():
            if known[name] != tool.digest:
                held[name] = "its description is not the one that was accepted"
            elif fault := await self._fault(tool):
                held[name] = fault
        # Under way a tool may vanish or change: what an agent holds of it must not be called as something else.
        for tool in self.tools:
            if tool.name not in found:
                held[tool.name] = "its server offers it no more"
        self.held = held
        self.tools = tuple(tool for name, tool in found.items() if name not in held)

    async def accept(self, name: str) -> None:
        """Somebody looked at what a held tool says now, and agrees. An agent has it when it is built again."""
        for told in await self._listed():
            tool = McpTool(self, told)
            if tool.name == name:
                await self._pins.accept(tool.name, tool.digest)
        await self.refresh()

    async def _listed(self) -> list[Any]:
        from mcp.types import PaginatedRequestParams

        found, cursor = [], None
        for _ in range(MAX_PAGES):
            page = await self._session.list_tools(params=PaginatedRequestParams(cursor=cursor) if cursor else None)
            found += page.tools
            cursor = page.next_cursor
            if not cursor:
                return found
        raise UpstreamError(f"the MCP server {self.server.name} lists its tools without an end")

    async def _fault(self, tool: McpTool) -> str:
        if self._guardrail is None:
            return ""
        text = f"{tool.description}\n{json.dumps(dict(tool.schema))}"
        verdict = await self._guardrail.check(text, where="tool_result", scope=Scope.local())
        if verdict.text == text and not verdict.blocked:
            return ""
        return f"its description was found unfit: {'; '.join(verdict.reasons())}"

    async def heard(self, message: Any) -> None:
        """A notification of the server; only that its tools changed is of interest."""
        root = getattr(message, "root", message)
        if getattr(root, "method", "") == "notifications/tools/list_changed":
            self._stale = True

    async def opened(self, stack: AsyncExitStack) -> None:
        """Connect inside a stack that the same task closes."""
        try:
            from mcp import ClientSession
        except ImportError:
            raise MissingExtraError("MCP", extra="all") from None
        talk: Talk | None = None
        if self._sandbox is not None and self.server.boxed:
            talk = await stack.enter_async_context(started(self.server, sandbox=self._sandbox, scope=self._scope))
            streams = await stack.enter_async_context(mcp_streams.spoken(talk))
        else:
            streams = await stack.enter_async_context(self.server.streams())
        self._session = await stack.enter_async_context(
            ClientSession(
                streams[0],
                streams[1],
                read_timeout_seconds=self.server.timeout_s,
                message_handler=self.heard,
            )
        )
        try:
            await self._session.initialize()
        except Exception:
            if talk is None or not talk.over:
                raise
            # Its own last words tell more than that the line is dead.
            said = talk.stderr.strip()[-300:] or f"it ended with {talk.exit_code}"
            raise UpstreamError(f"the MCP server {self.server.name} ended at once: {said}") from None
        await self.refresh()


@asynccontextmanager
async def connect(
    server: McpServer,
    *,
    state: AgentState | None = None,
    guardrail: Guardrail | None = None,
    sandbox: Sandbox | None = None,
    scope: Scope | None = None,
) -> AsyncIterator[McpConnection]:
    """An open connection: `async with connect(server, state=...) as mcp: box.agent(tools=mcp.tools)`.

    `state` keeps what was accepted of each description over a restart; `guardrail` looks at descriptions. A stdio
    server that is not trusted runs in a session of `sandbox`, for the tenant of `scope` (None is `Scope.local()`) and
    for no other. Raises UpstreamError when the server cannot be reached, ConfigError for one that may not be started.
    """
    connection = McpConnection(server, state=state, guardrail=guardrail, sandbox=sandbox, scope=scope)
    ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    leave = asyncio.Event()

    async def hold() -> None:
        # The client's task groups must be closed by the task that opened them, and callers come and go.
        try:
            async with AsyncExitStack() as stack:
                await connection.opened(stack)
                ready.set_result(None)
                await leave.wait()
        except BaseException as error:
            if ready.done():
                raise
            ready.set_exception(_first(error))

    task = asyncio.create_task(hold(), name=f"mcp {server.name}")
    try:
        try:
            async with asyncio.timeout(server.timeout_s):
                await asyncio.shield(ready)
        except TimeoutError:
            raise UpstreamError(f"the MCP server {server.name} did not answer in {server.timeout_s:g} s") from None
        except (ConfigError, UpstreamError):
            raise
        except Exception as error:  # noqa: BLE001 - whatever a server or its protocol does is one thing to a caller
            raise UpstreamError(f"the MCP server {server.name} could not be used: {error}") from None
        yield connection
    finally:
        leave.set()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(task), 5.0)
        task.cancel()
        await asyncio.wait([task])


def _first(error: BaseException) -> BaseException:
    """What really went wrong, inside the groups that it came in."""
    while isinstance(error, BaseExceptionGroup) and error.exceptions:
        error = error.exceptions[0]
    return error
