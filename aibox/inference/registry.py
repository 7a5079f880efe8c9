"""Which models there are, on which backends, under which names, for whom. Local before external, always.

A name leads to backends inside or to backends outside, never to a mixture: whoever fails over from one to the next
cannot leave the box by it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from aibox.chat import Capability, ModelInfo
from aibox.errors import NO_MODEL, OPERATORS, AIBoxError, BackendError, ConfigError, IntegrityError
from aibox.inference.background import Background
from aibox.inference.replica import Replica

TTL_S = 30.0
RETRY_S = 1.0
"""How long a backend that could not list its models is not asked again."""
DEFAULT = "default"
ROLES: Mapping[str, Capability] = {
    DEFAULT: "chat",
    "title": "chat",
    "classifier": "chat",
    "memory": "chat",
    "guardrail": "chat",
    "embedding": "embeddings",
    "vision": "vision",
}
"""Names for what a model is used for, and what it must be able to do. Without an alias the first model that can."""
MAX_LISTED = 20
MAX_FOUND = 1024
"""Names whose routes are remembered."""


@dataclass(frozen=True, slots=True)
class Inside:
    """A model on a backend of the operator's own."""

    replica: Replica
    model: ModelInfo


@dataclass(frozen=True, slots=True)
class Outside:
    """A model on an external backend: nothing may be sent there but through the door."""

    replica: Replica
    model: ModelInfo


Routes = tuple[Inside, ...] | tuple[Outside, ...]
"""The replicas of one model, at least one, all on one side of the door."""


@dataclass(slots=True)
class _Listing:
    models: dict[str, ModelInfo] = field(default_factory=dict)
    known: bool = False
    fresh_until: float = 0.0
    error: AIBoxError | None = None


class Registry:
    """Finds the backends for a model's name; what a backend offers is asked again after TTL_S seconds.

    `owners` maps a backend to the tenants it is dedicated to: for them it comes first, and for others it is not there.
    `before` is the registry whose place this one takes: what it knows of a replica that stays is known here.
    """

    def __init__(
        self,
        replicas: Sequence[Replica],
        *,
        aliases: Mapping[str, str] | None = None,
        tenant_aliases: Mapping[str, Mapping[str, str]] | None = None,
        owners: Mapping[str, Collection[str]] | None = None,
        before: Registry | None = None,
    ) -> None:
        # sorted() is stable: among the local ones and among the external ones the order of wiring stays.
        self.replicas = tuple(sorted(replicas, key=lambda replica: replica.backend.external))
        self._aliases = dict(aliases or {})
        self._tenant_aliases = {tenant: dict(names) for tenant, names in (tenant_aliases or {}).items()}
        self._owners = {name: frozenset(tenants) for name, tenants in (owners or {}).items()}
        unknown = sorted(self._owners.keys() - {replica.name for replica in replicas})
        if unknown:
            raise ConfigError(f"there is no backend {unknown[0]!r} to be dedicated to a tenant")
        self._owning = frozenset[str]().union(*self._owners.values())
        self._common = self._sorted("")
        known: dict[Replica, _Listing] = {} if before is None else before._listings  # noqa: SLF001 - of this class
        self._listings: dict[Replica, _Listing] = {replica: known.get(replica) or _Listing() for replica in replicas}
        self._background = Background()
        # By tenant and name: the routes, and until when all that was looked at for them is fresh.
        self._found: dict[tuple[str, str], tuple[Routes, float]] = {}

    async def find(self, name: str, *, tenant: str) -> Routes:
        """The routes to a role such as `"default"`, an alias, `backend/model` or a bare model id.

        Raises ConfigError for a model that nobody offers, BackendError when a backend that might could not be asked.
        """
        kept = self._found
        found = kept.get((tenant, name))
        if found is not None and time.monotonic() < found[1]:
            return found[0]
        routes = await self._find(name, tenant)
        # Whatever is heard of a backend, also meanwhile, all is looked up anew. One never asked was not looked at.
        if kept is self._found:
            if len(kept) >= MAX_FOUND:
                kept.clear()
            kept[tenant, name] = routes, min(fresh for one in self._listings.values() if (fresh := one.fresh_until))
        return routes

    async def _find(self, name: str, tenant: str) -> Routes:
        name = self._tenant_aliases.get(tenant, {}).get(name) or self._aliases.get(name, name)
        tiers = self._tiers(tenant)
        backend, _, model = name.partition("/")
        if model:
            for replica in (replica for tier in tiers for replica in tier if replica.name == backend):
                if info := (await self._listing(replica)).get(model):
                    return _routes([(replica, info)])
        if name == DEFAULT:
            return await self._role(name, tiers)
        # The name of a role is never taken for a model of an external backend that happens to be called so.
        for tier in tiers[:2] if name in ROLES else tiers:
            if tier and (found := await self._offering(name, tier)):
                return _routes(found)
        if name in ROLES:
            return await self._role(name, tiers)
        raise self._missing(name, [replica for tier in tiers for replica in tier])

    async def all(self, *, tenant: str | None = None) -> tuple[ModelInfo, ...]:
        """The models that a tenant can ask for, or those of everybody; raises the first error when none answers."""
        replicas = [replica for tier in self._tiers(tenant or "") for replica in tier]
        await self._ask(replicas)
        found = [info for replica in replicas for info in self._listings[replica].models.values()]
        errors = [error for replica in replicas if (error := self._listings[replica].error)]
        if errors and not found:
            raise errors[0]
        return tuple(found)

    def names(self, *, tenant: str) -> dict[str, str]:
        """The aliases that hold for a tenant, and what each leads to."""
        return {**self._aliases, **self._tenant_aliases.get(tenant, {})}

    async def close(self) -> None:
        """End what it asks in the background."""
        await self._background.stop()

    def _tiers(self, tenant: str) -> list[list[Replica]]:
        """Dedicated ones inside, shared ones inside, then the same outside."""
        return self._sorted(tenant) if tenant in self._owning else self._common

    def _sorted(self, tenant: str) -> list[list[Replica]]:
        tiers: list[list[Replica]] = [[], [], [], []]
        for replica in self.replicas:
            owners = self._owners.get(replica.name)
            if owners is None or tenant in owners:
                tiers[2 * replica.backend.external + (owners is None)].append(replica)
        return tiers

    async def _offering(self, model: str, tier: Sequence[Replica]) -> list[tuple[Replica, ModelInfo]]:
        """The replicas of a tier that offer a model, of the same weights as far as that is known."""
        found = self._having(model, tier)
        if not found:
            await self._ask(tier)
            found = self._having(model, tier)
        for replica in tier:
            self._refresh(replica)
        digests = [info.weights.sha256 for _, info in found if info.weights.sha256]
        return [pair for pair in found if pair[1].weights.sha256 in ("", digests[0])] if digests else found

    def _having(self, model: str, tier: Iterable[Replica]) -> list[tuple[Replica, ModelInfo]]:
        return [(replica, info) for replica in tier if (info := self._listings[replica].models.get(model))]

    async def _role(self, role: str, tiers: Sequence[Sequence[Replica]]) -> Routes:
        """The first model that can do it, of the first local backend that says so."""
        local = [tiers[0], tiers[1]]
        if not any(local):
            raise ConfigError(
                f"there is no local model to be the {role}, and an external one is never chosen by itself",
                hint="name the model, as backend/model",
            )
        wanted = ROLES[role]
        errors: list[AIBoxError] = []
        for tier in local:
            for replica in tier:
                try:
                    models = await self._listing(replica)
                except AIBoxError as error:
                    errors.append(error)
                    continue
                for info in models.values():
                    if _can(info, wanted):
                        return _routes(await self._offering(info.id, tier))
        if errors:
            raise errors[0]
        raise BackendError(f"no local backend offers a model for {role!r}", hint="`aibox models` lists what there is")

    async def _listing(self, replica: Replica) -> Mapping[str, ModelInfo]:
        """What one backend offers; what was known once stays known while the backend cannot be asked."""
        await self._ask([replica])
        self._refresh(replica)
        listing = self._listings[replica]
        if not listing.known:
            assert listing.error is not None
            raise _again(listing.error)
        return listing.models

    async def _ask(self, replicas: Iterable[Replica]) -> None:
        """Wait for those that have never said what they offer."""
        now = time.monotonic()
        silent = [
            replica
            for replica in replicas
            if not (listing := self._listings[replica]).known and now >= listing.fresh_until
        ]
        if len(silent) == 1:
            await self._update(silent[0])
        elif silent:
            await asyncio.gather(*(self._update(replica) for replica in silent))

    def _refresh(self, replica: Replica) -> None:
        """Ask anew without waiting, when it is time."""
        listing = self._listings[replica]
        if time.monotonic() >= listing.fresh_until and not self._background.running(replica.name):
            self._background.start(replica.name, self._update(replica))

    async def _update(self, replica: Replica) -> None:
        listing = self._listings[replica]
        try:
            models = await replica.backend.models()
        except AIBoxError as error:
            listing.error, listing.fresh_until = error, time.monotonic() + RETRY_S
            return
        finally:
            self._found = {}
        listing.models, listing.known, listing.error = {info.id: info for info in models}, True, None
        listing.fresh_until = time.monotonic() + TTL_S

    def _missing(self, name: str, replicas: Sequence[Replica]) -> AIBoxError:
        listings = [(replica, self._listings[replica]) for replica in replicas]
        silent = [listing.error for _, listing in listings if listing.error is not None and not listing.known]
        if silent and (isinstance(silent[0], IntegrityError) or silent[0].code == OPERATORS):
            return _again(silent[0])  # whose words are for the operator, and would be a caller's in another error
        if silent:
            return BackendError(
                f"no model {name!r} was found, and a backend could not be asked: {silent[0].message}",
                hint=silent[0].hint,
                retryable=getattr(silent[0], "retryable", False),
            )
        ids = [f"{replica.name}/{model}" for replica, listing in listings for model in listing.models]
        return ConfigError(
            f"there is no model {name[:100]!r}",
            hint=f"there are: {', '.join(ids[:MAX_LISTED]) or 'none'}",
            code=NO_MODEL,
        )


def _routes(found: Sequence[tuple[Replica, ModelInfo]]) -> Routes:
    """All of one tier, so all on one side."""
    if found[0][0].backend.external:
        return tuple(Outside(replica, info) for replica, info in found)
    return tuple(Inside(replica, info) for replica, info in found)


def _can(info: ModelInfo, capability: Capability) -> bool:
    """In doubt a model chats, and does nothing else."""
    return capability == "chat" if info.capabilities is None else capability in info.capabilities


def _again(error: AIBoxError) -> AIBoxError:
    """A fresh copy: an exception that is raised twice collects the tracebacks of both."""
    if isinstance(error, BackendError):
        return BackendError(
            error.message, hint=error.hint, retryable=error.retryable, timeout=error.timeout, status=error.status
        )
    return ConfigError(error.message, hint=error.hint, code=error.code) if type(error) is ConfigError else error
