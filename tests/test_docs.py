"""What the documentation shows runs: every Python block, every settings and policy block, every link to a file."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import aibox
from aibox.policy.policy import Policy
from aibox.settings import Settings

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[object]:
    found = []
    for page in PAGES:
        for number, match in enumerate(BLOCK.finditer(page.read_text("utf-8"))):
            if match[1] == language:
                found.append(pytest.param(match[2], id=f"{page.name}:{number}"))
    return found


@pytest.mark.parametrize("code", blocks("python"))
def test_a_python_block_runs(code: str, tmp_path: Path) -> None:
    """A reader can paste it into a file and run it, with no network."""
    script = tmp_path / "block.py"
    script.write_text(code, "utf-8")
    env = {**os.environ, "AIBOX_SOVEREIGN": "strict", "PYTHONWARNINGS": "error::RuntimeWarning"}
    done = subprocess.run([sys.executable, script], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("text", blocks("toml"))
def test_a_toml_block_is_a_policy_or_settings(text: str) -> None:
    """What is shown as configuration is accepted as it stands."""
    values = tomllib.loads(text)
    if {"artifacts", "checks", "egress", "limits", "retention"} & set(values):
        Policy.read(values)
    else:
        Settings(home=Path("/data"), **values)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    """A link inside the tree names a file that is there."""
    for target in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", page.read_text("utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_threat_has_a_test_that_is_there() -> None:
    """What the threat model says is shown by a test is: file and name exist."""
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", (ROOT / "docs" / "threat-model.md").read_text("utf-8"))
    assert len(named) > 30
    for path, test in named:
        assert f"def {test}(" in (ROOT / path).read_text("utf-8"), f"{path}::{test}"


def test_the_reference_names_what_is_public() -> None:
    """Each name that `import aibox` gives has its place on a page of the reference."""
    pages = "".join(page.read_text("utf-8") for page in (ROOT / "docs" / "reference").glob("*.md"))
    listed = set(re.findall(r"^\.\. auto\w+:: aibox\.(\w+)\b(?!\.)", pages, re.MULTILINE))
    assert set(aibox.__all__) <= listed
