"""What `module:attr` on the command line names: found as Python finds modules from the present folder."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from aibox.agents.agent import Agent
from aibox.box import Box
from aibox.errors import ConfigError


def attribute(target: str) -> Any:
    """The object itself. Raises ConfigError where there is none."""
    module_name, _, name = target.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"cannot find {target}: {error}", hint="write it as module:attr") from None


def agent(target: str, box: Box) -> Agent:
    """An Agent, or what a callable makes of the box."""
    found = attribute(target)
    if not isinstance(found, Agent) and callable(found):
        found = found(box)
    if not isinstance(found, Agent):
        raise ConfigError(f"{target} is {type(found).__name__} and not an Agent")
    return found
