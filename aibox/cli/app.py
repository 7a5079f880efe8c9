"""The command line: what a person types, and how they are told what went wrong.

Exit codes: 0 good; 1 the answer is no (evidence broken, a demo step failed); 2 it could not be done; 130 interrupted.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from aibox import __version__
from aibox.cli.say import console, escape, say
from aibox.errors import AIBoxError, ConfigError

# Each command, and where it lives: only what is typed is loaded. A Typer is a group, anything else one command.
COMMANDS = {
    "demo": "aibox.cli.demo:demo",
    "run": "aibox.cli.chat:run",
    "chat": "aibox.cli.chat:chat",
    "serve": "aibox.cli.serve:serve",
    "verify": "aibox.cli.evidence:verify",
    "why": "aibox.cli.evidence:why",
    "doctor": "aibox.cli.doctor:doctor",
    "new": "aibox.cli.new:new",
    "replay": "aibox.cli.evals:replay",
    "seal": "aibox.cli.seal:seal",
    "approvals": "aibox.cli.approvals:app",
    "audit": "aibox.cli.audit:app",
    "db": "aibox.cli.db:app",
    "egress": "aibox.cli.egress:app",
    "models": "aibox.cli.models:app",
    "policy": "aibox.cli.policy:app",
    "sandbox": "aibox.cli.sandbox:app",
    "evals": "aibox.cli.evals:app",
    "keys": "aibox.cli.keys:app",
    "memory": "aibox.cli.memory:app",
    "sessions": "aibox.cli.sessions:app",
    "skills": "aibox.cli.skills:app",
}


class Commands(TyperGroup):
    """The commands of `COMMANDS`, each imported when it is asked for."""

    def list_commands(self, ctx: object) -> list[str]:  # noqa: ARG002 - the signature is Typer's
        return list(COMMANDS)

    def get_command(self, ctx: object, cmd_name: str) -> Any:  # noqa: ARG002 - likewise
        if cmd_name not in COMMANDS:
            # What was typed is compared with these for a did-you-mean.
            self.commands.update(dict.fromkeys(COMMANDS))  # type: ignore[arg-type]
            return None
        module, _, name = COMMANDS[cmd_name].partition(":")
        found = getattr(importlib.import_module(module), name)
        if not isinstance(found, typer.Typer):
            single = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
            single.command(cmd_name)(found)
            return get_command(single)
        group = get_command(found)
        group.name = cmd_name
        return group


app = typer.Typer(
    name="aibox",
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="AI on infrastructure that you own: models, agents, guardrails, memory, sandbox, and evidence.",
    epilog="Data lives in the folder that AIBOX_HOME names. AIBOX_SOVEREIGN=strict refuses every outside connection.",
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"aibox {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """What holds for every command."""
    # Both are read elsewhere: --version by its callback, --debug by `run`, which must know it also for early errors.
    del version, debug


def run(arguments: Sequence[str]) -> int:
    """Run the command line and return its exit code. Nothing but --debug shows a traceback."""
    arguments = list(arguments)
    debug = "--debug" in arguments
    try:
        code = app(arguments, standalone_mode=False)
    except typer.TyperException as error:
        command = getattr(getattr(error, "ctx", None), "command_path", "aibox")
        say(console(), ConfigError(error.format_message(), hint=f"{command} --help says what can be typed"))
        return 2
    except (KeyboardInterrupt, typer.Abort):
        console().print("stopped")
        return 130
    except AIBoxError as error:
        if debug:
            traceback.print_exc()
        say(console(), error)
        return 2
    except BrokenPipeError:
        # The reader of our output has left (`aibox models | head`); there is nobody to tell.
        sys.stderr.close()
        return 2
    except Exception as error:  # noqa: BLE001 - the last resort: a bug is told as one, in a line
        if debug:
            traceback.print_exc()
        console().print(f"[red]aibox failed:[/] {type(error).__name__}: {escape(str(error))}")
        console().print("  this is a defect of aibox; run again with --debug for the traceback")
        return 2
    return code if isinstance(code, int) else 0
