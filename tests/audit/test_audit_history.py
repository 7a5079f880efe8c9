"""Attacks on a log's past and on its keys, by who has more than the database: each leaves a trace."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from audit_parts import ACME, by_hand, log_of, sealed_turns

import aibox
from aibox.audit import epochs, kinds
from aibox.audit.chain import AuditChain
from aibox.audit.checkpoint import Checkpoint, open_note
from aibox.audit.epochs import EpochKey, EpochKeys
from aibox.audit.keys import Keyring
from aibox.audit.merkle import root, verify_consistency
from aibox.audit.record import KEY, Header, Row, body_commit, leaf_hash, make_parts, read_detail, tagger
from aibox.audit.report import BrokenEvidenceError, Report
from aibox.audit.signer import public_key, sign
from aibox.audit.verify import verify
from aibox.errors import IntegrityError
from aibox.types import Scope

pytestmark = pytest.mark.anyio


class Insider:
    """Owns the database and whatever keys they are given; rewrites a log as well as these keys allow."""

    def __init__(self, path: Path, tenant: str = "acme") -> None:
        self.path = path
        with by_hand(path) as db:
            self.log = log_of(db, tenant)
            rows = db.execute(
                "SELECT seq, header, open, sealed, tag FROM entries WHERE log = ? ORDER BY seq", (self.log,)
            )
            self.rows = [Row(*row) for row in rows]
            (self.origin,) = db.execute("SELECT origin FROM logs WHERE log = ?", (self.log,)).fetchone()
        self.keys: dict[int, bytes] = {}

    def know(self, key: EpochKey | None) -> None:
        """An epoch key, and so all that come after it."""
        while key is not None and key.epoch < 20:
            self.keys[key.epoch] = key.key
            key = key.next(self.log)

    def relink(self, change: Callable[[list[Row]], list[Row]], *, any_key: bytes | None = None) -> None:
        """Change the rows, then make numbers, links, commitments and tags fit as far as the keys reach."""
        rows, prev = [], Header.unpack(self.rows[0].header).prev
        tags, first = hashlib.sha256(), 0
        for seq, row in enumerate(change(list(self.rows))):
            header = Header.unpack(row.header)
            shown = row.open or b""
            if header.flags & KEY:
                # Commitments are no secret: whoever rewrites the tags rewrites them too.
                body = json.loads(shown)
                body["detail"] |= {"tags_sha256": tags.hexdigest(), "from": first}
                shown = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
                tags, first = hashlib.sha256(), seq + 1
            commit = body_commit(shown, row.sealed or b"")
            packed = header._replace(seq=seq, prev=prev, body_commit=commit).pack()
            prev = leaf_hash(packed)
            unchanged = packed == row.header
            key = self.keys.get(header.epoch, any_key)
            mark = row.tag if unchanged or key is None else tagger(key).of(prev)
            if not header.flags & KEY:
                tags.update(mark)
            rows.append(Row(seq, packed, shown, row.sealed, mark))
        self.rows = rows
        self.put()

    def put(self) -> None:
        """The rows, the tree and the list of acts as they would be; old checkpoints stay where they are."""
        with by_hand(self.path) as db:
            (place,) = db.execute("SELECT place - seq FROM entries WHERE log = ? LIMIT 1", (self.log,)).fetchone()
            for table in ("entries", "nodes", "acts"):
                db.execute(f"DELETE FROM {table} WHERE log = ?", (self.log,))
            rows = [(place + row.seq, self.log, *row) for row in self.rows]
            db.executemany("INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
            acts = [(self.log, row.seq, json.loads(row.open)["action"], 0, -1) for row in self.rows if row.open]
            acts = [act for act in acts if act[2] in kinds.OPERATOR]
            db.executemany("INSERT INTO acts VALUES (?, ?, ?, ?, ?)", acts)
            leaves = [leaf_hash(row.header) for row in self.rows]
            nodes = [(self.log, 4, n, root(leaves[n * 16 : n * 16 + 16])) for n in range(len(leaves) // 16)]
            db.executemany("INSERT INTO nodes VALUES (?, ?, ?, ?)", nodes)

    def checkpoints(self, signer_keys: Path | None) -> None:
        """Old checkpoints go; with the signing key there is a new one."""
        with by_hand(self.path) as db:
            db.execute("DELETE FROM checkpoints WHERE log = ?", (self.log,))
            if signer_keys is not None:
                point = Checkpoint(self.origin, len(self.rows), root([leaf_hash(row.header) for row in self.rows]))
                note = sign(Keyring(signer_keys).signer(), point)
                db.execute("INSERT INTO checkpoints VALUES (?, ?, ?)", (self.log, point.size, note))


async def write(path: Path, count: int = 24) -> None:
    """Entries of two people, in epochs of eight, with no turns."""
    async with AuditChain(path) as chain:
        for n in range(count):
            who = Scope(tenant="acme", user=f"user{n % 2}")
            await chain.append("model.called", scope=who, detail={"model": f"m{n}"})


@pytest.fixture
def short_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aibox.audit.ledger.EPOCH_ENTRIES", 8)


@pytest.fixture
async def log(tmp_path: Path, short_epochs: None) -> Path:
    """27 entries in four epochs; the first key of the log was kept by an auditor."""
    path = tmp_path / "audit.db"
    async with AuditChain(path) as chain:
        await chain.append("model.called", scope=ACME, detail={"model": "m"})
    shutil.copytree(tmp_path / "keys", tmp_path / "auditor")
    await write(path)
    report = aibox.verify(path)
    assert (report.entries, report.tagged) == (28, 1)
    return path


def broken(path: Path, cause: str, **options: object) -> Report:
    with pytest.raises(BrokenEvidenceError) as caught:
        verify(path, **options)  # type: ignore[arg-type]  # the options of verify
    report = caught.value.report
    assert any(cause in problem.cause for problem in report.problems), report.problems
    return report


def rename(rows: list[Row], seq: int, model: bytes = b'"model":"forged"') -> list[Row]:
    shown = rows[seq].open or b""
    at = shown.index(b'"model":"m')
    end = shown.index(b'"', at + 9) + 1
    rows[seq] = rows[seq]._replace(open=shown[:at] + model + shown[end:])
    return rows


async def test_the_ratchet_is_the_documented_one_and_does_not_go_back(tmp_path: Path, log: Path) -> None:
    """The key in the folder is that of the epoch under way; it follows from the first; none earlier from it."""
    first = EpochKeys(Keyring(tmp_path / "auditor")).known(Insider(log).log)
    now = EpochKeys(Keyring(tmp_path / "keys")).known(Insider(log).log)
    assert first is not None
    assert now is not None
    assert (first.epoch, now.epoch) == (0, 3)
    assert first.at(Insider(log).log, 3) == now
    assert now.at(Insider(log).log, 2) is None
    texts = [path.read_bytes() for path in (tmp_path / "keys").glob("*")]
    assert not any(first.key.hex().encode() in text for text in texts)


async def test_with_an_early_key_every_tag_is_checked(tmp_path: Path, log: Path) -> None:
    """Whoever kept the first key checks all tags; the host itself those of the epoch under way."""
    assert verify(log, keys=Keyring(tmp_path / "auditor")).tagged == 28
    assert verify(log, keys=Keyring(tmp_path / "nowhere")).tags is False


async def test_stolen_current_key(tmp_path: Path, log: Path) -> None:
    """Attack: database and today's epoch key. An old entry is rewritten with all that follows; the checkpoints tell."""
    insider = Insider(log)
    insider.know(EpochKeys(Keyring(tmp_path / "keys")).known(insider.log))
    insider.relink(lambda rows: rename(rows, 3))
    broken(log, "not those of the signed checkpoint")
    insider.checkpoints(None)
    # No checkpoint is left in the database; the mark beside the keys, and an early key, still tell.
    broken(log, "the high-water mark")
    (tmp_path / "keys" / "highwater.json").unlink()
    assert verify(log).unanchored == 28
    broken(log, "its tag does not fit", keys=Keyring(tmp_path / "auditor"))


async def test_re_tag_an_old_epoch_with_a_newer_key(tmp_path: Path, log: Path) -> None:
    """Attack: entries of an epoch that is over are tagged under the present key. Each tag counts under its own only."""
    insider = Insider(log)
    now = EpochKeys(Keyring(tmp_path / "keys")).known(insider.log)
    assert now is not None
    insider.relink(lambda rows: rename(rows, 3), any_key=now.key)
    insider.checkpoints(tmp_path / "keys")
    (tmp_path / "keys" / "highwater.json").unlink()
    report = broken(log, "its tag does not fit", keys=Keyring(tmp_path / "auditor"))
    assert report.problems[0].seq == 3


async def test_an_old_tag_is_exchanged_or_lost(log: Path) -> None:
    """Attack: the tag of an entry whose key is gone is replaced, and nobody can check it; but it is committed to."""
    with by_hand(log) as db:
        db.execute("UPDATE entries SET tag = zeroblob(32) WHERE seq = 2")
    assert broken(log, "the tags of entries 0 to 7 were changed").problems[0].seq == 8


async def test_an_entry_claims_a_later_epoch(tmp_path: Path, log: Path) -> None:
    """Attack: with a later key an entry of an early epoch is moved to the later one; only a key event ends an epoch."""
    insider = Insider(log)
    insider.know(EpochKeys(Keyring(tmp_path / "keys")).known(insider.log))

    def later(rows: list[Row]) -> list[Row]:
        header = Header.unpack(rows[20].header)
        rows[20] = rows[20]._replace(header=header._replace(epoch=3).pack())
        return rows

    insider.relink(later)
    assert broken(log, "its epoch is not that of the log").problems[0].seq == 20


async def test_drop_an_empty_epoch(tmp_path: Path, short_epochs: None) -> None:
    """Attack: an epoch in which nothing happened is taken out, silence and all; the next one then comes too early."""
    path = tmp_path / "audit.db"
    async with AuditChain(path) as chain:
        await chain.append("model.called", scope=ACME, detail={"model": "m"})
        for _ in range(2):
            await chain._do(lambda ledger: ledger.ratchet(ledger.head("acme")))
        await chain.append("model.called", scope=ACME, detail={"model": "m"})
    assert aibox.verify(path).entries == 4
    insider = Insider(path)
    insider.know(EpochKeys(Keyring(tmp_path / "keys")).known(insider.log))
    insider.relink(lambda rows: [rows[0], rows[1], rows[3]])
    insider.checkpoints(tmp_path / "keys")
    assert broken(path, "its epoch is not that of the log").problems[0].seq == 2


async def test_a_key_event_is_taken_out(tmp_path: Path, log: Path) -> None:
    """Attack: two epochs are made into one; what follows carries the wrong number."""
    insider = Insider(log)
    insider.relink(lambda rows: [row for row in rows if row.seq != 8])
    assert broken(log, "its epoch is not that of the log").problems[0].seq == 8


async def test_truncate_after_a_checkpoint(tmp_path: Path, log: Path) -> None:
    """Attack: the newest entries go, and the checkpoints that know of them too. The mark tells, and so does a key."""
    insider = Insider(log)
    insider.rows = insider.rows[:12]
    insider.put()
    with by_hand(log) as db:
        db.execute("DELETE FROM checkpoints WHERE size > 12")
    broken(log, "the high-water mark speaks of 28 entries")
    with pytest.raises(IntegrityError, match="put back"):
        await write(log, 1)
    (tmp_path / "keys" / "highwater.json").unlink()
    with pytest.raises(IntegrityError, match="its key has come to 3"):
        await write(log, 1)


async def test_roll_the_database_back(tmp_path: Path, log: Path) -> None:
    """Attack: yesterday's database is put in place of today's. It is neither believed nor used."""
    shutil.copy(log, tmp_path / "yesterday.db")
    await write(log, 6)
    shutil.copy(tmp_path / "yesterday.db", log)
    broken(log, "it is missing: the high-water mark speaks of 34 entries")
    with pytest.raises(IntegrityError, match="restored on purpose"):
        await write(log, 1)


async def test_truncate_then_append(tmp_path: Path, log: Path) -> None:
    """Attack: the tail is cut off and new entries take its place, up to the same length; the tree is another."""
    note = (await outside(log))[0]
    insider = Insider(log)
    insider.know(EpochKeys(Keyring(tmp_path / "keys")).known(insider.log))
    insider.relink(lambda rows: rename(rows, 27))
    insider.checkpoints(tmp_path / "keys")
    broken(log, "its first 28 entries are not those", checkpoints=[note])


async def outside(path: Path) -> list[str]:
    async with AuditChain(path) as chain:
        return [await chain.checkpoint("acme")]


async def test_fork(tmp_path: Path, log: Path) -> None:
    """Attack: two copies go on with the same keys. Each verifies; a checkpoint of one does not fit the other."""
    for copy in ("left", "right"):
        (tmp_path / copy).mkdir()
        shutil.copy(log, tmp_path / copy / "audit.db")
        shutil.copytree(tmp_path / "keys", tmp_path / copy / "keys")
        await write(tmp_path / copy / "audit.db", 2 if copy == "left" else 3)
    left, right = [(await outside(tmp_path / copy / "audit.db"))[0] for copy in ("left", "right")]
    for copy, note in (("left", left), ("right", right)):
        assert verify(tmp_path / copy / "audit.db", checkpoints=[note]).outside == 1
    broken(tmp_path / "right" / "audit.db", "a checkpoint from elsewhere", checkpoints=[left])
    broken(tmp_path / "left" / "audit.db", "a checkpoint from elsewhere", checkpoints=[right])


async def test_delete_a_whole_tenant(tmp_path: Path, log: Path) -> None:
    """Attack: everything of a tenant is removed. Mark and outside checkpoint speak of a log that is gone."""
    notes = await outside(log)
    with by_hand(log) as db:
        for table in ("entries", "nodes", "checkpoints", "turns", "acts", "logs", "subjects"):
            db.execute(f"DELETE FROM {table}")
    broken(log, "the high-water mark speaks of a log that is not here")
    (tmp_path / "keys" / "highwater.json").unlink()
    broken(log, "a checkpoint from elsewhere speaks of a log that is not here", checkpoints=notes)


async def test_a_consistency_proof_ties_two_checkpoints(log: Path) -> None:
    """Two signed checkpoints and a proof show, without the log, that the later holds the earlier unchanged."""
    before = (await outside(log))[0]
    await write(log, 9)
    after = (await outside(log))[0]
    key = (log.parent / "keys" / "log.pub").read_text()
    old, new = open_note(before, key), open_note(after, key)
    async with AuditChain(log) as chain:
        proof = await chain.consistency("acme", old.size, new.size)
    verify_consistency(old.size, new.size, proof, old.root, new.root)


# Rotation of the signing key.


async def test_a_rotated_key_goes_on_and_the_old_one_still_verifies(tmp_path: Path, log: Path) -> None:
    """Receipts from before and after, and the log as a whole, hold under the first key and under the last."""
    async with AuditChain(log) as chain:
        before = (await sealed_turns(chain, ACME, 1))[0]
        old = (tmp_path / "keys" / "log.pub").read_text()
        new = await chain.rotate()
        chain.note("turn.started", scope=ACME, turn="after", detail={})
        after = await chain.seal("after", scope=ACME, detail={})
        again = await chain.receipt("acme-0", scope=ACME)
        newer = await chain.rotate()
    assert new != newer
    for receipt in (before, again):
        receipt.verify(old)
    for key in (old, new):
        after.verify(key)
    with pytest.raises(IntegrityError, match="not signed by this key"):
        before.verify(new)
    assert all(verify(log, key=key).pinned for key in (old, new, newer))
    assert (tmp_path / "keys" / "log.pub").read_text().strip() == newer
    assert len(list((tmp_path / "keys").glob("retired-*.pub"))) == 2
    await write(log, 3)
    assert aibox.verify(log).ok


async def test_a_retired_key_never_signs(tmp_path: Path, log: Path) -> None:
    """Attack: whoever kept the old private key signs a later checkpoint with it; it is refused by the key in force."""
    shutil.copytree(tmp_path / "keys", tmp_path / "stolen")
    async with AuditChain(log) as chain:
        await chain.rotate()
        await chain.append("model.called", scope=ACME, detail={})
    insider = Insider(log)
    insider.checkpoints(tmp_path / "stolen")
    broken(log, "does not hold: the note is not signed by this key")


async def test_forged_rotation(tmp_path: Path, log: Path) -> None:
    """Attack: an entry hands over to a key of the attacker without the signature of the one before."""
    insider = Insider(log)
    known = EpochKeys(Keyring(tmp_path / "keys")).known(insider.log)
    assert known is not None
    insider.know(known)
    old = (tmp_path / "keys" / "log.pub").read_text().strip()
    mine = public_key(Keyring(tmp_path / "mine").signer())
    detail = {"old": old, "new": mine, "until": 29, "signature": "00" * 64, "epoch": known.epoch}
    parts = make_parts(kinds.ROTATED, scope=ACME, turn="", detail={**detail, "from": 0, "tags_sha256": ""})
    last = Header.unpack(insider.rows[-1].header)
    insider.relink(lambda rows: [*rows, Row(28, last._replace(flags=KEY).pack(), parts.open, b"", b"")])
    assert broken(log, "the rotation was not signed by the key before it").problems[0].seq == 28


async def test_a_rotation_that_was_interrupted_is_ended(
    tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that dies between the first log and the last leaves nothing half: the next one ends the rotation."""
    async with AuditChain(log) as chain:
        await chain.append("model.called", scope=Scope(tenant="zeta", user="z"), detail={})

        def dies(_: Keyring) -> None:
            raise OSError("the power went")

        with monkeypatch.context() as patched:
            patched.setattr(Keyring, "retire", dies)
            with pytest.raises(OSError, match="power"):
                await chain.rotate()
    assert Keyring(tmp_path / "keys").rotating
    await write(log, 2)
    assert not Keyring(tmp_path / "keys").rotating
    report = aibox.verify(log)
    assert (report.ok, report.logs) == (True, 2)


# A backup that an operator puts back.


async def test_a_restored_backup_goes_on_and_says_what_was_lost(tmp_path: Path, log: Path) -> None:
    """An act of its own, recorded with its reason; a checkpoint of what was given up is answered with that entry."""
    shutil.copy(log, tmp_path / "backup.db")
    await write(log, 6)
    note = (await outside(log))[0]
    shutil.copy(tmp_path / "backup.db", log)
    for leftover in tmp_path.glob("audit.db-*"):
        leftover.unlink()
    async with AuditChain(log) as chain:
        entry = await chain.restore(scope=ACME, reason="the disk died")
        assert entry.seq == 28
        await chain.append("model.called", scope=ACME, detail={})
        kept = [e async for e in chain.entries("acme")]
    assert kept[28].kind == kinds.RESTORED
    assert read_detail(kept[28].open)["reason"] == "the disk died"
    report = aibox.verify(log)
    assert (report.ok, report.restored, report.entries) == (True, 1, 30)
    assert "put back by an operator" in str(report)
    broken(log, "were given up when the log was put back, at entry 28", checkpoints=[note])


async def test_a_restore_does_not_bring_back_who_was_erased(tmp_path: Path, log: Path) -> None:
    """The backup holds the key of a person who was erased since; the restoration destroys it again and records that."""
    shutil.copy(log, tmp_path / "backup.db")
    async with AuditChain(log) as chain:
        await chain.erase(scope=ACME, subject="user1", reason="asked for it")
    for leftover in tmp_path.glob("audit.db-*"):
        leftover.unlink()
    shutil.copy(tmp_path / "backup.db", log)
    with by_hand(log) as db:
        assert db.execute("SELECT count(*) FROM subjects").fetchone() == (3,)
    async with AuditChain(log) as chain:
        await chain.restore(scope=ACME, reason="the disk died")
        assert [e.actor async for e in chain.entries("acme")][2] is None
    assert aibox.verify(log).erased == 12


def test_epochs_end_by_number_and_by_time() -> None:
    """The limits that the page documents."""
    assert (epochs.EPOCH_ENTRIES, epochs.EPOCH_S) == (4096, 60.0)


async def test_the_first_key_is_left_for_an_auditor(tmp_path: Path, short_epochs: None) -> None:
    """With a public key in the folder first keys are sealed to it; its holder checks every tag, nobody else."""
    from aibox.audit.escrow import AUDITOR, new_auditor
    from aibox.errors import ConfigError

    (tmp_path / "keys").mkdir(mode=0o700)
    (tmp_path / "keys" / AUDITOR).write_text(new_auditor(tmp_path / "private"))
    await write(tmp_path / "audit.db")
    report = verify(tmp_path / "audit.db", auditor=tmp_path / "private")
    assert (report.tagged, report.entries) == (report.entries, 26)
    assert verify(tmp_path / "audit.db").tagged < 10
    new_auditor(tmp_path / "other")
    with pytest.raises(ConfigError, match="not sealed to"):
        verify(tmp_path / "audit.db", auditor=tmp_path / "other")
    with pytest.raises(ConfigError, match="there already"):
        new_auditor(tmp_path / "other")
    insider = Insider(tmp_path / "audit.db")
    insider.know(EpochKeys(Keyring(tmp_path / "keys")).known(insider.log))
    insider.relink(lambda rows: rename(rows, 3))
    insider.checkpoints(tmp_path / "keys")
    (tmp_path / "keys" / "highwater.json").unlink()
    assert verify(tmp_path / "audit.db").ok
    assert broken(tmp_path / "audit.db", "its tag does not fit", auditor=tmp_path / "private").problems[0].seq == 3


async def test_a_spot_check_proves_what_it_draws(tmp_path: Path, log: Path) -> None:
    """Entries drawn at random are proved under the last checkpoint, also after a rotation; a changed one is named."""
    async with AuditChain(log) as chain:
        await chain.rotate()
        await chain.append("model.called", scope=ACME, detail={})
    report = verify(log, sample=1000, key=(tmp_path / "keys" / "log.pub").read_text())
    assert (report.sampled, report.entries, report.pinned) == (30, 30, True)
    assert "30 entries drawn from" in str(report)
    with by_hand(log) as db:
        db.execute("UPDATE entries SET open = x'7b7d' WHERE seq = 4")
    assert broken(log, "entry 4: its body is not the one", sample=1000).problems[0].tenant == "acme"
    with by_hand(log) as db:
        db.execute("DELETE FROM entries WHERE seq = 4")
    broken(log, "lost node", sample=1000)


async def test_a_spot_check_finds_what_the_holder_of_all_keys_has_signed(tmp_path: Path, log: Path) -> None:
    """Attack: an entry with another number, another log's, another tenant's body, a flag too many, signed as it is."""

    def number(rows: list[Row]) -> list[Row]:
        return [*rows[:5], _headed(rows[5], seq=6), *rows[6:]]

    def elsewhere(rows: list[Row]) -> list[Row]:
        return [*rows[:5], _headed(rows[5], log_id=bytes(32)), *rows[6:]]

    def tenant(rows: list[Row]) -> list[Row]:
        shown = (rows[5].open or b"").replace(b'"tenant":"acme"', b'"tenant":"them"')
        commit = body_commit(shown, rows[5].sealed or b"")
        return [*rows[:5], _headed(rows[5]._replace(open=shown), body_commit=commit), *rows[6:]]

    def unsealed(rows: list[Row]) -> list[Row]:
        return [*rows[:5], _headed(rows[5], flags=0), *rows[6:]]

    original = list(Insider(log).rows)
    for change, cause in (
        (number, "another entry"),
        (elsewhere, "another entry"),
        (tenant, "tenant"),
        (unsealed, "kind"),
    ):
        insider = Insider(log)
        insider.rows = change(list(original))
        insider.put()
        insider.checkpoints(tmp_path / "keys")
        assert "entry 5" in broken(log, cause, sample=1000).problems[0].cause


def _headed(row: Row, **changed: Any) -> Row:
    return row._replace(header=Header.unpack(row.header)._replace(**changed).pack())


async def test_a_spot_check_misses_no_end(tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attack: the last entry goes, or a checkpoint is filed under another size than it was signed for."""
    monkeypatch.setattr("aibox.audit.spot.secrets.randbelow", lambda size: size - 1)
    with by_hand(log) as db:
        db.execute("DELETE FROM entries WHERE seq = 27")
    broken(log, "entry 27: it is missing", sample=1)
    with by_hand(log) as db:
        db.execute("UPDATE checkpoints SET size = 26 WHERE size = 28")
        db.execute("DELETE FROM checkpoints WHERE size > 26")
    broken(log, "belongs elsewhere", sample=1)
