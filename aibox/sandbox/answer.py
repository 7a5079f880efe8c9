"""What a guest answers to one call, put together from frames and believed no further than that.

Everything in it but the facts of the last frame is the word of code that nobody reviewed: it is bounded, decoded with
replacement, and read as data.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable
from dataclasses import dataclass, field

from aibox.execution import Limits, Result, Table, Usage
from aibox.sandbox.line import facts
from aibox.sandbox.program import INODES_A_MIB

OnOutput = Callable[[str, str], None]

_STREAMS = {b"o": "stdout", b"e": "stderr"}
_PNG = b"\x89PNG\r\n\x1a\n"
_SHOWN_BYTES = 16 * 1024 * 1024
"""Of values, tables and figures of one run together."""
_MANY = 64


@dataclass(slots=True)
class Answer:
    """`keep` bytes of each stream and of the data are kept; more than a supervisor would send is dropped here too."""

    keep: int
    on_output: OnOutput | None = None
    begun: bool = False
    """Whether the guest was asked, or about to be: what waits its turn is not."""
    data: bytearray = field(default_factory=bytearray)
    facts: dict[str, str] = field(default_factory=dict)
    timed_out: bool = False
    killed_for_memory: bool = False
    peak_memory_mib: float | None = None
    _streams: dict[str, bytearray] = field(default_factory=lambda: {name: bytearray() for name in _STREAMS.values()})
    _decoders: dict[str, codecs.IncrementalDecoder] = field(default_factory=dict)
    _shown: list[tuple[bytes, bytes]] = field(default_factory=list)
    _piece: bytearray = field(default_factory=bytearray)
    _size: int = 0

    def take(self, kind: bytes, data: bytes) -> bool:
        """One frame; True for the last."""
        if kind in _STREAMS:
            self._print(_STREAMS[kind], data)
        elif kind == b"d":
            self.data += data[: self.keep - len(self.data)]
        elif kind in (b"v", b"t", b"p"):
            self._show(kind, data)
        elif kind == b"x":
            self.facts = facts(data)
            return True
        return False

    def _print(self, name: str, data: bytes) -> None:
        stream = self._streams[name]
        data = data[: self.keep - len(stream)]
        stream += data
        if self.on_output is not None and data:
            decoder = self._decoders.setdefault(name, codecs.getincrementaldecoder("utf-8")("replace"))
            self.on_output(name, decoder.decode(data))

    def _show(self, kind: bytes, data: bytes) -> None:
        self._size += len(data)
        if self._size > _SHOWN_BYTES or len(self._shown) >= _MANY:
            return
        self._piece += data[1:]
        if data[:1] == b".":
            self._shown.append((kind, bytes(self._piece)))
            self._piece.clear()

    def text(self, stream: str) -> str:
        return self._streams[stream].decode("utf-8", errors="replace")

    def inside(self) -> Usage:
        """What the supervisor saw of its control group."""
        peak = self.facts.get("peak", "")
        return Usage(
            int(peak) / 1024 / 1024 if peak.isdecimal() else None,
            int(self.facts["oom"]) if self.facts.get("oom", "").isdecimal() else 0,
        )

    def result(self, limits: Limits) -> Result:
        code: int | None = int(self.facts.get("code") or 0)
        if code is not None and code < 0:
            code = 128 - code  # ended by a signal, as a shell says it
        lost = self.facts.get("lost") == "1"
        hit = []
        if self.timed_out:
            code = None
            hit.append(f"stopped after {limits.wall_s:g} s (wall time limit); compute less, or in smaller steps")
        if self.killed_for_memory:
            code = None if code == 137 else code
            hit.append(f"a process was stopped at {limits.memory_mib} MiB (memory limit); use less memory at a time")
        files = f"{limits.workspace_mib * INODES_A_MIB} files exist (file limit)"
        if self.facts.get("crowded") == "1":
            code = None
            hit.append(f"stopped when {files}; make fewer, or remove some")
        if (word := self.facts.get("error")) is not None:
            code = None
            many = {
                "processes": f"{limits.pids} processes exist (process limit)",
                "files": f"far more than {files}; start another session",
            }
            hit.append(f"nothing could be started: {many.get(word, word)}")
        dropped = self.facts.get("dropped", "")
        for letter, name in _STREAMS.items():
            if letter.decode() in dropped:
                hit.append(f"only the first {limits.output_kib} KiB of {name} were kept (output limit); print less")
        if lost:
            hit.append("the interpreter ended (state lost): variables and imports are gone, files are kept")
        return Result(
            stdout=self.text("stdout"),
            stderr=self.text("stderr"),
            exit_code=code,
            duration_s=0.0,
            value=next((data.decode("utf-8", errors="replace") for kind, data in self._shown if kind == b"v"), None),
            tables=tuple(table for kind, data in self._shown if kind == b"t" and (table := _table(data))),
            figures=tuple(data for kind, data in self._shown if kind == b"p" and data.startswith(_PNG)),
            peak_memory_mib=self.peak_memory_mib,
            truncated=bool(dropped),
            limits_hit=tuple(hit),
            state_lost=lost,
        )


def _table(data: bytes) -> Table | None:
    """What is no table of the agreed shape is left out: the value's text is there as well."""
    try:
        value = json.loads(data)
        columns = tuple(str(name) for name in value["columns"])
        rows = tuple(tuple(str(cell) for cell in row) for row in value["rows"])
        return Table(columns, rows, int(value["total_rows"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
