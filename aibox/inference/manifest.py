"""What a staged model consists of: each file with its size and SHA-256, under one Ed25519 signature.

Files are weights in GGUF or safetensors and plain companions. What runs code when it is loaded is not a model here.
"""

from __future__ import annotations

import base64
import hashlib
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from aibox.audit import canonical
from aibox.errors import ConfigError, IntegrityError
from aibox.inference.gguf import read_header

WEIGHTS = (".gguf", ".safetensors")
COMPANIONS = (".json", ".jinja", ".txt", ".md", ".model")
NAMED = ("license", "notice", "readme", "merges", "vocab")
MAX_FILES = 2000
MAX_MANIFEST_BYTES = 4 << 20
MAX_HEADER_BYTES = 100 << 20
_CONTEXT = b"aibox model manifest 1\n"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_PART = re.compile(r"[A-Za-z0-9_+][A-Za-z0-9._+ -]{0,199}")
_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})(\.gguf|\.safetensors)")


@dataclass(frozen=True, slots=True)
class File:
    """One file; `path` is relative, with slashes."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """A model's name, where it came from, and its files in order of their paths."""

    name: str
    source: str
    files: tuple[File, ...]

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def weights(self) -> tuple[File, ...]:
        return tuple(file for file in self.files if file.path.lower().endswith(WEIGHTS))

    @property
    def digest(self) -> str:
        """The SHA-256, in hex, of the canonical manifest."""
        return hashlib.sha256(self.dumps()).hexdigest()

    def dumps(self) -> bytes:
        files = [{"path": f.path, "size": f.size, "sha256": f.sha256} for f in self.files]
        return canonical.dumps({"v": 1, "name": self.name, "source": self.source, "files": files})

    def sign(self, key: Ed25519PrivateKey) -> bytes:
        """The signed form: the manifest, then the public key and the signature, each on a line of its own."""
        body = self.dumps()
        public = base64.b64encode(key.public_key().public_bytes_raw())
        return body + b"\n" + public + b"\n" + base64.b64encode(key.sign(_CONTEXT + body)) + b"\n"

    @classmethod
    def loads(cls, signed: bytes, *, trusted: bytes) -> Manifest:
        """A manifest that the raw public key `trusted` has signed. Raises IntegrityError for anything else."""
        try:
            body, public, signature, rest = signed.split(b"\n")
            key = base64.b64decode(public, validate=True)
            if rest or key != trusted:
                raise IntegrityError(
                    "the manifest was signed by another key than the one that is trusted",
                    hint="give the key of whoever made it, as you got it from them: --key",
                )
            Ed25519PublicKey.from_public_bytes(key).verify(base64.b64decode(signature, validate=True), _CONTEXT + body)
            value = canonical.loads(body)
            files = tuple(File(f["path"], f["size"], f["sha256"]) for f in value["files"])
            manifest = cls(value["name"], value["source"], files)
        except (ValueError, KeyError, TypeError, InvalidSignature):
            raise IntegrityError("the manifest is damaged or was changed") from None
        check_name(manifest.name)
        check_files(manifest.files)
        return manifest


def check_name(name: str) -> str:
    """Raises ConfigError for what cannot be the name of a model."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name[:60]!r} is no name for a model", hint="letters, digits, '.', '_' and '-'")
    return name


def check_path(path: str) -> str:
    """A relative path without anything that leads out of a folder. Raises ConfigError."""
    parts = path.split("/")
    if len(path) > 500 or not all(_PART.fullmatch(part) for part in parts) or str(PurePosixPath(path)) != path:
        raise ConfigError(f"the file {path[:100]!r} does not lie inside the model", hint="plain relative names only")
    return path


def is_wanted(path: str) -> bool:
    """Whether a file belongs to a model: its weights, or a companion that is only read."""
    name = path.rpartition("/")[2].lower()
    return name.endswith(WEIGHTS + COMPANIONS) or (name.startswith(NAMED) and "." not in name)


def check_files(files: Iterable[File]) -> None:
    """That there are weights, that no path leads out or stands twice, and that no shard is missing."""
    listed = list(files)
    paths = [check_path(file.path) for file in listed]
    if len({path.lower() for path in paths}) != len(paths) or len(paths) > MAX_FILES:
        raise ConfigError("the model's files are too many, or one stands twice")
    if not all(is_wanted(path) for path in paths):
        raise ConfigError("the model holds a file that is neither weights nor a plain companion")
    if not any(path.lower().endswith(WEIGHTS) for path in paths):
        raise ConfigError("there are no weights in GGUF or safetensors", hint="other formats can run code when loaded")
    for path in paths:
        if shard := _SHARD.fullmatch(path):
            missing = [
                wanted
                for number in range(1, int(shard[3]) + 1)
                if (wanted := f"{shard[1]}-{number:05}-of-{shard[3]}{shard[4]}") not in paths
            ]
            if missing:
                raise ConfigError(f"the shard {missing[0]} is missing", hint="get the whole model, and stage it again")


def check_contents(folder: Path, manifest: Manifest) -> None:
    """That weights are what their names say, and that an index names only files that are there. Raises ConfigError."""
    paths = {file.path for file in manifest.files}
    for file in manifest.files:
        path = folder / file.path
        if file.path.endswith(".gguf"):
            read_header(path)
        elif file.path.endswith(".safetensors"):
            _check_safetensors(path)
        elif file.path.endswith(".safetensors.index.json"):
            base = file.path.rpartition("/")[0]
            named = {f"{base}/{name}".lstrip("/") for name in _index(path).values()}
            if missing := sorted(named - paths):
                raise ConfigError(f"the shard {missing[0]} is missing", hint="get the whole model, and stage it again")


def _index(path: Path) -> Mapping[str, str]:
    try:
        weights: Mapping[str, str] = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])["weight_map"]
    except (msgspec.MsgspecError, KeyError, UnicodeDecodeError):
        raise ConfigError(f"{path.name} is no index of shards") from None
    return weights


def _check_safetensors(path: Path) -> None:
    """The header is JSON of its own length, and the tensors end where the file does."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > min(size - 8, MAX_HEADER_BYTES):
            raise ConfigError(f"{path.name} is no safetensors file, or was cut off")
        try:
            header = msgspec.json.decode(file.read(length), type=dict[str, Any])
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (msgspec.MsgspecError, UnicodeDecodeError, KeyError, TypeError, IndexError):
            raise ConfigError(f"{path.name} is no safetensors file, or is damaged") from None
    if max(ends, default=0) != size - 8 - length:
        raise ConfigError(f"{path.name} was cut off, or has something after its end")
