"""The window over a conversation."""

from __future__ import annotations

import json
import threading
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from aibox.memory.buffer import Buffer
from aibox.types import Scope

EVA = Scope(tenant="acme", user="eva", agent="books", session="s1")


def says(text: str, role: str = "user") -> dict[str, Any]:
    return {"role": role, "content": text}


def calls(*ids: str) -> dict[str, Any]:
    function = {"name": "f", "arguments": "{}"}
    return {"role": "assistant", "content": None, "tool_calls": [{"id": i, "function": function} for i in ids]}


def result(id_: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": id_, "content": "42"}


def test_the_newest_messages_stay() -> None:
    """Of more messages than fit the oldest go first."""
    buffer = Buffer(max_messages=3)
    for i in range(5):
        buffer.add(says(f"{i}"), scope=EVA)
    assert [message["content"] for message in buffer.window(scope=EVA)] == ["2", "3", "4"]


def test_sessions_are_apart() -> None:
    """Tenant, user, agent and session each make another conversation."""
    buffer = Buffer()
    buffer.add(says("mine"), scope=EVA)
    for field in ("tenant", "user", "agent", "session"):
        values = {name: getattr(EVA, name) for name in ("tenant", "user", "agent", "session")} | {field: "other"}
        assert buffer.window(scope=Scope(**values)) == []


def test_calls_and_results_stay_together() -> None:
    """A call and its results leave the window at once, never one without the other."""
    buffer = Buffer(max_messages=3)
    for message in (calls("a", "b"), result("b"), result("a")):
        buffer.add(message, scope=EVA)
    assert len(buffer.window(scope=EVA)) == 3
    buffer.add(says("next"), scope=EVA)
    assert buffer.window(scope=EVA) == [says("next")]


def test_an_unanswered_call_is_left_out() -> None:
    """A call that lacks a result is not in the window; a result that answers no call is not kept."""
    buffer = Buffer()
    buffer.add(says("question"), scope=EVA)
    buffer.add(calls("a", "b"), scope=EVA)
    buffer.add(result("a"), scope=EVA)
    buffer.add(result("unknown"), scope=EVA)
    assert buffer.window(scope=EVA) == [says("question")]
    buffer.add(result("b"), scope=EVA)
    assert buffer.window(scope=EVA) == [says("question"), calls("a", "b"), result("a"), result("b")]


def test_sessions_are_bounded() -> None:
    """The session that was used longest ago makes room for a new one."""
    buffer = Buffer(max_sessions=2)
    for session in ("a", "b", "a", "c"):
        buffer.add(says(session), scope=EVA.narrow(session=session))
    assert buffer.window(scope=EVA.narrow(session="b")) == []
    assert len(buffer.window(scope=EVA.narrow(session="a"))) == 2


def test_clearing_takes_one_user_or_the_tenant() -> None:
    """A user's sessions go without those of others; a tenant's go with all users."""
    buffer = Buffer()
    tom, rival = Scope(tenant="acme", user="tom"), Scope(tenant="rival", user="eva")
    for scope in (EVA, tom, rival):
        buffer.add(says("x"), scope=scope)
    assert buffer.clear(tenant="acme", user="eva") == 1
    assert buffer.window(scope=EVA) == []
    assert buffer.window(scope=tom) == [says("x")]
    assert buffer.clear(tenant="acme") == 1
    assert buffer.window(scope=tom) == []
    assert buffer.window(scope=rival) == [says("x")]


def test_a_window_is_a_copy() -> None:
    """Changing what `window` returned changes nothing that is kept."""
    buffer = Buffer()
    buffer.add(says("x"), scope=EVA)
    buffer.window(scope=EVA)[0]["content"] = "y"
    assert buffer.window(scope=EVA) == [says("x")]


def test_threads_lose_nothing() -> None:
    """Messages added from several threads are all there."""
    buffer = Buffer(max_messages=10_000, max_chars=10_000_000)

    def add() -> None:
        for i in range(200):
            buffer.add(says(f"{i}"), scope=EVA)

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(buffer.window(scope=EVA)) == 800


MESSAGES = st.one_of(
    st.builds(says, st.text(max_size=30), st.sampled_from(["user", "assistant", "system"])),
    st.builds(calls, st.sampled_from("abc"), st.sampled_from("def")),
    st.builds(result, st.sampled_from("abcdef")),
)


@given(st.lists(MESSAGES, max_size=40), st.integers(1, 8), st.integers(10, 400))
def test_a_window_is_bounded_and_whole(messages: list[dict[str, Any]], most: int, chars: int) -> None:
    """Whatever was added, the window keeps both bounds, and each call in it is followed by exactly its results."""
    buffer = Buffer(max_messages=most, max_chars=chars)
    for message in messages:
        buffer.add(message, scope=EVA)
    window = buffer.window(scope=EVA)
    assert len(window) <= most
    assert sum(len(json.dumps(message, ensure_ascii=False)) for message in window) <= chars
    waiting: set[str] = set()
    for message in window:
        if message["role"] == "tool":
            waiting.remove(message["tool_call_id"])
        else:
            assert not waiting
            waiting = {call["id"] for call in message.get("tool_calls", ())}
    assert not waiting
