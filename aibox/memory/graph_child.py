"""The child process that gives a shard its graph: `python -m aibox.memory.graph_child SHARD PARENT`."""

from __future__ import annotations

import os
import sys

from aibox.memory.vector_index import build_graph

_PR_SET_PDEATHSIG = 1
_SIGKILL = 9


def main(shard: str, parent: int) -> None:
    if sys.platform != "win32":
        os.nice(10)
    if sys.platform == "linux":
        # What it works on is erased with its parent's folder: it must not outlive who would do that.
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, _SIGKILL)
    if os.getppid() == parent:
        build_graph(shard)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
