"""What every MemoryStore must do, as tests. Subclass, return a fresh, empty one from `store`, and run pytest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from aibox.memory.record import Record, RecordType, new_id, now_us
from aibox.memory.store import MemoryStore
from aibox.types import Label, Scope

DIMENSIONS = 4
EVA = Scope(tenant="acme", user="eva", agent="books", session="s1")
TOM = Scope(tenant="acme", user="tom")
RIVAL = Scope(tenant="rival", user="eva", agent="books", session="s1")

ODD_NAMES = (
    "*",
    "%",
    "_",
    "'; DROP TABLE records; --",
    '{"must":[]}',
    '["',
    "$ne",
    "../../acme",
    "eva'",
    "EVA",
    "null",
)


def make(text: str, scope: Scope = EVA, **fields: object) -> Record:
    """A record of the scope; `fields` replace the defaults."""
    created_us = now_us()
    record = Record(
        id=new_id(created_us),
        type="user",
        text=text,
        tenant=scope.tenant,
        user=scope.user,
        agent=scope.agent,
        session=scope.session,
        created_us=created_us,
    )
    return replace(record, **fields)  # type: ignore[arg-type]  # the tests pass what the record takes


def vector(*numbers: float) -> Sequence[float]:
    """These numbers and zeros up to the store's four dimensions."""
    return [*numbers, *[0.0] * (DIMENSIONS - len(numbers))]


class MemoryStoreContract:
    """Override `store`: an empty store for an embedder of four dimensions, closed after the test."""

    @pytest.fixture
    def store(self) -> MemoryStore:
        raise NotImplementedError("return the store to test")

    @pytest.mark.anyio
    async def test_best_first_and_no_more_than_asked(self, store: MemoryStore) -> None:
        """A search returns the nearest records, best first, at most `limit`, with cosines within 0..1."""
        far = await store.add(make("far"), vector(-1, 0.1))
        near = await store.add(make("near"), vector(1, 0.1))
        nearest = await store.add(make("nearest"), vector(1))
        hits = await store.search(vector(1), scope=EVA, limit=2)
        assert [hit.record for hit in hits] == [nearest, near]
        assert hits[0].score == pytest.approx(1.0)
        every = await store.search(vector(1), scope=EVA, limit=10, minimum=-1.0)
        assert [hit.record for hit in every] == [nearest, near, far]
        assert every[-1].score == 0.0

    @pytest.mark.anyio
    async def test_nothing_below_the_minimum(self, store: MemoryStore) -> None:
        """Records below `minimum` are not returned, also when fewer than `limit` remain."""
        await store.add(make("near"), vector(1, 0.1))
        await store.add(make("far"), vector(0, 1))
        assert [hit.record.text for hit in await store.search(vector(1), scope=EVA, limit=9, minimum=0.5)] == ["near"]

    @pytest.mark.anyio
    async def test_types_restrict(self, store: MemoryStore) -> None:
        """A search or a listing of some types returns no other; an empty list of types returns nothing."""
        kinds: tuple[RecordType, ...] = ("user", "feedback", "project", "reference")
        for kind in kinds:
            await store.add(make(kind, type=kind), vector(1))
        hits = await store.search(vector(1), scope=EVA, limit=9, types=["project", "feedback"])
        assert {hit.record.text for hit in hits} == {"project", "feedback"}
        assert [record.text for record in await store.all(scope=EVA, types=["reference"])] == ["reference"]
        assert await store.search(vector(1), scope=EVA, limit=9, types=[]) == []

    @pytest.mark.anyio
    async def test_nothing_is_changed_on_the_way(self, store: MemoryStore) -> None:
        """Every field of a record comes back as it was given."""
        record = make(
            "héllo 'world' \u2028 {}",
            type="project",
            label=Label.parse("restricted/PHI,MNPI"),
            source="turn-1",
            confidence=0.25,
            valid_from_us=1,
            valid_until_us=now_us() + 10**12,
        )
        assert await store.add(record, vector(1)) == record
        assert await store.get(record.id, scope=EVA) == record
        assert await store.find(record.text, type="project", scope=EVA) == record
        assert await store.find(record.text, type="user", scope=EVA) is None
        assert await store.all(scope=EVA) == [record]
        assert [hit.record for hit in await store.search(vector(1), scope=EVA, limit=1)] == [record]

    @pytest.mark.anyio
    async def test_a_ceiling_holds(self, store: MemoryStore) -> None:
        """Under a ceiling nothing is found that it may not hold, by level or by compartment."""
        for label in ("public", "confidential", "internal/PHI"):
            await store.add(make(label, label=Label.parse(label)), vector(1))
        for ceiling, seen in (
            ("public", {"public"}),
            ("internal", {"public"}),
            ("internal/PHI", {"public", "internal/PHI"}),
            ("restricted", {"public", "confidential"}),
        ):
            hits = await store.search(vector(1), scope=EVA, limit=9, ceiling=Label.parse(ceiling))
            assert {hit.record.text for hit in hits} == seen

    @pytest.mark.anyio
    async def test_within_an_agent_or_a_session(self, store: MemoryStore) -> None:
        """A search finds the user's whole memory, or only what was told to this agent, or in this session of it."""
        await store.add(make("here"), vector(1))
        await store.add(make("agent", EVA.narrow(session="s2")), vector(1))
        await store.add(make("user", EVA.narrow(agent="other")), vector(1))
        for within, seen in (("user", 3), ("agent", 2), ("session", 1)):
            hits = await store.search(vector(1), scope=EVA, limit=9, within=within)  # type: ignore[arg-type]
            assert len(hits) == seen

    @pytest.mark.anyio
    async def test_only_what_is_valid_is_found(self, store: MemoryStore) -> None:
        """What is not valid yet or any more is not found by a search; it is listed and can be got."""
        now = now_us()
        for text, since, until in (
            ("now", 0, 0),
            ("also now", now - 9, now + 10**12),
            ("not yet", now + 10**12, 0),
            ("no more", 0, now - 9),
        ):
            await store.add(make(text, valid_from_us=since, valid_until_us=until), vector(1))
        hits = await store.search(vector(1), scope=EVA, limit=9)
        assert {hit.record.text for hit in hits} == {"now", "also now"}
        assert len(await store.all(scope=EVA)) == 4

    @pytest.mark.anyio
    async def test_a_duplicate_is_met_again(self, store: MemoryStore) -> None:
        """The same type and text is kept once, with the join of the labels and the higher confidence."""
        first = await store.add(make("fact", label=Label.parse("internal/PHI"), confidence=0.5), vector(1))
        again = await store.add(make("fact", label=Label.parse("confidential"), confidence=0.4), vector(1))
        assert again == replace(first, label=Label.parse("confidential/PHI"))
        assert await store.all(scope=EVA) == [again]
        await store.add(make("fact", type="project"), vector(1))
        await store.add(make("fact", TOM), vector(1))
        assert len(await store.all(scope=EVA)) == 2

    @pytest.mark.anyio
    async def test_the_newer_replaces_the_older(self, store: MemoryStore) -> None:
        """A superseded record is neither found nor listed, can be got by id, and goes when its successor goes."""
        old = await store.add(make("Eva"), vector(1))
        new = await store.add(make("Eve", supersedes=old.id), vector(1))
        assert new.supersedes == old.id
        assert [hit.record.id for hit in await store.search(vector(1), scope=EVA, limit=9)] == [new.id]
        assert [record.id for record in await store.all(scope=EVA)] == [new.id]
        assert await store.get(old.id, scope=EVA) == old
        assert await store.remove([new.id], scope=EVA) == 2
        assert await store.get(old.id, scope=EVA) is None

    @pytest.mark.anyio
    async def test_only_ones_own_can_be_superseded(self, store: MemoryStore) -> None:
        """A record cannot supersede another user's or tenant's, and says that it superseded nothing."""
        theirs = await store.add(make("theirs", TOM), vector(1))
        rivals = await store.add(make("rivals", RIVAL), vector(1))
        for victim in (theirs, rivals):
            mine = await store.add(make(f"mine {victim.text}", supersedes=victim.id), vector(1))
            assert mine.supersedes == ""
        assert await store.all(scope=TOM) == [theirs]
        assert await store.all(scope=RIVAL) == [rivals]

    @pytest.mark.anyio
    async def test_nobody_sees_anothers(self, store: MemoryStore) -> None:
        """The same user name in another tenant, and another user of the tenant, find, list and get nothing."""
        kept = await store.add(make("secret"), vector(1))
        for scope in (TOM, RIVAL, *(replace(EVA, user=name.replace(" ", "_")) for name in ODD_NAMES)):
            assert await store.search(vector(1), scope=scope, limit=9, minimum=-1.0) == []
            assert await store.all(scope=scope) == []
            assert await store.get(kept.id, scope=scope) is None
            assert await store.find("secret", type="user", scope=scope) is None
            assert await store.foreign(scope=scope, limit=9) == []

    @pytest.mark.anyio
    async def test_nobody_removes_or_moves_anothers(self, store: MemoryStore) -> None:
        """Removing by another's id, all of another tenant's user of the same name, or new vectors, touch nothing."""
        kept = await store.add(make("secret"), vector(1))
        for scope in (TOM, RIVAL):
            assert await store.remove([kept.id], scope=scope) == 0
            await store.revector({kept.id: vector(0, 1)}, scope=scope)
        assert await store.remove_all(tenant="rival", user="eva") == 0
        assert await store.remove_all(tenant="rival", user=None) == 0
        assert await store.remove_all(tenant="acme", user="tom") == 0
        [hit] = await store.search(vector(1), scope=EVA, limit=9)
        assert hit.record == kept
        assert hit.score == pytest.approx(1.0)

    @pytest.mark.anyio
    @pytest.mark.parametrize("name", ODD_NAMES)
    async def test_odd_ids_and_texts_are_only_names(self, store: MemoryStore, name: str) -> None:
        """Text that means something to a query language, as an id, a text or a user, matches itself alone."""
        kept = await store.add(make("kept"), vector(1))
        assert await store.get(name, scope=EVA) is None
        assert await store.remove([name], scope=EVA) == 0
        odd = replace(EVA, user=name.replace(" ", "_"))
        await store.add(make(name, odd), vector(1))
        assert [record.text for record in await store.all(scope=odd)] == [name]
        assert await store.remove_all(tenant="acme", user=odd.user) == 1
        assert await store.all(scope=EVA) == [kept]

    @pytest.mark.anyio
    async def test_what_is_removed_is_gone(self, store: MemoryStore) -> None:
        """Removed records are not found, listed or got, the others stay, and the count is true."""
        kept = await store.add(make("kept"), vector(1, 0.1))
        gone = [await store.add(make(f"gone {i}"), vector(1, i)) for i in range(3)]
        assert [hit.record.text for hit in await store.search(vector(1), scope=EVA, limit=1)] == ["gone 0"]
        assert await store.remove([record.id for record in gone] + [gone[0].id, "unknown"], scope=EVA) == 3
        assert [hit.record for hit in await store.search(vector(1), scope=EVA, limit=9)] == [kept]
        assert await store.all(scope=EVA) == [kept]
        assert await store.get(gone[0].id, scope=EVA) is None
        assert await store.remove([gone[0].id], scope=EVA) == 0

    @pytest.mark.anyio
    async def test_a_user_and_a_tenant_can_be_erased(self, store: MemoryStore) -> None:
        """Removing a user leaves the tenant's others; removing a tenant leaves other tenants; both can start anew."""
        for scope in (EVA, TOM, RIVAL):
            await store.add(make("fact", scope), vector(1))
            await store.search(vector(1), scope=scope, limit=1)
        assert await store.remove_all(tenant="acme", user="eva") == 1
        assert await store.search(vector(1), scope=EVA, limit=1) == []
        assert len(await store.search(vector(1), scope=TOM, limit=1)) == 1
        assert await store.remove_all(tenant="acme", user=None) == 1
        assert await store.search(vector(1), scope=TOM, limit=1) == []
        assert len(await store.search(vector(1), scope=RIVAL, limit=1)) == 1
        await store.add(make("fact", TOM), vector(1))
        assert len(await store.search(vector(1), scope=TOM, limit=1)) == 1

    @pytest.mark.anyio
    async def test_its_own_vectors_are_not_foreign(self, store: MemoryStore) -> None:
        """Records that this store was given have its embedder's vectors; a new vector replaces the old one."""
        record = await store.add(make("fact"), vector(1))
        assert await store.foreign(scope=EVA, limit=9) == []
        assert (await store.search(vector(0, 1), scope=EVA, limit=1))[0].score == pytest.approx(0.0)
        await store.revector({record.id: vector(0, 1)}, scope=EVA)
        assert (await store.search(vector(0, 1), scope=EVA, limit=1))[0].score == pytest.approx(1.0)

    @pytest.mark.anyio
    async def test_it_says_how_it_is(self, store: MemoryStore) -> None:
        """A working store is healthy, and closing it twice is allowed."""
        assert (await store.health()).ok
        await store.close()
        await store.close()
