"""A real vLLM server on this machine's CPU, in a group of its own, that can be killed, paused and started again."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

from waiting import free_port

import aibox

START_S = 600
MODEL = "smollm2"


class VLLMServer:
    """`vllm serve` asks for metadata that this wheel lacks; the module entry does not."""

    def __init__(self, log: Path) -> None:
        # Kept for its life: it comes back where it was. Another run of these tests on this machine has its own.
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}/v1"
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it where it does not run, and wait until it answers: half a minute; minutes where cores are busy."""
        if self._process is not None:
            return
        env = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
        command = [
            os.environ["AIBOX_TEST_VLLM_PYTHON"], "-m", "vllm.entrypoints.openai.api_server",
            "--model", os.environ["AIBOX_TEST_VLLM_MODEL"], "--served-model-name", MODEL,
            "--host", "127.0.0.1", "--port", str(self._port), "--max-model-len", "2048",
            "--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--enable-prompt-tokens-details",
            "--enforce-eager",
        ]  # fmt: skip
        with self._log.open("ab") as out:
            self._process = subprocess.Popen(command, stdout=out, stderr=out, env=env, start_new_session=True)
        try:
            self._wait(self._process)
        except BaseException:
            self.kill()
            raise

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        backend = aibox.VLLM(self.url)
        deadline = time.monotonic() + START_S
        while not aibox.run_sync(backend.health()).ok:
            tail = self._log.read_text(errors="replace")[-2000:]
            assert process.poll() is None, f"vLLM ended: {tail}"
            assert time.monotonic() < deadline, f"vLLM is not ready after {START_S} s: {tail}"
            time.sleep(1)
        aibox.run_sync(backend.close())

    def signal(self, number: signal.Signals) -> None:
        """To all of it: what answers HTTP, the engine and its worker."""
        assert self._process is not None
        os.killpg(self._process.pid, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        assert self._process is not None
        self._process.wait(60)
        self._process = None

    def stop(self) -> None:
        assert self._process is not None
        self._process.terminate()
        try:
            self._process.wait(timeout=300)
        except subprocess.TimeoutExpired:
            self.kill()
