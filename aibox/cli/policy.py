"""`aibox policy`: whether policy files hold, what they decide about a text and why, and their JSON Schema."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from aibox.box import load_policy
from aibox.errors import ConfigError
from aibox.guardrails.guardrail import Guardrail
from aibox.policy.levels import effective
from aibox.policy.policy import Policy
from aibox.types import PLACES, Scope, Where

app = typer.Typer(no_args_is_help=True, help="Policies: check them, and ask what they decide.")

FilesArgument = Annotated[list[str], typer.Argument(help="TOML files or profiles: permissive, balanced, strict.")]


@app.command()
def check(files: FilesArgument) -> None:
    """Read policies as a box would, and show the digest of each. Exit code 2 for one that does not hold."""
    console = Console(highlight=False)
    for name in files:
        policy = load_policy(name)
        Guardrail(policy)  # refuses checks that are not there
        checks = ", ".join(f"{check} at {'/'.join(rules)}" for check, rules in policy.checks.items()) or "no checks"
        console.print(f"{escape(name)}: holds, {policy.digest[:19]}, {escape(checks)}", soft_wrap=True)


@app.command()
def explain(
    text: Annotated[str, typer.Argument(help="The text; - reads standard input.")],
    policy: Annotated[list[str], typer.Option("--policy", help="A level: NAME=FILE, FILE or a profile. Repeatable.")],
    where: Annotated[str, typer.Option(help=f"One of {', '.join(PLACES)}.")] = "input",
) -> None:
    """Say what the levels together decide about a text, and which of them asked for it. 1: the text is refused."""
    place = _place(where)
    named = [value.partition("=") for value in policy]
    levels = {name: load_policy(file or name) for name, _, file in named}
    if len(levels) < len(policy):
        raise ConfigError("two levels have one name", hint="name them: --policy platform=a.toml --policy tenant=b.toml")
    joined = effective(levels)
    written = sys.stdin.read() if text == "-" else text
    scope = Scope.local()
    verdict = asyncio.run(Guardrail(joined.policy).check(written, where=place, scope=scope))
    console = Console(highlight=False)
    console.print(f"{verdict.decision} at {place}, under {joined.policy.digest[:19]}")
    for reason in joined.explain(verdict):
        console.print(f"  {escape(str(reason))}", soft_wrap=True)
    if verdict.blocked:
        raise typer.Exit(1)


@app.command()
def schema() -> None:
    """Print the JSON Schema of a policy file, for editors."""
    print(json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **Policy.model_json_schema()}))


@app.command()
def diff(
    before: Annotated[str, typer.Argument(help="A TOML file or a profile.")],
    after: Annotated[str, typer.Argument(help="Another.")],
) -> None:
    """Say where the second policy decides otherwise than the first, check by check, and 1 where it relaxes anything."""
    console = Console(highlight=False)
    old, new = load_policy(before), load_policy(after)
    if old.digest == new.digest:
        console.print("the two decide alike")
        return
    for name in sorted({*old.checks, *new.checks}):
        for place in PLACES:
            was, now = old.checks.get(name, {}).get(place, ()), new.checks.get(name, {}).get(place, ())
            if was != now:
                console.print(f"  {escape(name)} at {place}: {_steps(was)} -> {_steps(now)}", soft_wrap=True)
    a, b = old.model_dump(mode="json"), new.model_dump(mode="json")
    for part in sorted(set(a) - {"checks", "name", "version"}):
        if a[part] != b[part]:
            console.print(f"  {part} differs", soft_wrap=True)
    # Where the second is at least as strict everywhere, joining the first to it changes nothing.
    if (old & new).digest != new.digest:
        console.print("the second relaxes something of the first")
        raise typer.Exit(1)
    console.print("the second is at least as strict everywhere")


def _steps(steps: tuple[tuple[int, object], ...]) -> str:
    return ", ".join(f"{decision} from {score / 1000:g}" for score, decision in steps) or "allow"


def _place(where: str) -> Where:
    for place in PLACES:
        if place == where:
            return place
    raise ConfigError(f"no such place: {where!r}", hint=f"one of {', '.join(PLACES)}")
