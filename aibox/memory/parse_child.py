"""The child process that reads one file: `python -m aibox.memory.parse_child KIND MEMORY_MIB CPU_S`, bytes to JSON."""

from __future__ import annotations

import json
import sys
from typing import cast

from aibox.memory.extracted import Kind
from aibox.memory.parsers import UnreadableError, parse
from aibox.sealing import seal


def main(kind: str, memory_mib: int, cpu_s: int) -> None:
    data = sys.stdin.buffer.read()
    answer: dict[str, object]
    try:
        import resource
    except ImportError:  # not on Windows: there only the parent's clock bounds the child
        pass
    else:
        resource.setrlimit(resource.RLIMIT_AS, (memory_mib * 1024**2,) * 2)
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    # A parser that is made to open a connection does not get one. On Windows the seal does not hold, and says so.
    if sys.platform != "win32":
        seal()
    try:
        extracted = parse(data, cast("Kind", kind))
        answer = {"text": extracted.text, "blocks": extracted.blocks, "pages": extracted.pages}
    except UnreadableError as error:
        answer = {"unreadable": str(error)}
    except ImportError as error:
        answer = {"missing": str(error)}
    except RecursionError:
        answer = {"unreadable": "it is nested too deeply"}
    # Lone surrogates, which PDF fonts can produce, do not leave this process.
    sys.stdout.buffer.write(json.dumps(answer).encode("ascii"))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
