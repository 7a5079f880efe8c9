"""The seam to the OpenAI Agents SDK: its loop, with our model, our tools and nothing of its own that calls out.

Its tracing upload is off before it is imported, and a run without our configuration reaches a client that refuses.
"""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from aibox.chat import Completion, plain
from aibox.errors import AIBoxError, BackendError, ConfigError
from aibox.inference.client import refusing_client
from aibox.protocols import Tool

Ask = Callable[[dict[str, Any]], Awaitable[Completion]]
"""Gets the body of a Chat Completions request."""
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
    ask: Ask,
    model: str,
    tools: Sequence[Tool],
    invoke: Callable[[Tool, str, str], Awaitable[str]],
    tool_choice: str | None,
    output_type: type[Any] | None,
    settings: Mapping[str, Any],
) -> str:
    """Ask the model, call the tools it wants through `invoke`, until it answers; the answer's text.

    `messages` are Chat Completions', tool calls with their results included; `ask` gets the body of each model call.
    `invoke` gets a tool, the JSON of its arguments and the id of the call. `tool_choice` holds for the first call only,
    so that a model that must call a tool can still answer afterwards. There is no limit here: whoever answers `ask`
    counts, and raises Stop. Raises BackendError for a model that cannot be understood, and whatever AIBoxError or Stop
    came up inside. However it ends, no tool is still at work, but one that did not let itself be cancelled within
    `ENDING_S` seconds.
    """
    # The first time it takes a second and more, in which everybody else's streams go on.
    agents = sdk() if sdk.cache_info().currsize else await asyncio.to_thread(sdk)
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

    system = [{"role": "system", "content": instructions}]
    fields = {"model": model, **settings, **({"tools": [offered(tool) for tool in tools]} if tools else {})}
    agent = agents.Agent(
        name=name,
        tools=[wrap(tool) for tool in tools],
        model=_conversation()(ask, [*system, *messages], fields),
        model_settings=agents.ModelSettings(tool_choice=tool_choice if tools else None),
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
        # What was said before is the conversation's: the SDK would copy all of it at every step.
        result = await agents.Runner.run(agent, "", max_turns=None, run_config=config)
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


def offered(tool: Tool) -> dict[str, Any]:
    """A tool as Chat Completions offer it to a model."""
    function = {"name": tool.name, "description": tool.description, "parameters": dict(tool.schema)}
    return {"type": "function", "function": function}


@functools.cache
def _conversation() -> Any:
    """The SDK's Model over `ask`: a class over somebody else's, made when the package is loaded anyway."""
    agents = sdk()
    from agents.models.interface import Model

    class Conversation(Model):
        """Holds all that was said, and adds each answer and what its tools gave."""

        def __init__(self, ask: Ask, said: list[Mapping[str, Any]], fields: Mapping[str, Any]) -> None:
            self._ask = ask
            self._said = said
            self._fields = fields
            self._calls: Sequence[Mapping[str, Any]] = ()

        async def get_response(
            self,
            system_instructions: str | None,  # noqa: ARG002 - the conversation has them
            input: str | list[Any],  # noqa: A002 - the SDK's face
            model_settings: Any,
            tools: list[Any],  # noqa: ARG002 - offered already
            output_schema: Any,
            *_: Any,
            **__: Any,
        ) -> Any:
            """One model call. Raises BackendError for an answer that is none."""
            self._take(input)
            body = {**self._fields, "messages": list(self._said)}
            if (choice := model_settings.tool_choice) is not None:
                named = {"type": "function", "function": {"name": choice}}
                body["tool_choice"] = choice if choice in ("auto", "required", "none") else named
            if output_schema is not None and not output_schema.is_plain_text():
                wanted = {"name": "final_output", "strict": False, "schema": output_schema.json_schema()}
                body["response_format"] = {"type": "json_schema", "json_schema": wanted}
            message = (await self._ask(body)).message
            return agents.ModelResponse(output=self._items(message), usage=agents.Usage(), response_id=None)

        def stream_response(self, *_: Any, **__: Any) -> Any:
            raise ConfigError("the loop asks for whole answers; who streams does so behind `ask`")

        def _take(self, input: str | list[Any]) -> None:  # noqa: A002 - as above
            """What the calls of the last answer gave, in the order of the calls."""
            given = {i["call_id"]: i["output"] for i in input if isinstance(i, dict) and "output" in i}
            self._said += [
                {"role": "tool", "tool_call_id": call["id"], "content": given.get(call["id"], "(no result)")}
                for call in self._calls
            ]

        def _items(self, message: Mapping[str, Any]) -> list[Any]:
            """The answer as the SDK's items; it is part of what was said from here on."""
            items = agents.items
            text = plain(message.get("content")) or plain(message.get("refusal"))
            calls = message.get("tool_calls") or ()
            try:
                made = [
                    items.ResponseFunctionToolCall(
                        call_id=call["id"],
                        name=call["function"]["name"],
                        arguments=call["function"].get("arguments") or "",
                        type="function_call",
                    )
                    for call in calls
                ]
            except (KeyError, TypeError, ValueError):
                raise BackendError("the model's answer has a tool call that is none", retryable=True) from None
            self._calls = calls
            self._said.append(
                {"role": "assistant", "content": text or None, **({"tool_calls": calls} if calls else {})}
            )
            if not text and calls:
                return made
            part = items.ResponseOutputText(text=text, type="output_text", annotations=[])
            spoken = items.ResponseOutputMessage(
                id="msg", content=[part], role="assistant", status="completed", type="message"
            )
            return [spoken, *made]

    return Conversation


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
