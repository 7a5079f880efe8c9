"""Callers who ask without a pause while something is broken, and what each was answered."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import httpx2

from aibox.audit.chain import AuditChain
from aibox.audit.receipt import ReceiptEntry
from aibox.audit.record import TERMINAL, Header

CALLERS = 4
BACK_S = 60.0
"""How long recovery may take on a busy machine. Nothing is started anew by us but what was killed."""
HELLO: list[Any] = [{"role": "user", "content": "Hello."}]


@dataclass
class Load:
    """Each caller has a way of its own: whole, streamed, a turn of the agent in a conversation, once by a key."""

    url: str
    key: str
    seed: int
    answered: list[str] = field(default_factory=list)
    """Correlation ids of what was answered with 200, and to the end."""
    refused: list[int] = field(default_factory=list)
    """Statuses of 500 and more; 0 for what was cut off: nothing of it was acknowledged."""
    odd: list[str] = field(default_factory=list)
    over: bool = False

    def __enter__(self) -> Load:
        self._run = f"{random.Random(self.seed).getrandbits(32):08x}"
        self._threads = [threading.Thread(target=self._call, args=(n,)) for n in range(CALLERS)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over = True
        for thread in self._threads:
            thread.join(90)
            assert not thread.is_alive(), f"seed {self.seed}: a caller was never answered"

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

    def goes_on(self, more: int = 10) -> None:
        """Wait until so many more are answered."""
        wanted, until = len(self.answered) + more, time.monotonic() + BACK_S
        while len(self.answered) < wanted:
            assert time.monotonic() < until, f"seed {self.seed}: nothing is answered any more: {self.refused[-5:]}"
            time.sleep(0.02)

    def is_refused(self, more: int = 10) -> None:
        """Wait until so many more are refused."""
        wanted, until = len(self.refused) + more, time.monotonic() + BACK_S
        while len(self.refused) < wanted:
            assert time.monotonic() < until, f"seed {self.seed}: nobody is refused"
            time.sleep(0.02)

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
