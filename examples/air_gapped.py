"""A model for a site without a network: signed outside, carried over in one file, checked inside, used under the seal.

The wheels travel the same way: `pip download --require-hashes -r requirements.lock -d wheels` outside, and inside
`pip install --no-index --find-links wheels --require-hashes -r requirements.lock`.
"""

import os
import subprocess
import sys
from pathlib import Path

from aibox.inference.demo_model import find

MEDIUM = Path("medium")  # what is carried over: nothing else crosses


def aibox(home: str, *words: object, **env: str) -> str:
    """The command, on one of the two sites."""
    command = [sys.executable, "-m", "aibox", *map(str, words)]
    ran = subprocess.run(
        command, env={**os.environ, "AIBOX_HOME": home, **env}, capture_output=True, text=True, check=False
    )
    if ran.returncode:
        raise SystemExit(ran.stderr)
    return ran.stdout


def outside() -> str:
    """Stage the weights, sign their manifest, write the bundle; the key is told to the other site by another way."""
    MEDIUM.mkdir()
    aibox("outside", "models", "stage", find(), "--name", "small")
    return aibox("outside", "models", "export", "small", MEDIUM / "small.bundle").split()[-1]


def inside(key: str) -> None:
    """Take the bundle only as it was signed, then answer where every connection is refused."""
    print(aibox("inside", "models", "import", MEDIUM / "small.bundle", "--key", key).strip())
    settings = Path("aibox.toml")
    settings.write_text('[[backends]]\nkind = "embedded"\nstaged = "small"\n', "utf-8")
    said = aibox("inside", "run", "Say hello.", "--config", settings, AIBOX_SOVEREIGN="strict")
    print("answered under the seal:", bool(said.strip()))
    damaged = bytearray((MEDIUM / "small.bundle").read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (MEDIUM / "damaged.bundle").write_bytes(damaged)
    try:
        aibox("other", "models", "import", MEDIUM / "damaged.bundle", "--key", key)
    except SystemExit as refused:
        print("one bit changed on the way:", str(refused).strip())


if __name__ == "__main__":
    inside(outside())
