"""A guest's path inside its workspace, or a refusal.

The host never opens a path that a guest can name: files go in and out through the supervisor inside, so a link or a
race in the workspace leads at most to what the guest may read anyway. It refuses links that lead out, and what is not a
regular file, so that its answer is what the caller meant.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Final

from aibox.errors import AccessError, AIBoxError, LimitError, SandboxError, StoreError

WORKSPACE: Final = "/workspace"
TERMINALS: Final = "/dev/pts"


def inside(path: str) -> str:
    """The normal form of a path relative to the workspace. Raises AccessError for anything else.

    Refused are absolute paths, `..`, NUL, the workspace itself, names over 255 bytes and paths over 2048 bytes.
    """
    parts = PurePosixPath(path).parts
    try:
        sizes = [len(part.encode()) for part in parts]
    except UnicodeEncodeError:
        raise AccessError(f"not a path: {path[:80]!r}", hint="a path is Unicode text") from None
    if not parts or path.startswith("/") or ".." in parts or "\0" in path:
        raise AccessError(
            f"not a path inside the workspace: {path[:80]!r}",
            hint="a relative path such as 'out/report.txt', without '..'",
        )
    if max(sizes) > 255 or sum(sizes) + len(sizes) > 2048:
        raise AccessError(f"the path is too long: {path[:80]!r}", hint="up to 255 bytes a name and 2048 in all")
    return "/".join(parts)


def refusal(word: str, path: str, *, limit_mib: float) -> AIBoxError:
    """What the supervisor's word for a file call that was not done means."""
    if word == "outside":
        return AccessError(f"{path!r} leads out of the workspace")
    if word == "irregular":
        return AccessError(f"{path!r} is not a regular file", hint="folders, links, pipes and devices are refused")
    if word == "denied":
        return AccessError(f"{path!r} may not be opened", hint="its permissions forbid it: chmod it inside")
    if word == "missing":
        return StoreError(f"there is no file {path!r} in the workspace", code="upstream.store.missing")
    if word == "full":
        return LimitError(f"{path!r} does not fit into the workspace", hint=f"it holds {limit_mib:g} MiB; remove files")
    if word == "large":
        return LimitError(f"{path!r} is larger than {limit_mib:g} MiB", hint="write smaller files")
    return SandboxError(f"{path!r} could not be copied ({word})", hint="end the session and start another")


def matches(parts: list[str], wanted: list[str]) -> bool:
    """Whether a path matches a pattern, both in parts: a table of which beginnings match, so never exponential."""
    row = [True, *([False] * len(parts))]
    for pattern in wanted:
        if pattern == "**":
            reached = False
            new = []
            for cell in row:
                reached = reached or cell
                new.append(reached)
        else:
            new = [False, *(row[n] and fnmatchcase(part, pattern) for n, part in enumerate(parts))]
        row = new
    return row[-1]
