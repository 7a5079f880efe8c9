"""Every notebook runs from a clean kernel, from the first cell to the last, and shows what it promises."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from aibox.inference import demo_model

pytest.importorskip("nbclient", reason="notebooks are run where nbclient is installed")
needs_model = pytest.mark.skipif(demo_model.find() is None, reason="the demo model is not installed: make setup")
NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
SHOWS = {
    "1_quick_start": ["<Box", "owed()", "1240.5", "redact", "332833500", "I prefer short answers."],
    "2_guardrails_and_labels": ["redact", "eva@example.org", "an attack          block", "public at most", "send"],
    "3_receipts": ["turn.sealed", "holds", "is not the one that was recorded"],
    "4_evaluate_and_compare": ["image/png", "McNemar", "</progress>", " runs"],
}
# In a process of its own: a kernel speaks over sockets, which tests may not open, and its libraries warn.
RUN = """
import json, sys, nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], as_version=4)
NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": "."}}).execute()
print(json.dumps(notebook.cells))
"""


def test_every_notebook_is_run() -> None:
    """None is left out, and none carries the output of somebody's run."""
    assert [path.stem for path in NOTEBOOKS] == sorted(SHOWS)
    for path in NOTEBOOKS:
        cells = json.loads(path.read_text("utf-8"))["cells"]
        assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells), path.name


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_what_it_promises(path: Path, tmp_path: Path) -> None:
    """No cell fails, and what a reader is told to look at is among the outputs."""
    if path.stem == "1_quick_start" and demo_model.find() is None:
        pytest.skip("the demo model is not installed: make setup")
    shown = run(path, tmp_path)
    for words in SHOWS[path.stem]:
        assert words in shown, shown[:8000]


def run(path: Path, tmp_path: Path) -> str:
    """All that the cells put out."""
    env = {
        **os.environ,
        "AIBOX_HOME": str(tmp_path / "home"),
        "AIBOX_SOVEREIGN": "strict",
        "MPLCONFIGDIR": str(tmp_path),
    }
    env |= {"IPYTHONDIR": str(tmp_path / "ipython"), "JUPYTER_RUNTIME_DIR": str(tmp_path / "runtime")}
    command = [sys.executable, "-c", RUN, str(path)]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.dumps([cell.get("outputs", []) for cell in json.loads(done.stdout)], ensure_ascii=False)


ONE_CELL = """
import nbformat, sys
from pathlib import Path
shows = "print('SAID', bool(reply.text), type(box).__name__)"
cells = ["%load_ext aibox", "%%agent\\nSay hello.", shows, "%%agent nobody\\nHi", "await box.close()"]
notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
Path("one.ipynb").write_text(nbformat.writes(notebook))
"""


@needs_model
def test_a_question_needs_nothing_but_the_extension(tmp_path: Path) -> None:
    """`%%agent` opens a box of its own where there is no agent; a name that is none is told in a line."""
    subprocess.run([sys.executable, "-c", ONE_CELL], cwd=tmp_path, check=True)
    shown = run(tmp_path / "one.ipynb", tmp_path)
    assert "SAID True Box" in shown
    assert "there is no agent in &#x27;nobody&#x27;" in shown
    assert "Traceback" not in shown


def test_a_bar_says_how_far_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    """It takes what `evaluate` and what `Memory.add` say; a file's name is text and no markup."""
    from aibox.memory.document import Progress
    from aibox.notebook import Bar

    bar = Bar("files")
    for said in (Progress(0, 2, "a.md"), Progress(1, 2, "<b>.md")):
        bar(said)
    assert bar._repr_html_() == '<progress value="1" max="2"></progress> 1 of 2 files &lt;b&gt;.md'
    bar(2, 2)
    assert 'value="2"' in bar._repr_html_()
