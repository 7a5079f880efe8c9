"""What the OpenAI routes do, without HTTP: a model id is the bare model, `agent:NAME` is an agent, which chats."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from aibox.agents.agent import Agent
from aibox.agents.bare import BareCall
from aibox.agents.events import Failed, Reply, TextDelta
from aibox.box import Box
from aibox.chat import ChatRequest, Chunk, Completion
from aibox.errors import NO_MODEL, AccessError, ConfigError
from aibox.inference.capabilities import Api, output_bounds
from aibox.inference.streams import Take, pushed
from aibox.leaving import leave
from aibox.server.acts import ended
from aibox.server.principal import Principal
from aibox.server.route import ASKS, route
from aibox.server.shapes.inference import Models
from aibox.types import Scope

AGENT = "agent:"


class InferenceAPI:
    """Requests in, completions or chunks out. Raises AIBoxError."""

    def __init__(self, box: Box, *, agents: Mapping[str, Agent]) -> None:
        self._box = box
        self._agents = agents

    @route("GET", "/v1/models", roles=ASKS, openai=True)
    async def models(self, who: Principal) -> Models:
        """The models that the caller's tenant can ask for, agents first; with a narrow key those that it is for."""
        created = int(time.time())
        router, scope = self._box.router, who.scope
        agents: list[dict[str, Any]] = [{"id": AGENT + name, "owned_by": "aibox"} for name in self._agents]
        found: list[dict[str, Any]] = [
            {"id": info.id, "owned_by": info.backend, "aibox": {"demo": info.demo, "weights": info.weights.known}}
            for info in await router.models(scope=scope)
        ]
        if who.models is not None:
            # A key names what may be asked for, which may be a longer name of a model, or another.
            names = {name: one for one in found for name in (f"{one['owned_by']}/{one['id']}", one["id"])}
            names |= {name: names[to] for name, to in router.names(scope=scope).items() if to in names}
            found = [{**one, "id": name} for name, one in names.items()]
        data = [{"object": "model", "created": created, **one} for one in (*agents, *found) if who.may_ask(one["id"])]
        return Models.model_validate({"object": "list", "data": data})

    async def complete(self, api: Api, request: ChatRequest, *, scope: Scope) -> Completion:
        """A whole answer, in the API's own JSON."""
        agent = self._agent(api, request.body)
        if agent is None:
            return await self._bare(api, request, scope=scope).complete()
        history, message = conversation(request.body)
        reply = await agent.run(message, scope=scope, history=history, max_tokens=most(request.body))
        return Completion(completion(request.model, reply))

    async def stream(self, api: Api, request: ChatRequest, take: Take, *, scope: Scope) -> None:
        """The answer in chunks, given to `take`: those that came together are together. Raises also after the first."""
        if api not in ("chat", "completions", "responses"):
            raise ConfigError(f"/v1/{api} has no stream", hint="leave `stream` out")
        agent = self._agent(api, request.body)
        if agent is None:
            await self._bare(api, request, scope=scope).stream(take)
        else:
            await pushed(_told(agent, request, scope=scope), take)

    async def refused(self, api: Api, who: Principal, error: AccessError) -> None:
        """Record, durably, that somebody asked for what they, or their key, may not: as every other route does."""
        await ended(self._box.audit, who, f"openai.{api}", error.code)

    def _agent(self, api: Api, body: Mapping[str, Any]) -> Agent | None:
        model = body["model"]
        if not model.startswith(AGENT):
            return None
        if api != "chat":
            raise ConfigError("an agent answers at /v1/chat/completions", hint="ask a model here, or the agent there")
        if (agent := self._agents.get(model.removeprefix(AGENT))) is None:
            raise ConfigError(f"there is no agent {model!r}", hint="GET /v1/models lists what there is", code=NO_MODEL)
        return agent

    def _bare(self, api: Api, request: ChatRequest, *, scope: Scope) -> BareCall:
        box = self._box
        return BareCall(request, api=api, router=box.router, guardrail=box.guardrail, audit=box.audit, scope=scope)


def read_request(api: Api, data: bytes) -> ChatRequest:
    """Parse and look at what must be right before anything is done. Raises ConfigError."""
    request = ChatRequest.read(data)
    body = request.body
    if api == "chat":
        if not isinstance(body.get("messages"), list) or not body["messages"]:
            raise ConfigError("the body needs `messages`, a list that is not empty")
        for message in body["messages"]:
            if not isinstance(message, dict) or not isinstance(message.get("role"), str):
                raise ConfigError("each message is an object with a `role`")
            if not _readable(message.get("content")) or not _readable(message.get("tool_calls")):
                raise ConfigError(
                    "the `content` of a message is a text, a list of parts, or null; `tool_calls` is a list"
                )
    if not isinstance(body.setdefault("model", "embedding" if api == "embeddings" else "default"), str):
        raise ConfigError("`model` is a name")
    if not isinstance(body.get("stream"), bool | None):
        raise ConfigError("`stream` is true or false")
    if not isinstance(body.get("stream_options"), dict | None):
        raise ConfigError("`stream_options` is an object")
    return request


def _readable(value: object) -> bool:
    """Null, a text, or a list of objects."""
    if value is None or type(value) is str:
        return True
    return isinstance(value, list) and all(isinstance(part, dict) for part in value)


async def _told(agent: Agent, request: ChatRequest, *, scope: Scope) -> AsyncGenerator[list[Chunk], None]:
    """An agent's answer as chunks of Chat Completions."""
    # What is wrong with the request is an HTTP error as long as nothing was sent.
    history, message = conversation(request.body)
    turn = agent.stream(message, scope=scope, history=history, max_tokens=most(request.body))
    frame, silent = Frame(request.model), True
    yield [Chunk(frame.chunk({"role": "assistant", "content": ""}))]
    try:
        async for event in turn:
            if isinstance(event, TextDelta):
                silent = False
                yield [Chunk(frame.chunk({"content": event.text}))]
            elif isinstance(event, Failed):
                raise event.error
            elif isinstance(event, Reply):
                yield [Chunk(body) for body in _last(event, request, frame, silent=silent)]
    except asyncio.CancelledError as left:
        await leave(turn, left)
        raise


def _last(event: Reply, request: ChatRequest, frame: Frame, *, silent: bool) -> list[dict[str, Any]]:
    # What is told instead of an answer was no delta.
    told = event.blocked or event.pending or (event.stopped and silent)
    last = [frame.chunk({"content": event.text})] if told else []
    last.append({**frame.chunk({}, finish_reason=finish_reason(event)), "aibox": about(event)})
    if (request.body.get("stream_options") or {}).get("include_usage"):
        last.append(frame.usage(event))
    return last


def conversation(body: Mapping[str, Any]) -> tuple[list[dict[str, Any]], str]:
    """What was said before, and the message to answer: the last one, which must be the user's."""
    *history, last = body["messages"]
    if last["role"] != "user":
        raise ConfigError("an agent answers a user: the last message must have the role `user`")
    return [{"role": m["role"], "content": text_of(m)} for m in history], text_of(last)


def most(body: Mapping[str, Any]) -> int | None:
    """How many tokens a call may write, by either name of it; where both are said, the smaller. Raises ConfigError."""
    return min(output_bounds("chat", body).values(), default=None)


def text_of(message: Mapping[str, Any]) -> str:
    """The text of a message, whose content is a string or a list of parts. Raises ConfigError for other parts."""
    content = message.get("content")
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, list) and all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in content):
        return "\n".join(part["text"] for part in content)
    raise ConfigError("an agent reads text only; a message holds something else")


def completion(model: str, reply: Reply) -> dict[str, Any]:
    """A Reply in the shape of Chat Completions."""
    message = {"role": "assistant", "content": reply.text}
    body = Frame(model).body("chat.completion")
    return {
        **body,
        "choices": [{"index": 0, "message": message, "finish_reason": finish_reason(reply)}],
        "usage": usage(reply),
        "aibox": about(reply),
    }


def finish_reason(reply: Reply) -> str:
    """In OpenAI's words: a check refused, a limit ended the turn, or the model did."""
    return "content_filter" if reply.blocked else "length" if reply.stopped else "stop"


def about(reply: Reply) -> dict[str, Any]:
    """What OpenAI's format has no place for: why a limit ended the turn, and for which questions the run waits.

    What is asked stands behind `/v1/approvals`, for those who may answer: the arguments are not the client's to keep.
    """
    pending = [{"id": ask.id, "tool": ask.tool, "reason": ask.reason, "people": ask.people} for ask in reply.pending]
    return {"run": reply.run, "label": str(reply.label), "stopped": reply.stopped, "pending": pending}


def usage(reply: Reply) -> dict[str, int]:
    used = reply.usage
    return {
        "prompt_tokens": used.input_tokens,
        "completion_tokens": used.output_tokens,
        "total_tokens": used.input_tokens + used.output_tokens,
    }


class Frame:
    """The fields that the chunks of one answer share."""

    def __init__(self, model: str) -> None:
        self._shared = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    def body(self, kind: str) -> dict[str, Any]:
        return {**self._shared, "object": kind}

    def chunk(self, delta: dict[str, Any], *, finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        return {**self.body("chat.completion.chunk"), "choices": [choice]}

    def usage(self, reply: Reply) -> dict[str, Any]:
        return {**self.body("chat.completion.chunk"), "choices": [], "usage": usage(reply)}
