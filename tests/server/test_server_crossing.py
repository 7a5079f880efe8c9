"""A thousand requests of twenty tenants at once, of which many leave in the middle: nothing of one reaches another."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from platform_world import Person, World, world

from aibox.chat import ChatRequest

pytestmark = pytest.mark.anyio

TENANTS, REQUESTS, AT_ONCE = 20, 1000, 40
ENDS = ("turn.sealed", "turn.failed", "request.ended")
TURNS = ("turn.sealed", "turn.failed")


def word(number: int) -> str:
    """What only this tenant says. No word is part of another."""
    return f"heron-{number:02d}-violet"


WORDS = [word(number) for number in range(TENANTS)]


class Caller:
    """One request by hand, which may be left after so many looks at the clock of the loop."""

    def __init__(self, w: World, who: Person, method: str, path: str, body: Any, *, patience: int | None) -> None:
        self._w, self._patience = w, patience
        self._messages = [{"type": "http.request", "body": json.dumps(body).encode() if body is not None else b""}]
        headers = [(b"authorization", f"Bearer {who.token()}".encode())]
        self._scope = {
            "type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b"",
            "headers": headers,
        }  # fmt: skip
        self.status, self.data, self.whole = 0, b"", False

    async def run(self) -> None:
        await self._w.app(self._scope, self._receive, self._send)

    async def _receive(self) -> dict[str, Any]:
        if self._messages:
            return self._messages.pop()
        if self._patience is None:
            await asyncio.Event().wait()
        for _ in range(self._patience or 0):
            await asyncio.sleep(0)
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        self.status = message.get("status", self.status)
        self.data += message.get("body", b"")
        self.whole = message["type"] == "http.response.body" and not message.get("more_body")


def requests(number: int, luck: random.Random) -> tuple[str, str, Any]:
    """Something that a tenant asks, with its word in it."""
    said = f"{word(number)} {luck.randrange(10**6)}"
    chat = {"message": said, "session": luck.choice(["", "s1", "s2"])}
    bare = {"messages": [{"role": "user", "content": said}], "stream": luck.random() < 0.5}
    return luck.choice(
        [
            ("POST", "/v1/chat", chat),
            ("POST", "/v1/chat/stream", chat),
            ("POST", "/v1/chat/completions", {"model": "m", **bare}),
            ("POST", "/v1/chat/completions", {"model": "agent:default", **bare}),
            ("POST", "/v1/memory", {"text": said}),
            ("POST", "/v1/memory/recall", {"query": luck.choice(WORDS)}),
            ("POST", "/v1/guard/check", {"text": said}),
            ("GET", "/v1/memory", None),
            ("GET", "/v1/sessions", None),
            ("GET", "/v1/audit", None),
        ]
    )


# Who is cut off before the SDK's own task has begun leaves a coroutine of the SDK that never runs, and nothing else.
@pytest.mark.filterwarnings("ignore:coroutine 'run_single_turn' was never awaited:RuntimeWarning")
async def test_nothing_crosses_however_requests_interleave_and_break_off(tmp_path: Path) -> None:
    """Answers, what the model is told, memories, conversations and logs hold the tenant's own word and no other."""
    luck = random.Random(20)
    left: Counter[str] = Counter()
    seen: Counter[str] = Counter()

    async def answer(request: ChatRequest) -> str:
        for _ in range(luck.randrange(20)):  # others go on meanwhile
            await asyncio.sleep(0)
        told = str(request.messages)
        assert sum(one in told for one in WORDS) == 1, told
        return f"You said: {request.messages[-1]['content']}"

    async with world(tmp_path, model=answer) as w:
        gate = asyncio.Semaphore(AT_ONCE)

        async def one() -> None:
            number = luck.randrange(TENANTS)
            who = Person(f"t{number:02d}", luck.choice(["eva", "tom"]), ("user", "tenant_admin"))
            method, path, body = requests(number, luck)
            asks_for = str(body) if path.endswith("recall") else ""
            patience = luck.randrange(200) if luck.random() < 0.3 else None
            caller = Caller(w, who, method, path, body, patience=patience)
            async with gate:
                await caller.run()
            seen[path] += 1
            foreign = [one for one in WORDS if one != word(number) and one in caller.data.decode()]
            assert not foreign, (path, asks_for, caller.data)
            if caller.whole:
                assert caller.status in (200, 201), (path, caller.status, caller.data)
            else:
                assert patience is not None, (path, caller.status, caller.data)
                left[path] += 1

        async with asyncio.timeout(600):
            await asyncio.gather(*(one() for _ in range(REQUESTS)))
        assert sum(left.values()) > 20, left  # that some leave in the middle is the point
        for model_scope, request in zip(w.model.scopes, w.model.requests, strict=True):
            assert word(int(model_scope.tenant[1:])) in str(request.messages)
        for number in range(TENANTS):
            tenant = f"t{number:02d}"
            entries = [entry async for entry in w.box.audit.entries(tenant)]
            turns = Counter(entry.turn for entry in entries if entry.turn)
            ended = Counter(entry.turn for entry in entries if entry.kind in TURNS)
            assert {turn: ended[turn] for turn in turns if turn not in ended or ended[turn] != 1} == {}
            assert {entry.actor["user"] for entry in entries if entry.actor} <= {"eva", "tom"}
            for user in ("eva", "tom"):
                scope = Person(tenant, user, ()).scope
                texts = [record.text for record in await w.box.memory.list(scope=scope)]
                assert all(word(number) in text for text in texts), texts
            async for _, _, _, text in w.box.state.sessions.texts(tenant):
                assert word(number) in text
        assert (await w.box.audit.verify()).ok
