"""Where a run stands between two model calls, in the field's own JSON: enough to go on in another process.

It knows nothing of the SDK, whose own state changes its format from week to week.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from aibox.agents.exposure import Exposure
from aibox.types import Label


@dataclass(slots=True)
class Frame:
    """The messages up to the assistant's tool calls, what came back so far, and the subagents that wait inside.

    Messages are Chat Completions', without the system message. Results and children are by the id of their call.
    """

    messages: list[dict[str, Any]] = field(default_factory=list)
    results: dict[str, str] = field(default_factory=dict)
    children: dict[str, Frame] = field(default_factory=dict)
    label: Label = field(default_factory=Label)
    exposure: Exposure = field(default_factory=Exposure)
    skills: tuple[str, ...] = ()

    def calls(self) -> list[dict[str, Any]]:
        """The calls of the last message that have no result yet."""
        last = self.messages[-1] if self.messages else {}
        return [call for call in last.get("tool_calls") or () if call["id"] not in self.results]

    def whole(self) -> list[dict[str, Any]]:
        """The conversation with every result in its place; for when nothing is waited for any more."""
        last = self.messages[-1] if self.messages else {}
        answers = [
            {"role": "tool", "tool_call_id": call["id"], "content": self.results[call["id"]]}
            for call in last.get("tool_calls") or ()
            if call["id"] in self.results
        ]
        return [*self.messages, *answers]

    def as_dict(self) -> dict[str, Any]:
        return {
            "messages": self.messages,
            "results": self.results,
            "children": {call: child.as_dict() for call, child in self.children.items()},
            "label": str(self.label),
            "why": list(self.label.why),
            "exposure": self.exposure.as_dict(),
            "skills": list(self.skills),
        }

    @classmethod
    def read(cls, value: Mapping[str, Any]) -> Frame:
        label = Label.parse(value["label"])
        for reason in value["why"]:
            label = label.because(reason)
        return cls(
            messages=list(value["messages"]),
            results=dict(value["results"]),
            children={call: cls.read(child) for call, child in value["children"].items()},
            label=label,
            exposure=Exposure.read(value["exposure"]),
            skills=tuple(value["skills"]),
        )
