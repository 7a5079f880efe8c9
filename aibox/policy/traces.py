"""What a collector of traces may be told, as a policy describes it."""

from __future__ import annotations

from aibox.policy.fields import Part


class TraceRules(Part):
    """Times, counts and names are told in any case; texts only where every level says so."""

    content: bool = False
    """Prompts, answers, arguments and results as the model saw them, and who asked. True only when all levels agree."""

    def __and__(self, other: TraceRules) -> TraceRules:
        return TraceRules(content=self.content and other.content)
