"""`aibox verify` and `aibox why`: hold the evidence against itself, and say in sentences what it shows."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

from aibox.audit.keys import Keyring
from aibox.audit.receipt import Receipt
from aibox.audit.verify import verify as verify_evidence
from aibox.cli import interrupt
from aibox.cli.options import ConfigOption, load_settings
from aibox.cli.say import plain, visible
from aibox.errors import ConfigError, IntegrityError
from aibox.server.isolation_report import OUTCOMES, IsolationReport, is_report

ISOLATION = "isolation"
KeyOption = Annotated[
    Path | None,
    typer.Option("--key", help="The log's public key, from someone you trust; else the one found beside it."),
]


def verify(
    path: Annotated[
        str,
        typer.Argument(
            help="An audit.db, postgresql://..., a receipt or a report of `verify isolation` (.json) or an export "
            "(.zip); or `isolation`: try every way from one tenant into another in the running server."
        ),
    ],
    key: KeyOption = None,
    keys: Annotated[
        Path | None, typer.Option(help="The folder with epoch keys and high-water mark; `keys` beside the log.")
    ] = None,
    checkpoint: Annotated[
        list[Path] | None, typer.Option(help="A signed checkpoint that was kept elsewhere. More than once.")
    ] = None,
    auditor: Annotated[
        Path | None, typer.Option(help="The auditor's private key (`aibox audit auditor`): every tag is checked.")
    ] = None,
    sample: Annotated[
        int | None, typer.Option(min=1, help="Draw so many entries of each log instead of reading all.")
    ] = None,
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's log.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The whole report as one line of JSON.")] = False,
    url: Annotated[str | None, typer.Option(help="isolation: where the server is; else as the settings say.")] = None,
    report_to: Annotated[Path | None, typer.Option("--report", help="isolation: a file for the signed report.")] = None,
    config: ConfigOption = None,
) -> None:
    """Check that recorded evidence still holds. Exit code 0: it holds; 1: it does not; 2: it could not be read.

    A report of `verify isolation` that holds and says that tenants are not isolated is a 1 too.
    """
    console = Console(highlight=False)
    if path == ISOLATION and not Path(path).exists():
        # It opens a whole box, which evidence alone does not need.
        from aibox.cli.isolation import isolation

        settings, _ = load_settings(config=config)
        if not interrupt.run(isolation(settings, url=url, report=report_to, console=console)):
            raise typer.Exit(1)
        return
    try:
        notes = [file.read_text("utf-8") for file in checkpoint or ()]
        pinned = key.read_text("utf-8") if key else None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read: {error}") from None
    if path.endswith(".json") and is_report(path):
        _tell_report(path, pinned, as_json=as_json, console=console)
        return
    shown = Progress(transient=True, disable=as_json, console=Console(stderr=True))
    try:
        with shown:
            task = shown.add_task("entries", total=None)
            report = verify_evidence(
                path,
                key=pinned,
                keys=Keyring(keys) if keys else None,
                tenant=tenant,
                checkpoints=notes,
                auditor=auditor,
                sample=sample,
                progress=lambda done: shown.update(task, completed=done, description=f"{done:,} entries"),
            )
    except IntegrityError as error:
        broken = getattr(error, "report", None)
        if as_json:
            print(json.dumps(broken.as_dict() if broken else {"ok": False, "cause": error.message}))
        else:
            for cause in map(str, broken.problems) if broken else [error.message]:
                console.print(f"[red]does not hold:[/] {plain(cause)}", soft_wrap=True)
        raise typer.Exit(1) from None
    if as_json:
        print(json.dumps(report.as_dict()))
    else:
        console.print(f"[green]holds:[/] {report}", soft_wrap=True)


def _tell_report(path: str, pinned: str | None, *, as_json: bool, console: Console) -> None:
    """Whether it is what was found, and whether that was good: what holds and says that tenants met is a no too."""
    try:
        found = IsolationReport.read(path, pinned)
    except IntegrityError as error:
        if as_json:
            print(json.dumps({"ok": False, "holds": False, "cause": error.message}))
        else:
            console.print(f"[red]does not hold:[/] {plain(error.message)}", soft_wrap=True)
        raise typer.Exit(1) from None
    if as_json:
        print(json.dumps({"ok": found.ok, "holds": True, "key_pinned": pinned is not None, "report": found.as_dict()}))
    else:
        counts = ", ".join(f"{found.count(outcome)} {outcome}" for outcome in OUTCOMES)
        what = f"{'isolated' if found.ok else 'not isolated'} at {found.url}: {counts}"
        trusted = "" if pinned else "; the key is the one in the receipt"
        console.print(f"[green]holds:[/] {plain(what)}{trusted}", soft_wrap=True)
        for row in found.rows:
            if row.outcome == "crossed":
                console.print(f"[red]crossed:[/] {plain(f'{row.area}, {row.way}: {row.why}')}", soft_wrap=True)
        if not found.ok:
            why = "one tenant reached the other" if found.count("crossed") else "no way was tried, which proves nothing"
            console.print(f"[red]not isolated:[/] the evidence holds, and the report says that {why}", soft_wrap=True)
    if not found.ok:
        raise typer.Exit(1)


def why(receipt: Annotated[Path, typer.Argument(help="A receipt, as `aibox run --receipt FILE` saves one.")]) -> None:
    """Say in sentences what was decided in a turn, and why. The receipt is checked first."""
    console = Console(highlight=False)
    proof = Receipt.load(receipt)
    try:
        proof.verify()
    except IntegrityError as error:
        console.print(f"[red]This receipt does not hold:[/] {plain(error.message)}", soft_wrap=True)
        raise typer.Exit(1) from None
    for line in sentences(proof):
        console.print(visible(line), markup=False, soft_wrap=True)


def sentences(proof: Receipt) -> list[str]:
    """The entries of a turn, each as a sentence for somebody who was not there."""
    lines = [f"Turn {proof.turn} of tenant {proof.tenant}. {len(proof.entries)} entries; the proof holds."]
    for entry in proof.entries:
        at = datetime.fromtimestamp(entry.ts_us / 1e6, UTC).strftime("%Y-%m-%d %H:%M:%S")
        lines.append(f"{at}  {_sentence(entry.kind, entry.detail)}")
    return lines


def _sentence(kind: str, detail: dict[str, Any]) -> str:
    speak = _SENTENCES.get(kind)
    try:
        return str(speak(detail)) if speak else f"{kind}: {json.dumps(detail, sort_keys=True)}"
    except KeyError:
        # The part that the sentence needs is sealed, and its key was taken out of the receipt or destroyed.
        return f"{kind}: {json.dumps(detail, sort_keys=True)}; the rest is withheld."


def _decided(detail: dict[str, Any]) -> str:
    found = ", ".join(dict.fromkeys(f"{f['rule']} ({f['check']})" for f in detail["findings"])) or "nothing"
    did = {
        "allow": "let it pass",
        "flag": "let it pass and flagged it",
        "redact": "replaced what was found",
        "require_approval": "held it for a person's approval",
        "block": "blocked it",
    }[detail["decision"]]
    where = {
        "input": "the user's message",
        "tool_arguments": "the arguments of a tool",
        "tool_result": "the result of a tool",
        "retrieved": "a remembered text",
        "output": "the answer",
    }[detail["where"]]
    said = f"The guardrail found {found} in {where} and {did}, under policy {detail['policy'][:19]}."
    if shadow := detail.get("shadow"):
        said += f" Policy {shadow['policy'][:19]}, in shadow, would have decided: {shadow['decision']}."
    return said


def _answered(detail: dict[str, Any]) -> str:
    known = {
        "verified": f"whose weights were verified ({detail['weights_sha256'][:12]})",
        "declared": f"whose weights the server declares ({detail['weights_sha256'][:12] or 'no digest'})",
        "unknown": "whose weights are not known",
    }[detail["weights"]]
    return (
        f"Model {detail['model']} on {detail['backend']}, {known}, answered with {detail['output_tokens']} tokens "
        f"to {detail['input_tokens']}, in {detail['duration_us'] / 1e6:.2f} s."
    )


def _sealed(detail: dict[str, Any]) -> str:
    why = f" because of {', '.join(detail['label_why'])}" if detail.get("label_why") else ""
    answered = f"{_answered(detail)} " if "backend" in detail else ""
    return f"{answered}The turn was {detail['outcome']} and sealed; all it touched is {detail['label']}{why}."


def _called(detail: dict[str, Any]) -> str:
    if detail["decision"] != "allowed":
        return f"Tool {detail['tool']} was not called: {detail['decision']}."
    approval = " after a person said yes" if detail.get("approval") else ""
    return f"Tool {detail['tool']} was called{approval}."


_SENTENCES: dict[str, Any] = {
    "turn.started": lambda d: f"The turn began, with a message marked {d['label']}, under policy {d['policy'][:19]}.",
    "guardrail.decided": _decided,
    "memory.read": lambda d: (
        f"Memory was read: {len(d['records'])} records."
        if d["outcome"] == "read"
        else f"Memory could not be read ({d['code']}); the turn went on without."
    ),
    "memory.written": lambda d: (
        f"{len(d['records'])} facts were remembered."
        if d["outcome"] == "written"
        else f"Memory could not be written ({d['code']})."
    ),
    "memory.forget": lambda d: (
        "Everything of the user was to be forgotten."
        if d["everything"]
        else f"{len(d['ids'])} memories were to be forgotten."
    ),
    "model.called": lambda d: f"{d['bytes']} bytes marked {d['label']} were sent to model {d['model']}.",
    "model.answered": _answered,
    "tool.called": _called,
    "tool.returned": lambda d: f"Tool {d['tool']} {d['outcome']} after {d['duration_us'] / 1e6:.2f} s.",
    "artifact.made": lambda d: (
        f"Code of tool {d['tool']} made {d['bytes']} bytes of {d['media_type']}"
        f"{'' if d['checked'] else ', which no check could read'}: {d['outcome']}."
    ),
    "egress.allowed": lambda d: f"The door let a text marked {d['label']} out to {d['model']} at {d['host']}.",
    "egress.denied": lambda d: (
        f"The door kept a text marked {d['label']} from {d['model']} at {d['host']}: {d['reason']}"
    ),
    "pseudonym.unmasked": lambda d: f"{d['count']} pseudonyms ({', '.join(d['types'])}) were unmasked: {d['reason']}",
    "pseudonym.refused": lambda d: f"{d['count']} pseudonyms were to be unmasked, and it was refused.",
    "turn.sealed": _sealed,
    "subject.erased": lambda d: (
        f"{d['by']} erased a person ({d['reason'] or 'no reason given'}): {len(d['subjects'])} key destroyed"
        + "".join(f", {count} removed from {name}" for name, count in d["stores"].items())
        + "."
    ),
    "turn.failed": lambda d: f"The turn failed ({d['code']}).",
}
