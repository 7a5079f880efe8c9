"""`/v1/guard`: what would be decided about a text, and by which level of the policy."""

from __future__ import annotations

from aibox.agents.evidence import TurnRecord
from aibox.box import Box
from aibox.policy.levels import Effective, effective
from aibox.policy.policy import Policy
from aibox.server.principal import Principal
from aibox.server.route import ASKS, route
from aibox.server.shapes import guard as shapes
from aibox.types import Label


class GuardAPI:
    """The guardrail of the box, as it holds for the caller's tenant."""

    def __init__(self, box: Box) -> None:
        self._box = box

    @route("POST", "/v1/guard/check", roles=ASKS, examples=[{"text": "I am at maria@example.org", "where": "input"}])
    async def check(self, who: Principal, body: shapes.TextToCheck) -> shapes.Decided:
        """What is decided about a text, and why. What was found is recorded as in a turn, without the text."""
        label = None if body.label is None else Label.of(body.label)
        verdict = await self._box.guardrail.check(body.text, where=body.where, scope=who.scope, label=label)
        TurnRecord(self._box.audit, scope=who.scope).decided(verdict)
        because = [
            shapes.Because(
                check=reason.finding.check,
                rule=reason.finding.rule,
                score=reason.finding.score,
                span=reason.finding.span,
                decision=str(reason.decision),
                levels=list(reason.levels),
                reason=reason.finding.reason,
            )
            for reason in levels_of(self._box, who.scope.tenant).explain(verdict)
        ]
        return shapes.Decided(
            decision=str(verdict.decision),
            blocked=verdict.blocked,
            text=verdict.text,
            where=verdict.where,
            because=because,
            policy=verdict.policy_digest,
        )

    @route("GET", "/v1/guard/policy", roles=ASKS)
    async def policy(self, who: Principal) -> shapes.PolicyShown:
        """The policy that holds for the caller's tenant, and the levels that it is joined from."""
        return policy_shown(self._box, who.scope.tenant)


def levels_of(box: Box, tenant: str) -> Effective:
    """The policies that hold for a tenant, by name."""
    levels = box.levels
    own: dict[str, Policy] = {}
    if tenant in levels.shut:
        own["shut"] = levels.tenants[tenant]
    elif tenant in levels.files:
        own["tenant"] = levels.files[tenant]
    return effective({"platform": box.policy, **own, **levels.written.get(tenant, {})})


def policy_shown(box: Box, tenant: str) -> shapes.PolicyShown:
    joined = levels_of(box, tenant)
    levels = [shapes.Level(name=name, policy=one.name, digest=one.digest) for name, one in joined.levels]
    # GPUs are granted by tenant: what others have is not this one's to know.
    shown = joined.policy.model_dump(mode="json", exclude={"gpus"})
    return shapes.PolicyShown(digest=joined.policy.digest, levels=levels, policy=shown)
