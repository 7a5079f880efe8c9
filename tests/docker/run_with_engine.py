"""Start a Docker engine of our own, build the sandbox's image, run the tests against both, and clean up.

    python tests/docker/run_with_engine.py [pytest arguments]

Installs Debian's `docker.io` when there is no dockerd. Says loudly when there can be no engine, and then fails unless
AIBOX_TEST_DOCKER_OPTIONAL is set. The engine has no bridge and no rules for packets, so it changes nothing of the host.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

PACKAGES = ("docker.io", "runsc")
BUDGET_S = 600
ALONE = "tests/docker/test_docker_killed.py"
REMOVED_S = 20
"""How long the engine may take to remove what has ended: it does so after who waited for the end was told."""
NOTHING = 5
"""What pytest ends with when it has found no test."""


def loudly(why: str) -> int:
    line = "!" * 78
    print(f"{line}\n!! the sandbox was NOT tried on a Docker engine: {why}\n{line}", file=sys.stderr, flush=True)
    return 0 if os.environ.get("AIBOX_TEST_DOCKER_OPTIONAL") else 1


def install() -> None:
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    for words in (["update", "-q"], ["install", "-qy", "--no-install-recommends", *PACKAGES]):
        subprocess.run(["apt-get", *words], check=True, stdout=subprocess.DEVNULL, env=env)


@contextmanager
def engine(folder: Path) -> Iterator[str | None]:
    """The address of an engine that has the sandbox's image; None when it could not be had, which is said."""
    host = f"unix://{folder / 'docker.sock'}"
    words = ["dockerd", "--iptables=false", "--ip6tables=false", "--bridge=none", "-H", host]
    words += ["--data-root", str(folder / "data"), "--exec-root", str(folder / "exec"), "-p", str(folder / "pid")]
    log, settings = folder / "log", folder / "daemon.json"
    if runsc := shutil.which("runsc"):
        # Without a network of its own: a session has none, and it does not start beside the host's.
        settings.write_text(json.dumps({"runtimes": {"runsc": {"path": runsc, "runtimeArgs": ["--network=none"]}}}))
        words += ["--config-file", str(settings)]
    try:
        with log.open("w") as file, Kept(words, file) as daemon:
            yield host if ready(host, daemon, log) else None
    finally:
        # A daemon that was killed has left what it had mounted.
        mounted = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
        for place in sorted((one for one in mounted if one.startswith(f"{folder}/")), reverse=True):
            subprocess.run(["umount", "-l", place], check=True)


class Kept:
    """A daemon that is started again when it has ended, as systemd keeps one, and after as long."""

    def __init__(self, words: list[str], log: IO[str]) -> None:
        self._words, self._log, self._over = words, log, threading.Event()
        self._start()

    def _start(self) -> None:
        self._process = subprocess.Popen(self._words, stdout=self._log, stderr=self._log, start_new_session=True)

    def poll(self) -> int | None:
        return self._process.poll()

    def __enter__(self) -> Kept:
        self._watch = threading.Thread(target=self._keep)
        self._watch.start()
        return self

    def _keep(self) -> None:
        while not self._over.wait(0.1):
            # Its containerd ends a moment after it, and it would take that for one it can go on with.
            if self._process.poll() is not None and not self._over.wait(2):
                self._start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._watch.join()
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)


def ready(host: str, daemon: Kept, log: Path) -> bool:
    until = time.monotonic() + 40
    while subprocess.run(["docker", "-H", host, "info"], capture_output=True).returncode != 0:
        if daemon.poll() is not None or time.monotonic() > until:
            loudly(f"dockerd did not start:\n{log.read_text()[-2000:]}")
            return False
        time.sleep(0.3)
    began = time.monotonic()
    # The builder itself and not `aibox sandbox build`, so that only the sandbox is on trial here.
    code = (
        "import sys\nfrom aibox.sandbox.engine import Engine\nfrom aibox.sandbox.image import build\n"
        "client = Engine(sys.argv[1]).command()\n"
        "print(build('aibox-sandbox:latest', engine=client, source='python', say=lambda text: None))"
    )
    built = subprocess.run([sys.executable, "-c", code, host], capture_output=True, text=True)
    if built.returncode != 0:
        loudly(f"the image could not be built: {built.stderr[-2000:]}")
        return False
    took_s = time.monotonic() - began
    print(f"engine at {host}; image {built.stdout.strip()[:19]} in {took_s:.0f} s", file=sys.stderr, flush=True)
    return True


def test(host: str) -> int:
    # What kills the engine goes last and alone: whatever runs beside it loses its sessions.
    rounds = [sys.argv[1:]] if sys.argv[1:] else [["-n2", f"--ignore={ALONE}"], ["-n0", ALONE]]
    worst = 0
    for options in rounds:
        words = [sys.executable, "-m", "pytest", *options]
        if ALONE not in options:
            words.append("tests/docker")
        try:
            done = subprocess.run(words, env={**os.environ, "AIBOX_TEST_DOCKER": host}, timeout=BUDGET_S)
        except subprocess.TimeoutExpired:
            print(f"the tests took longer than {BUDGET_S} s", flush=True)
            return 1
        if done.returncode != NOTHING:  # of those that failed before, none is in this round
            worst = max(worst, done.returncode)
    until = time.monotonic() + REMOVED_S
    while left := containers(host):
        if time.monotonic() > until:
            print("containers were left behind:", *left, sep="\n", flush=True)
            return 1
        time.sleep(0.5)
    return worst


def containers(host: str) -> list[str]:
    """What the engine has: names, whose they are, and since when they do what."""
    shape = "{{.Names}} ({{.Labels}}): {{.Status}}, {{.Command}}"
    words = ["docker", "-H", host, "ps", "-a", "--format", shape]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()


def main() -> int:
    if shutil.which("dockerd") is None:
        if os.geteuid() != 0 or shutil.which("apt-get") is None:
            return loudly("there is no dockerd, and only root on Debian can install one here")
        print("installing docker.io", flush=True)
        try:
            install()
        except subprocess.CalledProcessError as error:
            return loudly(f"docker.io could not be installed: {error}")
    if os.geteuid() != 0:
        return loudly("only root can start dockerd")
    with tempfile.TemporaryDirectory(prefix="aibox-engine-") as folder, engine(Path(folder)) as host:
        if host is None:
            return 0 if os.environ.get("AIBOX_TEST_DOCKER_OPTIONAL") else 1
        return test(host)


if __name__ == "__main__":
    sys.exit(main())
