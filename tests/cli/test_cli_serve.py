"""`aibox serve` as a real process, and the official client against it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import openai
import pytest

from aibox.inference import demo_model

pytestmark = pytest.mark.loopback
needs_model = pytest.mark.skipif(demo_model.find() is None, reason="the demo model is not installed: make setup")


@contextmanager
def serving(*arguments: str) -> Iterator[tuple[str, str]]:
    """The URL and the key of a server that runs until the block ends; it must then stop with 0 and no traceback."""
    command = [sys.executable, "-m", "aibox", "serve", "--port", "0", *arguments]
    env = {**os.environ, "COLUMNS": "200", "AIBOX_SOVEREIGN": "strict"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env) as server:
        assert server.stderr is not None
        try:
            url = re.search(r"http://\S+", server.stderr.readline())
            key = re.search(r"aibox-local-\S+", server.stderr.readline())
            assert url is not None
            assert key is not None
            yield url[0], key[0]
        finally:
            server.send_signal(signal.SIGINT)
            err = server.stderr.read()
    assert "Traceback" not in err


@needs_model
def test_the_official_client_works_unchanged() -> None:
    """Models, the agent with pseudonyms restored, the bare model streamed, and errors of the client's own kind."""
    with serving() as (url, key):
        client = openai.OpenAI(base_url=url, api_key=key, max_retries=0)
        assert {model.id for model in client.models.list()} == {"agent:default", "smollm2-135m-instruct"}
        asked = [{"role": "user", "content": "My e-mail is maria@example.org. Repeat it."}]
        answer = client.chat.completions.create(model="agent:default", messages=asked, max_tokens=24)  # type: ignore[call-overload]
        assert answer.choices[0].message.content
        chunks = client.chat.completions.create(model="default", messages=asked, max_tokens=8, stream=True)  # type: ignore[call-overload]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=url, api_key="guess", max_retries=0).models.list()
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="none", messages=asked)  # type: ignore[call-overload]


def test_a_port_that_is_taken_is_told_in_a_line() -> None:
    """Exit code 2 and what to do, and no key is spent on a server that never was."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "aibox", "serve", "--port", port]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr
    assert "key" not in done.stderr
    assert "Traceback" not in done.stderr


def test_api_keys_are_made_listed_and_ended(tmp_path: Path) -> None:
    """A key is printed once, works against a server that has keys, is listed without its secret, and ends when told."""
    (tmp_path / "aibox.toml").write_text('[server]\napi_keys = "keys.db"\nport = 0\n')

    def keys(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "aibox", "keys", *arguments, "--tenant", "acme"]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)

    made = keys("create", "--user", "nightly", "--note", "reports")
    assert made.returncode == 0, made.stderr
    key = made.stdout.strip()
    listed = keys("list").stdout
    assert "reports" in listed
    assert key.split("-", 2)[2] not in listed
    command = [sys.executable, "-m", "aibox", "serve"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as server:
        assert server.stderr is not None
        try:
            url = server.stderr.readline().split()[-1]
            assert openai.OpenAI(base_url=url, api_key=key, max_retries=0).models.list().data
            assert keys("revoke", key.split("-")[1]).returncode == 0
            with pytest.raises(openai.AuthenticationError):
                openai.OpenAI(base_url=url, api_key=key, max_retries=0).models.list()
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(timeout=300)
    assert keys("revoke", "0" * 12).returncode == 2
