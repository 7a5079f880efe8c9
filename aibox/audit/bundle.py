"""A log outside its database: JSON lines as they are stored, or a ZIP with them, a signed checkpoint and a verifier.

    log.json        format, tenant, origin, the public key that the log began under
    entries.jsonl   an entry a line: header, open part, sealed part, tag; null where retention has removed a body
    checkpoint      a signed note over exactly these entries
    *.py            the verifier, which needs no aibox: `python log.zip [log.pub]`

Sealed parts stay sealed and no key of a person goes along, so an erasure reaches an export too.
"""

from __future__ import annotations

import base64
import json
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from aibox.audit.checkpoint import open_note, read_base64, read_checkpoint
from aibox.audit.record import Row, log_id, read_detail
from aibox.audit.report import Problem, Report
from aibox.audit.store import LogName, Store
from aibox.audit.walk import Walk
from aibox.errors import ConfigError, StoreError

FORMAT = "aibox/bundle/v1"
FIELDS = {"format", "origin", "public_key", "tenant"}
MAX_SMALL, MAX_LINE = 64 * 1024, 2**20
PROGRESS_EVERY = 1000
_OFFLINE = Path(__file__).parent / "offline"
_UNREADABLE = (
    OSError, ValueError, RecursionError, AttributeError, TypeError, KeyError, EOFError, RuntimeError, struct.error,
    zlib.error, zipfile.BadZipFile,
)  # fmt: skip
_READ_ME = """The audit log of one tenant, as far as the signed checkpoint beside it reaches.

    python THIS.zip LOG.pub

checks it with the verifier that lies in it (Python 3.11, package `cryptography`). LOG.pub is the log's public key, from
somebody you trust. Whoever does not trust where this file came from takes verify_bundle.py and verify_receipt.py from
elsewhere, reads them, and runs: python verify_bundle.py THIS.zip LOG.pub
"""


class _BrokenLineError(ValueError):
    """A line that is written in a way that no export writes."""


def lines(store: Store, log: bytes, size: int) -> Iterator[str]:
    """The first `size` entries."""
    for row in store.entries(log, limit=size):
        value = {
            "header": base64.b64encode(row.header).decode(),
            "open": None if row.open is None else row.open.decode(),
            "sealed": None if row.sealed is None else base64.b64encode(row.sealed).decode(),
            "tag": base64.b64encode(row.tag).decode(),
        }
        yield json.dumps(value, ensure_ascii=False) + "\n"


def write(path: Path, store: Store, name: LogName, note: str) -> int:
    """JSON lines with the checkpoint in a file beside them, or all in one where `path` ends in .zip.

    Returns the number of entries. Raises ConfigError for a file that is there already, StoreError.
    """
    size = int(note.split("\n", 2)[1])
    try:
        if path.suffix == ".zip":
            with zipfile.ZipFile(path, "x", zipfile.ZIP_DEFLATED, compresslevel=1) as bundle:
                about = {"format": FORMAT, "tenant": name.tenant, "origin": name.origin, "public_key": name.public_key}
                bundle.writestr("README.txt", _READ_ME)
                bundle.writestr("log.json", json.dumps(about, indent=1, ensure_ascii=False) + "\n")
                bundle.writestr("checkpoint", note)
                for file, script in (("__main__", "verify_bundle"), ("verify_receipt", "verify_receipt")):
                    bundle.writestr(f"{file}.py", (_OFFLINE / f"{script}.py").read_text("utf-8"))
                with bundle.open("entries.jsonl", "w", force_zip64=True) as entries:
                    for line in lines(store, name.log, size):
                        entries.write(line.encode())
            return size
        with path.open("x", encoding="utf-8") as plain:
            plain.writelines(lines(store, name.log, size))
        path.with_name(path.name + ".checkpoint").write_text(note, "utf-8")
    except FileExistsError:
        raise ConfigError(f"{path} is there already") from None
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror}") from None
    return size


def verify(
    path: Path, *, key: str | None, checkpoints: Sequence[str], progress: Callable[[int], None] | None
) -> Report:
    """Hold a bundle against itself. Raises ConfigError for what is none; what does not hold is in the report."""
    report = Report(logs=1, tags=False, pinned=key is not None)
    tenant, seq = "-", None
    try:
        with zipfile.ZipFile(path) as bundle:
            name, note = _head(bundle)
            tenant = name.tenant
            walk = _walk(name)
            walk.wanted = {size for note in checkpoints if (size := _size(note)) is not None}
            seq = 0
            for row in _rows(bundle):
                _step(walk, row)
                seq = walk.frontier.size
                if progress and seq % PROGRESS_EVERY == 0:
                    progress(seq)
    except _BrokenLineError as error:
        report.problems.append(Problem(tenant, seq, str(error)))
    except _UNREADABLE as error:
        raise ConfigError(f"{path} is not an exported log: {error}") from None
    else:
        _end(report, walk, name, [(note, "its checkpoint"), *((n, "a checkpoint from elsewhere") for n in checkpoints)])
        if key is not None and key not in walk.line:
            report.problems.append(Problem(tenant, None, "it was never signed under the key that you hold"))
    return report


def _head(bundle: zipfile.ZipFile) -> tuple[LogName, str]:
    about, note = json.loads(_small(bundle, "log.json")), _small(bundle, "checkpoint").decode()
    if not isinstance(about, dict) or set(about) != FIELDS or about["format"] != FORMAT:
        raise ValueError("not this format")
    if not all(isinstance(text, str) for text in about.values()):
        raise ValueError("a field has the wrong type")
    if len(set(bundle.namelist())) < len(bundle.namelist()):
        raise ValueError("two files in it have one name")
    return LogName(log_id(about["origin"]), about["tenant"], about["origin"], about["public_key"]), note


def _walk(name: LogName) -> Walk:
    try:
        return Walk(name, None)
    except ValueError as error:
        raise _BrokenLineError(str(error)) from None


def _size(note: str) -> int | None:
    try:
        return read_checkpoint(note.rpartition("\n\n")[0] + "\n").size
    except ValueError:
        return None


def _step(walk: Walk, row: Row) -> None:
    try:
        if row.open is not None:
            read_detail(row.open)
        walk.step(row)
    except (ValueError, TypeError, KeyError) as error:
        raise _BrokenLineError(str(error)) from None


def _end(report: Report, walk: Walk, name: LogName, notes: Sequence[tuple[str, str]]) -> None:
    size = walk.frontier.size
    walk.roots[size] = walk.frontier.root()
    report.entries, report.checkpoints, report.outside = size, 1, len(notes) - 1
    report.pruned, report.restored = len(walk.pruned), walk.restored
    for note, what in notes:
        at = size if what == "its checkpoint" else _size(note)
        try:
            point = open_note(note, walk.line.at(at or 0))
        except ValueError as error:
            report.problems.append(Problem(name.tenant, None, f"{what} does not hold: {error}"))
            continue
        if (point.origin, point.size, point.root) != (name.origin, at, walk.roots.get(at or 0)):
            report.problems.append(Problem(name.tenant, None, f"it is not the log that was signed ({what})"))
    for seq in sorted(walk.missing ^ walk.pruned):
        cause = "its body is missing, or there again, in spite of what the log says was removed"
        report.problems.append(Problem(name.tenant, seq, cause))


def _rows(bundle: zipfile.ZipFile) -> Iterator[Row]:
    with bundle.open("entries.jsonl") as entries:
        seq = 0
        while line := entries.readline(MAX_LINE):
            value = json.loads(line)
            if not isinstance(value, dict) or set(value) != {"header", "open", "sealed", "tag"}:
                raise ValueError("a line that is no entry")
            shown, sealed = value["open"], value["sealed"]
            yield Row(
                seq,
                _base64(value["header"]),
                None if shown is None else shown.encode(),
                None if sealed is None else _base64(sealed),
                _base64(value["tag"]),
            )
            seq += 1


def _base64(text: Any) -> bytes:
    try:
        return read_base64(text)
    except (ValueError, TypeError) as error:
        raise _BrokenLineError(str(error)) from None


def _small(bundle: zipfile.ZipFile, name: str) -> bytes:
    with bundle.open(name) as file:
        data = file.read(MAX_SMALL + 1)
    if len(data) > MAX_SMALL:
        raise ValueError(f"{name} is too long")
    return data
