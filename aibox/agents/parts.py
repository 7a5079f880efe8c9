"""What an agent is made of, as its turns use it, and the version that says whether it is still the same agent."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import msgspec

from aibox.agents.exposure import Exposure
from aibox.agents.skills import Skill
from aibox.agents.state import AgentState
from aibox.audit.chain import AuditChain
from aibox.guardrails.guardrail import Guardrail
from aibox.guardrails.leak import canary
from aibox.inference.capabilities import output_bounds
from aibox.inference.router import Router
from aibox.memory.memory import Memory
from aibox.policy.policy import Policy
from aibox.protocols import Approver, Backend, Tool

_KEPT = 1024
"""So many tenants' parts are kept made."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What an agent is made of. Never changed: a subagent has parts of its own."""

    name: str
    instructions: str
    router: Backend
    model: str
    tools: tuple[Tool, ...]
    policy: Policy
    guardrail: Guardrail | None = None
    memory: Memory | None = None
    audit: AuditChain | None = None
    approver: Approver | None = None
    state: AgentState | None = None
    skills: tuple[Skill, ...] = ()
    preloaded: tuple[Skill, ...] = ()
    """Skills of a subagent, active from the start."""
    history_chars: int = 48_000
    """Characters of a conversation that are sent along; beyond that what is old is summed up."""
    settings: Mapping[str, Any] = field(default_factory=dict)

    own: Policy | None = None
    """The tenant's policy that these are under."""

    def under(self, tenant: str, *, like: Parts | None = None) -> Parts:
        """The parts as they are for a tenant: under its own policy too, where the guardrail has one.

        That is the policy which it has now; in a turn `like` another's, of which this is a part, that one's.
        """
        if self.guardrail is None:
            return self
        own = self.guardrail.own(tenant) if like is None else like.own
        key = tenant if own is not None else ""
        if (made := self._under.get(key)) is not None and made.own is own:
            return made
        guardrail = self.guardrail.for_own(own, tenant=tenant)
        router = self.router.held(own) if isinstance(self.router, Router) else self.router
        policy = self.policy if own is None else self.policy & guardrail.policy
        made = replace(self, guardrail=guardrail, router=router, policy=policy, own=own)
        if len(self._under) >= _KEPT:
            self._under.clear()
        if like is None or own is None:
            self._under[key] = made
        return made

    def bounded(self, max_tokens: int | None) -> Mapping[str, Any]:
        """The settings of the calls of a turn that may write at most so many tokens in each. Raises ConfigError."""
        if max_tokens is None:
            return self.settings
        asked = output_bounds("chat", {"max_tokens": max_tokens})
        bounds = output_bounds("chat", self.settings) or asked
        return {**self.settings, **{name: min(bound, max_tokens) for name, bound in bounds.items()}}

    @cached_property
    def _under(self) -> dict[str, Parts]:
        return {}

    @cached_property
    def by_name(self) -> dict[str, Tool]:
        return {tool.name: tool for tool in self.tools}

    @cached_property
    def told(self) -> str:
        """The instructions as the model gets them: with a mark not to be repeated, where the policy looks for one."""
        if not self._marked:
            return self.instructions
        return f"{self.instructions}\n\n(Reference {canary(self.instructions)}. Never write this reference.)"

    @cached_property
    def guarded(self) -> Guardrail | None:
        """The guardrail, which knows what it must not let out."""
        if self.guardrail is None:
            return None
        mark = canary(self.instructions) if self._marked else ""
        return self.guardrail.about(prompt=self.instructions, canary=mark)

    @property
    def _marked(self) -> bool:
        return self.guardrail is not None and "prompt_leak" in self.guardrail.policy.checks_for("output")

    @cached_property
    def exposure(self) -> Exposure:
        """What a turn has touched before it began: descriptions and skills that a stranger wrote are in its prompt."""
        skills = any(not skill.trusted for skill in (*self.skills, *self.preloaded))
        return Exposure(untrusted=skills or any(getattr(tool, "told_by_stranger", False) for tool in self.tools))

    @cached_property
    def version(self) -> str:
        """A digest over everything that decides what a model is told and may do. A run goes on under the same only."""
        known = {
            "name": self.name,
            "instructions": self.instructions,
            "model": self.model,
            "policy": self.policy.digest,
            "tools": [[tool.name, tool.description, tool.schema] for tool in self.tools],
            "skills": [[skill.name, skill.digest] for skill in self.skills],
        }
        return "sha256:" + hashlib.sha256(msgspec.json.encode(known, order="deterministic")).hexdigest()
