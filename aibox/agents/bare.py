"""A model without an agent, under the same policy: texts checked, the answer restored, the call recorded.

Each text is checked as what it is (a user's as input, a tool's as a tool result); the answer as output.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from dataclasses import replace
from typing import Any

from aibox.agents import bodies
from aibox.agents.evidence import TurnRecord
from aibox.agents.known import readable
from aibox.agents.written import Choices, Response
from aibox.audit.chain import AuditChain
from aibox.chat import Assembly, ChatRequest, Chunk, Completion, plain
from aibox.errors import AIBoxError, BackendError, GuardrailError
from aibox.guardrails.guardrail import Guardrail
from aibox.guardrails.marks import json_might_hold_tokens
from aibox.guardrails.reading import bound_texts
from aibox.guardrails.stream import OutputFilter
from aibox.inference.capabilities import Api
from aibox.inference.head import Held
from aibox.inference.readable import ENDS
from aibox.inference.router import Router
from aibox.inference.streams import Take, waited
from aibox.leaving import reason
from aibox.types import PLACES, Decision, Scope, Verdict, Where


class BareCall:
    """One request of an OpenAI API, used once: `complete()` or `stream()`. Raises GuardrailError for a block."""

    def __init__(
        self,
        request: ChatRequest,
        *,
        api: Api = "chat",
        router: Router,
        guardrail: Guardrail,
        audit: AuditChain | None,
        scope: Scope,
    ) -> None:
        self._request = request
        self._api = api
        self._router = router
        self._guardrail = guardrail.for_tenant(scope.tenant)
        self._label = request.label
        self._record = TurnRecord(audit, scope=scope)
        self._scope = self._called_under = self._record.scope
        self._began = 0.0
        self._restores = False
        self._texts = 0

    async def complete(self) -> Completion:
        """The whole answer; the entry that ends the call is durable when it returns."""
        completion: Completion | None = None
        try:
            request = await self._prepare()
            completion = await self._router.post(self._api, request, scope=self._called_under)
            body = completion.body
            if self._shows:
                body = readable(self._api, body, "message")
                body = await bodies.answered(self._api, body, self._show, bodies.offered(request.body))
            await self._end(completion)
        except AIBoxError as error:
            if completion is not None:
                said = _said(self._api, completion)
                self._record.answered(completion, began=self._began, label=self._label, said=said)
            await self._record.fail(error, label=self._label)
            raise
        except asyncio.CancelledError as left:
            await asyncio.shield(self._record.fail(reason(left, "the caller has gone"), label=self._label))
            raise
        except Exception:
            # A bug of ours ends the call too, and is no reason to leave it open in the evidence.
            await self._record.fail(AIBoxError("this went wrong"), label=self._label)
            raise
        # What was looked at is what is shown, and not the bytes: a name may stand in them twice.
        return replace(completion, body=body, came=None) if self._shows else completion

    async def stream(self, take: Take) -> None:
        """Chunks to `take` as they come, text held back only as far as the output check needs. Leaving is recorded.

        The end of the answer comes when the entry that ends the call is durable.
        """
        came = _Came(self._api)
        ending = Held()
        try:
            request = await self._prepare()
            through = self._looked_through(bodies.offered(request.body)) if self._shows else None

            def plainly(batch: list[Chunk]) -> Awaitable[None] | None:
                if not came.add(batch) and not ending.chunks:
                    return take(batch)
                ending.add(batch)
                return None

            async def looked(batch: list[Chunk]) -> None:
                assert through is not None
                over = came.add(batch)
                made = [new for one in batch for new in await self._through(through, one)]
                if over or ending.chunks:
                    ending.add(batch, made)
                elif made:
                    await waited(take(made))

            await self._router.stream_to(
                self._api, request, plainly if through is None else looked, scope=self._called_under
            )
            if through is not None and came.last is not None:
                ending.chunks += [Chunk(body, came.last.backend, came.last.weights) for body in await through.rest()]
            await self._end(came.whole())
        except AIBoxError as error:
            await self._record.fail(error, label=self._label)
            raise
        except asyncio.CancelledError as left:
            await asyncio.shield(self._record.fail(reason(left, "the caller has gone"), label=self._label))
            raise
        except Exception:
            await self._record.fail(AIBoxError("this went wrong"), label=self._label)
            raise
        if ending.chunks:
            # The call has ended: whoever leaves now does not give it a second end.
            await waited(take(ending.chunks))

    def _looked_through(self, tools: frozenset[str]) -> Response | Choices:
        if self._api == "responses":
            return Response(self._filter, self._call, tools)
        return Choices(self._api, self._filter, self._call, tools)

    async def _prepare(self) -> ChatRequest:
        request = self._request
        # Where nothing is looked for, and nothing can be taken for a pseudonym, a chat goes on as it came.
        data = request.encoded() if self._api == "chat" and self._guardrail.idle else None
        if data is None or json_might_hold_tokens(data):
            request = request.with_body(await self._looked_at(request.body))
            data = request.encoded()
            # A model that was shown no pseudonym has none to give back.
            self._restores = json_might_hold_tokens(data)
        self._began, self._called_under = self._record.called(request, data, scope=self._scope, api=self._api)
        return request

    async def _looked_at(self, body: dict[str, Any]) -> dict[str, Any]:
        """The body with its texts as they may go to a model. Raises GuardrailError."""
        checked = any(self._guardrail.looks(where) for where in PLACES)
        if prompt := bodies.instructions(body):
            self._guardrail = self._guardrail.about(prompt=prompt)
        body = await bodies.asked(self._api, body, self._check, checked=checked)
        if self._guardrail.looks("input"):
            self._enforce(await self._guardrail.together(bodies.users(body), scope=self._scope, label=self._label))
        return body

    async def _end(self, completion: Completion) -> None:
        """One entry for the answer and the end: durable when it returns."""
        said = _said(self._api, completion)
        detail = self._record.answer(completion, began=self._began, label=self._label, said=said)
        await self._record.end(outcome="answered", label=self._label, detail=detail)

    @property
    def _shows(self) -> bool:
        """Whether what the model writes is looked at, or changed, before it is shown."""
        return self._restores or self._guardrail.looks("output") or self._guardrail.looks("tool_arguments")

    async def _check(self, text: str, where: Where) -> str:
        looks = self._guardrail.looks(where)
        self._texts += looks
        bound_texts(self._texts)
        began = time.perf_counter() if looks else 0.0
        verdict = await self._guardrail.check(text, where=where, scope=self._scope, label=self._label)
        self._enforce(verdict, began)
        return verdict.text

    async def _show(self, text: str, where: Where) -> str:
        """A text of the model as it may be shown; arguments of a call as a tool needs them."""
        if self._guardrail.looks(where):
            text = await self._check(text, where)
        if not self._restores:
            return text
        if where == "tool_arguments":
            return await self._guardrail.restore_arguments(text, scope=self._scope)
        return await self._guardrail.restore(text, scope=self._scope)

    async def _through(self, through: Response | Choices, chunk: Chunk) -> list[Chunk]:
        made = await through.take(readable(self._api, chunk.body, "delta"))
        return [Chunk(body, chunk.backend, chunk.weights) for body in made]

    async def _call(self, arguments: str) -> str:
        return await self._show(arguments, "tool_arguments")

    def _filter(self) -> _Held:
        return _Held(self, OutputFilter(self._guardrail, scope=self._scope, label=self._label))

    def _enforce(self, verdict: Verdict, began: float = 0.0) -> None:
        self._record.decided(verdict, began=began)
        if verdict.blocked:
            raise GuardrailError(
                f"a safety check refused this: {'; '.join(verdict.reasons())}",
                hint="the policy decides what is refused",
            )


class _Held:
    """A text of the model on its way out. What was decided about it is recorded when it ends, or when it is refused."""

    def __init__(self, call: BareCall, through: OutputFilter) -> None:
        self._call = call
        self._through = through

    @property
    def text(self) -> str:
        return self._through.text

    async def push(self, text: str) -> str:
        shown = await self._through.push(text)
        if self._through.decision >= Decision.REQUIRE_APPROVAL:
            self._call._enforce(self._through.verdict)  # noqa: SLF001 - one part in two classes
        return shown

    async def finish(self) -> str:
        began = time.perf_counter()
        shown = await self._through.finish()
        self._call._enforce(self._through.verdict, began)  # noqa: SLF001 - likewise
        return shown


class _Came:
    """What a stream has said so far, as far as its record needs it."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._chat = Assembly()
        self._text: list[str] = []
        self._reason: Any = None
        self._usage: Any = None
        self.last: Chunk | None = None

    def add(self, batch: list[Chunk]) -> bool:
        """Whether the answer comes to its end with it."""
        ends = False
        for chunk in batch:
            body = chunk.body
            choices = body.get("choices")
            if self._api == "chat":
                self._chat.add(chunk)
            elif choices:
                self._text.append(plain(choices[0].get("text")))
                self._reason = self._reason or choices[0].get("finish_reason")
            if self._api == "completions":
                self._usage = body.get("usage") or self._usage
            ends = ends or (bool(choices[0].get("finish_reason")) if choices else body.get("type") in ENDS)
            self.last = chunk
        return ends

    def whole(self) -> Completion:
        """The answer that it amounts to."""
        last = self.last
        if last is None:
            raise BackendError("the model's server sent nothing", retryable=True)
        if self._api == "chat":
            return self._chat.whole()
        if self._api == "responses":
            return Completion(last.body.get("response") or {}, last.backend, last.weights)
        choices = [{"index": 0, "text": "".join(self._text), "finish_reason": self._reason}]
        return Completion({**last.body, "choices": choices, "usage": self._usage}, last.backend, last.weights)


def _said(api: Api, completion: Completion) -> Any:
    """What the digest of the answer is of."""
    body = completion.body
    if api == "chat":
        return completion.message
    if api == "completions":
        return (body.get("choices") or [{}])[0].get("text") or ""
    return body.get("output") if api == "responses" else body.get("data", body.get("results"))
