"""A policy file, TOML or YAML, and the signature beside it: read once, so that what was checked is what is used."""

from __future__ import annotations

import base64
import hashlib
import tomllib
from pathlib import Path
from typing import Any

from aibox import plain_yaml
from aibox.audit.checkpoint import verify_signature
from aibox.audit.signer import Signer
from aibox.errors import ConfigError, IntegrityError

YAML = (".yaml", ".yml")
SUFFIXES = (".toml", *YAML)
MAX_BYTES = 1 << 20
_CONTEXT = "aibox policy 1"


def read(path: Path, *, key: str | None = None) -> dict[str, Any]:
    """The tables of a file. With a `key` (a verifier key) the file must have a signature of it, in `FILE.sig`.

    Raises ConfigError for a file that cannot be read, IntegrityError for one that this key has not signed.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read the policy {path}: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise ConfigError(f"the policy {path} has {len(data)} bytes; at most {MAX_BYTES} are read")
    if key is not None:
        _check(data, path, key)
    return parse(data, source=str(path), yaml=path.suffix.lower() in YAML)


def parse(data: bytes, *, source: str, yaml: bool = False) -> dict[str, Any]:
    """The tables in a file's bytes. Raises ConfigError that names `source`."""
    try:
        text = data.decode("utf-8")
        value = plain_yaml.read(text, source=source, typed=True) if yaml else tomllib.loads(text)
    except ValueError as error:  # not UTF-8, not TOML, or a number of a thousand digits
        raise ConfigError(f"{source} is not {'YAML' if yaml else 'TOML'}: {error}") from None
    except RecursionError:
        raise ConfigError(f"{source} is nested too deeply") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{source} is no policy: it must be keys with values")
    return value


def sign(path: Path, signer: Signer) -> Path:
    """Write `FILE.sig` for a policy as it is now; returns its path. Raises ConfigError, StoreError."""
    try:
        data = path.read_bytes()
        beside = path.with_name(f"{path.name}.sig")
        signature = base64.b64encode(signer.sign_bytes(_statement(data))).decode()
        beside.write_text(f"{_CONTEXT}\n{signature}\n", "ascii")
    except OSError as error:
        raise ConfigError(f"the policy {path} cannot be signed: {error.strerror}") from None
    return beside


def _check(data: bytes, path: Path, key: str) -> None:
    beside = path.with_name(f"{path.name}.sig")
    try:
        # What is no signature of a policy has another first line, and what it signs is another statement.
        context, signature, _ = beside.read_text("ascii").split("\n")
        verify_signature(key, base64.b64decode(signature, validate=True), _statement(data, context))
    except OSError:
        raise IntegrityError(f"the policy {path} is not signed", hint=f"aibox policy sign {path}") from None
    except ValueError as error:
        raise IntegrityError(
            f"the policy {path} is not what the trusted key signed: {error}",
            hint="restore it, or have its owner sign it anew: aibox policy sign",
        ) from None


def _statement(data: bytes, context: str = _CONTEXT) -> bytes:
    if context != _CONTEXT:
        raise ValueError("it is not the signature of a policy")
    return f"{_CONTEXT}\n{hashlib.sha256(data).hexdigest()}\n".encode()
