"""`aibox serve` in front of a real vLLM server, asked over HTTP: OpenAI's routes by the official client, and a turn."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import httpx2
import openai
import pytest
from front import Front, front
from pydantic import BaseModel

import aibox

pytestmark = [pytest.mark.anyio, pytest.mark.live, pytest.mark.loopback]

QUESTION = "What is the capital of France?"
MESSAGES: list[Any] = [{"role": "user", "content": QUESTION}]
PLAIN: Any = {"model": "smollm2", "temperature": 0}
CAPITAL: Any = {
    "type": "function",
    "function": {"name": "capital", "parameters": {"type": "object", "properties": {"country": {"type": "string"}}}},
}


class Place(BaseModel):
    """What this model says of itself only where it can say nothing else."""

    kind: Literal["quaint-hamlet", "sprawling-metropolis"]
    inland: bool


@dataclass
class Served:
    front: Front
    vllm: str
    key: str

    def client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(api_key=self.key, base_url=self.front.url + "/v1", max_retries=0)


@pytest.fixture(scope="module")
def served(vllm: str, tmp_path_factory: pytest.TempPathFactory, postgres_copy: Callable[[], str]) -> Iterator[Served]:
    tables = f'[[backends]]\nkind = "vllm"\nname = "vllm"\nurl = "{vllm}"\nexternal = false\n'
    with front(tmp_path_factory.mktemp("routes"), tables, database=postgres_copy) as made:
        yield Served(made, vllm, asyncio.run(made.key("live")))


async def test_every_route_answers_as_the_server_does(served: Served) -> None:
    """Chat, completions and responses, whole and streamed: the same words, usage, one end of each call on record."""
    key = await served.front.key("routes")
    client = openai.AsyncOpenAI(api_key=key, base_url=served.front.url + "/v1", max_retries=0)
    chat = await client.chat.completions.create(**PLAIN, messages=MESSAGES, max_tokens=16)
    streamed = await client.chat.completions.create(
        **PLAIN, messages=MESSAGES, max_tokens=16, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in streamed]
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert said == chat.choices[0].message.content
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 0
    whole = await client.completions.create(**PLAIN, prompt="The capital of France is", max_tokens=8)
    pieces = await client.completions.create(**PLAIN, prompt="The capital of France is", max_tokens=8, stream=True)
    assert "".join([chunk.choices[0].text async for chunk in pieces if chunk.choices]) == whole.choices[0].text != ""
    answer = await client.responses.create(**PLAIN, input=QUESTION, max_output_tokens=16)
    events = [
        event
        async for event in await client.responses.create(**PLAIN, input=QUESTION, max_output_tokens=16, stream=True)
    ]
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == answer.output_text != ""
    assert events[-1].type in ("response.completed", "response.incomplete")
    kinds = [entry.kind for entry in await served.front.entries("routes")]
    assert kinds.count("turn.sealed") == 6
    assert kinds.count("model.called") == 6
    await client.close()


async def test_what_the_server_cannot_do_is_its_own_error(served: Served) -> None:
    """A model that chats gives no vectors, a prompt may be too long: the caller gets an error that says so."""
    async with served.client() as client:
        with pytest.raises((openai.BadRequestError, openai.InternalServerError)) as caught:
            await client.embeddings.create(model="smollm2", input="x")
        assert "smollm2" in str(caught.value) or "vllm" in str(caught.value)
        long: Any = [{"role": "user", "content": "word " * 3000}]
        with pytest.raises(openai.APIStatusError, match="answered 400"):
            await client.chat.completions.create(**PLAIN, messages=long, max_tokens=4)


async def test_a_required_tool_is_called(served: Served) -> None:
    """By the server's constrained decoding: the call comes through with the arguments that the schema asks for."""
    async with served.client() as client:
        answer = await client.chat.completions.create(
            **PLAIN, messages=MESSAGES, tools=[CAPITAL], tool_choice="required", max_tokens=64
        )
    assert answer.choices[0].message.tool_calls
    assert [call.function.name for call in answer.choices[0].message.tool_calls] == ["capital"]  # type: ignore[union-attr]


async def test_an_answer_has_the_form_that_is_asked_for(served: Served) -> None:
    """By the server's constrained decoding: the official client reads it as what it asked for, whole and streamed."""
    named = {"name": "Place", "strict": True, "schema": Place.model_json_schema()}
    form: Any = {"type": "json_schema", "json_schema": named}
    async with served.client() as client:
        chat = await client.chat.completions.parse(**PLAIN, messages=MESSAGES, response_format=Place, max_tokens=64)
        answer = await client.responses.parse(**PLAIN, input=QUESTION, text_format=Place, max_output_tokens=64)
        pieces = await client.chat.completions.create(
            **PLAIN, messages=MESSAGES, response_format=form, max_tokens=64, stream=True
        )
        streamed = "".join([chunk.choices[0].delta.content or "" async for chunk in pieces if chunk.choices])
    assert chat.choices[0].message.parsed is not None
    assert chat.choices[0].message.parsed == Place.model_validate_json(streamed)
    assert isinstance(answer.output_parsed, Place)


async def test_a_turn_and_the_same_as_it_happens(served: Served) -> None:
    """An agent's answer by the typed client: whole, and in events whose pieces add up to it; both verify."""
    async with aibox.Client(served.front.url, served.key) as client:
        whole = await client.chat(QUESTION)
        events = [event async for event in client.stream(QUESTION)]
    assert "Paris" in whole.text
    assert "".join(event.text for event in events if event.type == "text") == events[-1].text == whole.text
    assert whole.usage.output_tokens > 0


async def test_a_caller_who_leaves_stops_the_model(served: Served) -> None:
    """Through everything between: vLLM's count of running requests goes back to zero when nobody reads the stream."""

    async def running() -> float:
        async with httpx2.AsyncClient() as http:
            text = (await http.get(served.vllm.removesuffix("/v1") + "/metrics")).text
        return sum(map(float, re.findall(r"^vllm:num_requests_running(?:{[^}]*})? (\S+)$", text, re.MULTILINE)))

    async def until(count: int) -> None:
        async with asyncio.timeout(30):
            while await running() != count:
                await asyncio.sleep(0.1)

    async with served.client() as client:
        stream = await client.chat.completions.create(
            model="smollm2", messages=MESSAGES, max_tokens=1900, stream=True, extra_body={"ignore_eos": True}
        )
        async for _ in stream:
            break
        await until(1)
        await stream.close()
    await until(0)
