"""What of a tenant's log other systems may hear: thin events, with ids to ask by and no text of anybody's.

Who asked is not told either: it stands behind the id, for whoever may read it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec

from aibox.audit.receipt import ReceiptEntry
from aibox.inference.accounts import SPENT, SPENT_BY_MODEL, SPENT_BY_USER
from aibox.settings_outbound import EventType

_TOLD: Mapping[str, tuple[EventType, tuple[str, ...]]] = {
    "approval.asked": ("approval.asked", ("approval", "run", "tool", "people", "label")),
    "approval.given": ("approval.given", ("approval", "run", "tool")),
    "approval.rejected": ("approval.rejected", ("approval", "run", "tool")),
    "egress.denied": ("egress.denied", ("model", "label")),
}
"""Kinds of entries, and which of their fields are told. Not a refused host: a model may have made it up of a text."""
_BUDGETS = {SPENT: "tenant", SPENT_BY_USER: "user", SPENT_BY_MODEL: "model"}


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened, in the form in which it is sent. The same entry gives the same id each time."""

    id: str
    type: EventType
    body: bytes
    ts_us: int
    seq: int


def event_of(tenant: str, entry: ReceiptEntry) -> Event | None:
    """The event that an entry is; None for most."""
    kind = entry.kind
    if kind in _TOLD:
        type_, fields = _TOLD[kind]
        detail = entry.detail
        if detail.get("purpose"):  # a webhook about a webhook that may not leave would never end
            return None
        return _event(tenant, entry, type_, {name: detail[name] for name in fields if name in detail})
    if kind not in ("turn.sealed", "turn.failed"):
        return None
    detail = entry.detail
    code, outcome = detail.get("code", ""), detail.get("outcome", "")
    if outcome == "blocked" or code == "policy.guardrail":
        return _event(tenant, entry, "turn.blocked", {"label": detail["label"]})
    if code in _BUDGETS:
        # One a day: of what is refused because of it there may be thousands.
        day = datetime.fromtimestamp(entry.ts_us / 1e6, UTC).date().isoformat()
        return _event(tenant, entry, "budget.exhausted", {"budget": _BUDGETS[code], "day": day}, once=f"{code} {day}")
    return None


def _event(tenant: str, entry: ReceiptEntry, type_: EventType, told: Mapping[str, Any], *, once: str = "") -> Event:
    about = f"{tenant} {type_} {once or entry.seq}"
    data = {"tenant": tenant, "entry": entry.seq, **({"turn": entry.turn} if entry.turn else {}), **told}
    when = datetime.fromtimestamp(entry.ts_us / 1e6, UTC).isoformat().replace("+00:00", "Z")
    body = msgspec.json.encode({"type": type_, "timestamp": when, "data": data})
    return Event("msg_" + hashlib.sha256(about.encode()).hexdigest()[:32], type_, body, entry.ts_us, entry.seq)
