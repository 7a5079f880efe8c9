"""`aibox memory` as a person meets it."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from aibox.cli.app import run


def test_a_memory_is_filled_shown_moved_and_emptied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Documents are added, memories imported, both shown and found, exported for the owner alone, and forgotten."""

    def aibox(*arguments: str) -> tuple[int, str]:
        code = run(["memory", *arguments])
        return code, capsys.readouterr().out

    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "birds.md").write_text("# Birds\n\nThe heron nests in May.")
    (tmp_path / "docs" / "bad.pdf").write_text("no PDF")
    code, out = aibox("add", str(tmp_path / "docs"), "--label", "confidential")
    assert code == 1
    assert "1 documents added" in out
    assert "bad.pdf: its name says pdf" in out
    (tmp_path / "m.jsonl").write_text('{"text": "I like tea.", "type": "user", "label": "internal/PHI"}\n')
    assert aibox("import", str(tmp_path / "m.jsonl")) == (0, "1 kept\n")
    code, out = aibox("show")
    assert code == 0
    assert "I like tea.  (internal/PHI" in out
    assert "birds.md  (private, confidential)" in out
    id_ = next(line.split()[-1] for line in out.splitlines() if "tea" in line)
    code, out = aibox("search", "When does the heron nest?")
    assert code == 0
    assert "birds.md, Birds" in out
    assert "Nothing is remembered" in aibox("show", "--user", "somebody")[1]
    assert aibox("export", "-o", str(tmp_path / "out.jsonl"))[0] == 0
    assert stat.S_IMODE((tmp_path / "out.jsonl").stat().st_mode) == 0o600
    assert aibox("export", "-o", str(tmp_path / "out.jsonl"))[0] == 2
    assert '"text":"I like tea."' in aibox("export")[1]
    assert aibox("reindex") == (0, "0 documents read anew\n")
    assert aibox("forget", id_) == (0, "1 forgotten\n")
    assert aibox("forget", id_) == (1, "0 forgotten\n")
    assert aibox("forget")[0] == 2
    assert aibox("forget", "--everything") == (0, "1 forgotten\n")
    assert "Nothing is remembered" in aibox("show")[1]
