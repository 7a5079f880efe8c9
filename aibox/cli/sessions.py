"""`aibox sessions`: what is kept of conversations: find one, read it, name it, take it along, let go of it.

Whoever has the data folder and its keys reads anybody's; that a conversation was read, taken out or deleted here is an
entry of its tenant's log before it is done.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from aibox.agents.sessions import Session
from aibox.box import Box
from aibox.cli.new_file import write_new
from aibox.cli.opened import in_box
from aibox.cli.options import ConfigOption
from aibox.cli.say import lines, plain, visible
from aibox.errors import AccessError, ConfigError
from aibox.types import LOCAL_TENANT, Scope

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Conversations that are kept: list, show, title, export, delete."
)
TenantOption = Annotated[str, typer.Option("--tenant", help="Whose; the laptop's own by default.")]
UserOption = Annotated[str, typer.Option("--user", help="Which user of the tenant.")]
AgentOption = Annotated[
    str, typer.Option("--agent", help="With which agent; needed where several have one of that name.")
]
IdArgument = Annotated[str, typer.Argument(metavar="ID", help="As `aibox sessions list` shows it.")]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON, for programs.")]


@app.command("list")
def list_(
    tenant: TenantOption = LOCAL_TENANT,
    user: UserOption = "me",
    agent: AgentOption = "",
    limit: Annotated[int, typer.Option(min=1, help="The latest so many.")] = 100,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """List the conversations of a user, the latest first."""
    scope = Scope(tenant=tenant, user=user, agent=agent)
    found = in_box(lambda box: box.state.sessions.list(scope=scope, limit=limit), config=config)
    if as_json:
        print(json.dumps([_row(session) for session in found]))
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("id", "agent", "title", "turns", "label", "last"):
        table.add_column(heading, overflow="fold")
    for one in found:
        words = [visible(word) for word in (one.id, one.agent, one.title)]
        table.add_row(*map(escape, words), str(one.messages), escape(str(one.label)), _time(one.updated_us))
    Console(highlight=False).print(table if found else f"no conversation of {user} in {tenant} is kept")


@app.command("show")
def show(
    id_: IdArgument,
    tenant: TenantOption = LOCAL_TENANT,
    user: UserOption = "me",
    agent: AgentOption = "",
    config: ConfigOption = None,
) -> None:
    """Show a conversation, every word of it, as the model saw it."""
    scope = Scope(tenant=tenant, user=user, agent=agent)
    whole = in_box(lambda box: _export(box, id_, scope=scope, kind="session.shown"), config=config)
    console = Console(highlight=False)
    console.print(f"[bold]{plain(whole['title'])}[/]  {escape(whole['label'])}")
    for message in whole["messages"]:
        text = lines(str(message.get("content") or ""))
        console.print(f"[bold]{plain(str(message.get('role')))}:[/] {escape(text)}", soft_wrap=True)


@app.command("title")
def title(
    id_: IdArgument,
    words: Annotated[str, typer.Argument(metavar="TITLE", help="At most 80 characters of it are kept.")],
    tenant: TenantOption = LOCAL_TENANT,
    user: UserOption = "me",
    agent: AgentOption = "",
    config: ConfigOption = None,
) -> None:
    """Give a conversation another title."""
    scope = Scope(tenant=tenant, user=user, agent=agent)

    async def main(box: Box) -> None:
        await box.state.sessions.rename(words, scope=await _found(box, id_, scope=scope))

    in_box(main, config=config)


@app.command("export")
def export(
    id_: IdArgument,
    tenant: TenantOption = LOCAL_TENANT,
    user: UserOption = "me",
    agent: AgentOption = "",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A file for its owner's eyes only.")] = None,
    config: ConfigOption = None,
) -> None:
    """Write a conversation as JSON, in the clear, to standard output or a new file."""
    scope = Scope(tenant=tenant, user=user, agent=agent)

    whole = in_box(lambda box: _export(box, id_, scope=scope, kind="session.exported"), config=config)
    text = json.dumps(whole, indent=None if output is None else 2)
    if output is None:
        print(text)
        return
    write_new(output, text + "\n")


@app.command("delete")
def delete(
    id_: IdArgument,
    tenant: TenantOption = LOCAL_TENANT,
    user: UserOption = "me",
    agent: AgentOption = "",
    config: ConfigOption = None,
) -> None:
    """Let go of a conversation. What its turns left in the evidence stays there."""
    scope = Scope(tenant=tenant, user=user, agent=agent)

    async def main(box: Box) -> None:
        found = await _found(box, id_, scope=scope)
        await box.audit.append("session.deleted", scope=scope, detail={"session": id_, "agent": found.agent})
        await box.state.sessions.delete(scope=found)

    in_box(main, config=config)
    print(f"{id_} deleted")


async def _export(box: Box, id_: str, *, scope: Scope, kind: str) -> dict[str, Any]:
    whole = await box.state.sessions.export(scope=await _found(box, id_, scope=scope))
    detail = {"session": id_, "agent": whole["agent"], "messages": len(whole["messages"])}
    await box.audit.append(kind, scope=scope, detail=detail)
    return whole


async def _found(box: Box, id_: str, *, scope: Scope) -> Scope:
    """The scope of the one conversation of that id. Raises AccessError for none, ConfigError for several."""
    agents = [session.agent for session in await box.state.sessions.named(id_, scope=scope)]
    if not agents:
        raise AccessError("there is no such session", hint="`aibox sessions list` names those of a user", absent=True)
    if len(agents) > 1:
        raise ConfigError(f"several agents have a session {id_}", hint=f"--agent, one of {', '.join(agents)}")
    return scope.narrow(agent=agents[0], session=id_)


def _row(session: Session) -> dict[str, object]:
    return {**asdict(session), "label": str(session.label)}


def _time(us: int) -> str:
    return datetime.fromtimestamp(us / 1e6, UTC).strftime("%Y-%m-%d %H:%M UTC")
