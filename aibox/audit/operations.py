"""Acts on the log itself: signing out, rotating a key, erasing a person, going on after a restore.

Each is an entry, written before what it speaks of is done wherever the order can be chosen. They run on the writer's
thread.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping

from aibox.audit import kinds
from aibox.audit.holds import existing, holds
from aibox.audit.ledger import OPERATOR, Ledger
from aibox.audit.receipt import Receipt
from aibox.audit.receipts import make_receipt
from aibox.audit.record import TERMINAL, TOMBSTONE, read_detail
from aibox.audit.rotation import statement
from aibox.audit.signer import public_key
from aibox.errors import AccessError, ConfigError
from aibox.types import Entry, Scope


def checkpoint(ledger: Ledger, tenant: str) -> str:
    head = existing(ledger, tenant)
    last = ledger.store.checkpoint_from(head.log, head.size)
    return last[1] if last else ledger.checkpoint(head)


def consistency(ledger: Ledger, tenant: str, old: int, new: int) -> tuple[bytes, ...]:
    from aibox.audit.tree import StoredTree

    head = existing(ledger, tenant)
    if not 0 < old <= new <= head.size:
        raise ConfigError(f"no proof from {old} to {new} entries", hint=f"the log has {head.size}")
    return StoredTree(ledger.store, head.log).consistency(old, new)


# The signing key.


def rotate(ledger: Ledger) -> str:
    """In every log: an entry that the old key signs, and a last checkpoint by the old key over it; then the new key."""
    old, new = ledger.signer, ledger.keys.next_signer()
    with ledger.transaction():
        ledger.store.set_meta(f"rotated {public_key(new)}", public_key(old))
    for name in ledger.store.logs():
        if _rotated(ledger, name.log, public_key(new)):
            continue
        with ledger.transaction():
            head = ledger.head(name.tenant)
            until = head.size + 1
            signed = statement(head.log, public_key(old), public_key(new), until)
            detail = {
                "old": public_key(old),
                "new": public_key(new),
                "until": until,
                "signature": old.sign_bytes(signed).hex(),
            }
            ledger.ratchet(head, kinds.ROTATED, detail)
            ledger.flush()
            if head.pointed_size < head.size:
                ledger.checkpoint(head)
            head.public_key = public_key(new)
    ledger.keys.retire()
    ledger.use_signer()
    return ledger.public_key


def finish_rotation(ledger: Ledger) -> None:
    """Of a process that died between the first log and the last."""
    if ledger.keys.rotating:
        rotate(ledger)


def _rotated(ledger: Ledger, log: bytes, new: str) -> bool:
    for act in ledger.store.acts(log):
        if act.kind == kinds.ROTATED:
            row = next(ledger.store.entries(log, start=act.seq, limit=1))
            if read_detail(row.open or b"")["new"] == new:
                return True
    return False


# People.


def may_erase(ledger: Ledger, tenant: str, subject: str | None) -> None:
    """Raises AccessError while a hold stands on the person or the tenant; of all, None, on anybody of it."""
    if subject is None and ledger.store.log_named(ledger.log(tenant)) is None:
        return
    head = existing(ledger, tenant)
    for seq, held in holds(ledger, head).items():
        if subject is None or held["who"] in ("", ledger.who(head, subject).hex()):
            raise AccessError(
                f"a legal hold stands, set by entry {seq}: {held['reason']}", hint="aibox audit hold --release"
            )


def erase(ledger: Ledger, scope: Scope, subject: str, *, reason: str, stores: Mapping[str, int]) -> Receipt:
    """The tombstone, the list on the other path, then the key. A crash between leaves an erasure that is done again."""
    turn = f"erasure-{uuid.uuid4()}"
    with ledger.transaction():
        may_erase(ledger, scope.tenant, subject)
        head = ledger.head(scope.tenant)
        found = ledger.known_subject(head, subject)
        ids = [found.id.hex()] if found else []
        detail = {"subjects": ids, "reason": reason, "stores": dict(stores), "by": scope.user, "entries": []}
        entry = ledger.add(kinds.ERASED, scope=_operator(scope), turn=turn, detail=detail, flags=TOMBSTONE | TERMINAL)
        head.turns[turn] = entry.seq
        ledger.flush()
        if found:
            ledger.mark.add_erased(head.log, found.id)
            ledger.store.drop_subject(head.log, found.id)
            head.subjects.pop(subject, None)
        note = head.note if head.pointed_size == head.size and head.note else ledger.checkpoint(head)
        certificate = make_receipt(ledger, head, turn, [entry.seq], (head.size, note))
    ledger.scrub()
    return certificate


# A backup.


def restore(ledger: Ledger, scope: Scope, *, reason: str) -> Entry:
    """Say what was lost, go on in a new epoch, and erase again whom the backup brought back."""
    log = ledger.log(scope.tenant)
    lost_note = ledger.mark.notes().get(log, "")
    erased = set(ledger.mark.erased(log))
    with ledger.transaction():
        head = ledger.load_put_back(scope.tenant)
        lost = int(lost_note.split("\n", 2)[1]) if lost_note else head.size
        detail = {
            "size": head.size,
            "lost_size": max(lost, head.size),
            "lost_note": lost_note,
            "reason": reason,
            "by": scope.user,
        }
        entry = ledger.ratchet(head, kinds.RESTORED, detail)
        again = [one.hex() for one in erased if ledger.store.subject_key(log, one) is not None]
        if again:
            tomb = {"subjects": again, "reason": "erased before the backup was restored", "stores": {}, "entries": []}
            turn = f"erasure-{uuid.uuid4()}"
            added = ledger.add(kinds.ERASED, scope=_operator(scope), turn=turn, detail=tomb, flags=TOMBSTONE | TERMINAL)
            head.turns[turn] = added.seq
            for one in again:
                ledger.store.drop_subject(log, bytes.fromhex(one))
        ledger.flush()
        note = head.note or ledger.checkpoint(head)
        ledger.mark.set_back(log, note)
    ledger.scrub()
    return entry


def _operator(scope: Scope) -> Scope:
    return Scope(tenant=scope.tenant, user=OPERATOR)
