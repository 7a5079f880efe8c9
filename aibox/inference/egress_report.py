"""An auditor's question in one table: what has left, where to, for which tenant, under which policy; what was refused.

It is made of the open parts of entries: who asked, and digests of what was said, are sealed under that person's key.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any


@dataclass(slots=True)
class Flow:
    """All attempts of one tenant to reach one model with one label under one policy, or a host that is no model."""

    tenant: str
    model: str
    host: str
    label: str
    policy: str
    pseudonymised: bool
    allowed: int = 0
    denied: int = 0
    sent_bytes: int = 0
    returned_bytes: int = 0
    tokens: int = 0
    cost_usd: Decimal = field(default_factory=Decimal)
    reasons: set[str] = field(default_factory=set)
    first_us: int = 0
    last_us: int = 0

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; money as text."""
        return {
            "tenant": self.tenant, "model": self.model, "host": self.host, "label": self.label, "policy": self.policy,
            "pseudonymised": self.pseudonymised, "allowed": self.allowed, "denied": self.denied,
            "sent_bytes": self.sent_bytes, "returned_bytes": self.returned_bytes, "tokens": self.tokens,
            "cost_usd": str(self.cost_usd), "reasons": sorted(self.reasons),
            "first_us": self.first_us, "last_us": self.last_us,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Attempt:
    """One entry about the door, as the log has it."""

    tenant: str
    seq: int
    ts_us: int
    kind: str
    detail: Mapping[str, Any]


def flows(attempts: Iterable[Attempt]) -> list[Flow]:
    """The attempts, summed; other entries are passed over. What came back is added to what it answers."""
    found: dict[tuple[Any, ...], Flow] = {}
    by_entry: dict[tuple[str, int], Flow] = {}
    for attempt in attempts:
        detail = attempt.detail
        if attempt.kind == "egress.returned":
            flow = by_entry.get((attempt.tenant, detail["allowed"]))
            if flow is not None:
                flow.returned_bytes += detail.get("bytes", 0)
                flow.tokens += detail.get("input_tokens", 0) + detail.get("output_tokens", 0)
                flow.cost_usd += Decimal(detail.get("cost_usd") or 0)
            continue
        if attempt.kind not in ("egress.allowed", "egress.denied"):
            continue
        key = (
            attempt.tenant, detail.get("model", ""), detail["host"], detail["label"], detail["policy"],
            bool(detail.get("pseudonymised")),
        )  # fmt: skip
        flow = found.setdefault(key, Flow(*key, first_us=attempt.ts_us))
        flow.last_us = attempt.ts_us
        if attempt.kind == "egress.allowed":
            flow.allowed += 1
            flow.sent_bytes += detail["bytes"]
            by_entry[attempt.tenant, attempt.seq] = flow
        else:
            flow.denied += 1
            flow.reasons.add(detail["reason"])
    return [found[key] for key in sorted(found)]
