"""A request with an `Idempotency-Key` is done once: a repeat has the same answer, byte for byte.

The key is the caller's own: it is bound to tenant, user, route and all that was sent. Work that has begun goes on when
the caller goes away, for that is when the key is needed.
"""

from __future__ import annotations

import asyncio
import contextlib

from aibox.errors import AIBoxError, ConfigError
from aibox.server.answers import Answer, Answers, Asking, of_request
from aibox.server.asked import CORRELATION, App, Asked, Message, Receive, Scope, Send, asked, route_of
from aibox.server.principal import Principal

LONGEST = 8 << 20
"""Bytes of an answer that are kept."""
METHODS = ("POST", "PUT", "PATCH", "DELETE")
UNKEPT = "/v1/admin/keys"
"""What is answered there holds a key in the clear, which is kept nowhere."""
REPLAYED = (b"idempotency-replayed", b"true")
_AGAIN = (408, 409, 425, 429)
"""Answers after which the same request may be tried: nothing was done."""


class Once:
    """Stands before an application, for requests whose caller is known."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers
        self._leaving: set[asyncio.Task[None]] = set()

    async def __call__(self, inner: App, request: Asked, scope: Scope, receive: Receive, send: Send) -> None:
        """Do it, or tell what it was answered before. Raises ConfigError, StoreError, and what `receive` raises."""
        assert request.principal is not None
        if request.path.startswith(UNKEPT):
            raise ConfigError(
                "an answer that holds a key is not kept, so there is no second time",
                hint="leave Idempotency-Key out; GET /v1/admin/keys says whether the first time made one",
            )
        body = await _whole(receive)
        if body is None:
            return
        asking = of_request(
            request.principal.scope,
            method=scope["method"],
            path=request.path,
            query=scope["query_string"],
            key=request.idempotency,
            body=body,
            roles={*request.principal.roles, *_narrowed(request.principal)},
        )
        known = await self._begin(asking)
        if known is not None:
            request.route, request.code = known.route or request.route, known.code
            headers = [*known.headers, REPLAYED]
            await send({"type": "http.response.start", "status": known.status, "headers": headers})
            await send({"type": "http.response.body", "body": known.body})
            return
        await self._do(inner, asking, scope, body, send)

    async def settle(self) -> None:
        """Returns when nothing is written any more for requests that were broken off."""
        while self._leaving:
            await asyncio.wait(self._leaving)

    async def _begin(self, asking: Asking) -> Answer | None:
        """As `Answers.begin`. Whoever is broken off meanwhile holds no key."""
        beginning = asyncio.ensure_future(self._answers.begin(asking))
        try:
            return await asyncio.shield(beginning)
        except asyncio.CancelledError:
            # What is written is written by a thread, which goes on; nobody waits for it to be told why they were ended.
            leaving = asyncio.create_task(self._give_back(beginning, asking), name="a key that nobody has begun with")
            self._leaving.add(leaving)
            leaving.add_done_callback(self._leaving.discard)
            raise

    async def _give_back(self, beginning: asyncio.Future[Answer | None], asking: Asking) -> None:
        # Where the store fails, it is held for as long as a process would that was killed.
        with contextlib.suppress(AIBoxError):
            if await beginning is None:
                await self._answers.drop(asking)

    async def _do(self, inner: App, asking: Asking, scope: Scope, body: bytes, send: Send) -> None:
        request = asked(scope)
        status, size, ended = 0, 0, False
        headers: list[tuple[bytes, bytes]] = []
        parts: list[bytes] = []

        async def tell(message: Message) -> None:
            nonlocal status, size, ended, headers
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [(name, value) for name, value in message["headers"] if name != CORRELATION]
            else:
                part = message.get("body", b"")
                size += len(part)
                if size <= LONGEST:
                    parts.append(part)
                if not message.get("more_body"):
                    # Kept before its last piece is sent: whoever has it all can rely on the next being the same.
                    ended = True
                    answer = None
                    if size <= LONGEST:
                        answer = Answer(status, headers, b"".join(parts), route_of(scope), request.code)
                    # A stream that failed has begun with a 200: what counts is what it would have been without one.
                    await asyncio.shield(self._end(asking, request.fault or status, answer))
            await send(message)

        try:
            await inner(scope, _never_gone(body), tell)
        finally:
            if not ended:
                await asyncio.shield(self._answers.drop(asking))

    async def _end(self, asking: Asking, status: int, answer: Answer | None) -> None:
        if status >= 500 or status in _AGAIN:
            await self._answers.drop(asking)
        else:
            await self._answers.keep(asking, answer)


async def _whole(receive: Receive) -> bytes | None:
    """The body, whose length `receive` bounds; None when the caller has gone before it was whole."""
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


def _never_gone(body: bytes) -> Receive:
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if messages:
            return messages.pop()
        await asyncio.Event().wait()
        raise AssertionError

    return receive


def _narrowed(who: Principal) -> set[str]:
    """What a key is for: another key of the same user hears no answer that it could not have asked for."""
    scopes = set() if who.scopes is None else {f"scope:{one}" for one in who.scopes}
    return scopes if who.models is None else scopes | {f"model:{one}" for one in who.models}
