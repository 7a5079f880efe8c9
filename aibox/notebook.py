"""In a notebook: after `%load_ext aibox` a cell that begins with `%%agent` is a question, answered as it comes.

`%%agent NAME` asks the agent in the variable NAME; without a name the one in `agent`, and where there is none a box is
opened, which stays open with its agent in `box` and `agent`. The reply is in `reply` afterwards.
"""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

from aibox.errors import AIBoxError

if TYPE_CHECKING:
    from aibox.memory.document import Progress

_MAGIC = "%%agent"
_ASK = "await __import__('aibox.notebook', fromlist=['ask']).ask(get_ipython(), {name!r}, {prompt!r})\n"


def load_ipython_extension(shell: Any) -> None:
    """Called by `%load_ext aibox`."""
    transforms = shell.input_transformer_manager.cleanup_transforms
    if _as_question not in transforms:
        # First, since IPython's own would take `%%agent` for a magic, which cannot await in the notebook's loop.
        transforms.insert(0, _as_question)


def unload_ipython_extension(shell: Any) -> None:
    """Called by `%unload_ext aibox`. A box that was opened stays open."""
    shell.input_transformer_manager.cleanup_transforms.remove(_as_question)


def _as_question(lines: list[str]) -> list[str]:
    """The cell as a line of Python; any other cell as it is."""
    head = lines[0].split() if lines else []
    if not head or head[0] != _MAGIC:
        return lines
    return [_ASK.format(name=" ".join(head[1:]), prompt="".join(lines[1:]).strip())]


class _Markdown:
    def __init__(self, text: str) -> None:
        self._text = text

    def _repr_markdown_(self) -> str:
        return self._text


class Bar:
    """How far something has come, shown in a cell: the `progress=` of `evaluate` and of `Memory.add`."""

    def __init__(self, of: str) -> None:
        self._of = of
        self._shown: Any = None
        self._done, self._total, self._name = 0, 0, ""

    def __call__(self, done: int | Progress, total: int = 0) -> None:
        """What `evaluate` says (runs that are done, of how many), or what `Memory.add` does."""
        if isinstance(done, int):
            self._done, self._total = done, total
        else:
            self._done, self._total, self._name = done.done, done.total, done.name
        if self._shown is None:
            from IPython.display import display

            self._shown = display(self, display_id=True)  # type: ignore[no-untyped-call]  # its own package is untyped
        else:
            self._shown.update(self)

    def _repr_html_(self) -> str:
        text = html.escape(f"{self._done} of {self._total} {self._of} {self._name}".rstrip())
        return f'<progress value="{self._done}" max="{max(self._total, 1)}"></progress> {text}'


async def ask(shell: Any, name: str, prompt: str) -> None:
    """Show the answer to a cell while it is written, with what was done for it."""
    from IPython.display import display

    from aibox.agents.events import ArtifactMade, Failed, Reply, TextDelta, ToolCalled

    shown: Any = display(_Markdown("…"), display_id=True)  # type: ignore[no-untyped-call]  # its own package is untyped
    text = ""
    try:
        agent = await _agent(shell.user_ns, name)
        async for event in agent.stream(prompt):
            if isinstance(event, TextDelta):
                text += event.text
                shown.update(_Markdown(text))
            elif isinstance(event, ToolCalled):
                shown.update(_Markdown(f"{text}\n\n<sub>calls {html.escape(event.name)}()</sub>"))
            elif isinstance(event, ArtifactMade):
                display(event)  # type: ignore[no-untyped-call]  # its own package is untyped
            elif isinstance(event, Failed):
                raise event.error
            elif isinstance(event, Reply):
                shell.user_ns["reply"] = event
                shown.update(event)
    except AIBoxError as error:
        hint = f"<br><sub>{html.escape(error.hint)}</sub>" if error.hint else ""
        shown.update(_Markdown(f"{text}\n\n**{html.escape(error.message)}**{hint}"))


async def _agent(names: dict[str, Any], name: str) -> Any:
    from aibox.agents.agent import Agent
    from aibox.box import open as open_box
    from aibox.errors import ConfigError

    found = names.get(name or "agent")
    if found is None and not name:
        names["box"] = await open_box()
        found = names["agent"] = names["box"].agent()
    if not isinstance(found, Agent):
        raise ConfigError(f"there is no agent in {name or 'agent'!r}", hint="%%agent NAME asks the agent in NAME")
    return found
