"""`aibox audit`: read the log, sign it out, rotate its key, erase a person, hold, prune, go on after a restore."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from aibox.audit.escrow import new_auditor
from aibox.audit.keys import Keyring
from aibox.audit.receipt import ReceiptEntry
from aibox.audit.record import leaf_hash
from aibox.audit.signer import SigningServer, public_key
from aibox.box import Box
from aibox.cli import interrupt
from aibox.cli.options import ConfigOption, load_settings
from aibox.cli.say import plain
from aibox.cli.unmask import unmask
from aibox.errors import ConfigError, StoreError
from aibox.policy.retention import DAY_US
from aibox.server import stores
from aibox.types import LOCAL_TENANT, Scope

T = TypeVar("T")
TenantOption = Annotated[str, typer.Option("--tenant", help="Whose log it is.")]
ByOption = Annotated[str, typer.Option("--by", help="Who does it, for the record.")]
ReasonOption = Annotated[str, typer.Option("--reason", help="Why, for the record.")]
app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="The evidence: read it, sign it out, and act on it, on the record."
)
app.command()(unmask)


@app.command()
def log(
    tenant: TenantOption = LOCAL_TENANT,
    kind: Annotated[str, typer.Option(help="Only kinds that begin so, such as `egress` or `tool.called`.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="The last so many.")] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON an entry.")] = False,
    config: ConfigOption = None,
) -> None:
    """List the last entries of a log."""

    async def read(box: Box) -> list[ReceiptEntry]:
        found = [e async for e in box.audit.entries(tenant) if e.open and e.kind.startswith(kind)]
        return found[-limit:]

    found = _with(config, read)
    if as_json:
        for entry in found:
            print(json.dumps(_brief(entry)))
        return
    table = Table("entry", "when", "what", "for", "turn", box=None, header_style="bold", pad_edge=False)
    for entry in found:
        who = entry.actor["user"] if entry.actor else "-"
        table.add_row(str(entry.seq), _when(entry.ts_us), plain(entry.kind), plain(who), plain(entry.turn[:8]))
    Console(highlight=False).print(table)


@app.command()
def show(
    seq: Annotated[int, typer.Argument(min=0, help="The number of the entry.")],
    tenant: TenantOption = LOCAL_TENANT,
    config: ConfigOption = None,
) -> None:
    """Show one entry, whole, as JSON."""

    async def read(box: Box) -> ReceiptEntry:
        async for entry in box.audit.entries(tenant, start=seq):
            if entry.seq == seq:
                return entry
            break
        raise ConfigError(f"the log of {tenant} has no entry {seq}")

    print(json.dumps(_brief(_with(config, read)), indent=1))


@app.command()
def export(
    path: Annotated[Path, typer.Argument(help="Where to write it: JSON lines, or a ZIP with its verifier (.zip).")],
    tenant: TenantOption = LOCAL_TENANT,
    config: ConfigOption = None,
) -> None:
    """Write a log to a file, as it is stored, with a signed checkpoint. Sealed parts stay sealed."""
    count = _with(config, lambda box: box.audit.export(tenant, path))
    inside = "in it" if path.suffix == ".zip" else f"in {path}.checkpoint"
    print(f"{count} entries in {path}, signed {inside}")


@app.command()
def checkpoint(
    path: Annotated[Path | None, typer.Argument(help="Where to write it; else it is printed.")] = None,
    tenant: TenantOption = LOCAL_TENANT,
    config: ConfigOption = None,
) -> None:
    """Sign how far a log has come. Keep it elsewhere: `aibox verify --checkpoint FILE` holds the log against it."""
    note = _with(config, lambda box: box.audit.checkpoint(tenant))
    if path is None:
        print(note, end="")
        return
    _write(path, note)
    print(f"{note.splitlines()[1]} entries, signed in {path}")


@app.command()
def rotate(config: ConfigOption = None) -> None:
    """Hand the log over to a new signing key; the old one signs that and is destroyed."""
    print(_with(config, lambda box: box.audit.rotate()))


@app.command()
def erase(
    subject: Annotated[str, typer.Argument(help="The user to erase.")],
    reason: ReasonOption,
    tenant: TenantOption = LOCAL_TENANT,
    by: ByOption = "operator",
    certificate: Annotated[Path | None, typer.Option(help="Where to write the certificate.")] = None,
    config: ConfigOption = None,
) -> None:
    """Destroy a person's key and what memory, pseudonyms and conversations hold of them; a tombstone stays."""

    async def act(box: Box) -> str:
        stores.keep_if_served(box)
        receipt = await box.audit.erase(scope=Scope(tenant=tenant, user=by), subject=subject, reason=reason)
        if certificate is not None:
            receipt.save(certificate)
        gone = ", ".join(f"{count} from {name}" for name, count in receipt.entries[0].detail["stores"].items())
        return f"erased, on record as entry {receipt.entries[0].seq}; removed: {gone or 'nothing elsewhere'}"

    print(_with(config, act))


@app.command()
def hold(
    reason: ReasonOption,
    subject: Annotated[str | None, typer.Argument(help="A user; without one, all of the tenant.")] = None,
    release: Annotated[int | None, typer.Option(help="End the hold that this entry set.")] = None,
    tenant: TenantOption = LOCAL_TENANT,
    by: ByOption = "operator",
    config: ConfigOption = None,
) -> None:
    """Keep entries from erasure and retention, or release them again."""
    scope = Scope(tenant=tenant, user=by)
    if release is not None:
        number = release
        entry = _with(config, lambda box: box.audit.release(number, scope=scope, reason=reason))
    else:
        entry = _with(config, lambda box: box.audit.hold(scope=scope, subject=subject, reason=reason))
    print(f"on record as entry {entry.seq}")


@app.command()
def prune(
    reason: ReasonOption,
    days: Annotated[
        float | None, typer.Option(min=0, help="Keep bodies that are younger; else the policy says.")
    ] = None,
    tenant: TenantOption = LOCAL_TENANT,
    by: ByOption = "operator",
    config: ConfigOption = None,
) -> None:
    """Remove bodies that are past their retention; what proves the log stays."""
    before_us = None if days is None else time.time_ns() // 1000 - round(days * DAY_US)
    scope = Scope(tenant=tenant, user=by)
    count = _with(config, lambda box: box.audit.prune(scope=scope, before_us=before_us, reason=reason))
    print(f"{count} bodies removed")


@app.command()
def restore(
    reason: ReasonOption,
    tenant: TenantOption = LOCAL_TENANT,
    by: ByOption = "operator",
    config: ConfigOption = None,
) -> None:
    """Go on with a database that was put back. Recorded, with what is given up; erasures are done again."""
    entry = _with(config, lambda box: box.audit.restore(scope=Scope(tenant=tenant, user=by), reason=reason))
    print(f"on record as entry {entry.seq}")


@app.command()
def signer(
    socket: Annotated[Path, typer.Argument(help="The Unix socket to answer on.")],
    keys: Annotated[Path, typer.Option(help="The folder of its key; made when it is not there.")],
) -> None:
    """Sign for a chain from a process of its own, best under another user. Ends with Ctrl-C."""
    key = Keyring(keys).signer()
    server = SigningServer(socket, key)
    try:
        server.serve(lambda: print(public_key(key), flush=True))
    except KeyboardInterrupt:
        server.close()


@app.command()
def auditor(
    private: Annotated[Path, typer.Argument(help="Where to write the private key: on the auditor's machine.")],
) -> None:
    """Make an auditor's key. Its public half, printed, goes into `keys/auditor.pub` before a log is begun."""
    print(new_auditor(private))


def _brief(entry: ReceiptEntry) -> dict[str, object]:
    if not entry.open:
        return {"seq": entry.seq, "ts_us": entry.ts_us, "pruned": True}
    return {
        "seq": entry.seq,
        "ts_us": entry.ts_us,
        "kind": entry.kind,
        "turn": entry.turn,
        "actor": entry.actor,
        "detail": entry.detail,
        "leaf": leaf_hash(entry.header).hex(),
    }


def _when(ts_us: int) -> str:
    return datetime.fromtimestamp(ts_us / 1e6, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, "utf-8")
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror}") from None


def _with(config: Path | None, act: Callable[[Box], Awaitable[T]]) -> T:
    settings, _ = load_settings(config=config)

    async def run() -> T:
        async with Box(settings) as box:
            return await act(box)

    return interrupt.run(run())
