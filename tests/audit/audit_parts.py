"""A log to attack: a few sealed turns of two tenants, and a hand that writes past every trigger."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from aibox.audit.chain import AuditChain
from aibox.audit.receipt import Receipt
from aibox.types import Scope

ACME = Scope(tenant="acme", user="eva")
RIVAL = Scope(tenant="rival", user="eva")


def published(name: str) -> Path:
    """Published vectors, which are data of others and lie outside the tree."""
    folder = Path(os.environ.get("AIBOX_TEST_DATA", "/nonexistent")) / name
    if not folder.is_dir():
        pytest.skip(f"AIBOX_TEST_DATA names no folder with {name}: published vectors are not part of the tree")
    return folder


async def sealed_turns(chain: AuditChain, scope: Scope, turns: int = 3) -> list[Receipt]:
    """Turns of three entries each."""
    receipts = []
    for n in range(turns):
        turn = f"{scope.tenant}-{n}"
        chain.note("turn.started", scope=scope, turn=turn, detail={"n": n})
        chain.note("model.called", scope=scope, turn=turn, detail={"model": "m", "n": n})
        receipts.append(await chain.seal(turn, scope=scope, detail={"outcome": "completed"}))
    return receipts


async def write_log(path: Path, turns: int = 3) -> list[Receipt]:
    """The log of both tenants in a file; the receipts of acme."""
    async with AuditChain(path) as chain:
        receipts = await sealed_turns(chain, ACME, turns)
        await sealed_turns(chain, RIVAL, turns)
    return receipts


@contextmanager
def by_hand(path: Path) -> Iterator[sqlite3.Connection]:
    """The database as its owner has it: triggers gone, everything may be written."""
    db = sqlite3.connect(path, isolation_level=None)
    for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
        db.execute(f"DROP TRIGGER {name}")
    try:
        yield db
    finally:
        db.close()


def log_of(db: sqlite3.Connection, tenant: str) -> bytes:
    found: tuple[Any] = db.execute("SELECT log FROM logs WHERE tenant = ?", (tenant,)).fetchone()
    log: bytes = found[0]
    return log
