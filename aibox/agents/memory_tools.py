"""Memory as tools: what an agent may keep, find and look up of the user it works for, and of nobody else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from aibox.agents.turn_state import TurnState
from aibox.errors import AIBoxError
from aibox.memory.memory import Memory
from aibox.memory.quote import quote
from aibox.memory.record import Passage, RecordType
from aibox.types import Label, Level, Scope

_NOTHING = Label(Level.PUBLIC)


class _Arguments(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Store(_Arguments):
    text: str = Field(description="One short sentence that stands alone.", min_length=1, max_length=400)
    type: RecordType = Field(
        "user",
        description="user: who they are; feedback: how they want work done; project: decisions and dates; "
        "reference: where something is found",
    )
    replaces: str = Field("", description="Id of the memory that this one corrects, if any.")


class _Recall(_Arguments):
    query: str = Field(description="What to look for, as a question.", min_length=1, max_length=2000)
    limit: int = Field(5, ge=1, le=20)


class _Get(_Arguments):
    id: str = Field(description="Id of a memory or of a passage, as memory_recall gave it.", max_length=80)


@dataclass(frozen=True, slots=True)
class _Asking:
    """For whom a tool works, under which label and in which turn."""

    scope: Scope
    label: Label = field(default_factory=Label)
    source: str = ""
    passages: list[Passage] = field(default_factory=list)
    """What may be cited already; what is shown is added."""


class _MemoryTool:
    """What the three have in common: `keeps` says that they work on pseudonyms, and on what the turn may be shown."""

    name: str
    arguments: type[_Arguments]
    side_effects = False
    keeps = True

    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    @property
    def description(self) -> str:
        return (type(self).__doc__ or "").split("\n", maxsplit=1)[0]

    @property
    def schema(self) -> Mapping[str, Any]:
        return self.arguments.model_json_schema()

    async def call(self, arguments: Mapping[str, Any], *, scope: Scope) -> str:
        """Outside a turn, where there is no label to raise."""
        return (await self._work(arguments, _Asking(scope)))[0]

    async def call_in(self, arguments: Mapping[str, Any], *, call_id: str, turn: TurnState) -> str:
        """In a turn, which takes the label of what it is shown."""
        del call_id
        text, label = await self._work(arguments, _Asking(turn.scope, turn.label, turn.record.turn, turn.passages))
        turn.touch(label)
        return text

    async def _work(self, arguments: Mapping[str, Any], asking: _Asking) -> tuple[str, Label]:
        raise NotImplementedError


class MemoryStoreTool(_MemoryTool):
    """Remember a lasting fact about the user or their work, for later conversations."""

    name = "memory_store"
    arguments = _Store
    side_effects = True

    async def _work(self, arguments: Mapping[str, Any], asking: _Asking) -> tuple[str, Label]:
        """What the turn has touched so far labels the memory; what may not be learned is refused in words."""
        asked = _Store.model_validate(arguments)
        if refused := await self._memory.learner.refusal(asked.text, scope=asking.scope, label=asking.label):
            return (f"Not kept: {refused}.", _NOTHING)
        about: dict[str, Any] = {
            "scope": asking.scope,
            "label": asking.label,
            "source": asking.source,
            "confidence": 0.8,
        }
        try:
            if asked.replaces:
                record = await self._memory.update(asked.replaces, asked.text, **about)
            else:
                record = await self._memory.remember(asked.text, type=asked.type, **about)
        except AIBoxError as error:
            return (f"Not kept: {error}.", _NOTHING)
        return (f"Kept as {record.id}.", _NOTHING)


class MemoryRecallTool(_MemoryTool):
    """Find what is remembered about the user, and passages of documents, that have to do with a question."""

    name = "memory_recall"
    arguments = _Recall
    private = untrusted = True

    async def _work(self, arguments: Mapping[str, Any], asking: _Asking) -> tuple[str, Label]:
        """What is found raises the turn's label, each with its citation as the reason."""
        asked = _Recall.model_validate(arguments)
        hits = await self._memory.recall(asked.query, scope=asking.scope, limit=asked.limit)
        found = _NOTHING
        for hit in hits:
            found = found | hit.label.because(hit.citation)
        # As `quote` shows them: memories, then passages.
        hits.sort(key=lambda hit: isinstance(hit.record, Passage))
        ids = " ".join(hit.record.id for hit in hits)
        if not hits:
            return ("Nothing is remembered of that.", found)
        shown = quote(hits, first=len(asking.passages) + 1)
        asking.passages.extend(hit.record for hit in hits if isinstance(hit.record, Passage))
        return (f"{shown}\n\nIds, in order: {ids}", found)


class MemoryGetTool(_MemoryTool):
    """Look up one memory or passage by its id."""

    name = "memory_get"
    arguments = _Get
    private = untrusted = True

    async def _work(self, arguments: Mapping[str, Any], asking: _Asking) -> tuple[str, Label]:
        found = await self._memory.get(_Get.model_validate(arguments).id, scope=asking.scope)
        if found is None:
            return ("There is none of that id.", _NOTHING)
        kind = "passage" if isinstance(found, Passage) else found.type
        return (f"({kind}, {found.citation}) {found.text}", found.label.because(found.citation))


def memory_tools(memory: Memory) -> tuple[MemoryStoreTool, MemoryRecallTool, MemoryGetTool]:
    """The three, for `Agent(tools=...)`."""
    return MemoryStoreTool(memory), MemoryRecallTool(memory), MemoryGetTool(memory)
