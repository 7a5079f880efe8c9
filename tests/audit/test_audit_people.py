"""What is held about people: sealed by default, shown selectively, erased for good, held where the law says so."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from pathlib import Path

import pytest
from audit_parts import ACME, RIVAL, by_hand, log_of, write_log

import aibox
from aibox.audit import kinds
from aibox.audit.chain import AuditChain
from aibox.audit.checkpoint import Checkpoint, open_note
from aibox.audit.keys import Keyring
from aibox.audit.report import BrokenEvidenceError
from aibox.audit.signer import RemoteSigner, SigningServer, public_key, sign
from aibox.audit.verify import verify
from aibox.errors import AccessError, ConfigError, IntegrityError, StoreError
from aibox.types import Scope

pytestmark = pytest.mark.anyio
TOM = Scope(tenant="acme", user="tom.of-acme@example.org")


class Shelf:
    """A store that holds something about people."""

    def __init__(self) -> None:
        self.erased: list[tuple[str, str | None]] = []

    async def erase(self, *, scope: Scope, subject: str | None = None) -> int:
        self.erased.append((scope.tenant, subject))
        return 3


async def test_no_name_and_no_digest_of_a_text_lies_in_the_clear(tmp_path: Path) -> None:
    """Neither the database nor the mark nor a narrowed receipt shows whom an entry is about, or a digest."""
    digest = hashlib.sha256(b"yes").hexdigest()
    async with AuditChain(tmp_path / "a.db") as chain:
        chain.note("model.answered", scope=TOM, turn="t", detail={"model": "m", "answer_sha256": digest})
        receipt = await chain.seal("t", scope=TOM, detail={"outcome": "answered", "code": ""})
        assert receipt.entries[0].detail["answer_sha256"] == digest
    receipt.narrow().save(tmp_path / "narrow.json")
    for path in tmp_path.glob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert TOM.user.encode() not in data, path
            assert digest.encode() not in data, path


async def test_a_receipt_shows_that_something_was_redacted_and_nothing_else(tmp_path: Path) -> None:
    """Without keys a receipt still verifies and says what was decided; with one kept, that entry's part shows."""
    found = [{"check": "pii", "rule": "iban", "score_permille": 1000}]
    async with AuditChain(tmp_path / "a.db") as chain:
        detail = {"where": "input", "decision": "redact", "policy": "p", "findings": found, "findings_total": 1}
        chain.note("guardrail.decided", scope=TOM, turn="t", detail=detail)
        chain.note("tool.called", scope=TOM, turn="t", detail={"tool": "pay", "arguments_sha256": "00" * 32})
        receipt = await chain.seal("t", scope=TOM, detail={"outcome": "answered"})
    shown = receipt.narrow()
    shown.verify((tmp_path / "keys" / "log.pub").read_text())
    assert shown.entries[0].detail["decision"] == "redact"
    assert shown.entries[0].detail["findings"] == found
    assert [entry.actor for entry in shown.entries] == [None] * 3
    some = receipt.narrow(keep=["tool.called"])
    assert [entry.actor is not None for entry in some.entries] == [False, True, False]
    assert some.entries[1].detail["arguments_sha256"] == "00" * 32
    some.verify()


async def test_the_key_of_one_entry_opens_no_other(tmp_path: Path) -> None:
    """Attack: the key in a receipt is tried on the same person's other entries."""
    async with AuditChain(tmp_path / "a.db") as chain:
        chain.note("tool.called", scope=TOM, turn="t", detail={"tool": "a"})
        receipt = await chain.seal("t", scope=TOM, detail={})
    first, second = receipt.entries
    from dataclasses import replace

    with pytest.raises(ValueError, match="not the one that this entry was sealed under"):
        _ = replace(second, key=first.key).private
    with pytest.raises(IntegrityError, match="sealed under"):
        replace(receipt, entries=(first, replace(second, key=first.key))).verify()


async def test_an_erased_person_cannot_be_read_any_more_and_the_log_still_holds(tmp_path: Path) -> None:
    """The key is gone from the database and its journal, others stay readable, the log says how many are erased."""
    path, shelf = tmp_path / "audit.db", Shelf()
    receipts = await write_log(path, 2)
    async with AuditChain(path) as chain:
        chain.register("shelf", shelf)
        await chain.append("tool.called", scope=TOM, detail={})
        with by_hand(path) as db:
            (wrapped,) = db.execute("SELECT wrapped FROM subjects LIMIT 1").fetchone()
            keys = [row[0] for row in db.execute("SELECT wrapped FROM subjects WHERE log = ?", (log_of(db, "acme"),))]
        assert wrapped
        certificate = await chain.erase(scope=Scope(tenant="acme", user="dpo"), subject="eva", reason="art. 17")
        entries = [entry async for entry in chain.entries("acme")]
        assert [entry.actor is not None for entry in entries] == [False] * 6 + [True, False]
        assert [entry.actor is not None async for entry in chain.entries("rival")] == [True] * 6
        left = b"".join(file.read_bytes() for file in tmp_path.glob("audit.db*"))
        assert sum(key in left for key in keys) == 1
    assert shelf.erased == [("acme", "eva")]
    certificate.verify((tmp_path / "keys" / "log.pub").read_text())
    said = certificate.entries[0].detail
    assert (certificate.entries[0].kind, said["stores"], said["reason"]) == (kinds.ERASED, {"shelf": 3}, "art. 17")
    report = aibox.verify(path)
    assert (report.ok, report.erased) == (True, 6)
    assert "6 of people who were erased" in str(report)
    receipts[0].verify()


async def test_a_reader_delays_the_end_of_a_key_and_nobody_else(tmp_path: Path) -> None:
    """While somebody reads the file, a destroyed key stays in its journal; nobody waits, and it goes when they end."""
    path = tmp_path / "audit.db"
    await write_log(path, 1)
    async with AuditChain(path) as chain:
        await chain.append("tool.called", scope=TOM, detail={})
        with by_hand(path) as db:
            wrapped = [
                row[0] for row in db.execute("SELECT wrapped FROM subjects WHERE log = ?", (log_of(db, "acme"),))
            ]
            db.execute("BEGIN")
            db.execute("SELECT count(*) FROM entries").fetchone()
            await chain.erase(scope=ACME, subject="eva", reason="art. 17")
            await chain.erase(scope=ACME, subject=TOM.user, reason="art. 17")
            await chain.append("tool.called", scope=RIVAL, detail={})
            assert left(tmp_path, wrapped)
        while left(tmp_path, wrapped):
            await asyncio.sleep(0.05)
        assert (await chain.verify()).erased == 4


def left(folder: Path, keys: list[bytes]) -> bool:
    data = b"".join(file.read_bytes() for file in folder.glob("audit.db*"))
    return any(key in data for key in keys)


async def test_an_erased_subject_guessed_from_a_dictionary(tmp_path: Path) -> None:
    """Attack: with the whole data folder and a list of all names, nothing tells whose entries the erased ones were."""
    names = ["eva@acme.example", "tom@acme.example", "ada@acme.example"]
    for name in names:
        (tmp_path / name).mkdir()
        async with AuditChain(tmp_path / name / "a.db", keys=tmp_path / name / "keys") as chain:
            who = Scope(tenant="acme", user=name)
            await chain.append("tool.called", scope=who, detail={"tool": "t", "text_sha256": "00"})
            await chain.erase(scope=ACME, subject=name, reason="")
        keyring = Keyring(tmp_path / name / "keys")
        data = b"".join(file.read_bytes() for file in (tmp_path / name).glob("a.db*"))
        secrets = [keyring.secret("subjects"), keyring.secret("origin"), keyring.secret("log")]
        for guess in names:
            for secret in secrets:
                for message in (guess.encode(), b"who\x00" + guess.encode()):
                    assert hashlib.sha256(secret + message).digest() not in data
            assert hashlib.sha256(guess.encode()).digest() not in data
            assert guess.encode() not in data.replace(b"\x00", b"")


async def test_a_key_that_is_gone_without_a_tombstone(tmp_path: Path) -> None:
    """Attack: a person's key is deleted by hand, so that their entries can never be read; that is not an erasure."""
    await write_log(tmp_path / "audit.db", 1)
    with by_hand(tmp_path / "audit.db") as db:
        db.execute("DELETE FROM subjects WHERE log = ?", (log_of(db, "acme"),))
    with pytest.raises(BrokenEvidenceError, match="entry 0 of tenant acme: the key of its sealed part is gone"):
        aibox.verify(tmp_path / "audit.db")


async def test_a_key_that_is_there_in_spite_of_a_tombstone(tmp_path: Path) -> None:
    """Attack: the key of an erased person is put back out of a copy of the table."""
    await write_log(tmp_path / "audit.db", 1)
    with by_hand(tmp_path / "audit.db") as db:
        kept = db.execute("SELECT * FROM subjects WHERE log = ?", (log_of(db, "acme"),)).fetchone()
    async with AuditChain(tmp_path / "audit.db") as chain:
        await chain.erase(scope=ACME, subject="eva", reason="")
    with by_hand(tmp_path / "audit.db") as db:
        db.execute("INSERT INTO subjects VALUES (?, ?, ?, ?)", kept)
    with pytest.raises(BrokenEvidenceError, match="erased is there again"):
        aibox.verify(tmp_path / "audit.db")


async def test_a_body_that_is_missing_without_an_act_of_pruning(tmp_path: Path) -> None:
    """Attack: a body is removed by hand, whole or in part; that is not retention."""
    await write_log(tmp_path / "audit.db", 1)
    with by_hand(tmp_path / "audit.db") as db:
        db.execute("UPDATE entries SET open = NULL WHERE log = ? AND seq = 1", (log_of(db, "acme"),))
        with pytest.raises(BrokenEvidenceError, match="one part of its body is missing"):
            aibox.verify(tmp_path / "audit.db")
        db.execute("UPDATE entries SET sealed = NULL WHERE log = ? AND seq = 1", (log_of(db, "acme"),))
    with pytest.raises(BrokenEvidenceError, match="entry 1 of tenant acme: its body is missing"):
        aibox.verify(tmp_path / "audit.db")


async def test_retention_removes_bodies_and_keeps_the_proof(tmp_path: Path) -> None:
    """Old bodies go, the log verifies and says how many; turns that came later keep their receipts."""
    await write_log(tmp_path / "audit.db", 2)
    async with AuditChain(tmp_path / "audit.db") as chain:
        entries = [entry async for entry in chain.entries("acme")]
        assert await chain.prune(scope=ACME, before_us=entries[3].ts_us, reason="7 years") <= 3
        (await chain.receipt("acme-1", scope=ACME)).verify()
        gone = [entry.seq async for entry in chain.entries("acme") if not entry.open]
        with pytest.raises(ConfigError, match="past its retention"):
            await chain.receipt("acme-0", scope=ACME)
    report = aibox.verify(tmp_path / "audit.db")
    assert (report.ok, report.pruned) == (True, len(gone))


async def test_a_legal_hold_outlasts_retention_and_erasure(tmp_path: Path) -> None:
    """While it stands nothing of that person goes; it is on record who set it, why, and who released it."""
    await write_log(tmp_path / "audit.db", 1)
    async with AuditChain(tmp_path / "audit.db") as chain:
        await chain.append("tool.called", scope=TOM, detail={})
        held = await chain.hold(scope=ACME, subject="eva", reason="case 7")
        with pytest.raises(AccessError, match="case 7"):
            await chain.erase(scope=ACME, subject="eva", reason="art. 17")
        assert await chain.prune(scope=ACME, before_us=2**62, reason="") == 1
        await chain.erase(scope=ACME, subject=TOM.user, reason="art. 17")
        whole = await chain.hold(scope=ACME, reason="all of it")
        assert await chain.prune(scope=ACME, before_us=2**62, reason="") == 0
        await chain.release(whole.seq, scope=ACME, reason="")
        await chain.release(held.seq, scope=ACME, reason="settled")
        with pytest.raises(ConfigError, match="not a hold that stands"):
            await chain.release(held.seq, scope=ACME, reason="")
        await chain.erase(scope=ACME, subject="eva", reason="art. 17")
        assert await chain.prune(scope=ACME, before_us=2**62, reason="") == 3
        seen = [e.kind async for e in chain.entries("acme") if e.open]
    assert seen.count(kinds.HELD) == seen.count(kinds.RELEASED) == 2
    assert aibox.verify(tmp_path / "audit.db").pruned == 4


async def test_acts_on_the_log_are_written_by_the_chain_alone(tmp_path: Path) -> None:
    """Attack: an application appends a tombstone or a rotation of its own making."""
    async with AuditChain(tmp_path / "a.db") as chain:
        for kind in kinds.OPERATOR:
            with pytest.raises(ConfigError, match="by the chain alone"):
                await chain.append(kind, scope=ACME, detail={})
            with pytest.raises(ConfigError, match="by the chain alone"):
                chain.note(kind, scope=ACME, detail={})


# The signer in another process.


@pytest.fixture
def signing(tmp_path: Path) -> object:
    server = SigningServer(tmp_path / "signer.sock", Keyring(tmp_path / "hsm").signer())
    thread = threading.Thread(target=server.serve, daemon=True)
    thread.start()
    yield server
    server.close()
    thread.join(10)


async def test_a_signer_outside_keeps_its_key(tmp_path: Path, signing: object) -> None:
    """The chain signs through a socket; its folder holds no signing key, and the log verifies."""
    keys = Keyring(tmp_path / "keys", signer=tmp_path / "signer.sock")
    async with AuditChain(tmp_path / "a.db", keys=keys) as chain:
        chain.note("tool.called", scope=ACME, turn="t", detail={})
        receipt = await chain.seal("t", scope=ACME, detail={})
        with pytest.raises(ConfigError, match="another process"):
            await chain.rotate()
    assert not (tmp_path / "keys" / "log.key").exists()
    public = (tmp_path / "hsm" / "log.pub").read_text()
    receipt.verify(public)
    assert verify(tmp_path / "a.db", keys=keys, key=public).pinned


async def test_a_signer_signs_one_history_only(tmp_path: Path, signing: object) -> None:
    """Attack: whoever may ask asks for a smaller tree, or for another of the same size; both are refused."""
    signer = RemoteSigner(tmp_path / "signer.sock")
    note = sign(signer, Checkpoint("o", 5, bytes(32)))
    assert open_note(note, public_key(signer)).size == 5
    assert sign(signer, Checkpoint("o", 5, bytes(32))) == note
    with pytest.raises(StoreError, match="4 are fewer"):
        sign(signer, Checkpoint("o", 4, bytes(32)))
    with pytest.raises(StoreError, match="another tree of 5"):
        sign(signer, Checkpoint("o", 5, bytes([1]) * 32))
    sign(signer, Checkpoint("another", 1, bytes(32)))
    for text in (b"anything", b"o\n5\n"):
        with pytest.raises(StoreError, match="refused"):
            signer.sign_bytes(text)


async def test_a_signer_that_is_down_leaves_nothing_unsigned(tmp_path: Path) -> None:
    """Without its signer a chain does not open, and one that loses it tells whoever waits; nothing is half written."""
    keys = Keyring(tmp_path / "keys", signer=tmp_path / "signer.sock")
    with pytest.raises(StoreError, match="does not answer"):
        await AuditChain(tmp_path / "a.db", keys=keys).flush()
    server = SigningServer(tmp_path / "signer.sock", Keyring(tmp_path / "hsm").signer())
    thread = threading.Thread(target=server.serve, daemon=True)
    thread.start()
    async with AuditChain(tmp_path / "a.db", keys=keys) as chain:
        await chain.append("tool.called", scope=ACME, detail={})
        server.close()
        thread.join(10)
        with pytest.raises(StoreError, match="does not answer"):
            await chain.seal("t", scope=ACME, detail={})
    assert verify(tmp_path / "a.db", keys=Keyring(tmp_path / "hsm")).unanchored <= 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can ask as somebody else")
async def test_a_signer_answers_one_user_only(tmp_path: Path) -> None:
    """Attack: another user of the machine who can reach the socket is told no."""
    server = SigningServer(tmp_path / "signer.sock", Keyring(tmp_path / "hsm").signer(), uid=12345)
    thread = threading.Thread(target=server.serve, daemon=True)
    thread.start()
    with pytest.raises(StoreError, match="another user"):
        RemoteSigner(tmp_path / "signer.sock")
    server.close()
    await asyncio.to_thread(thread.join, 10)


def test_tenants_do_not_show_in_what_leaves_the_house(tmp_path: Path) -> None:
    """A checkpoint's origin is a keyed hash: a list of tenants does not lead to it."""
    asyncio.run(write_log(tmp_path / "audit.db", 1))
    with by_hand(tmp_path / "audit.db") as db:
        notes = " ".join(row[0] for row in db.execute("SELECT note FROM checkpoints"))
    for tenant in (ACME.tenant, RIVAL.tenant):
        assert tenant not in notes
        assert hashlib.sha256(tenant.encode()).hexdigest()[:20] not in notes
