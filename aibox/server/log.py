"""What the server says while it runs: one JSON object a line, without a text of anybody's and without a secret.

A line never waits for whoever reads it: a thread writes, and when it cannot keep up, lines are counted instead.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import Any, BinaryIO

import msgspec

KEPT = 10_000
"""Lines that wait to be written; of more than that the newest are dropped, and counted in the next that is written."""
LINGER_S = 0.1
CLOSE_S = 5.0
"""How long `close` waits for a reader that takes nothing."""
_SPEAKS = ("uvicorn", "aibox")
"""Loggers whose messages are fixed sentences. What others say may hold a piece of a request, and is not repeated."""


class Log:
    """Writes to a stream of bytes, such as `sys.stderr.buffer`."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._lines: deque[Mapping[str, Any]] = deque()
        self._dropped = 0
        self._closed = False
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._work, name="aibox-log", daemon=True)
        self._thread.start()

    def say(self, event: str, *, level: str = "info", **fields: Any) -> None:
        """One line: what happened, and facts about it."""
        self.put({"ts": time.time(), "level": level, "event": event, **fields})

    def put(self, line: Mapping[str, Any]) -> None:
        if len(self._lines) >= KEPT:
            self._dropped += 1
            return
        self._lines.append(line)
        if not self._wake.is_set():
            self._wake.set()

    def close(self) -> None:
        """Write what waits. Closing twice is allowed."""
        self._closed = True
        self._wake.set()
        self._thread.join(CLOSE_S)

    def _work(self) -> None:
        encoder = msgspec.json.Encoder(enc_hook=str)
        while not (self._closed and not self._lines):
            self._wake.wait()
            if not self._closed:
                time.sleep(LINGER_S)  # so that one call into the kernel writes many
            self._wake.clear()
            lines = [self._lines.popleft() for _ in range(len(self._lines))]
            if self._dropped:
                dropped, self._dropped = self._dropped, 0
                lines.append({"ts": time.time(), "level": "warning", "event": "log.dropped", "lines": dropped})
            try:
                self._stream.write(encoder.encode_lines(lines))
                self._stream.flush()
            except (OSError, ValueError):
                return  # nobody reads any more; there is nobody to tell
            if self._closed:
                self._wake.set()


class LogHandler(logging.Handler):
    """Takes what libraries log. Of an exception it tells the type and the place, never the message."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        fields: dict[str, Any] = {"logger": record.name, "at": f"{record.module}:{record.lineno}"}
        if record.name.partition(".")[0] in _SPEAKS:
            fields["message"] = record.getMessage().strip()
        if record.exc_info and record.exc_info[1] is not None:
            fields |= failure(record.exc_info[1])
        self._log.say("log", level=record.levelname.lower(), **fields)


def failure(error: BaseException) -> dict[str, str]:
    """What may be said of an exception that nobody expected: its message may quote a request."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = "" if trace is None else f"{trace.tb_frame.f_code.co_qualname}:{trace.tb_lineno}"
    return {"error": type(error).__name__, "raised": place}
