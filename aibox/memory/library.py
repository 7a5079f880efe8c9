"""Adds documents: finds the files, leaves those that have not changed, reads, cuts, embeds and keeps the others."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from aibox.errors import AIBoxError, ConfigError, StoreError
from aibox.memory.chunks import Chunk, chunks
from aibox.memory.document import Document, Documents, Progress
from aibox.memory.parsing import KINDS, extract
from aibox.memory.reader import NewPassage, Reader
from aibox.memory.record import Visibility, new_id, now_us
from aibox.memory.situate import Situate
from aibox.memory.store import DocumentStore
from aibox.protocols import Embedder
from aibox.types import Label, Scope

LABEL_FILE = ".aibox-label"
"""A folder's label in a file of this name, such as `confidential/PHI`: it raises what lies in the folder and below."""
_FORMAT = b"1"
"""Of passages: a new way of cutting makes every document a changed one."""
_BATCH = 32


@dataclass(frozen=True, slots=True)
class Rules:
    """For whom documents are added, how secret they are and who may see them."""

    scope: Scope
    label: Label
    visibility: Visibility = "private"
    groups: tuple[str, ...] = ()
    situated: bool = False
    """Whether passages are searched with a sentence about them."""

    def __post_init__(self) -> None:
        if self.visibility not in ("private", "shared", "restricted"):
            raise ConfigError(f"not a visibility: {self.visibility!r}", hint="private, shared or restricted")
        if (self.visibility == "restricted") != bool(self.groups):
            raise ConfigError("restricted documents name the groups that may see them, and no others do")


class Library:
    """The way of documents into a DocumentStore."""

    def __init__(self, store: DocumentStore, embedder: Embedder, *, situate: Situate | None = None) -> None:
        self._store = store
        self._embedder = embedder
        self._situate = situate

    async def add(
        self, path_or_bytes: str | Path | bytes, name: str, rules: Rules, progress: Callable[[Progress], None]
    ) -> Documents:
        """A file, a folder, or bytes, which need a name."""
        if not isinstance(path_or_bytes, bytes):
            return await self.add_path(Path(path_or_bytes), rules, progress)
        if not name:
            raise ConfigError("bytes need a name", hint='name="report.pdf"')
        return await self.add_bytes(path_or_bytes, name, rules)

    async def add_bytes(self, data: bytes, name: str, rules: Rules) -> Documents:
        """One document from memory; its name is its source. Raises what makes it unreadable."""
        added = await self._add(data, name, source=name, rules=rules)
        return Documents((added,)) if added else Documents(unchanged=1)

    async def add_path(self, path: Path, rules: Rules, progress: Callable[[Progress], None]) -> Documents:
        """A file, or all readable files of a folder and below; hidden ones and links are left out.

        Each file is kept as a whole or not at all, so that a run that was cut off goes on where it was. Of a folder,
        documents whose file is gone are removed, and a file that fails is listed and the others go on.
        """
        path = path.expanduser().absolute()
        if path.is_file():
            progress(Progress(0, 1, path.name))
            label = rules.label | _folder_label(path.parent, path.parent)
            return await self.add_file(path, path.name, rules, label)
        if not path.is_dir():
            raise ConfigError(f"there is no file or folder {path}")
        files = sorted(_files(path))
        total = Documents()
        for number, file in enumerate(files):
            name = str(file.relative_to(path))
            progress(Progress(number, len(files), name))
            try:
                label = rules.label | _folder_label(file.parent, path)
                total = _plus(total, await self.add_file(file, name, rules, label))
            except StoreError:
                raise  # the disk or the database: every further file would fail too
            except AIBoxError as error:
                total = _plus(total, Documents(failed=((name, str(error)),)))
        gone = await self._gone(path, {str(file) for file in files}, rules.scope)
        progress(Progress(len(files), len(files), ""))
        return _plus(total, Documents(removed=await self._store.remove(gone, scope=rules.scope) if gone else 0))

    async def add_file(self, path: Path, name: str, rules: Rules, label: Label) -> Documents:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
        labelled = replace(rules, label=label)
        added = await self._add(data, name, source=str(path), rules=labelled)
        return Documents((added,)) if added else Documents(unchanged=1)

    async def reindex(self, tenant: str, progress: Callable[[Progress], None]) -> int:
        """Give the tenant's documents vectors of this embedder; how many there were. May be cut off and repeated."""
        foreign = await self._store.foreign(tenant=tenant)
        for number, document in enumerate(foreign):
            progress(Progress(number, len(foreign), document))
            texts = await self._store.texts(document, tenant=tenant)
            vectors = await self._vectors([text for _, text in texts])
            fresh = {n: vector for (n, _), vector in zip(texts, vectors, strict=True)}
            await self._store.revector(document, fresh, tenant=tenant)
        return len(foreign)

    async def _add(self, data: bytes, name: str, *, source: str, rules: Rules) -> Document | None:
        """None where the document is kept already as it is."""
        # What was marked higher once stays so until the document is forgotten.
        kept = await self._store.label_of(source, scope=rules.scope)
        label = rules.label | kept if kept is not None else rules.label
        content = _content(data, label, rules)
        if kept is not None and await self._store.unchanged(source, content, scope=rules.scope):
            return None
        _, extracted = await extract(data, name=name)
        pieces = chunks(extracted)
        if not pieces:
            raise ConfigError(f"{name} holds no text", hint="a scan needs text recognition first")
        about = await self._about(extracted.text, pieces, name, rules.scope, label)
        vectors = await self._vectors([_searched(piece, said) for piece, said in zip(pieces, about, strict=True)])
        added_us = now_us()
        document = Document(
            id=new_id(added_us),
            name=name,
            source=source,
            visibility=rules.visibility,
            groups=rules.groups,
            label=label,
            pages=extracted.pages,
            passages=len(pieces),
            size=len(data),
            added_us=added_us,
        )
        await self._store.put(document, content, [*map(_passage, pieces, about, vectors)], scope=rules.scope)
        return document

    async def _about(self, text: str, pieces: Sequence[Chunk], name: str, scope: Scope, label: Label) -> list[str]:
        """A sentence about each passage; empty ones where none are asked for."""
        if self._situate is None:
            return [""] * len(pieces)
        return [await self._situate.sentence(text, piece, name=name, scope=scope, label=label) for piece in pieces]

    async def _vectors(self, texts: Sequence[str]) -> list[list[float]]:
        vectors: list[list[float]] = []
        for start in range(0, len(texts), _BATCH):
            vectors += await self._embedder.embed(texts[start : start + _BATCH], kind="passage")
        return vectors

    async def _gone(self, folder: Path, present: set[str], scope: Scope) -> list[str]:
        mine = [d for d in await self._store.documents(reader=Reader(scope)) if d.mine]
        return [d.id for d in mine if Path(d.source).is_relative_to(folder) and d.source not in present]


def _passage(piece: Chunk, about: str, vector: Sequence[float]) -> NewPassage:
    place = (piece.heading, piece.page, piece.start, piece.end)
    return NewPassage(piece.text, *place, for_search=_searched(piece, about), vector=vector, about=about)


def _searched(piece: Chunk, about: str) -> str:
    return f"{about}\n{piece.for_search}" if about else piece.for_search


def _content(data: bytes, label: Label, rules: Rules) -> bytes:
    """What makes a document a changed one: its bytes, its label, and who may see it."""
    about = "|".join((str(label), rules.visibility, *(["situated"] if rules.situated else []), *sorted(rules.groups)))
    return hashlib.sha256(_FORMAT + about.encode() + b"\0" + hashlib.sha256(data).digest()).digest()


def _files(folder: Path) -> Iterator[Path]:
    for entry in folder.iterdir():
        if entry.name.startswith(".") or entry.is_symlink():
            continue
        if entry.is_dir():
            yield from _files(entry)
        elif entry.is_file() and entry.suffix.lower() in KINDS:
            yield entry


def _folder_label(folder: Path, top: Path) -> Label:
    """The join of the label files from `top` down to `folder`. Raises ConfigError for one that holds no label."""
    label = Label.parse("public")
    for place in (folder, *folder.parents):
        file = place / LABEL_FILE
        if file.is_file():
            label = label | Label.parse(file.read_text("utf-8", "replace").strip())
        if place == top:
            break
    return label


def _plus(one: Documents, other: Documents) -> Documents:
    return Documents(
        one.added + other.added,
        one.unchanged + other.unchanged,
        one.removed + other.removed,
        one.failed + other.failed,
        one.note or other.note,
    )
