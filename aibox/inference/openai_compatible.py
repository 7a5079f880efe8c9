"""Any server that speaks OpenAI's Chat Completions. Where it stands decides whether it is outside: in doubt it is.

An address of this machine or of a private network, and a name that only a private network resolves, are inside.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from typing import Any, Protocol
from urllib.parse import urlsplit

from aibox.chat import Capability, ChatRequest, Chunk, Completion, Health, ModelInfo, Price, Weights
from aibox.errors import AIBoxError, ConfigError
from aibox.inference.addresses import is_inside
from aibox.inference.capabilities import Api
from aibox.inference.readable import CHAT
from aibox.inference.streams import Take, iterated
from aibox.inference.transport import Transport
from aibox.inference.wire import TOTAL_S, Wire
from aibox.types import Scope

PATHS: Mapping[Api, str] = {
    "chat": CHAT,
    "completions": "/completions",
    "embeddings": "/embeddings",
    "responses": "/responses",
    "rerank": "/rerank",
}

_MORE = ("n", "n_cmpl", "best_of")
"""Fields that ask for several answers, of which one may end long before the next."""


class Secret(Protocol):
    """A secret that hides itself, such as pydantic's SecretStr."""

    def get_secret_value(self) -> str: ...


class OpenAICompatible:
    """A model server at `base_url`, such as `http://10.0.0.7:8000/v1`.

    `models` names what to offer where the server does not list it. `external=None` lets the address decide; an
    operator who knows better says True or False. `tools=False` says that the server does not enforce `tool_choice`: a
    Router then emulates tools. `capabilities` and `price` are those of its models, where the server does not say.
    `timeout_s` is the longest silence to bear, before the first piece and between two (behind the last, where only what
    it used may come, 2 s); a whole answer may take `total_s`. `transport` has certificates, a proxy, and the networks
    that the host may be in: without them a name of the inside must resolve to the inside, and one of the outside to the
    public internet.

    Raises ConfigError for a URL or key that cannot be right; nothing is connected until the first call.
    """

    def __init__(
        self,
        base_url: str,
        *,
        name: str | None = None,
        api_key: str | Secret | None = None,
        models: Sequence[str] | None = None,
        external: bool | None = None,
        tools: bool = True,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 300.0,
        total_s: float = TOTAL_S,
        capabilities: Collection[Capability] | None = None,
        price: Price | None = None,
        transport: Transport | None = None,
    ) -> None:
        self.base_url, self.host, port = _split(base_url)
        self.name = name or re.sub(r"[^A-Za-z0-9._-]+", "-", f"{self.host}:{port}" if port else self.host).strip("-")
        self.external = not is_inside(self.host) if external is None else external
        self.tools = tools
        self._models = None if models is None else tuple(models)
        key = api_key or ""
        key = key if isinstance(key, str) else key.get_secret_value()
        sent = {**(headers or {}), **({"Authorization": f"Bearer {key}"} if key else {})}
        if any(not text.isprintable() or not text.isascii() for pair in sent.items() for text in pair):
            raise ConfigError(
                f"a header or the api_key of backend {self.name!r} holds characters that cannot be sent",
                hint="a key read from a file often ends in a line break",
            )
        self._capabilities = None if capabilities is None else frozenset(capabilities)
        self._price = price
        transport = transport or Transport()
        self._wire = Wire(
            self.base_url,
            name=self.name,
            headers=sent,
            secret=key,
            timeout_s=timeout_s,
            total_s=total_s,
            transport=transport,
            rule=transport.rule(external=self.external, declared=external is not None),
        )

    async def models(self) -> tuple[ModelInfo, ...]:
        """What was configured, else what the server lists. Raises BackendError when it cannot say."""
        if self._models is not None:
            return tuple(self._info({"id": model}) for model in self._models)
        return tuple(self._info(entry) for entry in await self._wire.models())

    def outgoing(self, api: Api, request: ChatRequest, *, scope: Scope) -> ChatRequest:  # noqa: ARG002 - for subclasses
        """The request with what this kind of server needs to be told. Doing it twice changes nothing more."""
        return request

    async def complete(self, request: ChatRequest, *, scope: Scope) -> Completion:
        """One whole answer. Raises BackendError."""
        return await self.post("chat", request, scope=scope)

    def stream(self, request: ChatRequest, *, scope: Scope) -> AsyncIterator[Chunk]:
        """The answer in chunks as they arrive; leaving the iteration tells the server to stop. Raises BackendError."""
        return self.events("chat", request, scope=scope)

    async def post(self, api: Api, request: ChatRequest, *, scope: Scope) -> Completion:
        """One whole answer of any of the server's APIs. Raises BackendError."""
        sent = self.outgoing(api, request, scope=scope)
        if "stream" in sent.body or "stream_options" in sent.body:
            sent = sent.with_fields(stream=None, stream_options=None)
        came = await self._wire.complete(sent.encoded(), path=PATHS[api], **self._ids(scope))
        return Completion(came[0], self.name, self._weights(), came)

    def events(self, api: Api, request: ChatRequest, *, scope: Scope) -> AsyncIterator[Chunk]:
        """As `post`, streamed."""
        return iterated(lambda take: self.stream_to(api, request, take, scope=scope))

    async def stream_to(self, api: Api, request: ChatRequest, take: Take, *, scope: Scope) -> None:
        """As `events`, given to `take`: those that arrived together, together."""
        sent = self.outgoing(api, request, scope=scope)
        if sent.body.get("stream") is not True:
            sent = sent.with_fields(stream=True)
        path, weights = PATHS[api], self._weights()
        alone = all(sent.body.get(key) in (None, 1) for key in _MORE) and isinstance(sent.body.get("prompt", ""), str)
        await self._wire.stream(sent.encoded(), take, path=path, weights=weights, alone=alone, **self._ids(scope))

    async def health(self) -> Health:
        """Whether the server answers now. Never raises."""
        try:
            await self._wire.ask(self._health_url())
        except AIBoxError as error:
            return Health(ok=False, detail=str(error))
        return Health(ok=True, detail=f"{self.base_url} answers")

    async def close(self) -> None:
        await self._wire.close()

    def _ids(self, scope: Scope) -> dict[str, str]:
        # A caller may have chosen them: they are text, and text passes the door in the request alone.
        return {} if self.external else {"correlation": scope.correlation, "trace": scope.trace}

    def _health_url(self) -> str:
        return f"{self.base_url}/models"

    def _weights(self) -> Weights:
        return Weights()

    def _info(self, entry: Mapping[str, Any]) -> ModelInfo:
        context = entry.get("max_model_len") or entry.get("context_length")
        return ModelInfo(
            id=entry["id"],
            backend=self.name,
            external=self.external,
            tools=self.tools,
            context_tokens=context if isinstance(context, int) else None,
            weights=self._weights(),
            capabilities=self._capabilities,
            price=self._price,
        )

    def __repr__(self) -> str:
        where = "external" if self.external else "local"
        return f"{type(self).__name__}({self.base_url!r}, name={self.name!r}, {where})"


def _split(base_url: str) -> tuple[str, str, int | None]:
    """The URL without a slash at its end, its host and its port. Raises ConfigError."""
    try:
        parts = urlsplit(base_url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or parts.scheme not in ("http", "https") or parts.query or parts.fragment or not base_url.isprintable():
        raise ConfigError(f"not a base URL: {base_url[:100]!r}", hint="such as http://10.0.0.7:8000/v1")
    if parts.username is not None or parts.password is not None:
        raise ConfigError("a base URL must not hold a password", hint="give it as api_key or in headers")
    return base_url.rstrip("/"), host, port
