"""`aibox egress report`: what has left the box, from the evidence alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from aibox.audit.record import Header, read_detail, read_open
from aibox.audit.store import open_store
from aibox.audit.verify import verify
from aibox.cli.options import ConfigOption, load_settings
from aibox.cli.say import plain, visible
from aibox.errors import IntegrityError
from aibox.inference.egress_report import Attempt, flows

app = typer.Typer(add_completion=False, no_args_is_help=True, help="The door: what has left, and what was refused.")


@app.callback()
def egress() -> None:
    """The door to the outside."""


@app.command()
def report(
    path: Annotated[
        str | None, typer.Argument(help="An audit.db or postgresql://...; the configured one by default.")
    ] = None,
    tenant: Annotated[str | None, typer.Option(help="One tenant only.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON.")] = False,
    config: ConfigOption = None,
) -> None:
    """Say what has left, where to, for whom and under which policy. The evidence is checked first; 1: it is broken."""
    console = Console(highlight=False)
    if path is None:
        settings, _ = load_settings(config=config)
        path = settings.evidence
    try:
        held = verify(path)
    except IntegrityError as error:
        console.print(f"[red]the evidence does not hold:[/] {plain(error.message)}", soft_wrap=True)
        raise typer.Exit(1) from None
    found = flows(_attempts(path, tenant))
    if as_json:
        print(json.dumps({"evidence": held.as_dict(), "flows": [flow.as_dict() for flow in found]}))
        return
    if not found:
        console.print(f"Nothing has left, and nothing tried to. ({held})", soft_wrap=True)
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("tenant", "model", "host", "label", "sent", "refused", "bytes", "tokens", "USD", "last",
                    "policy"):  # fmt: skip
        table.add_column(heading, overflow="fold")
    for flow in found:
        table.add_row(
            plain(flow.tenant),
            plain(flow.model),
            plain(flow.host),
            plain(flow.label) + (" (pseudonyms)" if flow.pseudonymised else ""),
            str(flow.allowed),
            str(flow.denied),
            f"{flow.sent_bytes} out, {flow.returned_bytes} in",
            str(flow.tokens),
            f"{flow.cost_usd:f}",
            datetime.fromtimestamp(flow.last_us / 1e6, UTC).strftime("%Y-%m-%d %H:%M"),
            plain(flow.policy.removeprefix("sha256:")[:12]),
        )
    console.print(table)
    for reason in sorted({reason for flow in found for reason in flow.reasons}):
        console.print(f"refused: {visible(reason)}", markup=False, soft_wrap=True)
    console.print(str(held), markup=False, soft_wrap=True)


def _attempts(path: str, tenant: str | None) -> Iterator[Attempt]:
    with closing(open_store(path, read_only=True)) as store:
        for name in store.logs():
            if tenant not in (None, name.tenant):
                continue
            # What is past its retention is passed over: that it was there is known, what it said is not.
            for row in store.entries(name.log, kind="egress."):
                header, shown = Header.unpack(row.header), row.open or b""
                yield Attempt(name.tenant, row.seq, header.ts_us, read_open(shown).action, read_detail(shown))
