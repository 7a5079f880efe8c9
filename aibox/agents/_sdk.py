"""The seam to the OpenAI Agents SDK: its loop, with our client, our tools and nothing of its own that calls out.

Its tracing upload is off before it is imported, and a run without our configuration reaches a client that refuses.
"""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from aibox.errors import AIBoxError, BackendError, ConfigError
from aibox.inference.client import refusing_client
from aibox.protocols import Tool

if TYPE_CHECKING:
    from aibox.inference.client import AsyncOpenAI

ENDING_S = 10.0
"""What a tool may take to end when its turn does."""


class Stop(Exception):  # noqa: N818 - a way out of the loop, not an error
    """Raised inside a model call to leave the loop; it comes out of `run_loop` as it went in."""


@functools.cache
def sdk() -> ModuleType:
    """The `agents` package, made silent: no exporter, no tracing, no default client that could answer."""
    # Read when the package is imported; the calls below hold even if something imported it before us.
    os.environ.setdefault("OPENAI_AGENTS_DISABLE_TRACING", "1")
    import agents

    agents.set_tracing_disabled(True)
    agents.set_trace_processors([])
    agents.set_default_openai_client(refusing_client(), use_for_tracing=False)
    return agents


@dataclass(frozen=True, slots=True)
class Signature:
    """What a model is told of a function, and how the model's arguments become the function's."""

    description: str
    schema: Mapping[str, Any]
    bind: Callable[[Mapping[str, Any]], tuple[list[Any], dict[str, Any]]]


def signature_of(function: Callable[..., Any]) -> Signature:
    """Read a function's signature and docstring. Raises ConfigError for what JSON Schema cannot say."""
    sdk()
    from agents.exceptions import UserError
    from agents.function_schema import function_schema

    try:
        # Not strict: the strict dialect makes every parameter required, also those that have a default.
        read = function_schema(function, strict_json_schema=False)
    except (UserError, TypeError, ValueError) as error:
        raise ConfigError(f"{function.__name__} cannot be a tool: {error}") from None

    def bind(arguments: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        return read.to_call_args(read.params_pydantic_model.model_validate(dict(arguments)))

    return Signature(description=read.description or "", schema=read.params_json_schema, bind=bind)


async def run_loop(
    *,
    name: str,
    instructions: str,
    messages: Sequence[Mapping[str, Any]],
    client: AsyncOpenAI,
    model: str,
    tools: Sequence[Tool],
    invoke: Callable[[Tool, str, str], Awaitable[str]],
    tool_choice: str | None,
    output_type: type[Any] | None,
    settings: Mapping[str, Any],
) -> str:
    """Ask the model, call the tools it wants through `invoke`, until it answers; the answer's text.

    `messages` are Chat Completions', tool calls with their results included. `invoke` gets a tool, the JSON of its
    arguments and the id of the call. `tool_choice` holds for the first call only, so that a model that must call a
    tool can still answer afterwards. There is no limit here: whoever answers `client` counts, and raises Stop.
    Raises BackendError for a model that cannot be understood, and whatever AIBoxError or Stop came up inside. However
    it ends, no tool is still at work, but one that did not let itself be cancelled within `ENDING_S` seconds.
    """
    agents = sdk()
    from agents.exceptions import AgentsException

    at_work: set[asyncio.Task[Any]] = set()

    def wrap(tool: Tool) -> Any:
        async def on_invoke_tool(context: Any, arguments: str) -> str:
            task = asyncio.current_task()
            assert task is not None
            at_work.add(task)
            try:
                return await invoke(tool, arguments, context.tool_call_id)
            finally:
                at_work.discard(task)

        return agents.FunctionTool(
            name=tool.name,
            description=tool.description,
            params_json_schema=dict(tool.schema),
            on_invoke_tool=on_invoke_tool,
            strict_json_schema=False,
        )

    agent = agents.Agent(
        name=name,
        instructions=instructions,
        tools=[wrap(tool) for tool in tools],
        model=agents.OpenAIChatCompletionsModel(model=model, openai_client=client),
        model_settings=agents.ModelSettings(tool_choice=tool_choice if tools else None, **settings),
        output_type=agents.AgentOutputSchema(output_type, strict_json_schema=False) if output_type else None,
    )
    config = agents.RunConfig(
        model_provider=_NoProvider(),
        tracing_disabled=True,
        trace_include_sensitive_data=False,
        tool_not_found_behavior="return_error_to_model",
        tool_name_collision_policy="error",
    )
    try:
        result = await agents.Runner.run(agent, _items(messages), max_turns=None, run_config=config)
    except Exception as error:
        if ours := _ours(error):
            raise ours from None
        if isinstance(error, AgentsException):
            raise BackendError(
                f"the model's answer could not be used: {str(error)[:300]}",
                hint="try again, or use a larger model",
                retryable=True,
            ) from error
        raise
    finally:
        await _ended(at_work)
    return agents.ItemHelpers.text_message_outputs(result.new_items[-1:]) or str(result.final_output or "")


async def _ended(at_work: set[asyncio.Task[Any]]) -> None:
    """Wait for tools that are being cancelled; the SDK leaves them behind, so that a turn would be over before them."""
    for _ in range(4):
        if not at_work:
            return
        # It passes a cancellation on from task to task, a step of the loop each. A second one would break off whatever
        # a tool does to end well.
        await asyncio.sleep(0)
    for task in at_work:
        if not task.cancelling():
            task.cancel()
    await asyncio.wait(set(at_work), timeout=ENDING_S)


def _items(messages: Sequence[Mapping[str, Any]]) -> list[Any]:
    """The messages in the SDK's own form, in which a tool call and its result are items of their own."""
    items: list[Any] = []
    for message in messages:
        if message["role"] == "tool":
            items.append(
                {"type": "function_call_output", "call_id": message["tool_call_id"], "output": message["content"]}
            )
            continue
        if message.get("content"):
            items.append({"role": message["role"], "content": message["content"]})
        items += [
            {
                "type": "function_call",
                "call_id": call["id"],
                "name": call["function"]["name"],
                "arguments": call["function"]["arguments"],
            }
            for call in message.get("tool_calls") or ()
        ]
    return items


class _NoProvider:
    """A model name that the SDK would look up by itself is a mistake of ours, and must not find anybody."""

    def get_model(self, model_name: str | None) -> Any:
        raise ConfigError(f"the Agents SDK asked for a model of its own ({model_name}); only the Router gives models")

    async def aclose(self) -> None:
        return


def _ours(error: BaseException | None) -> AIBoxError | Stop | None:
    """Our own exception inside what the client and the SDK made of it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, AIBoxError | Stop):
            return error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None
