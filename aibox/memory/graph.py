"""The graph of a large index, built beside it by a child process while the index goes on without.

qdrant-edge compares a question with every vector until it is told to build a graph, and holds Python's lock for as long
as that takes: a minute for 100,000 vectors. So a copy is given its graph elsewhere, and takes the index's place.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from os import getpid
from pathlib import Path
from typing import NamedTuple


class Built(NamedTuple):
    """A shard with its graph, and the change in the rows that it has come to."""

    shard: Path
    change: int


class GraphBuild:
    """One build, of a copy in `<folder>/graph/`. Used by one thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "graph"
        self._child: subprocess.Popen[bytes] | None = None
        self._change = 0

    @property
    def under_way(self) -> bool:
        return self._child is not None

    def start(self, shard: Path, change: int) -> None:
        """Copy the files of a flushed shard, which has come as far as `change`, and begin. Raises OSError."""
        self.stop()
        copy = self._folder / "shard"
        shutil.copytree(shard, copy)
        self._change = change
        # -I as for every child: what lies in the working directory is not imported.
        command = [sys.executable, "-I", "-m", "aibox.memory.graph_child", str(copy), str(getpid())]
        self._child = subprocess.Popen(  # noqa: S603 - our own module, on a folder of our own
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def done(self) -> Built | None:
        """What has become of it; None while it is being built. Raises ChildProcessError."""
        if self._child is None or (code := self._child.poll()) is None:
            return None
        self._child = None
        if code:
            self.stop()
            raise ChildProcessError(f"the process that builds the graph of an index ended with {code}")
        return Built(self._folder / "shard", self._change)

    def stop(self) -> None:
        """End the child and remove the copy, also one that a former process left. Raises OSError."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.wait()
        if self._folder.is_dir():
            shutil.rmtree(self._folder)
