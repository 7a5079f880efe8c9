"""A SQLite file of sealed rows: the file, the keys of its subjects, and how far the rows of each tenant have come."""

from __future__ import annotations

from pathlib import Path

from aibox.memory.cipher import SubjectKeys
from aibox.memory.database import Database, Schema
from aibox.memory.epochs import Epochs


class SealedDatabase(Database):
    """`schema` makes the tables of `cipher` and of `epochs` too; `key` is the master key. Raises as Database does."""

    def __init__(self, path: Path, schema: Schema, *, key: bytes) -> None:
        super().__init__(path, schema)
        try:
            with self.errors():
                self.keys = SubjectKeys(self.db, str(path), master=key)
        except BaseException:
            self.close()
            raise
        self.epochs = Epochs(self.db)

    shared = False
    """Whether other machines write here too."""

    def position(self, tenant: str) -> tuple[str, int] | None:
        """Epoch and latest change of the tenant; None for one that has no rows."""
        with self.reading(tenant):
            return self.epochs.position(tenant)

    def every_epoch(self) -> dict[str, str]:
        with self.errors():
            return self.epochs.all()
