"""`aibox keys`: make, list, renew and end the API keys that programs use against `aibox serve`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Annotated, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from aibox.cli import interrupt
from aibox.cli.options import ConfigOption, load_settings
from aibox.cli.say import plain
from aibox.errors import ConfigError
from aibox.server.api_keys import ApiKey, ApiKeys
from aibox.server.principal import Role
from aibox.server.scopes import KeyScope
from aibox.types import Scope

T = TypeVar("T")
TenantOption = Annotated[str, typer.Option("--tenant", help="Whose key it is.")]
app = typer.Typer(add_completion=False, no_args_is_help=True, help="API keys for programs that use `aibox serve`.")


@app.command()
def create(
    tenant: TenantOption,
    user: Annotated[str, typer.Option(help="In whose name the program acts.")],
    role: Annotated[list[Role] | None, typer.Option(help="May be given more than once; `service` by default.")] = None,
    days: Annotated[float, typer.Option(help="For how many days it is valid.")] = 90,
    note: Annotated[str, typer.Option(help="What it is for.")] = "",
    key_scope: Annotated[
        list[KeyScope] | None,
        typer.Option("--scope", help="What it may be used for, more than once; all that its roles allow by default."),
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="A model that it may ask for, more than once; any by default.")
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Make a key and print it, for this once."""
    scope = Scope(tenant=tenant, user=user)
    narrow = {"scopes": key_scope or (), "models": model or ()}
    print(
        _with(
            config,
            lambda keys: keys.create(scope=scope, roles=role or [Role.SERVICE], days=days, note=note, **narrow),
        )
    )


@app.command("list")
def list_(tenant: TenantOption, config: ConfigOption = None) -> None:
    """List a tenant's keys; their secrets are not kept."""
    table = Table(
        "id", "user", "roles", "for", "note", "ends", "last used", box=None, header_style="bold", pad_edge=False
    )
    for key in _with(config, lambda keys: keys.list(tenant)):
        used = _day(key.last_used) if key.last_used else "never"
        ends = "revoked" if key.revoked else _day(key.expires)
        what = (key.scope.user, ", ".join(sorted(key.roles)), _narrow(key), key.note)
        table.add_row(key.id, *map(plain, what), ends, used)
    Console(highlight=False).print(table)


@app.command()
def rotate(
    id_: Annotated[str, typer.Argument(metavar="ID")],
    tenant: TenantOption,
    overlap_days: Annotated[float, typer.Option(help="For how long the old key still works.")] = 1,
    config: ConfigOption = None,
) -> None:
    """Make a key in the place of another, and print it."""
    print(_with(config, lambda keys: keys.rotate(id_, tenant=tenant, overlap_days=overlap_days)))


@app.command()
def revoke(
    id_: Annotated[str, typer.Argument(metavar="ID")], tenant: TenantOption, config: ConfigOption = None
) -> None:
    """End a key now."""
    if not _with(config, lambda keys: keys.revoke(id_, tenant=tenant)):
        raise ConfigError(f"tenant {tenant} has no key {id_}", hint="aibox keys list --tenant ... shows them")
    print(f"{id_} is revoked")


def _with(config: ConfigOption, call: Callable[[ApiKeys], Awaitable[T]]) -> T:
    settings, _ = load_settings(config=config)
    place = settings.api_keys
    if place is None:
        raise ConfigError(
            "this server has no API keys", hint='set api_keys = "api-keys.db" under [server] in aibox.toml'
        )
    keys = ApiKeys(place)

    async def main() -> T:
        try:
            return await call(keys)
        finally:
            await keys.close()

    return interrupt.run(main())


def _narrow(key: ApiKey) -> str:
    if key.scopes is None:
        return "all"
    return ", ".join(sorted(key.scopes)) + (f" ({', '.join(sorted(key.models))})" if key.models is not None else "")


def _day(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")
