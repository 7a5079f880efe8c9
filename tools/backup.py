#!/usr/bin/env python3
"""Save a data folder of aibox while it is in use, check what was saved, and put it back.

    backup.py save HOME FOLDER [--skip models]
    backup.py check FOLDER
    backup.py restore FOLDER HOME

Standard library only. FOLDER gets `data`, `keys` and `manifest.json`, the SHA-256 of each file. Whoever has `keys` can
read everything and write evidence: keep it on other media than `data`. Databases are copied by SQLite's own backup,
each as of one moment, the evidence last, so that it knows of everything in the others. Vectors are left out: they are
made anew from the rows.

Exit codes: 0 good; 1 a saved file is missing or changed; 2 it could not be done.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

EVIDENCE = "audit.db"
KEYS = "keys"
DERIVED = {("memory", "vectors"), ("memory", "passages")}
MARK = "highwater.json"  # moves with each checkpoint; one that is older than the evidence is no harm
MOVING = ("-wal", "-shm", "-journal", ".lock")  # of the databases and locks themselves


class BackupError(Exception):
    pass


def save(home: Path, folder: Path, *, skip: frozenset[str] = frozenset()) -> int:
    """Copy `home` into the new folder `folder`; returns the number of files."""
    if not home.is_dir():
        raise BackupError(f"{home} is not a folder; name the data folder, which `aibox doctor` prints")
    if folder.exists():
        raise BackupError(f"{folder} is there already; name a new folder")
    being_made = folder.with_name(folder.name + ".partial")
    for _ in range(5):
        shutil.rmtree(being_made, ignore_errors=True)
        being_made.mkdir(parents=True, mode=0o700)
        keys = _read(home / KEYS)
        _copy(home, being_made / "data", skip=skip | {KEYS})
        # A key that was rotated meanwhile is not the one that the evidence was written under.
        if _lasting(keys) == _lasting(_read(home / KEYS)):
            break
    else:
        raise BackupError("keys were rotated each time that the data was copied; try again")
    for name, content in keys.items():
        target = being_made / KEYS / name
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        _write(target, content)
    digests = {str(path.relative_to(being_made)): _digest(path) for path in _files(being_made)}
    _write(being_made / "manifest.json", json.dumps(digests, indent=1, sort_keys=True).encode())
    being_made.rename(folder)
    return len(digests)


def check(folder: Path) -> list[str]:
    """What is wrong with a saved folder, a line each; nothing when it is as it was saved."""
    try:
        digests: dict[str, str] = json.loads((folder / "manifest.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise BackupError(f"{folder} holds no readable manifest.json: {error}") from None
    there = {str(path.relative_to(folder)): path for path in _files(folder)}
    there.pop("manifest.json", None)
    wrong = [f"missing: {name}" for name in digests if name not in there]
    wrong += [f"not in the manifest: {name}" for name in there if name not in digests]
    wrong += [f"changed: {name}" for name, path in there.items() if digests.get(name, "") not in ("", _digest(path))]
    return sorted(wrong)


def restore(folder: Path, home: Path) -> str:
    """Put the data back into `home`, which must hold none; keys that are there stay, others come back too."""
    if wrong := check(folder):
        raise BackupError("this backup is not as it was saved: " + "; ".join(wrong))
    held = [path.name for path in home.iterdir() if path.name != KEYS] if home.exists() else []
    if held:
        raise BackupError(f"{home} holds {', '.join(sorted(held))}; move it away first, nothing is overwritten")
    shutil.copytree(folder / "data", home, dirs_exist_ok=True)
    if (home / KEYS).exists():
        return (
            "the data is back, under the keys that were there. Where the log was longer than this copy it will not "
            "open before somebody says why: aibox audit restore --reason ..."
        )
    shutil.copytree(folder / KEYS, home / KEYS)
    return (
        "the data and its keys are back. The mark of the log is this copy's own: hold the log against a checkpoint "
        "kept elsewhere, aibox verify audit.db --checkpoint ..."
    )


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _read(keys: Path) -> dict[str, bytes]:
    return {str(path.relative_to(keys)): path.read_bytes() for path in _files(keys) if path.name != ".lock"}


def _lasting(keys: dict[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in keys.items() if not name.startswith(MARK)}


def _copy(home: Path, data: Path, *, skip: frozenset[str]) -> None:
    data.mkdir(mode=0o700)
    for path in sorted(_files(home), key=lambda path: path.name == EVIDENCE):
        place = path.relative_to(home)
        if place.parts[0] in skip or place.parts[:2] in DERIVED or path.name.endswith(MOVING):
            continue
        target = data / place
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if path.suffix == ".db":
            _copy_database(path, target)
        else:
            shutil.copy2(path, target)


def _copy_database(source: Path, target: Path) -> None:
    """The last committed state, while others write: pages are read in one transaction."""
    os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    one = sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True, timeout=60)
    with closing(one), closing(sqlite3.connect(target)) as other:
        one.backup(other)
        found = other.execute("PRAGMA integrity_check").fetchone()[0]
    if found != "ok":
        raise BackupError(f"{source} is damaged: {found}")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(path: Path, content: bytes) -> None:
    with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
        file.write(content)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    saving = verbs.add_parser("save", help="copy a data folder that may be in use")
    saving.add_argument("home", type=Path)
    saving.add_argument("folder", type=Path)
    saving.add_argument("--skip", action="append", default=[], help="a folder that has another source, such as models")
    verbs.add_parser("check", help="hold a saved folder against its manifest").add_argument("folder", type=Path)
    restoring = verbs.add_parser("restore", help="put a saved folder back")
    restoring.add_argument("folder", type=Path)
    restoring.add_argument("home", type=Path)
    given = parser.parse_args()
    try:
        if given.verb == "save":
            print(f"saved {save(given.home, given.folder, skip=frozenset(given.skip))} files in {given.folder}")
        elif given.verb == "check":
            wrong = check(given.folder)
            print("\n".join(wrong) or "as it was saved")
            return 1 if wrong else 0
        else:
            print(restore(given.folder, given.home))
    except (BackupError, OSError, sqlite3.Error) as error:
        print(f"backup: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
