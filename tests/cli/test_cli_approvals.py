"""`aibox approvals` against a server that was killed: one process asks, another answers, a third goes on."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import openai
import pytest

from aibox.cli.app import run

AGENT = '''
import aibox
from aibox.testing import ScriptedBackend, call


@aibox.tool(approve=True, side_effects=True)
def pay(to: str) -> str:
    """Pay somebody."""
    with open("paid", "a") as file:
        file.write(to + "\\n")
    return f"paid {to}"


def answer(request):
    return "It is done." if request.messages[-1]["role"] == "tool" else call("pay", {"to": "Acme \\u202e\\x1b[2J"})


def office(box):
    model = ScriptedBackend(*[answer] * 9)
    return aibox.Agent("Books.", name="office", router=model, tools=[pay], state=box.state, audit=box.audit)
'''
HELD = ("--tenant", "default")


@contextmanager
def served(folder: Path) -> Iterator[tuple[str, subprocess.Popen[str], str]]:
    """The URL of `aibox serve books:office`, its process, and its key where it is new."""
    command = [sys.executable, "-m", "aibox", "serve", "books:office", "--port", "0"]
    env = {**os.environ, "COLUMNS": "200"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env, cwd=folder) as server:
        assert server.stderr is not None
        url = re.search(r"http://\S+", server.stderr.readline())
        assert url is not None
        known = folder / "key"
        if not known.exists():
            key = re.search(r"aibox-local-\S+", server.stderr.readline())
            assert key is not None
            known.write_text(key[0])
        try:
            yield url[0], server, known.read_text()
        finally:
            server.send_signal(signal.SIGKILL)


class Typed:
    """`aibox approvals ...` in this process, which is another than the server's."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: str) -> tuple[int, str]:
        """The exit code, and what was printed."""
        self._capsys.readouterr()
        code = run(["approvals", *arguments])
        said = self._capsys.readouterr()
        return code, said.out + said.err


@pytest.fixture
def aibox(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Typed:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return Typed(capsys)


@pytest.mark.loopback
def test_a_question_outlives_its_server_and_is_answered_on_the_command_line(tmp_path: Path, aibox: Typed) -> None:
    """The server dies by kill -9; another process shows and approves; a new server goes on, and pays once."""
    (tmp_path / "books.py").write_text(AGENT)
    with served(tmp_path) as (url, server, key):
        client = openai.OpenAI(base_url=url, api_key=key, max_retries=0)
        asked = [{"role": "user", "content": "pay Acme"}]
        reply = client.chat.completions.create(model="agent:office", messages=asked)  # type: ignore[call-overload]
        about = reply.model_extra["aibox"]
        server.send_signal(signal.SIGKILL)
    assert not (tmp_path / "paid").exists()
    question = about["pending"][0]["id"]

    assert question in aibox("list", *HELD)[1]
    assert "nothing waits" in aibox("list")[1]
    # What a terminal would obey is written out: nobody agrees to a line that erased another.
    shown = aibox("show", question, *HELD)[1]
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    told = json.loads(aibox("show", question, "--json", *HELD)[1])
    assert told["arguments"] == {"to": "Acme \u202e\x1b[2J"}

    agreed = ("--as", "boss", "--digest", told["digest"])
    for arguments, words in (
        (("approve", question, *HELD), "--as"),
        (("approve", question, "--as", "boss", *HELD), "--digest"),
        (("approve", question, *agreed, "--tenant", "rival"), "no such question"),
    ):
        code, said = aibox(*arguments)
        assert (code, words in said) == (2, True), said
    code, said = aibox("approve", question, *agreed, *HELD)
    assert (code, "approved" in said) == (0, True), said
    code, said = aibox("reject", question, "--reason", "no", "--as", "boss", *HELD)
    assert (code, "closed" in said) == (2, True), said

    with served(tmp_path) as (url, _, key):
        client = openai.OpenAI(base_url=url, api_key=key, max_retries=0)
        done = client.post(f"/runs/{about['run']}/resume", body={}, cast_to=openai.types.chat.ChatCompletion)
        assert done.choices[0].message.content == "It is done."
        with pytest.raises(openai.PermissionDeniedError):
            client.post(f"/runs/{about['run']}/resume", body={}, cast_to=object)
    assert (tmp_path / "paid").read_text().count("Acme") == 1


def test_a_no_and_a_resumption_on_the_command_line(
    tmp_path: Path, aibox: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without any server: a run of another process is rejected with a reason, and goes on as the one who began it."""
    (tmp_path / "books.py").write_text(AGENT)
    begin = (
        "import asyncio, aibox, books\nfrom aibox.types import Scope\n"
        "async def main():\n"
        "    async with aibox.open() as box:\n"
        "        reply = await books.office(box).run('pay', scope=Scope(tenant='default', user='eva'))\n"
        "        print(reply.pending[0].id, reply.run)\n"
        "asyncio.run(main())\n"
    )
    first = subprocess.run([sys.executable, "-c", begin], cwd=tmp_path, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    question, run_id = first.stdout.split()
    # Undone afterwards: the command finds modules as Python does, and remembers them.
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "books", raising=False)
    code, said = aibox("resume", run_id, "books:office", "--as", "eva", *HELD)
    assert (code, "still waits" in said) == (2, True), said
    code, said = aibox("reject", question, "--reason", "too much", "--as", "boss", *HELD)
    assert (code, "rejected" in said) == (0, True), said
    code, said = aibox("resume", run_id, "books:office", "--as", "boss", *HELD)
    assert (code, "no such run" in said) == (2, True), said
    code, said = aibox("resume", run_id, "books:office", "--as", "eva", *HELD)
    assert (code, said.strip()) == (0, "It is done."), said
    assert not (tmp_path / "paid").exists()
