"""The gateways beside which aibox's is measured, as `make bench-peers` installs them, each set up as its makers advise.

What flatters us is avoided: LiteLLM is compiled beforehand, has the tracing package whose absence makes it compile on
every request, uvloop, httptools, one worker and a price; Portkey runs without its console. Neither has a database.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent
LITELLM = ROOT / ".venv-peers" / "bin" / "litellm"
PORTKEY = ROOT / ".node-peers" / "node_modules" / "@portkey-ai" / "gateway" / "build" / "start-server.js"
KEY = "sk-a-master-key-that-is-long-enough-7f3a"
INSTALL = "`make bench-peers` installs it"


@dataclass(frozen=True, slots=True)
class Peer:
    """How to start a gateway on a port, and what its callers send."""

    name: str
    command: Sequence[str]
    env: Mapping[str, str]
    key: str
    headers: Mapping[str, str] = field(default_factory=dict)


def installed(place: Path, port: int, behind: int, models: Sequence[str]) -> list[Peer]:
    """Those that are there, ready to be started; their settings are written to `place`."""
    # With PYTHONDONTWRITEBYTECODE set LiteLLM compiles a module of its own on every request.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    found = []
    if LITELLM.exists():
        params = {"api_base": f"http://127.0.0.1:{behind}/v1", "api_key": "x"}
        price = {"input_cost_per_token": 1e-7, "output_cost_per_token": 4e-7}
        config = {
            "model_list": [
                {"model_name": model, "litellm_params": {"model": f"openai/{model}", **params, **price}}
                for model in models
            ],
            "litellm_settings": {"telemetry": False},
            "general_settings": {"master_key": KEY},
        }
        (place / "litellm.yaml").write_text(json.dumps(config))  # JSON is YAML
        command = [
            str(LITELLM), "--config", str(place / "litellm.yaml"), "--host", "127.0.0.1", "--port", str(port),
            "--num_workers", "1", "--telemetry", "False",
        ]  # fmt: skip
        local = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "LITELLM_MODE": "PRODUCTION"}
        found.append(Peer("LiteLLM", command, {**env, **local}, KEY))
    if PORTKEY.exists():
        command = ["node", str(PORTKEY), f"--port={port}", "--headless"]
        headers = {"x-portkey-provider": "openai", "x-portkey-custom-host": f"http://127.0.0.1:{behind}/v1"}
        trusted = {"TRUSTED_CUSTOM_HOSTS": "127.0.0.1,localhost"}
        found.append(Peer("Portkey", command, {**env, **trusted, "NODE_ENV": "production"}, "x", headers))
    return found
