"""How answers leave a connection, and when an unused one is closed: the server's own protocol over real sockets."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from one_connection import ASK, Echo, answering, length, served

from aibox.server.asked import App, Receive, Scope, Send
from aibox.server.protocol import JOINED_BYTES

pytestmark = [pytest.mark.anyio, pytest.mark.loopback]


async def test_a_whole_answer_is_one_piece_and_the_connection_stays() -> None:
    """Head and body of a known length leave together, twice over one connection."""
    async with served(answering((b"content-type", b"text/plain"), length(6))) as one:
        for _ in range(2):
            one.writer.write(ASK)
            assert (await one.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK\r\n")
            assert await one.reader.readexactly(6) == b"Paris."
        assert len(one.pieces) == 2
        assert all(b"\r\ncontent-type: text/plain\r\ncontent-length: 6\r\n\r\nParis." in p for p in one.pieces)


@pytest.mark.parametrize(
    ("app", "body"),
    [
        (answering(), b"6\r\nParis.\r\n0\r\n\r\n"),
        (answering(length(12), more=b"London"), b"LondonParis."),
        (answering(length(JOINED_BYTES + 1), body=b"a" * (JOINED_BYTES + 1)), b"a" * (JOINED_BYTES + 1)),
        (answering(length(0), status=204, body=b""), b""),
    ],
    ids=["no length", "two pieces", "long", "no content"],
)
async def test_what_is_not_plain_is_framed_as_ever(app: App, body: bytes) -> None:
    """Streams, answers in pieces, long ones, and those that have no body come as uvicorn sends them."""
    async with served(app) as one:
        head, _, rest = (await one.ask(ASK.replace(b"host", b"connection: close\r\nhost"))).partition(b"\r\n\r\n")
        assert b"\r\nconnection: close" in head
        assert rest == body


async def test_a_server_that_closes_says_so() -> None:
    """`connection: close` of an answer ends the connection behind it."""
    async with served(answering(length(6), (b"connection", b"close"))) as one:
        assert (await one.ask()).endswith(b"connection: close\r\n\r\nParis.")


async def test_a_head_is_told_without_its_body() -> None:
    """HEAD is answered by fields alone."""
    async with served(answering(length(6))) as one:
        said = await one.ask(b"HEAD / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        assert said.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"\r\ncontent-length: 6\r\n" in said
        assert said.endswith(b"\r\n\r\n")


@pytest.mark.parametrize("value", [b"a\r\nset-cookie: b", b"a\nb", b"a\x00b", b"a\x7fb"])
async def test_no_field_can_hold_another(value: bytes) -> None:
    """A control character in a field ends in an error of ours and never in a field of somebody else's choice."""
    async with served(answering(length(6), (b"x-name", value))) as one:
        said = await one.ask()
        assert b"x-name" not in said
        assert b"set-cookie" not in said


@pytest.mark.parametrize("size", [5, 7])
async def test_a_wrong_length_never_mixes_two_answers_up(size: int) -> None:
    """A body that is longer or shorter than its head says closes the connection."""
    async with served(answering(length(size))) as one:
        said = await one.ask(ASK + ASK)
        assert said.count(b"HTTP/1.1 200 OK") == 1


async def test_an_unused_connection_is_closed_and_a_used_one_is_not() -> None:
    """The sweep ends a connection some seconds after its last answer; not before it, and not while one is asked for."""
    go = asyncio.Event()

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await go.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [length(2)]})
        await send({"type": "http.response.body", "body": b"ok"})

    async with served(app) as one:
        later = asyncio.get_running_loop().time() + 3600
        go.set()
        one.writer.write(ASK)
        await one.reader.readuntil(b"ok")
        go.clear()
        one.writer.write(ASK)
        while one.protocol.cycle.response_complete:
            await asyncio.sleep(0)
        one.protocol.sweep(later)
        go.set()
        await one.reader.readuntil(b"ok")
        one.protocol.sweep(asyncio.get_running_loop().time())
        one.writer.write(ASK)
        await one.reader.readuntil(b"ok")
        one.protocol.sweep(later)
        assert await one.reader.read() == b""


CHUNKED = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n"


async def test_what_stands_behind_a_body_is_no_header() -> None:
    """A trailer proves nobody and names nothing, also where it comes with the rest (RFC 9110 sec. 6.5.1)."""
    seen: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["more_body"]:
            pass
        seen.extend(scope["headers"])
        await send({"type": "http.response.start", "status": 200, "headers": [length(6)]})
        await send({"type": "http.response.body", "body": b"Paris."})

    async with served(app) as one:
        one.writer.write(CHUNKED + b"authorization: Bearer somebody\r\n\r\n" + ASK)
        async with asyncio.timeout(60):
            for _ in range(2):
                await one.reader.readuntil(b"Paris.")
    assert seen == [(b"host", b"x"), (b"transfer-encoding", b"chunked"), (b"host", b"x")]


@pytest.mark.parametrize("trailer", [b"x: " + b"a" * 1000 + b"\r\n", b"a" * 1000], ids=["many", "one without an end"])
async def test_what_stands_behind_a_body_has_an_end(trailer: bytes) -> None:
    """Trailers are as long as headers may be, and then the connection is refused: no limit of a body holds them."""

    async def app(_scope: Scope, receive: Receive, _send: Send) -> None:
        while (await receive()).get("more_body"):
            pass

    async with served(app) as one:
        one.writer.write(CHUNKED + b"x-first: ")
        for _ in range(200):
            one.writer.write(trailer)
            await one.writer.drain()
        async with asyncio.timeout(60):
            assert (await one.reader.read(13)) == b"HTTP/1.1 431 "


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", b"no Host"),
        (b"GET / HTTP/1.1\r\nhost: a\r\nHost: b\r\n\r\n", b"more than one Host"),
        (b"GET / HTTP/1.0\r\nhost: a\r\nhost: a\r\n\r\n", b"more than one Host"),
        (b"GET /v1%2Fadmin HTTP/1.1\r\nhost: a\r\n\r\n", b"encoded slash"),
        (b"GET /v1/%5cadmin?x=1 HTTP/1.1\r\nhost: a\r\n\r\n", b"encoded slash"),
        (b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", b"transfer coding"),
        (b"GET / HTTP/2.0\r\nhost: a\r\n\r\n", b"not HTTP/1.1"),
        (b"CONNECT a:443 HTTP/1.1\r\nhost: a\r\n\r\n", b"no proxy"),
    ],
)
async def test_what_two_servers_could_read_in_two_ways_is_refused(ask: bytes, says: bytes) -> None:
    """Two hosts or none, and slashes that only one of them sees: the answer says which, and nothing is asked."""
    asked: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        asked.append(scope["path"])

    async with served(app) as connection:
        answer = await connection.ask(ask)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert says in answer
    assert asked == []


async def test_slashes_of_a_query_and_a_client_of_http_1_0_are_served() -> None:
    """A path in a query is no path of ours, and HTTP/1.0 knew no hosts."""
    async with served(answering(length(6))) as connection:
        assert b" 200 " in await connection.ask(b"GET /?path=a%2Fb HTTP/1.0\r\n\r\n")


UPGRADES = {
    "h2c": b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQ\r\n",
    "websocket": b"connection: upgrade\r\nupgrade: websocket\r\n",
}


@pytest.mark.parametrize("cut", [0, 1, 40, None], ids=["after the head", "a byte later", "in the head", "in one piece"])
@pytest.mark.parametrize("fields", UPGRADES.values(), ids=UPGRADES)
async def test_who_would_rather_speak_another_protocol_is_answered_in_this_one(fields: bytes, cut: int | None) -> None:
    """RFC 9110 sec. 7.8, and an attack: the body of such a request is its body, and never somebody's next request."""
    body = b"GET /smuggled HTTP/1.1\r\nhost: x\r\n\r\n"
    head = b"POST /asked HTTP/1.1\r\nHost: x\r\n" + fields + b"Content-Length: %d\r\n\r\n" % len(body)
    sent = head + body
    at = len(sent) if cut is None else cut if cut == 40 else len(head) + cut
    async with served(Echo()) as one:
        one.writer.write(sent[:at])
        await asyncio.sleep(0.05)
        one.writer.write(sent[at:])
        assert (await one.reader.readuntil(b">")).endswith(b"<POST /asked " + body + b">")
        one.writer.write(ASK)
        assert (await one.reader.readuntil(b">")).endswith(b"<GET / >")


async def test_wishes_in_a_row_are_granted_in_a_row() -> None:
    """However many requests with an upgrade come at once, each is answered, and none costs more for those behind it."""
    count = 3000
    async with served(Echo()) as one:
        one.writer.write(b"GET /a HTTP/1.1\r\nhost: x\r\n%b\r\n" % UPGRADES["websocket"] * count)
        async with asyncio.timeout(60):
            for _ in range(count):
                assert (await one.reader.readuntil(b">")).endswith(b"<GET /a >")


async def test_an_upgrade_that_closes_closes() -> None:
    """What else stands in the fields of the connection is done; a chunked body comes whole, and behind it nothing."""
    asked = b"POST /a HTTP/1.1\r\nhost: x\r\nconnection: close, upgrade\r\nupgrade: h2c\r\n"
    async with served(Echo()) as one:
        said = await one.ask(asked + b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n")
        assert b"\r\nconnection: close\r\n" in said
        assert said.endswith(b"<POST /a {}>")


async def test_who_is_answered_is_told_that_the_caller_has_gone_also_where_more_was_asked() -> None:
    """Requests that wait for their turn hide nobody's leaving, and do not begin when the caller has gone."""
    echo = Echo()
    async with served(echo) as one:
        one.writer.write(ASK.replace(b"/ ", b"/wait1 ") + ASK.replace(b"/ ", b"/wait2 ") + ASK)
        await asyncio.sleep(0.05)
        one.writer.transport.abort()
        async with asyncio.timeout(30):
            while not echo.left:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
    assert echo.left == ["/wait1"]


async def test_what_cannot_be_read_behind_a_request_writes_nothing_into_its_answer() -> None:
    """The connection ends, and whoever was being answered hears that their caller has gone."""
    echo = Echo()
    async with served(echo) as one:
        one.writer.write(ASK.replace(b"/ ", b"/wait "))
        await asyncio.sleep(0.05)
        assert await one.ask(ASK + b"NONSENSE\x00\r\n\r\n") == b""
        async with asyncio.timeout(30):
            while not echo.left:
                await asyncio.sleep(0.01)
    assert one.pieces == []


async def test_a_request_that_waits_for_its_turn_has_all_its_time() -> None:
    """What of it has not come by then was not read: the clock of its body begins when it is answered."""
    echo = Echo()
    post = b"POST /second HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n"
    async with served(echo) as one:
        one.writer.write(ASK.replace(b"/ ", b"/wait ") + post)
        await asyncio.sleep(0.05)
        one.protocol.sweep(asyncio.get_running_loop().time() + 3600)
        echo.go.set()
        assert (await one.reader.readuntil(b">")).endswith(b"<GET /wait >")
        one.writer.write(b"{}")
        assert (await one.reader.readuntil(b">")).endswith(b"<POST /second {}>")


async def test_a_reader_who_takes_nothing_is_ended_and_a_slow_one_is_not() -> None:
    """An answer that waits is not kept for ever; whoever takes some of it between two looks goes on."""
    ended: list[bool] = []

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(4000):
            await send({"type": "http.response.body", "body": bytes(1 << 16), "more_body": True})
        ended.append(True)

    async with served(app) as one:
        one.writer.write(ASK)
        now = asyncio.get_running_loop().time()
        async with asyncio.timeout(60):
            while not one.protocol.flow.write_paused:
                await asyncio.sleep(0.01)
            one.protocol.sweep(now)
            for looks in range(1, 4):
                # More than lies between the two, so that some of what waited has gone.
                await one.reader.readexactly(16 << 20)
                one.protocol.sweep(now + 50 * looks)
            assert not one.protocol.transport.is_closing()
            while not one.protocol.flow.write_paused:
                await asyncio.sleep(0.01)
            one.protocol.sweep(now + 1000)
            one.protocol.sweep(now + 1061)
            assert one.protocol.transport.is_closing()
            while not ended:
                await asyncio.sleep(0.01)


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_who_speaks_http_1_0_is_not_told_to_go_on(version: str) -> None:
    """RFC 9110 sec. 10.1.1: an expectation in a request of HTTP/1.0 is passed over, for nobody there knows a 100."""
    async with served(Echo()) as one, asyncio.timeout(60):
        head = f"POST / HTTP/{version}\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n"
        one.writer.write(head.encode())
        await asyncio.sleep(0.1)
        one.writer.write(b"ok")
        said = await one.reader.readuntil(b">")
    assert said.endswith(b"<POST / ok>")
    assert said.startswith(b"HTTP/1.1 200 " if version == "1.0" else b"HTTP/1.1 100 Continue\r\n\r\n")
    assert said.count(b"HTTP/1.1 ") == (1 if version == "1.0" else 2)


async def test_a_body_that_was_asked_about_and_not_wanted_ends_the_connection() -> None:
    """RFC 9110 sec. 10.1.1: whether it comes after all nobody knows, and the next request is not taken for it."""

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 401, "headers": [length(2)]})
        await send({"type": "http.response.body", "body": b"no"})

    async with served(app) as one:
        said = await one.ask(b"POST / HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 64\r\n\r\n")
        assert said.startswith(b"HTTP/1.1 401 ")
        assert b"\r\nconnection: close\r\n" in said
