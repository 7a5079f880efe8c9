"""What an evaluation found: cases, runs, digests, the gate. Canonical JSON that the audit chain can vouch for.

The seal of a report is a receipt: an entry with the report's digest in a log whose checkpoint is signed. So whoever can
check a turn can check a report, with the same key.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from aibox.audit import canonical
from aibox.audit.chain import AuditChain
from aibox.audit.receipt import Receipt
from aibox.audit.record import leaf_hash
from aibox.errors import ConfigError, IntegrityError
from aibox.evals.statistics import Gate, Outcome, Tally
from aibox.evals.subject import Subject
from aibox.types import Scope

FORMAT = "aibox/evaluation/v1"
MAX_REPORT_BYTES = 256 * 2**20
KIND = "eval.reported"


@dataclass(frozen=True, slots=True)
class Observed:
    """One run of one case, in numbers. `seq` and `leaf` are of its turn's terminal entry; empty when unrecorded."""

    passed: bool
    reasons: tuple[str, ...] = ()
    scores: tuple[tuple[str, int], ...] = ()
    """Scorer and score, in thousandths."""
    duration_us: int = 0
    tokens: int = 0
    tools: tuple[str, ...] = ()
    answer_sha256: str = ""
    error: str = ""
    """The code of the error that ended the turn."""
    turn: str = ""
    seq: int = -1
    leaf: str = ""

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {
            k: [list(i) if isinstance(i, tuple) else i for i in v] if isinstance(v, tuple) else v
            for k, v in values.items()
        }

    @classmethod
    def read(cls, value: Mapping[str, Any]) -> Observed:
        scores = tuple((str(name), int(score)) for name, score in value["scores"])
        rest: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items() if k != "scores"}
        return cls(**rest, scores=scores)


@dataclass(frozen=True, slots=True)
class CaseResult:
    """The runs of one case."""

    case: str
    digest: str
    runs: tuple[Observed, ...]
    stopped: Outcome | None = None
    tenant: str = ""
    """Whose log holds its turns."""
    outcome: Outcome | None = None
    """What the case's own gate said, where it has one."""

    @property
    def tally(self) -> Tally:
        return Tally(sum(run.passed for run in self.runs), len(self.runs), self.stopped)

    @property
    def solved(self) -> bool:
        """Its gate passed; without one, more than half of its runs."""
        if self.outcome is not None:
            return self.outcome == "passed"
        return 2 * self.tally.passed > len(self.runs)

    @property
    def reason(self) -> str:
        """Why the first run that failed did."""
        return next(("; ".join(run.reasons) or run.error for run in self.runs if not run.passed), "")

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "case": self.case,
            "digest": self.digest,
            "runs": [run.as_dict() for run in self.runs],
            "stopped": self.stopped,
            "tenant": self.tenant,
            "outcome": self.outcome,
        }

    @classmethod
    def read(cls, value: Mapping[str, Any]) -> CaseResult:
        runs = tuple(map(Observed.read, value["runs"]))
        return cls(value["case"], value["digest"], runs, value["stopped"], value["tenant"], value["outcome"])


@dataclass(frozen=True, slots=True)
class Report:
    """An evaluation of one subject on one data set. `gate` None: nothing was asked but to measure."""

    name: str
    subject: Subject
    dataset: str
    """The digest of the data set."""
    results: tuple[CaseResult, ...]
    gate: Gate | None = None
    receipt: Receipt | None = field(default=None, compare=False)

    @property
    def tally(self) -> Tally:
        total = Tally(0, 0)
        for result in self.results:
            total += result.tally
        return total

    @property
    def outcome(self) -> Outcome | None:
        """What the gate says; None without one."""
        if self.gate is None:
            return None
        tally = self.tally
        return self.gate.decided(tally.passed, tally.runs) or "failed"

    @property
    def flaky(self) -> tuple[str, ...]:
        """The cases that both passed and failed."""
        return tuple(result.case for result in self.results if result.tally.stability == "flaky")

    def __getitem__(self, case: str) -> CaseResult:
        for result in self.results:
            if result.case == case:
                return result
        raise KeyError(case)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, without the receipt: this is what the digest is of. There are no floats in it."""
        gate = self.gate
        return {
            "format": FORMAT,
            "name": self.name,
            "subject": self.subject.as_dict(),
            "dataset": self.dataset,
            "gate": None if gate is None else [gate.repeats, repr(gate.min_pass), repr(gate.confidence)],
            "outcome": self.outcome,
            "results": [result.as_dict() for result in self.results],
        }

    @property
    def digest(self) -> str:
        """`sha256:` and the SHA-256 of the report's canonical JSON."""
        return "sha256:" + hashlib.sha256(canonical.dumps(self.as_dict())).hexdigest()

    async def seal(self, audit: AuditChain, *, scope: Scope) -> Report:
        """The report with a receipt: its digest is on record, under a signed checkpoint, when this returns."""
        turn, tally = str(uuid.uuid4()), self.tally
        detail = {
            "report": self.digest,
            "subject": self.subject.digest,
            "dataset": self.dataset,
            "outcome": self.outcome or "measured",
            "passed": tally.passed,
            "runs": tally.runs,
        }
        await audit.append(KIND, scope=scope, turn=turn, detail=detail)
        return replace(self, receipt=await audit.seal(turn, scope=scope, detail={"outcome": "evaluated"}))

    def verify(self, public_key: str | None = None) -> None:
        """Hold the report against its receipt. Raises IntegrityError; ConfigError for a report that nobody sealed."""
        if self.receipt is None:
            raise ConfigError("this report was not sealed", hint="await report.seal(chain, scope=scope)")
        self.receipt.verify(public_key)
        said = [entry.detail.get("report") for entry in self.receipt.entries if entry.kind == KIND]
        if said != [self.digest]:
            raise IntegrityError("the report is not the one that its receipt speaks of")

    async def check(self, audit: AuditChain) -> int:
        """Hold every run that was recorded against the log: its turn ended there, with that entry. The number of runs.

        Raises IntegrityError that names the case; verifying the log itself is `audit.verify()`.
        """
        checked = 0
        for result in self.results:
            for run in result.runs:
                if not run.turn:
                    continue
                async for entry in audit.entries(result.tenant, start=run.seq):
                    if leaf_hash(entry.header).hex() != run.leaf:
                        raise IntegrityError(f"case {result.case}: entry {run.seq} of the log is not that of its run")
                    break
                else:
                    raise IntegrityError(f"case {result.case}: the log has no entry {run.seq}")
                checked += 1
        return checked

    def save(self, path: str | Path) -> None:
        """Write JSON, with the receipt where there is one."""
        receipt = None if self.receipt is None else self.receipt.as_dict()
        value = {"report": self.as_dict(), "receipt": receipt}
        Path(path).write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", "utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Report:
        """Read a file; nothing is verified yet. Raises ConfigError for what is no report."""
        try:
            with Path(path).open("rb") as file:
                value = json.loads(file.read(MAX_REPORT_BYTES))
            return cls.read(value)
        except OSError as error:
            raise ConfigError(f"cannot read the report {path}: {error.strerror}") from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ConfigError(f"{path} is not a report: {type(error).__name__}: {error}") from None

    @classmethod
    def read(cls, value: Mapping[str, Any]) -> Report:
        """From JSON. Raises ValueError and its like for what is no report."""
        body, receipt = value["report"], value["receipt"]
        if body["format"] != FORMAT:
            raise ValueError("unknown format")
        gate = body["gate"]
        return cls(
            name=body["name"],
            subject=Subject.read(body["subject"]),
            dataset=body["dataset"],
            results=tuple(map(CaseResult.read, body["results"])),
            gate=None if gate is None else Gate(gate[0], float(gate[1]), float(gate[2])),
            receipt=None if receipt is None else Receipt.read(json.dumps(receipt).encode()),
        )

    def __str__(self) -> str:
        said = f"{self.name}: {self.tally}"
        if self.gate is not None:
            said += f"; {self.gate}: {self.outcome}"
        return said + (f"; flaky: {', '.join(self.flaky)}" if self.flaky else "")

    def _repr_markdown_(self) -> str:
        rows = "\n".join(
            f"| {result.case} | {result.tally.passed}/{result.tally.runs} | {result.tally.stability} |"
            for result in self.results
        )
        return f"**{self}**\n\n| case | passed | |\n|---|---|---|\n{rows}"
