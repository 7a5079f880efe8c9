"""What a verification found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from aibox.errors import IntegrityError


@dataclass(frozen=True, slots=True)
class Problem:
    """What no longer holds: of which tenant, at which entry (None: of the log as a whole), and why."""

    tenant: str
    seq: int | None
    cause: str

    def __str__(self) -> str:
        where = f"entry {self.seq}" if self.seq is not None else "the log"
        return f"{where} of tenant {self.tenant}: {self.cause}"


@dataclass(slots=True)
class Report:
    """What was checked, and what does not hold.

    `tagged` counts entries whose tag was checked with its key; those of earlier epochs are held by commitments to their
    tags, and `tags` False says that no key was there. `unanchored` counts entries newer than the last checkpoint;
    `erased` those of people who were erased, `pruned` those past their retention, `restored` the times that a log was
    put back by an operator, and `outside` the checkpoints from elsewhere that the logs were held against.
    """

    logs: int = 0
    entries: int = 0
    checkpoints: int = 0
    unanchored: int = 0
    tagged: int = 0
    tags: bool = True
    pinned: bool = False
    marked: bool = False
    erased: int = 0
    pruned: int = 0
    restored: int = 0
    outside: int = 0
    sampled: int = 0
    problems: list[Problem] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.problems

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "ok": self.ok,
            "logs": self.logs,
            "entries": self.entries,
            "sampled": self.sampled,
            "checkpoints": self.checkpoints,
            "unanchored": self.unanchored,
            "tags_checked": self.tagged,
            "key_pinned": self.pinned,
            "high_water_mark_held": self.marked,
            "outside_checkpoints": self.outside,
            "erased": self.erased,
            "pruned": self.pruned,
            "restored": self.restored,
            "problems": [{"tenant": p.tenant, "seq": p.seq, "cause": p.cause} for p in self.problems],
        }

    def __str__(self) -> str:
        if self.problems:
            return "; ".join(map(str, self.problems))
        logs = "1 log" if self.logs == 1 else f"{self.logs} logs"
        said = f"{self.entries} entries in {logs}, {self.checkpoints} signed checkpoints"
        if self.sampled:
            said = f"{self.sampled} entries drawn from {said}"
        for count, what in (
            (self.erased, "of people who were erased"),
            (self.pruned, "past their retention"),
            (self.unanchored, "that no checkpoint speaks for yet"),
        ):
            said += f"; {count} {what}" if count else ""
        if self.restored:
            said += f"; put back by an operator {self.restored} times"
        return said + ("" if self.tags else "; tags not checked, their keys are not here")

    def _repr_markdown_(self) -> str:
        return f"**{'holds' if self.ok else 'does not hold'}**: {self}"


class BrokenEvidenceError(IntegrityError):
    """Evidence that does not hold; `report` says all that was found."""

    def __init__(self, report: Report) -> None:
        super().__init__(str(report.problems[0]), hint=f"{len(report.problems)} problems in all")
        self.report = report
