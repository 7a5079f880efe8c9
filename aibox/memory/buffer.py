"""The last messages of each conversation, in this process. Always a valid conversation: no call without its results."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict, deque
from collections.abc import Mapping
from typing import Any

from aibox.types import Scope

_Key = tuple[str, str, str, str]


class Buffer:
    """A sliding window over the chat messages of a session, of one user with one agent.

    At most `max_messages` and `max_chars` (characters of the messages as JSON) of a session are kept, the newest; an
    assistant's tool calls and their results stay or go together, and what is larger than the window by itself is not
    kept. Of sessions the `max_sessions` latest used are kept. Any thread may use it. Nothing is written to disk.
    """

    def __init__(self, *, max_messages: int = 40, max_chars: int = 64_000, max_sessions: int = 1_000) -> None:
        self.max_messages = max_messages
        self.max_chars = max_chars
        self.max_sessions = max_sessions
        self._sessions: OrderedDict[_Key, deque[_Unit]] = OrderedDict()
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"Buffer({len(self._sessions)} sessions, max_messages={self.max_messages}, max_chars={self.max_chars})"

    def add(self, message: Mapping[str, Any], *, scope: Scope) -> None:
        """Append a message in the form of Chat Completions. A tool result that answers no kept call is dropped."""
        with self._lock:
            units = self._session(scope)
            if message.get("role") == "tool":
                if not units or not units[-1].answers(message):
                    return
                units[-1].add(message)
            else:
                units.append(_Unit(message))
            while (
                sum(len(u.messages) for u in units) > self.max_messages or sum(u.chars for u in units) > self.max_chars
            ):
                units.popleft()

    def window(self, *, scope: Scope) -> list[dict[str, Any]]:
        """The messages kept of the scope's session, oldest first; tool calls that lack a result are left out."""
        with self._lock:
            units = self._sessions.get(_key(scope), ())
            return [dict(message) for unit in units if not unit.open for message in unit.messages]

    def clear(self, *, tenant: str, user: str | None = None) -> int:
        """Forget the sessions of a user of the tenant, or with None of all its users; the number of sessions."""
        with self._lock:
            keys = [key for key in self._sessions if key[0] == tenant and user in {None, key[1]}]
            for key in keys:
                del self._sessions[key]
            return len(keys)

    def _session(self, scope: Scope) -> deque[_Unit]:
        units = self._sessions.setdefault(_key(scope), deque())
        self._sessions.move_to_end(_key(scope))
        while len(self._sessions) > self.max_sessions:
            self._sessions.popitem(last=False)
        return units


class _Unit:
    """What may not be parted: one message, or an assistant's tool calls with their results."""

    def __init__(self, message: Mapping[str, Any]) -> None:
        self.messages: list[dict[str, Any]] = []
        self.chars = 0
        self.open = {call.get("id") for call in message.get("tool_calls") or ()}
        self.add(message)

    def answers(self, message: Mapping[str, Any]) -> bool:
        return message.get("tool_call_id") in self.open

    def add(self, message: Mapping[str, Any]) -> None:
        self.messages.append(dict(message))
        self.chars += len(json.dumps(message, ensure_ascii=False, default=str))
        self.open.discard(message.get("tool_call_id"))


def _key(scope: Scope) -> _Key:
    return (scope.tenant, scope.user, scope.agent, scope.session)
