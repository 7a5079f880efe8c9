"""The key that ratchets: entries of an epoch are tagged under its key, and a key that has been left cannot be had back.

    K_(e+1) = HMAC-SHA256(K_e, "aibox/ratchet/v1" 0 log_id u32(e + 1))

A thief of today's key can tag entries of today; those of an epoch that is over can no longer be tagged by anybody who
did not keep its key. Each change is an entry, the last one of the epoch that it ends. Python and disks give no promise
that bytes are gone: the file is overwritten, synced and replaced, and copies of it in backups are not reached.
"""

from __future__ import annotations

import fcntl
import hmac
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from aibox.audit.escrow import seal_first
from aibox.audit.keys import Keyring, check_random, overwrite, read_key_file, why, write_new
from aibox.errors import OPERATORS, ConfigError, StoreError

EPOCH_ENTRIES = 4096
EPOCH_S = 60.0


class EpochKey(NamedTuple):
    """The key of an epoch of one log."""

    epoch: int
    key: bytes

    def next(self, log: bytes) -> EpochKey:
        message = b"aibox/ratchet/v1\x00" + log + (self.epoch + 1).to_bytes(4, "big")
        return EpochKey(self.epoch + 1, hmac.digest(self.key, message, "sha256"))

    def at(self, log: bytes, epoch: int) -> EpochKey | None:
        """The key of a later epoch; None for an earlier one, which cannot be had."""
        current = self
        while current.epoch < epoch:
            current = current.next(log)
        return current if current.epoch == epoch else None


class EpochKeys:
    """The present epoch key of each log, a file each in the keyring's folder."""

    def __init__(self, keys: Keyring) -> None:
        self._folder = keys.folder

    def path(self, log: bytes) -> Path:
        return self._folder / f"epoch-{log.hex()[:32]}.key"

    def known(self, log: bytes) -> EpochKey | None:
        """Makes nothing. None where there is none."""
        try:
            text = read_key_file(self.path(log))
        except FileNotFoundError:
            return None
        number, _, key = text.partition(" ")
        if not number.isdigit() or len(number) > 10:
            raise ConfigError(f"the key {self.path(log)} does not say its epoch", code=OPERATORS)
        return EpochKey(int(number), check_random(key, self.path(log)))

    def first(self, log: bytes) -> EpochKey:
        """K_0 of a log that has no entries yet; another process may have made it a moment ago."""
        if (known := self.known(log)) is None:
            # For the auditor before it is used: once entries follow, it may be gone.
            write_new(self.path(log), f"0 {os.urandom(32).hex()}\n")
            known = self.known(log)
        assert known is not None
        if known.epoch == 0:
            seal_first(self._folder, log, known.key)
        return known

    def keep(self, log: bytes, key: EpochKey) -> None:
        """From now on only this key and its successors; what was there is overwritten. Never goes back."""
        path = self.path(log)
        with self._locked():
            known = self.known(log)
            if known is not None and known.epoch >= key.epoch:
                return
            fresh = path.with_name(f".{path.name}.{os.getpid()}")
            try:
                old = os.open(path, os.O_WRONLY | os.O_NOFOLLOW) if known else None
                with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                    file.write(f"{key.epoch} {key.key.hex()}\n")
                    file.flush()
                    os.fsync(file.fileno())
                fresh.replace(path)
                if old is not None:
                    overwrite(old)
            except OSError as error:
                raise StoreError(f"cannot write the key {path}: {why(error)}") from None

    @contextmanager
    def _locked(self) -> Iterator[None]:
        handle = os.open(self._folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            # Not by closing alone: a process that was forked meanwhile holds the file too, and with it the lock.
            fcntl.flock(handle, fcntl.LOCK_UN)
            os.close(handle)
