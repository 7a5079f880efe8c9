"""An issuer's public keys: found by discovery, kept for minutes, asked for once however many ask at a time.

A token's own `jku`, `x5u` and `jwk` are never looked at: only the issuer's configured address is asked.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from aibox.errors import AuthError, ConfigError, UpstreamError
from aibox.server.fetch import require_https

FRESH_S = 600.0
"""How long keys are used before they are asked for again."""
STALE_S = 3600.0
"""How long keys are used while the issuer cannot be asked: it may be restarting."""
COOLDOWN_S = 30.0
"""At most one question in this time for keys that nobody knows: a thousand forged `kid`s are one question."""
MAX_KEYS = 64


class Fetches(Protocol):
    async def get(self, url: str, *, correlation: str = "") -> dict[str, Any]: ...


class KeySet:
    """The verification keys of one issuer, by `kid`.

    `url` None is discovered at `<issuer>/.well-known/openid-configuration`, whose `issuer` must be the very same string
    (OpenID Connect Discovery 1.0 sec. 4.3). `parse` makes a key of a JWK, or None of one that is not for signatures.
    """

    def __init__(
        self,
        issuer: str,
        *,
        http: Fetches,
        parse: Callable[[Mapping[str, Any]], Any],
        url: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._issuer = issuer
        self._http = http
        self._parse = parse
        self._configured = self._url = url
        self._clock = clock
        self._keys: dict[str, Any] = {}
        self._fetched_at: float | None = None
        self._asked_at: float | None = None
        self._lock = asyncio.Lock()

    async def key(self, kid: str, *, correlation: str = "") -> Any:
        """The key. Raises AuthError for one that the issuer does not have, UpstreamError when it cannot say.

        An issuer that is asked is told the request for whose sake: of those that wait for one answer, the first.
        """
        # Whoever does not know the key while somebody asks waits for that answer: it is the answer for all.
        if self._wants(kid) or (kid not in self._keys and self._lock.locked()):
            async with self._lock:
                if self._wants(kid):
                    await self._refresh(correlation)
        if kid not in self._keys:
            raise AuthError("the token was signed with a key that its issuer does not have")
        return self._keys[kid]

    def _wants(self, kid: str) -> bool:
        """Whether the issuer is to be asked for the sake of this key."""
        return not self._is_fresh() or (kid not in self._keys and self._may_ask())

    def _is_fresh(self) -> bool:
        return self._fetched_at is not None and self._clock() - self._fetched_at < FRESH_S

    def _may_ask(self) -> bool:
        return self._asked_at is None or self._clock() - self._asked_at >= COOLDOWN_S

    async def _refresh(self, correlation: str) -> None:
        if not self._may_ask():
            if self._fetched_at is None:
                raise UpstreamError(f"the keys of {self._issuer} could not be had a moment ago", retryable=True)
            return self._forget_if_stale()
        self._asked_at = self._clock()
        try:
            keys = await self._listed(correlation)
        except UpstreamError:
            if self._fetched_at is None:
                raise
            return self._forget_if_stale()
        parsed: dict[str, Any] = {}
        for jwk in keys:
            kid = jwk.get("kid") if isinstance(jwk, dict) else None
            if isinstance(kid, str) and (key := self._parse(jwk)) is not None:
                parsed[kid] = key
        # What the issuer no longer lists is gone from here in the same moment.
        self._keys, self._fetched_at = parsed, self._clock()
        return None

    async def _listed(self, correlation: str) -> list[Any]:
        address = await self._address(correlation)
        self._url = self._configured  # where this fails they may have moved: the next question looks for them again
        keys = (await self._http.get(address, correlation=correlation)).get("keys")
        if not isinstance(keys, list) or len(keys) > MAX_KEYS:
            raise UpstreamError(f"{self._issuer} does not answer with a key set")
        self._url = address
        return keys

    def _forget_if_stale(self) -> None:
        if self._fetched_at is not None and self._clock() - self._fetched_at >= STALE_S:
            self._keys, self._fetched_at = {}, None
            raise UpstreamError(f"the keys of {self._issuer} are too old, and it cannot be asked", retryable=True)

    async def _address(self, correlation: str) -> str:
        if self._url is None:
            document = f"{self._issuer.rstrip('/')}/.well-known/openid-configuration"
            found = await self._http.get(document, correlation=correlation)
            if found.get("issuer") != self._issuer or not isinstance(found.get("jwks_uri"), str):
                raise UpstreamError(f"the discovery document of {self._issuer} is of another issuer")
            try:
                require_https(found["jwks_uri"])
            except ConfigError:
                raise UpstreamError(
                    f"the discovery document of {self._issuer} names no https URL of its keys"
                ) from None
            return str(found["jwks_uri"])
        return self._url
