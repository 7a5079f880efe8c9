"""OpenAI's API over HTTP, for the hot path. The only file that opens sockets to model servers.

Nothing is taken from the environment, no redirect is followed, and whatever fails comes out as BackendError.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from aibox.errors import BackendError, EgressError
from aibox.inference.addresses import literal
from aibox.inference.sse import Events
from aibox.inference.transport import Rule, Transport

if TYPE_CHECKING:
    from aiohttp import ClientResponse, ClientSession

CHAT = "/chat/completions"
_CHOICES = (CHAT, "/completions")
CONNECT_S = 5.0
KEEPALIVE_S = 4.0
"""Below the 5 s after which uvicorn, and so vLLM, closes an idle connection: the race would lose requests."""
MAX_BODY_BYTES = 32 << 20
MAX_STREAM_BYTES = 128 << 20
MAX_ERROR_BYTES = 64 << 10
MAX_MESSAGE_CHARS = 300

_RETRYABLE = frozenset({408, 425, 429, 500, 502, 503, 504})
_HINTS = {
    401: "the server wants another api_key",
    403: "the server wants another api_key",
    404: "is the base URL right? it usually ends in /v1, and the model must be one that the server lists",
    413: "send less text",
    429: "the server has too much to do; wait a moment",
    503: "the server is starting or overloaded; wait a moment",
}


Read = tuple[dict[str, Any], bytes]
"""A JSON object, and the bytes that it was read from."""


class Wire:
    """The connection to one server: a pool for each event loop that uses it, made when it is first needed.

    `timeout_s` is the longest silence of the server: before its first byte and between two pieces. Errors name the
    server as `name`, and never show `secret` or a proxy's password. `rule` says which addresses the host's name may
    resolve to.
    """

    def __init__(
        self,
        base_url: str,
        *,
        name: str,
        headers: Mapping[str, str],
        secret: str = "",
        timeout_s: float,
        transport: Transport | None = None,
        rule: Rule | None = None,
    ) -> None:
        self.base_url = base_url
        self._transport = transport or Transport()
        self._rule = rule
        self._name = name
        self._headers = dict(headers)
        self._secrets = [text for text in (*self._transport.secrets, secret) if text]
        self._timeout_s = timeout_s
        self._sessions: dict[asyncio.AbstractEventLoop, ClientSession] = {}

    async def complete(self, body: bytes, *, path: str = CHAT, correlation: str = "", trace: str = "") -> Read:
        """POST; a whole answer."""
        with self._foreign():
            async with self._open("POST", path, data=body, correlation=correlation, trace=trace) as response:
                data = await self._read(response, MAX_BODY_BYTES)
                answer = self._decode(data)
        if path in _CHOICES and (not isinstance(answer.get("choices"), list) or not answer["choices"]):
            raise BackendError(f"{self._name} answered without a choice", hint=_NOT_OPENAI)
        return answer, data

    async def stream(
        self, body: bytes, *, path: str = CHAT, correlation: str = "", trace: str = ""
    ) -> AsyncGenerator[list[Read], None]:
        """POST of a body that asks for a stream; the events that became whole with one read, as soon as they are.

        Leaving the iteration closes the connection, and so tells the server to stop.
        """
        events, received, finished, ended = Events(), 0, False, False
        with self._foreign():
            async with self._open("POST", path, data=body, correlation=correlation, trace=trace) as response:
                while data := await response.content.readany():
                    received += len(data)
                    if received > MAX_STREAM_BYTES:
                        raise BackendError(f"{self._name} sent more than {MAX_STREAM_BYTES >> 20} MiB")
                    whole: list[Read] = []
                    for event in events.feed(data):
                        if event == b"[DONE]":
                            ended = True
                            break
                        try:
                            chunk = self._decode(event)
                        except BackendError:
                            # What came before it in the same read was said.
                            if whole:
                                yield whole
                            raise
                        finished = finished or _has_finished(chunk)
                        whole.append((chunk, event))
                    if whole:
                        yield whole
                    if ended:
                        return
        # Some servers end without [DONE]; then what was said must at least have come to its end.
        if not finished:
            raise BackendError(f"{self._name} broke off in the middle of its answer", retryable=True)

    async def models(self) -> list[dict[str, Any]]:
        """GET /models; the entries that have an id."""
        with self._foreign():
            async with self._open("GET", "/models") as response:
                data = self._decode(await self._read(response, MAX_BODY_BYTES)).get("data")
        if not isinstance(data, list):
            raise BackendError(f"{self._name} does not list its models", hint=_NOT_OPENAI)
        return [entry for entry in data if isinstance(entry, dict) and isinstance(entry.get("id"), str)]

    async def ask(self, url: str) -> str:
        """GET an absolute URL of the same server; its text when it says 200, raises BackendError otherwise."""
        with self._foreign():
            async with self._open("GET", url) as response:
                return (await self._read(response, MAX_BODY_BYTES)).decode("utf-8", "replace")

    async def close(self) -> None:
        here = asyncio.get_running_loop()
        while self._sessions:
            loop, session = self._sessions.popitem()
            if loop is here:
                await session.close()
            elif loop.is_running():
                # A session belongs to its loop, which another thread runs.
                await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(session.close(), loop))
            else:
                session.detach()  # its loop has ended, and can close nothing any more

    def _session(self) -> ClientSession:
        loop = asyncio.get_running_loop()
        session = self._sessions.get(loop)
        if session is None:
            import aiohttp

            for ended in [loop for loop in self._sessions if loop.is_closed()]:
                self._sessions.pop(ended).detach()
            # The threaded resolver is the interpreter's own, which `aibox.seal` watches; a C resolver would pass it by.
            resolver: Any = _Resolver(aiohttp.ThreadedResolver(), self._name, self._checked_rule)
            tls = self._transport.tls() if self.base_url.startswith("https:") else True
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_S, resolver=resolver, ssl=tls)
            session = self._sessions[loop] = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"Accept-Encoding": "identity", "User-Agent": "aibox", **self._headers},
                timeout=aiohttp.ClientTimeout(
                    total=None, connect=self._timeout_s, sock_connect=CONNECT_S, sock_read=self._timeout_s
                ),
                trust_env=False,
            )
        return session

    @contextlib.asynccontextmanager
    async def _open(
        self, method: str, path: str, *, data: bytes | None = None, correlation: str = "", trace: str = ""
    ) -> AsyncIterator[ClientResponse]:
        """A response with status 200; anything else is raised. On the way out an unread connection is closed."""
        url = path if path.startswith("http") else self.base_url + path
        headers = {"Content-Type": "application/json"} if data is not None else {}
        if correlation:
            headers["X-Correlation-ID"] = correlation
        if len(trace) > 1:
            headers["traceparent"] = f"00-{trace}-01"  # W3C Trace Context sec. 3.2
        response = await self._session().request(
            method, url, data=data, headers=headers, allow_redirects=False, proxy=self._transport.proxy
        )
        try:
            if response.status != 200:
                raise await self._refusal(response)
            yield response
            if response.content.at_eof():
                response.release()
        finally:
            response.close()

    @property
    def _checked_rule(self) -> Rule | None:
        # A proxy is named by the operator, and resolves the host itself.
        return None if self._transport.proxy else self._rule

    async def _read(self, response: ClientResponse, limit: int) -> bytes:
        parts, size = [], 0
        while data := await response.content.readany():
            size += len(data)
            if size > limit:
                raise BackendError(f"{self._name} sent more than {limit >> 10} KiB")
            parts.append(data)
        return b"".join(parts)

    def _decode(self, data: bytes) -> dict[str, Any]:
        """A JSON object; an error in the body counts whatever the status was."""
        try:
            body = msgspec.json.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            body = None
        if not isinstance(body, dict):
            raise BackendError(f"{self._name} did not answer in JSON", hint=_NOT_OPENAI, retryable=True)
        if body.get("error"):
            # Some servers begin with 200 and find out later; what they would have answered is then the error's code.
            code = body["error"].get("code") if isinstance(body["error"], dict) else None
            status = code if isinstance(code, int) and 400 <= code < 600 else None
            raise BackendError(
                f"{self._name} failed: {self._short(_message(body))}",
                hint=_HINTS.get(status or 0, ""),
                retryable=status is None or status in _RETRYABLE,
                timeout=status in (408, 504),
                status=status,
            )
        return body

    async def _refusal(self, response: ClientResponse) -> BackendError:
        status = response.status
        if 300 <= status < 400:
            return BackendError(f"{self._name} wants to redirect, which is refused", hint="give the final base URL")
        try:
            data = await self._read(response, MAX_ERROR_BYTES)
        except BackendError:
            data = b""
        try:
            said = _message(msgspec.json.decode(data))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            said = data.decode("utf-8", "replace")
        return BackendError(
            f"{self._name} answered {status}: {self._short(said) or response.reason}",
            hint=_HINTS.get(status, ""),
            retryable=status in _RETRYABLE,
            timeout=status in (408, 504),
            status=status,
            retry_after_s=_retry_after(response.headers.get("Retry-After", "")),
        )

    def _short(self, message: str) -> str:
        message = " ".join(message.split())
        for secret in self._secrets:
            message = message.replace(secret, "[key]")
        return message if len(message) <= MAX_MESSAGE_CHARS else message[:MAX_MESSAGE_CHARS] + "..."

    @contextlib.contextmanager
    def _foreign(self) -> Iterator[None]:
        """Turn what aiohttp and the system raise into BackendError."""
        import aiohttp

        name = self._name
        try:
            yield
        except TimeoutError:
            raise BackendError(
                f"{name} was silent for too long ({self._timeout_s:g} s, {CONNECT_S:g} s to connect)",
                hint="is it overloaded? timeout_s sets how long to wait",
                retryable=True,
                timeout=True,
            ) from None
        except aiohttp.ClientConnectorError as error:
            raise BackendError(
                f"{name} cannot be reached at {self.base_url}: {self._short(str(error.strerror or error))}",
                hint="is the server running?",
                retryable=True,
            ) from None
        except (aiohttp.ClientError, OSError) as error:
            reason = self._short(str(error)) or type(error).__name__
            raise BackendError(f"the connection to {name} broke: {reason}", retryable=True) from None


class _Resolver:
    """Resolves once and checks every address: the connection is made to one of them, and nothing is looked up later."""

    def __init__(self, inner: Any, name: str, rule: Rule | None) -> None:
        self._inner = inner
        self._name = name
        self._rule = rule

    async def resolve(self, host: str, port: int = 0, family: Any = 0) -> Any:
        found = await self._inner.resolve(host, port, family)
        if not found:
            raise OSError(f"{host} has no address")
        for entry in found:
            address = literal(entry["host"])
            if self._rule is not None and (address is None or not self._rule(address)):
                raise EgressError(
                    f"{host}, the host of {self._name}, is {entry['host']} now, where it must not be; nothing was sent",
                    hint="if that is right, list its network in `networks` of the backend's transport",
                )
        return found

    async def close(self) -> None:
        await self._inner.close()


_NOT_OPENAI = "is it an OpenAI-compatible server, and does the base URL end in /v1?"


def _message(body: Any) -> str:
    """The sentence in an error body: OpenAI's shape, FastAPI's `detail`, or a plain string."""
    error = body.get("error", body) if isinstance(body, dict) else body
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail") or error
    return str(error)


def _retry_after(text: str) -> float | None:
    """RFC 9110 sec. 10.2.3, in seconds; a date counts as none, for clocks differ."""
    return float(text) if text.isdecimal() and len(text) < 7 else None


def _has_finished(chunk: Mapping[str, Any]) -> bool:
    choices = chunk.get("choices")
    if not isinstance(choices, list):
        return chunk.get("type") in ("response.completed", "response.incomplete", "response.failed")
    for choice in choices:  # noqa: SIM110 - for every event of every stream: a generator costs twice as much
        if isinstance(choice, dict) and choice.get("finish_reason"):
            return True
    return False
