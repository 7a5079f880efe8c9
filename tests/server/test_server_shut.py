"""Who is let in no more: what runs for them ends, with the reason told and recorded once; nobody else's does."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from platform_world import Asked, Person, World, world
from server_parts import Running, Upstream, serving
from waiting import until

import aibox
from aibox.chat import ChatRequest
from aibox.server.api_keys import ApiKeys
from aibox.server.people import FRESH_S, People
from aibox.server.principal import Role
from aibox.server.shut import BOUND_S, LOOK_S, Shut
from aibox.types import Scope

pytestmark = pytest.mark.anyio

ENDS = ("turn.sealed", "turn.failed", "request.ended")
SUSPENDED = "policy.suspended"
CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "HOLD"}]}
AGENT = CHAT | {"model": "agent:default"}
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "whole": ("/v1/chat/completions", CHAT),
    "stream": ("/v1/chat/completions", CHAT | {"stream": True}),
    "agent": ("/v1/chat/completions", AGENT),
    "agent-stream": ("/v1/chat/completions", AGENT | {"stream": True}),
    "turn": ("/v1/chat", {"message": "HOLD"}),
    "turn-stream": ("/v1/chat/stream", {"message": "HOLD"}),
    "once": ("/v1/chat/completions", CHAT),
}
"""Each way to have a model work for a while."""


async def ends(home: Path, tenant: str) -> dict[str, list[tuple[str, str]]]:
    """The terminal entries of each request by its correlation id: their kind, and the code or outcome."""
    found: dict[str, list[tuple[str, str]]] = {}
    async with aibox.AuditChain(home / "audit.db", keys=home / "keys") as chain:
        assert (await chain.verify()).ok
        async for entry in chain.entries(tenant):
            if entry.kind in ENDS:
                what = str(entry.detail.get("code") or entry.detail["outcome"])
                found.setdefault(str(entry.detail.get("correlation")), []).append((entry.kind, what))
    return found


class Streams:
    """One request of each way by a caller, each in a thread; what each was told."""

    def __init__(self, server: Running, key: str, name: str, upstream: Upstream) -> None:
        self.told: dict[str, tuple[int, str]] = {}
        self._server, self._key, self._name = server, key, name
        before = upstream.begun
        self._threads = [threading.Thread(target=self._read, args=(way,)) for way in WAYS]
        for thread in self._threads:
            thread.start()
        server.until(lambda: upstream.begun == before + len(WAYS))

    def correlation(self, way: str) -> str:
        return f"{self._name}-{way}"

    def _read(self, way: str) -> None:
        path, body = WAYS[way]
        headers = {"x-correlation-id": self.correlation(way)}
        headers |= {"idempotency-key": self.correlation(way)} if way == "once" else {}
        answer = self._server.send("POST", path, json.dumps(body), headers=headers, key=self._key)
        self.told[way] = answer.status, answer.read().decode()

    def over(self) -> None:
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), {way for way in WAYS if way not in self.told}

    def all_told(self, status: int, code: str) -> None:
        """In the shape that each way has: an answer where none had begun, else the last event."""
        self.over()
        for way, (had, text) in self.told.items():
            assert code in text, (way, text)
            if "stream" not in way:
                assert had == status, way
                continue
            last = json.loads(text.rstrip("\n").rpartition("data: ")[2])
            if way == "turn-stream":
                assert (last["type"], last["problem"]["title"], last["problem"]["status"]) == ("failed", code, status)
            else:
                assert last["error"]["code"] == code

    def all_answered(self) -> None:
        self.over()
        assert {status for status, _ in self.told.values()} == {200}
        assert not [way for way, (_, text) in self.told.items() if "Two." not in text or '"error":{' in text]


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    found = Upstream()
    yield found
    found.close()


def make(home: Path, tenant: str, user: str, *roles: Role) -> str:
    async def made() -> str:
        keys = ApiKeys(home / "keys.db")
        try:
            return await keys.create(scope=Scope(tenant=tenant, user=user), roles=list(roles) or [Role.USER])
        finally:
            await keys.close()

    return asyncio.run(made())


def post(server: Running, key: str, path: str, body: Any = None, method: str = "POST") -> int:
    answer = server.send(method, path, "" if body is None else json.dumps(body), key=key)
    answer.read()
    return answer.status


def warm(server: Running, key: str) -> None:
    """What the first turn loads is loaded: on a busy machine that takes longer than a call may take to connect."""
    assert post(server, key, "/v1/chat", {"message": "hi"}) == 200


def elsewhere(home: Path, tenant: str, user: str = "") -> None:
    """As another process does it that shares the store."""

    async def put() -> None:
        people = People(home / "people.db")
        await people.put(tenant, user, state="suspended")
        await people.close()

    asyncio.run(put())


@pytest.mark.loopback
def test_what_runs_for_who_is_shut_out_is_ended_and_for_nobody_else(tmp_path: Path, upstream: Upstream) -> None:
    """A real server: a tenant, a user and a key of many, shut out here and elsewhere; each way told, one end each."""
    with serving(tmp_path, upstream, server='api_keys = "keys.db"\n') as server:
        home = server.home
        root = make(home, "ours", "root", Role.PLATFORM_ADMIN)
        boss = make(home, "acme", "boss", Role.TENANT_ADMIN, Role.USER)
        eva, again, tom = (make(home, "acme", user) for user in ("eva", "eva", "tom"))
        warm(server, eva)
        stays = Streams(server, make(home, "rival", "eva"), "rival", upstream)
        keyed, other = Streams(server, again, "again", upstream), Streams(server, eva, "first", upstream)
        # One of two keys of one user.
        assert post(server, boss, f"/v1/admin/keys/{again.split('-')[1]}", method="DELETE") == 204
        keyed.all_told(401, "policy.auth")
        assert not other.told
        # A user, and not another of the same tenant.
        toms = Streams(server, tom, "tom", upstream)
        assert post(server, boss, "/v1/admin/users/suspend", {"user": "eva"}) == 200
        other.all_told(403, SUSPENDED)
        assert not toms.told
        # A tenant, by somebody who has no part in this server.
        elsewhere(home, "acme")
        toms.all_told(403, SUSPENDED)
        assert post(server, boss, "/v1/chat", {"message": "hi"}) == 403
        # Let in again it works as before; what was to be done once was not done, and is.
        assert post(server, root, "/v1/admin/tenants/acme/resume") == 200
        assert not stays.told
        upstream.release.set()
        stays.all_answered()
        once = {"idempotency-key": toms.correlation("once")}
        answer = server.send("POST", "/v1/chat/completions", json.dumps(CHAT), headers=once, key=tom)
        assert answer.status == 200
        answer.read()
        assert "Traceback" not in server.text
        assert not server.lines("bug")
    acme, rival = asyncio.run(ends(home, "acme")), asyncio.run(ends(home, "rival"))
    for streams, code in ((keyed, "policy.auth"), (other, SUSPENDED), (toms, SUSPENDED)):
        for way in WAYS:
            assert acme[streams.correlation(way)] == [("turn.failed", code)], way
    assert [rival[stays.correlation(way)] for way in WAYS] == [[("turn.sealed", "answered")]] * len(WAYS)


@pytest.mark.loopback
def test_who_ends_their_own_key_is_answered(tmp_path: Path, upstream: Upstream) -> None:
    """The request that does it goes to its end; what else runs with that key does not."""
    with serving(tmp_path, upstream, server='api_keys = "keys.db"\n') as server:
        own = make(server.home, "acme", "boss", Role.TENANT_ADMIN, Role.USER)
        warm(server, own)
        streams = Streams(server, own, "own", upstream)
        assert post(server, own, f"/v1/admin/keys/{own.split('-')[1]}", method="DELETE") == 204
        streams.all_told(401, "policy.auth")


EVA, RIVAL = Person("acme", "eva", ("user",)), Person("rival", "eva", ("user",))
ROOT = Person("ours", "root", ("platform_admin",))


class Held:
    """A model that answers each request when it is let go, and says how many it holds."""

    def __init__(self) -> None:
        self.holds = 0
        self.go = asyncio.Event()

    async def __call__(self, request: ChatRequest) -> str:
        self.holds += 1
        try:
            await self.go.wait()
        finally:
            self.holds -= 1
        return "There."


@pytest.fixture
async def held(tmp_path: Path) -> AsyncIterator[tuple[World, Held]]:
    model = Held()
    async with world(tmp_path, model=model) as made:
        yield made, model


async def ask(w: World, by: Person, name: str, **body: Any) -> Any:
    headers = {"authorization": f"Bearer {by.token()}", "x-correlation-id": name}
    return await w.http.post("/v1/chat/completions", json=CHAT | body, headers=headers)


async def act(w: World, what: str) -> None:
    asked = Asked(body={} if what == "suspend" else None)
    assert (await w.send("post", f"/v1/admin/tenants/acme/{what}", asked, ROOT.token())).status_code == 200


async def one_end(w: World, name: str) -> list[str]:
    """How what a request did has ended; empty where it did nothing."""
    found = [entry async for entry in w.box.audit.entries("acme")]
    mine = [one for one in found if one.detail.get("correlation") == name]
    ended = [str(one.detail.get("code") or one.detail["outcome"]) for one in mine if one.kind in ENDS]
    assert len(ended) == bool(mine)
    return ended


async def test_an_act_goes_to_its_end_whenever_it_is_looked(
    held: tuple[World, Held], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who ends their own key is answered, also where the look comes between the key's end and the answer."""
    w, _ = held
    key, asked = await w.keys.create(scope=Scope(tenant="acme", user="boss"), roles=[Role.TENANT_ADMIN]), Asked()
    look = Shut.look

    async def as_the_timer_does(self: Shut) -> None:
        await asyncio.create_task(look(self))

    monkeypatch.setattr(Shut, "look", as_the_timer_does)
    assert (await w.send("delete", f"/v1/admin/keys/{key.split('-')[1]}", asked, key)).status_code == 204


async def test_what_runs_with_the_key_of_who_is_erased_is_ended(held: tuple[World, Held]) -> None:
    """The key went with its person, so it is told as one that was ended; what they ask with a token goes on."""
    w, model = held
    key, asked = await w.keys.create(scope=EVA.scope), Asked(body=CHAT)
    keyed = asyncio.create_task(w.send("post", "/v1/chat/completions", asked, key))
    tokened = asyncio.create_task(ask(w, EVA, "by-a-token"))
    await until(lambda: model.holds == 2)
    await w.box.audit.erase(scope=Scope(tenant="acme", user="dpo"), subject="eva", reason="art. 17")
    answer = await keyed
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "policy.auth")
    assert not tokened.done()
    model.go.set()
    assert (await tokened).status_code == 200


# The Agents SDK makes the coroutine of a turn a step before it is awaited; who is ended between the two leaves it.
@pytest.mark.filterwarnings("ignore:coroutine 'run_single_turn' was never awaited:RuntimeWarning")
async def test_a_request_that_comes_while_its_tenant_is_shut_out_does_not_stay(held: tuple[World, Held]) -> None:
    """Begun any number of steps before it: refused or ended, never both, never on and on, with one end if it began."""
    w, model = held
    bystander = asyncio.create_task(ask(w, RIVAL, "bystander"))
    await until(lambda: model.holds == 1)
    seen = set()
    for steps in (*range(0, 60, 4), *range(60, 1500, 160), *range(-400, 0, 40)):
        for number, fields in enumerate(({}, {"stream": True}, {"model": "agent:default", "stream": True})):
            name = f"race-of-{steps}-{number}"
            coming, acting = (ask(w, EVA, name, **fields), act(w, "suspend"))
            first = asyncio.create_task(coming if steps >= 0 else acting)
            for _ in range(abs(steps)):
                await asyncio.sleep(0)
            second = asyncio.create_task(acting if steps >= 0 else coming)
            answer, _ = sorted(await asyncio.gather(first, second), key=lambda one: one is None)
            assert SUSPENDED in answer.text, (name, answer.text)
            found = await one_end(w, name)
            assert found in ([], [SUSPENDED]), (name, found)
            assert found or answer.status_code == 403
            seen.add((answer.status_code, bool(found)))
            assert model.holds == 1
            await act(w, "resume")
    assert {(403, True), (200, True)} <= seen <= {(403, False), (403, True), (200, True)}
    await act(w, "suspend")
    assert (await ask(w, EVA, "too-late")).status_code == 403
    assert await one_end(w, "too-late") == []
    await act(w, "resume")
    model.go.set()
    assert (await bystander).status_code == 200
    assert (await ask(w, EVA, "afterwards")).status_code == 200
    # What was left is found here, where it is known, and not in whatever test comes next.
    gc.collect()


@pytest.mark.parametrize(("way", "taken"), [("stream", 2), ("turn-stream", 1)])
async def test_a_reader_who_takes_nothing_is_ended_with_the_reason_on_record(
    tmp_path: Path, way: str, taken: int
) -> None:
    """Where the stream waits for its reader, and not the reader for it: the entry says why, and not that they left."""
    path, body = WAYS[way]
    stuck, sent = asyncio.Event(), 0
    messages = [{"type": "http.request", "body": json.dumps(body).encode()}]

    async def send(_: Any) -> None:
        nonlocal sent
        sent += 1
        if sent > taken:
            stuck.set()
            await asyncio.Event().wait()

    async def receive() -> Any:
        if not messages:
            await asyncio.Event().wait()
        return messages.pop()

    # A turn goes on by itself, so that its model must be held; a bare model's answer is not read on.
    async with world(tmp_path, model=Held() if way == "turn-stream" else lambda _: "word " * 200) as w:
        headers = [(b"authorization", f"Bearer {EVA.token()}".encode()), (b"x-correlation-id", b"stuck-reader")]
        scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b""}
        asking = asyncio.create_task(w.app({**scope, "root_path": "", "headers": headers}, receive, send))
        await stuck.wait()
        await act(w, "suspend")
        await until(asking.done)
        assert await one_end(w, "stuck-reader") == [SUSPENDED]


async def test_sandbox_sessions_of_who_is_shut_out_are_closed(tmp_path: Path) -> None:
    """Those of the tenant, also while code runs in one, with the reason on record; another tenant's goes on."""
    async with world(tmp_path) as w, AsyncExitStack() as stack:
        opened = {}
        for who in (EVA, RIVAL):
            opened[who] = (await w.send("post", "/v1/sandbox", Asked(body={}), who.token())).json()["id"]
        code = Asked(body={"code": "import time\nprint('on', flush=True)\nopen('on', 'w').close()\ntime.sleep(60)"})
        running = asyncio.create_task(w.send("post", f"/v1/sandbox/{opened[EVA]}/run", code, EVA.token()))
        stack.callback(running.cancel)
        session = await w.box.sandbox.attach(opened[EVA], scope=EVA.scope)
        await until(lambda: session.busy)
        await act(w, "suspend")
        told = await running
        assert (told.status_code, told.json()["title"]) == (403, SUSPENDED)
        await until(lambda: w.box.sandbox.owners == {("rival", "eva")})
        ran = await w.send("post", f"/v1/sandbox/{opened[RIVAL]}/run", Asked(body={"code": "1 + 1"}), RIVAL.token())
        assert ran.json()["value"] == "2"
        await act(w, "resume")
        gone = await w.send("get", f"/v1/sandbox/{opened[EVA]}/files", Asked(), EVA.token())
        assert gone.status_code == 404
        await w.box.audit.append("test.after", scope=EVA.scope, detail={})  # what was noted before it is in by now
        ended = [e.detail async for e in w.box.audit.entries("acme") if e.kind == "sandbox.ended"]
        assert [one.get("code") for one in ended] == [SUSPENDED]


def test_the_bound_is_what_one_look_after_an_old_answer_takes() -> None:
    """Let in by an answer of just before, and found by the next look: with a rest for the looking itself."""
    assert FRESH_S + LOOK_S < BOUND_S == 5.0


async def test_nothing_is_asked_while_nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An idle server leaves its store alone, and one whose store is away ends nothing and looks again."""
    model = Held()
    async with world(tmp_path, model=model) as w:
        shut = next(part for part in w.box._made if type(part).__name__ == "Shut")
        people: People = shut._people
        asked: list[Any] = []
        real: Callable[..., Any] = people.shut_out

        async def counted(users: Any) -> Any:
            asked.append(users)
            if len(asked) == 1:
                raise aibox.errors.StoreError("gone")
            return await real(users)

        monkeypatch.setattr(people, "shut_out", counted)
        await shut.look()
        assert asked == []
        running = asyncio.create_task(ask(w, EVA, "under-way"))
        await until(lambda: model.holds == 1)
        await w.people.put("acme", state="suspended")
        await shut.look()
        assert (len(asked), model.holds) == (1, 1)
        await until(running.done)
        assert running.result().status_code == 403
        assert asked[1] == {"acme": {"eva"}}
