"""`aibox new`: a folder to start from, with an agent, a policy and a test that passes."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from aibox.errors import ConfigError, StoreError

FILES = ("agent.py", "policy.toml", "aibox.toml", "test_agent.py")


def new(name: Annotated[Path, typer.Argument(help="The folder to make.")]) -> None:
    """Make a folder with an agent, a policy and a passing test."""
    if name.exists():
        raise ConfigError(f"{name} exists already", hint="choose another name; nothing was changed")
    template = resources.files("aibox").joinpath("cli", "template")
    try:
        name.mkdir(parents=True)
        for file in FILES:
            (name / file).write_text(template.joinpath(f"{file}.txt").read_text("utf-8"), "utf-8")
    except OSError as error:
        raise StoreError(f"cannot write {name}: {error.strerror}") from None
    console = Console(highlight=False)
    console.print(f"made {name}: {', '.join(FILES)}", markup=False)
    console.print(f"next:  cd {name} && pytest     then:  python agent.py", markup=False)
