"""Files that are large, hostile or not what they say, and the cut into passages."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path

import memory_files
import pytest
from hypothesis import given
from hypothesis import strategies as st
from memory_words import WordEmbedder

from aibox.errors import AIBoxError, ConfigError, LimitError, StoreError
from aibox.memory.chunks import MOST_CHARS, chunks
from aibox.memory.extracted import Block, Extracted
from aibox.memory.memory import Memory
from aibox.memory.parsers import parse
from aibox.memory.parsing import extract, kind_of
from aibox.memory.terms import words
from aibox.types import Scope


@pytest.fixture
async def memory(tmp_path: Path) -> AsyncIterator[Memory]:
    async with Memory(tmp_path / "memory", embedder=WordEmbedder()) as memory:
        yield memory


@pytest.mark.anyio
async def test_a_pdf_of_500_pages(memory: Memory, scope: Scope) -> None:
    """A long PDF is read, and a sentence on its page 437 is found with that page."""
    pages = [f"Page about topic {i}" for i in range(500)]
    pages[436] = "The heron nests beside the reservoir"
    [document] = await memory.add(memory_files.pdf(pages), name="long.pdf", scope=scope)
    assert (document.pages, document.passages) == (500, 500)
    [hit, *_] = await memory.recall("Where does the heron nest?", scope=scope)
    assert hit.record.page == 437  # type: ignore[union-attr]  # a passage, or this fails


def bomb() -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("[Content_Types].xml", "<x/>")
        archive.writestr("word/document.xml", b" " * (30 * 1024**2), compresslevel=9)
    return made.getvalue()


LIES = {
    "report.pdf": (b"just words", "its name says pdf"),
    "notes.txt": (memory_files.pdf(["x"]), "its name says text, and it looks like a PDF"),
    "page.html": (b"\x7fELF\x02\x01\x01", "it looks like a program"),
    "table.csv": (b"PK\x03\x04rest", "it looks like a ZIP archive"),
    "letter.docx": (b"<html></html>", "its name says docx"),
    "photo.md": (b"\x89PNG\r\n\x1a\n", "it looks like an image"),
    "data.txt": (b"abc\0def", "zero bytes"),
    "latin.txt": ("Größe".encode("latin-1"), "not text in UTF-8"),
    "secret.pdf": (memory_files.pdf(["x"], password="pw"), "encrypted with a password"),
    "torn.pdf": (memory_files.pdf(["x"])[:200], "damaged PDF"),
    "torn.docx": (memory_files.word([("", "x")])[:300], "damaged"),
    "other.docx": (b"PK\x05\x06" + b"\0" * 18, "damaged DOCX"),
    "empty.pdf": (memory_files.pdf([""]), "holds no text"),
    "empty.html": (b"", "holds no text"),
}


@pytest.mark.anyio
@pytest.mark.parametrize("name", LIES)
async def test_a_file_that_lies_or_is_damaged_is_said(memory: Memory, scope: Scope, name: str) -> None:
    """Each is a ConfigError in one line that names the file and the reason; what was stored stays searchable."""
    await memory.add(b"The heron nests.", name="good.txt", scope=scope)
    data, said = LIES[name]
    with pytest.raises(ConfigError, match=said) as caught:
        await memory.add(data, name=name, scope=scope)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(await memory.recall("heron", scope=scope)) == 1


@pytest.mark.anyio
async def test_a_zip_bomb_is_not_unpacked() -> None:
    """A DOCX of 30 KB that would unpack to 30 MB is refused by its directory."""
    data = bomb()
    assert len(data) < 40_000
    with pytest.raises(ConfigError, match="zip bomb"):
        await extract(data, name="bomb.docx")


@pytest.mark.anyio
async def test_a_log_of_100_mb_is_refused_at_once(memory: Memory, scope: Scope, tmp_path: Path) -> None:
    """A file beyond the limit is a LimitError that says what to do."""
    with (tmp_path / "big.log").open("wb") as file:
        file.truncate(100 * 1024**2)
    with pytest.raises(LimitError, match=r"big.log has 100 MiB, and 32 are read \(split it into parts\)"):
        await memory.add(tmp_path / "big.log", scope=scope)


@pytest.mark.anyio
async def test_a_page_that_takes_all_memory_harms_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A parser that needs more than its bound is ended, and this process is told so."""
    from aibox.memory import parsing

    monkeypatch.setattr(parsing, "PARSE_MIB", 200)
    page = b"<p>" + b"<b>x</b>" * 3_000_000
    with pytest.raises(AIBoxError):
        await extract(page, name="page.html")


@pytest.mark.anyio
async def test_what_nobody_sees_is_not_read() -> None:
    """Hidden elements, comments and scripts of a page, where instructions are smuggled, are not in its text."""
    page = b"""<html><head><title>SMUGGLED</title></head><body><h1>News</h1><!-- SMUGGLED --><p>Rain is coming.</p>
    <div style="display: none">SMUGGLED</div><p hidden>SMUGGLED</p><script>SMUGGLED</script>tail</body></html>"""
    _, extracted = await extract(page, name="page.html")
    assert extracted.text.split() == ["News", "Rain", "is", "coming.", "tail"]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("自動ドアは毎朝七時に開きます。冬は八時です。", "自動ドアはいつ開く"),
        ("החתולה ישנה על הכיסא בחדר הגדול.", "איפה החתולה"),
        ("تنام القطة على الكرسي في الغرفة.", "أين القطة"),
        ("แมวนอนอยู่บนเก้าอี้ในห้องใหญ่", "แมวนอนที่ไหน"),
    ],
)
async def test_scripts_without_spaces_or_from_the_right(memory: Memory, scope: Scope, text: str, question: str) -> None:
    """Japanese, Hebrew, Arabic and Thai are cut, found and given back character by character."""
    filler = ["Something else.", "Noch etwas anderes."]
    await memory.add("\n\n".join([*filler, text]).encode(), name="a.txt", scope=scope)
    [hit, *_] = await memory.recall(question, scope=scope)
    assert text in hit.record.text


def test_long_text_without_a_space_is_cut() -> None:
    """A hundred thousand characters without a space or a full stop are cut into passages all the same."""
    pieces = chunks(parse(("語" * 100_000).encode(), "text"))
    assert "".join(piece.text for piece in pieces) == "語" * 100_000
    assert max(len(piece.text) for piece in pieces) == MOST_CHARS


WORDS = st.text(st.sampled_from("ab。. \n\t#é語-|*>`"), max_size=400)


@given(st.lists(WORDS, max_size=12).map("\n\n".join), st.sampled_from(["text", "markdown", "csv"]))
def test_passages_are_places_in_the_text(text: str, kind: str) -> None:
    """Each passage is the characters that it says, none is too long, none overlap, and nothing of a block is lost."""
    extracted = parse(text.encode(), kind)  # type: ignore[arg-type]  # one of the kinds
    kept = set()
    at = 0
    for piece in chunks(extracted):
        assert piece.text == extracted.text[piece.start : piece.end]
        assert 0 < len(piece.text) <= MOST_CHARS
        assert piece.start >= at
        at = piece.end
        kept |= set(range(piece.start, piece.end))
    for block in extracted.blocks:
        missing = [i for i in range(block.start, block.end) if i not in kept and not extracted.text[i].isspace()]
        assert not missing


def test_headings_make_a_path() -> None:
    """A passage knows the headings above it; a sibling takes a heading's place, and a page ends a passage."""
    text = "A B one two C three four"
    places = {"A": 1, "B": 2, "C": 2}
    blocks = []
    for word in text.split():
        start = text.index(word)
        page = 2 if word == "four" else 1
        blocks.append(Block(start, start + len(word), places.get(word, 0), page))
    made = [(piece.text, piece.heading, piece.page) for piece in chunks(Extracted(text, tuple(blocks)))]
    assert made == [("A B one two", "A > B", 1), ("C three", "A > C", 1), ("four", "A > C", 2)]


def test_a_kind_is_known_by_its_name_or_its_bytes() -> None:
    """Without an ending the first bytes decide."""
    assert kind_of(b"%PDF-1.7", "file") == "pdf"
    assert kind_of(b"  <!DOCTYPE html>", "file") == "html"
    assert kind_of(b"words", "file") == "text"


def test_words_are_stems() -> None:
    """Cases, accents, plurals and the little words make no difference."""
    assert words("The Éléphants were WALKING") == words("an elephant walked")
    assert words("PROJ-123") == ["proj", "123"]
    assert words("東京都") == ["東京", "京都"]


@pytest.mark.anyio
@pytest.mark.skipif(os.name == "nt", reason="fills a small disk by SQLite's own bound, which is the same everywhere")
async def test_a_full_disk_keeps_what_was_stored(memory: Memory, scope: Scope) -> None:
    """When the file cannot grow, adding is a StoreError that says so, no half document stays, and the rest is found."""
    await memory.add(b"The heron nests.", name="good.txt", scope=scope)
    assert memory._documents is not None
    rows = memory._documents._rows()
    await memory._documents._worker.do(lambda: rows._db.execute("PRAGMA max_page_count = 30").fetchall())
    large = "\n\n".join(f"Paragraph {i} about nothing. " * 10 for i in range(500))
    with pytest.raises(StoreError, match="the disk is full"):
        await memory.add(large.encode(), name="large.txt", scope=scope)
    assert [document.name for document in await memory.documents(scope=scope)] == ["good.txt"]
    assert len(await memory.recall("heron", scope=scope)) == 1
