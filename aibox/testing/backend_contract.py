"""What every Backend must do, as tests: subclass BackendContract, override the `backend` fixture, run pytest."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

from aibox.chat import ChatRequest, Chunk, assemble
from aibox.protocols import Backend
from aibox.types import Scope

SCOPE = Scope(tenant="contract", user="tester")


@pytest.mark.anyio
class BackendContract:
    """The suite. The backend under test must answer any question, at least ten times, with some text."""

    @pytest.fixture
    def backend(self) -> Backend:
        """Override, usually with an async fixture that yields the backend and closes it; the suite closes it too."""
        raise NotImplementedError("override the fixture `backend`")

    @staticmethod
    async def ask(backend: Backend, **fields: Any) -> ChatRequest:
        """A small question to the first model of the backend."""
        model = (await backend.models())[0].id
        messages = [{"role": "user", "content": "Say hello."}]
        return ChatRequest({"model": model, "messages": messages, "max_tokens": 16, **fields})

    async def test_it_has_a_name_and_says_where_it_is(self, backend: Backend) -> None:
        """The name fits into `backend/model`, and whether text leaves is a plain yes or no."""
        assert re.fullmatch(r"[A-Za-z0-9._-]+", backend.name)
        assert isinstance(backend.external, bool)

    async def test_it_lists_models(self, backend: Backend) -> None:
        """There is a model to ask for, and none is external on a backend that is not."""
        models = await backend.models()
        assert models
        assert all(info.id and info.backend for info in models)
        assert backend.external or not any(info.external for info in models)

    async def test_it_completes(self, backend: Backend) -> None:
        """An answer has a text, an end, a size, and says who gave it."""
        completion = await backend.complete(await self.ask(backend), scope=SCOPE)
        assert completion.message["role"] == "assistant"
        assert completion.text
        assert completion.finish_reason in ("stop", "length")
        assert completion.usage.output_tokens > 0
        assert completion.backend

    async def test_it_streams(self, backend: Backend) -> None:
        """Chunks add up to an answer, exactly one of them ends it, and all know who gave it."""
        chunks = [chunk async for chunk in backend.stream(await self.ask(backend), scope=SCOPE)]
        assert assemble(chunks).text
        assert [bool(chunk.finish_reason) for chunk in chunks if chunk.finish_reason] == [True]
        assert {(chunk.backend, chunk.weights) for chunk in chunks} == {(chunks[0].backend, chunks[0].weights)}
        assert chunks[0].backend

    async def test_a_stream_counts_tokens_when_asked(self, backend: Backend) -> None:
        """The last chunk carries the usage if, and only if, `include_usage` was set."""
        request = await self.ask(backend)
        plain = [chunk async for chunk in backend.stream(request, scope=SCOPE)]
        request = request.with_fields(stream_options={"include_usage": True})
        counted = [chunk async for chunk in backend.stream(request, scope=SCOPE)]
        assert all(chunk.usage is None for chunk in plain)
        assert counted[-1].usage is not None

    async def test_leaving_a_stream_leaves_it_usable(self, backend: Backend) -> None:
        """Whoever stops listening harms nobody: the next call is answered."""
        stream: Any = backend.stream(await self.ask(backend, max_tokens=200), scope=SCOPE)
        async for chunk in stream:
            assert isinstance(chunk, Chunk)
            break
        await stream.aclose()
        assert (await backend.complete(await self.ask(backend), scope=SCOPE)).text

    async def test_cancelling_a_call_leaves_it_usable(self, backend: Backend) -> None:
        """A cancelled call ends at once, and the next one is answered."""
        task = asyncio.create_task(backend.complete(await self.ask(backend, max_tokens=200), scope=SCOPE))
        await asyncio.sleep(0)
        task.cancel()
        async with asyncio.timeout(1):
            await asyncio.gather(task, return_exceptions=True)  # an answer may already have been there
        assert (await backend.complete(await self.ask(backend), scope=SCOPE)).text

    async def test_calls_at_once_are_all_answered(self, backend: Backend) -> None:
        """Nobody is lost where several ask together."""
        request = await self.ask(backend)
        completions = await asyncio.gather(*(backend.complete(request, scope=SCOPE) for _ in range(4)))
        assert all(completion.text for completion in completions)

    async def test_it_leaves_the_request_alone(self, backend: Backend) -> None:
        """What was asked is the caller's, and not changed."""
        request = await self.ask(backend)
        before = repr(request)
        await backend.complete(request, scope=SCOPE)
        assert repr(request) == before

    async def test_it_is_healthy(self, backend: Backend) -> None:
        """A backend that answers says so."""
        assert (await backend.health()).ok

    async def test_it_closes_twice(self, backend: Backend) -> None:
        """Closing again does nothing."""
        await backend.close()
        await backend.close()
