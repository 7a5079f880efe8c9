"""What somebody else has named or written moves no cursor, and breaks no table."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from aibox.audit.chain import AuditChain
from aibox.cli.app import app
from aibox.cli.say import say
from aibox.errors import ConfigError
from aibox.server.api_keys import ApiKeys
from aibox.settings import Settings
from aibox.types import Scope

EVIL = "[/]\x1b[2Jnight\u202e"


def ran(home: Path, *words: str) -> str:
    result = CliRunner().invoke(app, [*words], env={"AIBOX_HOME": str(home), "COLUMNS": "200"}, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "aibox.toml").write_text('[server]\napi_keys = "keys.db"\n')
    return tmp_path


def test_a_note_on_a_key_and_a_users_name_are_shown_as_they_are(home: Path) -> None:
    """An administrator of a tenant writes the note, an issuer names the user; the operator's list shows both."""
    scope = Scope(tenant="acme", user="[/]eva")

    async def made() -> None:
        keys = ApiKeys(home / "keys.db")
        await keys.create(scope=scope, note=EVIL, scopes=["inference"], models=["[/x]"])
        await keys.close()
        settings = Settings.load(home=home)
        async with AuditChain(settings.evidence, keys=settings.key_folder) as chain:
            await chain.append("test.done", scope=scope, detail={})

    asyncio.run(made())
    shown = ran(home, "keys", "list", "--tenant", "acme")
    assert "[/]\\x1b[2Jnight\\u202e" in shown
    assert "[/]eva" in shown
    assert "inference ([/x])" in shown
    assert "[/]eva" in ran(home, "audit", "log", "--tenant", "acme")


def test_a_message_has_its_lines_and_nothing_that_a_terminal_obeys(capsys: pytest.CaptureFixture[str]) -> None:
    """An error may quote what a server answered, or a file that somebody sent."""
    say(Console(highlight=False), ConfigError(f"one\ntwo {EVIL}", hint=EVIL))
    shown = capsys.readouterr().out
    assert re.sub(r"[ -~\n]", "", shown) == ""
    assert "one\ntwo [/]\\x1b[2Jnight\\u202e\n" in shown
