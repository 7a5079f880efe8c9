"""Rate limits: the law of the buckets, in this process and in a real Redis, and what a caller is told."""

from __future__ import annotations

import asyncio
import io
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from waiting import until

import aibox
from aibox.box import Box
from aibox.chat import ChatRequest
from aibox.errors import ConfigError
from aibox.policy.policy import Policy
from aibox.policy.rates import Rate, Rates
from aibox.server.api_keys import ApiKeys
from aibox.server.app import create_app
from aibox.server.auth import Callers
from aibox.server.buckets import Buckets, Left, Want
from aibox.server.log import Log
from aibox.server.principal import Principal
from aibox.server.rates import RateLimits, wanted
from aibox.server.redis_buckets import RedisBuckets
from aibox.settings import Settings
from aibox.testing import ScriptedBackend
from aibox.types import Scope

pytestmark = pytest.mark.anyio
BINARY = shutil.which("redis-server") or shutil.which("valkey-server")


@pytest.fixture(scope="module")
def redis_server() -> Iterator[str]:
    """A real server on a socket of its own, in memory only."""
    if BINARY is None:
        pytest.skip("no redis-server here: apt-get install redis-server")
    with tempfile.TemporaryDirectory(prefix="rd") as folder:
        path = Path(folder) / "s"
        command = [BINARY, "--port", "0", "--unixsocket", str(path), "--save", "", "--dir", folder]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            from redis import Redis

            with Redis(unix_socket_path=str(path)) as client:
                for _ in range(1000):
                    try:
                        client.ping()
                        break
                    except OSError:
                        assert process.poll() is None
            yield f"unix://{path}"
            process.terminate()


@pytest.fixture
def redis_url(redis_server: str) -> str:
    from redis import Redis

    with Redis.from_url(redis_server) as client:
        client.flushall()
    return redis_server


def want(a_minute: int, *, bucket: str = "t", need: int = 1, take: int = 1) -> Want:
    return Want("tenant-requests", bucket, a_minute, need=need, take=take)


@settings(max_examples=60)
@given(st.integers(1, 50), st.lists(st.floats(0, 30), max_size=60))
def test_no_more_than_a_minute_allows_goes_through(a_minute: int, waits: list[float]) -> None:
    """Over any time, at most a full bucket and what came back meanwhile is admitted; and never less than that."""
    now = 0.0
    buckets = Buckets(clock=lambda: now)
    admitted = 0

    async def run() -> None:
        nonlocal now, admitted
        for wait in waits:
            now += wait
            enough, (left,) = await buckets.take([want(a_minute)])
            admitted += enough
            assert left.level >= 0
            assert enough or 0 < left.wait_s <= 60 / a_minute
            if not enough:
                now += left.wait_s + 1e-6
                assert (await buckets.take([want(a_minute)]))[0]
                admitted += 1
        assert admitted <= a_minute + now * a_minute / 60 + 1e-6

    asyncio.run(run())


async def test_all_or_none_and_what_was_used_is_owed() -> None:
    """A request that one bound refuses takes from none; a bucket that was overdrawn takes the longer to come back."""
    now = 0.0
    buckets = Buckets(clock=lambda: now)
    narrow, wide = want(1, bucket="n"), want(10, bucket="w")
    assert (await buckets.take([narrow, wide]))[0]
    enough, lefts = await buckets.take([narrow, wide])
    assert not enough
    assert lefts[1].level == 9
    await buckets.use([want(60, bucket="tokens", take=180)])
    enough, (left,) = await buckets.take([want(60, bucket="tokens", take=0)])
    assert (enough, left.level, left.wait_s) == (False, -120, 121)


def test_who_draws_from_which_bucket() -> None:
    """Tenant, user and key have buckets of their own; those of another tenant are others, whatever they are called."""
    rates = Rates(tenant=Rate(requests_per_minute=9), user=Rate(tokens_per_minute=5), key=Rate(requests_per_minute=3))
    eva = Principal(Scope(tenant="acme", user="eva"), how="key:abc")
    assert [one.policy for one in wanted(rates, eva)] == ["tenant-requests", "user-tokens", "key-requests"]
    others = [Principal(Scope(tenant="rival", user="eva"), how="key:abc"), Principal(Scope(tenant="acme", user="tom"))]
    mine = {one.bucket for one in wanted(rates, eva)}
    assert not mine & {one.bucket for one in wanted(rates, others[0])}
    assert len(mine & {one.bucket for one in wanted(rates, others[1])}) == 1


@pytest.mark.loopback
async def test_servers_that_share_a_redis_share_the_bound(redis_url: str) -> None:
    """Eight servers that admit at once let through what one bucket holds and no more; then all of them wait."""
    servers = [RedisBuckets(redis_url) for _ in range(8)]
    try:
        for a_minute in (7, 600):  # asked each time, and leased
            answers = await asyncio.gather(
                *(server.take([want(a_minute, bucket=f"b{a_minute}")]) for server in servers for _ in range(a_minute))
            )
            admitted = sum(enough for enough, _ in answers)
            # What came back while they asked may be used too: less than a tenth of a minute of it.
            assert a_minute * 0.85 <= admitted <= a_minute * 1.1 + 1
        lefts = [(await server.take([want(7, bucket="b7")]))[1][0] for server in servers]
        assert max(left.level for left in lefts) < 2
    finally:
        for server in servers:
            await server.close()


@pytest.mark.loopback
async def test_tokens_used_at_one_server_are_missing_at_the_other(redis_url: str) -> None:
    """What a long answer has cost is owed everywhere."""
    one, other = RedisBuckets(redis_url), RedisBuckets(redis_url)
    tokens = want(600, take=0)
    try:
        assert (await one.take([tokens]))[0]
        await one.use([want(600, take=6000)])
        enough, (left,) = await other.take([tokens])
        assert not enough
        assert 500 < left.wait_s <= 541
    finally:
        await one.close()
        await other.close()


@pytest.mark.loopback
async def test_without_redis_each_server_holds_the_bounds_itself(redis_url: str) -> None:
    """A Redis that is gone is told once, limits go on in the process, and when it is back it is asked again."""
    now = 0.0
    told: list[bool] = []
    gone = RedisBuckets("unix:///nowhere/at/all", told=told.append, clock=lambda: now)
    assert not await gone.check()
    assert told == [False]  # as at the start of a server, before anybody asks for anything
    assert [(await gone.take([want(2)]))[0] for _ in range(3)] == [True, True, False]
    assert told == [False]
    assert not await gone.check()
    await gone.close()
    back = RedisBuckets(redis_url, told=told.append, clock=lambda: now)
    back._failed()
    now = 10.0
    assert (await back.take([want(2)]))[0]
    assert told == [False, False, True]
    back._failed()
    assert await back.check()
    assert told[3:] == [False]  # a ping says nothing of whether it does what it is asked
    await back.close()


def test_a_wrong_url_is_refused() -> None:
    """Another kind of address than Redis' is a mistake, and told."""
    with pytest.raises(ConfigError, match="redis://"):
        RedisBuckets("http://x")


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[tuple[httpx2.AsyncClient, dict[str, str]]]:
    """Two keys of one tenant and one of another, and a policy with rates."""
    keys = ApiKeys(tmp_path / "keys.db")
    policy = Policy(
        rates=Rates(
            tenant=Rate(requests_per_minute=6), key=Rate(requests_per_minute=4), user=Rate(tokens_per_minute=100)
        )
    )
    made = {
        name: await keys.create(scope=Scope(tenant=tenant, user=name))
        for name, tenant in (("a", "acme"), ("b", "acme"), ("c", "rival"))
    }
    async with Box(Settings(home=tmp_path / "home", policy="permissive"), policy=policy) as box:
        box.__dict__["router"] = aibox.Router(
            ScriptedBackend(*["Yes."] * 99), policy=box.policy, audit=box.audit, on_call=box._called
        )
        app = create_app(box, callers=Callers(keys), rates=RateLimits(Buckets(clock=lambda: 0.0)))
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://aibox") as client:
            yield client, made
    await keys.close()


async def ask(client: httpx2.AsyncClient, key: str, words: int = 1) -> httpx2.Response:
    body = {"model": "scripted", "messages": [{"role": "user", "content": "w " * words}]}
    return await client.post("/v1/chat/completions", json=body, headers={"authorization": f"Bearer {key}"})


async def test_a_caller_is_told_what_is_left_and_when_to_come_back(
    served: tuple[httpx2.AsyncClient, dict[str, str]],
) -> None:
    """Fields of the IETF's draft on every answer; the bound that is met is a 429 whose two times agree."""
    client, keys = served
    first = await ask(client, keys["a"])
    assert first.headers["ratelimit-policy"] == (
        '"tenant-requests";q=6;w=60, "user-tokens";q=100;w=60;qu="tokens", "key-requests";q=4;w=60'
    )
    assert first.headers["ratelimit"] == '"tenant-requests";r=5;t=10, "user-tokens";r=100;t=0, "key-requests";r=3;t=15'
    assert [(await ask(client, keys["a"])).status_code for _ in range(3)] == [200] * 3
    over = await ask(client, keys["a"])
    assert over.status_code == 429
    assert over.json()["error"]["code"] == "policy.limit.rate"
    assert "this key has used its 4 requests a minute" in over.json()["error"]["message"]
    assert over.headers["retry-after"] == "15"
    assert '"key-requests";r=0;t=15' in over.headers["ratelimit"]
    assert [(await ask(client, keys["b"])).status_code for _ in range(3)] == [200, 200, 429]
    assert "this tenant" in (await ask(client, keys["b"])).json()["error"]["message"]
    assert (await ask(client, keys["c"])).status_code == 200


async def test_tokens_are_paid_for_afterwards(served: tuple[httpx2.AsyncClient, dict[str, str]]) -> None:
    """A call that used more than a minute allows is answered, and the next has to wait for it."""
    client, keys = served
    assert (await ask(client, keys["c"], words=200)).status_code == 200
    over = await ask(client, keys["c"])
    assert over.status_code == 429
    assert "tokens a minute" in over.json()["error"]["message"]
    assert re.search(r'"user-tokens";r=0;t=(\d+)', over.headers["ratelimit"])[1] == over.headers["retry-after"]  # type: ignore[index]
    assert json.loads(over.content)


class Slow(Buckets):
    """Buckets that are asked far away: an answer comes when it is let through."""

    def __init__(self) -> None:
        super().__init__(clock=lambda: 0.0)
        self.asked = 0
        self.go = asyncio.Event()

    async def take(self, wants: Sequence[Want]) -> tuple[bool, list[Left]]:
        self.asked += 1
        await self.go.wait()
        return await super().take(wants)


@asynccontextmanager
async def serving(
    home: Path, policy: Policy, buckets: Buckets, *, model: Any = "Yes.", log: Log | None = None, **limits: int
) -> AsyncIterator[tuple[httpx2.AsyncClient, dict[str, str]]]:
    """Keys of two users of one tenant."""
    keys = ApiKeys(home / "keys.db")
    made = {name: await keys.create(scope=Scope(tenant="acme", user=name)) for name in "ab"}
    settings_ = Settings(home=home / "home", policy="permissive", server={"limits": limits})  # type: ignore[arg-type]
    async with Box(settings_, policy=policy) as box:
        scripted = ScriptedBackend(*[model] * 9)
        box.__dict__["router"] = aibox.Router(scripted, policy=box.policy, audit=box.audit, on_call=box._called)
        app = create_app(box, callers=Callers(keys), rates=RateLimits(buckets), log=log)
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://aibox") as client:
            yield client, made
    await keys.close()


async def test_a_request_counts_while_its_rates_are_asked_for_and_no_longer_than_it_lasts(tmp_path: Path) -> None:
    """However slowly they are told, no more are under way than may be; who was refused has given the place back."""
    policy, buckets = Policy(rates=Rates(tenant=Rate(requests_per_minute=2))), Slow()
    async with serving(tmp_path, policy, buckets, requests_per_tenant=1) as (client, keys):
        first = asyncio.create_task(ask(client, keys["a"]))
        await until(lambda: buckets.asked == 1)
        second = asyncio.create_task(ask(client, keys["b"]))
        await until(lambda: second.done() or buckets.asked == 2)
        buckets.go.set()
        assert (await second).json()["error"]["code"] == "policy.limit.concurrent"
        assert (await first).status_code == 200
        codes = [(await ask(client, keys["b"])).json().get("error", {}).get("code") for _ in range(3)]
        assert codes == [None, "policy.limit.rate", "policy.limit.rate"]


async def test_an_id_that_two_users_send_says_nothing_about_whose_tokens_they_are(tmp_path: Path) -> None:
    """At once, with one correlation id: who has used much waits, and who took their id, or had it taken, does not."""
    go, holds = asyncio.Event(), 0

    async def model(_: ChatRequest) -> str:
        nonlocal holds
        holds += 1
        await go.wait()
        return "Yes."

    policy = Policy(rates=Rates(user=Rate(tokens_per_minute=100)))
    async with serving(tmp_path, policy, Buckets(clock=lambda: 0.0), model=model) as (client, keys):
        client.headers["x-correlation-id"] = "one-id-of-two"
        asking = []
        for name, words in (("b", 1), ("a", 300), ("b", 1)):
            asking.append(asyncio.create_task(ask(client, keys[name], words)))
            await until(lambda: holds == len(asking))
        go.set()
        assert {(await one).status_code for one in asking} == {200}
        assert [(await ask(client, keys[name])).status_code for name in "ba"] == [200, 429]


@pytest.mark.parametrize("model", ["scripted", "agent:default"])
@pytest.mark.parametrize("stream", [False, True])
async def test_an_id_that_is_used_twice_takes_no_tokens_from_a_key(tmp_path: Path, model: str, stream: bool) -> None:
    """A request that comes and goes under the id of one that runs leaves that one's tokens where they belong."""
    go, asked = asyncio.Event(), asyncio.Event()

    async def answer(_: ChatRequest) -> str:
        asked.set()
        await go.wait()
        return "Yes."

    out = io.BytesIO()
    policy, log = Policy(rates=Rates(key=Rate(tokens_per_minute=100))), Log(out)
    async with serving(tmp_path, policy, Buckets(clock=lambda: 0.0), model=answer, log=log) as (client, keys):
        client.headers |= {"x-correlation-id": "one-id-of-two", "authorization": f"Bearer {keys['a']}"}
        body = {"model": model, "stream": stream, "messages": [{"role": "user", "content": "w " * 300}]}
        long = asyncio.create_task(client.post("/v1/chat/completions", json=body))
        await asked.wait()
        assert (await client.get("/v1/models")).status_code == 200
        go.set()
        assert (await long).status_code == 200
        assert (await ask(client, keys["a"])).json()["error"]["code"] == "policy.limit.rate"
        assert (await ask(client, keys["b"])).status_code == 200
    log.close()
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    used = [(one["route"], one["input_tokens"] >= 300, one["output_tokens"] > 0) for one in lines]
    assert used[:2] == [("/v1/models", False, False), ("/v1/chat/completions", True, True)]
