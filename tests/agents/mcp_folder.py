"""An MCP server and all that it needs, as an operator would put it into a folder that goes into the sandbox."""

from __future__ import annotations

import re
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from aibox.agents.mcp import McpServer

SERVER = str(Path(__file__).parent / "mcp_server.py")


def packed(place: Path) -> Path:
    """The server, and beside it the SDK with whatever it asks for."""
    shutil.copy(SERVER, place / "mcp_server.py")
    needed: dict[str, metadata.Distribution] = {}

    def need(name: str, extras: set[str]) -> None:
        if (name := re.sub(r"[-_.]+", "-", name).lower()) not in needed:
            needed[name] = metadata.distribution(name)
            for line in needed[name].requires or ():
                wanted = Requirement(line)
                if wanted.marker is None or any(wanted.marker.evaluate({"extra": extra}) for extra in {"", *extras}):
                    need(wanted.name, wanted.extras)

    need("mcp", set())
    for found in needed.values():
        for file in found.files or ():
            source = Path(str(found.locate_file(file)))
            if ".." not in file.parts and source.is_file() and source.suffix != ".pyc":
                (place / "packages" / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, place / "packages" / file)
    return place


def boxed(folder: Path | None, **options: Any) -> McpServer:
    """The server over stdio, without anybody's word for it. A machine may be slow, and 30 MiB are copied."""
    env = {"PYTHONPATH": "packages", "KEPT": "kept"} | options.pop("env", {})
    words = ("mcp_server.py", "stdio")
    return McpServer(name="t", command="python3", args=words, folder=folder, env=env, timeout_s=120, **options)
