"""What agents under test may use: tokens, money, time. A budget under a budget; the narrowest counts."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from aibox.errors import ConfigError, LimitError
from aibox.evals.run import Run


class BudgetError(LimitError):
    """The budget of a test or of the session is spent. No gate was decided by it: the runs left were not made."""

    code = "policy.limit.budget"


@dataclass(slots=True)
class Budget:
    """Charged after each turn; asked before each. What a single turn may take is for the policy's limits to say."""

    tokens: int | None = None
    cost_usd: float | None = None
    duration_s: float | None = None
    parent: Budget | None = None
    spent: dict[str, float] = field(default_factory=lambda: {"tokens": 0.0, "cost_usd": 0.0, "duration_s": 0.0})

    def limit(
        self, *, tokens: int | None = None, cost_usd: float | None = None, duration_s: float | None = None
    ) -> Budget:
        """The same budget, with these limits; one that is not given stays as it was."""
        self.tokens = self.tokens if tokens is None else tokens
        self.cost_usd = self.cost_usd if cost_usd is None else cost_usd
        self.duration_s = self.duration_s if duration_s is None else duration_s
        return self

    def child(self) -> Budget:
        return Budget(parent=self)

    def require(self) -> None:
        """Raises BudgetError when nothing is left."""
        for name, limit in self._limits():
            if self.spent[name] >= limit:
                raise BudgetError(f"the budget of {limit:g} {name} is spent", hint="raise it, or run fewer tests")
        if self.parent is not None:
            self.parent.require()

    def charge(self, run: Run) -> None:
        """Count a turn. Raises BudgetError when it went over, ConfigError where money counts and no cost is known."""
        reply = run.reply if run.error is None else None
        cost = None if reply is None else reply.cost_usd
        if reply is not None and cost is None and self._counts_money():
            raise ConfigError("a budget in USD needs a cost, and that of this turn is not known", hint="limit tokens")
        tokens = reply.usage.input_tokens + reply.usage.output_tokens if reply else 0
        self._add({"tokens": tokens, "cost_usd": cost or 0.0, "duration_s": run.duration_s})

    def _add(self, more: dict[str, float]) -> None:
        for name, value in more.items():
            self.spent[name] += value
        if self.parent is not None:
            self.parent._add(more)  # noqa: SLF001 - another of ours
        for name, limit in self._limits():
            if self.spent[name] > limit:
                raise BudgetError(f"{self.spent[name]:g} {name} were used, and the budget is {limit:g}")

    def _limits(self) -> list[tuple[str, float]]:
        limits = [(name, getattr(self, name)) for name in self.spent]
        return [(name, math.inf if limit is None else limit) for name, limit in limits]

    def _counts_money(self) -> bool:
        return self.cost_usd is not None or (self.parent is not None and self.parent._counts_money())  # noqa: SLF001
