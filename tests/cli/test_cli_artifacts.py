"""What code made, on a terminal: named as it comes, saved on demand, never written over a file."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

import aibox
from aibox.cli.chat import Terminal
from aibox.errors import ConfigError
from aibox.sandbox.bubblewrap import Bubblewrap
from aibox.testing import ScriptedBackend, call
from aibox.types import Scope


@pytest.mark.anyio
async def test_what_code_made_is_named_and_saved(scope: Scope, tmp_path: Path) -> None:
    """Its name, size and label on standard error; a second one beside the first; a missing folder is an error."""
    out, err = (Console(file=StringIO(), width=200) for _ in range(2))
    terminal = Terminal(out, err)
    sandbox = aibox.Sandbox(Bubblewrap())
    model = ScriptedBackend(call("bash", {"command": "printf 1,2 > sums.csv"}), "There.")
    try:
        agent = aibox.Agent("x", router=model, sandbox=sandbox)
        reply = await terminal.show(agent, "Go.", scope=scope, label="confidential")
    finally:
        await sandbox.close()
    for _ in range(2):
        terminal.save(reply, tmp_path)
    with pytest.raises(ConfigError, match="cannot write"):
        terminal.save(reply, tmp_path / "missing")
    terminal.save(aibox.Reply(text="x"), tmp_path)
    assert isinstance(err.file, StringIO)
    told = err.file.getvalue()
    assert "made sums.csv (text/csv, 3 bytes, confidential, unchecked)" in told
    assert "no files" in told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sums-1.csv", "sums.csv"]
    assert (tmp_path / "sums-1.csv").read_bytes() == b"1,2"


@pytest.mark.anyio
async def test_no_tool_and_no_model_moves_the_cursor(scope: Scope) -> None:
    """What a terminal would obey is written out, beside the answer and in it; into a file the answer goes as it is."""
    code = "printf '\\033]0;owned\\007\\033[2Jdone'"
    for terminal_there in (True, False):
        out = Console(file=StringIO(), width=200, force_terminal=terminal_there, color_system=None)
        err = Console(file=StringIO(), width=200)
        sandbox = aibox.Sandbox(Bubblewrap())
        model = ScriptedBackend(call("bash", {"command": code}), "a\x1b[1A\rb\n")
        try:
            agent = aibox.Agent("x", router=model, sandbox=sandbox)
            await Terminal(out, err).show(agent, "Go.", scope=scope, label="internal")
        finally:
            await sandbox.close()
        assert isinstance(out.file, StringIO)
        assert isinstance(err.file, StringIO)
        assert "\x1b" not in err.file.getvalue()
        assert "owned" in err.file.getvalue()
        answer = "a\\x1b[1A\\x0db" if terminal_there else "a\x1b[1A"
        assert out.file.getvalue().startswith(answer)
