"""`aibox policy`: whether policy files hold, what they decide and why, what a change changes, and their signatures."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from rich.console import Console
from rich.markup import escape

import aibox.box
from aibox.audit.keys import Keyring, write_new
from aibox.audit.signer import KeySigner, public_key
from aibox.cli import interrupt
from aibox.cli.options import ConfigOption, load_settings
from aibox.cli.policy_changes import changes, guarded
from aibox.errors import ConfigError
from aibox.evals.judge_trial import Trial, try_judge
from aibox.guardrails.cases import Case, Outcome, read_cases, tried
from aibox.guardrails.constitution import Constitution, attack_score
from aibox.levels import load_policy
from aibox.policy.difference import difference
from aibox.policy.files import sign as sign_file
from aibox.policy.levels import effective
from aibox.policy.policy import SHIPPED, Policy
from aibox.settings import read_secret
from aibox.types import PLACES, Decision, Scope, Where

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Policies: check them, and ask what they decide.")

FilesArgument = Annotated[list[str], typer.Argument(help=f"TOML or YAML files, or one of {', '.join(SHIPPED)}.")]


@app.command()
def check(
    files: FilesArgument,
    key: Annotated[Path | None, typer.Option(help="A file with the verifier key that must have signed them.")] = None,
) -> None:
    """Read policies as a box would, and show the digest of each. Exit code 2 for one that does not hold."""
    console = Console(highlight=False)
    for name in files:
        policy = load_policy(name, key=read_secret(None, key))
        try:
            guarded(policy)  # refuses checks that are not there
        except ConfigError as error:
            raise ConfigError(f"{name}: {error.message}", hint=error.hint) from None
        checks = ", ".join(f"{check} at {'/'.join(rules)}" for check, rules in policy.checks.items()) or "no checks"
        console.print(f"{escape(name)}: holds, {policy.digest[:19]}, {escape(checks)}", soft_wrap=True)


@app.command()
def explain(
    text: Annotated[str, typer.Argument(help="The text; - reads standard input.")],
    policy: Annotated[list[str], typer.Option("--policy", help="A level: NAME=FILE, FILE or a profile. Repeatable.")],
    where: Annotated[str, typer.Option(help=f"One of {', '.join(PLACES)}.")] = "input",
) -> None:
    """Say what the levels together decide about a text, and which of them asked for it. 1: the text is refused.

    Without the judge: there is no model here.
    """
    place = _place(where)
    named = [value.partition("=") for value in policy]
    levels = {name: load_policy(file or name) for name, _, file in named}
    if len(levels) < len(policy):
        raise ConfigError("two levels have one name", hint="name them: --policy platform=a.toml --policy tenant=b.toml")
    joined = effective(levels)
    written = sys.stdin.read() if text == "-" else text
    scope = Scope.local()
    verdict = interrupt.run(guarded(joined.policy).check(written, where=place, scope=scope))
    console = Console(highlight=False)
    console.print(f"{verdict.decision} at {place}, under {joined.policy.digest[:19]}")
    for reason in joined.explain(verdict):
        console.print(f"  {escape(str(reason))}", soft_wrap=True)
    if verdict.blocked:
        raise typer.Exit(1)


@app.command()
def sign(
    file: Annotated[Path, typer.Argument(help="A policy file.")],
    config: ConfigOption = None,
) -> None:
    """Sign a policy as it is now, with the data folder's key `policy`: FILE.sig. The setting `policy_key` checks it."""
    guarded(Policy.load(file))  # what does not hold is not signed
    settings, _ = load_settings(config=config)
    keys = Keyring(settings.key_folder)
    signer = KeySigner("aibox-policy", Ed25519PrivateKey.from_private_bytes(keys.secret("policy")))
    public = settings.key_folder / "policy.pub"
    if not public.exists():
        write_new(public, public_key(signer) + "\n")
    console = Console(highlight=False)
    console.print(f"signed: {sign_file(file, signer)}; the key to check it with: {public}", soft_wrap=True)


@app.command("test")
def test_(
    policy: Annotated[str, typer.Argument(help="The policy: a file or a shipped one.")],
    cases: Annotated[Path, typer.Argument(help="A TOML or YAML file: cases with text, where, decision.")],
) -> None:
    """Hold a policy against cases of what it should decide. 1: it decides otherwise about one of them."""
    console = Console(highlight=False)
    known = read_cases(cases)
    guardrail = guarded(load_policy(policy))

    async def main() -> list[Outcome]:
        return [outcome async for outcome in tried(guardrail, known, scope=Scope.local())]

    wrong = 0
    for number, outcome in enumerate(interrupt.run(main()), 1):
        case = outcome.case
        if outcome.wrong:
            wrong += 1
            text = " ".join(case.text.split())[:60]
            console.print(
                f"[red]wrong[/] {number}: {escape(text)!r} at {case.where}: {escape(outcome.wrong)}", soft_wrap=True
            )
    console.print(f"{len(known) - wrong} of {len(known)} cases are decided as they should be")
    if wrong:
        raise typer.Exit(1)


@app.command()
def judge(
    policy: Annotated[str, typer.Argument(help="The policy: its `[judge]` says where, in which band and by what.")],
    cases: Annotated[Path, typer.Argument(help="As for `test`: what a person wants refused is an attack.")],
    model: Annotated[str | None, typer.Option(help="A GGUF file; the model of the role `guardrail` without.")] = None,
    config: ConfigOption = None,
) -> None:
    """Measure whether the policy's judge can tell attacks from harmless texts. 1: it cannot, and may only flag.

    Give it texts of your own, some fifty of each kind: only those in the band count, and few leave wide bounds.
    """
    console = Console(highlight=False)
    asked = load_policy(policy)
    settings, _ = load_settings(config=config, model=model)

    async def main() -> tuple[int, Trial]:
        grey = await in_band(asked, read_cases(cases))
        async with aibox.box.open(settings=settings, policy=asked) as box:
            told = Constitution(box.router)
            return len(grey), await try_judge(told, grey, principles=asked.judge.principles, scope=Scope.local())

    band, trial = interrupt.run(main())
    console.print(f"{band} of the cases lie in the band: {trial}", soft_wrap=True)
    figures = trial.measured
    line = f"measured = {{ found = {figures.found:g}, false_alarms = {figures.false_alarms:g} }}"
    if not figures.tells:
        console.print(f"it cannot tell, or there are too few cases to know: {line}", soft_wrap=True)
        raise typer.Exit(1)
    console.print("it can tell; for the policy's \\[judge]:")
    console.print(escape(line))


@app.command()
def schema() -> None:
    """Print the JSON Schema of a policy file, for editors."""
    made = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Policy.model_json_schema()}
    print(json.dumps(made, indent=1))


@app.command()
def diff(
    before: Annotated[str, typer.Argument(help="A policy file or a shipped one.")],
    after: Annotated[str, typer.Argument(help="Another.")],
    recorded: Annotated[
        bool, typer.Option("--recorded", help="Also name the recorded turns and conversations that would change.")
    ] = False,
    config: ConfigOption = None,
) -> None:
    """Say where the second policy decides otherwise than the first, check by check, and 1 where it relaxes anything."""
    console = Console(highlight=False)
    old, new = load_policy(before), load_policy(after)
    if old.digest == new.digest:
        console.print("the two decide alike")
        return
    found = difference(old, new)
    for line in sorted({*found.stricter, *found.relaxed}):
        console.print(f"  {escape(line)}", soft_wrap=True)
    if recorded:
        settings, _ = load_settings(config=config)
        for line in interrupt.run(changes(settings, old, new)):
            console.print(f"  {escape(line)}", soft_wrap=True)
    if found.relaxed:
        console.print("the second relaxes something of the first")
        raise typer.Exit(1)
    console.print("the second is at least as strict everywhere")


async def in_band(policy: Policy, cases: Sequence[Case]) -> list[tuple[str, bool]]:
    """Each case about which the judge would be asked, and whether it is an attack."""
    rules = guarded(policy)
    grey = []
    for case in cases:
        verdict = await rules.check(case.text, where=case.where, scope=Scope.local(), label=case.label)
        if policy.judge.grey(case.where, attack_score(verdict.findings)):
            grey.append((case.text, case.decision > Decision.FLAG))
    return grey


def _place(where: str) -> Where:
    for place in PLACES:
        if place == where:
            return place
    raise ConfigError(f"no such place: {where!r}", hint=f"one of {', '.join(PLACES)}")
