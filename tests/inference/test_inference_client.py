"""OpenAI's client in process: the same calls, no port, and our own errors."""

from __future__ import annotations

import openai
import pytest
from inference_parts import Notes

from aibox.errors import BackendError, ConfigError, EgressError
from aibox.inference.client import openai_client, refusing_client
from aibox.inference.router import Router
from aibox.policy.egress import EgressRules
from aibox.policy.policy import Policy
from aibox.testing.scripted import ScriptedBackend, call
from aibox.types import Label, Scope

pytestmark = pytest.mark.anyio
HI = [{"role": "user", "content": "Hi"}]


async def test_it_completes_streams_and_lists(scope: Scope) -> None:
    """The client's own objects come back, scope and label arrive at the backend."""
    model = ScriptedBackend("Hello there, friend.", "Hello there, friend.")
    client = Router(model).openai(scope=scope, label="confidential")
    whole = await client.chat.completions.create(model="default", messages=HI)
    stream = await client.chat.completions.create(
        model="default", messages=HI, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert whole.choices[0].message.content == "Hello there, friend."
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "Hello there, friend."
    assert chunks[-1].usage is not None
    assert [m.id async for m in client.models.list()] == ["scripted"]
    assert model.scopes == [scope, scope]
    assert {str(r.label) for r in model.requests} == {"confidential"}


async def test_tool_calls_come_through(scope: Scope) -> None:
    """Whole and streamed, as the client's tool calls."""
    client = Router(ScriptedBackend(call("add", {"a": 1}))).openai(scope=scope)
    message = (await client.chat.completions.create(model="default", messages=HI)).choices[0].message
    assert message.tool_calls is not None
    assert message.tool_calls[0].function.name == "add"


async def test_our_errors_come_out_as_they_are(scope: Scope, notes: Notes) -> None:
    """A policy error keeps its type through the client, before and in a stream; nothing is retried."""
    outside = ScriptedBackend(name="outside", external=True)
    policy = Policy(egress=EgressRules(models=frozenset({"*"})))
    client = Router(outside, policy=policy, audit=notes).openai(scope=scope, label="restricted")
    with pytest.raises(EgressError, match="restricted"):
        await client.chat.completions.create(model="outside/outside", messages=HI)
    with pytest.raises(EgressError, match="restricted"):
        async for _ in await client.chat.completions.create(model="outside/outside", messages=HI, stream=True):
            pass
    assert len(notes.entries) == 2
    failing = Router(ScriptedBackend(BackendError("gone", retryable=True))).openai(scope=scope)
    with pytest.raises(BackendError, match="gone"):
        await failing.chat.completions.create(model="default", messages=HI)


async def test_what_is_not_served_is_a_404(scope: Scope) -> None:
    """Other routes of the API do not exist here, and say so in the client's own error."""
    client = Router(ScriptedBackend()).openai(scope=scope)
    with pytest.raises(openai.NotFoundError, match="not served here"):
        await client.files.list()
    with pytest.raises(ConfigError, match="no /embeddings"):
        await client.embeddings.create(model="scripted", input="x")


async def test_a_backend_that_only_completes_can_be_streamed(scope: Scope) -> None:
    """The answer then comes in one piece."""

    class Completes:
        def __init__(self) -> None:
            self.complete = ScriptedBackend("Hello there, friend.").complete

    client = openai_client(Completes(), scope=scope, label=Label())
    stream = await client.chat.completions.create(model="m", messages=HI, stream=True)
    assert "".join([c.choices[0].delta.content or "" async for c in stream]) == "Hello there, friend."


async def test_the_refusing_client_refuses() -> None:
    """The safety net answers nothing, whatever it is asked."""
    client = refusing_client()
    with pytest.raises(ConfigError, match="without aibox"):
        await client.chat.completions.create(model="m", messages=HI)
    with pytest.raises(ConfigError, match="without aibox"):
        await client.responses.create(model="m", input="x")
