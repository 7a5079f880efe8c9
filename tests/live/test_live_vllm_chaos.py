"""A real vLLM behind a gateway is killed and paused while several tenants ask it: bounded, told, and over by itself."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import httpx2
import pytest
from callers import Callers
from front import Front, front
from load import is_end
from services import modelling
from vllm_server import MODEL, VLLMServer
from waiting import free_port

pytestmark = [pytest.mark.live, pytest.mark.loopback]

SILENCE_S = 15
SLACK_S = 8.0
"""For what a busy machine takes beside the time that is bounded."""
TENANTS = ("acme", "beta", "corp")
ONE, EITHER, STEADY = f"vllm/{MODEL}", MODEL, "steady"
"""The model of the server that breaks, that of whichever backend has it, and the first with another to take over."""
DESK = f"""
def made(box):
    return box.agent("Answer briefly.", model="{ONE}", settings={{"max_tokens": 8}})
"""
TABLES = """
[[backends]]
kind = "vllm"
name = "vllm"
url = "{vllm}"
external = false
timeout_s = {silence}

[[backends]]
kind = "openai"
name = "spare"
url = "http://127.0.0.1:{spare}/v1"
models = ["{model}"]
external = false

[routing.aliases]
steady = "vllm/{model}"

[routing.fallbacks]
steady = ["spare/{model}"]
"""
SPARE = "I have read"
"""What the second backend says."""
WHOLE, STREAMED, TURN, SHARED, SAFE, LONG = range(6)
ALONE, HELPED = (WHOLE, STREAMED, TURN), (SHARED, SAFE)
"""Who asks the one backend and nobody else, and who is answered by the other one when that fails."""
ASKED = {SHARED: EITHER, SAFE: STEADY}


class Told(NamedTuple):
    name: str
    way: int
    began: float
    took_s: float
    status: int
    good: bool
    """Answered, and to the end."""
    text: str


@dataclass
class Askers(Callers):
    """Of one tenant; each asks in a way of its own. `long` is one stream more, which would go on for a minute."""

    tenant: str
    all: list[Told] = field(default_factory=list, init=False)
    begun: int = field(default=0, init=False)
    """Long streams whose first words are here."""

    number = 5
    ends_s = 120.0

    def told(self) -> str:
        return f"{self.tenant}: {[one for one in self.all if not one.good][-3:]}"

    def _call(self, number: int) -> None:
        count = 0
        while not self.over:
            count += 1
            if not self.ask(number, f"{id(self):x}-{number}-{count:05}").good:
                time.sleep(0.05)

    def long(self) -> Told:
        return self.ask(LONG, f"{id(self):x}-long")

    def ask(self, way: int, name: str) -> Told:
        said = f"Say {name}."
        body: dict[str, Any] = {"model": ASKED.get(way, ONE), "max_tokens": 4}
        body["messages"] = [{"role": "user", "content": said}]
        path = "/v1/chat/completions"
        if way in (STREAMED, LONG):
            body |= {"stream": True, "ignore_eos": True, "max_tokens": 16 if way == STREAMED else 1900}
        elif way == TURN:
            path, body = "/v1/chat", {"message": said}
        headers = {"authorization": f"Bearer {self.key}", "x-correlation-id": name}
        began, text = time.monotonic(), ""
        with (
            httpx2.Client(base_url=self.url, timeout=100) as client,
            client.stream("POST", path, json=body, headers=headers) as answer,
        ):
            for piece in answer.iter_text():
                self.begun += way == LONG and not text
                text += piece
        good = answer.status_code == 200
        if body.get("stream"):
            good = good and text.endswith("data: [DONE]\n\n") and '"error"' not in text
        told = Told(name, way, began, time.monotonic() - began, answer.status_code, good, text)
        self.all.append(told)
        return told

    def count(self, way: int, *, good: bool, since: float = 0.0) -> int:
        return sum(one.way == way and one.good is good and one.began >= since for one in list(self.all))


def until_each(found: list[Askers], *ways: int, good: bool, more: int = 3) -> None:
    """Wait until each has been answered in each of these ways, or has failed, so many times from now on."""
    now = time.monotonic()
    said = "is not answered" if good else "does not fail"
    for each in found:
        for way in ways:
            each._until(lambda: each.count(way, good=good, since=now) >= more, f"{way} {said}")  # noqa: B023 - at once


@pytest.fixture(scope="module")
def served(vllm: str, tmp_path_factory: pytest.TempPathFactory, postgres_copy: Callable[[], str]) -> Iterator[Front]:
    """One gateway for all of them, which is never started anew."""
    spare = free_port()
    tables = TABLES.format(vllm=vllm, silence=SILENCE_S, spare=spare, model=MODEL)
    folder = tmp_path_factory.mktemp("chaos of a vLLM")
    with modelling(spare), front(folder, tables, database=postgres_copy, desk=DESK) as made:
        yield made


@contextmanager
def asking(served: Front) -> Iterator[list[Askers]]:
    """Several tenants ask in all ways, and are answered, until the block is left."""
    with ExitStack() as stack:
        found = [Askers(served.url, asyncio.run(served.key(tenant)), tenant) for tenant in TENANTS]
        for each in found:
            stack.enter_context(each)
        until_each(found, *ALONE, *HELPED, good=True)
        yield found


@contextmanager
def streams(found: list[Askers]) -> Iterator[Callable[[], list[Told]]]:
    """A long stream of each tenant, all of them begun; gives what they were told when they have ended."""
    with ThreadPoolExecutor(len(found)) as pool:
        long = [pool.submit(each.long) for each in found]
        until = time.monotonic() + 60
        while not all(each.begun for each in found):
            assert time.monotonic() < until, "not all streams have begun"
            time.sleep(0.02)
        yield lambda: [one.result(60) for one in long]


async def one_end_each(served: Front, asked: list[Askers]) -> None:
    """Of each call that was acknowledged there is one end, which says how it was; and the log verifies."""
    for tenant in TENANTS:
        ends = [entry for entry in await served.entries(tenant) if is_end(entry)]
        told = {one.name: one for each in asked if each.tenant == tenant for one in each.all}
        found = Counter((str(entry.detail["correlation"]), entry.kind) for entry in ends)
        wanted = {(one.name, "turn.sealed" if one.good else "turn.failed"): 1 for one in told.values()}
        assert {end: count for end, count in found.items() if end[0] in told} == wanted


def test_a_vllm_that_is_killed_under_load(served: Front, vllm_server: VLLMServer) -> None:
    """Streams end with an error, calls fail at once or go to the other backend; started again it is asked again."""
    before = killed = 0.0
    try:
        with asking(served) as tenants, streams(tenants) as long:
            before = time.monotonic()
            vllm_server.kill()
            killed = time.monotonic()
            for told in long():
                assert told.status == 200
                assert '"code":"upstream.backend"' in told.text
                assert "[DONE]" not in told.text
            until_each(tenants, *ALONE, good=False)
            until_each(tenants, *HELPED, good=True)
    finally:
        # Nobody asks while it starts: it has cores enough then.
        vllm_server.start()
    back = time.monotonic()
    for each in tenants:
        while (shared := each.ask(SHARED, f"{id(each):x}-back-{len(each.all)}")).good and SPARE in shared.text:
            assert time.monotonic() < back + 60, "the other backend has all calls for itself"
            time.sleep(0.1)
    with asking(served) as again:
        pass
    every = [one for each in tenants for one in each.all]
    assert [one for one in every if one.way in HELPED and not one.good] == []
    assert [one for one in every if not one.good and one.began + one.took_s < before] == []
    down = [one for one in every if killed < one.began < back]
    assert {one.status for one in down if one.way in ALONE} == {502}
    assert all(SPARE in one.text for one in down if one.way in HELPED)
    assert max(one.took_s for one in down) < SILENCE_S / 2
    new = [one for each in again for one in each.all]
    assert [one for one in new if not one.good] == []
    assert all(SPARE not in one.text for one in new if one.way == SAFE)
    asyncio.run(one_end_each(served, tenants + again))


def test_a_vllm_that_is_paused_under_load(served: Front, vllm_server: VLLMServer) -> None:
    """After `timeout_s` of silence each call and stream of it ends with an error; when it goes on, so do they."""
    with asking(served) as tenants, streams(tenants) as long:
        vllm_server.signal(signal.SIGSTOP)
        paused = time.monotonic()
        try:
            for told in long():
                assert told.status == 200
                assert "was silent for too long" in told.text
                assert "[DONE]" not in told.text
            assert SILENCE_S - 1 < time.monotonic() - paused < SILENCE_S + SLACK_S
            until_each(tenants, *HELPED, good=True, more=1)
            for each in tenants:
                each._until(lambda: all(each.count(way, good=False) for way in ALONE), "not all fail")  # noqa: B023
        finally:
            vllm_server.signal(signal.SIGCONT)
        on = time.monotonic()
        until_each(tenants, *ALONE, *HELPED, good=True)
    every = [one for each in tenants for one in each.all]
    failed = [one for one in every if not one.good]
    assert [one for one in failed if one.way in HELPED or not paused < one.began + one.took_s] == []
    assert all("was silent for too long" in one.text for one in failed)
    assert {one.status for one in failed if one.way in (WHOLE, TURN)} == {504}
    assert max(one.took_s for one in every if one.way != LONG) < SILENCE_S + SLACK_S
    # What had just been asked when it went on is answered late, and nothing that was asked later fails.
    assert [one for one in failed if one.began > on] == []
    asyncio.run(one_end_each(served, tenants))
