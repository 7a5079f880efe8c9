"""What a stream begins with, up to its first word: until then nothing was said, and another backend may take over."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aibox.chat import Chunk
from aibox.inference.streams import Take

_WORDS = ("content", "tool_calls", "reasoning", "reasoning_content", "refusal", "audio")
"""What a delta says something with; anything else may be thrown away when another backend takes over."""


class Head:
    """Around `take`: holds back what comes before the first word."""

    def __init__(self, take: Take) -> None:
        self._take = take
        self._held: list[Chunk] = []
        self.spoken = False
        self.heard: Callable[[], None] = lambda: None
        """Is told when the first word comes."""

    def take(self, batch: list[Chunk]) -> Awaitable[None] | None:
        if self.spoken:
            return self._take(batch)
        self._held += batch
        return self.end() if any(map(_speaks, batch)) else None

    def end(self) -> Awaitable[None] | None:
        """Nothing more is held back."""
        held, self._held = self._held, []
        if not self.spoken:
            self.spoken = True
            self.heard()
        return self._take(held) if held else None

    def clear(self) -> None:
        """What it began with is not how it goes on."""
        self._held = []


def _speaks(chunk: Chunk) -> bool:
    delta = chunk.delta
    if chunk.finish_reason or any(delta.get(key) for key in _WORDS):
        return True
    # What is not a chat: its first event is its first word.
    return "choices" not in chunk.body or "delta" not in (chunk.body["choices"] or [{}])[0]
