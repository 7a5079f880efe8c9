"""Which agent it was: the digests of all that decides how it behaves. Two runs of one subject can be compared."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from aibox.agents.agent import Agent
from aibox.audit import canonical
from aibox.audit.receipt import ReceiptEntry
from aibox.evals.case import definite


def digest_of(value: Any) -> str:
    """`sha256:` and the SHA-256 of a value's canonical JSON."""
    return "sha256:" + hashlib.sha256(canonical.dumps(definite(value))).hexdigest()


@dataclass(frozen=True, slots=True)
class Subject:
    """An agent, by digests. `weights` are those that answered, as the evidence has them: empty when unrecorded."""

    agent: str
    model: str
    prompt: str
    tools: str
    skills: str
    policy: str
    settings: str
    weights: tuple[tuple[str, str, str], ...] = ()
    """Model, how well its weights are known (verified, declared, unknown), and their SHA-256."""

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        values = {name: getattr(self, name) for name in _FIELDS}
        return {**values, "weights": [list(item) for item in self.weights]}

    @classmethod
    def read(cls, value: dict[str, Any]) -> Subject:
        weights = tuple((str(a), str(b), str(c)) for a, b, c in value["weights"])
        return cls(**{name: str(value[name]) for name in _FIELDS}, weights=weights)

    @property
    def digest(self) -> str:
        return digest_of(self.as_dict())

    def changes(self, other: Subject) -> tuple[str, ...]:
        """What differs from another subject, by name."""
        return tuple(name for name in (*_FIELDS, "weights") if getattr(self, name) != getattr(other, name))


_FIELDS = ("agent", "model", "prompt", "tools", "skills", "policy", "settings")


def subject_of(agent: Agent, entries: Iterable[ReceiptEntry] = ()) -> Subject:
    """The subject that an agent is. `entries` are the evidence of its turns, for the weights that answered."""
    parts = agent.parts
    tools = [{"name": t.name, "description": t.description, "schema": dict(t.schema)} for t in parts.tools]
    answered = [entry.detail for entry in entries if entry.kind == "model.answered"]
    return Subject(
        agent=parts.name,
        model=parts.model,
        prompt=digest_of(parts.instructions),
        tools=digest_of(sorted(tools, key=lambda tool: str(tool["name"]))),
        skills=digest_of([[skill.name, skill.digest] for skill in (*parts.skills, *parts.preloaded)]),
        policy=parts.policy.digest,
        settings=digest_of(dict(parts.settings)),
        weights=tuple(sorted({(str(d["model"]), str(d["weights"]), str(d["weights_sha256"])) for d in answered})),
    )
