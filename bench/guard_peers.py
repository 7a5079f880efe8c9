"""Detectors of others, as `make bench-guard-peers` installs them: asked over a pipe, in an environment of their own.

This file is both ends. Run by the peer's Python it needs nothing but the peer: no network, no key, no model from a hub.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

PYTHON = Path(__file__).parent.parent / ".venv-guard-peers" / "bin" / "python"
NAMES = ("aicordon", "toolwall")
NOT_RUN = "llm-guard: its detector of injections is a model that it loads from a hub, which cannot be had offline"
WAIT_S = 600


@dataclass(frozen=True, slots=True)
class Answers:
    """Of each text in order: a score, 0 where the peer finds nothing, and how long that took."""

    scores: list[float]
    took_ms: list[float]


def ask(name: str, texts: Sequence[str]) -> Answers:
    """Raises RuntimeError with the peer's last line where it is not there or fails."""
    if not PYTHON.exists():
        raise RuntimeError("not installed: make bench-guard-peers")
    command = [str(PYTHON), "-I", __file__, name]
    given = json.dumps(texts).encode()
    try:
        done = subprocess.run(command, input=given, capture_output=True, timeout=WAIT_S, check=False)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"took longer than {WAIT_S} s") from None
    if done.returncode:
        raise RuntimeError((done.stderr.decode(errors="replace").strip().splitlines() or ["no answer"])[-1])
    return Answers(**json.loads(done.stdout))


def detector(name: str) -> Callable[[str], float]:
    """The peer's own way to read what a user typed, as its documentation has it."""
    if name == "aicordon":  # Picket; its other detector is a service
        from aicordon import picket

        rank = {None: 0.0, "low": 1 / 3, "medium": 2 / 3, "high": 1.0}
        picked = picket.load(mode="dpi")
        return lambda text: rank[picked.check(text).severity]
    from toolwall.detect import CompositeDetector

    composite = CompositeDetector(use_judge=False)  # the judge is a model from a hub
    return lambda text: float(composite.score(text)[0])


def answer(name: str) -> None:
    score = detector(name)
    scores, took = [], []
    for text in json.load(sys.stdin):
        started = time.perf_counter()
        scores.append(score(text))
        took.append((time.perf_counter() - started) * 1e3)
    json.dump({"scores": scores, "took_ms": took}, sys.stdout)


if __name__ == "__main__":
    answer(sys.argv[1])
