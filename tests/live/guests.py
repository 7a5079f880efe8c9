"""Callers of `/v1/sandbox` who run code without a pause while what isolates it is killed, and what each was told."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
from callers import Callers

from aibox.audit.chain import AuditChain
from aibox.audit.receipt import ReceiptEntry

COUNT = "n = globals().get('n', 0) + 1\nn"
"""What the interpreter remembers is how often it ran."""


@dataclass
class Guests(Callers):
    """Each caller opens a session, counts in it, and opens another when the world has failed it."""

    opened: list[str] = field(default_factory=list)
    said: str = ""
    """The last refusal."""
    waited: dict[str, list[float]] = field(default_factory=lambda: {"open": [], "run": []})
    """Seconds until a refusal of either."""
    wrong: list[str] = field(default_factory=list)

    number = 3
    back_s = 90.0
    ends_s = 120.0

    def told(self) -> str:
        return f"{self.said} {self.wrong[:3]}"

    def all_open(self) -> None:
        """Wait until each has a session, and nobody was refused one."""
        self._until(lambda: len(self.opened) >= self.number, "not everybody has a session")
        assert not self.refused, self.told()

    def _call(self, number: int) -> None:
        count, session, expected = 0, "", 0
        with httpx2.Client(base_url=self.url, timeout=100, headers={"authorization": f"Bearer {self.key}"}) as client:
            while not self.over:
                count += 1
                name, began = f"guest-{number}-{count:06}", time.monotonic()
                if not session:
                    answer = client.post("/v1/sandbox", json={}, headers={"x-correlation-id": name})
                    if answer.status_code == 201:
                        session, expected = answer.json()["id"], 0
                        self.opened.append(session)
                    else:
                        self._refused(answer, "open", began)
                    continue
                asked = {"code": COUNT, "language": "python"}
                answer = client.post(f"/v1/sandbox/{session}/run", json=asked, headers={"x-correlation-id": name})
                if answer.status_code == 200:
                    expected = self._counted(name, answer.json(), expected)
                else:
                    session = ""
                    self._refused(answer, "run", began)
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

    def _refused(self, answer: httpx2.Response, what: str, began: float) -> None:
        self.waited[what].append(time.monotonic() - began)
        self.refused.append(answer.status_code)
        self.said = f"{what}: {answer.text}"
        if answer.status_code not in (404, 502, 503):  # 404: the session has ended
            self.wrong.append(answer.text)
        time.sleep(0.05)


async def recorded(guests: Guests, home: Path) -> None:
    """The log of the one server verifies, and `holds`."""
    async with AuditChain(home / "audit.db", keys=home / "keys") as chain:
        assert (await chain.verify()).ok
        holds(guests, [entry async for entry in chain.entries("default")])


def holds(guests: Guests, found: list[ReceiptEntry]) -> None:
    """Nobody was answered wrongly, and each run that was answered is in the log, as is the end of each session."""
    assert not guests.wrong, guests.wrong[:3]
    ran = Counter(str(entry.detail["correlation"]) for entry in found if entry.kind == "sandbox.ran")
    assert [name for name in guests.answered if ran[name] != 1] == []
    kinds = Counter(entry.kind for entry in found)
    assert kinds["sandbox.ended"] == kinds["sandbox.started"] >= len(guests.opened)
