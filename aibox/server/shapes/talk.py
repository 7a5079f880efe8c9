"""A turn of an agent: what is asked, the events while it runs, what came of it; and conversations."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from aibox.server.shapes.fault import Problem
from aibox.server.shapes.shape import Answer, Asked, LabelText, Name, Text


class Ask(Asked):
    """One turn. With a `session` it goes on with that conversation, which is the caller's own."""

    message: str = Field(min_length=1)
    agent: Name = "default"
    session: str = Field(default="", max_length=255, pattern=r"^[!-~]*$")
    label: LabelText | None = None


class Call(Answer):
    """A tool that ran, or did not: `ok` is False where it failed or was refused."""

    name: str
    ok: bool
    duration_s: float


class Question(Answer):
    """Something that the run waits for. Who may answer finds it under `/v1/approvals`."""

    id: str
    tool: str
    reason: str
    people: int


class Tokens(Answer):
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    cost_usd: float | None
    """None where no price is known."""


class Artifact(Answer):
    """A file or a figure that code made in the sandbox: the word of that code, whatever it is called.

    `data` is what it holds, in base64; `sha256` and `size` are those bytes'. It is null where `withheld` says why
    nothing is handed out, and in the reply that ends a stream, whose events have brought it. `checked` is false for
    what no check has read, such as an image.
    """

    name: str
    media_type: str
    size: int
    sha256: str
    label: Text
    tool: str
    call_id: str
    checked: bool
    withheld: str
    data: str | None


class Told(Answer):
    """What came of a turn. `turn` is what `/v1/receipts` knows it by; empty where nothing is recorded."""

    type: Literal["reply"] = "reply"
    text: str
    blocked: bool
    stopped: str
    """Which limit ended the turn before the model did; else empty."""
    label: Text
    label_why: list[str]
    pending: list[Question]
    tool_calls: list[Call]
    artifacts: list[Artifact]
    usage: Tokens
    session: str
    model: str
    run: str
    turn: str


class TextEvent(Answer):
    """A piece of the answer, checked."""

    type: Literal["text"] = "text"
    text: str


class RecalledEvent(Answer):
    """What memory gave to the turn, as citations."""

    type: Literal["recalled"] = "recalled"
    citations: list[str]
    error: str


class ToolCalledEvent(Answer):
    type: Literal["tool_called"] = "tool_called"
    name: str
    arguments: dict[str, Any]
    call_id: str


class ToolReturnedEvent(Answer):
    type: Literal["tool_returned"] = "tool_returned"
    name: str
    ok: bool
    duration_s: float
    call_id: str


class ArtifactEvent(Artifact):
    type: Literal["artifact"] = "artifact"


class UsageEvent(Answer):
    """What one model call took, and all of the turn's until now."""

    type: Literal["usage"] = "usage"
    model: str
    backend: str
    usage: Tokens
    total: Tokens


class ApprovalEvent(Answer):
    """A call waits for people."""

    type: Literal["approval_asked"] = "approval_asked"
    tool: str
    reason: str
    people: int


class SkillEvent(Answer):
    type: Literal["skill_activated"] = "skill_activated"
    name: str
    digest: str


class CompactedEvent(Answer):
    """What was old in the conversation was summed up, or with `error` only left out."""

    type: Literal["compacted"] = "compacted"
    messages: int
    error: str


class DecidedEvent(Answer):
    """The guardrail found something, or decided other than to allow."""

    type: Literal["decided"] = "decided"
    where: str
    decision: Text
    reasons: list[str]


class FailedEvent(Answer):
    """The turn ended without an answer."""

    type: Literal["failed"] = "failed"
    problem: Problem


class SubagentEvent(Answer):
    """Something that a subagent did, with the events of a turn of its own."""

    type: Literal["subagent"] = "subagent"
    name: str
    event: Event


Event = Annotated[
    TextEvent
    | RecalledEvent
    | ToolCalledEvent
    | ToolReturnedEvent
    | ArtifactEvent
    | UsageEvent
    | ApprovalEvent
    | SkillEvent
    | CompactedEvent
    | DecidedEvent
    | SubagentEvent
    | Told
    | FailedEvent,
    Field(discriminator="type"),
]
"""What a turn says while it runs. The last is `reply` or `failed`; nothing follows it."""
SubagentEvent.model_rebuild()


class ToolOffered(Answer):
    name: str
    description: str
    approve: bool
    """Every call waits until a person has said yes. Of other tools a call may wait too, for what else the turn did."""


class AgentShown(Answer):
    """An agent that can be asked. Its instructions are not shown."""

    name: str
    model: str
    version: str
    policy: str
    """The digest of the policy that it is under."""
    tools: list[ToolOffered]
    skills: list[str]
    remembers: bool


class AgentList(Answer):
    data: list[AgentShown]


class SessionQuery(Asked):
    agent: Name = "default"
    """Conversations belong to an agent."""


class SessionsQuery(Asked):
    agent: str = Field(default="", max_length=255, pattern=r"^[!-~]*$", examples=["default"])
    """Only those with this agent."""
    limit: int = Field(default=100, ge=1, le=1000)


class SessionShown(Answer):
    """A conversation. Times are microseconds since 1970."""

    id: str
    agent: str
    title: str
    label: Text
    created_us: int
    updated_us: int


class SessionList(Answer):
    data: list[SessionShown]


class SessionWhole(SessionShown):
    """A conversation with every message, as the model saw them: with pseudonyms where the policy asks for them."""

    messages: list[dict[str, Any]]


class Title(Asked):
    title: str = Field(max_length=1000)
    """The first 80 characters are kept."""
