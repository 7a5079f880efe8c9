"""Fetching small JSON objects over HTTP: no redirects, bounded in size and time."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from urllib.parse import SplitResult, urlsplit

from aibox.errors import ConfigError, UpstreamError
from aibox.inference.connection import UnreachableError
from aibox.inference.full import reaching
from aibox.inference.plain import looked_up
from aibox.inference.transport import Transport

MAX_BYTES = 1 << 20
TIMEOUT_S = 10.0


class JsonClient:
    """Fetches JSON objects. Redirects are refused: the address that was configured is the one that is asked.

    `https` only, but for loopback. The environment's proxies and certificates are not looked at: `transport` names
    them. An answer is there within `timeout_s`, whole, however it drips. What is fetched is fetched so seldom that no
    connection is kept.
    """

    def __init__(
        self, *, transport: Transport | None = None, timeout_s: float = TIMEOUT_S, max_bytes: int = MAX_BYTES
    ) -> None:
        self._transport = transport or Transport()
        self._timeout_s = timeout_s
        self._max_bytes = max_bytes

    async def get(self, url: str, *, correlation: str = "") -> dict[str, Any]:
        """The object at a URL, asked for as part of the request of that id, where one is given.

        Raises ConfigError for a URL that may not be asked, UpstreamError for all else.
        """
        parts = require_https(url)
        target = f"{parts.path or '/'}{'?' if parts.query else ''}{parts.query}"
        # Compressed it might be a thousand times what came.
        fields = {"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "aibox"}
        part_of = {"X-Correlation-ID": correlation} if correlation else {}
        client = reaching(
            f"{parts.scheme}://{parts.netloc}", fields, transport=self._transport, resolve=looked_up,
            silence_s=self._timeout_s, connect_s=self._timeout_s, idle_s=self._timeout_s,
        )  # fmt: skip
        try:
            async with asyncio.timeout(self._timeout_s):
                response = await client.ask("GET", target, part_of, None)
                if response.status != 200:
                    raise UpstreamError(f"{url} answered {response.status}")
                body = bytearray()
                while part := await response.readany():
                    body += part
                    if len(body) > self._max_bytes:
                        raise UpstreamError(f"{url} answers with more than {self._max_bytes} bytes")
        except (OSError, ValueError) as error:
            raise UpstreamError(f"{url} cannot be asked: {_why(error)}", hint=_hint(error)) from None
        finally:
            await client.close()
        try:
            value = json.loads(body)
        except (ValueError, RecursionError):
            raise UpstreamError(f"{url} does not answer with JSON") from None
        if not isinstance(value, dict):
            raise UpstreamError(f"{url} does not answer with a JSON object")
        return value


def _why(error: OSError | ValueError) -> str:
    """In our own words: those of a connection may name a proxy and addresses, and whoever sent a token reads this."""
    if _is_certificate(error):
        return "its certificate is not trusted here"
    if isinstance(error, TimeoutError):
        return "it took too long"
    return "it cannot be reached" if isinstance(error, UnreachableError) else "its answer cannot be read"


def _hint(error: OSError | ValueError) -> str:
    return "`ca_bundle` of the issuer names a file with its authority" if _is_certificate(error) else ""


def _is_certificate(error: OSError | ValueError) -> bool:
    return "certificate" in str(error).lower()


def require_https(url: str) -> SplitResult:
    """The parts of a URL. Raises ConfigError unless it is https, or http on this very machine."""
    refused = ConfigError(f"{url!r} is not an https URL", hint="https://HOST/..., or http://127.0.0.1:PORT for a trial")
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - that it is a number is found out when it is asked for
    except ValueError:
        raise refused from None
    here = parts.scheme == "http" and parts.hostname in ("127.0.0.1", "::1", "localhost")
    if not (here or parts.scheme == "https") or not parts.hostname or parts.username is not None:
        raise refused
    return parts
