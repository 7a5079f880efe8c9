"""What checks texts, and what conceals at the door, as settings and the policies in force have them."""

from __future__ import annotations

from collections.abc import Callable

from aibox.guardrails.constitution import Constitution
from aibox.guardrails.guardrail import Guardrail
from aibox.guardrails.outgoing import Outgoing, personal
from aibox.guardrails.pseudonyms import Pseudonyms
from aibox.levels import Levels, load_policy
from aibox.protocols import Backend, Embedder
from aibox.settings import Settings


def make_guardrail(
    settings: Settings, levels: Levels, *, pseudonyms: Pseudonyms, embedder: Embedder, router: Callable[[], Backend]
) -> Guardrail:
    """Raises ConfigError as Guardrail does. The router is asked for only when a text is judged by a model."""
    return Guardrail(
        levels.policy,
        pseudonyms=pseudonyms,
        tenant_policies=levels.tenants,
        shadow=None if settings.shadow_policy is None else load_policy(settings.shadow_policy),
        judge=Constitution(router),
        embedder=embedder,
    )


def make_concealer(levels: Levels, *, pseudonyms: Pseudonyms) -> Outgoing:
    """Finds names by the model too, where the policy of everybody or of the call asks for that."""
    return Outgoing(*personal(levels.policy, *levels.files.values()), pseudonyms=pseudonyms)
