"""How a model takes up a skill: its instructions on demand, its resources after that, its scripts in the sandbox."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from aibox.agents.code import handed
from aibox.agents.dispatch import Refused, validated
from aibox.agents.events import SkillActivated
from aibox.agents.skills import Skill, narrowing
from aibox.agents.turn_state import TurnState
from aibox.sandbox.sandbox import Sandbox
from aibox.types import Scope

MAX_RESOURCE_CHARS = 64_000
_INTERPRETERS = {".py": "python3 -I -B", ".sh": "bash --noprofile --norc"}


class SkillTool:
    """What the three tools share. They need the turn, which decides what is allowed and knows what is active."""

    side_effects = False
    resumable = True
    name = ""
    description = ""

    def __init__(self, skills: Sequence[Skill]) -> None:
        self._skills = {skill.name: skill for skill in skills}

    @property
    def schema(self) -> Mapping[str, Any]:
        return self._schema()

    async def call(self, arguments: Mapping[str, Any], *, scope: Scope) -> str:  # noqa: ARG002 - Tool's face
        raise Refused("Skills can be used inside a turn only.", "invalid")

    def _schema(self, **more: Any) -> dict[str, Any]:
        names = {"type": "string", "enum": sorted(self._skills), "description": "The skill's name."}
        properties = {"name": names, **more}
        return {
            "type": "object",
            "properties": properties,
            "required": [name for name, value in properties.items() if "default" not in value],
            "additionalProperties": False,
        }

    def _find(self, arguments: Mapping[str, Any], turn: TurnState, *, active: bool) -> Skill:
        skill = self._skills.get(validated(self, arguments, "name"))
        # One that the policy hides is told apart from one that is not there by nobody.
        if skill is None or f"skill:{skill.name}" in turn.policy.tools.deny:
            raise Refused(f"There is no such skill. Known are {', '.join(sorted(self._skills))}.", "invalid")
        if active and skill.name not in turn.skills:
            raise Refused(f"Activate the skill {skill.name} first.", "invalid")
        return skill


class ActivateSkill(SkillTool):
    """`activate_skill(name)`: the instructions of a skill, and from then on only the tools that it allows."""

    name = "activate_skill"
    description = "Get the instructions of a skill before doing the kind of task that it is for."

    async def call_in(self, arguments: Mapping[str, Any], *, call_id: str, turn: TurnState) -> str:  # noqa: ARG002
        skill = self._find(arguments, turn, active=False)
        if skill.name in turn.skills:
            return f"The skill {skill.name} is active already; its instructions are above."
        # Read again where it counts: what is activated is what was validated, or nothing.
        skill.verify()
        allowed = skill.tools()
        detail: dict[str, Any] = {"skill": skill.name, "digest": skill.digest}
        if allowed is not None:
            detail["allowed_tools"] = sorted(allowed)
        turn.record.note("skill.activated", detail)
        turn.narrow(narrowing(skill), skill=skill.name)
        turn.emit(SkillActivated(skill.name, skill.digest))
        listed = "\n".join(f"- {name}" for name in skill.resources)
        resources = f"\n\nResources, for read_skill_resource:\n{listed}" if listed else ""
        return f"Skill {skill.name}\n\n{skill.body}{resources}"


class ReadSkillResource(SkillTool):
    """`read_skill_resource(name, path)`: a file of an active skill."""

    name = "read_skill_resource"
    description = "Read a file that belongs to an active skill."

    @property
    def schema(self) -> Mapping[str, Any]:
        return self._schema(path={"type": "string", "description": "As listed when the skill was activated."})

    async def call_in(self, arguments: Mapping[str, Any], *, call_id: str, turn: TurnState) -> str:  # noqa: ARG002
        skill = self._find(arguments, turn, active=True)
        data = skill.read(validated(self, arguments, "path"))
        try:
            return data.decode("utf-8")[:MAX_RESOURCE_CHARS]
        except UnicodeDecodeError:
            return "That file is not text."


class RunSkillScript(SkillTool):
    """`run_skill_script(name, path, arguments)`: a script of an active skill, in a sandbox session of its own."""

    name = "run_skill_script"
    description = "Run a script (.py or .sh) that belongs to an active skill, in an isolated sandbox without network."

    def __init__(self, skills: Sequence[Skill], *, sandbox: Sandbox) -> None:
        super().__init__(skills)
        self._sandbox = sandbox

    @property
    def schema(self) -> Mapping[str, Any]:
        return self._schema(
            path={"type": "string", "description": "As listed when the skill was activated."},
            arguments={"type": "array", "items": {"type": "string"}, "default": []},
        )

    async def call_in(self, arguments: Mapping[str, Any], *, call_id: str, turn: TurnState) -> str:
        skill = self._find(arguments, turn, active=True)
        path = validated(self, arguments, "path")
        interpreter = _INTERPRETERS.get(PurePosixPath(path).suffix)
        given = arguments.get("arguments") or []
        if interpreter is None or path not in skill.resources:
            raise Refused(f"{path} is not a script of {skill.name}: .py or .sh, as listed.", "invalid")
        if not isinstance(given, list) or not all(isinstance(value, str) for value in given):
            raise Refused("Wrong arguments: arguments must be a list of texts. Correct them and try again.", "invalid")
        async with self._sandbox.session(scope=turn.scope) as session:
            for name in skill.resources:
                await session.write(f"{skill.name}/{name}", skill.read(name))
            words = " ".join(_quoted(word) for word in [path, *given])
            done = await session.bash(f"cd {_quoted(skill.name)} && exec {interpreter} {words}")
            return await handed(session, done, tool=self.name, call_id=call_id, turn=turn)


def _quoted(word: str) -> str:
    return "'" + word.replace("'", "'\\''") + "'"


def skill_tools(skills: Sequence[Skill], *, sandbox: Sandbox | None) -> tuple[SkillTool, ...]:
    """The tools for these skills: none without skills, none that runs scripts without a sandbox."""
    if not skills:
        return ()
    tools: tuple[SkillTool, ...] = (ActivateSkill(skills),)
    if any(skill.resources for skill in skills):
        tools += (ReadSkillResource(skills),)
    if sandbox is not None and any(PurePosixPath(n).suffix in _INTERPRETERS for s in skills for n in s.resources):
        tools += (RunSkillScript(skills, sandbox=sandbox),)
    return tools
