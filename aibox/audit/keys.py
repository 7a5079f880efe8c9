"""Keys in a folder: each 32 random bytes in a file of its own, 0600, made once and never replaced.

`log` is the Ed25519 key that signs checkpoints; `log.pub` its public half, for whoever verifies. Each log has the HMAC
key of its first epoch in a file of its own, so that a later ratchet can destroy one without touching another.
"""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from aibox.audit.checkpoint import Signer
from aibox.errors import ConfigError, StoreError

KEY_BYTES = 32
LOG_NAME = "aibox"


class Keyring:
    """The keys in `folder`, made when they are first asked for. Two processes that start at once get the same.

    Raises ConfigError for a key that others can read, that is a link, too short or not random; StoreError when the
    folder cannot be used.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def secret(self, name: str) -> bytes:
        """The 32 bytes called `name`."""
        path = self.folder / f"{name}.key"
        try:
            return _read(path)
        except FileNotFoundError:
            self._make(path, secrets.token_bytes(KEY_BYTES).hex() + "\n")
            return _read(path)

    def signer(self) -> Signer:
        """The key that signs this deployment's checkpoints. Its public half is written beside it."""
        signer = Signer(LOG_NAME, Ed25519PrivateKey.from_private_bytes(self.secret("log")))
        public = self.folder / "log.pub"
        if not public.exists():
            self._make(public, signer.public_key + "\n")
        return signer

    def epoch_key(self, log: bytes) -> bytes:
        """K_0 of a log, by its log_id."""
        return self.secret(f"epoch0-{log.hex()[:32]}")

    def known_epoch_key(self, log: bytes) -> bytes | None:
        """As `epoch_key`, but makes nothing: None where there is none."""
        try:
            return _read(self.folder / f"epoch0-{log.hex()[:32]}.key")
        except FileNotFoundError:
            return None

    def _make(self, path: Path, text: str) -> None:
        """Write once: a complete file appears under its name, or the one that another process wrote first stays."""
        fresh = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            try:
                os.link(fresh, path)
            except FileExistsError:
                return
            finally:
                fresh.unlink()
            folder = os.open(self.folder, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise StoreError(f"cannot write a key to {self.folder}: {error.strerror}") from None

    def __repr__(self) -> str:
        return f"Keyring({str(self.folder)!r})"


def _read(path: Path) -> bytes:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        # O_NOFOLLOW answers a link with ELOOP.
        raise ConfigError(f"the key {path} cannot be used: {error.strerror}", hint="a key is a plain file") from None
    with os.fdopen(handle, "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode) or found.st_mode & 0o077:
            raise ConfigError(f"the key {path} can be read by others", hint=f"chmod 600 {path}, and consider it known")
        text = file.read(4096)
    try:
        key = bytes.fromhex(text.decode("ascii").strip())
    except ValueError:
        raise ConfigError(f"the key {path} is not hexadecimal") from None
    # Random bytes of which fewer than half differ do not occur: such a key was typed, not drawn.
    if len(key) != KEY_BYTES or len(set(key)) < KEY_BYTES // 2:
        raise ConfigError(f"the key {path} is too short or not random", hint="restore it, or begin a new data folder")
    return key
