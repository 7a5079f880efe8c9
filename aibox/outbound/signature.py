"""Signatures of webhooks by Standard Webhooks 1.0: HMAC-SHA256 over id, time and body."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Sequence

from aibox.errors import ConfigError

PREFIX = "whsec_"
_SHORTEST, _LONGEST = 24, 64


def read_key(text: str, *, name: str) -> bytes:
    """A secret from its written form. Raises ConfigError, which never quotes it."""
    try:
        key = base64.b64decode(text.strip().removeprefix(PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not _SHORTEST <= len(key) <= _LONGEST:
        raise ConfigError(
            f"the key of the webhook {name} is not {PREFIX} and {_SHORTEST} to {_LONGEST} bytes in base64",
            hint=f'echo "{PREFIX}$(openssl rand -base64 32)" makes one',
        )
    return key


def headers(keys: Sequence[bytes], *, id: str, timestamp: int, body: bytes) -> dict[str, str]:  # noqa: A002 - its name
    """What goes along with a delivery: one signature a key, for the time in which a receiver changes over."""
    signed = f"{id}.{timestamp}.".encode() + body
    made = (base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode() for key in keys)
    return {
        "webhook-id": id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(f"v1,{signature}" for signature in made),
    }
