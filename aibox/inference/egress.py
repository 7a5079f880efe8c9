"""The door: the one place where text may leave the box. Every attempt is on record before anything is sent.

What is recorded is who, where to, how secret, how much and a digest; never a text.
"""

from __future__ import annotations

import hashlib

from aibox.chat import ChatRequest
from aibox.errors import ConfigError, EgressError
from aibox.inference.wire import encode
from aibox.policy.policy import Policy
from aibox.protocols import Backend, Recorder
from aibox.types import Scope


class Egress:
    """Decides under one policy whether a request may go to an external backend, and records what it decided."""

    def __init__(self, policy: Policy | None, *, recorder: Recorder | None = None) -> None:
        self._policy = policy
        self._recorder = recorder

    def admit(self, backend: Backend) -> None:
        """Whether a backend may be wired at all: raises ConfigError for an external one behind a shut door."""
        if not backend.external:
            return
        if self._policy is None or not self._policy.egress.open:
            raise ConfigError(
                f"backend {backend.name!r} is external and the policy's door is shut",
                hint=f'egress.models = ["{backend.name}/MODEL"] in the policy opens it for a model',
            )
        if self._recorder is None:
            raise ConfigError(
                f"backend {backend.name!r} is external: that needs an audit chain, and there is none",
                hint="Router(..., audit=AuditChain(...))",
            )

    async def check(self, backend: Backend, model: str, *, request: ChatRequest, scope: Scope) -> None:
        """Return when `request` may be sent to `backend`; the permission is then durable on record.

        Raises EgressError when it may not, and whatever the recorder raises when that cannot be recorded.
        """
        if not backend.external:
            return
        self.admit(backend)
        policy, recorder = self._policy, self._recorder
        assert policy is not None
        assert recorder is not None
        target = f"{backend.name}/{model}"
        body = encode(request.body)
        detail = {
            "model": target,
            "host": str(getattr(backend, "host", "")) or backend.name,
            "label": str(request.label),
            "policy": policy.digest,
            "bytes": len(body),
            "sha256": hashlib.sha256(body).hexdigest(),
        }
        refusal = _refusal(policy, target, request)
        if refusal is None:
            await recorder.append("egress.allowed", scope=scope, detail=detail)
            return
        await recorder.append("egress.denied", scope=scope, detail={**detail, "reason": refusal.message})
        raise refusal


def _refusal(policy: Policy, target: str, request: ChatRequest) -> EgressError | None:
    rules, label = policy.egress, request.label
    if not rules.allows(target):
        return EgressError(
            f"the policy does not open the door for {target}",
            hint=f'add "{target}" to egress.models in the policy, or ask for a local model',
        )
    if not label <= rules.ceiling:
        why = f", because of {', '.join(label.why)}" if label.why else ""
        return EgressError(
            f"the text is marked {label}{why}, and the door lets out {rules.ceiling} at most",
            hint="ask for a local model, or raise egress.ceiling in the policy",
        )
    return None
