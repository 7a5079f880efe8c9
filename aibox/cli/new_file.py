"""A file that a command writes for its owner's eyes only."""

from __future__ import annotations

import os
from pathlib import Path

from aibox.errors import ConfigError


def write_new(path: Path, text: str) -> None:
    """Nobody else may read it, and nothing is overwritten. Raises ConfigError."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}", hint="name a new file") from None
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
