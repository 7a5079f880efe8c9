"""What one turn may still use, its subagents included. An exhausted budget ends a turn with what was reached."""

from __future__ import annotations

from aibox.agents._sdk import Stop
from aibox.chat import Completion, Usage
from aibox.policy.limits import TurnLimits


class Exhausted(Stop):
    """A limit was reached; `reason` is a sentence for the person who asked."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Budget:
    """Counts calls, tokens and money of a turn. Shared by reference: what a subagent uses is gone for its parent."""

    def __init__(self, limits: TurnLimits) -> None:
        self.limits = limits
        self.calls = 0
        self.usage = Usage()

    def before_call(self) -> None:
        """Raises Exhausted when one more model call is not in it."""
        limits = self.limits
        if self.calls >= limits.model_calls:
            raise Exhausted(f"the model was called {self.calls} times without coming to an answer (limits.model_calls)")
        used = self.usage.input_tokens + self.usage.output_tokens
        if used >= limits.tokens:
            raise Exhausted(f"{used} tokens are used and the policy allows {limits.tokens} (limits.tokens)")
        cost = self.usage.cost_usd
        if cost is not None and cost >= limits.usd:
            raise Exhausted(f"{cost:.4f} USD are spent and the policy allows {limits.usd:g} (limits.usd)")
        self.calls += 1

    def not_made(self) -> None:
        """The call that was counted did not happen."""
        self.calls -= 1

    def after_call(self, completion: Completion) -> None:
        self.usage += completion.usage


class Share:
    """A subagent's part of its parent's budget: never more, and at most `calls` model calls of its own."""

    def __init__(self, whole: Budget | Share, *, calls: int) -> None:
        self._whole = whole
        self._calls = calls
        self._most = calls

    @property
    def usage(self) -> Usage:
        """Of the whole turn."""
        return self._whole.usage

    def before_call(self) -> None:
        if self._calls <= 0:
            raise Exhausted(f"the subagent used its {self._most} model calls without coming to an answer")
        self._whole.before_call()
        self._calls -= 1

    def not_made(self) -> None:
        self._whole.not_made()
        self._calls += 1

    def after_call(self, completion: Completion) -> None:
        self._whole.after_call(completion)
