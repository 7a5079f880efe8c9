"""The indexes of a store's tenants, of which a bounded number is open at a time. One thread at a time may use it."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path

from aibox.errors import StoreError
from aibox.memory.vector_index import Feed, NoIndexError, VectorIndex, hashed


class Indexes:
    """One folder with an index a tenant, named by a hash. An open one costs a thread and about 3 MB."""

    def __init__(
        self,
        folder: Path,
        *,
        embedder: str,
        dimensions: int,
        filters: Sequence[str],
        words: bool = False,
        most_open: int = 32,
    ) -> None:
        self._folder = folder
        self._embedder = embedder
        self._dimensions = dimensions
        self._filters = filters
        self._words = words
        self._most_open = most_open
        self._open: OrderedDict[str, VectorIndex] = OrderedDict()

    def sweep(self, epochs: Mapping[str, str]) -> None:
        """Delete the indexes that no tenant can use any more, such as one that a removal was cut off before."""
        current = {hashed(tenant): epoch for tenant, epoch in epochs.items()}
        for lock in self._folder.glob("*.lock"):
            index = self._index(lock.stem)
            with contextlib.suppress(NoIndexError):
                index.acquire()
                if index.saved_epoch() is None or index.saved_epoch() != current.get(lock.stem):
                    index.delete()
                index.close()

    def get(self, tenant: str, rows: Feed) -> VectorIndex:
        """The tenant's index, open and up to date. Raises NoIndexError."""
        index = self._open.get(tenant)
        if index is None:
            index = self._index(hashed(tenant))
            index.acquire()
            self._open[tenant] = index
        self._open.move_to_end(tenant)
        while len(self._open) > self._most_open:
            self._open.popitem(last=False)[1].close()
        index.catch_up(tenant, rows)
        return index

    def delete(self, tenant: str) -> None:
        """Something of the tenant was erased: remove its index. Who else holds it open deletes it, by the new epoch.

        Raises StoreError when its files cannot be removed.
        """
        index = self._open.pop(tenant, None)
        if index is None:
            index = self._index(hashed(tenant))
            try:
                index.acquire()
            except NoIndexError:
                return
        try:
            index.delete()
        except NoIndexError as error:
            hint = "delete that folder by hand: it holds vectors of what was removed"
            raise StoreError(f"the rows are removed, but {error}", hint=hint) from error
        finally:
            index.close()

    def close(self, epochs: Mapping[str, str]) -> None:
        """Keep what is of the present epochs for the next start, delete the rest."""
        for tenant, index in self._open.items():
            with contextlib.suppress(NoIndexError):  # the next start sweeps again
                if epochs.get(tenant) != index.epoch:
                    index.delete()
                index.close()
        self._open.clear()

    @property
    def complaints(self) -> str:
        """What is amiss with open indexes, to be shown in a health line; empty when nothing is."""
        said = dict.fromkeys(index.complaint for index in [*self._open.values()] if index.complaint)
        return "".join(f", {complaint}" for complaint in said)

    def flush(self) -> None:
        """Write out what the open indexes hold in memory."""
        for index in self._open.values():
            index.flush()

    def _index(self, name: str) -> VectorIndex:
        return VectorIndex(
            self._folder / name,
            embedder=self._embedder,
            dimensions=self._dimensions,
            filters=self._filters,
            words=self._words,
        )
