"""Attacks on a log by somebody who owns the database: each is carried out past every trigger, and each is named."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import sqlite3
from pathlib import Path

import pytest
from audit_parts import ACME, by_hand, log_of, sealed_turns, write_log

import aibox
from aibox.audit.chain import AuditChain
from aibox.audit.checkpoint import open_note
from aibox.audit.keys import Keyring
from aibox.audit.record import HEADER_BYTES, body_commit
from aibox.audit.verify import BrokenEvidenceError, Report
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


def entry(db: sqlite3.Connection, log: bytes, seq: int) -> tuple[bytes, bytes, bytes]:
    sql = "SELECT header, body, tag FROM entries WHERE log = ? AND seq = ?"
    found: tuple[bytes, bytes, bytes] = db.execute(sql, (log, seq)).fetchone()
    return found


def put(db: sqlite3.Connection, log: bytes, seq: int, header: bytes, body: bytes, tag: bytes) -> None:
    db.execute("INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?, ?)", (log, seq, header, body, tag))


async def test_an_update_or_a_delete_through_sql_raises(log: Path) -> None:
    """Attack: change rows through SQL. It fails loudly, in every table; it does not pretend to have worked."""
    db = sqlite3.connect(log)
    for table in ("entries", "nodes", "checkpoints", "turns", "logs", "meta"):
        with pytest.raises(sqlite3.IntegrityError, match="never changed"):
            db.execute(f"DELETE FROM {table}")
    for sql in ("UPDATE entries SET body = x'00'", "UPDATE checkpoints SET note = ''", "UPDATE logs SET tenant = 'x'"):
        with pytest.raises(sqlite3.IntegrityError, match="never changed"):
            db.execute(sql)
    db.close()
    assert aibox.verify(log).ok


async def test_modify_each_byte_of_a_header(log: Path) -> None:
    """Attack: each of the 122 bytes of a header is turned in its place; each time entry 4 is named."""
    with by_hand(log) as db:
        acme = log_of(db, "acme")
        header, body, tag = entry(db, acme, 4)
        for at in range(HEADER_BYTES):
            changed = bytearray(header)
            changed[at] ^= 0x40
            put(db, acme, 4, bytes(changed), body, tag)
            # A later time that is still before the next entry's is found by the tag; anything else by its own check.
            broken(log, "", seq=4)
        put(db, acme, 4, header, body, tag)
    assert aibox.verify(log).ok


async def test_modify_a_body_with_and_without_its_commitment(log: Path) -> None:
    """Attack: a body is rewritten; then the header is made to commit to the new one, and the tag gives it away."""
    with by_hand(log) as db:
        acme = log_of(db, "acme")
        header, body, tag = entry(db, acme, 4)
        forged = body.replace(b'"n":1', b'"n":2')
        assert forged != body
        put(db, acme, 4, header, forged, tag)
        broken(log, "its body is not the one that was recorded", seq=4)
        put(db, acme, 4, header[:90] + body_commit(forged), forged, tag)
        broken(log, "its tag does not fit", seq=4)


async def test_modify_a_tag(log: Path) -> None:
    """Attack: a tag is exchanged for another entry's, or cut short."""
    with by_hand(log) as db:
        acme = log_of(db, "acme")
        header, body, tag = entry(db, acme, 4)
        put(db, acme, 4, header, body, entry(db, acme, 5)[2])
        broken(log, "its tag does not fit", seq=4)
        put(db, acme, 4, header, body, tag[:16])
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
        put(db, acme, 4, *five)
        put(db, acme, 5, *four)
    broken(log, "it says that it is entry 5", seq=4)


async def test_insert(log: Path) -> None:
    """Attack: an entry is added behind the last one without the key."""
    with by_hand(log) as db:
        acme = log_of(db, "acme")
        header, body, tag = entry(db, acme, 8)
        put(db, acme, 9, header[:10] + (9).to_bytes(8) + header[18:], body, tag)
    broken(log, "it does not follow the entry before it", seq=9)


async def test_replay(log: Path) -> None:
    """Attack: an entry that really happened is written once more, at the end."""
    with by_hand(log) as db:
        acme = log_of(db, "acme")
        put(db, acme, 9, *entry(db, acme, 4))
    broken(log, "it says that it is entry 4", seq=9)


async def test_splice_from_another_tenant(log: Path) -> None:
    """Attack: an entry of the tenant beside it, or its body, takes the place of one's own."""
    with by_hand(log) as db:
        acme, rival = log_of(db, "acme"), log_of(db, "rival")
        mine, theirs = entry(db, acme, 4), entry(db, rival, 4)
        put(db, acme, 4, *theirs)
        broken(log, "another log", seq=4)
        put(db, acme, 4, mine[0], theirs[1], mine[2])
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
    broken(log, "a checkpoint speaks of 9 entries", seq=7)


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
        db.execute("UPDATE nodes SET hash = zeroblob(32) WHERE log = ? AND level = 1 AND idx = 2", (acme,))
        broken(log, "the tree over entries 4 to 5 was changed")


async def test_a_torn_or_overwritten_page(log: Path) -> None:
    """Attack, or a bad disk: pages of zeros in the middle of the file are told as damage and no crash."""
    data = bytearray(log.read_bytes())
    size = len(data)
    for start in range(4096, size, 4096):
        torn = data[:start] + bytes(4096) + data[start + 4096 :]
        log.write_bytes(torn)
        with pytest.raises((BrokenEvidenceError, StoreError)):
            aibox.verify(log)


async def test_another_key_beside_the_log(log: Path, tmp_path: Path) -> None:
    """Attack: the log's own note of its key is exchanged; who has the true key still sees that it holds."""
    true = (log.parent / "keys" / "log.pub").read_text()
    other = Keyring(tmp_path / "others").signer().public_key
    with by_hand(log) as db:
        db.execute("UPDATE meta SET value = ? WHERE name = 'public_key'", (other,))
    broken(log, "it does not follow", seq=0)
    assert aibox.verify(log, key=true).pinned


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


async def test_the_report_counts_what_no_checkpoint_speaks_for(tmp_path: Path) -> None:
    """Entries newer than the last checkpoint are counted, so that nobody takes them for anchored."""
    async with AuditChain(tmp_path / "a.db") as chain:
        await sealed_turns(chain, ACME, 1)
        for _ in range(4):
            await chain.append("tool.called", scope=ACME, detail={})
    report = aibox.verify(tmp_path / "a.db")
    assert report.unanchored == 4
    assert json.loads(json.dumps(report.as_dict()))["unanchored"] == 4


async def test_a_checkpoint_of_another_root(log: Path) -> None:
    """Attack: the holder of the signing key signs a second history of the same size; the entries show which is true."""
    signer = Keyring(log.parent / "keys").signer()
    with by_hand(log) as db:
        acme = log_of(db, "acme")
        (note,) = db.execute("SELECT note FROM checkpoints WHERE log = ? AND size = 9", (acme,)).fetchone()
        point = open_note(note, signer.public_key)
        forged = signer.sign(type(point)(point.origin, 9, hashlib.sha256(b"another").digest()))
        assert base64.b64encode(point.root).decode() not in forged
        db.execute("UPDATE checkpoints SET note = ? WHERE log = ? AND size = 9", (forged, acme))
    broken(log, "its first 9 entries are not those of the signed checkpoint")
