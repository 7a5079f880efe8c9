"""`delegate(description, subagent_type, prompt)`: a child with a prompt, its own few tools, and nothing else.

A child returns one text and cannot delegate further. Its label begins as its parent's and what it touches raises both;
its budget and its policy are parts of its parent's; it is cancelled with it; its entries are in its parent's record.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from aibox.agents.budget import Exhausted
from aibox.agents.dispatch import Refused, Waits, validated
from aibox.agents.events import Event, Subagent
from aibox.agents.evidence import digest
from aibox.agents.model_call import Paused
from aibox.agents.parts import Parts
from aibox.agents.skill_tools import skill_tools
from aibox.agents.skills import Skill, narrowing
from aibox.agents.subagents import SubagentSpec
from aibox.agents.turn import Turn
from aibox.agents.turn_state import TurnState
from aibox.errors import ConfigError
from aibox.policy.tools import ToolRules
from aibox.protocols import Tool
from aibox.sandbox.sandbox import Sandbox
from aibox.types import Scope

NAME = "delegate"


class Delegate:
    """A Tool over the subagents of one agent. Raises ConfigError for one whose tools or skills are not there."""

    name = NAME
    side_effects = False
    resumable = True

    def __init__(
        self, subagents: Sequence[SubagentSpec], *, parts: Parts, skills: Sequence[Skill], sandbox: Sandbox | None
    ) -> None:
        self._specs = {spec.name: spec for spec in subagents}
        self._parts = {spec.name: _parts_of(spec, parent=parts, skills=skills, sandbox=sandbox) for spec in subagents}

    @property
    def description(self) -> str:
        listed = "\n".join(f"- {spec.name}: {spec.description}" for spec in self._specs.values())
        return (
            "Hand a task to a subagent. It knows nothing of this conversation: the prompt must hold all it needs. "
            f"It returns one text. Several can work at once.\n{listed}"
        )

    @property
    def schema(self) -> Mapping[str, Any]:
        properties = {
            "description": {"type": "string", "description": "The task in three to five words."},
            "subagent_type": {"type": "string", "enum": sorted(self._specs)},
            "prompt": {"type": "string", "description": "The whole task, with everything that is needed for it."},
        }
        return {
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        }

    async def call(self, arguments: Mapping[str, Any], *, scope: Scope) -> str:  # noqa: ARG002 - Tool's face
        raise Refused("A subagent works inside a turn only.", "invalid")

    async def call_in(self, arguments: Mapping[str, Any], *, call_id: str, turn: TurnState) -> str:
        """The child's answer. Raises Waits when a call of it needs a person."""
        kind, prompt = validated(self, arguments, "subagent_type"), validated(self, arguments, "prompt")
        if kind not in self._specs or f"subagent:{kind}" in turn.policy.tools.deny:
            known = ", ".join(sorted(self._specs))
            raise Refused(f"There is no subagent {kind[:40]!r}. Known are {known}.", "invalid")
        assert isinstance(turn, Turn)
        spec, frame = self._specs[kind], turn.frame.children.get(call_id)

        def emit(event: Event) -> None:
            turn.emit(Subagent(kind, event))

        child = Turn(
            self._parts[kind],
            scope=turn.scope.narrow(agent=f"{turn.scope.agent}.{kind}"[:255], session=""),
            label=turn.label,
            emit=emit,
            parent=turn,
            inside=call_id,
            share=spec.max_turns,
        )
        # A skill that narrows the parent narrows whoever works for it.
        child.rules = child.rules & turn.rules.model_copy(update={"allow": _inner(turn.rules, self._parts[kind])})
        for skill in self._parts[kind].preloaded:
            skill.verify()
            turn.record.note("skill.activated", {"skill": skill.name, "digest": skill.digest, "subagent": kind})
            child.narrow(narrowing(skill), skill=skill.name)
        detail = {"subagent": kind, "prompt_sha256": digest(prompt.encode()), "label": str(turn.label)}
        turn.record.note("subagent.started", {**detail, "resumed": frame is not None})
        outcome = "failed"
        try:
            text, outcome = await child.work(prompt, frame), "answered"
        except Exhausted as limit:
            text, outcome = f"The subagent was stopped: {limit.reason}. It got this far: {child.reached}", "stopped"
        except Paused:
            outcome = "paused"
            turn.record.note("subagent.paused", {"subagent": kind})
            turn.waits_inside(call_id, child.frame)
            raise Waits from None
        finally:
            child.record.left(outcome, label=child.label)
        ended = {"subagent": kind, "outcome": outcome, "result_sha256": digest(text.encode())}
        turn.record.note("subagent.returned", {**ended, "label": str(child.label)})
        return text

    def __repr__(self) -> str:
        return f"<tool delegate to {', '.join(self._specs)}>"


def _inner(rules: ToolRules, parts: Parts) -> frozenset[str] | None:
    """The parent's allow-list, which need not name tools that only a child has for its own skills."""
    return (
        None if rules.allow is None else rules.allow | {t.name for t in parts.tools if getattr(t, "resumable", False)}
    )


def _parts_of(spec: SubagentSpec, *, parent: Parts, skills: Sequence[Skill], sandbox: Sandbox | None) -> Parts:
    by_name = {skill.name: skill for skill in skills}
    if missing := sorted(set(spec.skills) - set(by_name)):
        raise ConfigError(f"the subagent {spec.name} asks for skills that are not there: {', '.join(missing)}")
    loaded = tuple(by_name[name] for name in spec.skills)
    instructions = "\n\n".join([spec.instructions, *(f"Skill {skill.name}\n\n{skill.body}" for skill in loaded)])
    # The tools for skills: of those that the file names, which are active from the start.
    own = tuple(tool for tool in skill_tools(loaded, sandbox=sandbox) if tool.name != "activate_skill")
    return replace(
        parent,
        name=spec.name,
        instructions=instructions,
        model=spec.model or parent.model,
        tools=(*_tools_of(spec, parent.tools), *own),
        memory=None,
        skills=(),
        preloaded=loaded,
    )


def _tools_of(spec: SubagentSpec, tools: Sequence[Tool]) -> tuple[Tool, ...]:
    """What the parent has and the file names. A name that is not there is an error, never a smaller child."""
    offered = [tool for tool in tools if not getattr(tool, "resumable", False)]
    if spec.tools is not None:
        if missing := sorted(set(spec.tools) - {tool.name for tool in offered}):
            raise ConfigError(
                f"the subagent {spec.name} asks for tools that its agent has not: {', '.join(missing)}",
                hint=f"the agent has {', '.join(tool.name for tool in offered) or 'none'}",
            )
        offered = [tool for tool in offered if tool.name in spec.tools]
    if spec.mcp_servers is not None:
        servers = {str(getattr(tool, "server", "")) for tool in tools} - {""}
        if missing := sorted(set(spec.mcp_servers) - servers):
            raise ConfigError(f"the subagent {spec.name} asks for MCP servers that are not there: {', '.join(missing)}")
        offered = [tool for tool in offered if getattr(tool, "server", None) in (None, *spec.mcp_servers)]
    return tuple(offered)
