"""Bodies go when their time is over: each removal is an entry that names what it removed, bit by bit.

What is removed is only ever what the entry says, so a body that somebody else removes is found out. Acts on the log,
whatever a legal hold stands on, and turns that have not ended keep their bodies.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from aibox.audit import kinds
from aibox.audit.holds import holds
from aibox.audit.ledger import OPERATOR, Ledger
from aibox.audit.record import Header, Row, bits_of, read_open
from aibox.audit.sealed import subject_of
from aibox.audit.store import Conflict
from aibox.errors import AIBoxError
from aibox.policy.retention import DAY_US, Retention
from aibox.types import Scope

SLICE = 1024
"""Entries that are looked at in one go, between those that are written."""
AGAIN_S = 3600.0
PAUSE_S = 0.2

_log = logging.getLogger(__name__)

Due = Callable[[str, int], bool]
"""(kind, time in us) to whether the time of such an entry is over."""


def by_age(before_us: int) -> Due:
    return lambda _, ts_us: ts_us < before_us


def by_policy(retention: Retention, now_us: int) -> Due:
    def due(kind: str, ts_us: int) -> bool:
        days = retention.days(kind)
        return days is not None and ts_us < now_us - days * DAY_US

    return due


def prune(ledger: Ledger, scope: Scope, due: Due, *, reason: str, rules: Mapping[str, int] | None = None) -> int:
    """All of a log, slice by slice, each with its entry. Inside a transaction; returns how many bodies went."""
    count, start = 0, 0
    size = ledger.head(scope.tenant).size
    while start < size:
        count += prune_slice(ledger, scope, due, start, reason=reason, rules=rules)
        start += SLICE
    return count


def prune_slice(
    ledger: Ledger, scope: Scope, due: Due, start: int, *, reason: str, rules: Mapping[str, int] | None = None
) -> int:
    """Inside a transaction."""
    head = ledger.head(scope.tenant)
    standing = holds(ledger, head).values()
    if any(not held["who"] for held in standing):
        return 0
    held = {bytes.fromhex(detail["subject"]) for detail in standing}
    ended: dict[str, bool] = {"": True}

    def goes(row: Row) -> bool:
        if row.open is None or subject_of(row.sealed or b"") in held:
            return False
        body = read_open(row.open)
        if body.action in kinds.OPERATOR or not due(body.action, Header.unpack(row.header).ts_us):
            return False
        if body.turn_id not in ended:
            ended[body.turn_id] = ledger.store.turn(head.log, body.turn_id) is not None
        return ended[body.turn_id]

    going = [row.seq for row in ledger.store.entries(head.log, start=start, limit=SLICE) if goes(row)]
    if going:
        detail = {
            "first": going[0], "last": going[-1], "count": len(going), "bits": bits_of(going), "reason": reason,
            "rules": dict(rules or {}), "by": scope.user,
        }  # fmt: skip
        ledger.add(kinds.PRUNED, scope=Scope(tenant=scope.tenant, user=OPERATOR), turn="", detail=detail)
        ledger.flush()
        ledger.store.prune(head.log, going)
    return len(going)


@dataclass(frozen=True, slots=True)
class Retentions:
    """What holds for everybody, and what tenants ask for besides: of both the shortest time."""

    everybody: Retention = field(default_factory=Retention)
    tenants: Mapping[str, Retention] = field(default_factory=dict)

    def of(self, tenant: str) -> Retention:
        own = self.tenants.get(tenant)
        return self.everybody if own is None else self.everybody & own

    @property
    def nothing(self) -> bool:
        """Nobody's bodies ever go."""
        return not any(one.bodies_days for one in (self.everybody, *self.tenants.values()))


class Sweeper:
    """Goes through all logs again and again, a slice at a time, and removes what the policy says."""

    def __init__(self, retentions: Retentions) -> None:
        self._retentions = retentions
        self._todo: list[tuple[str, int]] = []
        self._gone = 0
        self._next_s = float("inf") if retentions.nothing else 0.0

    @property
    def due(self) -> bool:
        return time.monotonic() >= self._next_s

    def step(self, ledger: Ledger) -> None:
        """One slice. A log that cannot be written is left to the next round, and said so: others go on."""
        try:
            if not self._todo:
                self._todo = [(name.tenant, 0) for name in ledger.store.logs()]
            if self._todo:
                tenant, start = self._todo.pop()
                if self._slice(ledger, tenant, start):
                    self._todo.append((tenant, start + SLICE))
            if not self._todo and self._gone:
                self._gone = 0
                ledger.scrub()
        except Conflict:
            self._todo.append((tenant, start))  # the other writer was first
        except (AIBoxError, ValueError) as error:
            _log.warning("bodies past their retention could not be removed: %s", error)
        self._next_s = time.monotonic() + (PAUSE_S if self._todo else AGAIN_S)

    def _slice(self, ledger: Ledger, tenant: str, start: int) -> bool:
        """Whether more follow."""
        retention = self._retentions.of(tenant)
        due = by_policy(retention, time.time_ns() // 1000)
        rows = list(ledger.store.entries(ledger.log(tenant), start=start, limit=SLICE))
        # Looked at before others are kept waiting: most slices have nothing to give.
        if any(row.open and due(read_open(row.open).action, Header.unpack(row.header).ts_us) for row in rows):
            scope, rules = Scope(tenant=tenant, user=OPERATOR), retention.bodies_days
            with ledger.transaction():
                self._gone += prune_slice(ledger, scope, due, start, reason="retention", rules=rules)
        return len(rows) == SLICE
