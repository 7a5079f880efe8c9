"""The configuration, read anew while the server runs: all of it takes effect or nothing does, and no stream is dropped.

Each try is on record: durably before anything changes, and what is refused, or taken back after all, with its reason.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from aibox.box import Box
from aibox.errors import AIBoxError, ConfigError
from aibox.policy.policy import Policy
from aibox.server import guards
from aibox.server.auth import Callers
from aibox.server.log import failure
from aibox.server.principal import Authenticator
from aibox.server.tokens import Tokens
from aibox.settings import RELOADED, Settings
from aibox.types import Scope

KIND = "config.reloaded"
SIGNAL = "aibox"
"""In whose name it is recorded when a signal asked, and nobody who proved who they are."""


@dataclass(frozen=True, slots=True)
class Reloaded:
    """What is in force. `restart` names what differs in the settings and is taken up by a new start alone."""

    policy: str
    backends: tuple[str, ...]
    issuers: tuple[str, ...]
    restart: tuple[str, ...]


class Reload:
    """Takes up the policies, backends, routes and issuers that `read` gives, and then has `renew` make the agents anew.

    `keys` are the API keys, which need no reading: they are looked up at every request. `started` is what the server
    was started with; `guarded` False is a server under `--dev`.
    """

    def __init__(
        self,
        box: Box,
        *,
        callers: Callers,
        tokens: Tokens,
        keys: Authenticator | None,
        read: Callable[[], Settings],
        renew: Callable[[], None],
        guarded: bool,
    ) -> None:
        self._box = box
        self._callers = callers
        self._tokens = tokens
        self._keys = keys
        self._read = read
        self._renew = renew
        self._guarded = guarded
        self._started = box.settings
        self._lock = asyncio.Lock()
        self._begun = False
        """Whether it is on record that what was read last is taken up."""

    async def __call__(self, scope: Scope | None = None) -> Reloaded:
        """`scope` is who asked; None a signal. Raises AIBoxError for what does not hold: then nothing has changed."""
        scope = scope or Scope(tenant=self._started.server.tenant, user=SIGNAL)
        async with self._lock:
            self._begun = False
            try:
                return await self._take_up(scope)
            except AIBoxError as error:
                await self._failed(scope, error)
                raise
            except Exception as error:
                told = _unexpected(error)
                await self._failed(scope, told)
                raise told from error

    async def _take_up(self, scope: Scope) -> Reloaded:
        settings = await asyncio.to_thread(self._read)
        server = settings.server.model_copy(update={"api_keys": self._started.server.api_keys})
        if bool(server.issuers or server.api_keys) != self._callers.tells_apart:
            raise ConfigError(
                "from the local key to issuers, or back, leads a new start alone",
                hint="keep a [[server.issuers]], or restart",
            )
        if self._guarded:
            guards.refuse_unguarded(server.model_copy(update={"host": self._started.server.host}))
        issuers = self._tokens.plan(server.issuers)
        backends = tuple(table.name or table.kind for table in settings.backends)
        digest = ""

        async def before(policies: Mapping[str, Policy]) -> None:
            nonlocal digest
            if self._guarded:
                guards.refuse_unfit(settings, server, policies)
            digest = policies["the box"].digest
            await self._record(
                scope, outcome="taken up", policy=digest, backends=list(backends), issuers=sorted(issuers)
            )
            self._begun = True

        def after() -> None:
            self._renewed()
            self._tokens.use(issuers)
            if server.issuers or self._keys is not None:
                ways = [self._keys] if self._keys is not None else []
                self._callers.use(*ways, *([self._tokens] if server.issuers else []))

        await self._box.reload(settings, before=before, after=after)
        return Reloaded(digest, backends, tuple(sorted(issuers)), tuple(self._later(settings)))

    def _renewed(self) -> None:
        try:
            self._renew()
        except AIBoxError:
            raise
        except Exception as error:
            raise ConfigError(f"the agent could not be made anew: {type(error).__name__}: {error}") from error

    def _later(self, settings: Settings) -> list[str]:
        """What differs from what the server was started with, and stays as it was."""
        old = self._started
        names = [
            name
            for name in Settings.model_fields
            if name not in (*RELOADED, "server", "source") and getattr(old, name) != getattr(settings, name)
        ]
        names += [
            f"server.{name}"
            for name in type(old.server).model_fields
            if name != "issuers" and getattr(old.server, name) != getattr(settings.server, name)
        ]
        hooks = {
            one: [getattr(read.tenants.get(one), "webhooks", ()) for read in (old, settings)]
            for one in sorted({*old.tenants, *settings.tenants})
        }
        return names + [f"tenants.{one}.webhooks" for one, (was, now) in hooks.items() if was != now]

    async def _failed(self, scope: Scope, error: AIBoxError) -> None:
        outcome = "taken back" if self._begun else "refused"
        await self._record(scope, outcome=outcome, code=error.code, reason=str(error))

    async def _record(self, scope: Scope, **detail: object) -> None:
        await self._box.audit.append(KIND, scope=scope, detail=detail)


def _unexpected(error: Exception) -> ConfigError:
    """What a package that brings a backend, or a bug of ours, raises; its own words may hold a secret."""
    found = failure(error)
    return ConfigError(f"it could not be taken up: {found['error']} in {found['raised']}", hint="nothing has changed")
