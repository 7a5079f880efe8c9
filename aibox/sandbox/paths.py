"""A guest's path inside its workspace, or a refusal.

The host never opens a path that a guest can name: files go in and out through a small program inside the isolation, so
a link or a race in the workspace leads at most to what the guest may read anyway. That program refuses links that lead
out, and what is not a regular file, so that its answer is what the caller meant.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Final

from aibox.errors import AccessError, AIBoxError, LimitError, SandboxError, StoreError

WORKSPACE: Final = "/workspace"


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


# Exit codes of the two programs below. They run alone in the sandbox, isolated from the workspace's own modules.
_OUTSIDE, _IRREGULAR, _MISSING, FULL, _LARGE = 91, 92, 93, 94, 95

_BEGIN = f"""
import errno, os, stat, sys
def fail(error):
    codes = {{errno.ENOSPC: {FULL}, errno.EFBIG: {FULL}, errno.EDQUOT: {FULL}, errno.ENOENT: {_MISSING}}}
    sys.exit(codes.get(error.errno, {_IRREGULAR}))
def real(path):
    path = os.path.realpath(path)
    if path != {WORKSPACE!r} and not path.startswith({WORKSPACE + "/"!r}):
        sys.exit({_OUTSIDE})
    return path
def copy(source, target):
    while chunk := source.read(1 << 20):
        target.write(chunk)
path, limit = sys.argv[1], int(sys.argv[2])
"""

# O_NONBLOCK: opening a FIFO that nobody writes to must not wait.
GET: Final = f"""{_BEGIN}
try:
    source = os.open(real(path), os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    status = os.fstat(source)
    if not stat.S_ISREG(status.st_mode):
        sys.exit({_IRREGULAR})
    if status.st_size > limit:
        sys.exit({_LARGE})
    copy(open(source, "rb"), sys.stdout.buffer)
except OSError as error:
    fail(error)
"""

# A new file takes the place of the old one, whatever that is but a folder: a link or a FIFO is replaced, not followed.
PUT: Final = f"""{_BEGIN}
folder, name = os.path.split({WORKSPACE!r} + "/" + path)
temporary = None
try:
    folder = real(folder)
    os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, ".put-" + os.urandom(8).hex())
    with open(temporary, "xb") as target:
        copy(sys.stdin.buffer, target)
    os.replace(temporary, os.path.join(folder, name))
except OSError as error:
    if temporary is not None and os.path.lexists(temporary):
        os.unlink(temporary)
    fail(error)
"""


def refusal(exit_code: int | None, path: str, *, limit_mib: int) -> AIBoxError:
    """What the exit code of GET or PUT means."""
    if exit_code == _OUTSIDE:
        return AccessError(f"{path!r} leads out of the workspace")
    if exit_code == _IRREGULAR:
        return AccessError(f"{path!r} is not a regular file", hint="folders, links, pipes and devices are refused")
    if exit_code == _MISSING:
        return StoreError(f"there is no file {path!r} in the workspace")
    if exit_code == FULL:
        return LimitError(f"{path!r} does not fit into the workspace", hint=f"it holds {limit_mib} MiB; remove files")
    if exit_code == _LARGE:
        return LimitError(f"{path!r} is larger than {limit_mib} MiB", hint="write smaller files")
    return SandboxError(
        f"{path!r} could not be copied (exit code {exit_code})", hint="end the session and start another"
    )
