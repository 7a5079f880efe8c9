"""A launched server with a stand-in for vLLM: what is started, how it is watched, and what is said when it fails."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest
from waiting import until

from aibox.errors import BackendError, ConfigError
from aibox.inference import launch as launching
from aibox.inference.router import Router
from aibox.inference.vllm import VLLM
from aibox.types import Scope

pytestmark = [pytest.mark.anyio, pytest.mark.loopback]

# Stands where `vllm.entrypoints.openai.api_server` stands: writes down how it was started, then does what it is told.
SERVER = """
import http.server, json, os, subprocess, sys, time
flag = lambda name: sys.argv[sys.argv.index(name) + 1]
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
with open(os.path.join(flag("--model"), "started"), "a") as file:
    file.write(json.dumps({"argv": sys.argv[1:], "env": dict(os.environ), "child": child.pid}) + "\\n")
if os.environ.get("FAIL"):
    print(os.environ["FAIL"], file=sys.stderr)
    sys.exit(1)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/v1/models" and self.headers["Authorization"] != "Bearer " + os.environ["VLLM_API_KEY"]:
            self.send_response(401); self.end_headers(); return
        body = json.dumps({"data": [{"id": flag("--served-model-name")}]}).encode()
        self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): print("loading", flush=True)
time.sleep(0.6)
http.server.HTTPServer(("127.0.0.1", int(flag("--port"))), Handler).serve_forever()
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    package = tmp_path / "site" / "vllm" / "entrypoints" / "openai"
    package.mkdir(parents=True)
    (package / "api_server.py").write_text(SERVER)
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


def options(model: Path, **env: str) -> dict[str, object]:
    site = str(model.parent / "site")
    return {"env": {"PYTHONPATH": site, **env}, "log": model.parent / "log", "python": sys.executable}


def started(model: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (model / "started").read_text().splitlines()]


def lives(pid: object) -> bool:
    try:
        os.kill(int(str(pid)), 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"


async def test_it_starts_offline_answers_and_ends_with_its_children(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On loopback, with a key of its own, no hub, and no secret of ours in its environment; nothing stays behind."""
    monkeypatch.setenv("OPENROUTER_API_KEY", "sk-secret")
    said: list[str] = []
    backend = await VLLM.launch(
        model, progress=said.append, options={"max_model_len": 9, "enforce_eager": True}, **options(model)
    )
    (how,) = started(model)
    argv, env = how["argv"], how["env"]
    assert isinstance(argv, list)
    assert isinstance(env, dict)
    assert argv[argv.index("--host") + 1] == "127.0.0.1"
    assert argv[-3:] == ["--max-model-len", "9", "--enforce-eager"]
    assert (env["HF_HUB_OFFLINE"], env["VLLM_NO_USAGE_STATS"]) == ("1", "1")
    assert "sk-secret" not in env.values()
    assert env["VLLM_API_KEY"] not in argv
    (info,) = await Router(backend).models()
    assert (info.id, info.external) == ("tiny", False)
    assert lives(how["child"])
    await backend.close()
    await backend.close()
    await until(lambda: not lives(how["child"]))
    assert (model.parent / "log").read_text()


@pytest.mark.parametrize(
    ("says", "reads"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate", "not enough memory"),
        ("OSError: [Errno 98] Address already in use", "port is in use"),
        ("OSError: x does not appear to have a file named config.json", "not one that vLLM can load"),
        ("error: unrecognized arguments: --maxx", "does not know an option"),
        ("ValueError: something new", "something new"),
    ],
)
async def test_a_failure_is_told_in_words_that_help(model: Path, says: str, reads: str) -> None:
    """The cause where it is known, else the last error of the log; always where the log is."""
    with pytest.raises(BackendError, match=reads) as caught:
        await VLLM.launch(model, **options(model, FAIL=says))
    assert str(model.parent / "log") in caught.value.hint


async def test_what_cannot_be_started_is_refused(model: Path, tmp_path: Path) -> None:
    """A missing folder or interpreter, and options that would undo what is promised."""
    with pytest.raises(ConfigError, match="no model folder"):
        await VLLM.launch(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="cannot be started"):
        await VLLM.launch(model, python="/nowhere/python", log=tmp_path / "log")
    for option in ("host", "trust_remote_code", "api_key"):
        with pytest.raises(ConfigError, match="not for options"):
            await VLLM.launch(model, options={option: "x"})
    with pytest.raises(BackendError, match=r"not ready after 0\.1 s"):
        await VLLM.launch(model, ready_s=0.1, **options(model))


async def test_a_server_that_dies_is_started_again(model: Path, monkeypatch: pytest.MonkeyPatch, scope: Scope) -> None:
    """Its workers end, it waits, and it comes back on the same port with the same key."""
    monkeypatch.setattr(launching, "BACKOFF_S", (0.1,))
    backend = await VLLM.launch(model, **options(model))
    (first,) = started(model)
    os.kill(backend._server.pid, 9)  # type: ignore[attr-defined]
    for _ in range(1200):
        await asyncio.sleep(0.05)
        if len(started(model)) == 2 and (await backend.health()).ok:
            break
    assert [info.id for info in await backend.models()] == ["tiny"]
    assert not lives(first["child"])
    assert backend._server.restarts == 1  # type: ignore[attr-defined]
    await backend.close()
