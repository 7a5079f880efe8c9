"""Files into text and blocks: each format by a well-kept parser. Nothing here is trusted to end or to stay small.

`extract` in `parsing` runs this in a process of its own, with bounds. Raises UnreadableError for what cannot be read.
"""

from __future__ import annotations

import csv
import io
import re
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

from aibox.memory.extracted import Block, Extracted, Kind, Text

MAX_TEXT_CHARS = 8_000_000
MAX_UNZIPPED_BYTES = 256 * 1024 * 1024
MAX_ZIP_RATIO = 200
"""Of a whole DOCX; honest ones stay below 20."""

_HIDDEN = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.IGNORECASE)
_HTML_HEADINGS = {f"h{n}": n for n in range(1, 7)}
_HTML_BLOCKS = frozenset({"p", "li", "pre", "blockquote", "tr", "dt", "dd", "figcaption", "caption", "td", "th", "div"})
_HTML_SKIPPED = frozenset({"script", "style", "template", "noscript", "head", "svg", "iframe", "object"})
_STYLE_LEVEL = re.compile(r"heading ([1-6])$", re.IGNORECASE)


class UnreadableError(Exception):
    """Why a file cannot be read, in a sentence for the person who gave it."""


def parse(data: bytes, kind: Kind) -> Extracted:
    """The text of a file of this kind. Raises UnreadableError."""
    extracted = _PARSERS[kind](data)
    if len(extracted.text) > MAX_TEXT_CHARS:
        raise UnreadableError(f"it holds more than {MAX_TEXT_CHARS:,} characters of text")
    return extracted


def decode(data: bytes) -> str:
    """Text in UTF-8, or UTF-16 with its mark; raises UnreadableError for anything else."""
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise UnreadableError(f"it is not text in UTF-8: byte {error.start} is not") from None
    if "\0" in text:
        raise UnreadableError("it is not text: it holds zero bytes")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _text(data: bytes) -> Extracted:
    text = decode(data)
    found = re.finditer(r"\S(?:.*\S)?(?:\n[^\S\n]*\S.*)*", text)
    return Extracted(text, tuple(Block(m.start(), m.start() + len(m[0].rstrip())) for m in found))


def _markdown(data: bytes) -> Extracted:
    from markdown_it import MarkdownIt

    text = decode(data)
    # Offsets of the lines: the parser tells lines, and a citation wants characters of the file itself.
    starts = [0, *(m.end() for m in re.finditer("\n", text)), len(text)]
    blocks: list[Block] = []
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        if token.level or token.map is None or token.type.endswith("_close"):
            continue
        start, end = starts[token.map[0]], starts[min(token.map[1], len(starts) - 1)]
        body = text[start:end]
        start += len(body) - len(body.lstrip())
        level = int(token.tag[1]) if token.type == "heading_open" else 0
        if body.strip():
            blocks.append(Block(start, start + len(body.strip()), level))
    return Extracted(text, tuple(blocks))


def _csv(data: bytes) -> Extracted:
    source = decode(data)
    try:
        dialect: Any = csv.Sniffer().sniff(source[:16_384], delimiters=",;\t|")
    except csv.Error:
        dialect = csv.excel
    text = Text()
    try:
        rows = csv.reader(io.StringIO(source), dialect)
        header = next(rows, [])
        for row in rows:
            cells = [
                f"{header[i].strip()}: {cell.strip()}" if i < len(header) and header[i].strip() else cell.strip()
                for i, cell in enumerate(row)
                if cell.strip()
            ]
            text.add("; ".join(cells))
    except csv.Error as error:
        raise UnreadableError(f"it is not a table: {error}") from None
    return text.done()


def _html(data: bytes) -> Extracted:
    from lxml import etree, html

    if not data.strip():
        return Extracted("", ())
    parser = html.HTMLParser(remove_comments=True, remove_pis=True, huge_tree=False, no_network=True)
    try:
        root = html.document_fromstring(data, parser=parser)
    except (etree.ParserError, etree.XMLSyntaxError, ValueError) as error:
        raise UnreadableError(f"it is not HTML: {error}") from None
    text = Text()
    pending: list[str] = []

    def flush(level: int = 0) -> None:
        text.add(" ".join("".join(pending).split()), level=level)
        pending.clear()

    # Iterative: a page of ten thousand nested elements is no reason to run out of stack.
    todo: list[tuple[Any, bool]] = [(root, False)]
    while todo:
        element, done = todo.pop()
        tag = element.tag if isinstance(element.tag, str) else ""
        level = _HTML_HEADINGS.get(tag, 0)
        if done:
            if level or tag in _HTML_BLOCKS:
                flush(level)
            pending.append(element.tail or "")
            continue
        if tag in _HTML_SKIPPED or "hidden" in element.attrib or _HIDDEN.search(element.get("style", "")):
            # What a person does not see is not what the document says, and is where instructions are smuggled.
            pending.append(element.tail or "")
            continue
        if level or tag in _HTML_BLOCKS:
            flush()
        pending.append(" " if tag == "br" else element.text or "")
        todo.append((element, True))
        todo += [(child, False) for child in reversed(element)]
    flush()
    return text.done()


def _pdf(data: bytes) -> Extracted:
    from pypdf import PdfReader
    from pypdf.errors import PyPdfError

    try:
        reader = PdfReader(io.BytesIO(data))
        locked = reader.is_encrypted and not reader.decrypt("")
        extracted = None if locked else _pages(reader)
    except (PyPdfError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        # pypdf meets damage in places of its own choosing.
        raise UnreadableError(f"it is a damaged PDF: {error or type(error).__name__}") from None
    if extracted is None:
        raise UnreadableError("it is encrypted with a password: save it without one")
    return extracted


def _pages(reader: Any) -> Extracted:
    titles = _titles(reader)
    text = Text()
    for number, page in enumerate(reader.pages, 1):
        for level, title in titles.get(number, ()):
            text.add(title, level=level, page=number)
        for paragraph in re.split(r"\n\s*\n", page.extract_text()):
            text.add(paragraph, page=number)
    return text.done(pages=len(reader.pages))


def _titles(reader: Any) -> dict[int, list[tuple[int, str]]]:
    """The entries of the outline by the page that they lead to: level and title."""
    found: dict[int, list[tuple[int, str]]] = {}

    def walk(entries: Any, level: int) -> Iterator[tuple[int, str, Any]]:
        for entry in entries:
            if isinstance(entry, list):
                yield from walk(entry, level + 1)
            else:
                yield level, str(entry.title), entry

    for level, title, entry in walk(reader.outline, 1):
        page = reader.get_destination_page_number(entry)
        if page is not None and page >= 0:
            found.setdefault(page + 1, []).append((min(level, 6), title))
    return found


def _docx(data: bytes) -> Extracted:
    check_zip(data)
    import docx
    from docx.opc.exceptions import OpcError
    from docx.table import Table
    from lxml import etree

    try:
        document = docx.Document(io.BytesIO(data))
        text = Text()
        for item in document.iter_inner_content():
            if isinstance(item, Table):
                for row in item.rows:
                    # A merged cell is given once for each column that it spans.
                    text.add(" | ".join(dict.fromkeys(cell.text.strip() for cell in row.cells if cell.text.strip())))
            else:
                style = item.style.name if item.style is not None else ""
                match = _STYLE_LEVEL.match(style or "")
                text.add(item.text, level=int(match[1]) if match else 1 if style == "Title" else 0)
        return text.done()
    except (OpcError, KeyError, ValueError, zipfile.BadZipFile, etree.XMLSyntaxError) as error:
        raise UnreadableError(f"it is a damaged DOCX: {error}") from None


def check_zip(data: bytes) -> None:
    """Raises UnreadableError for an archive that would grow beyond bounds, before anything of it is unpacked."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        raise UnreadableError(f"it is a damaged archive: {error}") from None
    # Python's zipfile reads no entry beyond the size that the directory declares, so the declared sizes bound it.
    size = sum(entry.file_size for entry in entries)
    if size > MAX_UNZIPPED_BYTES or size > MAX_ZIP_RATIO * max(len(data), 4096):
        raise UnreadableError(f"it would unpack to {size / 1024**2:,.0f} MiB: a zip bomb")


_PARSERS: dict[Kind, Callable[[bytes], Extracted]] = {
    "text": _text,
    "markdown": _markdown,
    "html": _html,
    "csv": _csv,
    "pdf": _pdf,
    "docx": _docx,
}
