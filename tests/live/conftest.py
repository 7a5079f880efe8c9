"""Tests against real servers; `make test-live` installs them and says where they are. Elsewhere none is collected."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
from services import Platform, two_replicas
from vllm_server import VLLMServer

NEEDS = {
    "test_live_vllm.py": "AIBOX_TEST_VLLM_PYTHON",
    "test_live_vllm_chaos.py": "AIBOX_TEST_VLLM_PYTHON",
    "test_live_router.py": "AIBOX_TEST_VLLM_PYTHON",
    "test_live_routes.py": "AIBOX_TEST_VLLM_PYTHON",
    "test_live_oidc.py": "AIBOX_TEST_NODE_MODULES",
    # It needs no server, only some time.
    "test_live_agents.py": "AIBOX_TEST_NODE_MODULES",
}
collect_ignore = [name for name, variable in NEEDS.items() if not os.environ.get(variable)]


@pytest.fixture(scope="session")
def vllm_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VLLMServer]:
    """One server for all. Who breaks it leaves it running and well."""
    server = VLLMServer(tmp_path_factory.mktemp("vllm") / "server.log")
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def vllm(vllm_server: VLLMServer) -> str:
    return vllm_server.url


@pytest.fixture(scope="module")
def both(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, postgres_copy: Callable[[], str]
) -> Iterator[Platform]:
    """Two replicas for all tests of a module, whose PLATFORM are options of `platform`."""
    options = getattr(request.module, "PLATFORM", {})
    with two_replicas(tmp_path_factory.mktemp("two replicas"), postgres_copy(), **options) as made:
        yield made
