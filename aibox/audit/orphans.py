"""Turns that nobody ended: each gets its one terminal entry when it has been silent for long enough.

A process that dies leaves turns behind without an end, and acts of administrators, which are turns too. Whoever opens
the log next finds them at its tail; and a turn of this process that is forgotten is ended likewise. The wait lets one
that is alive in another process go on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aibox.audit.ledger import OPERATOR, Ledger
from aibox.audit.record import TERMINAL, Header, leaf_hash, read_detail, read_open
from aibox.types import Scope

TURN_S = 3600.0
LOOK_BACK = 1024
"""Entries at the tail of a log among which open turns are looked for."""
MAX_LOGS = 64
TIMEOUT = "audit.turn_timeout"
BEGUN = "request.begun"
"""What an act of an administrator begins with; its end says which it was."""

Listed = list[list[Any]]


def find(ledger: Ledger) -> dict[tuple[str, str], tuple[Listed, int]]:
    """(tenant, turn) to the turn's entries and the time of the last, for turns without an end at the tails of logs."""
    found: dict[tuple[str, str], tuple[Listed, int]] = {}
    for name in ledger.store.logs()[:MAX_LOGS]:
        head = ledger.store.head(name.log)
        if head is None:
            continue
        for row in ledger.store.entries(name.log, start=max(0, head.seq + 1 - LOOK_BACK)):
            turn = read_open(row.open).turn_id if row.open else ""
            if not turn:
                continue
            key = name.tenant, turn
            if Header.unpack(row.header).flags & TERMINAL:
                found.pop(key, None)
            else:
                listed, _ = found.setdefault(key, ([], 0))
                listed.append([row.seq, leaf_hash(row.header).hex()])
                found[key] = listed, Header.unpack(row.header).ts_us
    return {key: value for key, value in found.items() if ledger.store.turn(ledger.log(key[0]), key[1]) is None}


def gone_on(
    ledger: Ledger, turns: Mapping[tuple[str, str], tuple[Listed, int]]
) -> dict[tuple[str, str], tuple[Listed, int]]:
    """The same turns with what others have added to them since they were found."""
    now = find(ledger)
    return {
        key: ([*listed, *(one for one in now[key][0] if one[0] > listed[-1][0])], now[key][1])
        if key in now
        else (listed, ts_us)
        for key, (listed, ts_us) in turns.items()
    }


def end(ledger: Ledger, tenant: str, turn: str, entries: Sequence[Sequence[Any]]) -> bool:
    """Inside a transaction. False where somebody has ended it meanwhile."""
    head = ledger.head(tenant)
    if ledger.store.turn(head.log, turn) is not None or turn in head.turns:
        return False
    first = next(ledger.store.entries(head.log, start=entries[0][0], limit=1)).open
    detail: Mapping[str, Any] = {"outcome": "failed", "code": TIMEOUT}
    kind = "turn.failed"
    if first is not None and read_open(first).action == BEGUN:
        detail, kind = {"outcome": TIMEOUT, "operation": read_detail(first)["operation"]}, "request.ended"
    detail = {**detail, "entries": [list(listed[:2]) for listed in entries]}
    scope = Scope(tenant=tenant, user=OPERATOR)
    entry = ledger.add(kind, scope=scope, turn=turn, detail=detail, flags=TERMINAL)
    head.turns[turn] = entry.seq
    return True
