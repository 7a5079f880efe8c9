"""Answers a model call from the right backend, inside the policy. Local first, and never outside by itself."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aibox.chat import ChatRequest, Chunk, Completion, Health, ModelInfo
from aibox.errors import ConfigError
from aibox.inference import envelope
from aibox.inference.chunks import chunks_of, wants_usage
from aibox.inference.client import openai_client
from aibox.inference.egress import Egress
from aibox.inference.registry import DEFAULT, Registry, Route
from aibox.policy.policy import Policy
from aibox.protocols import Backend, Recorder
from aibox.types import Label, Scope

if TYPE_CHECKING:
    from aibox.inference.client import AsyncOpenAI

Messages = str | Sequence[Mapping[str, Any]] | ChatRequest
"""What can be asked: one user message, Chat Completions messages, or a whole request."""

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Router:
    """Several backends as one. It is a Backend itself.

    Models are asked for as `"default"` (the first model of the first local backend), an alias, `backend/model` or a
    bare model id, of which a local one comes first. Raises ConfigError when an external backend is given without an
    audit chain or without a policy that opens the door.
    """

    name = "router"

    def __init__(
        self,
        *backends: Backend,
        policy: Policy | None = None,
        audit: Recorder | None = None,
        aliases: Mapping[str, str] | None = None,
    ) -> None:
        if not backends:
            raise ConfigError("a router needs a backend", hint='Router(Embedded()), or Router(VLLM("http://..."))')
        names = [backend.name for backend in backends]
        for name in names:
            if not _NAME.fullmatch(name) or names.count(name) > 1:
                raise ConfigError(
                    f"backends need names of their own; {name!r} is taken or no name",
                    hint="name= takes letters, digits, '-', '_' and '.'",
                )
        self._policy = policy
        self._recorded = audit is not None
        self._egress = Egress(policy, recorder=audit)
        for backend in backends:
            self._egress.admit(backend)
        self._registry = Registry(backends, aliases=aliases)

    @property
    def external(self) -> bool:
        return any(backend.external for backend in self._registry.backends)

    async def models(self) -> tuple[ModelInfo, ...]:
        """The models of all backends that answer, local ones first. Raises BackendError when none does."""
        return await self._registry.all()

    async def complete(
        self,
        messages_or_request: Messages,
        *,
        model: str = DEFAULT,
        scope: Scope,
        label: Label | str | None = None,
        **openai_fields: Any,
    ) -> Completion:
        """One whole answer. Further keywords are fields of OpenAI's Chat Completions, such as `temperature`.

        `label` marks the text; on a ChatRequest it can only raise what the request is marked with. Raises ConfigError
        for a model that is not there, EgressError when the text may not leave, BackendError when the backend fails.
        """
        asked = _request(messages_or_request, model=model, label=label, fields=openai_fields)
        route = await self._registry.find(asked.model)
        return await self._complete(route, self._prepared(asked, route), scope=scope)

    async def stream(
        self,
        messages_or_request: Messages,
        *,
        model: str = DEFAULT,
        scope: Scope,
        label: Label | str | None = None,
        **openai_fields: Any,
    ) -> AsyncIterator[Chunk]:
        """The answer in chunks as they arrive; an emulated tool call comes when it is whole. Else as `complete`."""
        asked = _request(messages_or_request, model=model, label=label, fields=openai_fields)
        route = await self._registry.find(asked.model)
        prepared = self._prepared(asked, route)
        if not route.model.tools and envelope.demands_tool(prepared):
            for chunk in chunks_of(await self._complete(route, prepared, scope=scope), usage=wants_usage(asked)):
                yield chunk
            return
        prepared = _plain(prepared, route).with_fields(stream=True, stream_options=asked.body.get("stream_options"))
        await self._egress.check(route.backend, route.model.id, request=prepared, scope=scope)
        chunks = route.backend.stream(prepared, scope=scope)
        try:
            async for chunk in chunks:
                yield chunk
        finally:
            # A generator that nobody closes would hold its connection until it is collected.
            if (close := getattr(chunks, "aclose", None)) is not None:
                await close()

    def openai(self, *, scope: Scope, label: Label | str | None = None) -> AsyncOpenAI:
        """An OpenAI client whose transport is this router: in this process, with no port and no key.

        Errors of aibox come out as they are (`except aibox.EgressError`), not as the client's own.
        """
        return openai_client(self, scope=scope, label=Label.of(label))

    async def health(self) -> Health:
        """Good when every backend is; the detail says which is not, and why."""
        states = [(backend.name, await backend.health()) for backend in self._registry.backends]
        detail = "; ".join(f"{name}: {state.detail}" for name, state in states if not state.ok or len(states) == 1)
        return Health(ok=all(state.ok for _, state in states), detail=detail or f"{len(states)} backends answer")

    async def close(self) -> None:
        """Close every backend, also those after one that fails to close."""
        errors = []
        for backend in self._registry.backends:
            try:
                await backend.close()
            except Exception as error:  # noqa: BLE001 - the others must be closed; the first error is raised below
                errors.append(error)
        if errors:
            raise errors[0]

    async def _complete(self, route: Route, request: ChatRequest, *, scope: Scope) -> Completion:
        emulated = not route.model.tools and envelope.demands_tool(request)
        sent = envelope.wrap(request) if emulated else _plain(request, route)
        await self._egress.check(route.backend, route.model.id, request=sent, scope=scope)
        completion = await route.backend.complete(sent, scope=scope)
        return envelope.unwrap(completion, request) if emulated else completion

    def _prepared(self, request: ChatRequest, route: Route) -> ChatRequest:
        """The request as the backend gets it: its own name of the model, and no more output than the policy allows."""
        body = {**request.body, "model": route.model.id}
        body.pop("stream", None)
        body.pop("stream_options", None)
        if body.get("n") not in (None, 1):
            # Checks look at one answer; a second would pass them by.
            raise ConfigError("only one answer a call can be had: `n` must be 1")
        bounds = {key: body[key] for key in ("max_tokens", "max_completion_tokens") if body.get(key) is not None}
        if any(type(bound) is not int or bound < 1 for bound in bounds.values()):
            raise ConfigError("`max_tokens` is a whole number above 0")
        if self._policy is not None:
            limit = self._policy.limits.output_tokens
            body |= {key: min(bound, limit) for key, bound in bounds.items()} or {"max_tokens": limit}
        return ChatRequest(body, request.label)

    def __repr__(self) -> str:
        names = ", ".join(f"{b.name} (external)" if b.external else b.name for b in self._registry.backends)
        return f"Router({names}; {'recorded' if self._recorded else 'unrecorded'})"


def _plain(request: ChatRequest, route: Route) -> ChatRequest:
    """For a backend that cannot be told to leave its tools alone, they are left out."""
    if not route.model.tools and request.body.get("tool_choice") == "none":
        return envelope.without_tools(request)
    return request


def _request(asked: Messages, *, model: str, label: Label | str | None, fields: Mapping[str, Any]) -> ChatRequest:
    if isinstance(asked, ChatRequest):
        marked = asked.label if label is None else asked.label | Label.of(label)
        request = ChatRequest({"model": model, **asked.body, **fields}, marked)
    else:
        messages = [{"role": "user", "content": asked}] if isinstance(asked, str) else [dict(m) for m in asked]
        request = ChatRequest({"model": model, "messages": messages, **fields}, Label.of(label))
    if not isinstance(request.body.get("messages"), list) or not request.body["messages"]:
        raise ConfigError("there is nothing to answer: `messages` is empty")
    if not request.model:
        raise ConfigError("`model` is empty", hint='"default" is the first local model')
    return request
