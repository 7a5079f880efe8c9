"""`aibox seal -- COMMAND`: any program, held by the kernel, with a broker for the hosts that are listed."""

from __future__ import annotations

import hashlib
from typing import Annotated

import typer

from aibox import enclosure
from aibox.box import Box
from aibox.cli import interrupt
from aibox.cli.options import ConfigOption, load_settings
from aibox.types import Scope


def seal(
    command: Annotated[list[str], typer.Argument(help="The command and its arguments, after `--`.")],
    allow: Annotated[
        list[str] | None, typer.Option(help="host:port that it may reach; seal.allow of the settings as well.")
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Run a command that reaches loopback and listed hosts and nothing else; every connection out is on record.

    The exit code is the command's own; 2 when it could not be enclosed, and then it has not run.
    """
    settings, _ = load_settings(config=config)
    hosts = enclosure.listed([*(allow or ()), *settings.seal.allow])
    scope = Scope.local(agent="seal")
    digest = hashlib.sha256("\0".join(command).encode("utf-8", "surrogateescape")).hexdigest()

    async def main() -> int:
        async with Box(settings) as box:

            async def record(kind: str, detail: dict[str, object]) -> None:
                await box.audit.append(kind, scope=scope, detail={**detail, "command_sha256": digest})

            return await enclosure.run(command, hosts, record=record)

    raise typer.Exit(interrupt.run(main()))
