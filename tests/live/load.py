"""Callers who ask without a pause while something is broken, and what each was answered."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from typing import Any, Self

import httpx2
from callers import Callers

from aibox.audit.chain import AuditChain
from aibox.audit.receipt import ReceiptEntry
from aibox.audit.record import TERMINAL, Header

HELLO: list[Any] = [{"role": "user", "content": "Hello."}]


@dataclass
class Load(Callers):
    """Each caller has a way of its own: whole, streamed, a turn of the agent in a conversation, once by a key.

    In `refused` are statuses of 500 and more; 0 for what was cut off: nothing of it was acknowledged.
    """

    seed: int
    odd: list[str] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._run = f"{random.Random(self.seed).getrandbits(32):08x}"
        return super().__enter__()

    def told(self) -> str:
        return f"seed {self.seed}, {self.refused[-5:]}"

    def _call(self, number: int) -> None:
        with httpx2.Client(base_url=self.url, timeout=60) as client:
            count = 0
            while not self.over:
                count += 1
                name = f"load-{self._run}-{number}-{count:06}"
                headers = {"authorization": f"Bearer {self.key}", "x-correlation-id": name}
                try:
                    self._told(name, *_asked(client, number, name, headers))
                except httpx2.HTTPError:
                    self.refused.append(0)

    def _told(self, name: str, status: int, text: str, whole: bool) -> None:
        if status == 200 and whole:
            self.answered.append(name)
        elif status == 200 or status >= 500:
            self.refused.append(status)
            time.sleep(0.05)
        else:
            self.odd.append(f"{status} {text[:200]}")

    def stands_still(self) -> None:
        """Wait until what was under way is over, and see that nothing more is answered."""
        time.sleep(1.0)  # what had been written when it happened may still be on its way
        before = len(self.answered)
        time.sleep(1.5)
        assert len(self.answered) == before, f"seed {self.seed}: answered without evidence"


def _asked(client: httpx2.Client, number: int, name: str, headers: dict[str, str]) -> tuple[int, str, bool]:
    """The status, the text, and whether the answer came to its end."""
    asked: dict[str, Any] = {"model": "m", "messages": HELLO}
    if number == 1:
        answer = client.post("/v1/chat/completions", json={**asked, "stream": True}, headers=headers)
        return (
            answer.status_code,
            answer.text,
            answer.text.endswith("data: [DONE]\n\n") and '"error"' not in answer.text,
        )
    if number == 2:
        answer = client.post("/v1/chat", json={"message": "Hello.", "session": name}, headers=headers)
    elif number == 3:
        answer = client.post("/v1/chat/completions", json=asked, headers={**headers, "idempotency-key": name})
    else:
        answer = client.post("/v1/chat/completions", json=asked, headers=headers)
    return answer.status_code, answer.text, True


def is_end(entry: ReceiptEntry) -> bool:
    """Whether it is the one that ends a turn, however it ended."""
    return bool(Header.unpack(entry.header).flags & TERMINAL)


async def all_there(chain: AuditChain, tenant: str, load: Load) -> None:
    """As whoever holds the keys reads it: the end of each acknowledged request, once; and the log holds."""
    assert not load.odd, f"seed {load.seed}: {load.odd[:3]}"
    report = await chain.verify()
    assert report.ok, f"seed {load.seed}: {report}"
    found = [entry async for entry in chain.entries(tenant)]
    assert [entry.seq for entry in found] == list(range(len(found)))
    ended = [entry for entry in found if is_end(entry)]
    assert len(load.answered) > 50
    assert len({entry.turn for entry in ended}) == len(ended), f"seed {load.seed}: a turn ended twice"
    written = {str(entry.detail.get("correlation")) for entry in ended if entry.kind == "turn.sealed"}
    missing = [name for name in load.answered if name not in written]
    said = f"seed {load.seed}: {len(missing)} of {len(load.answered)} answers have no entry: {missing[:3]}"
    assert not missing, said
