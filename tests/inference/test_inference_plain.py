"""Our own client for plain HTTP/1.1, held against aiohttp: the same answers, and none where it is unsure."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from waiting import until

from aibox.inference.connection import MAX_HEAD_BYTES, BrokenError, UnreachableError
from aibox.inference.full import Session
from aibox.inference.plain import Pool, serves
from aibox.inference.transport import Transport

pytestmark = pytest.mark.loopback

Outcome = tuple[int, bytes] | None
"""Status and body; None for an error."""


class Scripted:
    """A server that answers each request on a connection with the next bytes of a script, cut as the script says."""

    def __init__(self, *answers: Sequence[bytes], close: bool = True, drips: bool = False) -> None:
        self.answers = answers
        self.close = close
        self.drips = drips
        self.connections = self.serving = 0
        self.asked: list[bytes] = []
        self.gone = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.serving += 1
        try:
            for parts in self.answers:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
                self.asked.append(head + await reader.readexactly(length))
                for part in parts:
                    writer.write(part)
                    await writer.drain()
                    await asyncio.sleep(0)
            while self.drips and not reader.at_eof():
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.02)
            if not self.close:
                await reader.read()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self.gone.set()
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
            self.serving -= 1

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self.serve, "127.0.0.1", 0, limit=1 << 20)
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()
            await until(lambda: not self.serving)


async def here(host: str, port: int) -> list[tuple[int, str]]:
    del host, port
    return [(socket.AF_INET, "127.0.0.1")]


def client(kind: str, origin: str, *, silence_s: float = 20.0) -> Pool | Session:
    if kind == "ours":
        return Pool(origin, {}, resolve=here, silence_s=silence_s, connect_s=5, idle_s=4)
    return Session(origin, {}, transport=Transport(), resolve=here, silence_s=silence_s, connect_s=5, idle_s=4)


async def fetch(asking: Pool | Session, body: bytes = b"{}") -> Outcome:
    try:
        response = await asking.ask("POST", "/v1/x", {"Content-Type": "application/json"}, body)
        parts = []
        try:
            while part := await response.readany():
                parts.append(part)
        finally:
            response.close()
    except OSError:
        return None
    return response.status, b"".join(parts)


async def outcome(kind: str, parts: Sequence[bytes], *, silence_s: float = 20.0) -> Outcome:
    async with Scripted(parts).running() as origin:
        asking = client(kind, origin, silence_s=silence_s)
        try:
            return await fetch(asking)
        finally:
            await asking.close()


def cut(data: bytes, cuts: Sequence[int]) -> list[bytes]:
    places = sorted({0, len(data), *(at % (len(data) + 1) for at in cuts)})
    return [data[a:b] for a, b in itertools.pairwise(places)]


def chunked(pieces: Sequence[bytes], trailer: bytes = b"") -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces if piece) + b"0\r\n" + trailer + b"\r\n"


STATUSES = st.sampled_from([b"200 OK", b"200", b"201 Created", b"400 Bad Request", b"429 Slow", b"503 Busy"])
FIELDS = st.lists(st.sampled_from([b"Server: x", b"x-empty:", b"Content-Type: text/event-stream", b"Vary:  a,  b "]))
INTERIM = st.sampled_from([b"", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"])
CUTS = st.lists(st.integers(0, 4000), max_size=8)


@given(STATUSES, FIELDS, INTERIM, st.lists(st.binary(max_size=300), max_size=5), CUTS,
       st.sampled_from(["length", "chunks", "trailers", "end"]))  # fmt: skip
def test_an_answer_is_read_as_aiohttp_reads_it(
    status: bytes, fields: list[bytes], interim: bytes, pieces: list[bytes], cuts: list[int], framing: str
) -> None:
    """However it is framed and cut: by a length, by chunks, with trailers, or up to the end of the connection."""
    whole = b"".join(pieces)
    body, line = {
        "length": (whole, b"Content-Length: %d" % len(whole)),
        "chunks": (chunked(pieces), b"Transfer-Encoding: chunked"),
        "trailers": (chunked(pieces, b"X-Sum: 1\r\n"), b"transfer-encoding: Chunked"),
        "end": (whole, b"Connection: close"),
    }[framing]
    head = b"\r\n".join([b"HTTP/1.1 " + status, *fields, line, b"", b""])
    parts = cut(interim + head + body, cuts)

    async def both() -> tuple[Outcome, Outcome]:
        return await outcome("ours", parts), await outcome("aiohttp", parts)

    ours, theirs = asyncio.run(both())
    assert ours == theirs == (int(status[:3]), whole)


ANSWERS = (
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nServer: x\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n3;a=b\r\nyou\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n\r\nhello",
)
EVIL = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
BITS = (b"\r\n", b"\n", b"\r", b" ", b"\0", b":", b"0", b"5", b"-", b"+", b"_", b"\t", b"Content-Length: 3\r\n",
        b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: gzip, chunked\r\n", b"Content-Length : 5\r\n",
        b" folded\r\n", b"HTTP/1.1 200 OK\r\n\r\n")  # fmt: skip


@given(st.sampled_from(ANSWERS), st.lists(st.tuples(st.integers(0, 120), st.integers(0, 3), st.sampled_from(BITS)),
                                          min_size=1, max_size=3), CUTS)  # fmt: skip
def test_where_both_take_a_damaged_answer_they_take_the_same(
    answer: bytes, changes: list[tuple[int, int, bytes]], cuts: list[int]
) -> None:
    """Bytes taken out and put in anywhere: ours refuses, or gives what aiohttp gives, or part of what it refuses."""
    for at, gone, put in changes:
        at %= len(answer) + 1  # noqa: PLW2901 - within what is left
        answer = answer[:at] + put + answer[at + gone :]
    parts = cut(answer, cuts)

    async def both() -> tuple[Outcome, Outcome]:
        return await outcome("ours", parts), await outcome("aiohttp", parts, silence_s=1.0)

    ours, theirs = asyncio.run(both())
    assert ours is None or theirs is None or ours == theirs, answer


REFUSED = {
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nhi",
    "both": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
    "another coding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
    "compressed": b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\nhi",
    "another protocol": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nhi",
    "no status": b"HTTP/1.1 000 OK\r\nContent-Length: 2\r\n\r\nhi",
    "no HTTP": b"SSH-2.0-x\r\n",
    "a space before the colon": b"HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nhi",
    "a length that is none": b"HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nhi",
    "a chunk that is none": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0x2\r\nhi\r\n0\r\n\r\n",
    "too short": b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nhi",
    "chunks without an end": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n",
    "a head in one piece": b"HTTP/1.1 200 OK\r\nX: " + b"x" * 2 * MAX_HEAD_BYTES + b"\r\nContent-Length: 0\r\n\r\n",
    "a head of many lines": b"HTTP/1.1 200 OK\r\n" + b"X: xxxxxxxxxxxx\r\n" * 10_000 + b"Content-Length: 0\r\n\r\n",
    "trailers without end": ANSWERS[1][:-2] + b"X: xxxxxxxxxxxx\r\n" * 30_000 + b"\r\n",
    "interim answers without end": b"HTTP/1.1 103 Hints\r\nLink: x\r\n\r\n" * 10_000 + ANSWERS[0],
}


@pytest.mark.anyio
@pytest.mark.parametrize("answer", REFUSED.values(), ids=REFUSED.keys())
async def test_what_could_be_read_in_two_ways_or_never_ends_is_refused(answer: bytes) -> None:
    """Two lengths, codings that were not asked for, heads beyond 64 KiB: an error, never a guess."""
    assert await outcome("ours", [answer]) is None


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("kind", "after"),
    [(kind, after) for kind in ("ours", "aiohttp") for after in (b"", EVIL)] + [("ours", b"junk")],
)
async def test_a_connection_is_used_again_and_nothing_unasked_becomes_an_answer(kind: str, after: bytes) -> None:
    """An answer that came before its question closes the connection; the next request has one of its own."""
    first = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfirst"
    server = Scripted([first + after], [first.replace(b"first", b"again")], close=False)
    async with server.running() as origin:
        asking = client(kind, origin)
        assert await fetch(asking) == (200, b"first")
        second = await fetch(asking)
        assert (second, server.connections) == ((200, b"first"), 2) if after else ((200, b"again"), 1)
        await asking.close()


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["ours", "aiohttp"])
@pytest.mark.parametrize("seen", [False, True])
@pytest.mark.parametrize("late", [EVIL, b""])
async def test_what_came_unasked_and_nobody_was_waiting_for_is_no_answer(kind: str, seen: bool, late: bytes) -> None:
    """A second answer, or the end of the connection, whether the event loop has seen it or only this machine."""
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(2)
        writers.append(writer)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nmine")

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    asking = client(kind, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    assert await fetch(asking) == (200, b"mine")
    # Both at once: asyncio sends what it can as soon as it is told to, so it is here before the next question goes.
    if late:
        writers[0].write(late)
    else:
        writers[0].transport.get_extra_info("socket").shutdown(socket.SHUT_WR)
    if seen:
        await asyncio.sleep(0.05)
    assert await fetch(asking) == (200, b"mine")
    assert len(writers) == 2
    await asking.close()
    for writer in writers:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
    server.close()


@pytest.mark.anyio
async def test_an_answer_that_was_given_back_is_nobodys_way_to_the_next_one() -> None:
    """Closed twice, or read after it was closed: whoever has the connection now is not disturbed, and not read."""
    server = Scripted([ANSWERS[0]], [ANSWERS[0].replace(b"hello", b"yours")], close=False)
    async with server.running() as origin:
        asking = client("ours", origin)
        first = await asking.ask("GET", "/", {}, None)
        assert await first.readany() == b"hello"
        first.close()
        second = await asking.ask("GET", "/", {}, None)
        first.close()
        with pytest.raises(BrokenError, match="closed"):
            await first.readany()
        assert await second.readany() == b"yours"
        second.close()
        assert server.connections == 1
        await asking.close()


@pytest.mark.anyio
async def test_a_connection_that_the_server_gave_up_is_not_used() -> None:
    """`Connection: close`, HTTP/1.0 and an end of the connection in between: the next request opens another."""
    for answer in (
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
    ):
        server = Scripted([answer])
        async with server.running() as origin:
            asking = client("ours", origin)
            assert await fetch(asking) == (200, b"hi")
            await until(server.gone.is_set)
            await asyncio.sleep(0.01)
            assert await fetch(asking) == (200, b"hi")
            assert server.connections == 2
            await asking.close()


@pytest.mark.anyio
async def test_a_body_that_nobody_reads_is_not_taken_in() -> None:
    """While the reader takes nothing the server is made to wait; then all of it comes."""
    body = bytes(range(256)) * (32 << 10)
    written = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
        for at in range(0, len(body), 1 << 16):
            writer.write(body[at : at + (1 << 16)])
            await writer.drain()
            written = at
        await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    asking = client("ours", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    response = await asking.ask("GET", "/", {}, None)
    before = -1
    while before != written:
        before = written
        await asyncio.sleep(0.1)
    assert 0 < written < len(body) - (1 << 16)
    got = b""
    while part := await response.readany():
        got += part
    assert got == body
    response.close()
    await asking.close()
    server.close()


@pytest.mark.anyio
async def test_silence_ends_and_time_to_read_does_not() -> None:
    """The limit is on the server's silence: whoever reads slowly is not cut off."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 400000\r\n\r\n"
    async with Scripted([head, b"x" * 400_000], close=False).running() as origin:
        asking = client("ours", origin, silence_s=0.05)
        response = await asking.ask("GET", "/", {}, None)
        await asyncio.sleep(0.3)
        size = 0
        while part := await response.readany():
            size += len(part)
        assert size == 400_000
        response.close()
        await asking.close()
    async with Scripted([head], close=False).running() as origin:
        asking = client("ours", origin, silence_s=0.05)
        response = await asking.ask("GET", "/", {}, None)
        with pytest.raises(TimeoutError):
            await response.readany()
        response.close()
        await asking.close()


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["ours", "aiohttp"])
@pytest.mark.parametrize("begun", [b"HTTP/1.1 200 OK\r\nX: ",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n5;"], ids=["head", "chunk"])  # fmt: skip
async def test_a_byte_now_and_then_is_silence(kind: str, begun: bytes) -> None:
    """Where it is no part of a body: whoever waits for the head, or for the next piece, does not wait for ever."""
    server = Scripted([begun], drips=True)
    async with server.running() as origin:
        asking = client(kind, origin, silence_s=0.3)
        assert await asyncio.wait_for(fetch(asking), 60) is None
        await asking.close()


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["ours", "aiohttp"])
@pytest.mark.parametrize("close", [True, False])
async def test_a_chunk_that_is_none_ends_the_answer(kind: str, close: bool) -> None:
    """In a later piece than the first chunk, with the server gone or waiting: an error, and nobody waits for ever."""
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    server = Scripted([head, b"5\r\nhello\r\n", b"zz\r\n"], close=close)
    async with server.running() as origin:
        asking = client(kind, origin, silence_s=0.5)
        assert await asyncio.wait_for(fetch(asking), 30) is None
        await asking.close()


@pytest.mark.anyio
async def test_whoever_leaves_closes_the_connection() -> None:
    """Before the head and in the middle of a body: the server hears of it."""
    for parts in ([], [b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhe"]):
        server = Scripted(parts, close=False)
        async with server.running() as origin:
            asking = client("ours", origin)
            task = asyncio.create_task(fetch(asking))
            await until(lambda server=server: server.asked)
            await asyncio.sleep(0.01)
            task.cancel()
            await asyncio.wait([task])
            await until(server.gone.is_set)
            await asking.close()


@pytest.mark.anyio
async def test_what_cannot_be_sent_is_not() -> None:
    """A line break in a target or a field would be a second request; the door's fields are nobody else's to set."""
    server = Scripted()
    async with server.running() as origin:
        asking = client("ours", origin)
        for target, fields in (("/a b", {}), ("/a\r\nX: y", {}), ("/a", {"X": "a\r\nb"}), ("/a", {"X y": "a"})):
            with pytest.raises(ValueError, match=r"cannot be sent|not a target"):
                await asking.ask("GET", target, fields, None)
        await asking.close()
    assert server.connections == 0
    assert not serves("https://10.0.0.7", "/v1", {})
    assert not serves("http://10.0.0.7", "/v 1", {})
    for name in ("Host", "Content-Length", "transfer-encoding", "Connection"):
        assert not serves("http://10.0.0.7", "/v1", {name: "x"})
    with pytest.raises(UnreachableError):
        await client("ours", "http://127.0.0.1:9").ask("GET", "/", {}, None)


def test_errors_are_of_the_operating_system() -> None:
    """Whoever catches OSError catches them."""
    assert issubclass(BrokenError, OSError)
    assert issubclass(UnreachableError, OSError)
