"""Who is asking: the local key of a laptop, and the door where every request proves one of the known ways who it is."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path

from aibox.errors import AuthError, ConfigError, StoreError
from aibox.server.principal import Authenticator, Principal, Role
from aibox.types import Scope

PREFIX = "aibox-local-"


ANSWERS = (Role.USER, Role.SERVICE, Role.TENANT_ADMIN, Role.PLATFORM_ADMIN)
"""Who may ask models and agents: everybody but an auditor, who reads evidence and nothing else."""


class Callers:
    """Asks each Authenticator in turn whose a bearer token is."""

    def __init__(self, *authenticators: Authenticator) -> None:
        self._authenticators = authenticators
        self.admits: Callable[[Principal], Awaitable[None]] | None = None
        """Asked about everybody who has proved who they are; raises AccessError for who is let in no more."""

    def use(self, *authenticators: Authenticator) -> None:
        """Ask these from now on. Who is not among them any more is not closed."""
        self._authenticators = authenticators

    @property
    def tells_apart(self) -> bool:
        """Whether callers are more than the one person with the local key."""
        return not any(isinstance(one, LocalKey) for one in self._authenticators)

    async def principal(self, authorization: str, *, correlation: str = "") -> Principal:
        """Whoever sent this `Authorization` header. Raises AuthError; AccessError for a token without a tenant.

        `correlation` is the id of the request, for whoever must be asked about it.
        """
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() == "bearer":
            for authenticator in self._authenticators:
                if (found := await authenticator.authenticate(token.strip(), correlation=correlation)) is not None:
                    if self.admits is not None:
                        await self.admits(found)
                    return found
        missing = scheme.lower() != "bearer" or not token.strip()
        raise AuthError(
            "the API key is missing or wrong", hint="send it as: Authorization: Bearer ...", missing=missing
        )

    async def scope(self, authorization: str) -> Scope:
        """The scope of a caller who may ask models and agents; AccessError for an auditor. Else as `principal`."""
        principal = await self.principal(authorization)
        principal.require(*ANSWERS)
        return principal.scope

    async def close(self) -> None:
        for authenticator in self._authenticators:
            await authenticator.close()


class LocalKey:
    """The key of the one person who may use this server. Kept as SHA-256 in `path`, 0600. An Authenticator.

    A fast hash is enough: the key is 256 random bits and not a password.
    """

    def __init__(self, path: Path, *, scope: Scope) -> None:
        if scope.is_local:
            raise ConfigError("a server does not serve the local scope", hint="set server.tenant to another name")
        self._path = path
        roles = frozenset({Role.USER, Role.TENANT_ADMIN, Role.PLATFORM_ADMIN})
        self._principal = Principal(scope, roles, how="local key")
        self._hash = b""

    def prepare(self, *, renew: bool = False) -> str | None:
        """Load the hash; on the first start, or when asked to renew, make a key and return it, for this once."""
        try:
            if self._path.exists() and not renew:
                self._hash = _read_hash(self._path)
                return None
            key = PREFIX + secrets.token_urlsafe(32)
            self._hash = _hash(key)
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fresh = self._path.with_name(f".{self._path.name}.{os.getpid()}")
            with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(self._hash.hex())
            fresh.replace(self._path)
        except OSError as error:
            raise StoreError(f"the server's key cannot be kept in {self._path}: {error.strerror}") from None
        return key

    async def authenticate(self, token: str, *, correlation: str = "") -> Principal | None:  # noqa: ARG002 - nobody else is asked
        """The one person, when this is the key; None when it is not."""
        return self._principal if hmac.compare_digest(_hash(token), self._hash) else None

    async def close(self) -> None:
        """Nothing is held open."""


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "replace")).digest()


def _read_hash(path: Path) -> bytes:
    text = path.read_text("ascii", "replace").strip()
    if len(text) != 2 * hashlib.sha256().digest_size or set(text) - set("0123456789abcdef"):
        raise ConfigError(f"{path} is damaged", hint="aibox serve --new-key makes a new one")
    return bytes.fromhex(text)
