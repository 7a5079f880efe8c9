"""Models on this disk: staged once, held against a signed manifest, loaded only when they match it.

A model appears under its name when all of it is there and checked; until then, and whatever fails, the store is as it
was. What was downloaded of an unfinished one is kept, and going on begins there.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from aibox.audit.keys import Keyring
from aibox.errors import ConfigError, IntegrityError, StoreError
from aibox.inference.manifest import MAX_MANIFEST_BYTES, File, Manifest, check_contents, check_files, check_name
from aibox.inference.sources import PIECE_BYTES, Source

MANIFEST = "aibox-manifest"
Progress = Callable[[str, int, int], None]
"""Told of a file, the bytes of it that are there, and its size."""


class ModelStore:
    """The models in `folder`. `keys` hold the key that signs their manifests.

    Raises ConfigError for what is no model, IntegrityError for what does not match, StoreError for the disk.
    """

    def __init__(self, folder: Path, *, keys: Keyring) -> None:
        self.folder = folder
        self._key = Ed25519PrivateKey.from_private_bytes(keys.secret("models"))

    @property
    def public_key(self) -> bytes:
        """The raw public key under which this store's manifests are signed."""
        return self._key.public_key().public_bytes_raw()

    def list(self) -> list[Manifest]:
        """What is staged, by name; nothing is hashed."""
        names = sorted(path.parent.name for path in self.folder.glob(f"*/{MANIFEST}"))
        return [self.manifest(name) for name in names if not name.startswith(".")]

    def manifest(self, name: str) -> Manifest:
        """The manifest of a model, its signature checked."""
        path = self.folder / check_name(name) / MANIFEST
        with _disk():
            if not path.is_file():
                raise ConfigError(f"no model {name} is staged", hint="`aibox models staged` lists what there is")
            if path.stat().st_size > MAX_MANIFEST_BYTES:
                raise IntegrityError(f"the manifest of {name} is too large to be one")
            manifest = Manifest.loads(path.read_bytes(), trusted=self.public_key)
        if manifest.name != name:
            raise IntegrityError(f"the manifest in {name} is that of another model, {manifest.name}")
        return manifest

    def verify(self, name: str, *, progress: Progress | None = None) -> Manifest:
        """Hold every byte of a model against its manifest."""
        manifest = self.manifest(name)
        self._check(self.folder / name, manifest, progress)
        return manifest

    def weights(self, name: str) -> tuple[Path, str]:
        """The one GGUF file of a model to be loaded in this process, and the digest that it must have."""
        manifest = self.manifest(name)
        files = [file for file in manifest.weights if file.path.endswith(".gguf")]
        if not files:
            raise ConfigError(f"the model {name} has no GGUF file", hint="a vLLM server loads safetensors")
        if len(files) > 1:
            raise ConfigError(f"the model {name} has {len(files)} GGUF files", hint="stage the one that is meant")
        return self.folder / name / files[0].path, files[0].sha256

    def stage(self, source: Source, *, name: str, origin: str, progress: Progress | None = None) -> Manifest:
        """Copy a model, check it, sign its manifest, and put it under its name. A name is given once."""
        final = self.folder / check_name(name)
        if final.exists():
            raise ConfigError(f"a model {name} is staged already", hint=f"aibox models remove {name}, or --name")
        found = source.files()
        sizes = {path: size for path, (size, _) in found.items()}
        check_files(File(path, size, "") for path, size in sizes.items())
        work = self.folder / f".staging-{name}"
        with _disk():
            work.mkdir(mode=0o700, parents=True, exist_ok=True)
            _forget_changed(work, {path: tag for path, (_, tag) in found.items()})
            self._room_for(sum(sizes.values()) - _size(work))
            files = []
            for path in sorted(sizes):
                digest = self._copy(source, path, sizes[path], work / path, progress)
                files.append(File(path, sizes[path], digest))
            for extra in {p for p in work.rglob("*") if p.is_file()} - {work / path for path in sizes}:
                extra.unlink()
            manifest = Manifest(name, origin, tuple(files))
            check_contents(work, manifest)
            self._publish(work, manifest)
        return manifest

    def remove(self, name: str) -> None:
        """Delete a model, and what is there of an unfinished one."""
        check_name(name)
        places = [self.folder / name, self.folder / f".staging-{name}"]
        if not any(place.exists() for place in places):
            raise ConfigError(f"no model {name} is staged")
        with _disk():
            for place in places:
                # First out of sight in one step, so that no half of a model is ever found under its name.
                gone = self.folder / f".removed-{name}-{os.getpid()}"
                if place.exists():
                    place.rename(gone)
                    shutil.rmtree(gone)

    def export(self, name: str, target: Path) -> Manifest:
        """Write one file that holds a model and its signed manifest, for a site without a network."""
        manifest = self.verify(name)
        fresh = target.with_name(f".{target.name}.{os.getpid()}")
        with _disk():
            try:
                with tarfile.open(fresh, "w") as archive:
                    for path in (MANIFEST, *(file.path for file in manifest.files)):
                        archive.add(self.folder / name / path, arcname=f"{name}/{path}", recursive=False)
                fresh.replace(target)
            finally:
                fresh.unlink(missing_ok=True)
        return manifest

    def import_(self, bundle: Path, *, trusted: bytes | None = None, progress: Progress | None = None) -> Manifest:
        """Take a model out of a bundle, when `trusted` (None: this store's own key) has signed its manifest."""
        with _disk():
            try:
                with tarfile.open(bundle, "r:") as archive:
                    manifest = self._read_manifest(archive, trusted or self.public_key)
                    final = self.folder / manifest.name
                    if final.exists():
                        raise ConfigError(f"a model {manifest.name} is staged already")
                    self._room_for(manifest.size)
                    work = self.folder / f".staging-{manifest.name}"
                    shutil.rmtree(work, ignore_errors=True)
                    work.mkdir(mode=0o700, parents=True)
                    try:
                        self._unpack(archive, manifest, work)
                        self._check(work, manifest, progress)
                        check_contents(work, manifest)
                        self._publish(work, manifest)
                    finally:
                        shutil.rmtree(work, ignore_errors=True)
            except tarfile.TarError:
                raise IntegrityError(f"{bundle} is no bundle, or was cut off") from None
        return manifest

    def _read_manifest(self, archive: tarfile.TarFile, trusted: bytes) -> Manifest:
        first = archive.next()
        if first is None or not first.isfile() or not first.name.endswith(f"/{MANIFEST}"):
            raise IntegrityError("the bundle does not begin with a manifest")
        if first.size > MAX_MANIFEST_BYTES:
            raise IntegrityError("the bundle's manifest is too large to be one")
        file = archive.extractfile(first)
        assert file is not None
        return Manifest.loads(file.read(), trusted=trusted)

    def _unpack(self, archive: tarfile.TarFile, manifest: Manifest, work: Path) -> None:
        """Only files of the manifest, by its own paths and sizes: no name in the archive leads anywhere."""
        wanted = {f"{manifest.name}/{file.path}": file for file in manifest.files}
        while (member := archive.next()) is not None:
            file = wanted.pop(member.name, None)
            if file is None or not member.isfile() or member.size != file.size:
                raise IntegrityError(f"the bundle holds {member.name[:100]!r}, which its manifest does not")
            content = archive.extractfile(member)
            assert content is not None
            (work / file.path).parent.mkdir(parents=True, exist_ok=True)
            with (work / file.path).open("xb") as target:
                shutil.copyfileobj(content, target, PIECE_BYTES)
        if wanted:
            raise IntegrityError(f"the bundle lacks {next(iter(wanted))}")

    def _copy(self, source: Source, path: str, size: int, target: Path, progress: Progress | None) -> str:
        """Copy one file, going on where an earlier attempt ended. Its digest."""
        target.parent.mkdir(parents=True, exist_ok=True)
        sha, there = hashlib.sha256(), 0
        if target.exists() and target.stat().st_size <= size:
            with target.open("rb") as file:
                while piece := file.read(PIECE_BYTES):
                    sha.update(piece)
                    there += len(piece)
        with target.open("r+b" if there else "wb") as file:
            file.seek(there)
            if there < size:
                for piece in source.read(path, there):
                    there += len(piece)
                    if there > size:
                        raise IntegrityError(f"{path} is longer than its {size} bytes; it changed while it was read")
                    file.write(piece)
                    sha.update(piece)
                    if progress is not None:
                        progress(path, there, size)
            file.flush()
            os.fsync(file.fileno())
        if there != size:
            raise StoreError(
                f"{path} ended after {there} of {size} bytes",
                hint="stage it again: it goes on where it ended",
                retryable=True,
            )
        return sha.hexdigest()

    def _check(self, folder: Path, manifest: Manifest, progress: Progress | None) -> None:
        with _disk():
            found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir()} - {MANIFEST}
            if extra := sorted(found - {file.path for file in manifest.files}):
                raise IntegrityError(f"the model {manifest.name} holds {extra[0]}, which its manifest does not")
            for file in manifest.files:
                path = folder / file.path
                if path.is_symlink() or not path.is_file():
                    raise IntegrityError(f"{file.path} of the model {manifest.name} is missing")
                with path.open("rb") as content:
                    digest = hashlib.file_digest(content, "sha256").hexdigest()
                if digest != file.sha256 or path.stat().st_size != file.size:
                    raise IntegrityError(
                        f"{file.path} of the model {manifest.name} is not what was staged",
                        hint="do not load it; stage it again from whom you trust",
                    )
                if progress is not None:
                    progress(file.path, file.size, file.size)

    def _publish(self, work: Path, manifest: Manifest) -> None:
        with (work / MANIFEST).open("wb") as file:
            file.write(manifest.sign(self._key))
            file.flush()
            os.fsync(file.fileno())
        work.rename(self.folder / manifest.name)

    def _room_for(self, size: int) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        if size > free:
            raise StoreError(
                f"the model needs {size >> 20} MiB more and the disk has {free >> 20}",
                hint="make room; nothing changed",
            )


def _forget_changed(work: Path, tags: dict[str, str]) -> None:
    """What an earlier attempt has copied of a file that is another one now, or of unknown origin, is thrown away."""
    record = work / ".tags"
    try:
        known = msgspec.json.decode(record.read_bytes(), type=dict[str, str])
    except (FileNotFoundError, msgspec.MsgspecError, UnicodeDecodeError):
        known = {}
    for path, tag in tags.items():
        if known.get(path) != tag:
            (work / path).unlink(missing_ok=True)
    record.write_bytes(msgspec.json.encode(tags))


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@contextmanager
def _disk() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        what = "the disk is full" if error.errno == errno.ENOSPC else f"the models cannot be kept: {error}"
        raise StoreError(what, hint="make room, and do it again; what is staged is unharmed") from None
