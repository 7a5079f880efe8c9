"""What aibox asks of its parts. Each fits on a page; a composite has the face of its parts.

None is checked by isinstance: mypy checks the structure and the contract suites in `aibox.testing` the behaviour.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Literal, Protocol

from aibox.chat import ChatRequest, Chunk, Completion, Health, ModelInfo
from aibox.errors import AIBoxError
from aibox.execution import Limits, Usage
from aibox.types import Entry, Label, Scope, Verdict, Where


class Backend(Protocol):
    """Answers model calls. A Router is one, made of others."""

    @property
    def name(self) -> str:
        """Unique among the backends of one router; letters, digits, `-`, `_` and `.`."""
        ...

    @property
    def external(self) -> bool:
        """True when the text of a call leaves infrastructure that the operator owns."""
        ...

    async def models(self) -> Sequence[ModelInfo]:
        """What can be asked for. Raises BackendError when the server cannot say."""
        ...

    async def complete(self, request: ChatRequest, /, *, scope: Scope) -> Completion:
        """One whole answer. Raises BackendError; cancelling closes the call upstream."""
        ...

    def stream(self, request: ChatRequest, /, *, scope: Scope) -> AsyncIterator[Chunk]:
        """The answer in chunks as they arrive. Raises BackendError, also in the middle."""
        ...

    async def health(self) -> Health:
        """Never raises."""
        ...

    async def close(self) -> None:
        """Give back connections, threads and memory. Closing twice is allowed."""
        ...


class Embedder(Protocol):
    """Turns texts into vectors of unit length."""

    @property
    def name(self) -> str:
        """Names the model; vectors of different names are never compared."""
        ...

    @property
    def dimensions(self) -> int: ...

    async def embed(self, texts: Sequence[str], *, kind: Literal["query", "passage"]) -> list[list[float]]:
        """One vector a text, in order."""
        ...


class Check(Protocol):
    """Looks at a text. A Guardrail is one, made of others."""

    @property
    def name(self) -> str: ...

    async def check(self, text: str, *, where: Where = "input", scope: Scope, label: Label | None = None) -> Verdict:
        """A part's own verdict has decision FLAG where it found something; the policy decides what follows.

        A stricter decision is kept: a check may insist. Raising counts as the policy says, by default as a block.
        """
        ...


class Approver(Protocol):
    """Asks a person."""

    async def approve(self, tool: str, arguments: Mapping[str, Any], *, scope: Scope, label: Label) -> bool: ...


class Recorder(Protocol):
    """Keeps evidence. AuditChain is one."""

    def note(self, kind: str, *, scope: Scope, detail: Mapping[str, Any], turn: str = "") -> None:
        """Put an entry in order now; it is durable when the next `append` of this log returns.

        Raises what made an earlier write fail: evidence that cannot be written stops the work.
        """
        ...

    async def append(self, kind: str, *, scope: Scope, detail: Mapping[str, Any], turn: str = "") -> Entry:
        """Durable when it returns. Raises StoreError, and then nothing was recorded."""
        ...


class Watcher(Protocol):
    """Hears of turns, decides nothing, never raises. `aibox.outbound` makes traces so."""

    def turn(self, turn: str, *, scope: Scope, agent: str) -> Watched | None:
        """A turn begins, of an agent or, where that is empty, of a bare model; None does not want to hear of it."""
        ...


class Watched(Protocol):
    """Hears of one turn. `began` is when a step did, by `time.perf_counter`; a step ends when it is told."""

    @property
    def scope(self) -> Scope:
        """The turn's, for whatever is done in it."""
        ...

    def inside(self, agent: str, *, call: str) -> Watched | None:
        """A subagent begins to work, for this call of a tool; hears of its steps, and of its end."""
        ...

    def called(self, began: float, request: ChatRequest, *, scope: Scope, api: str) -> Scope | None:
        """A model is about to be asked; the scope to ask it under."""
        ...

    def answered(self, began: float, completion: Completion, *, said: Any, label: Label) -> None: ...

    def decided(self, began: float, verdict: Verdict) -> None: ...

    def used(
        self, began: float, tool: str, *, call: str, outcome: str, label: Label, arguments: str = "", result: str = ""
    ) -> None: ...

    def retrieved(self, began: float, *, query: str, found: int, label: Label, error: str = "") -> None: ...

    def ended(self, outcome: str, *, label: Label, error: AIBoxError | None = None) -> None: ...


class Erasable(Protocol):
    """Holds something about people and can let go of it."""

    async def erase(self, *, scope: Scope, subject: str | None = None) -> int:
        """Forget `subject` (a user; None is everyone) of `scope.tenant`; the number of things that are gone."""
        ...


class Tool(Protocol):
    """Something that an agent can call. A subagent is one."""

    @property
    def name(self) -> str: ...

    @property
    def description(self) -> str: ...

    @property
    def schema(self) -> Mapping[str, Any]:
        """JSON Schema of the arguments: an object."""
        ...

    async def call(self, arguments: Mapping[str, Any], *, scope: Scope) -> str:
        """The result as text for the model. What it raises becomes a result that says so."""
        ...


class Guest(Protocol):
    """One isolated guest: a program, everything that it starts, and a workspace that lives as long as it does."""

    async def send(self, data: bytes) -> None:
        """To the program's stdin. Raises SandboxError when it is gone."""
        ...

    async def receive(self) -> bytes:
        """Some of its stdout, when there is some; nothing at its end. Cancelling loses nothing."""
        ...

    def usage(self) -> Usage | None:
        """What was used until now; None where only the program inside can see it."""
        ...

    async def close(self) -> None:
        """End every process and remove everything of the guest, also when cancelled. Closing twice is allowed."""
        ...


class Driver(Protocol):
    """Isolates code: the one thing to write for another engine."""

    @property
    def name(self) -> str: ...

    @property
    def recorded(self) -> Mapping[str, Any]:
        """What stands in the evidence of a session besides the name: versions, digests, accepted risks."""
        ...

    async def available(self) -> Health:
        """Whether isolation can really be had here, tried rather than guessed. Never raises."""
        ...

    async def start(self, *, limits: Limits, gpus: int = 0) -> Guest:
        """A new guest that runs `COMMAND` of `aibox.sandbox.program` as process 1 and was greeted.

        Raises SandboxError, also where it passes no GPUs and some are asked for; never a weaker isolation.
        """
        ...

    async def close(self) -> None:
        """Let go of what all guests share. Closing twice is allowed."""
        ...
