"""The command line: what a person types, and how they are told what went wrong.

Exit codes: 0 good; 1 the answer is no (evidence broken, a demo step failed); 2 it could not be done; 130 interrupted.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from aibox import __version__
from aibox.cli import (
    approvals,
    audit,
    chat,
    demo,
    doctor,
    egress,
    evals,
    evidence,
    keys,
    memory,
    models,
    new,
    policy,
    sandbox,
    seal,
    serve,
    sessions,
    skills,
    unmask,
)
from aibox.cli.say import say
from aibox.errors import AIBoxError, ConfigError

app = typer.Typer(
    name="aibox",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="AI on infrastructure that you own: models, agents, guardrails, memory, sandbox, and evidence.",
    epilog="Data lives in the folder that AIBOX_HOME names. AIBOX_SOVEREIGN=strict refuses every outside connection.",
)
app.command("demo")(demo.demo)
app.command("run")(chat.run)
app.command("chat")(chat.chat)
app.command("serve")(serve.serve)
app.command("verify")(evidence.verify)
app.command("why")(evidence.why)
app.command("doctor")(doctor.doctor)
app.command("new")(new.new)
app.command("replay")(evals.replay)
app.command("seal")(seal.seal)
app.add_typer(approvals.app, name="approvals")
audit.app.command("unmask")(unmask.unmask)
app.add_typer(audit.app, name="audit")
app.add_typer(egress.app, name="egress")
app.add_typer(models.app, name="models")
app.add_typer(policy.app, name="policy")
app.add_typer(sandbox.app, name="sandbox")
app.add_typer(evals.app, name="evals")
app.add_typer(keys.app, name="keys")
app.add_typer(memory.app, name="memory")
app.add_typer(sessions.app, name="sessions")
app.add_typer(skills.app, name="skills")


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
    console = Console(stderr=True, highlight=False)
    debug = "--debug" in arguments
    try:
        code = app(arguments, standalone_mode=False)
    except typer.TyperException as error:
        command = getattr(getattr(error, "ctx", None), "command_path", "aibox")
        say(console, ConfigError(error.format_message(), hint=f"{command} --help says what can be typed"))
        return 2
    except (KeyboardInterrupt, typer.Abort):
        console.print("stopped")
        return 130
    except AIBoxError as error:
        if debug:
            traceback.print_exc()
        say(console, error)
        return 2
    except BrokenPipeError:
        # The reader of our output has left (`aibox models | head`); there is nobody to tell.
        sys.stderr.close()
        return 2
    except Exception as error:  # noqa: BLE001 - the last resort: a bug is told as one, in a line
        if debug:
            traceback.print_exc()
        console.print(f"[red]aibox failed:[/] {type(error).__name__}: {escape(str(error))}")
        console.print("  this is a defect of aibox; run again with --debug for the traceback")
        return 2
    return code if isinstance(code, int) else 0
