"""`aibox db`: the schema in PostgreSQL, forwards and back, as the owner of its tables."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import unquote, urlsplit

import typer
from rich.console import Console
from rich.table import Table

from aibox.cli.options import ConfigOption, load_settings
from aibox.errors import ConfigError
from aibox.migrations import run
from aibox.postgres import REVISION, host
from aibox.settings import Settings

app = typer.Typer(add_completion=False, no_args_is_help=True, help="The tables in PostgreSQL that replicas share.")
OwnerOption = Annotated[
    str, typer.Option(help="postgresql://... of who owns the tables. Its password comes from PGPASSFILE or PGPASSWORD.")
]
RoleOption = Annotated[
    str | None, typer.Option(help="Who writes; by default the user of `database` in the settings. Never the owner.")
]


@app.command()
def upgrade(
    owner: OwnerOption,
    role: RoleOption = None,
    revision: Annotated[str, typer.Argument(help="A version; the newest by default.")] = "head",
    config: ConfigOption = None,
) -> None:
    """Bring the tables to this version's schema, and give the writing role its rights. Safe to repeat."""
    before = run.current(owner)
    run.upgrade(owner, role=_role(role, config), revision=revision)
    after = run.current(owner)
    print(f"{host(owner)}: {before or 'nothing'} -> {after}" if before != after else f"{host(owner)}: {after} already")


@app.command()
def downgrade(
    owner: OwnerOption,
    revision: Annotated[str, typer.Argument(help="The version to go back to; `base` is nothing at all.")],
    role: RoleOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Lose what is kept in the tables that go.")] = False,
    config: ConfigOption = None,
) -> None:
    """Take tables back, with what is in them. A log that has entries is never dropped."""
    if not yes:
        raise ConfigError(
            f"going back to {revision} drops the tables that came after it, with what is kept in them",
            hint="save them (pg_dump), then add --yes",
        )
    before = run.current(owner)
    run.downgrade(owner, role=_role(role, config), revision=revision)
    print(f"{host(owner)}: {before or 'nothing'} -> {run.current(owner) or 'nothing'}")


@app.command()
def current(
    url: Annotated[str | None, typer.Argument(help="postgresql://...; `database` of the settings by default.")] = None,
    config: ConfigOption = None,
) -> int:
    """Say which schema the database has. Exit code 1: not the one that this version works with."""
    url = url or _database(load_settings(config=config)[0])
    found = run.current(url)
    table = Table("version", "what came with it", "", box=None, header_style="bold", pad_edge=False)
    for revision, about in run.revisions():
        table.add_row(revision, about, "<- here" if revision == found else "")
    Console(highlight=False).print(table)
    if found != REVISION:
        print(f"{host(url)} has {found or 'no tables'}; this version works with {REVISION}")
    return 0 if found == REVISION else 1


def _role(role: str | None, config: ConfigOption) -> str:
    if role is not None:
        return role
    user = urlsplit(_database(load_settings(config=config)[0])).username
    if not user:
        raise ConfigError("`database` names no user", hint="--role says who writes")
    return unquote(user)


def _database(settings: Settings) -> str:
    for url in settings.databases:
        return url
    raise ConfigError("no setting names a database", hint='database = "postgresql://aibox@host/name" in aibox.toml')
