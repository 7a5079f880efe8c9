"""`aibox models`: what can be asked for, and how well it is known what answers."""

from __future__ import annotations

import typer
from rich.console import Console
from rich.table import Table

import aibox.box
from aibox.chat import ModelInfo
from aibox.cli import interrupt, staging
from aibox.cli.options import ConfigOption, ModelOption, load_settings
from aibox.cli.say import plain

app = typer.Typer(
    add_completion=False, help="Models: those that the configured backends offer, and those staged on this disk."
)
staging.add_to(app)


@app.callback(invoke_without_command=True)
def models(context: typer.Context, model: ModelOption = None, config: ConfigOption = None) -> None:
    """List the models that the configured backends offer."""
    if context.invoked_subcommand is not None:
        return
    settings, _ = load_settings(config=config, model=model)

    async def main() -> tuple[ModelInfo, ...]:
        async with aibox.box.open(settings=settings) as box:
            return tuple(await box.router.models())

    found = interrupt.run(main())
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("model", "backend", "where", "tools", "context", "weights", ""):
        table.add_column(heading)
    for info in found:
        table.add_row(
            plain(info.id),
            plain(info.backend),
            "outside" if info.external else "here",
            "native" if info.tools else "emulated",
            str(info.context_tokens or "?"),
            f"{info.weights.known} {info.weights.sha256[:12]}".strip(),
            "demo: too small to rely on" if info.demo else "",
        )
    Console(highlight=False).print(table if found else "no model: `aibox doctor` says what is missing")
    if not found:
        raise typer.Exit(2)
