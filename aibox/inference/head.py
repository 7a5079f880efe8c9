"""What a stream begins with, up to its first word: until then nothing was said, and another backend may take over."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aibox.chat import Chunk
from aibox.errors import BackendError
from aibox.inference.streams import Take

_WORDS = ("content", "tool_calls", "reasoning", "reasoning_content", "refusal", "audio")
"""What a delta says something with; anything else may be thrown away when another backend takes over."""


MAX_HELD = 10_000
MAX_HELD_BYTES = 16 << 20
"""Of chunks that wait: servers send one or two, with progress or a picture some hundreds, or some MiB."""


class Held:
    """Chunks that wait, for the first word or for the end to be on record: a server must not make them endless."""

    def __init__(self) -> None:
        self.chunks: list[Chunk] = []
        self._count = self._bytes = 0

    def add(self, batch: list[Chunk], made: list[Chunk] | None = None) -> None:
        """Hold what came, or what was made of it. Raises BackendError when too much has come."""
        self._count += len(batch)
        self._bytes += sum(len(chunk.encoded()) for chunk in batch)
        if self._count > MAX_HELD or self._bytes > MAX_HELD_BYTES:
            raise BackendError(
                f"{batch[0].backend} sent more than {MAX_HELD} pieces or {MAX_HELD_BYTES >> 20} MiB before the first "
                "word of its answer, or after the last",
                hint="does the base URL end in /v1? no model server has that much to say there",
            )
        self.chunks += batch if made is None else made


class Head:
    """Around `take`: holds back what comes before the first word."""

    def __init__(self, take: Take) -> None:
        self._take = take
        self._held = Held()
        self.spoken = False
        self.heard: Callable[[], None] = lambda: None
        """Is told when the first word comes."""

    def take(self, batch: list[Chunk]) -> Awaitable[None] | None:
        if self.spoken:
            return self._take(batch)
        if any(map(_speaks, batch)):
            self._held.chunks += batch
            return self.end()
        self._held.add(batch)
        return None

    def end(self) -> Awaitable[None] | None:
        """Nothing more is held back."""
        held, self._held = self._held.chunks, Held()
        if not self.spoken:
            self.spoken = True
            self.heard()
        return self._take(held) if held else None

    def clear(self) -> None:
        """What it began with is not how it goes on."""
        self._held = Held()


def _speaks(chunk: Chunk) -> bool:
    delta = chunk.delta
    if chunk.finish_reason or any(delta.get(key) for key in _WORDS):
        return True
    # What is not a chat: its first event is its first word.
    return "choices" not in chunk.body or "delta" not in (chunk.body["choices"] or [{}])[0]
