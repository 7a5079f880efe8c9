"""Requests in a row over one connection, readers who take nothing, applications that fail: nothing is without end."""

from __future__ import annotations

import asyncio

import pytest
from one_connection import ASK, Echo, length, served

from aibox.server.asked import Receive, Scope, Send
from aibox.server.protocol import PIECE_BYTES, WAITING

pytestmark = [pytest.mark.anyio, pytest.mark.loopback]
WAIT = ASK.replace(b"/ ", b"/wait ")


async def test_no_more_is_read_than_a_few_requests_that_wait() -> None:
    """Asking costs a caller a few bytes and the server a hundred times as many: the rest stays with the caller."""

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await asyncio.sleep(0.001)
        await send({"type": "http.response.start", "status": 200, "headers": [length(2)]})
        await send({"type": "http.response.body", "body": b"ok"})

    async with served(app) as one:
        one.writer.write(ASK * 200_000)
        most = 0
        for _ in range(300):
            await one.reader.read(1 << 16)
            most = max(most, len(one.protocol.pipeline))
        # One look at the socket may bring 256 KiB of them, of which no more are made than a piece holds.
        assert WAITING < most < PIECE_BYTES // len(ASK) + 2 * WAITING


async def test_what_was_read_and_waits_is_answered_in_turn_to_the_last() -> None:
    """Requests of every form in one read, far more than may wait: each has its own answer, whole and in order."""
    echo = Echo()
    asked, told = b"", []
    for number in range(3_000):
        body = b"%d" % number * (number % 7) * (1_000 if number % 500 == 0 else 1)
        form = number % 3
        head = b"POST /%d HTTP/1.1\r\nhost: x\r\n" % number
        if form == 0:
            asked += head + b"content-length: %d\r\n\r\n%b" % (len(body), body)
        elif form == 1:
            asked += (
                head + b"transfer-encoding: chunked\r\n\r\n" + (b"%x\r\n%b\r\n" % (len(body), body) if body else b"")
            )
            asked += b"0\r\n\r\n"
        else:
            asked += head + b"connection: upgrade\r\nupgrade: h2c\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
        told.append(b"<POST /%d %b>" % (number, body))
    async with served(echo) as one, asyncio.timeout(60):
        one.writer.write(ASK)
        await one.reader.readuntil(b">")
        one.protocol.data_received(asked)
        assert len(one.protocol.pipeline) < PIECE_BYTES // 30 + 2 * WAITING
        for expected in told:
            assert (await one.reader.readuntil(b">")).endswith(expected)


async def test_what_was_read_and_waits_is_forgotten_with_its_connection() -> None:
    """Who goes is not worked for any more, and nothing of theirs is kept."""
    echo = Echo()
    async with served(echo) as one, asyncio.timeout(60):
        one.writer.write(ASK)
        await one.reader.readuntil(b">")
        one.protocol.data_received(WAIT + ASK * 5_000)
        await asyncio.sleep(0.05)
        one.protocol.transport.abort()
        while not echo.left:
            await asyncio.sleep(0.01)
        assert not one.protocol.pipeline
        assert not one.protocol._later


async def test_a_little_that_nobody_takes_is_no_way_to_stay() -> None:
    """A connection that is to be closed is not kept by what is left to be sent, however little that is."""
    body = bytes(20 << 10)

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": [length(len(body))]})
        await send({"type": "http.response.body", "body": body})

    async with served(app) as one:
        one.reader._transport.pause_reading()  # type: ignore[attr-defined]
        async with asyncio.timeout(60):
            while one.protocol is None or not one.protocol.transport.get_write_buffer_size():
                one.writer.write(ASK)
                await asyncio.sleep(0.001)
        now = asyncio.get_running_loop().time()
        for later in (10_000, 20_000, 30_000):
            one.protocol.sweep(now + later)
        assert one.protocol.transport.get_write_buffer_size() == 0


@pytest.mark.parametrize("size", [0, 6])
@pytest.mark.parametrize("fails", [True, False], ids=["raises", "returns"])
async def test_an_application_that_fails_behind_its_head_is_no_good_answer(size: int, fails: bool) -> None:
    """A head waits for its body: where none comes, what is told is a 500, and the connection ends."""

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": [length(size)]})
        if fails:
            raise ValueError

    async with served(app) as one, asyncio.timeout(60):
        said = await one.ask()
        assert said.startswith(b"HTTP/1.1 500 ")
        assert b" 200 " not in said


async def test_what_cannot_be_read_is_no_answer_to_what_came_before() -> None:
    """A whole request that is being answered is not told what was wrong with the next one."""
    echo = Echo()
    async with served(echo) as one, asyncio.timeout(60):
        one.writer.write(WAIT)
        await asyncio.sleep(0.05)
        assert await one.ask(b"NONSENSE\x00\r\n\r\n") == b""
        while not echo.left:
            await asyncio.sleep(0.01)


async def test_a_head_that_was_begun_ends_no_answer() -> None:
    """However long an answer takes, the next request may have begun to come."""
    echo = Echo()
    async with served(echo) as one, asyncio.timeout(60):
        one.writer.write(WAIT + b"GET /nex")
        await asyncio.sleep(0.05)
        one.protocol.sweep(asyncio.get_running_loop().time() + 3600)
        echo.go.set()
        assert (await one.reader.readuntil(b">")).endswith(b"<GET /wait >")
        one.writer.write(b"t HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (await one.reader.readuntil(b">")).endswith(b"<GET /next >")


async def test_the_second_head_is_as_short_as_the_first() -> None:
    """Headers are bounded wherever on a connection they stand, and however the reads of it fall."""
    long = b"GET / HTTP/1.1\r\nhost: x\r\nx-a: " + b"a" * 100_000 + b"\r\n"
    async with served(Echo()) as one, asyncio.timeout(60):
        one.writer.write(ASK)
        await one.reader.readuntil(b">")
        one.protocol.data_received(long)
        if not one.protocol.transport.is_closing():
            one.protocol.data_received(b"\r\n")
        assert (await one.reader.read()).startswith(b"HTTP/1.1 431 ")
