"""Attacks on a log by somebody who owns the database: each is carried out past every trigger, and each is named."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import sqlite3
from pathlib import Path

import pytest
from audit_parts import ACME, by_hand, log_of, write_log

import aibox
from aibox.audit.chain import AuditChain
from aibox.audit.checkpoint import open_note
from aibox.audit.keys import Keyring
from aibox.audit.record import HEADER_BYTES, Row, body_commit
from aibox.audit.report import BrokenEvidenceError, Report
from aibox.audit.signer import public_key, sign
from aibox.errors import StoreError

pytestmark = pytest.mark.anyio


@pytest.fixture
async def log(tmp_path: Path) -> Path:
    """Nine entries of acme and nine of rival, sealed and checkpointed."""
    await write_log(tmp_path / "audit.db")
    assert aibox.verify(tmp_path / "audit.db").entries == 18
    return tmp_path / "audit.db"


def broken(path: Path, cause: str, *, tenant: str = "acme", seq: int | None = None) -> Report:
    """The log is refused, and the verdict names the tenant, the entry and the cause."""
    with pytest.raises(BrokenEvidenceError) as caught:
        aibox.verify(path)
    report = caught.value.report
    found = [(p.tenant, p.seq, p.cause) for p in report.problems]
    assert any(t == tenant and (seq is None or s == seq) and cause in c for t, s, c in found), found
    return report


def entry(db: sqlite3.Connection, log: bytes, seq: int) -> Row:
    sql = "SELECT seq, header, open, sealed, tag FROM entries WHERE log = ? AND seq = ?"
    return Row(*db.execute(sql, (log, seq)).fetchone())


def put(db: sqlite3.Connection, log: bytes, seq: int, row: Row, **changed: bytes) -> None:
    values = row._replace(seq=seq, **changed)
    (place,) = db.execute("SELECT place - seq FROM entries WHERE log = ? LIMIT 1", (log,)).fetchone()
    db.execute("INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?, ?, ?, ?)", (place + seq, log, *values))


async def test_an_update_or_a_delete_through_sql_raises(log: Path) -> None:
    """Attack: change rows through SQL. It fails loudly, in every table; it does not pretend to have worked."""
    db = sqlite3.connect(log)
    db.execute("INSERT INTO acts VALUES (x'00', 1, 'bodies.pruned', 0, 1)")
    db.execute("INSERT INTO nodes VALUES (x'00', 4, 0, x'00')")
    for table in ("entries", "nodes", "checkpoints", "turns", "acts", "logs", "meta"):
        with pytest.raises(sqlite3.IntegrityError, match="never changed"):
            db.execute(f"DELETE FROM {table}")
    for sql in (
        "UPDATE entries SET open = x'00'",
        "UPDATE entries SET open = NULL, sealed = NULL",
        "UPDATE checkpoints SET note = ''",
        "UPDATE logs SET tenant = 'x'",
    ):
        with pytest.raises(sqlite3.IntegrityError, match="never changed"):
            db.execute(sql)
    db.close()
    assert aibox.verify(log).ok


async def test_modify_each_byte_of_a_header(log: Path) -> None:
    """Attack: each of the 122 bytes of a header is turned in its place; each time entry 4 is named."""
    with by_hand(log) as db:
        acme = log_of(db, "acme")
        row = entry(db, acme, 4)
        for at in range(HEADER_BYTES):
            changed = bytearray(row.header)
            changed[at] ^= 0x40
            put(db, acme, 4, row, header=bytes(changed))
            # A later time that is still before the next entry's is found by the tag; anything else by its own check.
            broken(log, "", seq=4)
        put(db, acme, 4, row)
    assert aibox.verify(log).ok


async def test_modify_a_body_with_and_without_its_commitment(log: Path) -> None:
    """Attack: a part of a body is rewritten; then the header commits to the new one, and the tag gives it away."""
    with by_hand(log) as db:
        acme = log_of(db, "acme")
        row = entry(db, acme, 4)
        assert row.open is not None
        assert row.sealed is not None
        forged = row.open.replace(b'"model":"m"', b'"model":"x"')
        assert forged != row.open
        put(db, acme, 4, row, open=forged)
        broken(log, "its body is not the one that was recorded", seq=4)
        put(db, acme, 4, row, open=forged, header=row.header[:90] + body_commit(forged, row.sealed))
        broken(log, "its tag does not fit", seq=4)
        put(db, acme, 4, row, sealed=row.sealed[:-1] + bytes([row.sealed[-1] ^ 1]))
        broken(log, "its body is not the one that was recorded", seq=4)


async def test_modify_a_tag(log: Path) -> None:
    """Attack: a tag is exchanged for another entry's, or cut short."""
    with by_hand(log) as db:
        acme = log_of(db, "acme")
        row = entry(db, acme, 4)
        put(db, acme, 4, row, tag=entry(db, acme, 5).tag)
        broken(log, "its tag does not fit", seq=4)
        put(db, acme, 4, row, tag=row.tag[:16])
        broken(log, "its tag has another length", seq=4)


async def test_delete(log: Path) -> None:
    """Attack: an entry in the middle is removed; the gap is named."""
    with by_hand(log) as db:
        db.execute("DELETE FROM entries WHERE log = ? AND seq = 4", (log_of(db, "acme"),))
    broken(log, "it is missing, and entry 5 follows", seq=4)


async def test_delete_and_close_the_gap(log: Path) -> None:
    """Attack: what follows a removed entry moves up; the numbers inside the entries stay what they were."""
    with by_hand(log) as db:
        acme = log_of(db, "acme")
        db.execute("DELETE FROM entries WHERE log = ? AND seq = 4", (acme,))
        for seq in range(5, 9):
            db.execute("UPDATE entries SET seq = ? WHERE log = ? AND seq = ?", (seq - 1, acme, seq))
    broken(log, "it says that it is entry 5", seq=4)


async def test_reorder(log: Path) -> None:
    """Attack: two entries change places."""
    with by_hand(log) as db:
        acme = log_of(db, "acme")
        four, five = entry(db, acme, 4), entry(db, acme, 5)
        put(db, acme, 4, five)
        put(db, acme, 5, four)
    broken(log, "it says that it is entry 5", seq=4)


async def test_insert(log: Path) -> None:
    """Attack: an entry is added behind the last one without the key."""
    with by_hand(log) as db:
        acme = log_of(db, "acme")
        row = entry(db, acme, 8)
        put(db, acme, 9, row, header=row.header[:10] + (9).to_bytes(8) + row.header[18:])
    broken(log, "it does not follow the entry before it", seq=9)


async def test_replay(log: Path) -> None:
    """Attack: an entry that really happened is written once more, at the end."""
    with by_hand(log) as db:
        acme = log_of(db, "acme")
        put(db, acme, 9, entry(db, acme, 4))
    broken(log, "it says that it is entry 4", seq=9)


async def test_splice_from_another_tenant(log: Path) -> None:
    """Attack: an entry of the tenant beside it, or its body, takes the place of one's own."""
    with by_hand(log) as db:
        acme, rival = log_of(db, "acme"), log_of(db, "rival")
        mine, theirs = entry(db, acme, 4), entry(db, rival, 4)
        put(db, acme, 4, theirs)
        broken(log, "another log", seq=4)
        assert theirs.open is not None
        put(db, acme, 4, mine, open=theirs.open)
        broken(log, "its body is not the one that was recorded", seq=4)


async def test_a_log_under_another_tenants_name(log: Path) -> None:
    """Attack: the names of two tenants are exchanged in the table that leads to their logs."""
    with by_hand(log) as db:
        for old, new in (("acme", "x"), ("rival", "acme"), ("x", "rival")):
            db.execute("UPDATE logs SET tenant = ? WHERE tenant = ?", (new, old))
    broken(log, "another tenant", seq=0)


async def test_truncate_before_a_checkpoint(log: Path) -> None:
    """Attack: the last entries go, and the signed checkpoint that knows of them stays."""
    with by_hand(log) as db:
        db.execute("DELETE FROM entries WHERE log = ? AND seq >= 7", (log_of(db, "acme"),))
    broken(log, "the checkpoint at 9 speaks of 9 entries", seq=7)


async def test_a_checkpoint_is_changed(log: Path) -> None:
    """Attack: a checkpoint with another root, size or origin, or of another log, is found by its signature."""
    with by_hand(log) as db:
        acme, rival = log_of(db, "acme"), log_of(db, "rival")
        sql = "UPDATE checkpoints SET note = ? WHERE log = ? AND size = 9"
        (note,) = db.execute("SELECT note FROM checkpoints WHERE log = ? AND size = 9", (acme,)).fetchone()
        (theirs,) = db.execute("SELECT note FROM checkpoints WHERE log = ? AND size = 9", (rival,)).fetchone()
        (six,) = db.execute("SELECT note FROM checkpoints WHERE log = ? AND size = 6", (acme,)).fetchone()
        db.execute(sql, (note.replace("\n9\n", "\n8\n"), acme))
        broken(log, "the signature does not fit")
        db.execute(sql, (theirs, acme))
        broken(log, "belongs elsewhere")
        db.execute(sql, (six, acme))
        broken(log, "belongs elsewhere")


async def test_an_index_that_hides_rows(log: Path) -> None:
    """Attack: the list of turns or the tree leaves out, adds or changes what the entries show."""
    with by_hand(log) as db:
        acme = log_of(db, "acme")
        kept = db.execute("SELECT * FROM turns WHERE log = ? AND turn = 'acme-1'", (acme,)).fetchone()
        db.execute("DELETE FROM turns WHERE log = ? AND turn = 'acme-1'", (acme,))
        broken(log, "the list of its turns was changed")
        db.execute("INSERT INTO turns VALUES (?, 'acme-1', 2)", (acme,))
        broken(log, "the list of its turns was changed")
        db.execute("DELETE FROM turns WHERE log = ? AND turn = 'acme-1'", (acme,))
        db.execute("INSERT INTO turns VALUES (?, ?, ?)", kept)
        db.execute("INSERT INTO acts VALUES (?, 4, 'hold.set', 0, -1)", (acme,))
        broken(log, "the list of its operators' acts was changed")


async def test_a_torn_or_overwritten_page(log: Path) -> None:
    """Attack, or a bad disk: pages of zeros in the middle of the file are told as damage and no crash."""
    data = bytearray(log.read_bytes())
    size = len(data)
    for start in range(4096, size, 4096):
        torn = data[:start] + bytes(4096) + data[start + 4096 :]
        log.write_bytes(torn)
        with pytest.raises((BrokenEvidenceError, StoreError)):
            aibox.verify(log)


async def test_a_tree_that_was_changed(tmp_path: Path) -> None:
    """Attack: a stored node of the tree is exchanged, and the verdict names the entries under it."""
    async with AuditChain(tmp_path / "a.db") as chain:
        for n in range(40):
            chain.note("tool.called", scope=ACME, detail={"n": n})
    with by_hand(tmp_path / "a.db") as db:
        db.execute("UPDATE nodes SET hash = zeroblob(32) WHERE level = 4 AND idx = 1")
    broken(tmp_path / "a.db", "the tree over entries 16 to 31 was changed")


async def test_another_key_beside_the_log(log: Path, tmp_path: Path) -> None:
    """Attack: the key that the log names as its first one is exchanged, with and without the true one in hand."""
    true = (log.parent / "keys" / "log.pub").read_text()
    other = public_key(Keyring(tmp_path / "others").signer())
    with pytest.raises(BrokenEvidenceError, match="never signed under the key that you hold"):
        aibox.verify(log, key=other)
    with by_hand(log) as db:
        db.execute("UPDATE logs SET public_key = ?", (other,))
    broken(log, "it does not follow", seq=0)
    with pytest.raises(BrokenEvidenceError):
        aibox.verify(log, key=true)


async def test_a_copy_on_read_only_media_verifies_without_its_keys(log: Path, tmp_path: Path) -> None:
    """An auditor with a copy and a public key verifies all but the tags; the copy is untouched."""
    (tmp_path / "copy").mkdir()
    copy = tmp_path / "copy" / "audit.db"
    shutil.copy(log, copy)
    before = hashlib.sha256(copy.read_bytes()).digest()
    report = aibox.verify(copy, key=(log.parent / "keys" / "log.pub").read_text())
    assert (report.ok, report.tags, report.pinned, report.entries) == (True, False, True, 18)
    assert "tags not checked" in str(report)
    assert hashlib.sha256(copy.read_bytes()).digest() == before
    assert {path.name for path in copy.parent.iterdir()} == {"audit.db"}


async def test_the_report_counts_what_no_checkpoint_speaks_for(log: Path) -> None:
    """Attack: delete checkpoints. Entries newer than the last one are counted, so nobody takes them for anchored."""
    assert aibox.verify(log).unanchored == 0
    with by_hand(log) as db:
        db.execute("DELETE FROM checkpoints WHERE log = ? AND size > 5", (log_of(db, "acme"),))
    report = aibox.verify(log)
    assert report.unanchored == 6
    assert json.loads(json.dumps(report.as_dict()))["unanchored"] == 6


async def test_a_checkpoint_of_another_root(log: Path) -> None:
    """Attack: the holder of the signing key signs a second history of the same size; the entries show which is true."""
    signer = Keyring(log.parent / "keys").signer()
    with by_hand(log) as db:
        acme = log_of(db, "acme")
        (note,) = db.execute("SELECT note FROM checkpoints WHERE log = ? AND size = 9", (acme,)).fetchone()
        point = open_note(note, public_key(signer))
        forged = sign(signer, type(point)(point.origin, 9, hashlib.sha256(b"another").digest()))
        assert base64.b64encode(point.root).decode() not in forged
        db.execute("UPDATE checkpoints SET note = ? WHERE log = ? AND size = 9", (forged, acme))
    broken(log, "its first 9 entries are not those of the signed checkpoint")
