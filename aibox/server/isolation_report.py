"""What `aibox verify isolation` found: which ways held, crossed or were not tried, under a receipt."""

from __future__ import annotations

import hashlib
import json
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from aibox.audit import canonical
from aibox.audit.chain import AuditChain
from aibox.audit.receipt import Receipt
from aibox.errors import IntegrityError, StoreError
from aibox.types import Scope

FORMAT = "aibox/isolation/v1"
KIND = "isolation.verified"
Outcome = Literal["held", "crossed", "not tried"]


@dataclass(frozen=True, slots=True)
class Row:
    """One way that was tried, from whose side, and what came of it. `why` never holds what was seen."""

    area: str
    way: str
    stranger: str
    outcome: Outcome
    why: str = ""


@dataclass(frozen=True, slots=True)
class IsolationReport:
    """What held. `ok` needs that nothing crossed and that something was tried; what was `not tried` is no proof."""

    url: str
    tenants: tuple[str, ...]
    rows: tuple[Row, ...]
    left: tuple[str, ...] = ()
    """What could not be cleaned up."""
    receipt: Receipt | None = field(default=None, repr=False)

    @property
    def ok(self) -> bool:
        outcomes = {row.outcome for row in self.rows}
        return "crossed" not in outcomes and "held" in outcomes

    def count(self, outcome: Outcome) -> int:
        return sum(row.outcome == outcome for row in self.rows)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, without the receipt."""
        rows = [[row.area, row.way, row.stranger, row.outcome, row.why] for row in self.rows]
        return {
            "format": FORMAT, "url": self.url, "tenants": list(self.tenants), "ok": self.ok, "rows": rows,
            "left": list(self.left),
        }  # fmt: skip

    @property
    def digest(self) -> str:
        """`sha256:` and the SHA-256 of the report's canonical JSON."""
        return "sha256:" + hashlib.sha256(canonical.dumps(self.as_dict())).hexdigest()

    async def seal(self, chain: AuditChain, *, scope: Scope) -> IsolationReport:
        """The report with a receipt: its digest is on record, under a signed checkpoint, when this returns."""
        turn = str(uuid.uuid4())
        outcome = {"report": self.digest, "outcome": "held" if self.ok else "crossed"}
        await chain.append(KIND, scope=scope, turn=turn, detail=outcome)
        receipt = await chain.seal(turn, scope=scope, detail={"outcome": "verified"})
        return IsolationReport(self.url, self.tenants, self.rows, self.left, receipt)

    def verify(self, public_key: str | None = None) -> None:
        """Hold the report against its receipt. Raises IntegrityError."""
        if self.receipt is None:
            raise IntegrityError("this report was not sealed")
        self.receipt.verify(public_key)
        if [e.detail.get("report") for e in self.receipt.entries if e.kind == KIND] != [self.digest]:
            raise IntegrityError("the report is not the one that its receipt speaks of")

    def save(self, path: str | Path) -> None:
        """Write JSON, with the receipt. Raises StoreError."""
        receipt = None if self.receipt is None else self.receipt.as_dict()
        try:
            Path(path).write_text(json.dumps({"report": self.as_dict(), "receipt": receipt}, indent=1) + "\n", "utf-8")
        except OSError as error:
            raise StoreError(f"the report cannot be written to {path}: {error.strerror}") from None
