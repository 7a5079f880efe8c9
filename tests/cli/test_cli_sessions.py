"""`aibox sessions` over conversations that an agent had: found, read, named, taken along and deleted, on record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import aibox
from aibox.cli.app import run
from aibox.testing import ScriptedBackend
from aibox.types import Scope

ME = Scope(tenant="local", user="me")


async def talk(agent: str, session: str, *said: str, scope: Scope = ME) -> None:
    async with aibox.open() as box:
        made = box.agent("x", name=agent, router=ScriptedBackend(*[f"You said {one}" for one in said]))
        for one in said:
            await made.run(one, scope=scope.narrow(session=session), label="confidential/PHI")


async def kinds() -> list[str]:
    async with aibox.open() as box:
        return [entry.kind async for entry in box.audit.entries("local") if entry.kind.startswith("session.")]


def test_conversations_on_the_command_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What a terminal would obey is written out, what two agents have is asked about, nobody else's is there."""
    monkeypatch.setenv("COLUMNS", "200")

    def typed(*arguments: str) -> tuple[int, str]:
        code = run(["sessions", *arguments])
        said = capsys.readouterr()
        return code, said.out + said.err

    assert "is kept" in typed("list")[1]
    aibox.run_sync(talk("clerk", "march", "plan\x1b[2J March", "and April"))
    aibox.run_sync(talk("other", "march", "hello"))
    aibox.run_sync(talk("clerk", "theirs", "secret", scope=Scope(tenant="local", user="eva")))

    assert {row["agent"] for row in json.loads(typed("list", "--json")[1])} == {"clerk", "other"}
    listed = typed("list", "--agent", "clerk")[1]
    assert "\\x1b[2J March" in listed
    assert "confidential/PHI" in listed
    assert "\x1b" not in listed
    code, said = typed("show", "march")
    assert (code, "--agent, one of" in said) == (2, True), said
    shown = typed("show", "march", "--agent", "clerk")[1]
    assert "user: plan\\x1b[2J March" in shown
    assert "assistant: You said and April" in shown
    assert typed("title", "march", "The plan", "--agent", "clerk")[0] == 0
    file = tmp_path / "out" / "plan.json"
    file.parent.mkdir()
    assert typed("export", "march", "--agent", "clerk", "-o", str(file))[0] == 0
    assert file.stat().st_mode & 0o077 == 0
    whole = json.loads(file.read_text())
    assert (whole["title"], len(whole["messages"])) == ("The plan", 4)
    code, said = typed("export", "march", "--agent", "clerk", "-o", str(file))
    assert (code, "cannot be written" in said) == (2, True), said
    for command in (["show", "theirs"], ["delete", "theirs"], ["title", "theirs", "x"], ["export", "nothing"]):
        code, said = typed(*command)
        assert (code, "no such session" in said) == (2, True), said
    assert typed("delete", "march", "--agent", "clerk")[0] == 0
    assert typed("show", "march")[0] == 0  # the other agent's is the only one now
    shown_, exported = "session.shown", "session.exported"
    assert aibox.run_sync(kinds()) == [shown_, exported, exported, "session.deleted", shown_]
    assert json.loads(typed("list", "--json", "--user", "eva")[1])[0]["id"] == "theirs"
