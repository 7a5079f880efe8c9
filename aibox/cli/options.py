"""Options that several commands share, and the settings that they amount to."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from aibox.errors import ConfigError
from aibox.settings import BackendSettings, Settings

ModelOption = Annotated[
    str | None,
    typer.Option("--model", "-m", help="A GGUF file of yours, or the id of a model that `aibox models` lists."),
]
PolicyOption = Annotated[
    str | None,
    typer.Option("--policy", help="permissive, balanced, strict or a TOML file; joined with the configured one."),
]
ConfigOption = Annotated[Path | None, typer.Option("--config", help="Settings file; ./aibox.toml by default.")]


def load_settings(*, config: Path | None = None, model: str | None = None) -> tuple[Settings, str]:
    """The settings, and the model id to ask for. A path of a model file puts that file in front of the backends."""
    settings = Settings.load(config=config, env=os.environ)
    if model is None:
        return settings, "default"
    path = Path(model).expanduser()
    if path.suffix.lower() != ".gguf" and not path.exists():
        return settings, model
    if not path.exists():
        raise ConfigError(
            f"there is no model file {path}", hint="`aibox models` lists the models that can be asked for"
        )
    own = BackendSettings(kind="embedded", name="file", path=path.absolute())
    return settings.model_copy(update={"backends": (own, *settings.backends), "default_model": None}), "default"
