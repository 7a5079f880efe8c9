"""The first hour of a newcomer: what the page tells them to type works, in that order."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aibox.inference import demo_model

PAGE = Path(__file__).parent.parent / "docs" / "first-hour.md"
BLOCK = re.compile(r"^## ([^\n]+)\n|^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.skipif(demo_model.find() is None, reason="the demo model is not installed: make setup")
@pytest.mark.skipif(shutil.which("curl") is None, reason="the page uses curl, which is not installed")
def test_the_first_hour_goes_as_the_page_says(tmp_path: Path) -> None:
    """Every block runs without an error in one shell, and the evidence of it all verifies. It prints the times."""
    script, title = ["set -euo pipefail", "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT"], ""
    for heading, block in BLOCK.findall(PAGE.read_text("utf-8")):
        if heading:
            title = heading
        else:
            script += [block, f'echo "AT $(date +%s.%N) {title}"']
    paths = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": paths, "AIBOX_HOME": str(tmp_path / "home"), "AIBOX_SOVEREIGN": "strict"}
    # Pytest in pytest: what this one was told is not for that one.
    env = {name: value for name, value in env.items() if not name.startswith(("PYTEST_", "COV_", "COVERAGE_"))}
    started = time.time()
    command = ["bash", "-c", "\n".join(script)]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    said = done.stdout
    marks = re.findall(r"AT ([\d.]+) (.+)$", said, re.MULTILINE)
    assert len(marks) == 5
    for at, name in marks:
        sys.stdout.write(f"{float(at) - started:6.1f} s  {name}\n")
    assert '"role":"assistant"' in said.replace(" ", "")
    assert "holds" in said
