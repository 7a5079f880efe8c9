#!/usr/bin/env python3
"""Check an exported log of aibox without aibox. Needs Python 3.11, the package `cryptography`, and `verify_receipt.py`.

    python log.zip [log.pub]
    python verify_bundle.py log.zip [log.pub]

Exit code 0: it holds; 1: it does not, and the reason is printed; 2: it could not be read. The first form runs the copy
of this file that lies in the export itself: whoever does not trust where the export came from takes one from elsewhere.

What is proved, step by step: the log is whole from its first entry to the size of a signed checkpoint, and has its root
(RFC 6962); each entry follows the one before it and commits to the body that stands here; keys change only as the log
says, each signed by the one before; bodies are missing only where an entry says so. Without log.pub the key inside is
used: then all fits together, and who signed is only as sure as the way that the file took.
"""

from __future__ import annotations

import hashlib
import json
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from verify_receipt import (
    GENESIS,
    KEY,
    TOMBSTONE,
    BrokenError,
    Header,
    UnreadableError,
    check_body,
    check_rotation,
    hold,
    log_id_of,
    read_checkpoint,
    read_header,
    read_key,
    sha256,
    strict_base64,
)

MAX_SMALL, MAX_LINE = 64 * 1024, 2**20
FIELDS = {"format", "origin", "public_key", "tenant"}
UNREADABLE = (
    OSError, ValueError, RecursionError, AttributeError, TypeError, KeyError, EOFError, RuntimeError, struct.error,
    zlib.error, zipfile.BadZipFile,
)  # fmt: skip
"""What reading a file that is something else can raise."""
Line = tuple[bytes, bytes | None, bytes | None, bytes]
"""Header, open part, sealed part and tag of an entry; the parts are None where its body was removed."""

# Acts on the log itself: never sealed; three of them end an epoch of keys.
KEY_ACTS = {"key.ratcheted", "key.rotated", "log.restored"}
ACTS = KEY_ACTS | {"subject.erased", "bodies.pruned", "hold.set", "hold.released"}


class Log:
    """What is known of a log after each entry."""

    def __init__(self, about: dict[str, str]) -> None:
        self.log_id, self.tenant = log_id_of(about["origin"]), about["tenant"]
        self.keys = [(about["public_key"], -1)]  # each with the size of the last tree that it may sign
        first = sha256(read_key(about["public_key"])[2])
        self.prev = sha256(b"aibox/genesis/v1\x00", self.log_id, first)
        self.size, self.ts_us, self.epoch, self.epoch_first = 0, 0, 0, 0
        self.tags = hashlib.sha256()
        self.roots: list[tuple[int, bytes]] = []  # complete subtrees, the largest first: (leaves, hash)
        self.missing: set[int] = set()
        self.pruned: set[int] = set()

    def add(self, data: bytes, shown: bytes | None, sealed: bytes | None, tag: bytes) -> None:
        seq, header = self.size, read_header(data, self.log_id)
        hold(header.seq == seq, f"entry {seq} says that it is entry {header.seq}")
        hold(header.prev == self.prev, f"entry {seq} does not follow the entry before it")
        hold(bool(header.flags & GENESIS) == (seq == 0), f"entry {seq}: only the first entry begins a log")
        hold(header.ts_us >= self.ts_us, f"entry {seq}: its time lies before that of the entry before it")
        hold(len(tag) == 32, f"entry {seq}: its tag has another length")
        action, detail = "", {}
        if shown is None:
            hold(sealed is None, f"entry {seq}: one part of its body is missing")
            hold(not header.flags & (KEY | TOMBSTONE), f"entry {seq}: the body of an act on the log is missing")
            self.missing.add(seq)
        else:
            hold(not sealed or len(sealed) >= 64, f"entry {seq}: its sealed part is too short")
            body = check_body(header, shown, sealed or b"", self.tenant)
            action, detail = body["action"], body["detail"]
            hold(bool(header.flags & KEY) == (action in KEY_ACTS), f"entry {seq}: its flags and its act disagree")
            hold(bool(header.flags & TOMBSTONE) == (action == "subject.erased"), f"entry {seq}: a false tombstone")
            hold(not (sealed and action in ACTS), f"entry {seq}: an act on the log is never sealed")
        jumps = action == "log.restored" and header.epoch > self.epoch
        hold(header.epoch == self.epoch or jumps, f"entry {seq}: its epoch is not that of the log")
        self.prev, self.ts_us, self.size = sha256(b"\x00", data), header.ts_us, seq + 1
        self.act(action, detail, header)
        if not header.flags & KEY:
            self.tags.update(tag)
        leaves, current = 1, self.prev
        while self.roots and self.roots[-1][0] == leaves:
            leaves, current = leaves * 2, sha256(b"\x01", self.roots.pop()[1], current)
        self.roots.append((leaves, current))

    def act(self, action: str, detail: dict[str, Any], header: Header) -> None:
        seq = header.seq
        try:
            if action == "subject.erased":
                [bytes.fromhex(subject) for subject in detail["subjects"]]
            if action == "bodies.pruned":
                bits, first = bytes.fromhex(detail["bits"]), int(detail["first"])
                gone = [first + n * 8 + bit for n, byte in enumerate(bits) for bit in range(8) if byte >> bit & 1]
                hold(gone and first >= 0, f"entry {seq} does not say which bodies it removes")
                hold((gone[0], gone[-1]) == (first, detail["last"]), f"entry {seq} says two things of what it removes")
                hold(gone[-1] < seq, f"entry {seq} prunes what comes after it")
                self.pruned.update(gone)
            if action not in KEY_ACTS:
                return
            hold(
                detail["epoch"] == header.epoch and detail["from"] == self.epoch_first,
                f"entry {seq} ends another epoch",
            )
            hold(detail["tags_sha256"] == self.tags.hexdigest(), f"tags before entry {seq} were changed")
            if action == "log.restored":
                int(detail["size"]), int(detail["lost_size"])
        except (KeyError, TypeError) as error:
            raise BrokenError(f"entry {seq}: an act that does not say what it does: {error}") from None
        if action == "key.rotated":
            new = check_rotation(detail, self.log_id)
            hold(detail["old"] == self.keys[-1][0], f"entry {seq} hands over from a key that was not in use")
            hold(detail["until"] == seq + 1, f"entry {seq}: the rotation does not stand where it says")
            self.keys[-1:] = [(detail["old"], seq + 1), (new, -1)]
        self.epoch, self.epoch_first, self.tags = header.epoch + 1, seq + 1, hashlib.sha256()

    def end(self, note: str, origin: str, pinned: str | None) -> None:
        key = next(key for key, until in self.keys if until < 0 or self.size <= until)
        root = sha256()
        for n, (_, subtree) in enumerate(reversed(self.roots)):
            root = sha256(b"\x01", subtree, root) if n else subtree
        hold(read_checkpoint(note, key) == (origin, self.size, root), "it is not the log of the signed checkpoint")
        hold(pinned is None or pinned.strip() in dict(self.keys), "it was never signed under the key that you hold")
        hold(self.missing == self.pruned, "a body is missing, or there again, that no entry, or one, says was removed")


def read_line(line: bytes) -> Line:
    value = json.loads(line)
    if not isinstance(value, dict) or set(value) != {"header", "open", "sealed", "tag"}:
        raise UnreadableError("a line that is no entry")
    shown, sealed = value["open"], value["sealed"]
    return (
        strict_base64(value["header"]),
        None if shown is None else shown.encode(),
        None if sealed is None else strict_base64(sealed),
        strict_base64(value["tag"]),
    )


def check_bundle(path: Path, pinned: str | None) -> Log:
    """Line by line. Raises UnreadableError for what is no bundle, BrokenError for one that does not hold."""
    try:
        bundle = zipfile.ZipFile(path)
        names = bundle.namelist()
        about, note = json.loads(read_small(bundle, "log.json")), read_small(bundle, "checkpoint").decode()
    except UNREADABLE as error:
        raise UnreadableError(str(error)) from None
    if not isinstance(about, dict) or set(about) != FIELDS or about["format"] != "aibox/bundle/v1":
        raise UnreadableError("not an exported log of this format")
    if not all(isinstance(text, str) for text in about.values()):
        raise UnreadableError("a field has the wrong type")
    if len(set(names)) < len(names):
        raise UnreadableError("two files in it have one name")
    with bundle:
        log = Log(about)
        for entry in bundle_lines(bundle):
            log.add(*entry)
    log.end(note, about["origin"], pinned)
    return log


def read_small(bundle: zipfile.ZipFile, name: str) -> bytes:
    with bundle.open(name) as file:
        data = file.read(MAX_SMALL + 1)
    if len(data) > MAX_SMALL:
        raise UnreadableError(f"{name} is too long")
    return data


def bundle_lines(bundle: zipfile.ZipFile) -> Iterator[Line]:
    try:
        with bundle.open("entries.jsonl") as lines:
            while line := lines.readline(MAX_LINE):
                yield read_line(line)
    except BrokenError:
        raise
    except UNREADABLE as error:
        raise UnreadableError(str(error)) from None


def main(arguments: list[str]) -> int:
    if Path(sys.argv[0]).suffix == ".zip":
        arguments = [sys.argv[0], *arguments]
    if len(arguments) not in (1, 2):
        print(__doc__)
        return 2
    try:
        pinned = Path(arguments[1]).read_text("utf-8") if len(arguments) == 2 else None
        if pinned is not None:
            read_key(pinned)
    except (OSError, ValueError) as error:
        print(f"the key cannot be read: {error}")
        return 2
    try:
        log = check_bundle(Path(arguments[0]), pinned)
    except UnreadableError as error:
        print(f"cannot be read: {error}")
        return 2
    except ValueError as error:
        print(f"does not hold: {error}")
        return 1
    print(f"holds: {log.size} entries of tenant {log.tenant}; {len(log.pruned)} bodies removed by retention")
    if pinned is None:
        print("the key was taken from the export itself; give log.pub to know who signed")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
