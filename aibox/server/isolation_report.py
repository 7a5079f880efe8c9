"""What `aibox verify isolation` found: which ways held, crossed or were not tried, under a receipt."""

from __future__ import annotations

import hashlib
import json
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

from aibox.audit import canonical
from aibox.audit.receipt import MAX_RECEIPT_BYTES, Receipt
from aibox.errors import IntegrityError, StoreError
from aibox.types import Scope

if TYPE_CHECKING:
    from aibox.audit.chain import AuditChain

FORMAT = "aibox/isolation/v1"
KIND = "isolation.verified"
MAX_BYTES = MAX_RECEIPT_BYTES
"""Of a saved report, which is short; what is longer is not read."""
Outcome = Literal["held", "crossed", "not tried"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)


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

    async def seal(self, chain: AuditChain, *, scope: Scope, turn: str | None = None) -> IsolationReport:
        """The report with a receipt: its digest is on record, under a signed checkpoint, when this returns.

        `turn` is one that has begun, and ends with it; None: one of its own.
        """
        turn = turn or str(uuid.uuid4())
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

    @classmethod
    def read(cls, path: str | Path, public_key: str | None = None) -> Self:
        """A saved report that holds against its receipt, under the log's public key where it is given.

        Raises StoreError for what cannot be read or is no such report, IntegrityError for one that was not sealed or
        has been changed.
        """
        value = _loaded(path)
        if not _named(value):
            raise StoreError(f"{path} is no report of `aibox verify isolation`")
        told = value["report"]
        try:
            receipt = None if value["receipt"] is None else Receipt.read(json.dumps(value["receipt"]).encode())
            rows = tuple(Row(area, way, stranger, outcome, why) for area, way, stranger, outcome, why in told["rows"])
            found = cls(told["url"], tuple(told["tenants"]), rows, tuple(told["left"]), receipt)
            # What the file says besides, such as `ok`, follows from the rows, and nobody may write it otherwise.
            if found.as_dict() != told:
                raise IntegrityError("the report says otherwise than its rows")
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise StoreError(f"{path} is no report of `aibox verify isolation`: {error}") from None
        found.verify(public_key)
        return found


def is_report(path: str | Path) -> bool:
    """Whether the file calls itself such a report; False also where it cannot be read. Nothing is verified."""
    try:
        return _named(_loaded(path))
    except StoreError:
        return False


def _loaded(path: str | Path) -> Any:
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        # What was cut off there is no JSON any more.
        return json.loads(data[:MAX_BYTES])
    except OSError as error:
        raise StoreError(f"the report {path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path} is no report of `aibox verify isolation`: {error}") from None


def _named(value: Any) -> bool:
    """Whether it has the two parts of a saved report, the first of this format."""
    if not isinstance(value, dict) or set(value) != {"report", "receipt"}:
        return False
    return isinstance(value["report"], dict) and value["report"].get("format") == FORMAT
