"""What the inference tests stand on: an upstream on loopback, a recorder, a model file."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from inference_parts import Notes, Upstream

from aibox.inference import demo_model


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    upstream = Upstream()
    app = web.Application(client_max_size=64 << 20)
    app.router.add_post("/v1/chat/completions", upstream.chat)
    app.router.add_get("/v1/models", upstream.list_models)
    app.router.add_get("/health", upstream.list_models)
    app.router.add_route("*", "/{rest:.*}", upstream.rest)
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    upstream.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    yield upstream
    await runner.cleanup()


@pytest.fixture
def notes() -> Notes:
    return Notes()


@pytest.fixture(scope="session")
def model_file() -> Path:
    """A GGUF file: the one that AIBOX_TEST_MODEL names, else the demo model."""
    pytest.importorskip("xllamacpp", reason="xllamacpp is not installed")
    named = os.environ.get("AIBOX_TEST_MODEL")
    path = Path(named) if named else demo_model.find()
    if path is None:
        pytest.skip(f"the demo model is not installed: {demo_model.INSTALL}")
    return path
