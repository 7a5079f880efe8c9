"""What a turn says while it runs. The last event is a Reply or a Failed; nothing follows it."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from aibox.agents.approvals import Approval
from aibox.agents.citations import Citation
from aibox.audit.receipt import Receipt
from aibox.chat import Usage
from aibox.errors import AccessError, AIBoxError, ConfigError
from aibox.memory.record import Hit
from aibox.types import Decision, Label, Verdict


@dataclass(frozen=True, slots=True)
class TextDelta:
    """A piece of the answer, checked and with pseudonyms restored."""

    text: str


@dataclass(frozen=True, slots=True)
class Recalled:
    """What memory gave to this turn; `error` says why it could not, and the turn goes on without."""

    hits: tuple[Hit, ...] = ()
    error: str = ""


@dataclass(frozen=True, slots=True)
class ModelCalled:
    """The messages of one model call, exactly as they leave for the Router."""

    messages: tuple[dict[str, Any], ...]


@dataclass(frozen=True, slots=True)
class ModelAnswered:
    """What the model wrote, before any check and with its pseudonyms; not for the person who asked."""

    message: dict[str, Any]


@dataclass(frozen=True, slots=True)
class UsageReported:
    """What one model call took, and all of the turn's until now, its subagents' included."""

    model: str
    backend: str
    usage: Usage
    total: Usage


@dataclass(frozen=True, slots=True)
class ToolCalled:
    """A tool is about to run, with the arguments as it will see them."""

    name: str
    arguments: dict[str, Any]
    call_id: str = ""


@dataclass(frozen=True, slots=True)
class ToolReturned:
    """A tool ran, or did not; `text` is what the model is told, `ok` False where it failed or was refused."""

    name: str
    text: str
    ok: bool
    duration_s: float
    call_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactMade:
    """A file or a figure that code made in the sandbox: the word of that code, whatever it is called.

    `data` are its bytes as they are handed out, `sha256` in hex and `size` are theirs. Where something is held back
    `data` is None, `sha256` is empty, `size` is what was made, and `withheld` says why. `label` is the turn's when it
    was made. `checked` is False for what no check has read, such as an image. `tool` made it, in the call `call_id`.
    """

    name: str
    media_type: str
    size: int
    sha256: str
    label: Label
    tool: str
    call_id: str
    checked: bool
    data: bytes | None = field(default=None, repr=False)
    withheld: str = ""

    def save(self, folder: str | Path) -> Path:
        """Write it into a folder, under its own name or, where there is such a file, a numbered one.

        A name that begins with a dot or a dash gets a `_` before it: code inside hides nothing, makes no `.profile`
        that a shell runs and no `-rf` that a command takes for an option.

        Raises AccessError for what was held back, ConfigError where nothing can be written.
        """
        if self.data is None:
            raise AccessError(f"{self.name} was held back: {self.withheld}")
        name = PurePath(self.name)
        name = name.with_name(f"_{name.name}") if name.name.startswith((".", "-")) else name
        for number in range(1000):
            place = Path(folder, name.name if not number else f"{name.stem}-{number}{name.suffix}")
            try:
                with place.open("xb") as file:
                    file.write(self.data)
            except FileExistsError:
                continue
            except OSError as error:
                raise ConfigError(f"cannot write {place}: {error.strerror}") from None
            return place
        raise ConfigError(f"there are too many files called {name.name} in {folder}")

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        """Notebooks show an image; whatever could run there is only named."""
        bundle: dict[str, Any] = {"text/plain": str(self)}
        if self.data is not None and self.media_type in ("image/png", "image/jpeg"):
            bundle[self.media_type] = base64.b64encode(self.data).decode()
        return bundle

    def __str__(self) -> str:
        notes = [self.media_type, f"{self.size} bytes", str(self.label)]
        notes += [f"held back: {self.withheld}"] if self.withheld else [] if self.checked else ["unchecked"]
        return f"{self.name} ({', '.join(notes)})"


@dataclass(frozen=True, slots=True)
class ApprovalAsked:
    """A call waits for people; the run pauses with `Reply.pending` unless an Approver answers at once."""

    tool: str
    reason: str
    people: int


@dataclass(frozen=True, slots=True)
class SkillActivated:
    """The model took a skill up; from here on its `allowed-tools` narrow what may be called."""

    name: str
    digest: str


@dataclass(frozen=True, slots=True)
class Subagent:
    """Something that a subagent said or did, with the same events as a turn of its own."""

    name: str
    event: Event


@dataclass(frozen=True, slots=True)
class Compacted:
    """What was old in the conversation was summed up: by the model, or by rules for the reason in `error`."""

    messages: int
    error: str = ""


@dataclass(frozen=True, slots=True)
class Decided:
    """The guardrail found something, or decided other than to allow."""

    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Failed:
    """The turn ended without an answer; `error` says why and what to do."""

    error: AIBoxError


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What came of a turn.

    `text` is for the person who asked, with pseudonyms restored; `output` is the object where an `output_type` was
    asked for, else the text. `label` is the join of all that the turn touched; `label.why` says what raised it.
    `blocked` means that a check refused: `text` then says so and `verdicts` why. `cost_usd` is None where no price is
    known. `receipt` proves what was recorded; None where there is no audit chain.

    `stopped` is why a limit ended the turn before the model did, and `text` then what was reached. `pending` are the
    questions to people that the run waits for: `agent.resume(reply.run)` goes on when they are answered.

    `citations` are the passages that the answer names as [1] and so on. `unsupported` are sentences of it that stand in
    no source of the turn, where the policy has the check `grounding` look at outputs; it compares words. `artifacts`
    are the files and figures that code made in the turn, those that were held back among them.
    """

    text: str
    output: Any = None
    label: Label = field(default_factory=Label)
    blocked: bool = False
    verdicts: tuple[Verdict, ...] = ()
    tool_calls: tuple[ToolReturned, ...] = ()
    usage: Usage = field(default_factory=Usage)
    cost_usd: float | None = None
    receipt: Receipt | None = None
    session: str = ""
    model: str = ""
    stopped: str = ""
    pending: tuple[Approval, ...] = ()
    run: str = ""
    citations: tuple[Citation, ...] = ()
    unsupported: tuple[str, ...] = ()
    artifacts: tuple[ArtifactMade, ...] = ()

    def __str__(self) -> str:
        return self.text

    def _repr_markdown_(self) -> str:
        found = [v for v in self.verdicts if v.decision > Decision.ALLOW]
        notes = [f"label {self.label}", *(f"{v.where}: {v.decision}" for v in found)]
        notes += [f"{call.name}()" for call in self.tool_calls]
        notes += [f"waits for a person: {ask.tool}" for ask in self.pending]
        notes += [str(citation) for citation in self.citations]
        notes += [str(artifact) for artifact in self.artifacts]
        notes += [f"in no source: “{sentence}”" for sentence in self.unsupported]
        if self.stopped:
            notes.append(self.stopped)
        notes.append("recorded" if self.receipt else "unrecorded")
        from html import escape  # its table of entities is large, and a server shows no notebook

        return f"{self.text}\n\n<sub>{escape(' · '.join(notes))}</sub>"


Event = (
    TextDelta
    | Recalled
    | Compacted
    | ModelCalled
    | ModelAnswered
    | UsageReported
    | ToolCalled
    | ToolReturned
    | ArtifactMade
    | ApprovalAsked
    | SkillActivated
    | Subagent
    | Decided
    | Reply
    | Failed
)
