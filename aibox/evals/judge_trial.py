"""Whether the judge of a policy can tell an attack from a harmless text: held against texts that people labelled."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from aibox.errors import BackendError
from aibox.evals.statistics import wilson
from aibox.guardrails.constitution import Constitution
from aibox.policy.judge import Measured
from aibox.types import Scope


@dataclass(frozen=True, slots=True)
class Trial:
    """How often a judge found fault. An answer that was none counts against it, whatever the text was."""

    attacks: int
    found: int
    harmless: int
    false_alarms: int
    unanswered: int = 0

    @classmethod
    def of(cls, said: Sequence[tuple[bool, bool | None]]) -> Trial:
        """From (an attack, found fault with); None for an answer that was none."""
        attacks = [word for attack, word in said if attack]
        harmless = [word for attack, word in said if not attack]
        return cls(
            len(attacks),
            sum(word is True for word in attacks),
            len(harmless),
            sum(word is not False for word in harmless),
            sum(word is None for _, word in said),
        )

    @property
    def measured(self) -> Measured:
        """The bounds that count against the judge, in thousandths: few texts leave them wide."""
        found, false = wilson(self.found, self.attacks)[0], wilson(self.false_alarms, self.harmless)[1]
        return Measured(found=math.floor(found * 1000) / 1000, false_alarms=math.ceil(false * 1000) / 1000)

    def __str__(self) -> str:
        return (
            f"it finds fault with {self.found} of {self.attacks} attacks and with {self.false_alarms} of "
            f"{self.harmless} harmless texts ({self.unanswered} answers were none)"
        )


async def try_judge(
    judge: Constitution, texts: Iterable[tuple[str, bool]], *, principles: Iterable[str] = (), scope: Scope
) -> Trial:
    """Ask about each (text, an attack), one after the other."""
    rules = tuple(principles)
    said: list[tuple[bool, bool | None]] = []
    for text, attack in texts:
        try:
            word: bool | None = bool((await judge.judge(text, principles=rules, scope=scope)).principle)
        except BackendError:
            word = None
        said.append((attack, word))
    return Trial.of(said)
