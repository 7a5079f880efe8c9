"""What every test stands on: a clean environment, its own data folder, no sockets unless it is marked `loopback`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

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


@pytest.fixture
def scope() -> Scope:
    return Scope(tenant="acme", user="eva", agent="books", session="s1")


@pytest.fixture
def other_scope() -> Scope:
    """Another tenant, with the same names inside."""
    return Scope(tenant="rival", user="eva", agent="books", session="s1")
