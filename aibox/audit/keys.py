"""Keys in a folder: each in a file of its own, 0600, made once.

`log` is the Ed25519 key that signs checkpoints, `log.pub` its public half for whoever verifies. When it is rotated, its
private half is destroyed and the public one kept as `retired-N.pub`. `epochs` keeps the ratcheting keys here too.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from aibox.audit.signer import KeySigner, RemoteSigner, Signer, public_key
from aibox.errors import OPERATORS, ConfigError, StoreError

KEY_BYTES = 32
LOG_NAME = "aibox"
NEXT = "log.next"


class Keyring:
    """The keys in `folder`, made when they are first asked for. Two processes that start at once get the same.

    `signer` is the socket of a signer in another process; None signs with a key in the folder. Raises ConfigError for a
    key that others can read, that is a link, too short or not random; StoreError when the folder cannot be used.
    """

    def __init__(self, folder: str | Path, *, signer: str | Path | None = None) -> None:
        self.folder = Path(folder)
        self._remote = signer

    def secret(self, name: str) -> bytes:
        """The 32 bytes called `name`."""
        path = self.folder / f"{name}.key"
        try:
            return check_random(read_key_file(path), path)
        except FileNotFoundError:
            write_new(path, secrets.token_bytes(KEY_BYTES).hex() + "\n")
            return check_random(read_key_file(path), path)

    def signer(self) -> Signer:
        """What signs this deployment's checkpoints. Its public half is written beside it."""
        signer: Signer = RemoteSigner(self._remote) if self._remote else self._own("log")
        public = self.folder / "log.pub"
        if not public.exists():
            write_new(public, public_key(signer) + "\n")
        return signer

    def next_signer(self) -> Signer:
        """The key that comes after a rotation, made now; it signs nothing until `retire`."""
        if self._remote:
            raise ConfigError("the signer is another process", hint="rotate it there, and begin a new data folder")
        return self._own(NEXT)

    @property
    def rotating(self) -> bool:
        """True between `next_signer` and `retire`: a rotation was begun and must be ended."""
        return (self.folder / f"{NEXT}.key").exists()

    def retire(self) -> None:
        """The next key takes the place of the present one, whose private half is destroyed."""
        old, fresh = self.folder / "log.key", self.folder / f"{NEXT}.key"
        try:
            number = len(list(self.folder.glob("retired-*.pub"))) + 1
            (self.folder / "log.pub").rename(self.folder / f"retired-{number}.pub")
            handle = os.open(old, os.O_WRONLY | os.O_NOFOLLOW)
            fresh.replace(old)
            overwrite(handle)
            _sync_folder(self.folder)
        except OSError as error:
            raise StoreError(f"the key could not be retired: {why(error)}") from None
        self.signer()

    def _own(self, name: str) -> KeySigner:
        return KeySigner(LOG_NAME, Ed25519PrivateKey.from_private_bytes(self.secret(name)))

    def __repr__(self) -> str:
        return f"Keyring({str(self.folder)!r})"


def write_new(path: Path, text: str) -> None:
    """Write once: a complete file appears under its name, or the one that another process wrote first stays."""
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
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
        _sync_folder(path.parent)
    except OSError as error:
        raise StoreError(f"cannot write a key to {path.parent}: {why(error)}") from None


def overwrite(handle: int) -> None:
    """What a key was written as is gone from its place on the disk, all of it; the handle is closed."""
    left = os.fstat(handle).st_size
    try:
        while left > 0:
            left -= os.write(handle, bytes(left))
        os.fsync(handle)
    finally:
        os.close(handle)


def why(error: OSError) -> str:
    """The reason, as it is said of databases too."""
    return "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else str(error.strerror)


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_key_file(path: Path) -> str:
    """The text of a private file. Raises FileNotFoundError; ConfigError for a link or a file that others can read."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        # O_NOFOLLOW answers a link with ELOOP.
        raise ConfigError(
            f"the key {path} cannot be used: {error.strerror}", hint="a key is a plain file", code=OPERATORS
        ) from None
    with os.fdopen(handle, "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode) or found.st_mode & 0o077:
            raise ConfigError(
                f"the key {path} can be read by others", hint="chmod 600, and consider it known", code=OPERATORS
            )
        return file.read(4096).decode("ascii", "replace").strip()


def check_random(text: str, path: Path) -> bytes:
    """32 bytes from hexadecimal. Raises ConfigError for what nobody has drawn."""
    try:
        key = bytes.fromhex(text)
    except ValueError:
        raise ConfigError(f"the key {path} is not hexadecimal", code=OPERATORS) from None
    # Random bytes of which fewer than half differ do not occur: such a key was typed, not drawn.
    if len(key) != KEY_BYTES or len(set(key)) < KEY_BYTES // 2:
        raise ConfigError(
            f"the key {path} is too short or not random", hint="restore it, or begin a new data folder", code=OPERATORS
        )
    return key
