"""`aibox approvals`: what waits for a person, a yes or a no to it, and going on with the run."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

import aibox.box
from aibox.agents.approvals import Approval
from aibox.box import Box
from aibox.cli import interrupt
from aibox.cli.opened import in_box
from aibox.cli.options import ConfigOption, ModelOption, PolicyOption, load_settings
from aibox.cli.say import plain
from aibox.cli.target import agent
from aibox.errors import ConfigError
from aibox.types import LOCAL_TENANT, Scope

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Calls of agents that wait for a person.")
TenantOption = Annotated[str, typer.Option("--tenant", help="Whose agents.")]
PersonOption = Annotated[
    str | None, typer.Option("--as", help="Who you are in the tenant, for the record; `me` in the local one.")
]
IdArgument = Annotated[str, typer.Argument(metavar="ID", help="As `aibox approvals list` shows it.")]


@app.command("list")
def list_(tenant: TenantOption = LOCAL_TENANT, config: ConfigOption = None) -> None:
    """List what waits, the most urgent first."""
    scope = Scope(tenant=tenant, user="me")
    found = in_box(lambda box: box.state.approvals.pending(scope=scope), config=config)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("id", "tool", "for", "people", "until"):
        table.add_column(heading, overflow="fold")
    for asked in found:
        people = f"{len(asked.approved_by)} of {asked.people}"
        table.add_row(asked.id, plain(asked.tool), plain(asked.asked_by), people, _time(asked.expires_us))
    Console(highlight=False).print(table if found else f"nothing waits for a person in {tenant}")


@app.command("show")
def show(
    id_: IdArgument,
    tenant: TenantOption = LOCAL_TENANT,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON.")] = False,
    config: ConfigOption = None,
) -> None:
    """Show what exactly is asked: the tool, what it would get, under which label, and who has answered."""
    scope = Scope(tenant=tenant, user="me")
    asked = in_box(lambda box: box.state.approvals.get(id_, scope=scope), config=config)
    if as_json:
        print(json.dumps(_rows(asked)))
        return
    _print(asked)


@app.command("approve")
def approve(
    id_: IdArgument,
    tenant: TenantOption = LOCAL_TENANT,
    person: PersonOption = None,
    digest: Annotated[
        str | None, typer.Option(help="What you agree to, as `show` names it; without it you are shown and asked.")
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Say yes to exactly what was shown. The answer is on record before it counts."""
    scope = _scope(tenant, person)

    async def main(box: Box) -> Approval:
        agreed = digest if digest is not None else _agreed(await box.state.approvals.get(id_, scope=scope))
        return await box.state.approvals.approve(id_, digest=agreed, scope=scope)

    _say(in_box(main, config=config))


@app.command("reject")
def reject(
    id_: IdArgument,
    reason: Annotated[str, typer.Option(help="Why; the model is told.")] = "",
    tenant: TenantOption = LOCAL_TENANT,
    person: PersonOption = None,
    config: ConfigOption = None,
) -> None:
    """Say no. One no is enough."""
    scope = _scope(tenant, person)
    _say(in_box(lambda box: box.state.approvals.reject(id_, reason, scope=scope), config=config))


@app.command("resume")
def resume(
    run: Annotated[str, typer.Argument(help="The run, as `show` names it.")],
    target: Annotated[
        str | None, typer.Argument(help="module:attr of the agent, or of a callable that takes the box.")
    ] = None,
    tenant: TenantOption = LOCAL_TENANT,
    person: PersonOption = None,
    model: ModelOption = None,
    policy: PolicyOption = None,
    config: ConfigOption = None,
) -> None:
    """Go on with a run whose questions are answered, as the one who began it. Exit code 1 when it waits again."""
    scope = _scope(tenant, person)
    settings, name = load_settings(config=config, model=model)

    async def main() -> int:
        async with aibox.box.open(settings=settings, policy=policy) as box:
            made = agent(target, box) if target else box.agent(model=name)
            reply = await made.resume(run, scope=scope)
            Console(highlight=False).print(reply.text, markup=False, soft_wrap=True)
            return 1 if reply.blocked or reply.pending else 0

    if code := interrupt.run(main()):
        raise typer.Exit(code)


def _scope(tenant: str, person: str | None) -> Scope:
    if person is None and tenant != LOCAL_TENANT:
        raise ConfigError("say who answers: --as USER", hint="who agreed is part of the evidence")
    return Scope(tenant=tenant, user=person or "me")


def _agreed(asked: Approval) -> str:
    """The digest of what a person at the terminal was shown and agreed to. Raises ConfigError where there is none."""
    if not sys.stdin.isatty():
        raise ConfigError("nobody can be asked here", hint="give what you agree to: --digest, from `approvals show`")
    _print(asked)
    if input("Allow it? [yes/no] ").strip().lower() not in ("y", "yes"):
        raise typer.Abort
    return asked.digest


def _say(asked: Approval) -> None:
    said = {
        "waiting": f"noted; {asked.people - len(asked.approved_by)} more must agree",
        "approved": f"approved; the run goes on with: aibox approvals resume {asked.run}",
        "rejected": f"rejected; the run goes on with: aibox approvals resume {asked.run}",
    }
    print(said.get(asked.status, asked.status))


def _print(asked: Approval) -> None:
    console = Console(highlight=False)
    for name, value in _rows(asked).items():
        if value not in ("", []):
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            console.print(f"[bold]{name:<12}[/]{plain(text)}", soft_wrap=True)


def _rows(asked: Approval) -> dict[str, object]:
    return {
        "id": asked.id,
        "status": asked.status,
        "tool": asked.tool,
        "arguments": dict(asked.arguments),
        "reason": asked.reason,
        "label": str(asked.label),
        "because of": list(asked.label.why),
        "agent": asked.agent,
        "asked by": asked.asked_by,
        "people": asked.people,
        "until": _time(asked.expires_us),
        "agreed": list(asked.approved_by),
        "refused by": asked.rejected_by,
        "said": asked.said,
        "policy": asked.policy,
        "run": asked.run,
        "digest": asked.digest,
    }


def _time(us: int) -> str:
    return datetime.fromtimestamp(us / 1e6, UTC).strftime("%Y-%m-%d %H:%M UTC")
