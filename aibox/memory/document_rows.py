"""The rows of the documents: one SQLite file that is the truth about every document and its passages.

A private document is sealed under its owner's key, any other under the tenant's. Who may see a row is decided here, in
each statement; what a row says and for whom are authenticated together.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from aibox.errors import IntegrityError
from aibox.memory.cipher import SubjectKey
from aibox.memory.document import Document
from aibox.memory.document_schema import SCHEMA
from aibox.memory.reader import VISIBLE, Candidate, NewPassage, Reader, readers
from aibox.memory.record import Passage
from aibox.memory.rows import pack
from aibox.memory.shared_database import opened
from aibox.memory.terms import Termer, Terms, pack_terms, unpack_terms
from aibox.memory.vector_index import Change
from aibox.types import Label, Scope

_HEAD = "d.id, d.tenant, d.user, d.visibility, d.groups, d.label, d.passages, d.sealed"


def _sql(template: str) -> str:
    """A statement with its constant parts put in. Values are only ever bound."""
    return template.format(head=_HEAD, visible=VISIBLE)


class DocumentRows:
    """The open file `documents.db`, or the database that servers share, for vectors of one embedder.

    Raises StoreError, also when it cannot be opened.
    """

    def __init__(self, place: Path | str, *, embedder: str, key: bytes) -> None:
        self._embedder = embedder
        self._file = opened(place, SCHEMA, key=key, schema="aibox_documents")
        self._db, self._keys, self._epochs = self._file.db, self._file.keys, self._file.epochs
        self._termers: dict[bytes, Termer] = {}
        self.transaction = self._file.transaction
        self.position = self._file.position
        self.epochs = self._file.every_epoch

    def unchanged(self, source: str, content: bytes, scope: Scope) -> bool:
        """Whether the user's document from this source is kept with this content already."""
        with self._file.reading(scope.tenant):
            key = self._keys.find(scope.tenant, "")
            if key is None:
                return False
            row = self._db.execute(
                'SELECT content FROM documents WHERE tenant = ? AND "user" = ? AND source = ? AND embedder = ?',
                (scope.tenant, scope.user, key.digest(source), self._embedder),
            ).fetchone()
            return row is not None and row[0] == key.digest(content.hex())

    def label_of(self, source: str, scope: Scope) -> Label | None:
        """The label that the user's document from this source is kept with."""
        with self._file.reading(scope.tenant):
            key = self._keys.find(scope.tenant, "")
            row = (
                key
                and self._db.execute(
                    'SELECT label FROM documents WHERE tenant = ? AND "user" = ? AND source = ?',
                    (scope.tenant, scope.user, key.digest(source)),
                ).fetchone()
            )
            return Label.parse(row[0]) if row else None

    def put(self, document: Document, content: bytes, passages: Sequence[NewPassage], scope: Scope) -> None:
        """Keep a document in place of the user's former one from the same source."""
        with self.transaction(tenant=scope.tenant):
            tenant = self._keys.get(scope.tenant, "")
            key = self._keys.get(scope.tenant, scope.user) if document.visibility == "private" else tenant
            source = tenant.digest(document.source)
            former = self._db.execute(
                'SELECT id FROM documents WHERE tenant = ? AND "user" = ? AND source = ?',
                (scope.tenant, scope.user, source),
            ).fetchone()
            if former:
                self._bury(former[0], scope.tenant)
            groups = json.dumps(sorted(document.groups))
            row = (document.id, scope.tenant, scope.user, document.visibility, groups, str(document.label))
            sealed = [document.name, document.source, document.pages, document.size, document.added_us]
            self._db.execute(
                'INSERT INTO documents (id, tenant, "user", visibility, groups, label, source, content, passages, '
                "embedder, sealed) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (*row, source, tenant.digest(content.hex()), len(passages), self._embedder,
                 key.seal(msgspec.json.encode(sealed), _place(*row))),
            )  # fmt: skip
            change = self._epochs.next_change(scope.tenant)
            termer = self._termer(scope.tenant, tenant)
            self._db.executemany(
                "INSERT INTO passages (tenant, document, number, sealed, vector, terms, change) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                [
                    (
                        scope.tenant,
                        document.id,
                        number,
                        key.seal(
                            msgspec.json.encode([p.text, p.heading, p.page, p.start, p.end, p.about]),
                            _place(*row, str(number)),
                        ),
                        pack(p.vector),
                        pack_terms(termer.passage(p.for_search)),
                        change,
                    )
                    for number, p in enumerate(passages)
                ],
            )

    def _bury(self, document: str, tenant: str) -> None:
        """Empty a document's rows. The index learns it from the change, and need not be made again."""
        self._db.execute(
            "UPDATE passages SET gone = 1, sealed = ?, vector = ?, terms = ?, change = ? WHERE document = ?",
            (b"", b"", b"", self._epochs.next_change(tenant), document),
        )
        self._db.execute("DELETE FROM documents WHERE id = ?", (document,))

    def documents(self, reader: Reader) -> list[Document]:
        """Every document that the reader may see, oldest first."""
        with self._file.reading(reader.scope.tenant):
            rows = self._db.execute(
                _sql("SELECT {head} FROM documents d WHERE {visible} ORDER BY d.n"), reader.bound
            ).fetchall()
            return [self._document(row, reader.scope) for row in rows if reader.admits(row[5])]

    def passage(self, id_: str, reader: Reader) -> Passage | None:
        """One passage by the id in its citation; None where the reader has none of that id."""
        document, _, number = id_.rpartition(":")
        if not number.isdecimal() or len(number) > 9:
            return None
        query = _sql(
            "SELECT p.n, p.number, p.sealed, p.vector, p.terms, {head} FROM documents d JOIN passages p "
            "ON p.document = d.id WHERE {visible} AND d.id = :id AND p.number = :number AND p.gone = 0"
        )
        found = self._candidates(query, reader, {"id": document, "number": int(number)})
        return next((candidate.passage for candidate in found.values()), None)

    def candidates(self, numbers: Iterable[int], reader: Reader) -> dict[int, Candidate]:
        """The rows among `numbers` that the reader may see. CROSS JOIN binds SQLite to begin with the numbers."""
        query = _sql(
            "SELECT p.n, p.number, p.sealed, p.vector, p.terms, {head} FROM "
            "(SELECT CAST(value AS BIGINT) AS value FROM json_each(:numbers)) AS given "
            "CROSS JOIN passages p CROSS JOIN documents d "
            "WHERE p.n = value AND d.id = p.document AND p.gone = 0 AND {visible}"
        )
        return self._candidates(query, reader, {"numbers": json.dumps(list(numbers))})

    def _candidates(self, query: str, reader: Reader, more: Mapping[str, Any]) -> dict[int, Candidate]:
        with self._file.reading(reader.scope.tenant):
            rows = self._db.execute(query, {**reader.bound, **more}).fetchall()
            found = {}
            for n, number, sealed, vector, terms, *head in rows:
                if reader.admits(head[5]):
                    passage = self._passage(number, sealed, head)
                    found[n] = Candidate(passage, vector, unpack_terms(terms))
            return found

    def every(self, reader: Reader) -> list[tuple[int, bytes, Terms]]:
        """Number, vector and words of every passage that the reader may see, for a search without an index."""
        query = _sql(
            "SELECT p.n, p.vector, p.terms, d.label FROM documents d JOIN passages p ON p.document = d.id "
            "WHERE {visible} AND p.gone = 0 ORDER BY p.n"
        )
        with self._file.reading(reader.scope.tenant):
            rows = self._db.execute(query, reader.bound)
            return [(n, vector, unpack_terms(terms)) for n, vector, terms, label in rows if reader.admits(label)]

    def query_terms(self, text: str, tenant: str) -> Terms:
        """The words of a question, as the tenant's passages have them."""
        with self._file.reading(tenant):
            key = self._keys.find(tenant, "")
            return self._termer(tenant, key).query(text) if key else {}

    def remove(self, ids: Sequence[str], scope: Scope) -> int:
        """Remove documents that the user added. Returns how many."""
        return self._remove(
            scope.tenant,
            'tenant = :tenant AND "user" = :user AND id IN (SELECT value FROM json_each(:ids))',
            {"tenant": scope.tenant, "user": scope.user, "ids": json.dumps(list(ids))},
        )

    def remove_all(self, tenant: str, user: str | None) -> int:
        """Everything of the tenant; of a user what is private, and the user's name from what is not. How many."""
        if user is None:
            return self._remove(tenant, "tenant = :tenant", {"tenant": tenant}, destroy=None)
        private = "tenant = :tenant AND \"user\" = :user AND visibility = 'private'"
        count = self._remove(tenant, private, {"tenant": tenant, "user": user}, destroy=user)
        with self.transaction(tenant=tenant):
            rows = self._db.execute(
                _sql("SELECT {head} FROM documents d WHERE d.tenant = ? AND d.user = ?"), (tenant, user)
            ).fetchall()
            for row in rows:
                self._disown(row)
            if rows:
                self._epochs.begin_anew(tenant, empty=False)
        if rows:
            self._file.scrub()
        return count + len(rows)

    def _disown(self, row: Sequence[Any]) -> None:
        """A shared document outlives who added it, without the name, and without the path, which often tells it."""
        id_, tenant, user, visibility, groups, label, _, sealed = row
        key = self._keys.get(tenant, "")
        before = (id_, tenant, user, visibility, groups, label)
        after = (id_, tenant, "", visibility, groups, label)
        name, _, *rest = msgspec.json.decode(key.open(sealed, _place(*before)))
        self._db.execute(
            "UPDATE documents SET \"user\" = '', source = ?, sealed = ? WHERE id = ?",
            (key.digest(id_), key.seal(msgspec.json.encode([name, name, *rest]), _place(*after)), id_),
        )
        passages = self._db.execute(
            "SELECT n, number, sealed FROM passages WHERE document = ? AND gone = 0", (id_,)
        ).fetchall()
        for n, number, passage in passages:
            plain = key.open(passage, _place(*before, str(number)))
            self._db.execute(
                "UPDATE passages SET sealed = ? WHERE n = ?", (key.seal(plain, _place(*after, str(number))), n)
            )

    def _remove(self, tenant: str, which: str, values: Mapping[str, Any], **destroy: str | None) -> int:
        with self.transaction(tenant=tenant):
            ids = [row[0] for row in self._db.execute(f"SELECT id FROM documents WHERE {which}", values)]  # noqa: S608 - constants
            if ids:
                gone = "SELECT value FROM json_each(?)"
                self._db.execute(f"DELETE FROM passages WHERE document IN ({gone})", (json.dumps(ids),))  # noqa: S608 - as above
                self._db.execute(f"DELETE FROM documents WHERE id IN ({gone})", (json.dumps(ids),))  # noqa: S608 - as above
                self._db.execute("DELETE FROM passages WHERE tenant = ? AND gone = 1", (tenant,))
                left = self._db.execute("SELECT 1 FROM documents WHERE tenant = ? LIMIT 1", (tenant,)).fetchone()
                self._epochs.begin_anew(tenant, empty=left is None)
            if destroy:
                self._keys.destroy(tenant, destroy["destroy"])
        if ids:
            self._file.scrub()
        return len(ids)

    # For an index that wants to catch up, and for another embedder.

    def changes(self, tenant: str, since: int, size: int) -> Iterator[list[Change]]:
        """Passages of the tenant changed after `since`, in batches."""
        query = (
            "SELECT p.n, p.gone, p.vector, p.terms, d.user, d.visibility, d.groups FROM passages p "
            "LEFT JOIN documents d ON p.document = d.id WHERE p.tenant = ? AND p.change > ? ORDER BY p.change, p.n"
        )
        with self._file.reading(tenant):
            cursor = self._db.execute(query, (tenant, since))
            while batch := cursor.fetchmany(size):
                yield [
                    Change(n, bool(gone), vector, {} if gone else {"reader": readers(*who)}, terms)
                    for n, gone, vector, terms, *who in batch
                ]

    def foreign(self, tenant: str) -> list[tuple[str, str]]:
        """Id and embedder of the tenant's documents whose vectors are another embedder's."""
        with self._file.reading(tenant):
            return self._db.execute(
                "SELECT id, embedder FROM documents WHERE tenant = ? AND embedder <> ?", (tenant, self._embedder)
            ).fetchall()

    def texts(self, document: str, tenant: str) -> list[tuple[int, str]]:
        """Row number and text with headings of a document's passages, for whoever keeps the tenant's index."""
        with self._file.reading(tenant):
            head = self._db.execute(
                _sql("SELECT {head} FROM documents d WHERE d.id = ? AND d.tenant = ?"), (document, tenant)
            ).fetchone()
            rows = self._db.execute(
                "SELECT n, number, sealed FROM passages WHERE document = ? AND gone = 0", (document,)
            ).fetchall()
            said = ((n, self._said(number, sealed, head)) for n, number, sealed in rows) if head else ()
            return [
                (n, "\n".join(filter(None, [*about, heading, text]))) for n, (text, heading, _, _, _, *about) in said
            ]

    def revector(self, document: str, vectors: Mapping[int, Sequence[float]], tenant: str) -> None:
        """Give a document's passages vectors of this embedder."""
        with self.transaction(tenant=tenant):
            change = self._epochs.next_change(tenant)
            self._db.executemany(
                "UPDATE passages SET vector = ?, change = ? WHERE n = ? AND document = ?",
                [(pack(vector), change, n, document) for n, vector in vectors.items()],
            )
            self._db.execute("UPDATE documents SET embedder = ? WHERE id = ?", (self._embedder, document))

    def counts(self) -> tuple[int, int] | None:
        """How many documents and passages; None where only each tenant's can be seen."""
        if self._file.shared:
            return None
        with self._file.errors():
            row = self._db.execute("SELECT count(*), coalesce(sum(passages), 0) FROM documents").fetchone()
            return row[0], row[1]

    def close(self) -> None:
        self._file.close()

    def _termer(self, tenant: str, key: SubjectKey) -> Termer:
        secret = key.digest(f"words|{tenant}")
        return self._termers.setdefault(secret, Termer(secret))

    def _key(self, tenant: str, user: str, visibility: str) -> SubjectKey:
        key = self._keys.find(tenant, user if visibility == "private" else "")
        if key is None:  # a document's key lives as long as the document
            raise IntegrityError("a document was moved to somebody else behind our back")
        return key

    def _document(self, row: Sequence[Any], scope: Scope) -> Document:
        id_, tenant, user, visibility, groups, label, passages, sealed = row
        plain = self._key(tenant, user, visibility).open(sealed, _place(id_, tenant, user, visibility, groups, label))
        name, source, pages, size, added_us = msgspec.json.decode(plain)
        return Document(
            id=id_,
            name=name,
            source=source,
            visibility=visibility,
            groups=tuple(json.loads(groups)),
            label=Label.parse(label),
            pages=pages,
            passages=passages,
            size=size,
            added_us=added_us,
            mine=user == scope.user,
        )

    def _passage(self, number: int, sealed: bytes, head: Sequence[Any]) -> Passage:
        id_, tenant, user, visibility, groups, label, _, about = head
        key = self._key(tenant, user, visibility)
        place = (id_, tenant, user, visibility, groups, label)
        text, heading, page, start, end, *_ = self._said(number, sealed, head)
        name = msgspec.json.decode(key.open(about, _place(*place)))[0]
        return Passage(
            id=f"{id_}:{number}",
            document=id_,
            name=name,
            text=text,
            page=page,
            heading=heading,
            start=start,
            end=end,
            label=Label.parse(label),
        )

    def _said(self, number: int, sealed: bytes, head: Sequence[Any]) -> list[Any]:
        """Text, heading, page, start, end, and in rows that are not old what is searched besides."""
        id_, tenant, user, visibility, groups, label, _, _ = head
        place = _place(id_, tenant, user, visibility, groups, label, str(number))
        said: list[Any] = msgspec.json.decode(self._key(tenant, user, visibility).open(sealed, place))
        return said


def _place(*parts: str) -> str:
    """What a sealed text is bound to: it opens in no other row, for no other readers and under no lower label."""
    return "|".join(parts)
