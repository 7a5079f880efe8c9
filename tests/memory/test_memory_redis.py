"""The window over a conversation on a real Redis server, which the tests start. It is Debian's package redis-server."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aibox.errors import ConfigError, IntegrityError, StoreError
from aibox.memory.buffer import Buffer
from aibox.memory.memory import Memory
from aibox.memory.redis_buffer import RedisBuffer
from aibox.types import Scope

EVA = Scope(tenant="acme", user="eva", agent="books", session="s1")
KEY = os.urandom(32)
BINARY = shutil.which("redis-server") or shutil.which("valkey-server")

pytestmark = pytest.mark.skipif(BINARY is None, reason="no redis-server here: apt-get install redis-server")


@pytest.fixture
def url(server: str) -> str:
    """The server, empty."""
    from redis import Redis

    with Redis.from_url(server) as client:
        client.flushall()
    return server


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A server on a socket of its own, with nothing of the machine's configuration."""
    assert BINARY is not None
    folder = Path(tempfile.mkdtemp(prefix="ab-redis-"))
    place = folder / "r.sock"
    command = [BINARY, "--port", "0", "--unixsocket", place, "--dir", folder, "--save", "", "--appendonly", "no"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            for _ in range(600):
                if place.exists():
                    break
                time.sleep(0.05)
            yield f"unix://{place}"
        finally:
            process.terminate()
    shutil.rmtree(folder)


def says(text: str, role: str = "user") -> dict[str, Any]:
    return {"role": role, "content": text}


def calls(*ids: str) -> dict[str, Any]:
    function = {"name": "f", "arguments": "{}"}
    return {"role": "assistant", "content": None, "tool_calls": [{"id": i, "function": function} for i in ids]}


def result(id_: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": id_, "content": "42"}


MESSAGES = st.one_of(
    st.builds(says, st.text(max_size=30), st.sampled_from(["user", "assistant", "system"])),
    st.builds(calls, st.sampled_from("abc"), st.sampled_from("def")),
    st.builds(result, st.sampled_from("abcdef")),
)


@settings(max_examples=60)
@given(st.lists(MESSAGES, max_size=24), st.integers(2, 8), st.integers(50, 400))
def test_it_is_the_same_window(server: str, messages: list[dict[str, Any]], most: int, chars: int) -> None:
    """Whatever was added, the window on the server is that in process: bounded, no call without its results."""

    async def play() -> list[dict[str, Any]]:
        buffer = RedisBuffer(server, key=KEY, max_messages=most, max_chars=chars)
        await buffer.clear(tenant="acme")
        for message in messages:
            await buffer.add(message, scope=EVA)
        window = await buffer.window(scope=EVA)
        await buffer.close()
        return window

    here = Buffer(max_messages=most, max_chars=chars)
    for message in messages:
        here.add(message, scope=EVA)
    assert asyncio.run(play()) == here.window(scope=EVA)


@pytest.mark.anyio
async def test_several_processes_go_on_with_one_conversation(url: str) -> None:
    """What one connection appended another reads; sessions, users and tenants are apart, and clearing keeps them so."""
    one, other = RedisBuffer(url, key=KEY), RedisBuffer(url, key=KEY)
    await one.clear(tenant="acme")
    tom, rival = Scope(tenant="acme", user="tom"), Scope(tenant="rival", user="eva", agent="books", session="s1")
    await asyncio.gather(*(buffer.add(says("hello"), scope=EVA) for buffer in (one, other) * 5))
    for scope in (tom, rival):
        await one.add(says("theirs"), scope=scope)
    assert await other.window(scope=EVA) == [says("hello")] * 10
    assert await other.window(scope=EVA.narrow(session="s2")) == []
    assert await one.clear(tenant="acme", user="eva") == 1
    assert await other.window(scope=EVA) == []
    assert await other.window(scope=tom) == [says("theirs")]
    assert await one.clear(tenant="acme") == 1
    assert await other.window(scope=rival) == [says("theirs")]
    await one.close()
    await other.close()


@pytest.mark.anyio
async def test_the_server_sees_no_word_and_no_name(url: str) -> None:
    """Keys and values on the server are hashes and sealed bytes; one moved to another session is an IntegrityError."""
    from redis.asyncio import Redis

    buffer = RedisBuffer(url, key=KEY)
    scope = Scope(tenant="CANARYt", user="CANARYu", session="CANARYs")
    await buffer.add(says("CANARY"), scope=scope)
    async with Redis.from_url(url) as server:
        names = [name async for name in server.scan_iter()]
        held = b"".join([*names, *[one for name in names for one in await server.lrange(name, 0, -1)]])
        assert b"CANARY" not in held
        [mine] = [name async for name in server.scan_iter() if await server.llen(name) == 1]
        await buffer.add(says("x"), scope=EVA)
        theirs = next(name for name in [n async for n in server.scan_iter()] if name != mine)
        await server.delete(theirs)
        await server.rename(mine, theirs)
    with pytest.raises(IntegrityError):
        await buffer.window(scope=EVA)
    await buffer.clear(tenant="acme")
    await buffer.close()


@pytest.mark.anyio
async def test_a_memory_uses_it(url: str, tmp_path: Path) -> None:
    """A memory with such a buffer keeps its conversations there, and erasing a user empties them."""
    async with Memory(tmp_path / "m", buffer=RedisBuffer(url, key=KEY)) as memory:
        await memory.said([says("hello")], scope=EVA)
        assert await memory.window(scope=EVA) == [says("hello")]
        assert (await memory.health()).ok
        await memory.erase(scope=EVA, subject="eva")
        assert await memory.window(scope=EVA) == []


@pytest.mark.anyio
async def test_a_server_that_is_not_there_is_said(tmp_path: Path) -> None:
    """No server is a StoreError that may be tried again; a wrong url or key is a ConfigError."""
    buffer = RedisBuffer(f"unix://{tmp_path}/none.sock", key=KEY)
    with pytest.raises(StoreError, match="messages on Redis") as caught:
        await buffer.window(scope=EVA)
    assert caught.value.retryable
    async with Memory(tmp_path / "m", buffer=buffer) as memory:
        health = await memory.health()
    assert not health.ok
    assert health.detail.endswith("; the messages on Redis cannot be used: ConnectionError")
    with pytest.raises(ConfigError, match="begins with redis://"):
        RedisBuffer("http://x", key=KEY)
    with pytest.raises(ConfigError, match="needs 32"):
        RedisBuffer("redis://x", key=b"short")
