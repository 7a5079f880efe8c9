"""The sandbox's image, made without any registry: from the running Python, or from a Debian root made by debootstrap.

Either way it is a root file system in a tar, imported by the engine, and used by the id that the engine gives it.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final, Literal

from aibox.errors import ConfigError, SandboxError

PACKAGES: Final = ("numpy", "pandas", "matplotlib")

_PROGRAMS = """
awk base64 basename bash cat chmod cmp comm cp cut date dd df diff dirname du env expr false file find gawk grep
gunzip gzip head hostname id join kill ln ls mawk md5sum mkdir mkfifo mknod mktemp mv nl od paste pgrep printf ps
pwd readlink realpath rm rmdir sed seq setsid sh sha256sum sleep sort split stat tail tar tee test timeout touch tr
true truncate uname uniq unzip wc which xargs xz yes zip
""".split()  # noqa: SIM905 - easier to read
_FILES = {
    "etc/passwd": "nobody:x:65534:65534:nobody:/tmp:/bin/sh\n",
    "etc/group": "nogroup:x:65534:\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
}
_FOLDERS = ("dev", "etc", "proc", "sys", "tmp", "workspace", "opt/aibox", "usr/bin", "usr/local/bin")
_LEFT_OUT = {
    "site-packages",
    "test",
    "tests",
    "idlelib",
    "tkinter",
    "lib2to3",
    "ensurepip",
    "turtledemo",
}


def build(
    tag: str, *, engine: Sequence[str], source: Literal["python", "debootstrap"], say: Callable[[str], None]
) -> str:
    """Make and import the image; returns its id. Takes a minute or two; installs the packages from the usual index.

    `engine` is the command line of the engine's client. Raises SandboxError or ConfigError.
    """
    with tempfile.TemporaryDirectory(prefix="aibox-image-") as folder:
        root = Path(folder)
        if source == "debootstrap":
            say("a Debian root with python3, numpy, pandas and matplotlib: some minutes")
            return _import(engine, tag, _debootstrap(root))
        say(f"Python {sys.version.split()[0]} with {', '.join(PACKAGES)}")
        packages = root / "packages"
        _install(packages)
        say("importing the root file system")
        tar = root / "root.tar"
        with tarfile.open(tar, "w") as archive:
            _fill(archive, packages)
        return _import(engine, tag, tar)


def _install(target: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(  # noqa: S603 - words of ours
        [*command, "--only-binary", ":all:", "--target", str(target), *PACKAGES],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if "WARNING" not in line]
        raise SandboxError(f"the packages could not be installed: {said[-1] if said else 'no reason given'}")


def _fill(archive: tarfile.TarFile, packages: Path) -> None:
    """The running Python, the usual programs, what they load, and the packages; root's, and none set-user-id."""
    for folder in _FOLDERS:
        info = tarfile.TarInfo(folder)
        info.type, info.mode = tarfile.DIRTYPE, 0o755
        archive.addfile(info)
    for link, target in (("bin", "usr/bin"), ("sbin", "usr/bin"), ("lib", "usr/lib"), ("lib64", "usr/lib64")):
        _link(archive, link, target)
    for name, text in _FILES.items():
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(text), 0o644
        archive.addfile(info, io.BytesIO(text.encode()))
    base, version = Path(sys.base_prefix), f"python{sysconfig.get_python_version()}"
    library = base / "lib" / version
    archive.add(library, _inside(library), filter=_clean)
    programs = [Path(path).resolve() for name in _PROGRAMS if (path := shutil.which(name, path="/usr/bin:/bin"))]
    for name in _PROGRAMS:
        found = shutil.which(name, path="/usr/bin:/bin")
        if found is not None:
            archive.add(Path(found).resolve(), f"usr/bin/{name}", filter=_clean)
    python = base / "bin" / version
    archive.add(python, _inside(python), filter=_clean)
    for name in ("python3", "python"):
        _link(archive, f"usr/bin/{name}", str(python))
    loading = [python, *programs, *library.rglob("*.so")]
    loaded = {_inside(file): file.resolve() for file in sorted(_libraries(loading))}
    for name, file in loaded.items():
        archive.add(file, name, filter=_clean)
    archive.add(packages, "opt/aibox/packages", filter=_clean)


def _inside(path: Path) -> str:
    """Where a file of the host lies in the image: /lib and /lib64 are links into /usr there."""
    return re.sub(r"^(lib(64)?)/", r"usr/\1/", str(path).lstrip("/"))


def _clean(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
    parts = set(info.name.split("/"))
    if parts & _LEFT_OUT and "packages" not in parts:
        return None
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    info.mode = (info.mode | 0o444 | (0o111 if info.isdir() or info.mode & 0o100 else 0)) & 0o755
    return info


def _link(archive: tarfile.TarFile, name: str, target: str) -> None:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = tarfile.SYMTYPE, target, 0o777
    archive.addfile(info)


def _libraries(files: Iterable[Path]) -> set[Path]:
    """What the loader would load for them, and the loader."""
    names = [str(file) for file in files]
    done = subprocess.run(["ldd", *names], capture_output=True, text=True, check=False)  # noqa: S603, S607 - ours
    return {Path(path) for path in re.findall(r"(?:=> )?(/\S+\.so\S*) \(0x", done.stdout)}


def _debootstrap(folder: Path) -> Path:
    program = shutil.which("debootstrap")
    if program is None or os.geteuid() != 0:
        raise ConfigError("debootstrap is needed, as root", hint="apt install debootstrap, or --from python")
    root, tar = folder / "root", folder / "root.tar"
    include = ",".join(["python3", "procps", "file", "zip", "unzip", *(f"python3-{name}" for name in PACKAGES)])
    done = subprocess.run(  # noqa: S603 - words of ours
        [program, "--variant=minbase", f"--include={include}", "stable", str(root)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise SandboxError(f"debootstrap failed: {done.stdout.strip().splitlines()[-1:]}")
    for place in ("workspace", "opt/aibox"):
        (root / place).mkdir(parents=True, exist_ok=True)
    left_out = ["./dev/*", "./proc/*", "./sys/*", "./var/cache/apt/*", "./var/lib/apt/*", "./usr/share/doc/*"]
    exclude = [f"--exclude={pattern}" for pattern in left_out]
    # No program in there becomes another user: no-new-privileges holds, and they need not be there.
    subprocess.run(["tar", "-C", str(root), *exclude, "--mode=a-s", "-cf", str(tar), "."], check=True)  # noqa: S603, S607
    return tar


def _import(engine: Sequence[str], tag: str, tar: Path) -> str:
    done = subprocess.run([*engine, "import", str(tar), tag], capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode != 0:
        raise SandboxError(f"the engine did not take the image: {done.stderr.strip()}")
    return done.stdout.strip().splitlines()[-1]
