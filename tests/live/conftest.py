"""Tests against real servers; `make test-live` installs them and says where they are. Elsewhere none is collected."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import aibox

PORT = 8190
START_S = 600
NEEDS = {
    "test_live_vllm.py": "AIBOX_TEST_VLLM_PYTHON",
    "test_live_router.py": "AIBOX_TEST_VLLM_PYTHON",
    "test_live_routes.py": "AIBOX_TEST_VLLM_PYTHON",
    "test_live_oidc.py": "AIBOX_TEST_NODE_MODULES",
    # It needs no server, only some time.
    "test_live_agents.py": "AIBOX_TEST_NODE_MODULES",
}
collect_ignore = [name for name, variable in NEEDS.items() if not os.environ.get(variable)]


@pytest.fixture(scope="session")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One server for all. `vllm serve` asks for metadata that this wheel lacks; the module entry does not."""
    log = tmp_path_factory.mktemp("vllm") / "server.log"
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    command = [
        os.environ["AIBOX_TEST_VLLM_PYTHON"], "-m", "vllm.entrypoints.openai.api_server",
        "--model", os.environ["AIBOX_TEST_VLLM_MODEL"], "--served-model-name", "smollm2",
        "--host", "127.0.0.1", "--port", str(PORT), "--max-model-len", "2048",
        "--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--enable-prompt-tokens-details",
        "--enforce-eager",
    ]  # fmt: skip
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out, env=env) as server:
        try:
            _wait(server, log)
            yield f"http://127.0.0.1:{PORT}/v1"
        finally:
            server.terminate()
            try:
                server.wait(timeout=300)
            except subprocess.TimeoutExpired:
                server.kill()


def _wait(server: subprocess.Popen[bytes], log: Path) -> None:
    backend = aibox.VLLM(f"http://127.0.0.1:{PORT}/v1")
    deadline = time.monotonic() + START_S
    while not aibox.run_sync(backend.health()).ok:
        tail = log.read_text(errors="replace")[-2000:]
        assert server.poll() is None, f"vLLM ended: {tail}"
        assert time.monotonic() < deadline, f"vLLM is not ready after {START_S} s: {tail}"
        time.sleep(1)
    aibox.run_sync(backend.close())
