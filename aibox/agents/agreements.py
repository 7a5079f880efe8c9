"""External models that need a person's yes: asked for as tools are, and good for the rest of the run.

A yes is to a model, up to the label that was shown, under the policy that was shown; the door compares. Where the label
has risen since, or the policy is another, the question is a new one.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any, Protocol

from aibox.agents.approvals import Approval, digest_of
from aibox.agents.budget import Exhausted
from aibox.agents.events import ApprovalAsked, Event
from aibox.agents.question import Asker, question
from aibox.chat import Agreed, ChatRequest
from aibox.errors import ApprovalError
from aibox.protocols import Approver
from aibox.types import Label

_MODEL = "model "
"""How the name of what is asked about begins; no tool's does, for it has no space."""


class Asking(Asker, Protocol):
    """The turn, as far as its questions about models concern it."""

    approver: Approver | None
    answers: Mapping[str, Approval]

    def emit(self, event: Event) -> None: ...

    def wait_for(self, approval: Approval) -> None: ...


class Agreements:
    """Of one turn: what people have agreed to send to which models."""

    def __init__(self, turn: Asking) -> None:
        self._turn = turn
        self._given: list[Agreed] = []

    def all(self) -> tuple[Agreed, ...]:
        """What holds now: given to this run before, or in this turn."""
        return (*self._given, *(_agreed(one) for one in self._answers("approved")))

    async def ask(self, needed: ApprovalError, request: ChatRequest) -> Agreed | None:
        """A yes, from somebody who answers at once; None when people were asked and the run pauses.

        Raises Exhausted where somebody said no or nobody answered in time, and `needed` where nobody can be asked.
        """
        turn, name = self._turn, _MODEL + needed.model
        people, label = turn.policy.tools.people(name), request.label
        for status in ("rejected", "expired"):
            for asked in self._answers(status):
                if asked.arguments["model"] == needed.model and label <= asked.label:
                    said = f": {asked.said}" if asked.said else ""
                    no = "said no to" if status == "rejected" else "did not answer about"
                    raise Exhausted(f"a person {no} sending this to {needed.model}{said}")
        arguments = {
            "model": needed.model,
            "host": needed.host,
            "door": needed.policy,
            "messages": [message for message in request.messages if message.get("role") != "system"],
        }
        turn.emit(ApprovalAsked(name, needed.message, people))
        if turn.approver is not None and people == 1:
            if not await turn.approver.approve(name, arguments, scope=turn.scope, label=label):
                raise Exhausted(f"a person said no to sending this to {needed.model}")
            yes = Agreed("given", needed.model, label, needed.policy)
            self._given.append(yes)
            return yes
        state = turn.parts.state
        if state is None or not state.store.encrypted:
            raise needed
        turn.wait_for(
            question(
                turn,
                call=f"model:{uuid.uuid4().hex}",
                tool=name,
                arguments=arguments,
                reason="the policy asks for it",
                label=label,
                people=people,
            )
        )
        return None

    def _answers(self, status: str) -> list[Approval]:
        """Answers about models that are to this agent under this policy; those to another count for nothing."""
        return [
            one
            for one in self._turn.answers.values()
            if one.status == status and one.tool.startswith(_MODEL) and one.digest == self._shown(one, one.label)
        ]

    def _shown(self, asked: Approval, label: Label) -> str:
        turn = self._turn
        arguments: Mapping[str, Any] = asked.arguments
        return digest_of(
            tool=asked.tool,
            arguments=arguments,
            policy=turn.policy.digest,
            label=label,
            version=turn.parts.version,
            scope=turn.scope,
            call=asked.call,
        )


def _agreed(asked: Approval) -> Agreed:
    return Agreed(asked.id, asked.arguments["model"], asked.label, asked.arguments["door"])
