"""Legal holds: while one stands, nothing of that person, or of the whole tenant, is erased or removed."""

from __future__ import annotations

from typing import Any

from aibox.audit import kinds
from aibox.audit.head import Head
from aibox.audit.ledger import OPERATOR, Ledger
from aibox.audit.record import read_detail
from aibox.errors import ConfigError
from aibox.types import Entry, Scope


def existing(ledger: Ledger, tenant: str) -> Head:
    if ledger.store.log_named(ledger.log(tenant)) is None:
        raise ConfigError(f"there is no log of {tenant}")
    return ledger.head(tenant)


def holds(ledger: Ledger, head: Head) -> dict[int, dict[str, Any]]:
    """The holds that stand, by the seq of the entry that set them."""
    standing: dict[int, dict[str, Any]] = {}
    for act in ledger.store.acts(head.log):
        if act.kind in (kinds.HELD, kinds.RELEASED):
            row = next(ledger.store.entries(head.log, start=act.seq, limit=1))
            detail = read_detail(row.open or b"")
            if act.kind == kinds.HELD:
                standing[act.seq] = detail
            else:
                standing.pop(detail["hold"], None)
    return standing


def hold(ledger: Ledger, scope: Scope, subject: str | None, *, reason: str) -> Entry:
    """`who` is a keyed hash: the log names nobody in the open."""
    head = existing(ledger, scope.tenant)
    who, found = "", ""
    if subject is not None:
        who = ledger.who(head, subject).hex()
        found = ledger.subject(head, subject).id.hex()
    detail = {"who": who, "subject": found, "reason": reason, "by": scope.user}
    return ledger.add(kinds.HELD, scope=Scope(tenant=scope.tenant, user=OPERATOR), turn="", detail=detail)


def release(ledger: Ledger, scope: Scope, seq: int, *, reason: str) -> Entry:
    head = existing(ledger, scope.tenant)
    if seq not in holds(ledger, head):
        raise ConfigError(f"entry {seq} of {scope.tenant} is not a hold that stands")
    detail = {"hold": seq, "reason": reason, "by": scope.user}
    return ledger.add(kinds.RELEASED, scope=Scope(tenant=scope.tenant, user=OPERATOR), turn="", detail=detail)
