"""The backup tool: a data folder in use is saved, lost, and goes on from what was saved."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import aibox
from aibox.errors import IntegrityError
from aibox.types import Scope

pytestmark = pytest.mark.anyio
TOOL = Path(__file__).parent.parent / "tools" / "backup.py"
EVA = Scope(tenant="acme", user="eva")
AT_WORK = """
import asyncio, sys
import aibox
from aibox.types import Scope

async def main():
    async with aibox.open(sys.argv[1]) as box:
        for number in range(10**9):
            await box.audit.append("tool.called", scope=Scope(tenant="acme", user="eva"), detail={})
            if number % 50 == 49:
                await box.audit.rotate()
                print("at work", flush=True)

asyncio.run(main())
"""


def tool(*words: object) -> subprocess.CompletedProcess[str]:
    # Not as a part of aibox: whoever restores may have nothing but Python.
    return subprocess.run([sys.executable, "-I", TOOL, *map(str, words)], capture_output=True, text=True)


def done(*words: object) -> str:
    ran = tool(*words)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A data folder with a memory and a document in it."""
    home = tmp_path / "home"
    terms = tmp_path / "terms.md"
    terms.write_text("# Terms\n\nThe notice period is ninety days.\n")

    async def fill() -> None:
        async with aibox.open(home) as box:
            await box.memory.remember("Eva drinks tea in the morning.", scope=EVA)
            await box.memory.add(terms, scope=EVA)
            await box.audit.append("tool.called", scope=EVA, detail={})

    asyncio.run(fill())
    return home


async def hold(home: Path) -> None:
    """Everything of the fixture is there, more can be recorded, and the log verifies."""
    async with aibox.open(home) as box:
        told = [hit.record.text for hit in await box.memory.recall("What does Eva drink?", scope=EVA)]
        read = [hit.record.text for hit in await box.memory.recall("How long is the notice period?", scope=EVA)]
        assert any("tea" in text for text in told)
        assert any("ninety" in text for text in read)
        await box.audit.append("tool.called", scope=EVA, detail={})
        assert (await box.audit.verify("acme")).ok


async def test_a_folder_in_use_is_saved_and_goes_on_elsewhere(home: Path, tmp_path: Path) -> None:
    """Saved while a process writes and rotates its key; under a new path everything is there, and the log verifies."""
    with subprocess.Popen([sys.executable, "-c", AT_WORK, home], stdout=subprocess.PIPE) as work:
        assert work.stdout is not None
        assert work.stdout.readline()
        done("save", home, tmp_path / "saved")
        work.kill()
    shutil.rmtree(home)
    assert "keys are back" in done("restore", tmp_path / "saved", tmp_path / "new home")
    await hold(tmp_path / "new home")


async def test_lost_data_comes_back_under_the_keys_that_were_kept(home: Path, tmp_path: Path) -> None:
    """The log of the copy is shorter than its mark: it opens when an operator has said why, and not before."""
    done("save", home, tmp_path / "saved")
    async with aibox.open(home) as box:
        for _ in range(3):
            await box.audit.append("tool.called", scope=EVA, detail={})
    for path in home.iterdir():
        if path.is_dir() and path.name != "keys":
            shutil.rmtree(path)
        elif path.name != "keys":
            path.unlink()
    assert "aibox audit restore" in done("restore", tmp_path / "saved", home)
    with pytest.raises(IntegrityError):
        await hold(home)
    async with aibox.open(home) as box:
        await box.audit.restore(scope=EVA, reason="the disk was lost")
    await hold(home)


def test_a_copy_that_changed_is_not_put_back(home: Path, tmp_path: Path) -> None:
    """One flipped byte, a missing file and one too many are named, and nothing is written."""
    saved = tmp_path / "saved"
    done("save", home, saved)
    assert done("check", saved) == "as it was saved\n"
    database = saved / "data" / "audit.db"
    content = bytearray(database.read_bytes())
    content[4000] ^= 1
    database.write_bytes(content)
    (saved / "keys" / "subjects.key").unlink()
    (saved / "data" / "extra").touch()
    found = tool("check", saved)
    assert found.returncode == 1
    assert found.stdout.splitlines() == [
        "changed: data/audit.db",
        "missing: keys/subjects.key",
        "not in the manifest: data/extra",
    ]
    assert tool("restore", saved, tmp_path / "new home").returncode == 2
    assert not (tmp_path / "new home").exists()


def test_nothing_is_overwritten(home: Path, tmp_path: Path) -> None:
    """Neither a copy nor a data folder that is there already; what is left out has no place in the copy."""
    (home / "models").mkdir()
    (home / "models" / "large.gguf").write_bytes(b"x")
    done("save", home, tmp_path / "saved", "--skip", "models")
    assert not (tmp_path / "saved" / "data" / "models").exists()
    assert tool("save", home, tmp_path / "saved").returncode == 2
    assert tool("restore", tmp_path / "saved", home).returncode == 2
    assert tool("save", tmp_path / "nowhere", tmp_path / "other").returncode == 2
