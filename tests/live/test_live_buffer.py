"""Conversations of an agent without a state: in a Redis that two replicas share, and that is killed and stopped."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from pathlib import Path

import httpx2
import pytest
from services import OF_TWO, Platform, until_missing

pytestmark = OF_TWO
DESK = 'def made(box):\n    return box.agent("You talk.", state=None)\n'
ENDS_S = 10
"""A turn whose Redis says nothing has ended by then: it is waited for 2 s."""


def with_buffer(settings: Path) -> None:
    text = settings.read_text()
    (url,) = re.findall(r'^rates_url = (".+")$', text, re.MULTILINE)
    settings.write_text(text.replace("[memory]\n", f"[memory]\nbuffer_url = {url}\n"))


PLATFORM = {"memory": True, "desk": DESK, "before": with_buffer}


@pytest.fixture(scope="module")
def key(both: Platform) -> str:
    return both.key("acme", "user")


def turn(url: str, key: str, session: str) -> httpx2.Response:
    body = {"message": "Go on.", "session": session}
    return httpx2.post(url + "/v1/chat", json=body, headers={"authorization": f"Bearer {key}"}, timeout=60)


def read(count: int) -> str:
    """What the model says when it was shown so many messages of the user."""
    return f"I have read {count}"


def is_refused(both: Platform, key: str, session: str) -> None:
    """Each replica says that it cannot read what was said, and answers nobody as if nothing had been."""
    began = time.monotonic()
    with ThreadPoolExecutor(len(both.replicas)) as pool:
        for answer in pool.map(lambda url: turn(url, key, session), both.replicas):
            assert (answer.status_code, answer.json()["title"]) == (503, "upstream.store")
    assert time.monotonic() - began < ENDS_S


def test_a_message_sent_at_one_is_in_the_conversation_at_the_other(both: Platform, key: str) -> None:
    """Each turn knows those before it, of whichever replica, and none of another user's under the same name."""
    spread = cycle(both.replicas)
    for count in range(1, 5):
        assert turn(next(spread), key, "shared").json()["text"] == read(count)
    tom = both.key("acme", "user", user="tom")
    for count, url in enumerate(both.replicas, 1):
        assert turn(url, tom, "shared").json()["text"] == read(count)


def test_a_redis_that_says_nothing(both: Platform, key: str) -> None:
    """Meanwhile a turn is refused in a bounded time; when it goes on, so does the conversation, with nothing lost."""
    assert turn(both.replicas[0], key, "stopped").json()["text"] == read(1)
    both.processes["redis"].send_signal(signal.SIGSTOP)
    try:
        is_refused(both, key, "stopped")
        until_missing(both, "memory", "redis")
    finally:
        both.processes["redis"].send_signal(signal.SIGCONT)
    until_missing(both)
    for count, url in enumerate(both.replicas, 2):
        assert turn(url, key, "stopped").json()["text"] == read(count)


def test_a_redis_that_is_killed_in_the_middle_of_a_turn(both: Platform, key: str) -> None:
    """The turn is answered, the next are refused; with a new one, which knows nothing, conversations begin anew."""
    assert turn(both.replicas[0], key, "killed").json()["text"] == read(1)
    process = both.processes["redis"]
    both.model.answers.clear()
    try:
        with ThreadPoolExecutor(2) as pool:
            held = [pool.submit(turn, url, key, "killed") for url in both.replicas]
            until = time.monotonic() + 60
            while both.model.waiting < 2:
                assert time.monotonic() < until, "not both came to the model"
                time.sleep(0.02)
            process.kill()
            process.wait(30)
            both.model.answers.set()
            assert [one.result(60).json()["text"] for one in held] == [read(2)] * 2
        is_refused(both, key, "killed")
        until_missing(both, "memory", "redis")
    finally:
        both.model.answers.set()
        both.processes["redis"] = subprocess.Popen(process.args, stdout=subprocess.DEVNULL)  # type: ignore[arg-type]
    until_missing(both)
    for count, url in enumerate(both.replicas, 1):
        assert turn(url, key, "killed").json()["text"] == read(count)
