"""Server-sent events from bytes, however the network cut them: https://html.spec.whatwg.org/multipage/server-sent-events.html

Only the `data` field matters to a chat stream; comments and other fields are passed over.
"""

from __future__ import annotations

from aibox.errors import BackendError

MAX_EVENT_BYTES = 4 << 20


class Events:
    """Feed it what arrives; it returns the data of the events that became whole. Bounded by MAX_EVENT_BYTES."""

    def __init__(self) -> None:
        self._line: list[bytes] = []
        self._data: list[bytes] = []
        self._size = 0
        self._after_cr = False

    def feed(self, received: bytes) -> list[bytes]:
        """Raises BackendError for an event that is too large to be one."""
        if not received:
            return []
        # `find`, as it takes half the time of `in`.
        whole = received.endswith(b"\n\n") and received.find(b"\r") < 0
        if whole and not (self._line or self._data or self._after_cr):
            return self._whole(received)
        if self._after_cr and received.startswith(b"\n"):
            received = received[1:]  # the other half of a CRLF
        self._after_cr = received.endswith(b"\r")
        if b"\r" in received:
            received = received.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, rest = received.split(b"\n")
        found = []
        for line in lines:
            # Pieces of a line are joined once, when it ends: a server that sends single bytes costs no more.
            event = self._end_line(b"".join((*self._line, line)))
            self._line.clear()
            if event is not None:
                found.append(event)
        self._size += len(received)
        if self._size > MAX_EVENT_BYTES and (self._line or rest or self._data):
            raise BackendError(f"the model server sent an event of more than {MAX_EVENT_BYTES >> 20} MiB")
        if rest:
            self._line.append(rest)
        return found

    def _whole(self, received: bytes) -> list[bytes]:
        """Events that came whole, as nearly all do: each is one line of data and an empty line."""
        if received.startswith(b"data: ") and received.find(b"\n") == len(received) - 2:
            return [received[6:-2]]
        found = []
        for block in received[:-2].split(b"\n\n"):
            if block.startswith(b"data: ") and b"\n" not in block:
                found.append(block[6:])
            else:
                found += (event for line in (*block.split(b"\n"), b"") if (event := self._end_line(line)) is not None)
        return found

    def _end_line(self, line: bytes) -> bytes | None:
        if line:
            name, _, value = line.partition(b":")
            if name == b"data":
                self._data.append(value.removeprefix(b" "))
            return None
        event = b"\n".join(self._data) if self._data else None
        self._data.clear()
        self._size = 0
        return event
