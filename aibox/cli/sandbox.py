"""`aibox sandbox build`: the image for the docker driver, without any registry."""

from __future__ import annotations

from typing import Annotated, Literal

import typer
from rich.console import Console

from aibox.cli.options import ConfigOption, load_settings
from aibox.sandbox.engine import Engine
from aibox.sandbox.image import build as build_image

app = typer.Typer(add_completion=False, no_args_is_help=True, help="The sandbox that runs agents' code.")


@app.callback()
def sandbox() -> None:
    """What holds for every command of the sandbox."""


@app.command("build")
def build(
    source: Annotated[
        Literal["python", "debootstrap"],
        typer.Option("--from", help="The Python that runs aibox, or a Debian root (as root, by debootstrap)."),
    ] = "python",
    config: ConfigOption = None,
) -> None:
    """Make the image with numpy, pandas and matplotlib, import it into the engine, and print its id."""
    settings, _ = load_settings(config=config)
    console = Console(stderr=True, highlight=False)
    engine = Engine(settings.sandbox.engine).command()
    print(build_image(settings.sandbox.image, engine=engine, source=source, say=console.print))
