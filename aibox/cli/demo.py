"""`aibox demo`: one real turn after another through all six objects, each shown and each held to what it promises.

Nothing is scripted but the questions: the model, the tool, the sandbox, the memory, the door and the chain are real.
"""

from __future__ import annotations

import asyncio
import random
import re
import sqlite3
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

import aibox.box
from aibox.agents.events import Event, Failed, ModelAnswered, ModelCalled, Recalled, Reply
from aibox.agents.tools import tool
from aibox.audit.verify import verify
from aibox.box import Box
from aibox.cli import interrupt
from aibox.cli.chat import SMALL_MODEL
from aibox.cli.options import ConfigOption, ModelOption, load_settings
from aibox.errors import BackendError, ConfigError, EgressError, IntegrityError
from aibox.guardrails.marks import find_tokens
from aibox.inference.openai_compatible import OpenAICompatible
from aibox.inference.router import Router
from aibox.policy.egress import EgressRules
from aibox.policy.policy import Policy
from aibox.postgres import is_postgres, shown
from aibox.types import Scope

PERSON = {"name": "Maria Keller", "e-mail": "maria.keller@example.org", "card": "4111 1111 1111 1111"}
MESSAGE = (
    f"Hello, my name is {PERSON['name']}. My e-mail is {PERSON['e-mail']} and I paid with card {PERSON['card']}. "
    "Please write one sentence that greets me by name and says which e-mail you will use."
)
FACT = "Remember that the inspection of the Lakeside clinic is on 14 March."
QUESTION = "When is the clinic inspected?"
CODE = """\
import math, socket
print("sum of the primes below 100:", sum(n for n in range(2, 100) if all(n % d for d in range(2, math.isqrt(n) + 1))))
try:
    socket.create_connection(("192.0.2.1", 80), timeout=2)
    print("network: reached")
except OSError as error:
    print("network: refused,", error.strerror or error)
"""
INVOICES = {"acme": 1240.50, "globex": 310.00}


@tool
def owed(customer: str) -> float:
    """Open invoices of a customer, in EUR."""
    return INVOICES[customer.strip().lower()]


@dataclass
class Step:
    """One promise: what is shown of it, and whether it held."""

    title: str
    holds: bool = True
    rows: list[tuple[str, RenderableType]] = field(default_factory=list)

    def show(self, name: str, value: object) -> None:
        self.rows.append((name, value if isinstance(value, Text) else Text(str(value))))

    def must(self, claim: str, holds: bool) -> None:
        """A claim of this step; one that does not hold is marked, and the step with it."""
        self.holds = self.holds and holds
        mark = Text("holds  ", "green") if holds else Text("FAILS  ", "bold red")
        self.rows.append(("", mark + Text(claim, "default" if holds else "red")))


def demo(
    model: ModelOption = None,
    config: ConfigOption = None,
    seed: Annotated[int, typer.Option(help="Which byte of the evidence is flipped at the end.")] = 1,
) -> None:
    """Run the five promises on this machine and show what happens. Exit code 1 if one does not hold."""
    settings, name = load_settings(config=config, model=model)
    console = Console(highlight=False)

    async def main() -> bool:
        async with aibox.box.open(settings=settings) as box:
            return await Demo(console, box, model=name, seed=seed).run()

    if not interrupt.run(main()):
        raise typer.Exit(1)


class Demo:
    """The five steps, over one box."""

    def __init__(self, console: Console, box: Box, *, model: str, seed: int) -> None:
        self.console = console
        self.box = box
        self.model = model
        self.random = random.Random(seed)  # noqa: S311 - chooses a byte to damage, guards nothing
        self.scope = Scope.local(session=str(uuid.uuid4()))

    async def run(self) -> bool:
        self.console.print(Text("aibox demo", "bold"), Text("  everything happens on this machine", "dim"))
        await self._load()
        steps: tuple[tuple[str, Callable[[Step], Awaitable[None]]], ...] = (
            ("1  The model sees pseudonyms, you see your own words", self.pseudonyms),
            ("2  A typed tool, and code in the sandbox", self.tools),
            ("3  Remembered for you, hidden from others", self.memory),
            ("4  The door out is shut", self.door),
            ("5  Evidence that nobody can quietly change", self.evidence),
        )
        held = [await self._step(title, action) for title, action in steps]
        self.console.print(Text(f"{sum(held)} of {len(held)} hold", "bold green" if all(held) else "bold red"))
        if any(info.demo for info in await self.box.router.models()):
            self.console.print(Text(SMALL_MODEL, "dim"))
        return all(held)

    async def _load(self) -> None:
        started = time.perf_counter()
        with self.console.status("loading the model"):
            models = await self.box.router.models()
            request = [{"role": "user", "content": "Hi"}]
            answer = await self.box.router.complete(request, model=self.model, scope=self.scope, max_tokens=1)
        weights = answer.weights
        self.console.print(
            Text(f"{answer.model} on {answer.backend}, weights {weights.known} {weights.sha256[:12]}, ", "dim")
            + Text(f"one of {len(models)}, ready in {time.perf_counter() - started:.1f} s", "dim")
        )

    async def _step(self, title: str, action: Callable[[Step], Awaitable[None]]) -> bool:
        step = Step(title)
        started = time.perf_counter()
        with self.console.status(title):
            await action(step)
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="dim", justify="right", no_wrap=True)
        grid.add_column(overflow="fold")
        for name, value in step.rows:
            grid.add_row(name, value)
        took = f"{time.perf_counter() - started:.1f} s"
        border = "green" if step.holds else "red"
        self.console.print(Panel(Group(grid), title=step.title, title_align="left", subtitle=took, border_style=border))
        return step.holds

    async def _turn(self, message: str, *, instructions: str | None = None, scope: Scope | None = None,
                    tool_choice: str | None = None) -> tuple[Reply, list[Event]]:  # fmt: skip
        agent = self.box.agent(
            instructions,
            model=self.model,
            tools=[owed] if tool_choice else (),
            settings={"max_tokens": 80, "temperature": 0},
        )
        events = [e async for e in agent.stream(message, scope=scope or self.scope, tool_choice=tool_choice)]
        last = events[-1]
        if isinstance(last, Failed):
            raise last.error
        if not isinstance(last, Reply):
            raise BackendError("the turn ended without a reply")
        return last, events

    async def pseudonyms(self, step: Step) -> None:
        reply, events = await self._turn(MESSAGE)
        sent = [str(m["content"]) for e in events if isinstance(e, ModelCalled) for m in e.messages]
        wrote = "".join(str(e.message.get("content") or "") for e in events if isinstance(e, ModelAnswered))
        made = set(find_tokens(" ".join(sent)))
        used = made & set(find_tokens(wrote))
        step.show("you wrote", MESSAGE)
        step.show("the model saw", sent[-1])
        step.show("the model wrote", wrote)
        step.show("you got", reply.text)
        leaked = [kind for kind, value in PERSON.items() if any(value in text for text in sent)]
        step.must(f"no original reached the model ({len(made)} pseudonyms instead)", not leaked and len(made) >= 3)
        step.must("no pseudonym is left in the reply", not find_tokens(reply.text))
        originals = [await self.box.guardrail.restore(token, scope=self.scope) for token in sorted(used)]
        restored = all(value in reply.text for value in originals)
        step.must(f"every pseudonym that the model used was restored ({len(used)})", restored)

    async def tools(self, step: Step) -> None:
        question = "What does Acme owe us?"
        reply, _ = await self._turn(question, instructions="You keep the books.", tool_choice="owed")
        step.show("you asked", question)
        for call in reply.tool_calls:
            step.show(f"{call.name} returned", f"{call.text}  ({call.duration_s * 1e3:.1f} ms)")
        step.show("you got", reply.text)
        step.must(
            "the model called the typed tool, and it ran", any(c.name == "owed" and c.ok for c in reply.tool_calls)
        )
        async with self.box.sandbox.session(scope=self.scope) as session:
            result = await session.python(CODE)
        step.show("code ran in", f"{self.box.sandbox} ({result.duration_s * 1e3:.0f} ms)")
        step.show("it printed", result.stdout.strip() or result.stderr.strip())
        step.must("the code ran and computed", result.ok and "1060" in result.stdout)
        step.must("it reached no network", "network: refused" in result.stdout)

    async def memory(self, step: Step) -> None:
        told, _ = await self._turn(FACT, scope=self.scope.narrow(session=str(uuid.uuid4())))
        later = self.scope.narrow(session=str(uuid.uuid4()))
        answered, events = await self._turn(QUESTION, scope=later)
        hits = [hit for e in events if isinstance(e, Recalled) for hit in e.hits]
        rival = Scope(tenant="somebody-else", user=self.scope.user, session=self.scope.session)
        found = await self.box.memory.recall(QUESTION, scope=rival)
        step.show("you said", FACT)
        step.show("the model said", told.text)
        step.show("later you asked", QUESTION)
        step.show("recalled", "; ".join(f"{h.record.text} ({h.score:.2f}, {h.citation})" for h in hits) or "nothing")
        step.show("you got", answered.text)
        step.show("another tenant", f"{len(found)} memories found")
        step.must("the fact was found again in another session", any("14 March" in hit.record.text for hit in hits))
        step.must("another tenant finds nothing", not found)

    async def door(self, step: Step) -> None:
        outside = OpenAICompatible("https://models.example.com/v1", name="outside", models=["large"])
        try:
            Router(outside, policy=self.box.policy, audit=self.box.audit)
        except ConfigError as refused:
            step.show("shut", refused.message)
            step.must("a shut door does not even let an external model be wired", True)
        else:
            step.must("a shut door does not even let an external model be wired", False)
        opened = Policy(egress=EgressRules(models=frozenset({"outside/large"})))
        router = Router(outside, policy=opened, audit=self.box.audit)
        try:
            await router.complete(FACT, model="outside/large", scope=self.scope, label="confidential")
            step.must("an open door keeps what is too secret for it", False)
        except EgressError as refused:
            step.show("opened for public", refused.message)
            step.show("what to do", refused.hint)
            step.must("an open door keeps what is too secret for it", True)
        finally:
            await router.close()
        entries = [entry async for entry in self.box.audit.entries(self.scope.tenant)]
        denied = [entry for entry in entries if entry.kind == "egress.denied"]
        step.must("the attempt is on record", bool(denied) and entries[-1].kind == "egress.denied")

    async def evidence(self, step: Step) -> None:
        place = self.box.settings.evidence
        started = time.perf_counter()
        report = await self.box.audit.verify()
        step.show("the chain", f"{report} in {(time.perf_counter() - started) * 1e3:.0f} ms")
        step.must("the evidence of all this holds", report.ok)
        step.show("look yourself", f"aibox verify {shown(place)}")
        if is_postgres(place):
            step.show("one byte flipped", "of a file only: leave `database` out of the settings to be shown this too")
            return
        with tempfile.TemporaryDirectory(prefix="aibox-demo-") as folder:
            copy = Path(folder) / "copy.db"
            where = await asyncio.to_thread(self._damage, Path(place), copy)
            step.show("one byte flipped", f"in a copy, {where}")
            try:
                await asyncio.to_thread(verify, copy)
                step.must("verification names the entry that no longer holds", False)
            except IntegrityError as broken:
                step.show("verification says", broken.message)
                entry = re.search(r"entry (\d+)", where)
                named = entry is not None and entry.group(0) in broken.message
                step.must("verification names the entry that no longer holds", named)

    def _damage(self, path: Path, copy: Path) -> str:
        """Copy the database and flip one byte of one entry, in the file itself and past every trigger."""
        with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(copy)) as target:
            source.backup(target)
            target.execute("PRAGMA journal_mode=DELETE")
            rows = target.execute("SELECT seq, open FROM entries").fetchall()
        data = bytearray(copy.read_bytes())
        while True:
            seq, body = self.random.choice(rows)
            if data.count(body) == 1:
                break
        at = data.index(body) + self.random.randrange(len(body))
        data[at] ^= 1 << self.random.randrange(8)
        copy.write_bytes(data)
        return f"byte {at} of the file, inside entry {seq}"
