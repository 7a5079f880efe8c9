"""The client's way to the server: one pool of connections, one key, answers held to their types."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, TypeAdapter, ValidationError

from aibox.errors import UpstreamError
from aibox.server.fetch import require_https
from aibox.server.told import error_of

if TYPE_CHECKING:
    import httpx2

A = TypeVar("A", bound=BaseModel)
CONNECT_S = 10.0
SILENCE_S = 600.0
"""How long an answer may let one wait. A stream is never so long without a sign of life."""
MAX_EVENT_BYTES = 8 << 20
DONE = "[DONE]"
"""What OpenAI's streams end with, which is no JSON."""


class Connection:
    """Sends requests. `https` only, but for loopback; redirects and the environment's proxies are not followed."""

    def __init__(
        self, url: str, key: str, *, case: str = "", timeout_s: float = SILENCE_S, transport: Any = None
    ) -> None:
        require_https(url)
        self._url = url.rstrip("/").removesuffix("/v1")
        self._key = key
        self._case = case
        self._timeout_s = timeout_s
        self._transport = transport
        self._client: httpx2.AsyncClient | None = None

    async def ask(
        self,
        method: str,
        path: str,
        answer: type[A],
        *,
        body: Any = None,
        query: Any = None,
        match: str | None = None,
        idempotency_key: str | None = None,
        **parts: str | int,
    ) -> A:
        """An answer of that type. Raises the AIBoxError that the server told, UpstreamError where it cannot be had.

        `match` is the digest of what is to be replaced, or `*` for whatever is there. What has an `idempotency_key` is
        done once: asked again with the same key it has the same answer.
        """
        more: dict[str, Any] = {"match": match, "idempotency_key": idempotency_key, **parts}
        data = await self.raw(method, path, body=body, query=query, **more)
        try:
            return answer.model_validate_json(data)
        except ValidationError as error:
            raise UpstreamError(f"the server's answer is no {answer.__name__}: {error.errors()[0]['msg']}") from None

    async def raw(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        query: Any = None,
        match: str | None = None,
        idempotency_key: str | None = None,
        **parts: str | int,
    ) -> bytes:
        """The answer's bytes. `body` is bytes as they are, or anything that is JSON; raises as `ask`."""
        import httpx2

        request = self._request(method, path, body, query, parts)
        if idempotency_key is not None:
            request.headers["idempotency-key"] = idempotency_key
        if match is not None:
            request.headers["if-match"] = match if match == "*" else f'"{match}"'
        try:
            response = await self._open().send(request)
        except httpx2.HTTPError as error:
            raise self._unreachable(error) from None
        if response.status_code >= 300:
            raise error_of(response.status_code, response.content, response.headers)
        return response.content

    async def events(
        self, path: str, kind: TypeAdapter[Any], *, body: Any, idempotency_key: str | None = None
    ) -> AsyncGenerator[Any, None]:
        """The events of a stream as they come. Leaving early closes the call, and so ends what runs there."""
        import httpx2

        request = self._request("POST", path, body, None, {})
        if idempotency_key is not None:
            request.headers["idempotency-key"] = idempotency_key
        try:
            response = await self._open().send(request, stream=True)
            try:
                if response.status_code >= 300:
                    raise error_of(response.status_code, await response.aread(), response.headers)
                async for data in _events(response):
                    if data == DONE:
                        break
                    yield kind.validate_json(data)
            finally:
                await response.aclose()
        except httpx2.HTTPError as error:
            raise self._unreachable(error) from None
        except ValidationError as error:
            raise UpstreamError(f"the server sent no event: {error.errors()[0]['msg']}") from None

    async def close(self) -> None:
        """Give back the connections. Closing twice is allowed."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    def _unreachable(self, error: Exception) -> UpstreamError:
        what = f"{self._url} cannot be asked: {type(error).__name__}"
        return UpstreamError(what, hint="is `aibox serve` running there? /readyz says how it is", retryable=True)

    def _request(self, method: str, path: str, body: Any, query: Any, parts: Mapping[str, str | int]) -> httpx2.Request:
        filled = path.format(**{name: quote(str(value), safe="") for name, value in parts.items()})
        more: dict[str, Any] = {"content": body} if isinstance(body, bytes) else {} if body is None else {"json": body}
        asked = {name: value for name, value in (query or {}).items() if value is not None}
        return self._open().build_request(method, filled, params=asked, **more)

    def _open(self) -> httpx2.AsyncClient:
        if self._client is None:
            import httpx2

            self._client = httpx2.AsyncClient(
                base_url=self._url,
                headers={"authorization": f"Bearer {self._key}"} | ({"x-aibox-case": self._case} if self._case else {}),
                timeout=httpx2.Timeout(self._timeout_s, connect=CONNECT_S),
                follow_redirects=False,
                trust_env=False,
                transport=self._transport,
            )
        return self._client


async def _events(response: httpx2.Response) -> AsyncIterator[str]:
    """The data of each server-sent event; comments are passed over."""
    data: list[str] = []
    size = 0
    async for line in response.aiter_lines():
        if line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))
            size += len(line)
            if size > MAX_EVENT_BYTES:
                raise UpstreamError(f"an event of the server is longer than {MAX_EVENT_BYTES >> 20} MiB")
        elif not line and data:
            yield "\n".join(data)
            data, size = [], 0
