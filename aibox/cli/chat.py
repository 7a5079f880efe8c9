"""`aibox run` and `aibox chat`: talk to an agent of the box."""

from __future__ import annotations

import asyncio
import sys
import threading
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.markup import escape

import aibox.box
from aibox.agents.agent import Agent
from aibox.agents.events import (
    ArtifactMade,
    Decided,
    Event,
    Failed,
    Recalled,
    Reply,
    TextDelta,
    ToolCalled,
    ToolReturned,
)
from aibox.box import Box
from aibox.cli import interrupt
from aibox.cli.options import ConfigOption, ModelOption, PolicyOption, load_settings
from aibox.cli.say import plain, say, visible
from aibox.errors import AIBoxError, ConfigError
from aibox.types import Decision, Label, Scope

T = TypeVar("T")

HELP = """\
/help             this text
/label LABEL      mark what you write next: public, internal, confidential, restricted, with /PHI,... for compartments
/memory           what is remembered about you
/forget           forget all of it
/save FOLDER      write the files and figures of the last turn into a folder
/receipt FILE     save the proof of the last turn; `aibox why FILE` explains it
/new              begin a new session
Ctrl-C            stop an answer
/quit             leave (Ctrl-D does too)"""

CodeOption = Annotated[bool, typer.Option("--code", help="The agent may run Python and bash, in the sandbox only.")]

_OBEYED = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}
"""What a terminal obeys, written out: what a tool printed, a page said or a model wrote moves no cursor of ours."""

SMALL_MODEL = (
    "The demo model has 135 million parameters: it is here to show that everything works, and it rambles, invents and "
    "calls tools badly. For real answers: aibox chat --model your.gguf, or [[backends]] in aibox.toml."
)


def run(
    prompt: Annotated[str, typer.Argument(help="What to ask. '-' reads it from standard input.")],
    model: ModelOption = None,
    policy: PolicyOption = None,
    config: ConfigOption = None,
    label: Annotated[str, typer.Option(help="How secret the prompt is, such as confidential/PHI.")] = "internal",
    session: Annotated[str, typer.Option(help="Name of the conversation, for memory and evidence.")] = "",
    receipt: Annotated[Path | None, typer.Option(help="Save the proof of this turn here.")] = None,
    code: CodeOption = False,
    save: Annotated[Path | None, typer.Option(help="A folder for files and figures that code made.")] = None,
) -> None:
    """Ask one question and print the answer as it comes."""
    if prompt == "-":
        prompt = _read_stdin()
    settings, name = load_settings(config=config, model=model)

    async def main() -> int:
        async with aibox.box.open(settings=settings, policy=policy) as box:
            agent = box.agent(model=name, sandbox=box.sandbox if code else None)
            terminal = Terminal(Console(highlight=False), Console(stderr=True, highlight=False))
            await terminal.note_small_model(box)
            reply = await terminal.show(agent, prompt, scope=Scope.local(session=session), label=label)
            if receipt is not None and reply.receipt is not None:
                reply.receipt.save(receipt)
            if save is not None:
                terminal.save(reply, save)
            return 1 if reply.blocked else 0

    if status := interrupt.run(main()):
        raise typer.Exit(status)


def chat(
    model: ModelOption = None,
    policy: PolicyOption = None,
    config: ConfigOption = None,
    session: Annotated[str, typer.Option(help="Name of the conversation; a new one by default.")] = "",
    code: CodeOption = False,
) -> None:
    """Talk with an agent that keeps the session and remembers you. /help lists what else can be typed."""
    settings, name = load_settings(config=config, model=model)

    async def main() -> None:
        async with aibox.box.open(settings=settings, policy=policy) as box:
            terminal = Terminal(Console(highlight=False), Console(stderr=True, highlight=False))
            agent = box.agent(model=name, approver=terminal, sandbox=box.sandbox if code else None)
            await terminal.note_small_model(box)
            terminal.err.print("[dim]/help lists the commands, Ctrl-D leaves[/]")
            await Conversation(box, agent, terminal, session or str(uuid.uuid4())).loop()

    interrupt.run(main())


class Terminal:
    """Shows a turn: the answer on standard output, everything about it on standard error. An Approver, too."""

    def __init__(self, out: Console, err: Console) -> None:
        self.out = out
        self.err = err

    async def note_small_model(self, box: Box) -> None:
        if any(model.demo for model in await box.router.models()):
            self.err.print(SMALL_MODEL, style="dim", markup=False)

    async def show(self, agent: Agent, prompt: str, *, scope: Scope, label: Label | str) -> Reply:
        """Print the events of one turn as they come. Raises the error of a turn that failed."""
        async for event in agent.stream(prompt, scope=scope, label=label):
            if isinstance(event, TextDelta):
                self.out.print(self._harmless(event.text), end="", markup=False, soft_wrap=True)
            elif isinstance(event, Reply):
                self.out.print(self._harmless(event.text) if event.blocked else "", markup=False, soft_wrap=True)
                return event
            elif isinstance(event, Failed):
                raise event.error
            else:
                self._aside(event)
        raise ConfigError("the turn ended without a reply")

    def _aside(self, event: Event) -> None:
        line = ""
        if isinstance(event, Recalled) and event.error:
            line = f"memory could not be used: {event.error}"
        elif isinstance(event, Recalled) and event.hits:
            line = "remembered: " + "; ".join(hit.record.text for hit in event.hits[:3])
        elif isinstance(event, Decided) and event.verdict.decision > Decision.ALLOW:
            verdict = event.verdict
            line = f"{verdict.where}: {verdict.decision} ({'; '.join(verdict.reasons())})"
        elif isinstance(event, ToolCalled):
            line = f"calls {event.name}({', '.join(f'{k}={v!r}' for k, v in event.arguments.items())})"
        elif isinstance(event, ArtifactMade):
            line = f"made {event}"
        elif isinstance(event, ToolReturned):
            line = f"{event.name} -> {event.text[:200]}"
        if line:
            self.err.print(f"[dim]· {escape(line.translate(_OBEYED))}[/]")

    def _harmless(self, text: str) -> str:
        """The answer as it is for a file or a program; for a terminal without what it would obey."""
        return text.translate(_OBEYED) if self.out.is_terminal else text

    def save(self, reply: Reply, folder: Path) -> None:
        """Write what code made in a turn into a folder. Raises ConfigError where that cannot be done."""
        made = [artifact for artifact in reply.artifacts if artifact.data is not None]
        for artifact in made:
            self.err.print(f"saved {visible(str(artifact.save(folder)))}", markup=False, soft_wrap=True)
        if not made:
            self.err.print("the turn made no files that can be saved")

    async def approve(self, tool: str, arguments: Mapping[str, Any], *, scope: Scope, label: Label) -> bool:
        """Ask on the terminal; anything but yes is no, and so is a program at the other end."""
        if not sys.stdin.isatty():
            return False
        shown = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        self.err.print(f"[yellow]The agent of {scope.user} wants {plain(tool)}({plain(shown)}), label {label}.[/]")
        answer = await typed(lambda: self.err.input("Allow it? [yes/no] ", markup=False))
        return answer.strip().lower() in ("y", "yes")


class Conversation:
    """The loop of `aibox chat`: one line, one turn or one command."""

    def __init__(self, box: Box, agent: Agent, terminal: Terminal, session: str) -> None:
        self.box = box
        self.agent = agent
        self.terminal = terminal
        self.scope = Scope.local(agent=agent.name, session=session)
        self.label = Label()
        self.last: Reply | None = None

    async def loop(self) -> None:
        while (line := await typed(self._read)) is not None:
            if line.startswith("/"):
                if not await self._command(*line[1:].partition(" ")[::2]):
                    return
            elif line.strip():
                await self._turn(line)

    async def _turn(self, line: str) -> None:
        """A turn that fails or is stopped with Ctrl-C ends neither the conversation nor the program."""
        turn = asyncio.create_task(self.terminal.show(self.agent, line, scope=self.scope, label=self.label))
        try:
            with interrupt.cancels(turn):
                self.last = await turn
        except AIBoxError as error:
            say(self.terminal.err, error)
        except asyncio.CancelledError:
            if not turn.cancelled():
                raise  # somebody else ends the program
            self.terminal.err.print("\nstopped; Ctrl-C once more leaves", style="dim")

    def _read(self) -> str | None:
        if sys.stdin.isatty():
            try:
                return self.terminal.err.input("[bold]you>[/] ")
            except EOFError:
                return None
        # Bytes that are not UTF-8 come through as surrogates, which the turn refuses with a clear word.
        line = sys.stdin.buffer.readline().decode("utf-8", "surrogateescape")
        return line.rstrip("\r\n") if line else None

    async def _command(self, name: str, rest: str) -> bool:
        tell = self.terminal.err.print
        match name:
            case "quit" | "exit":
                return False
            case "help":
                tell(HELP, markup=False)
            case "label":
                self.label = Label.parse(rest.strip())
                tell(f"what you write next is {self.label}")
            case "memory":
                records = await self.box.memory.list(scope=self.scope)
                tell("\n".join(f"{r.type:<9} {r.text}" for r in records) or "nothing is remembered", markup=False)
            case "forget":
                tell(f"forgot {await self.box.memory.forget(scope=self.scope, subject=self.scope.user)} memories")
            case "receipt":
                self._receipt(rest.strip())
            case "save":
                self._save(rest.strip())
            case "new":
                self.scope = self.scope.narrow(session=str(uuid.uuid4()))
                tell("a new session")
            case _:
                tell(f"there is no command /{name}; /help lists them", markup=False)
        return True

    def _receipt(self, path: str) -> None:
        if self.last is None or self.last.receipt is None:
            self.terminal.err.print("no turn has been recorded yet")
        elif not path:
            self.terminal.err.print("say where: /receipt FILE")
        else:
            self.last.receipt.save(Path(path))
            self.terminal.err.print(f"saved; explain it with: aibox why {path}", markup=False)

    def _save(self, folder: str) -> None:
        if self.last is None or not folder:
            self.terminal.err.print("say where: /save FOLDER" if self.last else "there was no turn yet")
            return
        try:
            self.terminal.save(self.last, Path(folder))
        except AIBoxError as error:
            say(self.terminal.err, error)


async def typed(read: Callable[[], T]) -> T:
    """What a person types, read in a thread that nobody waits for: Ctrl-C leaves at once, not after another Enter."""
    loop = asyncio.get_running_loop()
    line: asyncio.Future[T] = loop.create_future()

    def settle(set_: Callable[[Any], None], value: object) -> None:
        if not line.done():
            set_(value)

    def work() -> None:
        try:
            result = read()
        except Exception as error:  # noqa: BLE001 - carried to whoever awaits the line
            loop.call_soon_threadsafe(settle, line.set_exception, error)
        else:
            loop.call_soon_threadsafe(settle, line.set_result, result)

    threading.Thread(target=work, name="aibox-typed", daemon=True).start()
    return await line


def _read_stdin() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"standard input is not UTF-8: byte {error.start}", hint="send UTF-8 text") from None
