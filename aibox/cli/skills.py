"""`aibox skills`: what is installed, what a folder holds, and installing it under its digest."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from aibox.agents.shelf import Shelf
from aibox.agents.skills import Skill, examine, load
from aibox.box import Box
from aibox.cli.opened import in_box
from aibox.cli.options import ConfigOption
from aibox.cli.say import lines, plain
from aibox.errors import ConfigError
from aibox.settings import Settings
from aibox.types import LOCAL_TENANT, Scope

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Skills: folders with a SKILL.md, by the Agent Skills specification.",
)
TenantOption = Annotated[str, typer.Option("--tenant", help="Whose skills.")]


def _scope(tenant: str) -> Scope:
    return Scope(tenant=tenant, user="me")


def _shelf(config: Path | None) -> Shelf:
    return Shelf(Settings.load(config=config, env=os.environ).home / "skills")


@app.command("list")
def list_(tenant: TenantOption = LOCAL_TENANT, config: ConfigOption = None) -> None:
    """List the installed skills, each held against the digest it was installed under."""
    skills = _shelf(config).skills(scope=_scope(tenant))
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("skill", "digest", "allowed tools", "description"):
        table.add_column(heading)
    for skill in skills:
        allowed = "all" if skill.allowed_tools is None else " ".join(skill.allowed_tools) or "none"
        table.add_row(plain(skill.name), skill.digest[:19], plain(allowed), plain(skill.description))
    Console(highlight=False).print(table if skills else "no skill is installed: aibox skills install FOLDER")


@app.command("validate")
def validate(folders: Annotated[list[Path], typer.Argument(help="Folders of skills.")]) -> None:
    """Hold folders against the specification. Exit code 1 when one is not a skill."""
    console = Console(highlight=False)
    bad = 0
    for folder in folders:
        faults, skill = examine(folder)
        if skill is None:
            bad += 1
            console.print(f"[red]no[/]  {plain(str(folder))}", soft_wrap=True)
            for fault in faults:
                console.print(f"    {plain(fault)}", soft_wrap=True)
            continue
        console.print(f"[green]yes[/] {plain(str(folder))}  {skill.digest[:19]}", soft_wrap=True)
        for warning in skill.warnings:
            console.print(f"    {plain(warning)}", soft_wrap=True)
    if bad:
        raise typer.Exit(1)


@app.command("show")
def show(
    skill: Annotated[str, typer.Argument(help="A name of an installed skill, or a folder.")],
    tenant: TenantOption = LOCAL_TENANT,
    config: ConfigOption = None,
) -> None:
    """Show what a model would be told."""
    found = _find(skill, tenant, config)
    console = Console(highlight=False)
    allowed = "all that the policy allows" if found.allowed_tools is None else " ".join(found.allowed_tools) or "none"
    rows = {"name": found.name, "description": found.description, "digest": found.digest, "tools": allowed}
    rows |= {"license": found.license, "compatibility": found.compatibility, "files": ", ".join(found.resources)}
    for name, value in rows.items():
        if value:
            console.print(f"[bold]{name:<14}[/]{plain(value)}", soft_wrap=True)
    console.print(f"\n{escape(lines(found.body))}", soft_wrap=True)


@app.command("install")
def install(
    folder: Annotated[Path, typer.Argument(help="A skill's folder.")],
    tenant: TenantOption = LOCAL_TENANT,
    replace: Annotated[bool, typer.Option("--replace", help="Put it in the place of another of its name.")] = False,
    config: ConfigOption = None,
) -> None:
    """Validate a skill, copy it to the data folder and pin its digest. The act is on record."""
    scope = _scope(tenant)

    async def main(box: Box) -> Skill:
        checked = load(folder)
        # An administrator's act is durable before it happens.
        detail = {"skill": checked.name, "digest": checked.digest, "replaced": replace}
        await box.audit.append("skill.installed", scope=scope, detail=detail)
        return box.skills.install(folder, scope=scope, replace=replace)

    skill = in_box(main, config=config)
    Console(highlight=False).print(f"installed {plain(skill.name)} for {tenant}  {skill.digest}", soft_wrap=True)


def _find(name: str, tenant: str, config: Path | None) -> Skill:
    if Path(name).is_dir():
        return load(name)
    for skill in _shelf(config).skills(scope=_scope(tenant)):
        if skill.name == name:
            return skill
    raise ConfigError(f"no skill {name!r} is installed for {tenant}, and there is no such folder")
