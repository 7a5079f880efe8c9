"""Clients that nobody here wrote, each from the package index in an environment of its own, against `aibox serve`."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import pytest_socket
from front import Front, front

pytestmark = [
    pytest.mark.live,
    pytest.mark.loopback,
    pytest.mark.skipif("AIBOX_TEST_CLIENTS" not in os.environ, reason="no clients here: make test-live installs them"),
]
CLIENTS = Path(__file__).with_name("clients")
USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
CITY = {"name": "Oslo", "people": 717_710}


class Model:
    """A model's server: it calls a tool when it is given one, writes JSON when it is asked to, and else says hello.

    Asked to `wait` it says the first word only; asked `who waits?` it says when they have gone, or that they have not.
    """

    def __init__(self) -> None:
        left = threading.Event()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                listed = {"object": "list", "data": [{"id": "m", "object": "model"}]}
                self._answer("application/json", json.dumps(listed).encode())

            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
                made = answer(self.path.removeprefix("/v1/"), asked)
                said = asked["messages"][-1]["content"] if "messages" in asked else ""
                if said == "wait":
                    self._wait(next(events(made)))
                elif said == "who waits?":
                    made["choices"][0]["message"]["content"] = "nobody" if left.wait(20) else "somebody"
                    self._answer("application/json", json.dumps(made).encode())
                elif asked.get("stream"):
                    self._answer("text/event-stream", b"".join(events(made)))
                else:
                    self._answer("application/json", json.dumps(made).encode())

            def _wait(self, first: bytes) -> None:
                self.send_response(200)
                self.send_header("content-type", "text/event-stream")
                self.send_header("connection", "close")
                self.end_headers()
                self.wfile.write(first)
                self.connection.settimeout(60)
                if not self.rfile.read(1):  # nothing more is asked here: it is the end
                    left.set()

            def _answer(self, kind: str, data: bytes) -> None:
                self.send_response(200)
                self.send_header("content-type", kind)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                """Nobody wants to read it."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port: int = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def answer(api: str, asked: dict[str, Any]) -> dict[str, Any]:
    if api == "embeddings":
        texts = asked["input"] if isinstance(asked["input"], list) else [asked["input"]]
        data = [{"object": "embedding", "index": n, "embedding": [0.5, float(n)]} for n in range(len(texts))]
        return {"object": "list", "model": "m", "data": data, "usage": USAGE}
    if api == "completions":
        return {"id": "x", "object": "text_completion", "created": 1, "model": "m", "usage": USAGE,
                "choices": [{"index": 0, "text": "hello there", "finish_reason": "stop"}]}  # fmt: skip
    if api == "responses":
        content = [{"type": "output_text", "text": "hello there", "annotations": []}]
        said = {"type": "message", "id": "y", "role": "assistant", "status": "completed", "content": content}
        return {"id": "x", "object": "response", "created_at": 1, "model": "m", "status": "completed", "output": [said],
                "parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "usage":
                {"input_tokens": 7, "output_tokens": 3, "total_tokens": 10}}  # fmt: skip
    message: dict[str, Any] = {"role": "assistant", "content": "hello there"}
    end = "stop"
    if asked["messages"][-1]["role"] == "tool":
        message["content"] = f"It is {asked['messages'][-1]['content']}."
    elif tools := asked.get("tools"):
        function = {"name": tools[0]["function"]["name"], "arguments": "{}"}
        message, end = {**message, "content": None, "tool_calls": [
            {"id": "call_1", "type": "function", "function": function}]}, "tool_calls"  # fmt: skip
    elif asked.get("response_format"):
        message["content"] = json.dumps(CITY)
    return {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "usage": USAGE,
            "choices": [{"index": 0, "message": message, "finish_reason": end}]}  # fmt: skip


def events(made: dict[str, Any]) -> Iterator[bytes]:
    """The answer of a chat, in two pieces."""
    choice = made["choices"][0]
    text = choice["message"]["content"] or ""
    shared = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    for piece, end in ((text[:5], None), (text[5:], choice["finish_reason"])):
        delta = {"role": "assistant", "content": piece}
        yield (
            b"data: "
            + json.dumps({**shared, "choices": [{"index": 0, "delta": delta, "finish_reason": end}]}).encode()
            + b"\n\n"
        )
    yield b"data: " + json.dumps({**shared, "choices": [], "usage": USAGE}).encode() + b"\n\ndata: [DONE]\n\n"


@dataclass
class Served:
    """A server, and a key of a user of it."""

    front: Front
    key: str


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, postgres_copy: Callable[[], str]) -> Iterator[Served]:
    pytest_socket.enable_socket()  # for one that is made before a test says that it may
    model = Model()
    tables = (
        f'[[backends]]\nkind = "openai"\nname = "up"\nmodels = ["m"]\nurl = "http://127.0.0.1:{model.port}/v1"\n'
        "external = false\n"
    )
    with front(tmp_path_factory.mktemp("served"), tables, database=postgres_copy) as made:
        yield Served(made, asyncio.run(made.key("acme")))
    model.close()


def program(name: str, command: str) -> str:
    """Of a client's own environment. Skipped where `make test-live` has not installed it."""
    found = Path(os.environ.get("AIBOX_TEST_CLIENTS", "/nowhere")) / name / "bin" / command
    if not found.exists():
        pytest.skip(f"the client {name} is not installed: make test-live installs it")
    return str(found)


def run(served: Served, *command: str, **env: str) -> str:
    own = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "AIBOX_"))}
    done = subprocess.run(command, capture_output=True, text=True, env={**own, **env}, timeout=120)
    assert done.returncode == 0, done.stderr + served.front.log()
    return done.stdout


def url(served: Served) -> str:
    return f"{served.front.url}/v1"


def test_the_official_package(served: Served) -> None:
    """Whole, streamed, tools, structured output, every API, an agent, errors by their class, a stream that is left."""
    python = program("openai", "python")
    got = json.loads(run(served, python, str(CLIENTS / "with_openai.py"), url(served), served.key))
    assert got["models"] == ["agent:default", "m"]
    assert got["whole"] == got["stream"] == ["hello there", 10]
    assert got["tool"] == ["weather", "It is rain."]
    assert got["parsed"] == ["Oslo", 717_710]
    assert {got[api] for api in ("completion", "response", "agent")} == {"hello there"}
    assert got["left"] == ["hello", "nobody"]
    assert got["embedding"] == [0.5, 1.0]
    assert [error[:2] for error in got["errors"]] == [["NotFoundError", 404], ["AuthenticationError", 401]]


def test_langchain(served: Served) -> None:
    """`langchain-openai`: invoke, stream, batch, async, tools, structured output, embeddings, an agent as a model."""
    python = program("langchain", "python")
    got = json.loads(run(served, python, str(CLIENTS / "with_langchain.py"), url(served), served.key))
    assert got["whole"] == ["hello there", 10]
    assert {got[way] for way in ("stream", "async", "agent", "agent_stream")} == {"hello there"}
    assert got["batch"] == ["hello there"] * 2
    assert got["tool"] == ["weather", "It is rain."]
    assert got["parsed"] == ["Oslo", 717_710]
    assert got["embedding"] == [0.5, 1.0]


def test_the_llm_command(served: Served, tmp_path: Path) -> None:
    """`llm`: streamed and whole, with a schema, a conversation that goes on, and an agent as a model."""
    llm = program("llm", "llm")
    models = [
        {
            "model_id": f"box-{name}",
            "model_name": model,
            "api_base": url(served),
            "supports_schema": True,
            "api_key_name": "aibox",
        }
        for name, model in (("m", "m"), ("agent", "agent:default"))
    ]
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps(models))
    (tmp_path / "keys.json").write_text(json.dumps({"aibox": served.key}))
    env = {"LLM_USER_PATH": str(tmp_path)}

    def ask(*arguments: str) -> str:
        return run(served, llm, "prompt", *arguments, **env).strip()

    assert ask("-m", "box-agent", "-s", "be brief", "hi") == "hello there"
    assert ask("-m", "box-m", "-c", "and then?") == "hello there"
    assert json.loads(ask("-m", "box-m", "--no-stream", "--schema", "name, people int", "hi")) == CITY
