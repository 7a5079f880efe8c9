"""The door for whatever is not a model call: which host, under which label, on record before anything is sent."""

from __future__ import annotations

import uuid

from aibox.agents.evidence import digest
from aibox.agents.turn_state import TurnState
from aibox.errors import EgressError


async def passage(host: str, *, what: str, text: str | bytes, turn: TurnState) -> str:
    """Return when `text` may go to `host` for this turn; the permission is then durable. Raises EgressError.

    What is returned is a random id of this passage alone, 32 hexadecimal digits, which stands in its entry beside the
    request's. It goes along in place of that one, which a caller may have chosen, and which would tell two hosts that
    they serve the same request.
    """
    rules, label = turn.policy.egress, turn.label
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    id_ = uuid.uuid4().hex
    detail = {
        "passage": id_,
        "host": host[:255],
        "tool": what,
        "label": str(label),
        "policy": turn.policy.digest,
        "bytes": len(data),
        "sha256": digest(data),
    }
    reason = ""
    if not rules.serves(turn.scope.tenant):
        reason = "the door is shut for this tenant"
    elif not rules.allows_host(host):
        reason = f"the policy does not open the door for {host[:80]}"
    elif not label <= rules.ceiling:
        reason = f"the turn is marked {label}, and the door lets out {rules.ceiling} at most"
    if reason:
        await turn.record.append("egress.denied", {**detail, "reason": reason})
        raise EgressError(reason, hint="egress.hosts and egress.ceiling in the policy")
    await turn.record.append("egress.allowed", detail)
    return id_
