"""Real services for a platform of several replicas. Only the model is a test's."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import pytest
import pytest_socket
from waiting import free_port, until_listening

from aibox.audit.chain import AuditChain
from aibox.audit.verify import verify
from aibox.server.ready_api import NEEDED

ROOT = Path(__file__).parents[2]
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
REDIS = shutil.which("redis-server") or shutil.which("valkey-server")
OF_TWO = [
    pytest.mark.loopback,
    pytest.mark.skipif(NGINX is None, reason="no nginx here: apt-get install nginx-light"),
    pytest.mark.skipif(REDIS is None, reason="no redis-server here: apt-get install redis-server"),
]
"""The marks of tests that ask two replicas."""

DESK = '''
"""The agent that is served: it pays, once somebody has agreed, and writes down that it did."""
import os
import aibox

@aibox.tool(approve=True, side_effects=True)
def pay(to: str) -> str:
    """Pay somebody."""
    with open(os.environ["AIBOX_TEST_PAID"], "a") as file:
        file.write(to + "\\n")
    return f"paid {to}"

def made(box):
    return box.agent("You keep the books.", tools=[pay])
'''
SETTINGS = """
database = "{database}"
keys = "{keys}"
policy = "policy.toml"

[memory]
enabled = {memory}

[server]
api_keys = "database"
replica = "{name}"
port = {port}
rates_url = "redis://127.0.0.1:{redis}"

[server.limits]
grace_s = 2

{backends}

[tenants.few]
policy = "few.toml"

[tenants.poor]
policy = "poor.toml"
"""
BACKEND = """
[[backends]]
kind = "openai"
name = "m"
url = "http://127.0.0.1:{model}/v1"
models = ["m"]
external = false
"""
FEW = "[rates.tenant]\nrequests_per_minute = 6\n"
POOR = "[budgets.tenant]\ntokens_per_day = 20\n"
USED = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}


@dataclass
class Model:
    """An OpenAI-compatible server: it calls the tool that it is told to, else says how many messages it has seen.

    `pay NAME` calls the tool `pay`, `call TOOL JSON` any other; then it says what that gave. It counts the user's
    messages.
    """

    port: int
    asked: int = 0
    goes_on: threading.Event = field(default_factory=threading.Event)
    """A stream stops after its first word until this is set."""
    answers: threading.Event = field(default_factory=threading.Event)
    """Nothing at all is said until this is set; so many wait for it."""
    waiting: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        self.asked += 1
        with self._lock:
            self.waiting += 1
        self.answers.wait(60)
        with self._lock:
            self.waiting -= 1
        messages = asked["messages"]
        said = [m for m in messages if m["role"] == "user"]
        text = said[-1]["content"] if said else ""
        text = text if isinstance(text, str) else "".join(part.get("text", "") for part in text)
        word, _, rest = text.partition(" ")
        if messages[-1]["role"] == "user" and word in ("pay", "call") and asked.get("tools"):
            name, _, arguments = rest.partition(" ") if word == "call" else ("pay", "", json.dumps({"to": rest}))
            called = {"name": name, "arguments": arguments}
            return {"role": "assistant", "content": None,
                    "tool_calls": [{"id": "c1", "type": "function", "function": called}]}  # fmt: skip
        if messages[-1]["role"] == "tool":
            return {"role": "assistant", "content": f"I was told: {messages[-1]['content']}"}
        return {"role": "assistant", "content": f"I have read {len(said)}"}


@contextmanager
def modelling(port: int) -> Iterator[Model]:
    model = Model(port)
    model.goes_on.set()
    model.answers.set()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Nobody reads it."""

        def do_GET(self) -> None:
            self._send(json.dumps({"object": "list", "data": [{"id": "m", "object": "model"}]}))

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            message = model.answer(asked)
            ended = "tool_calls" if message.get("tool_calls") else "stop"
            head = {"id": "x", "created": 1, "model": "m"}
            if not asked.get("stream"):
                choice = {"index": 0, "message": message, "finish_reason": ended}
                self._send(json.dumps(head | {"object": "chat.completion", "choices": [choice], "usage": USED}))
                return
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.send_header("connection", "close")
            self.end_headers()
            self.close_connection = True
            words = (message["content"] or "").split(" ")
            deltas: list[Any] = [{"role": "assistant", "content": words[0] + " "}, {"content": " ".join(words[1:])}]
            if message.get("tool_calls"):
                deltas = [{"role": "assistant", "tool_calls": [{"index": 0, **message["tool_calls"][0]}]}]
            for number, delta in enumerate(deltas):
                if number:
                    model.goes_on.wait(30)
                self._event(head | {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta}]})
            last = {"index": 0, "delta": {}, "finish_reason": ended}
            self._event(head | {"object": "chat.completion.chunk", "choices": [last]})
            self._event(head | {"object": "chat.completion.chunk", "choices": [], "usage": USED})
            self.wfile.write(b"data: [DONE]\n\n")

        def _event(self, data: Any) -> None:
            self.wfile.write(b"data: " + json.dumps(data).encode() + b"\n\n")
            self.wfile.flush()

        def _send(self, body: str) -> None:
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """A caller who left."""

    with Server(("127.0.0.1", port), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield model
        server.shutdown()


@dataclass
class Platform:
    """Two replicas behind nginx, over one database and one Redis."""

    folder: Path
    url: str
    replicas: tuple[str, str]
    database: str
    keys: Path
    paid: Path
    model: Model
    processes: dict[str, subprocess.Popen[bytes]]
    start: Callable[[str], None]

    def key(self, tenant: str, *roles: str, user: str = "eva") -> str:
        """An API key, made on the command line."""
        command = [sys.executable, "-m", "aibox", "keys", "create", "--tenant", tenant, "--user", user]
        command += ["--config", str(self.folder / "a" / "aibox.toml")]
        command += [word for role in roles for word in ("--role", role)]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout.strip()

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")


@contextmanager
def platform(
    folder: Path,
    owner: str,
    *,
    policy: str = "",
    backends: str = BACKEND,
    desk: str = DESK,
    workers: int = 1,
    memory: bool = False,
    before: Callable[[Path], object] = lambda _: None,
) -> Iterator[Platform]:
    """All of it; `owner` is the URL of a database with its tables. What was started ends with the block.

    `backends` are more tables of the settings, in which `{model}` is the port of the test's own model; `desk` is the
    module whose `made` makes the agent; `workers` are nginx's processes; `memory` is that of the database; `before`
    is called with the settings of each replica before it starts.
    """
    pytest_socket.enable_socket()  # for a fixture that is made before a test says that it may
    database = owner.replace("owner@", "writer@")
    ports = {name: free_port() for name in ("a", "b", "redis", "model", "nginx")}
    processes: dict[str, subprocess.Popen[bytes]] = {}
    keys, paid = folder / "keys", folder / "paid"
    paid.touch()

    def start(name: str) -> None:
        home = folder / name
        command = [sys.executable, "-m", "aibox", "serve", "desk:made", "--config", str(home / "aibox.toml")]
        env = {**os.environ, "AIBOX_HOME": str(home), "AIBOX_TEST_PAID": str(paid), "PYTHONPATH": str(folder)}
        with (folder / f"{name}.log").open("ab") as log:
            processes[name] = subprocess.Popen(command, cwd=folder, env=env, stderr=log, stdout=log)

    with ExitStack() as stack:
        stack.callback(_end, processes)
        (folder / "desk.py").write_text(desk)
        for name in ("a", "b"):
            home = folder / name
            home.mkdir()
            told = {"database": database, "keys": keys, "name": name, "port": ports[name]}
            behind = backends.replace("{model}", str(ports["model"]))
            text = SETTINGS.format(**told, redis=ports["redis"], backends=behind, memory=str(memory).lower())
            (home / "aibox.toml").write_text(text)
            (home / "policy.toml").write_text(policy)
            (home / "few.toml").write_text(FEW)
            (home / "poor.toml").write_text(POOR)
            before(home / "aibox.toml")
        model = stack.enter_context(modelling(ports["model"]))
        assert REDIS is not None
        words = ["--port", str(ports["redis"]), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
        processes["redis"] = subprocess.Popen([REDIS, *words], stdout=subprocess.DEVNULL)
        until_listening(ports["redis"])
        # The first makes the keys; two at once would agree on them too.
        for name in ("a", "b"):
            start(name)
        _nginx(folder, ports, processes, workers)
        replicas = (f"http://127.0.0.1:{ports['a']}", f"http://127.0.0.1:{ports['b']}")
        made = Platform(
            folder, f"http://127.0.0.1:{ports['nginx']}", replicas, database, keys, paid, model, processes, start
        )
        for name, url in zip(("a", "b"), replicas, strict=True):
            until_ready(url, lambda name=name: made.log(name), processes[name])  # type: ignore[misc]  # bound now
        yield made


@contextmanager
def two_replicas(folder: Path, owner: str, **options: Any) -> Iterator[Platform]:
    """A platform of which, after all tests, nothing failed unseen, and both have written one log that verifies."""
    with platform(folder, owner, **options) as made:
        yield made
        for name in ("a", "b"):
            assert "Traceback" not in made.log(name)
        asyncio.run(_one_history(made))


async def _one_history(both: Platform) -> None:
    async with AuditChain(both.database, keys=both.keys) as chain:
        assert (await chain.verify()).ok
        found = [entry async for entry in chain.entries("acme")]
    assert [entry.seq for entry in found] == list(range(len(found))) != []
    assert verify(both.database, keys=chain.keys).ok


def until_ready(url: str, log: Callable[[], str] = str, process: subprocess.Popen[bytes] | None = None) -> None:
    """Wait until a replica says that it may be sent requests. Fails when its process has ended."""
    until = time.monotonic() + 120
    while True:
        try:
            with urllib.request.urlopen(url + "/readyz", timeout=5) as answer:
                if answer.status == 200:
                    return
        except OSError:
            pass
        assert process is None or process.poll() is None, f"{url} has ended: {log()[-3000:]}"
        assert time.monotonic() < until, f"{url} is not ready: {log()[-3000:]}"
        time.sleep(0.1)


def until_missing(both: Platform, *parts: str) -> None:
    """Wait until `/readyz` of each replica misses these parts and no other, and says by its status what that means."""
    wanted = (503 if set(parts) & set(NEEDED) else 200), sorted(parts)

    def look(url: str) -> None:
        until = time.monotonic() + 60
        while (told := _readiness(url)) != wanted:
            assert time.monotonic() < until, f"{told} and not {wanted}"
            time.sleep(0.2)

    with ThreadPoolExecutor(len(both.replicas)) as pool:
        list(pool.map(look, both.replicas))


def _readiness(url: str) -> tuple[int, list[str]]:
    answer = httpx2.get(url + "/readyz", timeout=30)
    parts = answer.json()["parts"].items()
    # Whether there is a sandbox here is not what these tests ask.
    return answer.status_code, sorted(name for name, told in parts if told == "missing" and name != "sandbox")


def _nginx(folder: Path, ports: dict[str, int], processes: dict[str, subprocess.Popen[bytes]], workers: int) -> None:
    """The configuration of `deploy/`, with these addresses, as an ordinary user would run it."""
    text = (ROOT / "deploy" / "nginx.conf").read_text()
    for written, here in (("10.0.0.11:8420", ports["a"]), ("10.0.0.12:8420", ports["b"])):
        assert text.count(written) == 2
        text = text.replace(written, f"127.0.0.1:{here}")
    assert text.count("listen 80;") == 1
    # With a socket of its own each worker gets its part of the connections.
    text = text.replace("listen 80;", f"listen 127.0.0.1:{ports['nginx']}{' reuseport' if workers > 1 else ''};")
    place = folder / "nginx"
    place.mkdir()
    temporary = "".join(
        f'{kind}_temp_path "{place}/{kind}";' for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (place / "nginx.conf").write_text(
        f'daemon off; pid "{place}/pid"; error_log "{place}/error.log"; worker_processes {workers};\n'
        "events { worker_connections 8192; }\n"
        f"http {{ log_format at '$upstream_addr'; access_log \"{place}/at.log\" at; {temporary}\n{text}\n}}\n"
    )
    assert NGINX is not None
    said = (place / "said").open("wb")
    with said:
        process = subprocess.Popen(
            [NGINX, "-p", str(place), "-e", f"{place}/error.log", "-c", f"{place}/nginx.conf"], stdout=said, stderr=said
        )
    processes["nginx"] = process
    with socket.socket() as probe:
        while probe.connect_ex(("127.0.0.1", ports["nginx"])):
            assert process.poll() is None, (place / "said").read_text(errors="replace")
            time.sleep(0.05)


def _end(processes: dict[str, subprocess.Popen[bytes]]) -> None:
    for process in processes.values():
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.terminate()
    for process in processes.values():
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(30)
