"""The plain HTTP client, for all that is not a model call: small answers, no redirects, bounded in size and time."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from aibox.errors import ConfigError, UpstreamError

if TYPE_CHECKING:
    import httpx2

MAX_BYTES = 1 << 20
TIMEOUT_S = 10.0


class JsonClient:
    """Fetches JSON objects. Redirects are refused: the address that was configured is the one that is asked.

    `https` only, but for loopback. The environment's proxies and certificates are not looked at. An answer is there
    within `timeout_s`, whole, however it drips.
    """

    def __init__(self, *, timeout_s: float = TIMEOUT_S, max_bytes: int = MAX_BYTES) -> None:
        self._timeout_s = timeout_s
        self._max_bytes = max_bytes
        self._client: httpx2.AsyncClient | None = None

    async def get(self, url: str) -> dict[str, Any]:
        """The object at a URL. Raises ConfigError for a URL that may not be asked, UpstreamError for all else."""
        require_https(url)
        import httpx2

        if self._client is None:
            self._client = httpx2.AsyncClient(follow_redirects=False, trust_env=False, timeout=self._timeout_s)
        # Compressed it might be a thousand times what came.
        headers = {"accept": "application/json", "accept-encoding": "identity"}
        try:
            async with (
                asyncio.timeout(self._timeout_s),
                self._client.stream("GET", url, headers=headers) as response,
            ):
                if response.status_code != 200:
                    raise UpstreamError(f"{url} answered {response.status_code}")
                body = bytearray()
                async for part in response.aiter_raw():
                    body += part
                    if len(body) > self._max_bytes:
                        raise UpstreamError(f"{url} answers with more than {self._max_bytes} bytes")
        except (httpx2.HTTPError, TimeoutError) as error:
            raise UpstreamError(f"{url} cannot be asked: {type(error).__name__}") from None
        try:
            value = json.loads(body)
        except (ValueError, RecursionError):
            raise UpstreamError(f"{url} does not answer with JSON") from None
        if not isinstance(value, dict):
            raise UpstreamError(f"{url} does not answer with a JSON object")
        return value

    async def close(self) -> None:
        """Give back the connections. Closing twice is allowed."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()


def require_https(url: str) -> None:
    """Raises ConfigError unless a URL is https, or http on this very machine."""
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    if parts.scheme == "http" and parts.hostname in ("127.0.0.1", "::1", "localhost"):
        return
    if parts.scheme != "https" or not parts.hostname or parts.username is not None:
        raise ConfigError(f"{url!r} is not an https URL", hint="https://HOST/..., or http://127.0.0.1:PORT for a trial")
