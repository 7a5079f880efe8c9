"""Bounds on one turn of an agent."""

from __future__ import annotations

from pydantic import Field

from aibox.policy.fields import Part


class TurnLimits(Part):
    """What one turn may take. Of several levels the smallest number holds."""

    input_kib: int = Field(default=256, gt=0)
    """Size of a user's message, in KiB of UTF-8."""
    model_calls: int = Field(default=16, gt=0)
    """Calls of the model in one turn."""
    output_tokens: int = Field(default=4096, gt=0)
    """Tokens that one model call may write."""
    tokens: int = Field(default=10_000_000, gt=0)
    """Tokens of one turn, read and written, of all its model calls and subagents together."""
    usd: float = Field(default=100.0, gt=0)
    """Money that one turn may cost, as far as the backends say what a call cost."""
    turn_s: float = Field(default=600.0, gt=0)
    """Seconds from the message to the last byte of the answer."""
    check_s: float = Field(default=10.0, gt=0)
    """Seconds that one check may take before it counts as failed."""

    def __and__(self, other: TurnLimits) -> TurnLimits:
        return TurnLimits(**{name: min(getattr(self, name), getattr(other, name)) for name in TurnLimits.model_fields})
