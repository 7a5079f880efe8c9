"""Callers of `/v1/sandbox` who run code without a pause while what isolates it is killed, and what each was told."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from aibox.audit.chain import AuditChain

CALLERS = 3
BACK_S = 90.0
COUNT = "n = globals().get('n', 0) + 1\nn"
"""What the interpreter remembers is how often it ran."""


@dataclass
class Guests:
    """Each caller opens a session, counts in it, and opens another when the world has failed it."""

    url: str
    key: str
    answered: list[str] = field(default_factory=list)
    """Correlation ids of runs that were answered with 200."""
    opened: list[str] = field(default_factory=list)
    refused: list[int] = field(default_factory=list)
    said: str = ""
    """The last refusal."""
    wrong: list[str] = field(default_factory=list)
    over: bool = False

    def __enter__(self) -> Guests:
        self._threads = [threading.Thread(target=self._call, args=(n,)) for n in range(CALLERS)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over = True
        for thread in self._threads:
            thread.join(120)
            assert not thread.is_alive(), "a caller was never answered"

    def _call(self, number: int) -> None:
        count, session, expected = 0, "", 0
        with httpx2.Client(base_url=self.url, timeout=100, headers={"authorization": f"Bearer {self.key}"}) as client:
            while not self.over:
                count += 1
                name = f"guest-{number}-{count:06}"
                if not session:
                    answer = client.post("/v1/sandbox", json={}, headers={"x-correlation-id": name})
                    if answer.status_code == 201:
                        session, expected = answer.json()["id"], 0
                        self.opened.append(session)
                    else:
                        self._refused(answer)
                    continue
                asked = {"code": COUNT, "language": "python"}
                answer = client.post(f"/v1/sandbox/{session}/run", json=asked, headers={"x-correlation-id": name})
                if answer.status_code == 200:
                    expected = self._counted(name, answer.json(), expected)
                else:
                    session = ""
                    self._refused(answer)
            if session:
                client.delete(f"/v1/sandbox/{session}")

    def _counted(self, name: str, ran: dict[str, Any], expected: int) -> int:
        """How often it has run by now. What was forgotten is told in the answer, or in the one of this run."""
        self.answered.append(name)
        if ran["state_lost"]:
            return int(ran["value"] or 0)
        if ran["value"] != str(expected + 1):
            self.wrong.append(f"{name}: {ran} after {expected}")
        return expected + 1

    def _refused(self, answer: httpx2.Response) -> None:
        self.refused.append(answer.status_code)
        self.said = answer.text
        if answer.status_code not in (404, 502, 503):  # 404: the session has ended
            self.wrong.append(answer.text)
        time.sleep(0.05)

    def goes_on(self, more: int = 12) -> None:
        """Wait until so many more runs are answered, in a session that was opened since as well."""
        wanted, until = len(self.answered) + more, time.monotonic() + BACK_S
        while len(self.answered) < wanted:
            assert time.monotonic() < until, f"no code runs any more: {self.said} {self.wrong[:3]}"
            time.sleep(0.02)

    def is_refused(self, before: int) -> None:
        """Wait until more have been refused than `before`."""
        until = time.monotonic() + BACK_S
        while len(self.refused) <= before:
            assert time.monotonic() < until, "nobody is refused"
            time.sleep(0.02)


async def recorded(guests: Guests, home: Path) -> None:
    """Nobody was answered wrongly, the log holds, and each run that was answered is in it."""
    assert not guests.wrong, guests.wrong[:3]
    async with AuditChain(home / "audit.db", keys=home / "keys") as chain:
        assert (await chain.verify()).ok
        found = [entry async for entry in chain.entries("default")]
    ran = Counter(str(entry.detail["correlation"]) for entry in found if entry.kind == "sandbox.ran")
    assert [name for name in guests.answered if ran[name] != 1] == []
    kinds = Counter(entry.kind for entry in found)
    assert kinds["sandbox.ended"] == kinds["sandbox.started"] >= len(guests.opened)
