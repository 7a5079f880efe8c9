"""How an error is told to a person: what happened, then what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aibox.errors import AIBoxError

if TYPE_CHECKING:
    from rich.console import Console


def console() -> Console:
    """Where errors are told. Rich is loaded for them only: a server runs for weeks without."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def escape(text: str) -> str:
    """The text with nothing in it that rich takes for markup."""
    from rich.markup import escape

    return escape(text)


def visible(text: str) -> str:
    """The text with whatever a terminal would obey or hide written out: what is agreed to is what is there."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def plain(text: str) -> str:
    """As `visible`, for a cell or a line of rich: no name that somebody chose is taken for markup either."""
    return escape(visible(text))


def lines(text: str) -> str:
    """As `visible`, for a text of several lines."""
    return "\n".join(map(visible, text.split("\n")))


def say(console: Console, error: AIBoxError) -> None:
    console.print(f"[red]aibox:[/] {escape(lines(error.message))}", soft_wrap=True)
    if error.hint:
        console.print(f"  {escape(lines(error.hint))}", soft_wrap=True)
