"""The last messages of each conversation on a Redis or Valkey server, so that any process can go on with it.

The server holds sealed bytes under hashed names. A window is put together by the rules of `Buffer`: it is never cut in
the middle of a tool call, whatever several processes append.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from aibox.chat import Health
from aibox.errors import AIBoxError, ConfigError, MissingExtraError, StoreError
from aibox.memory.buffer import Buffer
from aibox.memory.cipher import KEY_BYTES, SubjectKey
from aibox.types import Scope

_PREFIX = "aibox:buffer"
_DAY_S = 24 * 60 * 60


class RedisBuffer:
    """As `Buffer`, at a `redis://` or `rediss://` url; sessions that nobody uses for `keep_s` seconds are dropped.

    `key` is 32 bytes that the messages are sealed under; processes that share conversations share it. Raises
    ConfigError for a wrong url or key, MissingExtraError without the extra `redis`, StoreError when the server fails,
    IntegrityError for messages that were changed or moved on it.
    """

    def __init__(
        self,
        url: str,
        *,
        key: bytes,
        max_messages: int = 40,
        max_chars: int = 64_000,
        keep_s: int = 7 * _DAY_S,
        timeout_s: float = 2.0,
    ) -> None:
        if not url.startswith(("redis://", "rediss://", "unix://")):
            raise ConfigError("the url of a Redis buffer begins with redis://, rediss:// or unix://")
        if len(key) != KEY_BYTES:
            raise ConfigError(f"the key of the buffer has {len(key)} bytes and needs {KEY_BYTES}")
        self.max_messages = max_messages
        self.max_chars = max_chars
        self._url = url
        self._key = SubjectKey(key)
        self._keep_s = keep_s
        self._timeout_s = timeout_s
        self._server: Any = None
        self._redis_error: type[Exception] = Exception

    def __repr__(self) -> str:
        where = self._url.rpartition("@")[2].partition("://")[2] or self._url.rpartition("@")[2]
        return f"RedisBuffer({where}, max_messages={self.max_messages}, max_chars={self.max_chars})"

    async def add(self, message: Mapping[str, Any], *, scope: Scope) -> None:
        """Append a message in the form of Chat Completions."""
        name = _name(scope)
        sealed = self._key.seal(json.dumps(message, ensure_ascii=True, default=str).encode(), name)
        async with self._connection() as server, server.pipeline(transaction=True) as pipe:
            pipe.rpush(name, sealed)
            # More than a window, because what it leaves out may lie between: a tool result that answers no call.
            pipe.ltrim(name, -4 * self.max_messages, -1)
            pipe.expire(name, self._keep_s)
            await pipe.execute()

    async def window(self, *, scope: Scope) -> list[dict[str, Any]]:
        """The messages kept of the scope's session, oldest first; tool calls that lack a result are left out."""
        name = _name(scope)
        async with self._connection() as server:
            sealed = await server.lrange(name, 0, -1)
        window = Buffer(max_messages=self.max_messages, max_chars=self.max_chars, max_sessions=1)
        for one in sealed:
            window.add(json.loads(self._key.open(one, name)), scope=scope)
        return window.window(scope=scope)

    async def clear(self, *, tenant: str, user: str | None = None) -> int:
        """Forget the sessions of a user of the tenant, or with None of all its users; the number of sessions."""
        pattern = f"{_PREFIX}:{_hash(tenant)}:" + ("*" if user is None else f"{_hash(user)}:*")
        async with self._connection() as server:
            names = [name async for name in server.scan_iter(match=pattern, count=1000)]
            return int(await server.unlink(*names)) if names else 0

    async def health(self) -> Health:
        """Whether the server answers. Never raises AIBoxError."""
        try:
            async with self._connection() as server:
                await server.ping()
        except AIBoxError as error:
            return Health(ok=False, detail=error.message)
        return Health(ok=True, detail="messages on Redis")

    async def close(self) -> None:
        """Give back the connections. Closing twice is allowed."""
        server, self._server = self._server, None
        if server is not None:
            await server.aclose()

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Any]:
        if self._server is None:
            try:
                from redis.asyncio import Redis
                from redis.exceptions import RedisError
            except ImportError:
                raise MissingExtraError("the buffer on Redis", extra="redis") from None
            self._redis_error = RedisError
            self._server = Redis.from_url(
                self._url, socket_timeout=self._timeout_s, socket_connect_timeout=self._timeout_s
            )
        try:
            yield self._server
        except (self._redis_error, OSError) as error:
            raise StoreError(
                f"the messages on Redis cannot be used: {type(error).__name__}",
                hint="is the server running, and the url right?",
                retryable=True,
            ) from error


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:32]


def _name(scope: Scope) -> str:
    session = _hash(f"{scope.agent}|{scope.session}")
    return f"{_PREFIX}:{_hash(scope.tenant)}:{_hash(scope.user)}:{session}"
