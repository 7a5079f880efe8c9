"""Who signs checkpoints: a key in this process, or another process behind a socket that never gives it away.

A signer that lives elsewhere remembers what it signed: it refuses a smaller tree, and another tree of the same size.
"""

from __future__ import annotations

import base64
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from aibox.audit.checkpoint import ED25519, Checkpoint, key_id, read_checkpoint, verifier_key
from aibox.errors import OPERATORS, ConfigError, StoreError

TIMEOUT_S = 10.0
MAX_REQUEST_BYTES = 4096


class Signer(Protocol):
    """Signs checkpoints and rotations under one key. `kind` is a row of the table of kinds in `checkpoint`."""

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> int: ...

    @property
    def public_bytes(self) -> bytes: ...

    def sign_bytes(self, text: bytes) -> bytes:
        """The bare signature. Raises StoreError when the signer cannot be reached or refuses: nothing goes unsigned."""
        ...


def public_key(signer: Signer) -> str:
    """The verifier key of C2SP signed-note."""
    return verifier_key(signer.name, signer.kind, signer.public_bytes)


def sign(signer: Signer, checkpoint: Checkpoint) -> str:
    """The signed note."""
    text = checkpoint.text()
    typed = bytes([signer.kind]) + signer.public_bytes
    signature = key_id(signer.name, typed) + signer.sign_bytes(text.encode())
    return f"{text}\n\N{EM DASH} {signer.name} {base64.b64encode(signature).decode()}\n"


class KeySigner:
    """An Ed25519 key in this process."""

    kind = ED25519

    def __init__(self, name: str, key: Ed25519PrivateKey) -> None:
        self.name = name
        self._key = key
        self.public_bytes = key.public_key().public_bytes_raw()

    def sign_bytes(self, text: bytes) -> bytes:
        return self._key.sign(text)


class RemoteSigner:
    """A signer behind a Unix socket: `aibox audit signer` is one, and a bridge to an HSM or a KMS can be another."""

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        answer = self._ask(b"key\n").decode("ascii", "replace").split("\n")
        try:
            self.name, self.kind, self.public_bytes = answer[0], int(answer[1]), bytes.fromhex(answer[2])
        except (IndexError, ValueError):
            raise ConfigError(f"{self.path} does not answer as a signer", code=OPERATORS) from None

    def sign_bytes(self, text: bytes) -> bytes:
        return bytes.fromhex(self._ask(b"sign\n" + text).decode("ascii", "replace"))

    def _ask(self, request: bytes) -> bytes:
        try:
            with socket.socket(socket.AF_UNIX) as wire:
                wire.settimeout(TIMEOUT_S)
                wire.connect(self.path)
                wire.sendall(request)
                wire.shutdown(socket.SHUT_WR)
                answer = b""
                while part := wire.recv(MAX_REQUEST_BYTES):
                    answer += part
        except OSError as error:
            raise StoreError(f"the signer at {self.path} does not answer: {error}", hint="start it again") from None
        said, _, rest = answer.partition(b"\n")
        if said != b"ok":
            raise StoreError(f"the signer at {self.path} refused: {rest.decode('utf-8', 'replace') or 'no reason'}")
        return rest


class SigningServer:
    """The other end: one key, callers of one user id, and a memory of the largest tree of each origin."""

    def __init__(self, path: str | Path, signer: Signer, *, uid: int | None = None) -> None:
        self._signer = signer
        self._uid = os.getuid() if uid is None else uid
        self._signed: dict[str, Checkpoint] = {}
        self._path = Path(path)
        self._path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        before = os.umask(0o177)
        try:
            self._listener.bind(str(path))
        finally:
            os.umask(before)
        self._listener.listen(16)

    def serve(self, ready: Callable[[], None] = lambda: None) -> None:
        """Answer until the listener is closed."""
        ready()
        while True:
            try:
                wire, _ = self._listener.accept()
            except OSError:
                return
            with wire:
                wire.settimeout(TIMEOUT_S)
                try:
                    wire.sendall(self._answer(wire))
                except OSError:
                    continue  # the caller has gone; it will ask again

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._path.unlink(missing_ok=True)

    def _answer(self, wire: socket.socket) -> bytes:
        request = b""
        while (part := wire.recv(MAX_REQUEST_BYTES)) and len(request) <= MAX_REQUEST_BYTES:
            request += part
        credentials = wire.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        if struct.unpack("3i", credentials)[1] != self._uid:
            return b"no\nanother user"
        verb, _, text = request.partition(b"\n")
        if verb == b"key":
            signer = self._signer
            return f"ok\n{signer.name}\n{signer.kind}\n{signer.public_bytes.hex()}".encode()
        if verb != b"sign":
            return b"no\nnot a request"
        try:
            self._hold(text)
        except ValueError as error:
            return f"no\n{error}".encode()
        return b"ok\n" + self._signer.sign_bytes(text).hex().encode()

    def _hold(self, text: bytes) -> None:
        """A log never has two histories, whatever its owner asks for."""
        if text.startswith(b"aibox/rotate/v1\n"):
            return
        checkpoint = read_checkpoint(text.decode())
        last = self._signed.get(checkpoint.origin)
        if last is not None and checkpoint.size < last.size:
            raise ValueError(f"a tree of {last.size} entries has been signed; {checkpoint.size} are fewer")
        if last is not None and checkpoint.size == last.size and checkpoint.root != last.root:
            raise ValueError(f"another tree of {last.size} entries has been signed")
        self._signed[checkpoint.origin] = checkpoint
