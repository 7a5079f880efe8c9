"""The first key of a log, sealed to an auditor: with it every tag can be checked, long after the host has lost it.

    sealed = ephemeral X25519 key (32) | AES-256-GCM of the key
    under HKDF-SHA256(shared secret, info = "aibox/first-key/v1" 0 log_id)

The auditor keeps the private half away from the host. The nonce is constant because each ephemeral key is used once.
"""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from aibox.audit.keys import check_random, read_key_file, write_new
from aibox.errors import ConfigError

AUDITOR = "auditor.pub"
"""In the keys' folder: the auditor's public half, in hexadecimal. It must be there before a log is begun."""


def new_auditor(path: Path) -> str:
    """Make a private half at `path`, and return the public one. Raises ConfigError where there is a file already."""
    if path.exists():
        raise ConfigError(f"{path} is there already")
    private = os.urandom(32)
    write_new(path, private.hex() + "\n")
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw().hex()


def seal_first(folder: Path, log: bytes, key: bytes) -> None:
    """Where the folder names an auditor, leave the log's first key for them."""
    try:
        public = X25519PublicKey.from_public_bytes(bytes.fromhex((folder / AUDITOR).read_text("ascii").strip()))
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder / AUDITOR} is not an auditor's public key: {error}") from None
    ephemeral = X25519PrivateKey.generate()
    cipher = AESGCM(_key(ephemeral.exchange(public), log))
    sealed = ephemeral.public_key().public_bytes_raw() + cipher.encrypt(bytes(12), key, None)
    write_new(_path(folder, log), sealed.hex() + "\n")


def open_first(folder: Path, log: bytes, auditor: Path) -> bytes | None:
    """K_0 of a log, by the auditor's private half; None where none was left. Raises ConfigError."""
    private = X25519PrivateKey.from_private_bytes(check_random(read_key_file(auditor), auditor))
    try:
        sealed = bytes.fromhex(_path(folder, log).read_text("ascii"))
        shared = private.exchange(X25519PublicKey.from_public_bytes(sealed[:32]))
        return AESGCM(_key(shared, log)).decrypt(bytes(12), sealed[32:], None)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, InvalidTag):
        raise ConfigError(f"{_path(folder, log)} was not sealed to {auditor}, or was changed") from None


def _path(folder: Path, log: bytes) -> Path:
    return folder / f"first-{log.hex()[:32]}.sealed"


def _key(shared: bytes, log: bytes) -> bytes:
    return HKDF(SHA256(), 32, None, b"aibox/first-key/v1\x00" + log).derive(shared)
