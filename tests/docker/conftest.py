"""An engine of our own for these tests: its own folder and socket, no network, and gone afterwards."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(scope="session")
def engine_host() -> str:
    """The address of the engine that `make test-docker` has started."""
    host = os.environ.get("AIBOX_TEST_DOCKER")
    if not host:
        pytest.skip("no engine: run `make test-docker`, which installs and starts one")
    return host
