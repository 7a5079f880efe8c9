"""`aibox audit unmask`: what a pseudonym stands for, for whom the policy names, with a reason that stays on record."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from aibox.box import Box
from aibox.cli.opened import in_box
from aibox.cli.options import ConfigOption
from aibox.types import Scope


def unmask(
    text: Annotated[str, typer.Argument(help="A pseudonym, or a text with some; - reads standard input.")],
    tenant: Annotated[str, typer.Option(help="Whose pseudonyms they are.")],
    by: Annotated[str, typer.Option(help="Who asks; the policy must name them in pseudonyms.unmask.")],
    reason: Annotated[str, typer.Option(help="Why; it stands in the evidence.")],
    config: ConfigOption = None,
) -> None:
    """Say what pseudonyms stand for. The entry is durable before anything is shown; 2 where the policy says no."""
    scope = Scope(tenant=tenant, user=by)

    async def main(box: Box) -> str:
        written = sys.stdin.read() if text == "-" else text
        return await box.guardrail.unmask(written, scope=scope, reason=reason, audit=box.audit)

    print(in_box(main, config=config))
