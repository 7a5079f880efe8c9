"""Which kind of file it is, and its text, read where a hostile file can do no harm: in a child process with bounds.

The child has no connection, little memory and little time. Small texts, tables and Markdown are read in this process.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import PurePath

from aibox.errors import ConfigError, LimitError, MissingExtraError, StoreError
from aibox.memory.extracted import Block, Extracted, Kind
from aibox.memory.parsers import UnreadableError, decode, parse

MAX_FILE_MIB = 32
PARSE_S = 120
PARSE_MIB = 1536
_IN_PROCESS_BYTES = 1024 * 1024
_LIGHT: frozenset[Kind] = frozenset({"text", "markdown", "csv"})

KINDS: dict[str, Kind] = {
    ".txt": "text", ".text": "text", ".log": "text", ".rst": "text", ".org": "text", ".adoc": "text",
    ".md": "markdown", ".markdown": "markdown",
    ".htm": "html", ".html": "html", ".xhtml": "html",
    ".csv": "csv", ".tsv": "csv",
    ".pdf": "pdf", ".docx": "docx",
}  # fmt: skip
"""What a name's ending says."""

_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"%PDF-", "pdf"),
    (b"PK\x03\x04", "docx"),
    (b"PK\x05\x06", "docx"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a program"),
    (b"\x89PNG", "an image"),
    (b"\xff\xd8\xff", "an image"),
    (b"GIF8", "an image"),
    (b"\x1f\x8b", "a compressed file"),
    (b"\xd0\xcf\x11\xe0", "an old Office file"),
)


def kind_of(data: bytes, name: str) -> Kind:
    """What the file is, by its ending and its first bytes, which must agree. Raises ConfigError."""
    ending = PurePath(name).suffix.lower()
    said = KINDS.get(ending)
    head = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n")
    found = next((kind for magic, kind in _MAGIC if data.startswith(magic) or head.startswith(magic)), "")
    if said is None and ending:
        raise ConfigError(f"{name}: files of type {ending} are not read", hint=f"known are {', '.join(sorted(KINDS))}")
    if said is None:
        said = "pdf" if found == "pdf" else "html" if head[:9].lower() in (b"<!doctype", b"<html") else "text"
    binary = said if said in ("pdf", "docx") else ""
    if found != binary:
        looks = {"pdf": "a PDF", "docx": "a ZIP archive", "": "text or something else"}.get(found, found)
        raise ConfigError(f"{name}: its name says {said}, and it looks like {looks}", hint="give it its right name")
    return said


async def extract(data: bytes, *, name: str) -> tuple[Kind, Extracted]:
    """The kind of the file and its text.

    Raises LimitError for a file above 32 MiB or one that takes too much to read, ConfigError for one that is not what
    its name says or cannot be read, MissingExtraError without the extra `documents`.
    """
    if len(data) > MAX_FILE_MIB * 1024**2:
        raise LimitError(
            f"{name} has {len(data) / 1024**2:,.0f} MiB, and {MAX_FILE_MIB} are read", hint="split it into parts"
        )
    kind = kind_of(data, name)
    try:
        if kind in _LIGHT:
            decode(data[:4096] if len(data) > 4096 and data[4095] < 128 else data)
        if kind in _LIGHT and len(data) <= _IN_PROCESS_BYTES:
            return kind, await asyncio.to_thread(parse, data, kind)
        return kind, await _in_child(data, kind, name)
    except UnreadableError as error:
        raise ConfigError(f"{name} cannot be read: {error}") from None


async def _in_child(data: bytes, kind: Kind, name: str) -> Extracted:
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-m", "aibox.memory.parse_child", kind, str(PARSE_MIB), str(PARSE_S),
        stdin=pipe, stdout=pipe, stderr=pipe,
    )  # fmt: skip
    try:
        async with asyncio.timeout(PARSE_S * 2):
            said, complained = await child.communicate(data)
    except TimeoutError:
        raise LimitError(f"{name} takes longer than {PARSE_S} s to read", hint="split it into parts") from None
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    if child.returncode:
        if b"MemoryError" in complained or child.returncode < 0:
            raise LimitError(
                f"{name} takes more than {PARSE_MIB} MiB or {PARSE_S} s to read", hint="split it into parts"
            )
        last = complained.decode("utf-8", "replace").strip().splitlines()[-1:] or ["no reason given"]
        # A code of its own: it is about what was sent, and not about what is kept here.
        raise StoreError(f"{name} could not be read: {last[0][:200]}", code="upstream.store.document")
    answer = json.loads(said)
    if answer.get("missing"):
        raise MissingExtraError(f"reading {kind} files", extra="documents")
    if answer.get("unreadable"):
        raise UnreadableError(answer["unreadable"])
    return Extracted(answer["text"], tuple(Block(*block) for block in answer["blocks"]), answer["pages"])
