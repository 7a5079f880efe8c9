"""OpenRouter: the one backend that is always outside. It asks for providers that keep and train on nothing.

https://openrouter.ai/docs/features/provider-routing
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aibox.chat import Capability, ChatRequest, ModelInfo, Price
from aibox.errors import ConfigError
from aibox.inference.capabilities import Api
from aibox.inference.openai_compatible import OpenAICompatible, Secret
from aibox.inference.transport import Transport
from aibox.inference.wire import TOTAL_S
from aibox.types import Scope

BASE_URL = "https://openrouter.ai/api/v1"
PROVIDER: Mapping[str, Any] = {
    "data_collection": "deny",
    "zdr": True,
    "require_parameters": True,
    "allow_fallbacks": False,
}
"""Nobody who stores or trains on prompts, and nobody else when the chosen one fails."""

# What would send the text on to others than the named model: other models, web search, file parsers, and who asked.
_LEFT_OUT = ("models", "route", "plugins", "web_search_options", "transforms", "user", "session_id", "metadata")


class OpenRouter(OpenAICompatible):
    """Models of other people's, by `author/slug`, behind the door. `models` are those that may be asked for.

    `only` names the providers that may serve them; `provider` changes OpenRouter's provider preferences from
    `PROVIDER`, and wins over what a request says. No attribution headers are sent. An empty `only` leaves the choice to
    OpenRouter, within `provider`.
    """

    def __init__(
        self,
        *,
        api_key: str | Secret,
        models: Sequence[str],
        only: Sequence[str] = (),
        provider: Mapping[str, Any] | None = None,
        name: str = "openrouter",
        base_url: str = BASE_URL,
        prices: Mapping[str, Price] | None = None,
        timeout_s: float = 300.0,
        total_s: float = TOTAL_S,
        transport: Transport | None = None,
    ) -> None:
        if not models:
            raise ConfigError("OpenRouter needs the models that may be asked for", hint='models=["author/slug"]')
        super().__init__(
            base_url,
            name=name,
            api_key=api_key,
            models=models,
            external=True,
            timeout_s=timeout_s,
            total_s=total_s,
            transport=transport,
        )
        self._provider = {**PROVIDER, **({"only": list(only)} if only else {}), **(provider or {})}
        self._prices = dict(prices or {})

    def outgoing(self, api: Api, request: ChatRequest, *, scope: Scope) -> ChatRequest:  # noqa: ARG002 - as its base
        """With the operator's preferences about providers, and without what would take the text elsewhere."""
        asked = request.body.get("provider")
        provider = {**(asked if isinstance(asked, Mapping) else {}), **self._provider}
        return request.with_fields(**dict.fromkeys(_LEFT_OUT), provider=provider)

    def _info(self, entry: Mapping[str, Any]) -> ModelInfo:
        info = super()._info(entry)
        capabilities: frozenset[Capability] | None = None
        return ModelInfo(
            id=info.id,
            backend=info.backend,
            external=True,
            weights=info.weights,
            capabilities=capabilities,
            price=self._prices.get(info.id),
        )
