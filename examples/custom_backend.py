"""A backend of your own beside others: the router treats it like any model, and an agent cannot tell."""

import asyncio
from collections.abc import AsyncIterator

import aibox
from aibox.chat import ChatRequest, Chunk, Completion, Health, ModelInfo
from aibox.inference.chunks import chunks_of


class Shouting:
    """Answers in capitals. Replace the middle of `complete` by a call of your own inference code."""

    name = "shouting"
    external = False

    async def models(self) -> list[ModelInfo]:
        return [ModelInfo(id="loud", backend=self.name)]

    async def complete(self, request: ChatRequest, /, *, scope: aibox.Scope) -> Completion:
        asked = request.messages[-1]["content"]
        message = {"role": "assistant", "content": f"{asked.upper()}!"}
        usage = {"prompt_tokens": len(asked.split()), "completion_tokens": len(asked.split())}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return Completion({"id": "1", "model": "loud", "choices": [choice], "usage": usage}, self.name)

    async def stream(self, request: ChatRequest, /, *, scope: aibox.Scope) -> AsyncIterator[Chunk]:
        for chunk in chunks_of(await self.complete(request, scope=scope), size=4, usage=True):
            yield chunk

    async def health(self) -> Health:
        return Health(ok=True)

    async def close(self) -> None: ...


async def main() -> None:
    router = aibox.Router(Shouting())
    agent = aibox.Agent("Repeat.", router=router, model="shouting/loud")
    async for event in agent.stream("good morning"):
        print(getattr(event, "text", ""), end="|", flush=True)
    await router.close()


if __name__ == "__main__":
    asyncio.run(main())
