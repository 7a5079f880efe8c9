"""The bare Agents SDK, as people use it: its own chat model and the official client, or a model of its own kind."""

from __future__ import annotations

import functools
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from aibox.agents._sdk import sdk
from aibox.inference.client import openai_client
from aibox.testing import ScriptedBackend
from aibox.types import Scope

Turn = Callable[[], Awaitable[Any]]


@functools.cache
def _instant() -> Any:
    """The least that the SDK can ask: a Model that says at once what the script says."""
    agents = sdk()
    from agents.models.interface import Model
    from agents.testing import assistant_message, function_call

    class Instant(Model):
        async def get_response(self, system_instructions: Any, input: Any, *_: Any, **__: Any) -> Any:  # noqa: A002, ARG002
            ended = isinstance(input[-1], dict) and input[-1].get("type") == "function_call_output"
            said = (
                [assistant_message("Paris.")]
                if ended
                else [function_call("capital", '{"country": "France"}', call_id=uuid.uuid4().hex)]
            )
            return agents.ModelResponse(output=said, usage=agents.Usage(), response_id=None)

        def stream_response(self, *_: Any, **__: Any) -> Any:
            raise NotImplementedError

    return Instant


def bare(
    backend: ScriptedBackend,
    *,
    instructions: str,
    messages: Sequence[Mapping[str, str]],
    tool: Callable[..., Any] | None,
    instant: bool = False,
) -> Turn:
    """A turn of the SDK alone. `instant` leaves out its chat model and the client: only the loop is left."""
    agents = sdk()
    client = openai_client(backend, scope=Scope.local())
    model = _instant()() if instant else agents.OpenAIChatCompletionsModel(model="scripted", openai_client=client)
    tools = [agents.function_tool(tool)] if tool is not None else []
    agent = agents.Agent(name="bare", instructions=instructions, model=model, tools=tools)
    config = agents.RunConfig(tracing_disabled=True)

    async def turn() -> None:
        result = await agents.Runner.run(agent, [dict(m) for m in messages], run_config=config)
        assert result.final_output == "Paris.", result.final_output

    return turn
