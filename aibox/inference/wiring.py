"""What settings say of models, as backends and the names that lead to them; and what of it may stay when it changes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aibox.audit.keys import Keyring
from aibox.errors import ConfigError
from aibox.inference.configured import embedded, hold_files, make_backend
from aibox.inference.staging import ModelStore
from aibox.protocols import Backend
from aibox.settings import BackendSettings, Settings

_FILES = ("api_key_file", "ca_bundle", "client_certificate", "client_key")


@dataclass(frozen=True, slots=True, eq=False)
class Wiring:
    """The backends of one reading of the settings, and the routes to them."""

    backends: tuple[Backend, ...]
    fresh: tuple[Backend, ...]
    """Those of them that were made for this reading."""
    routes: Mapping[str, Any]
    """Of Router: aliases, tenant_aliases, owners, fallbacks, calls_at_once."""
    made_of: Sequence[tuple[Any, Backend]]

    @classmethod
    def of(
        cls,
        settings: Settings,
        *,
        keys: Keyring,
        before: Wiring | None = None,
    ) -> Wiring:
        """Raises ConfigError for what does not hold, such as a file that cannot be read; nothing is asked or loaded.

        A backend of `before` stays the same one, with its connections and its loaded weights, where nothing that it is
        made of has changed: neither its table, nor the keys and certificates in the files which that names. Of a new
        one beside `before` the files are looked into: what it would take the place of still works.
        """
        kept = list(before.made_of) if before is not None else []
        made: list[tuple[Any, Backend]] = []
        fresh: list[Backend] = []
        store = store_of(settings, keys)
        secret = keys.secret("cache-salt") if any(table.kind == "vllm" for table in settings.backends) else None
        for table in settings.backends or (None,):
            marks = None if table is None else _marks(table, store)
            found = next((backend for of, backend in kept if of == marks), None)
            if found is None:
                if before is not None and table is not None:
                    hold_files(table)
                found = embedded() if table is None else make_backend(table, salt_secret=secret, store=store)
                fresh.append(found)
            made.append((marks, found))
        routing = settings.routing
        named = [(backend.name, table) for (_, backend), table in zip(made, settings.backends, strict=False)]
        routes = {
            "aliases": {**routing.aliases, **({"default": settings.default_model} if settings.default_model else {})},
            "tenant_aliases": routing.tenants,
            "owners": {name: table.tenants for name, table in named if table.tenants},
            "fallbacks": routing.fallbacks,
            "calls_at_once": {name: table.calls_at_once for name, table in named if table.calls_at_once},
        }
        return cls(tuple(backend for _, backend in made), tuple(fresh), routes, made)


def store_of(settings: Settings, keys: Keyring) -> ModelStore | None:
    """The models staged on this disk; None where the settings name none of them."""
    return ModelStore(settings.home / "models", keys=keys) if any(b.staged for b in settings.backends) else None


def _marks(table: BackendSettings, store: ModelStore | None) -> tuple[Any, ...]:
    """What a backend is made of, to be compared. Whose it is says the registry, and not the backend."""
    read = []
    for path in (getattr(table, name) for name in _FILES):
        try:
            read.append(None if path is None else hashlib.sha256(path.read_bytes()).digest())
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    weights = store.weights(table.staged) if store is not None and table.staged is not None else None
    return table.model_copy(update={"tenants": None}), tuple(read), weights
