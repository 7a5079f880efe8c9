"""The door: the one place where text may leave the box. Every attempt is on record before anything is sent.

What is recorded is who, where to, how secret, how much and a digest; never a text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from aibox.chat import Agreed, ChatRequest, ModelInfo, Usage
from aibox.errors import ApprovalError, ConfigError, EgressError
from aibox.inference.disguise import Concealer, Disguise
from aibox.inference.registry import Outside
from aibox.inference.replica import Replica
from aibox.policy.policy import Policy
from aibox.protocols import Backend, Recorder
from aibox.types import Scope


@dataclass(frozen=True, slots=True)
class Passage:
    """A permission for one attempt, durable on record. Only the door makes one, and nothing is sent outside without.

    `request` is what may be sent: of these bytes the digest was recorded.
    """

    replica: Replica
    model: ModelInfo
    request: ChatRequest
    disguise: Disguise | None
    detail: Mapping[str, Any] = field(repr=False)


class Egress:
    """Decides under one policy whether a request may go to an external backend, and records what it decided.

    `concealer` pseudonymises personal data on the way out, where the policy asks for it.
    """

    def __init__(
        self, policy: Policy | None, *, recorder: Recorder | None = None, concealer: Concealer | None = None
    ) -> None:
        self._policy = policy
        self.recorder = recorder
        self.concealer = concealer

    def use(self, policy: Policy | None, concealer: Concealer | None) -> None:
        """Decide under another policy from now on."""
        self._policy, self.concealer = policy, concealer

    def admit(self, backend: Backend) -> None:
        """Whether a backend may be wired at all: raises ConfigError for an external one behind a shut door."""
        if not backend.external:
            return
        if self._policy is None or not self._policy.egress.open:
            raise ConfigError(
                f"backend {backend.name!r} is external and the policy's door is shut",
                hint=f'egress.models = ["{backend.name}/MODEL"] in the policy opens it for a model',
            )
        if self.recorder is None:
            raise ConfigError(
                f"backend {backend.name!r} is external: that needs an audit chain, and there is none",
                hint="Router(..., audit=AuditChain(...))",
            )
        if self._policy.egress.pseudonymise and self.concealer is None:
            raise ConfigError(
                "the policy lets personal data out as pseudonyms only, and nothing here can make them",
                hint="Router(..., concealer=...), or open the router through a box",
            )

    async def open(
        self, route: Outside, request: ChatRequest, *, scope: Scope, policy: Policy | None = None, reason: str = ""
    ) -> Passage:
        """The permission to send `request` by `route`, which is then durable on record.

        `policy` narrows the door's own. `reason` says why this attempt is made when it is not the first. Raises
        EgressError when it may not be sent, and whatever the recorder raises when that cannot be recorded.
        """
        backend, model = route.replica.backend, route.model
        self.admit(backend)
        own, recorder = self._policy, self.recorder
        assert own is not None
        assert recorder is not None
        rules = own if policy is None else own & policy
        target = f"{backend.name}/{model.id}"
        host = str(getattr(backend, "host", "")) or backend.name
        refusal = _refusal(rules, target, request, scope)
        yes: Agreed | None = None
        if refusal is None and rules.egress.asks(target):
            yes = next((one for one in request.agreed if _covers(one, target, request, rules)), None)
            if yes is None:
                refusal = ApprovalError(
                    f"the policy lets text out to {target} when a person has agreed, and nobody has",
                    hint="an agent with a state asks; else take the model out of egress.approve in the policy",
                    model=target,
                    host=host,
                    policy=rules.digest,
                )
        disguise = None
        if refusal is None and rules.egress.pseudonymise and self.concealer is None:
            refusal = EgressError(
                "personal data may leave as pseudonyms only, and nothing here can make them",
                hint="Router(..., concealer=...), or open the router through a box",
            )
        if refusal is None and rules.egress.pseudonymise:
            assert self.concealer is not None
            disguise = Disguise(self.concealer, scope=scope, policy=rules)
            try:
                request = await disguise.outward(request)
            except EgressError as error:
                refusal = error
        body = request.encoded()
        detail = {
            "model": target,
            "host": host,
            "label": str(request.label),
            "policy": rules.digest,
            "bytes": len(body),
            "sha256": hashlib.sha256(body).hexdigest(),
            "pseudonymised": disguise is not None,
            **({"attempt": reason} if reason else {}),
            **({"approval": yes.approval} if yes is not None else {}),
        }
        if refusal is not None:
            await recorder.append("egress.denied", scope=scope, detail={**detail, "reason": refusal.message})
            raise refusal
        entry = await recorder.append("egress.allowed", scope=scope, detail=detail)
        came_of = {"model": target, "allowed": entry.seq}
        return Passage(route.replica, model, request, disguise, came_of)

    def returned(self, passage: Passage, *, scope: Scope, sha256: str, size: int, usage: Usage, outcome: str) -> None:
        """Note what came back through the door: it becomes durable with the next entry that somebody waits for."""
        assert self.recorder is not None
        detail = {
            **passage.detail,
            "outcome": outcome,
            "bytes": size,
            "sha256": sha256,
            "input_tokens": usage.input_tokens,
            "output_tokens": usage.output_tokens,
            "cost_usd": "" if usage.cost_usd is None else f"{usage.cost_usd:.9f}",
        }
        self.recorder.note("egress.returned", scope=scope, detail=detail)


def _covers(yes: Agreed, target: str, request: ChatRequest, policy: Policy) -> bool:
    """A yes is to a model, up to a label, under a policy; to anything else it is none."""
    return (yes.model, yes.policy) == (target, policy.digest) and request.label <= yes.label


def _refusal(policy: Policy, target: str, request: ChatRequest, scope: Scope) -> EgressError | None:
    rules, label = policy.egress, request.label
    if not rules.allows(target):
        return EgressError(
            f"the policy does not open the door for {target}",
            hint=f'add "{target}" to egress.models in the policy, or ask for a local model',
        )
    if not rules.serves(scope.tenant):
        return EgressError(
            f"the policy does not open the door for the tenant {scope.tenant}",
            hint="add the tenant to egress.tenants in the policy, or ask for a local model",
        )
    if not label <= rules.ceiling:
        why = f", because of {', '.join(label.why)}" if label.why else ""
        return EgressError(
            f"the text is marked {label}{why}, and the door lets out {rules.ceiling} at most",
            hint="ask for a local model, or raise egress.ceiling in the policy",
        )
    return None
