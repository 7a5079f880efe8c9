"""Which fields of which entries may be read by everybody; all else about a person's turn is sealed under their key.

A kind that does not stand here is sealed whole. The open part holds decisions, counts and names of the operator's own
things. It never holds what a person said, nor a digest of it: a digest of a short text is the text, to whoever guesses.
"""

from __future__ import annotations

from collections.abc import Mapping

_TURN_ENDS = frozenset({"outcome", "code", "label", "entries"})
_ANSWERED = frozenset(
    {"model", "backend", "weights", "weights_sha256", "template_sha256", "finish_reason", "duration_us"}
    | {"input_tokens", "output_tokens"}
)
_STATE = frozenset({"outcome", "code"})
_DOOR = frozenset({"passage", "host", "model", "label", "policy", "bytes", "pseudonymised", "attempt", "purpose"})
_CAME = frozenset({"model", "allowed", "outcome", "bytes", "input_tokens", "output_tokens", "cost_usd"})
_HELP = frozenset({"subagent", "label", "resumed"})

OPEN: Mapping[str, frozenset[str]] = {
    "turn.started": frozenset({"agent", "policy", "label"}),
    # A call without an agent has one entry for its answer and its end.
    "turn.sealed": _TURN_ENDS | _ANSWERED,
    "turn.failed": _TURN_ENDS,
    "prompt.built": frozenset({"bytes", "messages", "label"}),
    "guardrail.decided": frozenset({"where", "decision", "policy", "findings", "findings_total", "shadow"}),
    "pseudonym.unmasked": frozenset({"count", "types"}),
    "pseudonym.refused": frozenset({"count", "types"}),
    "model.called": frozenset({"model", "bytes", "label"}),
    "model.answered": _ANSWERED,
    "tool.called": frozenset({"tool", "decision", "approval", "label", "side_effects"}),
    "tool.returned": frozenset({"tool", "duration_us", "label"}) | _STATE,
    "artifact.made": frozenset({"tool", "media_type", "checked", "label", "bytes"}) | _STATE,
    "memory.read": _STATE,
    "memory.written": _STATE,
    "documents.retrieved": _STATE,
    "egress.allowed": _DOOR,
    "egress.denied": _DOOR | {"reason"},
    "egress.returned": _CAME,
    "approval.asked": frozenset({"tool", "label"}),
    "approval.given": frozenset({"tool", "label"}),
    "approval.rejected": frozenset({"tool", "label"}),
    "skill.activated": frozenset({"skill", "digest", "subagent"}),
    "skill.installed": frozenset({"skill", "digest"}),
    "subagent.started": _HELP,
    "subagent.paused": _HELP,
    "subagent.returned": _HELP | _STATE,
    "session.compacted": _STATE | {"messages", "left_out"},
    "run.interrupted": _STATE,
    # A request to the server that leaves no other end: which route, what came of it, and what it had begun with.
    "request.ended": frozenset({"operation", "outcome", "entries"}),
    # The operator's own names: what was put into force, and why not.
    "config.reloaded": _STATE | {"policy", "backends", "issuers"},
    # Digests and outcomes of a report about the server itself.
    "isolation.verified": frozenset({"report", "outcome"}),
    # Before an administrator's act: which route, and on what. Keys of programs have random ids.
    "request.begun": frozenset({"operation", "key", "roles"}),
    # How much went from which store.
    "tenant.emptied": frozenset({"stores"}),
    # Digests of a report and of what it is about: nothing of a person, and of use to whoever checks the report.
    "eval.reported": frozenset({"report", "subject", "dataset", "outcome", "passed", "runs"}),
}

RATCHETED = "key.ratcheted"
ROTATED = "key.rotated"
RESTORED = "log.restored"
ERASED = "subject.erased"
PRUNED = "bodies.pruned"
HELD = "hold.set"
RELEASED = "hold.released"
OPERATOR = frozenset({RATCHETED, ROTATED, RESTORED, ERASED, PRUNED, HELD, RELEASED})
"""Acts on the log itself. They hold nothing of a person and are written in the open; only the chain writes them."""
