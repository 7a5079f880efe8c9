"""The OpenAI routes of `aibox serve` in front of a real vLLM server, by the official client."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

import aibox
from aibox.box import Box
from aibox.server.app import create_app
from aibox.server.auth import Callers, LocalKey
from aibox.settings import Settings
from aibox.types import Scope

pytestmark = [pytest.mark.anyio, pytest.mark.live, pytest.mark.loopback]

SCOPE = Scope(tenant="live", user="eva")
MESSAGES: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture
async def served(vllm: str, tmp_path: Path) -> AsyncIterator[tuple[openai.AsyncOpenAI, Box]]:
    backends: Any = [{"kind": "vllm", "name": "vllm", "url": vllm}]
    async with Box(Settings(home=tmp_path / "home", backends=backends)) as box:
        key = LocalKey(tmp_path / "key", scope=SCOPE)
        app = create_app(box, callers=Callers(key))
        http = httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://aibox/v1")
        token = key.prepare() or ""
        yield openai.AsyncOpenAI(api_key=token, base_url="http://aibox/v1", max_retries=0, http_client=http), box


async def test_every_route_answers_as_the_server_does(served: tuple[openai.AsyncOpenAI, Box]) -> None:
    """Chat, completions and responses, whole and streamed: the same words, usage, one end of each call on record."""
    client, box = served
    plain: Any = {"model": "smollm2", "temperature": 0}
    chat = await client.chat.completions.create(**plain, messages=MESSAGES, max_tokens=16)
    streamed = await client.chat.completions.create(
        **plain, messages=MESSAGES, max_tokens=16, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in streamed]
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert said == chat.choices[0].message.content
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 0
    whole = await client.completions.create(**plain, prompt="The capital of France is", max_tokens=8)
    pieces = await client.completions.create(**plain, prompt="The capital of France is", max_tokens=8, stream=True)
    assert "".join([chunk.choices[0].text async for chunk in pieces if chunk.choices]) == whole.choices[0].text != ""
    answer = await client.responses.create(**plain, input="What is the capital of France?", max_output_tokens=16)
    events = [
        event
        async for event in await client.responses.create(
            **plain, input="What is the capital of France?", max_output_tokens=16, stream=True
        )
    ]
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == answer.output_text != ""
    assert events[-1].type in ("response.completed", "response.incomplete")
    kinds = [entry.kind async for entry in box.audit.entries(SCOPE.tenant)]
    assert kinds.count("turn.sealed") == 6
    assert kinds.count("model.called") == 6


async def test_what_the_server_cannot_do_is_its_own_error(served: tuple[openai.AsyncOpenAI, Box]) -> None:
    """A model that chats gives no vectors, and the caller gets an error of the field's shape that says so."""
    client, _ = served
    with pytest.raises((openai.BadRequestError, openai.InternalServerError, aibox.AIBoxError)) as caught:
        await client.embeddings.create(model="smollm2", input="x")
    assert "smollm2" in str(caught.value) or "vllm" in str(caught.value)
