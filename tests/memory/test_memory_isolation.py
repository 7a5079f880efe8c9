"""Two hundred tenants on one memory, interleaved by fifty tasks: not one record crosses."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import memory_crowd
import pytest


@pytest.mark.anyio
async def test_two_hundred_tenants_never_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over the whole interface, at random, each tenant sees its own alone; and again after reopening.

    Rows are searched exactly here: the rows are what isolates, and 400 indexes would take a minute to make.
    """
    monkeypatch.setitem(sys.modules, "qdrant_edge", None)
    await memory_crowd.crowd(tmp_path, 200, 1500)
    assert await memory_crowd.look(tmp_path, 200) > 0


@pytest.mark.anyio
async def test_tenants_with_indexes_never_meet(tmp_path: Path) -> None:
    """The same with an index each."""
    await memory_crowd.crowd(tmp_path, 6, 300)
    assert await memory_crowd.look(tmp_path, 6) > 0


@pytest.mark.anyio
async def test_a_kill_does_not_mix_them(tmp_path: Path) -> None:
    """After SIGKILL in the middle of it, and a reopening, each tenant finds its own alone."""
    command = [sys.executable, memory_crowd.__file__, str(tmp_path / "m"), "5"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as crowd:
        assert crowd.stdout is not None
        for _ in range(150):
            assert crowd.stdout.readline()
        crowd.send_signal(signal.SIGKILL)
    assert await memory_crowd.look(tmp_path / "m", 5) > 0
