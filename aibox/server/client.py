"""The typed client of the server: a method a route, answers as objects, errors as the library's own."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from types import TracebackType
from typing import Any, Self

from pydantic import SecretStr, TypeAdapter

from aibox.server import calls
from aibox.server.connection import SILENCE_S, Connection
from aibox.server.inference_calls import Inference, Messages
from aibox.server.shapes import admin, guard, talk
from aibox.server.shapes.evidence import ReceiptShown
from aibox.server.shapes.guard import Place
from aibox.server.shapes.inference import ChatCompletion, Health, Models, Readiness

_EVENT: TypeAdapter[talk.Event] = TypeAdapter(talk.Event)


class Client:
    """Asks a server of aibox: `async with Client("https://aibox.example.org", key) as client: ...`.

    `key` is an API key or an access token. Errors come out as they were on the server, as classes of `aibox.errors`;
    a server that cannot be reached is UpstreamError. Connections are kept and used again. `https` only, but for
    loopback. `case` names the matter that all its calls belong to: pseudonyms are one mapping in it. `timeout_s` is the
    longest silence to bear. A call with an `idempotency_key` can be made again when nobody knows what became of it: the
    server does it once, and tells the same answer for a day.
    """

    def __init__(
        self,
        url: str,
        key: str | SecretStr,
        *,
        case: str = "",
        timeout_s: float = SILENCE_S,
        transport: Any = None,
    ) -> None:
        secret = key.get_secret_value() if isinstance(key, SecretStr) else key
        self._url = url
        self._to = Connection(url, secret, case=case, timeout_s=timeout_s, transport=transport)
        self.inference = Inference(self._to)
        self.sessions = calls.Sessions(self._to)
        self.approvals = calls.Approvals(self._to)
        self.memory = calls.Memory(self._to)
        self.knowledge = calls.Knowledge(self._to)
        self.sandbox = calls.Sandbox(self._to)
        self.audit = calls.Audit(self._to)
        self.keys = calls.Keys(self._to)
        self.policies = calls.Policies(self._to)
        self.admin = calls.Admin(self._to)

    async def chat(
        self,
        message: str,
        *,
        agent: str = "default",
        session: str = "",
        label: str | None = None,
        idempotency_key: str | None = None,
    ) -> talk.Told:
        """One turn of an agent. With a `session` it goes on with that conversation. Cancelling ends the turn."""
        body = {"message": message, "agent": agent, "session": session, "label": label}
        return await self._to.ask("POST", "/v1/chat", talk.Told, body=body, idempotency_key=idempotency_key)

    async def stream(
        self,
        message: str,
        *,
        agent: str = "default",
        session: str = "",
        label: str | None = None,
        idempotency_key: str | None = None,
    ) -> AsyncGenerator[talk.Event, None]:
        """The events of one turn as they happen; the last has the type `reply` or `failed`. Leaving ends the turn."""
        body = {"message": message, "agent": agent, "session": session, "label": label}
        told = self._to.events("/v1/chat/stream", _EVENT, body=body, idempotency_key=idempotency_key)
        async with aclosing(told) as events:
            async for event in events:
                yield event

    async def agents(self) -> list[talk.AgentShown]:
        """The agents that can be asked."""
        return (await self._to.ask("GET", "/v1/agents", talk.AgentList)).data

    async def agent(self, name: str) -> talk.AgentShown:
        return await self._to.ask("GET", "/v1/agents/{name}", talk.AgentShown, name=name)

    async def resume(self, run: str) -> ChatCompletion:
        """Go on with a run whose questions are answered."""
        return await self._to.ask("POST", "/v1/runs/{id}/resume", ChatCompletion, id=run)

    async def check(self, text: str, *, where: Place = "input", label: str | None = None) -> guard.Decided:
        """What the guardrail decides about a text, and why."""
        body = {"text": text, "where": where, "label": label}
        return await self._to.ask("POST", "/v1/guard/check", guard.Decided, body=body)

    async def policy(self) -> guard.PolicyShown:
        """The policy that holds for the caller."""
        return await self._to.ask("GET", "/v1/guard/policy", guard.PolicyShown)

    async def receipt(self, turn: str) -> ReceiptShown:
        """The receipt of a turn. `aibox.Receipt.read(receipt.model_dump_json().encode())` verifies it here."""
        return await self._to.ask("GET", "/v1/receipts/{turn}", ReceiptShown, turn=turn)

    async def usage(self) -> admin.Used:
        return await self._to.ask("GET", "/v1/usage", admin.Used)

    async def skills(self) -> list[admin.SkillShown]:
        return (await self._to.ask("GET", "/v1/skills", admin.SkillList)).data

    async def routes(self) -> admin.RouteList:
        """The models that can be asked for, where each is answered, and by which other names."""
        return await self._to.ask("GET", "/v1/routes", admin.RouteList)

    async def models(self) -> Models:
        """The list of models in OpenAI's form."""
        return await self._to.ask("GET", "/v1/models", Models)

    async def complete(
        self, messages: Messages, *, model: str = "default", idempotency_key: str | None = None, **fields: Any
    ) -> ChatCompletion:
        """A chat completion; `inference.chat`, for short."""
        return await self.inference.chat(messages, model=model, idempotency_key=idempotency_key, **fields)

    async def health(self) -> Health:
        """Whether a model can answer; a server whose models cannot is UpstreamError."""
        return await self._to.ask("GET", "/healthz", Health)

    async def ready(self) -> Readiness:
        """Whether requests may be sent there, and which part is missing; where they may not, UpstreamError says it."""
        return await self._to.ask("GET", "/readyz", Readiness)

    async def metrics(self) -> str:
        """What the server has counted, in Prometheus' text format; for a platform_admin."""
        return (await self._to.raw("GET", "/metrics")).decode()

    async def openapi(self) -> bytes:
        """The OpenAPI document of the server."""
        return await self._to.raw("GET", "/v1/openapi.json")

    async def close(self) -> None:
        """Give back the connections. Closing twice is allowed."""
        await self._to.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"Client({self._url!r})"
