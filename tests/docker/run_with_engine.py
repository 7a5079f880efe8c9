"""Start a Docker engine of our own, build the sandbox's image, run the tests against both, and clean up.

    python tests/docker/run_with_engine.py [pytest arguments]

Installs Debian's `docker.io` when there is no dockerd. Says loudly when there can be no engine, and then fails unless
AIBOX_TEST_DOCKER_OPTIONAL is set. The engine has no bridge and no rules for packets, so it changes nothing of the host.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PACKAGES = ("docker.io",)
BUDGET_S = 170


def loudly(why: str) -> int:
    line = "!" * 78
    print(f"{line}\n!! the sandbox was NOT tried on a Docker engine: {why}\n{line}", flush=True)
    return 0 if os.environ.get("AIBOX_TEST_DOCKER_OPTIONAL") else 1


def install() -> None:
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for words in (["update", "-q"], ["install", "-qy", "--no-install-recommends", *PACKAGES]):
        # Debian would start the service, which makes bridges and rules: this engine is started below, and by us only.
        subprocess.run(["apt-get", *words], check=True, stdout=subprocess.DEVNULL, env={**env, "RUNLEVEL": "1"})


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
    with tempfile.TemporaryDirectory(prefix="aibox-engine-") as folder:
        place = Path(folder)
        host = f"unix://{place / 'docker.sock'}"
        words = ["dockerd", "--iptables=false", "--ip6tables=false", "--bridge=none", "-H", host]
        words += ["--data-root", str(place / "data"), "--exec-root", str(place / "exec"), "-p", str(place / "pid")]
        with (place / "log").open("w") as log:
            daemon = subprocess.Popen(words, stdout=log, stderr=log, start_new_session=True)
            try:
                return with_engine(host, daemon, place / "log")
            finally:
                daemon.send_signal(signal.SIGTERM)
                try:
                    daemon.wait(20)
                except subprocess.TimeoutExpired:
                    os.killpg(daemon.pid, signal.SIGKILL)


def with_engine(host: str, daemon: subprocess.Popen[bytes], log: Path) -> int:
    client = ["docker", "-H", host]
    until = time.monotonic() + 40
    while subprocess.run([*client, "info"], capture_output=True).returncode != 0:
        if daemon.poll() is not None or time.monotonic() > until:
            return loudly(f"dockerd did not start:\n{log.read_text()[-2000:]}")
        time.sleep(0.3)
    began = time.monotonic()
    settings = {**os.environ, "AIBOX_SANDBOX__ENGINE": host}
    built = subprocess.run(
        [sys.executable, "-m", "aibox", "sandbox", "build"], env=settings, capture_output=True, text=True
    )
    if built.returncode != 0:
        print(built.stderr, flush=True)
        return loudly("the image could not be built")
    print(f"engine at {host}; image {built.stdout.strip()[:19]} built in {time.monotonic() - began:.0f} s", flush=True)
    environment = {**os.environ, "AIBOX_TEST_DOCKER": host}
    arguments = sys.argv[1:] or ["-n2"]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "tests/docker", *arguments], env=environment, timeout=BUDGET_S
        )
    except subprocess.TimeoutExpired:
        print(f"the tests took longer than {BUDGET_S} s", flush=True)
        return 1
    left = subprocess.run([*client, "ps", "-aq"], capture_output=True, text=True).stdout.split()
    if left:
        print(f"containers were left behind: {left}", flush=True)
        return 1
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
