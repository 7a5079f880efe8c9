"""`aibox memory`: what is remembered, how to have it forgotten, moved, or read anew; and documents."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.console import Console
from rich.progress import Progress as Bar

from aibox.box import Box
from aibox.cli.new_file import write_new
from aibox.cli.opened import in_box
from aibox.cli.options import ConfigOption
from aibox.cli.say import lines, visible
from aibox.errors import ConfigError
from aibox.memory.document import Progress
from aibox.memory.memory import Memory
from aibox.memory.record import Visibility
from aibox.types import LOCAL_TENANT, Scope

T = TypeVar("T")

app = typer.Typer(
    add_completion=False,
    name="memory",
    no_args_is_help=True,
    help="What is remembered: show it, forget it, move it, add documents.",
)

TenantOption = Annotated[str, typer.Option("--tenant", help="Whose memory; the laptop's own by default.")]
UserOption = Annotated[str, typer.Option("--user", help="Which user of the tenant.")]


@app.command()
def show(tenant: TenantOption = LOCAL_TENANT, user: UserOption = "me", config: ConfigOption = None) -> None:
    """Show what is remembered for a user, with the ids that `forget` takes."""
    scope = Scope(tenant=tenant, user=user)
    known = _with(config, lambda memory: memory.about(scope=scope))
    Console(highlight=False).print(str(known), markup=False, soft_wrap=True)


@app.command()
def search(
    query: Annotated[str, typer.Argument(help="What to look for.")],
    tenant: TenantOption = LOCAL_TENANT,
    user: UserOption = "me",
    config: ConfigOption = None,
) -> None:
    """Show what a question would recall, with scores and citations. Exit code 1: nothing."""
    scope = Scope(tenant=tenant, user=user)
    hits = _with(config, lambda memory: memory.recall(query, scope=scope))
    console = Console(highlight=False)
    for hit in hits:
        console.print(
            f"{hit.score:.2f}  {lines(hit.record.text)}\n      {hit.label}, {visible(str(hit.citation))}", markup=False
        )
    if not hits:
        console.print("nothing is remembered of that")
        raise typer.Exit(1)


@app.command()
def add(
    path: Annotated[Path, typer.Argument(help="A file, or a folder: what has not changed is left as it is.")],
    label: Annotated[str | None, typer.Option("--label", help="Such as confidential/PHI.")] = None,
    visibility: Annotated[str, typer.Option("--visibility", help="private, shared or restricted.")] = "private",
    group: Annotated[list[str] | None, typer.Option("--group", help="Who may see restricted documents.")] = None,
    tenant: TenantOption = LOCAL_TENANT,
    user: UserOption = "me",
    config: ConfigOption = None,
) -> None:
    """Read documents, so that they are found and cited. Exit code 1: some could not be read."""
    scope, seen = Scope(tenant=tenant, user=user), _visibility(visibility)
    with Bar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)

        def progress(now: Progress) -> None:
            bar.update(task, completed=now.done, total=now.total, description=now.name)

        added = _with(
            config,
            lambda memory: memory.add(
                path, scope=scope, label=label, visibility=seen, groups=group or (), progress=progress
            ),
        )
    Console(highlight=False).print(str(added), markup=False, soft_wrap=True)
    if added.failed:
        raise typer.Exit(1)


@app.command()
def forget(
    ids: Annotated[list[str] | None, typer.Argument(help="Ids of memories or documents.")] = None,
    everything: Annotated[bool, typer.Option("--everything", help="All of the user's.")] = False,
    tenant: TenantOption = LOCAL_TENANT,
    user: UserOption = "me",
    config: ConfigOption = None,
) -> None:
    """Forget memories and documents by their ids, or everything of a user. Exit code 1: there was nothing to forget."""
    if bool(ids) == everything:
        raise ConfigError("say what to forget", hint="ids, as `aibox memory show` lists them, or --everything")
    scope = Scope(tenant=tenant, user=user)

    async def work(box: Box) -> int:
        # An act on somebody's data is evidence before it happens.
        await box.audit.append("memory.forget", scope=scope, detail={"ids": list(ids or ()), "everything": everything})
        if ids:
            return await box.memory.forget(scope=scope, ids=ids)
        return await box.memory.forget(scope=scope, subject=scope.user)

    gone = in_box(work, config=config)
    Console(highlight=False).print(f"{gone} forgotten")
    if not gone:
        raise typer.Exit(1)


@app.command()
def export(
    tenant: TenantOption = LOCAL_TENANT,
    user: UserOption = "me",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A file for its owner's eyes only.")] = None,
    config: ConfigOption = None,
) -> None:
    """Write a user's memories as JSON lines, in the clear, to standard output or a new file."""
    lines = _with(config, lambda memory: memory.export(scope=Scope(tenant=tenant, user=user)))
    if output is None:
        print(lines, end="")
        return
    write_new(output, lines)


@app.command("import")
def import_(
    path: Annotated[Path, typer.Argument(help="JSON lines that `aibox memory export` wrote.")],
    tenant: TenantOption = LOCAL_TENANT,
    user: UserOption = "me",
    config: ConfigOption = None,
) -> None:
    """Keep exported memories for a user. All of the file, or nothing."""
    try:
        lines = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}", hint=str(error)) from None
    count = _with(config, lambda memory: memory.import_(lines, scope=Scope(tenant=tenant, user=user)))
    Console(highlight=False).print(f"{count} kept")


@app.command()
def reindex(tenant: TenantOption = LOCAL_TENANT, config: ConfigOption = None) -> None:
    """Read the tenant's documents anew, after a change of the embedder."""
    count = _with(config, lambda memory: memory.reindex(scope=Scope(tenant=tenant, user="me")))
    Console(highlight=False).print(f"{count} documents read anew")


def _visibility(name: str) -> Visibility:
    known: dict[str, Visibility] = {"private": "private", "shared": "shared", "restricted": "restricted"}
    if name not in known:
        raise ConfigError(f"not a visibility: {name!r}", hint="private, shared or restricted")
    return known[name]


def _with(config: Path | None, do: Callable[[Memory], Awaitable[T]]) -> T:
    """Do it with the memory of the configured box."""
    return in_box(lambda box: do(box.memory), config=config)
