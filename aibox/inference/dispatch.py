"""The way of one call: route, policy, budget, door, backend, account. Until something was said it may go elsewhere.

What is sent takes an `Inside` route or a `Passage` of the door, and nothing else: no failure inside leads outside by
itself, for there is nothing of the right type to send it with.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from aibox.chat import ChatRequest, Chunk, Completion
from aibox.errors import AccessError, ApprovalError, BackendError, ConfigError, EgressError, LimitError
from aibox.inference import capabilities, envelope
from aibox.inference.accounts import Accounts, Call
from aibox.inference.attempts import Retries, over
from aibox.inference.background import Background
from aibox.inference.balance import prefix_key
from aibox.inference.capabilities import Api
from aibox.inference.chunks import chunks_of, wants_usage
from aibox.inference.egress import Egress, Passage
from aibox.inference.head import Head
from aibox.inference.meter import Meter
from aibox.inference.registry import MAX_LISTED, Inside, Outside, Registry
from aibox.inference.streams import Left, Take, apart, iterated, pushed, waited
from aibox.policy.policy import Policy
from aibox.types import Scope

T = TypeVar("T")
Target = Inside | Passage


def allowed(routes: Sequence[Inside | Outside], name: str, policy: Policy) -> Sequence[Inside | Outside]:
    """Those of a name's routes that lead to a model which the policy lets be asked. Raises AccessError for none."""
    found = [route for route in routes if policy.may_ask(f"{route.replica.name}/{route.model.id}")]
    if not found:
        raise AccessError(
            f"the policy does not let the model {name[:100]!r} be asked",
            hint=f"ask for one of these by name: {', '.join(sorted(policy.models)[:MAX_LISTED]) or 'there is none'}",
            code="policy.models",
        )
    return found


class Dispatch:
    """Sends requests for a Router. `on_call` hears of every call that has ended."""

    def __init__(
        self,
        registry: Registry,
        egress: Egress,
        *,
        accounts: Accounts,
        fallbacks: Mapping[str, Sequence[str]] | None = None,
        on_call: Callable[[Call], None] | None = None,
    ) -> None:
        self.registry = registry
        self._egress = egress
        self._accounts = accounts
        self.fallbacks = {name: tuple(others) for name, others in (fallbacks or {}).items()}
        self._on_call = on_call
        self._retries = Retries()
        self._checks = Background()

    async def whole(
        self, api: Api, request: ChatRequest, *, scope: Scope, policy: Policy | None, deadline_s: float | None = None
    ) -> Completion:
        """One whole answer."""

        async def attempt(target: Target, sent: ChatRequest, emulates: ChatRequest | None) -> Completion:
            return await self._whole(api, target, sent, scope, emulates)

        answer = self._somewhere(api, request, attempt, scope=scope, policy=policy, deadline_s=deadline_s)
        return await (answer if deadline_s is None else _within(deadline_s, answer))

    async def stream(
        self,
        api: Api,
        request: ChatRequest,
        take: Take,
        *,
        scope: Scope,
        policy: Policy | None,
        deadline_s: float | None = None,
    ) -> None:
        """The answer as it comes. Cancelling it, and an error of `take`, closes it upstream."""
        usage = api != "chat" or wants_usage(request)
        head = Head(apart(take if usage else _but_usage(take)))

        async def attempt(target: Target, sent: ChatRequest, emulates: ChatRequest | None) -> None:
            try:
                if emulates is None:
                    await self._stream(api, target, sent, head.take, scope)
                else:
                    completion = await self._whole(api, target, sent, scope, emulates)
                    await waited(head.take(list(chunks_of(completion, usage=True))))
                await waited(head.end())
            except Exception as error:
                head.clear()
                if head.spoken:
                    # Nobody may take over in the middle of an answer.
                    raise Left(error) from None
                raise

        work = self._somewhere(
            api, request, attempt, scope=scope, policy=policy, deadline_s=deadline_s, streamed=True, head=head
        )
        try:
            await (work if deadline_s is None else _within(deadline_s, work))
        except Left as left:
            raise left.error from None

    def use(self, registry: Registry, fallbacks: Mapping[str, Sequence[str]]) -> None:
        """Other models and routes, for all calls that begin from now on; those under way go on where they are."""
        self.registry = registry
        self.fallbacks = {name: tuple(others) for name, others in fallbacks.items()}

    async def close(self) -> None:
        await self._checks.stop()
        await self.registry.close()

    async def _somewhere(
        self,
        api: Api,
        request: ChatRequest,
        attempt: Callable[[Target, ChatRequest, ChatRequest | None], Awaitable[T]],
        *,
        scope: Scope,
        policy: Policy | None,
        deadline_s: float | None,
        streamed: bool = False,
        head: Head | None = None,
    ) -> T:
        """Where the model is; when all of its replicas fail, where the operator said that it may go instead."""
        if policy is not None:
            await self._accounts.admit(scope, policy.budgets)
        ends = None if deadline_s is None else time.monotonic() + deadline_s
        first: BackendError | None = None
        for name in (request.model, *self.fallbacks.get(request.model, ())):
            reason = "" if first is None else f"instead of {request.model}"

            async def one(route: Inside | Outside, number: int, reason: str = reason) -> T:
                sent = _prepared(api, request, route, policy, streamed=streamed)
                emulates = sent if api == "chat" and not route.model.tools and envelope.demands_tool(sent) else None
                sent = sent if emulates is None else envelope.wrap(emulates)
                why = reason or (f"attempt {number}" if number > 1 else "")
                target = await self._target(api, route, sent, scope=scope, policy=policy, reason=why)
                return await attempt(target, target.request if isinstance(target, Passage) else sent, emulates)

            try:
                routes: Sequence[Inside | Outside] = await self._routes(name, api, request, scope, policy)
                key = prefix_key(request.body, tenant=scope.tenant) if len(routes) > 1 else None
                wanted = _Wanted(routes)
                if head is not None:
                    head.heard = wanted.over
                try:
                    return await over(routes, one, key=key, retries=self._retries, ends=ends)
                finally:
                    wanted.over()
            except (AccessError, EgressError, LimitError) as error:
                # Where a person may say that it goes outside instead, that is asked and not passed over.
                if first is None or isinstance(error, ApprovalError):
                    raise
                first.add_note(f"and not {name}: {error}")
            except BackendError as error:
                if first is not None:
                    first.add_note(f"and not {name}: {error}")
                elif not error.retryable:
                    raise
                else:
                    first = error
        assert first is not None
        raise first

    async def _routes(
        self, name: str, api: Api, request: ChatRequest, scope: Scope, policy: Policy | None
    ) -> Sequence[Inside | Outside]:
        routes: Sequence[Inside | Outside] = await self.registry.find(name, tenant=scope.tenant)
        if policy is not None and "*" not in policy.models:
            routes = allowed(routes, name, policy)
        if policy is not None and policy.budgets.models:
            routes = await self._affordable(routes, scope, policy)
        capabilities.check(routes[0].model, api, request.body)
        if len(routes) > 1:
            for route in routes:
                replica = route.replica
                if not self._checks.running(replica.name) and replica.due():
                    self._checks.start(replica.name, replica.check())
        return routes

    async def _affordable(
        self, routes: Sequence[Inside | Outside], scope: Scope, policy: Policy
    ) -> Sequence[Inside | Outside]:
        """Those whose model has some of its budget left. Raises LimitError for none."""
        found: list[Inside | Outside] = []
        spent: LimitError | None = None
        for route in routes:
            model = f"{route.replica.name}/{route.model.id}"
            try:
                await self._accounts.admit_model(model, policy.budgets, tenant=scope.tenant)
                found.append(route)
            except LimitError as error:
                spent = error
        if spent is not None and not found:
            raise spent
        return found

    async def _target(
        self,
        api: Api,
        route: Inside | Outside,
        request: ChatRequest,
        *,
        scope: Scope,
        policy: Policy | None,
        reason: str,
    ) -> Target:
        if isinstance(route, Inside):
            return route
        outgoing = getattr(route.replica.backend, "outgoing", None)
        # What the backend adds to a request leaves too, and so must be in what is recorded.
        request = outgoing(api, request, scope=scope) if outgoing is not None else request
        return await self._egress.open(route, request, scope=scope, policy=policy, reason=reason)

    async def _whole(
        self, api: Api, target: Target, request: ChatRequest, scope: Scope, emulates: ChatRequest | None
    ) -> Completion:
        meter = Meter(target.model, request, digest=isinstance(target, Passage))
        backend = target.replica.backend
        outcome: Any = "failed"
        await target.replica.queue.take(scope.tenant)
        try:
            with target.replica.call():
                if api == "chat":
                    completion = await backend.complete(request, scope=scope)
                else:
                    completion = await _posts(backend, api).post(api, request, scope=scope)
            completion = meter.whole(completion)
            outcome = "answered"
        except (asyncio.CancelledError, GeneratorExit):
            outcome = "left"
            raise
        finally:
            target.replica.queue.give()
            self._ended(meter, target, scope, outcome)
        if isinstance(target, Passage) and target.disguise is not None:
            completion = await target.disguise.inward(completion)
        return completion if emulates is None else envelope.unwrap(completion, emulates)

    async def _stream(self, api: Api, target: Target, request: ChatRequest, take: Take, scope: Scope) -> None:
        if not isinstance(target, Passage) or target.disguise is None:
            await self._raw_stream(api, target, request, take, scope)
            return
        chunks = iterated(lambda raw: self._raw_stream(api, target, request, raw, scope))
        try:
            await pushed(target.disguise.inward_stream(chunks), lambda chunk: take([chunk]))
        finally:
            # A generator that nobody closes would hold its connection until it is collected.
            await chunks.aclose()

    async def _raw_stream(self, api: Api, target: Target, request: ChatRequest, take: Take, scope: Scope) -> None:
        meter = Meter(target.model, request, digest=isinstance(target, Passage))
        outcome: Any = "failed"
        await target.replica.queue.take(scope.tenant)
        try:
            with target.replica.call():
                await _sent(target.replica.backend, api, request, lambda batch: take(meter.batch(batch)), scope)
            outcome = "answered"
        except (asyncio.CancelledError, Left):
            outcome = "left"
            raise
        finally:
            target.replica.queue.give()
            self._ended(meter, target, scope, outcome)

    def _ended(self, meter: Meter, target: Target, scope: Scope, outcome: Any) -> None:
        backend = target.replica.backend
        call = meter.call(scope, backend=backend.name, external=backend.external, outcome=outcome)
        self._accounts.settle(call)
        if isinstance(target, Passage):
            self._egress.returned(
                target, scope=scope, sha256=meter.sha256, size=meter.size, usage=call.usage, outcome=outcome
            )
        if self._on_call is not None:
            self._on_call(call)


def _prepared(
    api: Api, request: ChatRequest, route: Inside | Outside, policy: Policy | None, *, streamed: bool
) -> ChatRequest:
    """The request as the backend gets it: its own name of the model, and no more output than the policy allows."""
    body = {**request.body}
    if body.get("model") != route.model.id:
        body["model"] = route.model.id
    for key in ("stream", "stream_options"):
        body.pop(key, None)
    if body.get("n") not in (None, 1) or body.get("best_of") not in (None, 1) or body.get("n_cmpl") not in (None, 1):
        # Checks look at one answer; a second would pass them by.
        raise ConfigError("only one answer a call can be had: `n` must be 1")
    capabilities.hold_fields(api, body)
    capabilities.hold_tools(body)
    capabilities.hold_addresses(body)
    if api in capabilities.OUTPUT_BOUNDS:
        _bound(api, body, route.model.context_tokens, policy)
    if api == "responses":
        body["store"] = False  # which is true where it is left out
    # Often it goes as it came, and then its bytes are known.
    prepared = request if body == request.body and api != "responses" else request.with_body(body)
    if api == "chat" and not route.model.tools and body.get("tool_choice") == "none":
        # For a backend that cannot be told to leave its tools alone, they are left out.
        prepared = envelope.without_tools(prepared)
    if streamed:
        body = {**prepared.body, "stream": True}
        if api in ("chat", "completions"):
            # Asked for always: every call is accounted for. Who did not ask does not see it.
            asked = request.body.get("stream_options") or {}
            body["stream_options"] = asked if asked.get("include_usage") is True else {**asked, "include_usage": True}
        prepared = request.with_body(body)
    return prepared


def _bound(api: Api, body: dict[str, Any], context_tokens: int | None, policy: Policy | None) -> None:
    bounds = capabilities.output_bounds(api, body)
    if policy is None:
        return
    limit = policy.limits.output_tokens
    if bounds:
        body |= {key: min(bound, limit) for key, bound in bounds.items()}
    elif context_tokens is None or context_tokens > limit:
        # A model whose whole context is smaller cannot write more, and would refuse to be asked for it.
        body[capabilities.OUTPUT_BOUNDS[api][0]] = limit
    if body.get("min_tokens") is not None:
        # A server refuses to write more at least than at most, and the caller cannot know that the policy says less.
        body["min_tokens"] = min(body["min_tokens"], limit)


def _posts(backend: Any, api: Api) -> Any:
    if not hasattr(backend, "post"):
        raise ConfigError(f"the backend {backend.name} has no /{api}", hint="ask another backend, or use chat")
    return backend


class _Wanted:
    """Backends that a call has found: none of them may be closed before it has an answer, or its first word."""

    def __init__(self, routes: Sequence[Inside | Outside]) -> None:
        self._replicas = [route.replica for route in routes]
        for replica in self._replicas:
            replica.wanted += 1

    def over(self) -> None:
        while self._replicas:
            self._replicas.pop().wanted -= 1


def _but_usage(take: Take) -> Take:
    """For those who did not ask what was used."""

    def taken(batch: list[Chunk]) -> Awaitable[None] | None:
        for chunk in batch:
            if not chunk.body.get("choices") and "usage" in chunk.body:
                batch = [one for one in batch if one.body.get("choices") or "usage" not in one.body]
                break
        return take(batch) if batch else None

    return taken


async def _sent(backend: Any, api: Api, request: ChatRequest, take: Take, scope: Scope) -> None:
    """The stream of a backend, those that arrive together together where it has them so."""
    if hasattr(backend, "stream_to"):
        await backend.stream_to(api, request, take, scope=scope)
    elif api == "chat":
        await pushed(backend.stream(request, scope=scope), lambda chunk: take([chunk]))
    else:
        await pushed(_posts(backend, api).events(api, request, scope=scope), lambda chunk: take([chunk]))


async def _within(deadline_s: float, work: Awaitable[T]) -> T:
    try:
        async with asyncio.timeout(deadline_s):
            return await work
    except TimeoutError:
        raise BackendError(
            "no answer before the deadline", hint="give it longer, or ask for less", timeout=True
        ) from None
