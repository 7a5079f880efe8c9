"""Signed notes and keys: the bytes of C2SP, and what is refused."""

from __future__ import annotations

import base64
import hashlib
import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from aibox.audit.checkpoint import Checkpoint, open_note, public_bytes, verifier_key
from aibox.audit.highwater import HighWater
from aibox.audit.keys import Keyring
from aibox.audit.ledger import Ledger
from aibox.audit.merkle import root
from aibox.audit.record import make_parts
from aibox.audit.signer import KeySigner, public_key, sign
from aibox.audit.store import open_store
from aibox.audit.verify import verify
from aibox.errors import ConfigError
from aibox.types import Scope

SIGNER = KeySigner("aibox", Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
POINT = Checkpoint("aibox/audit/x", 7, bytes(range(32)))
NOTE = sign(SIGNER, POINT)
PUBLIC = public_key(SIGNER)


def test_the_bytes_of_a_checkpoint_are_frozen() -> None:
    """Ed25519 is deterministic: the same key and tree give this very note, today and in ten years."""
    assert PUBLIC == "aibox+c577b925+AQOhB7/zzhC+HXDdGOdLwJln5NYwm6UNXx3chmQSVTG4"
    text, _, signatures = NOTE.partition("\n\n")
    assert text == "aibox/audit/x\n7\nAAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
    assert signatures.startswith("\N{EM DASH} aibox ")
    assert base64.b64decode(signatures.split()[-1])[:4].hex() == "c577b925"
    assert open_note(NOTE, PUBLIC) == POINT


def test_a_published_verifier_key_is_read() -> None:
    """The key that the Go implementation of signed notes is documented with passes its check sum."""
    key = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
    assert len(public_bytes(key)) == 32
    with pytest.raises(ValueError, match="verifier key"):
        public_bytes(key.replace("c74f20a3", "c74f20a2"))


@given(st.integers(0, len(NOTE.encode()) - 1), st.integers(0, 7))
def test_no_changed_bit_of_a_note_holds(at: int, bit: int) -> None:
    """Attack: whichever bit of a signed checkpoint is turned, it is refused."""
    data = bytearray(NOTE.encode())
    data[at] ^= 1 << bit
    with pytest.raises(ValueError):  # noqa: PT011 - not UTF-8 is one too
        open_note(data.decode(), PUBLIC)


@pytest.mark.parametrize(
    "note",
    [
        "", "x", NOTE + "\n", NOTE.replace("\n", "\r\n"), NOTE.rstrip("\n"), "\n" + NOTE, NOTE.replace("7\n", "07\n"),
        NOTE + NOTE, NOTE + "x" * 20_000, NOTE + NOTE.rpartition("\n\n")[2] * 16, NOTE.replace("aibox/", "aibox\x00/"),
        NOTE.replace("\N{EM DASH} aibox", "\N{EM DASH} ai box"), NOTE.replace("7\n", "7\nextension\n"),
    ],
    ids=range(13),
)  # fmt: skip
def test_odd_notes_are_refused(note: str) -> None:
    """Attack: other line ends, more signatures than sixteen, spaces in names, control characters, extensions."""
    with pytest.raises(ValueError):  # noqa: PT011
        open_note(note, PUBLIC)


def test_a_note_has_a_bounded_size() -> None:
    """Attack: a note that is right in all but its size is refused before it is worked on."""
    with pytest.raises(ValueError, match="too long"):
        open_note(sign(SIGNER, Checkpoint("o" * 20_000, 1, bytes(32))), PUBLIC)


@pytest.mark.parametrize(("origin", "says"), [("a\x00b", "control"), ("a\tb", "control"), ("a\nb", "not a checkpoint")])
def test_a_text_that_is_signed_and_no_checkpoint(origin: str, says: str) -> None:
    """A signature does not make a checkpoint of a text with control characters or with another number of lines."""
    with pytest.raises(ValueError, match=says):
        open_note(sign(SIGNER, Checkpoint(origin, 1, bytes(32))), PUBLIC)


def test_a_key_of_a_kind_that_is_not_known() -> None:
    """A key of another kind or length is refused although its check sum fits: it is not verified in some other way."""
    for kind, key in ((4, bytes(32)), (1, bytes(31)), (1, b"")):
        with pytest.raises(ValueError, match="known kind"):
            public_bytes(verifier_key("x", kind, key))


def test_base64_has_one_spelling() -> None:
    """Attack: the bits that base64 leaves over are set, and the same signature is spelled in another way."""
    head, _, last = NOTE.rstrip("\n").rpartition(" ")
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    assert last.endswith("=")
    other = last[:-2] + alphabet[alphabet.index(last[-2]) | 1] + "="
    assert base64.b64decode(other) == base64.b64decode(last)
    with pytest.raises(ValueError, match="canonical"):
        open_note(f"{head} {other}\n", PUBLIC)


def test_signatures_of_others_are_ignored_and_a_bad_one_of_the_known_key_is_not() -> None:
    """C2SP: an unknown key's line says nothing; one good line does not excuse a bad line of the same key."""
    other = KeySigner("witness", Ed25519PrivateKey.generate())
    line = sign(other, POINT).rpartition("\n\n")[2]
    assert open_note(NOTE + line, PUBLIC) == POINT
    with pytest.raises(ValueError, match="not signed"):
        open_note(NOTE, public_key(other))
    bad = sign(SIGNER, Checkpoint("aibox/audit/x", 8, bytes(32))).rpartition("\n\n")[2]
    with pytest.raises(ValueError, match="does not fit"):
        open_note(NOTE + bad, PUBLIC)


@pytest.mark.parametrize("key", ["", "aibox", "aibox+00000000+AA==", PUBLIC[:-4] + "AAAA", "a+b+c"])
def test_what_is_no_public_key_is_refused(key: str) -> None:
    """A verifier key whose check sum does not fit, or of another kind, is not tried."""
    with pytest.raises(ValueError, match=r"verifier key|base64"):
        open_note(NOTE, key)


@pytest.mark.parametrize(
    ("text", "mode", "says"),
    [
        ("changeme", 0o600, "hexadecimal"), ("00" * 32, 0o600, "random"), ("ab" * 16, 0o600, "too short"),
        ("0123456789abcdef" * 4, 0o600, "random"), (hashlib.sha256(b"x").hexdigest(), 0o644, "read by others"),
    ],
)  # fmt: skip
def test_a_key_that_is_weak_or_known_to_others_is_refused(tmp_path: Path, text: str, mode: int, says: str) -> None:
    """A placeholder, a short key, one that was typed or that others can read is never used."""
    (tmp_path / "log.key").write_text(text)
    (tmp_path / "log.key").chmod(mode)
    with pytest.raises(ConfigError, match=says):
        Keyring(tmp_path).signer()


def test_a_key_that_is_a_link_is_refused(tmp_path: Path) -> None:
    """Attack: a link in the place of a key leads nowhere."""
    (tmp_path / "elsewhere").write_text(os.urandom(32).hex())
    (tmp_path / "elsewhere").chmod(0o600)
    (tmp_path / "log.key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="plain file"):
        Keyring(tmp_path).signer()


def test_keys_are_made_once_and_only_their_owner_reads_them(tmp_path: Path) -> None:
    """A second keyring on the folder has the same keys; every private file is 0600."""
    first, second = Keyring(tmp_path / "k"), Keyring(tmp_path / "k")
    assert first.secret("origin") == second.secret("origin")
    assert public_key(first.signer()) == public_key(second.signer())
    assert first.secret("origin") != first.secret("other")
    assert all(not file.stat().st_mode & 0o077 for file in (tmp_path / "k").glob("*.key"))


def test_a_checkpoint_speaks_of_what_the_store_has(tmp_path: Path) -> None:
    """Signed in the middle of a transaction it covers what was flushed, size and root alike, and the log verifies."""
    scope = Scope(tenant="acme", user="eva")
    ledger = Ledger(open_store(tmp_path / "a.db"), Keyring(tmp_path / "keys"), HighWater(tmp_path / "mark"))
    leaves = []
    with ledger.transaction():
        for n in range(5):
            parts = make_parts("tool.called", scope=scope, turn="", detail={"n": n})
            leaves.append(ledger.add_made("tool.called", parts, scope=scope).leaf)
            if n == 2:
                ledger.flush()
        head = ledger.head("acme")
        point = open_note(ledger.checkpoint(head), ledger.public_key)
    assert (point.size, point.root) == (3, root(leaves[:3]))
    with ledger.transaction():
        point = open_note(ledger.checkpoint(ledger.head("acme")), ledger.public_key)
    assert (point.size, point.root) == (5, root(leaves))
    ledger.store.close()
    assert verify(tmp_path / "a.db", keys=ledger.keys, high_water=ledger.mark).entries == 5
