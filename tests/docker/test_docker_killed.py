"""The engine is killed under load and started again by what keeps it: nothing runs without it, and then all goes on."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from aibox.sandbox.escapes import ESCAPES

sys.path.append(str(Path(__file__).parent.parent / "live"))
sys.path.append(str(Path(__file__).parent.parent / "server"))
from guests import Guests, recorded
from server_parts import Upstream, serving

pytestmark = pytest.mark.loopback


def test_the_engine_is_killed_under_load(engine_host: str, tmp_path: Path) -> None:
    """Calls meanwhile are 503s, sessions opened since work, each run answered is on record, and nothing is left."""
    file = Path(engine_host.removeprefix("unix://")).with_name("pid")
    accept = json.dumps([escape.cve for escape in ESCAPES])
    settings = f'[sandbox]\ndriver = "docker"\nengine = "{engine_host}"\ngvisor = "off"\naccept = {accept}\n'
    upstream = Upstream()
    try:
        with serving(tmp_path, upstream, more=settings) as server:
            with Guests(f"http://127.0.0.1:{server.port}", server.key) as guests:
                guests.goes_on(12)
                before = len(guests.refused)
                os.kill(int(file.read_text()), signal.SIGKILL)
                guests.is_refused(1, since=before)
                guests.goes_on(12)
            mine = f"aibox-{server.process.pid}-"
            names = ["docker", "-H", engine_host, "ps", "-a", "--format", "{{.Names}}"]
            server.until(lambda: mine not in subprocess.run(names, capture_output=True, text=True).stdout)
    finally:
        upstream.close()
    asyncio.run(recorded(guests, tmp_path / "home"))
