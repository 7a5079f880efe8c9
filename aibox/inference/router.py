"""Answers a model call from the right backend, inside the policy. Local first, and never outside by itself."""

from __future__ import annotations

import asyncio
import copy
import re
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aibox.chat import ChatRequest, Chunk, Completion, Health, ModelInfo
from aibox.errors import BackendError, ConfigError
from aibox.inference.accounts import Accounts, Call
from aibox.inference.capabilities import Api
from aibox.inference.client import openai_client
from aibox.inference.disguise import Concealer
from aibox.inference.dispatch import Dispatch, allowed
from aibox.inference.egress import Egress
from aibox.inference.leaving import Leaving
from aibox.inference.registry import DEFAULT, Registry
from aibox.inference.replica import CHECK_S, Replica
from aibox.inference.streams import Take, iterated
from aibox.policy.policy import Policy
from aibox.protocols import Backend, Recorder
from aibox.types import Label, Scope

if TYPE_CHECKING:
    from aibox.inference.client import AsyncOpenAI

Messages = str | Sequence[Mapping[str, Any]] | ChatRequest
"""What can be asked: one user message, Chat Completions messages, or a whole request."""

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_ASKED: Mapping[Api, str] = {"completions": "prompt", "embeddings": "input", "responses": "input", "rerank": "query"}


@dataclass(frozen=True, slots=True)
class Plan:
    """What a router routes by: policies, what conceals at the door, backends and the ways to them."""

    policy: Policy | None
    tenant_policies: Mapping[str, Policy]
    concealer: Concealer | None
    registry: Registry
    fallbacks: Mapping[str, Sequence[str]]


class Router:
    """Several backends as one. It is a Backend itself.

    Models are asked for by a role (`"default"` is the first model of the first local backend), an alias,
    `backend/model` or a bare model id; several backends of one side that offer it share the calls.

    `owners` dedicates backends to tenants; `tenant_aliases` and `tenant_policies` (joined with `policy`: they only
    narrow; looked up at each call) are theirs alone. `fallbacks` names what may answer instead of a model that fails,
    in order; each passes the door by itself. `accounts` counts what is used, `on_call` hears of every call that has
    ended, `concealer` pseudonymises on the way out, `check_s` is the time between two checks of a backend that has
    others beside it, `calls_at_once` bounds the calls of a backend: more wait, and tenants take turns.

    Raises ConfigError when an external backend is given without an audit chain or a policy that opens the door.
    """

    name = "router"

    def __init__(
        self,
        *backends: Backend,
        policy: Policy | None = None,
        audit: Recorder | None = None,
        aliases: Mapping[str, str] | None = None,
        owners: Mapping[str, Collection[str]] | None = None,
        tenant_aliases: Mapping[str, Mapping[str, str]] | None = None,
        tenant_policies: Mapping[str, Policy] | None = None,
        fallbacks: Mapping[str, Sequence[str]] | None = None,
        accounts: Accounts | None = None,
        concealer: Concealer | None = None,
        on_call: Callable[[Call], None] | None = None,
        check_s: float = CHECK_S,
        calls_at_once: Mapping[str, int] | None = None,
    ) -> None:
        _hold_names(backends)
        self._policy = policy
        self._policies: dict[tuple[str, str], tuple[Policy | None, Policy]] = {}
        self._tenant_policies: Mapping[str, Policy] = tenant_policies if tenant_policies is not None else {}
        self._recorded = audit is not None
        egress = self._egress = Egress(policy, recorder=audit, concealer=concealer)
        for backend in backends:
            egress.admit(backend)
        self._check_s = check_s
        registry = Registry(
            [
                Replica(backend, check_s=check_s, calls_at_once=(calls_at_once or {}).get(backend.name))
                for backend in backends
            ],
            aliases=aliases,
            tenant_aliases=tenant_aliases,
            owners=owners,
        )
        self.accounts = accounts or Accounts()
        self._dispatch = Dispatch(registry, egress, accounts=self.accounts, fallbacks=fallbacks, on_call=on_call)
        self._leaving = Leaving()

    @property
    def _registry(self) -> Registry:
        return self._dispatch.registry

    @property
    def external(self) -> bool:
        return any(replica.backend.external for replica in self._registry.replicas)

    async def models(self, *, scope: Scope | None = None) -> tuple[ModelInfo, ...]:
        """The models of all backends that answer, local ones first. Raises BackendError when none does.

        With `scope` those dedicated to its tenant are among them, and those that its policy does not let be asked not.
        """
        found = await self._registry.all(tenant=scope.tenant if scope else None)
        rules = None if scope is None else self._rules(scope, None)
        return found if rules is None else tuple(info for info in found if rules.may_ask(f"{info.backend}/{info.id}"))

    async def leads(self, name: str, *, scope: Scope, policy: Policy) -> tuple[str, ...]:
        """Where a name leads for a tenant under a policy, as `backend/model`. Raises as a call of it would."""
        found = allowed(await self._registry.find(name, tenant=scope.tenant), name, policy)
        return tuple(f"{route.replica.name}/{route.model.id}" for route in found)

    def names(self, *, scope: Scope) -> dict[str, str]:
        """Other names by which the scope's tenant can ask for models, and what each leads to."""
        return self._registry.names(tenant=scope.tenant)

    async def complete(
        self,
        messages_or_request: Messages,
        *,
        model: str = DEFAULT,
        scope: Scope,
        label: Label | str | None = None,
        policy: Policy | None = None,
        deadline_s: float | None = None,
        **openai_fields: Any,
    ) -> Completion:
        """One whole answer. Further keywords are fields of OpenAI's Chat Completions, such as `temperature`.

        `label` marks the text; on a ChatRequest it can only raise what the request is marked with. `policy` narrows the
        router's for this call. Raises ConfigError for a model that is not there or cannot do it, EgressError when the
        text may not leave, LimitError when a budget is spent, BackendError when the backends fail or `deadline_s` ends.
        """
        asked = _request(messages_or_request, model=model, label=label, fields=openai_fields)
        rules = self._rules(scope, policy)
        return await self._dispatch.whole("chat", asked, scope=scope, policy=rules, deadline_s=deadline_s)

    def stream(
        self,
        messages_or_request: Messages,
        *,
        model: str = DEFAULT,
        scope: Scope,
        label: Label | str | None = None,
        policy: Policy | None = None,
        deadline_s: float | None = None,
        **openai_fields: Any,
    ) -> AsyncIterator[Chunk]:
        """The answer in chunks as they arrive; an emulated tool call comes when it is whole. Else as `complete`.

        Until the first word another backend may take over; after it, what fails is raised in the middle.
        """
        asked = _request(messages_or_request, model=model, label=label, fields=openai_fields)
        return self.events("chat", asked, scope=scope, policy=policy, deadline_s=deadline_s)

    async def post(
        self,
        api: Api,
        request: ChatRequest,
        *,
        scope: Scope,
        policy: Policy | None = None,
        deadline_s: float | None = None,
    ) -> Completion:
        """Another API of OpenAI's in its own JSON: completions, embeddings, responses, rerank. Raises as `complete`."""
        rules = self._rules(scope, policy)
        asked = _request(request, model=DEFAULT, label=None, fields={}) if api == "chat" else _other(api, request)
        return await self._dispatch.whole(api, asked, scope=scope, policy=rules, deadline_s=deadline_s)

    def events(
        self,
        api: Api,
        request: ChatRequest,
        *,
        scope: Scope,
        policy: Policy | None = None,
        deadline_s: float | None = None,
    ) -> AsyncIterator[Chunk]:
        """As `post`, streamed: the events of completions or responses, each as a Chunk."""
        options: Any = {"scope": scope, "policy": policy, "deadline_s": deadline_s}
        return iterated(lambda take: self.stream_to(api, request, take, **options))

    async def stream_to(
        self,
        api: Api,
        request: ChatRequest,
        take: Take,
        *,
        scope: Scope,
        policy: Policy | None = None,
        deadline_s: float | None = None,
    ) -> None:
        """As `stream` and `events`, given to `take`: what arrived together comes together."""
        if api not in ("chat", "completions", "responses"):
            raise ConfigError(f"/{api} has no stream")
        asked = _request(request, model=DEFAULT, label=None, fields={}) if api == "chat" else _other(api, request)
        rules = self._rules(scope, policy)
        await self._dispatch.stream(api, asked, take, scope=scope, policy=rules, deadline_s=deadline_s)

    async def embed(
        self, texts: Sequence[str], *, model: str = "embedding", scope: Scope, label: Label | str | None = None
    ) -> list[list[float]]:
        """One vector a text, in order. Raises as `complete`."""
        request = ChatRequest({"model": model, "input": list(texts)}, Label.of(label))
        data = (await self.post("embeddings", request, scope=scope)).body.get("data")
        vectors = {
            e["index"]: e["embedding"] for e in data or () if isinstance(e, dict) and {"index", "embedding"} <= e.keys()
        }
        if sorted(vectors) != list(range(len(texts))):
            raise BackendError(f"the model {model} did not give one vector a text")
        return [vectors[index] for index in range(len(texts))]

    def under(self, policy: Policy) -> Router:
        """This router under one more policy, for whoever has one of their own: an agent. Nothing is opened anew."""
        narrowed = copy.copy(self)
        narrowed._narrow(policy)  # noqa: SLF001 - of this class
        return narrowed

    def held(self, own: Policy | None) -> Router:
        """This router under the policy that a tenant has now, whatever it has later: for a turn of that tenant."""
        made = copy.copy(self) if own is None else self.under(own)
        made._tenant_policies = {}  # noqa: SLF001 - of this class
        return made

    def _narrow(self, policy: Policy) -> None:
        self._policy = policy if self._policy is None else self._policy & policy
        self._policies = {}

    def openai(self, *, scope: Scope, label: Label | str | None = None) -> AsyncOpenAI:
        """An OpenAI client whose transport is this router: in this process, with no port and no key.

        Errors of aibox come out as they are (`except aibox.EgressError`), not as the client's own.
        """
        return openai_client(self, scope=scope, label=Label.of(label))

    async def health(self) -> Health:
        """Good when every backend is; the detail says which is not, and why."""
        replicas = self._registry.replicas
        states = await asyncio.gather(*(replica.health() for replica in replicas))
        bad = [
            f"{replica.name}: {state.detail}"
            for replica, state in zip(replicas, states, strict=True)
            if not state.ok or len(states) == 1
        ]
        return Health(ok=all(state.ok for state in states), detail="; ".join(bad) or f"{len(states)} backends answer")

    async def answers(self) -> bool:
        """Whether any backend does, now. The first good answer is enough: others may never say a word."""
        asked = [asyncio.ensure_future(replica.health()) for replica in self._registry.replicas]
        try:
            for answer in asyncio.as_completed(asked):
                if (await answer).ok:
                    return True
            return False
        finally:
            for one in asked:
                one.cancel()
            await asyncio.gather(*asked, return_exceptions=True)

    async def close(self) -> None:
        """Close every backend, also those after one that fails to close."""
        errors: list[Exception] = []
        for close in (
            self._dispatch.close,
            self._leaving.close,
            *(replica.backend.close for replica in self._registry.replicas),
            self.accounts.close,
        ):
            try:
                await close()
            except Exception as error:  # noqa: BLE001 - the others must be closed; the first error is raised below
                errors.append(error)
        if errors:
            raise errors[0]

    def plan(
        self,
        *backends: Backend,
        policy: Policy,
        tenant_policies: Mapping[str, Policy],
        concealer: Concealer | None,
        aliases: Mapping[str, str],
        tenant_aliases: Mapping[str, Mapping[str, str]],
        owners: Mapping[str, Collection[str]],
        fallbacks: Mapping[str, Sequence[str]],
        calls_at_once: Mapping[str, int],
    ) -> Plan:
        """Other backends and routes, to be put into force by `use`. A backend that is in force already stays as it is.

        Raises ConfigError as Router itself does, also for a new external backend behind a door that `policy` shuts.
        """
        _hold_names(backends)
        here = {id(replica.backend): replica for replica in self._registry.replicas}
        for backend in backends:
            if id(backend) not in here:
                Egress(policy, recorder=self._egress.recorder, concealer=concealer).admit(backend)
        replicas = [
            here.get(id(backend))
            or Replica(backend, check_s=self._check_s, calls_at_once=calls_at_once.get(backend.name))
            for backend in backends
        ]
        registry = Registry(
            replicas, aliases=aliases, tenant_aliases=tenant_aliases, owners=owners, before=self._registry
        )
        return Plan(policy, tenant_policies, concealer, registry, fallbacks)

    @property
    def plan_in_force(self) -> Plan:
        return Plan(
            self._policy, self._tenant_policies, self._egress.concealer, self._registry, self._dispatch.fallbacks
        )

    def use(self, plan: Plan) -> None:
        """Put a plan into force for all calls that begin from now on; those under way go on as they began."""
        self._policy, self._tenant_policies = plan.policy, plan.tenant_policies
        self._policies.clear()
        self._egress.use(plan.policy, plan.concealer)
        self._dispatch.use(plan.registry, plan.fallbacks)

    async def part(self, old: Plan) -> None:
        """A plan is in force no more: a backend that only it has closes when the last call of it is over."""
        await self._leaving.part(old.registry, self._registry)

    def _rules(self, scope: Scope, policy: Policy | None) -> Policy | None:
        """What holds for a call: the router's, the tenant's and the caller's policy, joined."""
        own = self._policy
        tenant = self._tenant_policies.get(scope.tenant)
        if tenant is None and policy is None:
            return own
        key = (scope.tenant, policy.digest if policy is not None else "")
        kept = self._policies.get(key)
        joined = kept[1] if kept is not None and kept[0] is tenant else None
        if joined is None:
            joined = own
            for part in (tenant, policy):
                if part is not None:
                    joined = part if joined is None else joined & part
            if len(self._policies) >= _POLICIES_KEPT:
                self._policies.clear()
            assert joined is not None
            self._policies[key] = tenant, joined
        return joined

    def __repr__(self) -> str:
        backends = [replica.backend for replica in self._registry.replicas]
        names = ", ".join(f"{b.name} (external)" if b.external else b.name for b in backends)
        return f"Router({names}; {'recorded' if self._recorded else 'unrecorded'})"


_POLICIES_KEPT = 1024


def _hold_names(backends: Sequence[Backend]) -> None:
    if not backends:
        raise ConfigError("a router needs a backend", hint='Router(Embedded()), or Router(VLLM("http://..."))')
    names = [backend.name for backend in backends]
    for name in names:
        if not _NAME.fullmatch(name) or names.count(name) > 1:
            raise ConfigError(
                f"backends need names of their own; {name!r} is taken or no name",
                hint="name= takes letters, digits, '-', '_' and '.'",
            )


def _other(api: Api, request: ChatRequest) -> ChatRequest:
    asked = request.body.get(_ASKED[api])
    if asked is None or asked in ("", []):
        raise ConfigError(f"there is nothing to answer: `{_ASKED[api]}` is empty")
    role = "embedding" if api == "embeddings" else DEFAULT
    return request.with_body({"model": role, **request.body})


def _request(asked: Messages, *, model: str, label: Label | str | None, fields: Mapping[str, Any]) -> ChatRequest:
    if isinstance(asked, ChatRequest) and label is None and not fields and "model" in asked.body:
        request = asked
    elif isinstance(asked, ChatRequest):
        marked = asked.label if label is None else asked.label | Label.of(label)
        body = {"model": model, **asked.body, **fields}
        request = ChatRequest(body, marked, asked.agreed)
    else:
        messages = [{"role": "user", "content": asked}] if isinstance(asked, str) else [dict(m) for m in asked]
        request = ChatRequest({"model": model, "messages": messages, **fields}, Label.of(label))
    if not isinstance(request.body.get("messages"), list) or not request.body["messages"]:
        raise ConfigError("there is nothing to answer: `messages` is empty")
    if not request.model:
        raise ConfigError("`model` is empty", hint='"default" is the first local model')
    return request
