"""What every audit Store must do, as tests: subclass, override `url` with a fresh store's URL, and run pytest."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from aibox.audit import orphans
from aibox.audit.chain import AuditChain
from aibox.audit.record import Row, log_id
from aibox.audit.store import Act, Conflict, LogName, Node, Store, open_store
from aibox.audit.verify import verify
from aibox.errors import StoreError
from aibox.types import Scope

ACME = Scope(tenant="acme", user="eva")


def _name(tenant: str) -> LogName:
    return LogName(log_id(tenant), tenant, tenant, "key")


def _row(seq: int, *, filler: bytes = b"x") -> Row:
    return Row(seq, filler * 122, b"open" + filler, b"sealed" + filler, filler * 32)


class AuditStoreContract:
    """Override `url`: an empty store that this process may write."""

    @pytest.fixture
    def url(self) -> str:
        raise NotImplementedError("return the URL of an empty store")

    @pytest.fixture
    def store(self, url: str) -> Iterator[Store]:
        store = open_store(url)
        with store.transaction():
            store.add_log(_name("acme"))
            store.add_log(_name("rival"))
        yield store
        store.close()

    def test_rows_come_back_in_order_and_unchanged(self, store: Store) -> None:
        """Entries are read by seq, from any start and to any limit, byte for byte."""
        log, rows = log_id("acme"), [_row(n, filler=bytes([n])) for n in range(30)]
        with store.transaction():
            store.add_entries(log, 0, rows)
        assert list(store.entries(log)) == rows
        assert list(store.entries(log, start=7, limit=5)) == rows[7:12]
        assert list(store.entries(log, start=28, limit=5)) == rows[28:]
        assert list(store.entries(log_id("rival"))) == []
        assert store.head(log) == rows[-1]
        assert store.head(log_id("rival")) is None
        with store.transaction():
            assert store.size(log) == 30

    def test_no_start_and_no_limit_leads_into_another_log(self, store: Store) -> None:
        """Whatever is asked of a log, its own entries come: from below the first all of them, from far behind none."""
        logs = {log_id("acme"): [_row(0, filler=b"a"), _row(1, filler=b"b")], log_id("rival"): [_row(0, filler=b"r")]}
        for log, rows in logs.items():
            with store.transaction():
                store.add_entries(log, 0, rows)
        for log, rows in logs.items():
            for start in (-1, -(2**40), -(2**40) - 1, -(2**41), -(2**62)):
                assert list(store.entries(log, start=start)) == rows
                assert list(store.entries(log, start=start, limit=1)) == rows[:1]
                assert list(store.entries(log, start=start, kind="x")) == []
            for start in (2, 2**40 - 1, 2**40, 2**40 + 1, 2**41, 2**62):
                assert list(store.entries(log, start=start)) == []
            assert store.head(log) == rows[-1]

    def test_rows_of_a_kind_are_found_by_the_beginning_of_their_open_part(self, store: Store) -> None:
        """Of all kinds that begin so, from any start and to any limit; a name that is longer or higher is another."""
        log = log_id("acme")
        kinds = ["egress.allowed", "egress", "egressor.made", "egress.denied", "tool.called", "egress/x", "egress.zz"]
        shown = [b'{"action":"%s","v":1}' % kind.encode() for kind in kinds]
        rows = [_row(n)._replace(open=data) for n, data in enumerate(shown)]
        with store.transaction():
            store.add_entries(log, 0, rows)
        assert [row.seq for row in store.entries(log, kind="egress.")] == [0, 3, 6]
        assert list(store.entries(log, kind="egress.", start=1, limit=1)) == [rows[3]]
        assert list(store.entries(log_id("rival"), kind="egress.")) == []

    def test_an_entry_goes_only_behind_the_last_one(self, store: Store) -> None:
        """Who has read an older head writes nothing, and is told so: there is no fork."""
        log = log_id("acme")
        with store.transaction():
            store.add_entries(log, 0, [_row(0), _row(1)])
        for size, seq in ((0, 0), (1, 1), (3, 3)):
            with pytest.raises(Conflict), store.transaction():
                store.add_entries(log, size, [_row(seq, filler=b"y")])
        assert list(store.entries(log)) == [_row(0), _row(1)]

    def test_a_writer_that_was_overtaken_writes_nothing(self, store: Store, url: str) -> None:
        """What it wrote a moment ago is not the end of the log any more, and it is told so, asking or not."""
        log, other = log_id("acme"), open_store(url)
        for asks in (True, False):
            size = len(list(store.entries(log)))
            with store.transaction():
                store.changed()
                store.add_entries(log, size, [_row(size)])
            with other.transaction():
                other.changed()
                other.add_entries(log, size + 1, [_row(size + 1, filler=b"o")])
            with pytest.raises(Conflict), store.transaction():
                if asks:
                    assert store.changed()
                store.add_entries(log, size + 1, [_row(size + 1, filler=b"y")])
        other.close()
        fillers = [row.header[:1] for row in store.entries(log)]
        assert fillers == [b"x", b"o"] * 2

    def test_a_turn_ends_once(self, store: Store) -> None:
        """A second end of a turn is a conflict, and leaves nothing of what came with it."""
        log = log_id("acme")
        with store.transaction():
            store.add_turns(log, [("t", 0)])
        with pytest.raises(Conflict), store.transaction():
            store.add_entries(log, 0, [_row(0)])
            store.add_turns(log, [("u", 1), ("t", 2)])
        assert (store.turns(log), list(store.entries(log))) == ({"t": 0}, [])

    def test_a_transaction_that_fails_leaves_nothing(self, store: Store) -> None:
        """All of it or none of it: entries, nodes, turns and checkpoints alike."""
        log = log_id("acme")
        with pytest.raises(ZeroDivisionError), store.transaction():
            store.add_entries(log, 0, [_row(0)])
            store.add_nodes(log, [Node(4, 0, b"h" * 32)])
            store.add_turns(log, [("t", 0)])
            store.add_checkpoint(log, 1, "note")
            raise ZeroDivisionError
        assert not [*store.entries(log), *store.all_nodes(log), *store.checkpoints(log)]
        assert store.turns(log) == {}

    def test_what_is_derived_comes_back(self, store: Store) -> None:
        """Nodes, checkpoints, turns, acts and meta values are what was put in; what stands stays."""
        log = log_id("acme")
        nodes = [Node(4, n, bytes([n]) * 32) for n in range(5)]
        with store.transaction():
            store.add_nodes(log, nodes)
            store.add_checkpoint(log, 3, "three")
            store.add_checkpoint(log, 3, "another")
            store.add_checkpoint(log, 9, "nine")
            store.add_turns(log, [("a", 2), ("b", 8)])
            store.add_acts(log, [Act(4, "hold.set"), Act(5, "bodies.pruned", 0, 3)])
            store.set_meta("m", "1")
            store.set_meta("m", "2")
        assert sorted(store.all_nodes(log)) == nodes
        assert store.nodes(log, 4, 1, 3) == [node.hash for node in nodes[1:4]]
        assert store.checkpoints(log) == [(3, "three"), (9, "nine")]
        assert store.checkpoint_from(log, 4) == (9, "nine")
        assert store.checkpoint_from(log, 10) is None
        assert (store.turn(log, "b"), store.turn(log, "c"), store.turns(log)) == (8, None, {"a": 2, "b": 8})
        assert store.acts(log) == [Act(4, "hold.set"), Act(5, "bodies.pruned", 0, 3)]
        assert (store.meta("m"), store.meta("n")) == ("1", None)
        assert [name.tenant for name in store.logs()] == ["acme", "rival"]
        assert store.log_named(log_id("nobody")) is None

    def test_bodies_go_only_where_an_act_says_so(self, store: Store) -> None:
        """Pruning removes the bodies that an act of pruning speaks of, and is refused for any other."""
        log = log_id("acme")
        with store.transaction():
            store.add_entries(log, 0, [_row(n) for n in range(6)])
        with pytest.raises(StoreError, match="never changed"), store.transaction():
            store.prune(log, [0])
        with store.transaction():
            store.add_acts(log, [Act(6, "bodies.pruned", 1, 3)])
            store.prune(log, [1, 3])
        gone = [row.seq for row in store.entries(log) if row.open is None and row.sealed is None]
        assert gone == [1, 3]
        with pytest.raises(StoreError, match="never changed"), store.transaction():
            store.prune(log, [4])

    def test_a_persons_key_can_be_destroyed(self, store: Store) -> None:
        """It is found by name and by id until it is dropped, and then by neither."""
        log = log_id("acme")
        with store.transaction():
            store.add_subject(log, b"who", b"i" * 16, b"wrapped")
        assert store.subject(log, b"who") == (b"i" * 16, b"wrapped")
        assert store.subject_key(log, b"i" * 16) == b"wrapped"
        with store.transaction():
            store.drop_subject(log, b"i" * 16)
        store.scrub()
        assert store.subject(log, b"who") is None
        assert store.subject_key(log, b"i" * 16) is None

    @pytest.mark.anyio
    async def test_two_chains_write_one_history(self, url: str, tmp_path: Path) -> None:
        """Two writers on one store: each acknowledged entry has a place of its own, none is missing, all verifies."""
        keys = tmp_path / "keys"
        async with AuditChain(url, keys=keys) as one, AuditChain(url, keys=keys) as two:

            async def work(chain: AuditChain, n: int) -> list[int]:
                done = []
                for _ in range(10):
                    done.append((await chain.append("tool.called", scope=ACME, detail={"n": n})).seq)
                    await asyncio.sleep(0)
                return done

            done = await asyncio.gather(*(work(chain, n) for n in range(8) for chain in (one, two)))
            assert sorted(seq for seqs in done for seq in seqs) == list(range(160))
            assert (await one.verify()).entries == 160

    @pytest.mark.anyio
    async def test_what_goes_on_in_another_process_is_not_ended(
        self, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A server that starts finds the turns of another without an end: how long they are silent counts anew."""
        monkeypatch.setattr(orphans, "TURN_S", 3.0)
        async with AuditChain(url, keys=tmp_path / "keys") as working:
            await working.append("tool.called", scope=ACME, turn="turn", detail={})
            async with AuditChain(url, keys=tmp_path / "keys") as started:
                for _ in range(6):
                    await asyncio.sleep(1)
                    await working.append("tool.called", scope=ACME, turn="turn", detail={})
                assert await started.size("acme") == 7
            receipt = await working.seal("turn", scope=ACME, detail={})
        receipt.verify()
        assert [entry.kind for entry in receipt.entries] == ["tool.called"] * 7 + ["turn.sealed"]

    @pytest.mark.anyio
    async def test_what_two_chains_find_without_an_end_is_ended_once(
        self, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An administrator's act and a turn of who is gone: both chains find them, and each gets one end of its kind.

        What is not silent for long enough may be somebody's work.
        """
        async with AuditChain(url, keys=tmp_path / "keys") as gone:
            await gone.append("request.begun", scope=ACME, turn="act", detail={"operation": "keys.create"})
            await gone.append("tool.called", scope=ACME, turn="turn", detail={})
        async with AuditChain(url, keys=tmp_path / "keys") as one, AuditChain(url, keys=tmp_path / "keys") as other:
            await asyncio.gather(one.flush(), other.flush())
            await asyncio.sleep(1.5)
            assert await one.size("acme") == 2
            monkeypatch.setattr(orphans, "TURN_S", 0.0)
            async with asyncio.timeout(60):
                while await other.size("acme") < 4:  # noqa: ASYNC110 - the writers' threads look when a second was quiet
                    await asyncio.sleep(1.5)
            await asyncio.sleep(1.5)
            ended = [(entry.kind, entry.turn) async for entry in one.entries("acme", start=2)]
            act = await one.receipt("act", scope=ACME)
        assert sorted(ended) == [("request.ended", "act"), ("turn.failed", "turn")]
        act.verify()
        told = {name: act.entries[-1].detail[name] for name in ("operation", "outcome")}
        assert told == {"operation": "keys.create", "outcome": "audit.turn_timeout"}

    @pytest.mark.anyio
    async def test_a_log_goes_on_after_it_was_closed(self, url: str, tmp_path: Path) -> None:
        """Turns sealed before and after a restart are one log that verifies, and old receipts can still be had."""
        keys = tmp_path / "keys"
        for turn in ("one", "two", "three"):
            async with AuditChain(url, keys=keys) as chain:
                chain.note("model.called", scope=ACME, turn=turn, detail={"model": os.urandom(4).hex()})
                (await chain.seal(turn, scope=ACME, detail={"outcome": "completed"})).verify()
        async with AuditChain(url, keys=keys) as chain:
            receipt = await chain.receipt("one", scope=ACME)
            receipt.verify((keys / "log.pub").read_text())
            assert receipt.entries[0].actor == {"user": "eva", "agent": "", "session": ""}
            report = await chain.verify()
            assert (report.entries, report.unanchored) == (6, 0)

    @pytest.mark.anyio
    async def test_keys_are_rotated_and_people_erased(self, url: str, tmp_path: Path) -> None:
        """A rotation, an erasure, a hold and a pruning in one log leave evidence that verifies and says so."""
        keys = tmp_path / "keys"
        async with AuditChain(url, keys=keys) as chain:
            await chain.append("tool.called", scope=ACME, detail={})
            await chain.rotate()
            await chain.append("tool.called", scope=Scope(tenant="acme", user="tom"), detail={})
            await chain.hold(scope=ACME, subject="tom", reason="a dispute")
            (await chain.erase(scope=ACME, subject="eva", reason="asked for it")).verify()
            assert await chain.prune(scope=ACME, before_us=2**62, reason="seven years") == 1
        report = verify(url, keys=chain.keys)
        assert (report.erased, report.pruned, report.ok) == (0, 1, True)
