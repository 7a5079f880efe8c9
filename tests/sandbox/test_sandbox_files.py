"""File calls as the supervisor makes them, with somebody changing the folder at the same time."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from pathlib import Path

import pytest

from aibox.sandbox.guest import files


@pytest.fixture
def top(tmp_path: Path) -> Path:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "note").write_bytes(b"outside")
    (tmp_path / "top" / "real").mkdir(parents=True)
    (tmp_path / "top" / "real" / "note").write_bytes(b"inside")
    return tmp_path / "top"


def exchange(top: Path, stop: threading.Event) -> None:
    """`swap` is a folder, a link to one inside and a link to one outside, in turn, without a pause."""
    (top / "out").symlink_to(top.parent / "outside")
    (top / "in").symlink_to("real")
    while not stop.is_set():
        # A call that makes the folder anew is in the way: then the next round begins.
        with contextlib.suppress(OSError):
            for name in ("out", "in"):
                (top / "next").symlink_to((top / name).readlink())
                (top / "next").replace(top / "swap")
            (top / "swap").unlink()
            (top / "real").rename(top / "swap")
            (top / "swap").rename(top / "real")
        shutil.rmtree(top / "swap", ignore_errors=True)
        (top / "next").unlink(missing_ok=True)


def test_a_swap_on_the_way_never_leads_outside(top: Path) -> None:
    """Reading, writing and listing while a folder is exchanged for a link hit what is inside or are refused."""
    stop = threading.Event()
    swapper = threading.Thread(target=exchange, args=(top, stop))
    swapper.start()
    answered = refused = 0
    try:
        for number in range(3000):
            try:
                read: list[bytes] = []
                files.read(b"swap/note", 100, read.append, top=os.fsencode(top))
                assert b"".join(read) in (b"inside", b"")
                writer = files.Writer(b"swap/new%d" % (number % 7), top=os.fsencode(top))
                writer.add(b"mine")
                writer.done()
                writer.close()
                rows = files.tree(b"swap", deep=True, limit=100, top=os.fsencode(top))
                assert not [row for row in rows if b"outside" in row]
                answered += 1
            except (OSError, files.Refused):
                refused += 1
    finally:
        stop.set()
        swapper.join()
    assert answered
    assert refused
    assert [path.name for path in (top.parent / "outside").iterdir()] == ["note"]
    assert (top.parent / "outside" / "note").read_bytes() == b"outside"


def test_a_file_that_grows_while_it_is_read_is_too_large(top: Path) -> None:
    """The limit holds for what was read, not for what the size was."""
    (top / "grow").write_bytes(b"x" * 10)

    def grow(chunk: bytes) -> None:
        with (top / "grow").open("ab") as file:
            file.write(b"x" * 10)

    with pytest.raises(files.Refused, match="large"):
        files.read(b"grow", 15, grow, top=os.fsencode(top))
