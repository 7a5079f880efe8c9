"""Which models there are, on which backend, under which names. Local before external, in the order of wiring."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aibox.chat import ModelInfo
from aibox.errors import AIBoxError, BackendError, ConfigError
from aibox.protocols import Backend

TTL_S = 30.0
DEFAULT = "default"
MAX_LISTED = 20


@dataclass(frozen=True, slots=True)
class Route:
    """A model, and the backend that answers for it."""

    backend: Backend
    model: ModelInfo


@dataclass(slots=True)
class _Listing:
    models: Sequence[ModelInfo]
    fresh_until: float


class Registry:
    """Finds the backend for a model's name; what a backend offers is asked again after TTL_S seconds."""

    def __init__(self, backends: Sequence[Backend], *, aliases: Mapping[str, str] | None = None) -> None:
        # sorted() is stable: among the local ones and among the external ones the order of wiring stays.
        self.backends = tuple(sorted(backends, key=lambda backend: backend.external))
        self._aliases = dict(aliases or {})
        self._listings: dict[str, _Listing] = {}

    async def find(self, name: str) -> Route:
        """The route to `"default"`, an alias, `backend/model` or a bare model id.

        Raises ConfigError for a model that nobody offers, BackendError when a backend that might could not be asked.
        """
        name = self._aliases.get(name, name)
        if name == DEFAULT:
            return await self._default()
        backend, _, model = name.partition("/")
        named = [b for b in self.backends if b.name == backend] if model else []
        for candidate in named:
            for info in await self.listing(candidate):
                if info.id == model:
                    return Route(candidate, info)
        return await self._anywhere(name)

    async def all(self) -> tuple[ModelInfo, ...]:
        """The models of all backends that can say; raises the first error when none can."""
        found, errors = await self._ask_all()
        if errors and not found:
            raise errors[0]
        return tuple(route.model for route in found)

    async def listing(self, backend: Backend) -> Sequence[ModelInfo]:
        """What one backend offers. While one caller asks anew, the others go on with what is known."""
        known, now = self._listings.get(backend.name), time.monotonic()
        if known is not None and now < known.fresh_until:
            return known.models
        if known is not None:
            known.fresh_until = now + TTL_S
        try:
            models = await backend.models()
        except BaseException:
            if known is not None:
                known.fresh_until = 0.0
            raise
        self._listings[backend.name] = _Listing(models, now + TTL_S)
        return models

    async def _default(self) -> Route:
        local = [backend for backend in self.backends if not backend.external]
        if not local:
            raise ConfigError(
                "there is no local model to be the default, and an external one is never chosen by itself",
                hint="name the model, as backend/model",
            )
        models = await self.listing(local[0])
        if not models:
            raise BackendError(f"backend {local[0].name!r} offers no model", hint="`aibox models` lists what there is")
        return Route(local[0], models[0])

    async def _anywhere(self, name: str) -> Route:
        found, errors = await self._ask_all()
        for route in found:
            if route.model.id == name:
                return route
        if errors:
            raise BackendError(
                f"no model {name!r} was found, and a backend could not be asked: {errors[0].message}",
                hint=errors[0].hint,
                retryable=getattr(errors[0], "retryable", False),
            )
        listed = ", ".join(f"{route.backend.name}/{route.model.id}" for route in found[:MAX_LISTED])
        raise ConfigError(f"there is no model {name[:100]!r}", hint=f"there are: {listed or 'none'}")

    async def _ask_all(self) -> tuple[list[Route], list[AIBoxError]]:
        found: list[Route] = []
        errors: list[AIBoxError] = []
        for backend in self.backends:
            try:
                found += [Route(backend, info) for info in await self.listing(backend)]
            except (BackendError, ConfigError) as error:
                errors.append(error)
        return found, errors
