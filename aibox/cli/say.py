"""How an error is told to a person: what happened, then what to do."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape

from aibox.errors import AIBoxError


def say(console: Console, error: AIBoxError) -> None:
    console.print(f"[red]aibox:[/] {escape(error.message)}", soft_wrap=True)
    if error.hint:
        console.print(f"  {escape(error.hint)}", soft_wrap=True)
