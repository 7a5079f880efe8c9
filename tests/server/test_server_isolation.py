"""The isolation matrix, made of the OpenAPI document: every route, for whoever may ask it and whoever may not."""

from __future__ import annotations

import io
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from platform_world import ROLES, Asked, Person, World, answer, world
from test_server_openai import Everything

from aibox.chat import ChatRequest, Chunk, Completion, Usage
from aibox.inference.accounts import Call
from aibox.inference.capabilities import Api
from aibox.outbound.events import Event
from aibox.outbound.outbox import Outbox
from aibox.server.principal import Role
from aibox.server.scopes import KeyScope
from aibox.server.table import openapi
from aibox.testing import ScriptedBackend
from aibox.types import Scope

pytestmark = pytest.mark.anyio

DOCUMENT = openapi()
OPERATIONS: dict[str, tuple[str, str, dict[str, Any]]] = {
    operation["operationId"]: (method, path, operation)
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
}
GUARDED = [name for name, (_, _, operation) in OPERATIONS.items() if operation["x-roles"]]
EVA = Person("acme", "eva", ("user", "tenant_admin", "platform_admin"))
"""Whose things are tried to be reached. She may ask everything but what an auditor alone may."""
STRANGERS = (
    Person("rival", "eva", ("user", "service", "tenant_admin", "auditor")),
    Person("acme", "tom", ("user",)),
)
"""Of another tenant with the same name and every role there, and of the same tenant with another name."""
DOERS = (Person("third", STRANGERS[0].user, STRANGERS[0].roles), Person("acme", "tim", STRANGERS[1].roles))
"""Likewise, but with things of their own, in which the secret stands too."""
Seed = Callable[[World, Person], Awaitable[Asked]]
ANY_VERSION = {"if-match": "*"}
UNSEEDED: set[Seed] = set()
"""What makes nothing that could be reached."""
SECRET = "violet-heron-7731"
"""Stands in all that is Eva's, and in no answer to anybody else."""


def _chat(text: str) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}]}


def nothing(**fields: Any) -> Seed:
    async def seed(_: World, __: Person) -> Asked:
        return Asked(**fields)

    UNSEEDED.add(seed)
    return seed


async def turn(w: World, who: Person, text: str, **more: Any) -> dict[str, Any]:
    body = {"message": text, **more}
    answered = await w.send("post", "/v1/chat", Asked(body=body), asker(who).token())
    assert answered.status_code == 200, answered.text
    found: dict[str, Any] = answered.json()
    return found


def asker(who: Person) -> Person:
    """Who can have made the thing that somebody asks about: an auditor makes nothing."""
    return Person(who.tenant, who.user, ("user",)) if who.roles == ("auditor",) else who


def conversation(**more: Any) -> Seed:
    async def seed(w: World, who: Person) -> Asked:
        session = w.fresh()
        await turn(w, who, f"{SECRET} {session}", session=session)
        return Asked(path={"id": session}, **more)

    return seed


def question(part: str) -> Seed:
    async def seed(w: World, who: Person) -> Asked:
        paused = await turn(w, who, f"pay {SECRET}")
        approval = paused["pending"][0]["id"]
        shown = await w.box.state.approvals.get(approval, scope=who.scope)
        body = {"approve": {"digest": shown.digest}, "reject": {"reason": "no"}}.get(part)
        if part != "resume":
            return Asked(path={"id": approval}, body=body)
        await w.box.state.approvals.approve(approval, digest=shown.digest, scope=who.scope)
        return Asked(path={"id": paused["run"]})

    return seed


def memory(**more: Any) -> Seed:
    async def seed(w: World, who: Person) -> Asked:
        record = await w.box.memory.remember(f"{SECRET} is what I like, {w.fresh()}", scope=who.scope)
        return Asked(path={"id": record.id}, **more)

    return seed


async def document(w: World, who: Person) -> Asked:
    text = f"# Notes\n\nThe bird is {SECRET}, {w.fresh()}.".encode()
    (added,) = await w.box.memory.add(text, name=f"{SECRET}-{w.fresh()}.md", scope=who.scope)
    return Asked(path={"id": added.id})


def sandbox(**more: Any) -> Seed:
    async def seed(w: World, who: Person) -> Asked:
        session = await w.box.sandbox.open(scope=who.scope)
        await session.write("bird.txt", SECRET)
        return Asked(path={"id": session.id}, **more)

    return seed


async def receipt(w: World, who: Person) -> Asked:
    return Asked(path={"turn": (await turn(w, who, SECRET))["turn"]})


async def entry(w: World, who: Person) -> Asked:
    made = await w.box.audit.append("test.noted", scope=who.scope, detail={"what": SECRET})
    return Asked(path={"seq": str(made.seq)})


def log(**more: Any) -> Seed:
    async def seed(w: World, who: Person) -> Asked:
        await entry(w, who)
        return Asked(**more)

    return seed


def key(**more: Any) -> Seed:
    async def seed(w: World, who: Person) -> Asked:
        made = await w.keys.create(scope=who.scope, note=SECRET)
        return Asked(path={"id": made.split("-")[1]}, **more)

    return seed


def used(**more: Any) -> Seed:
    async def seed(w: World, who: Person) -> Asked:
        call = Call(scope=who.scope, model=SECRET, backend="m", external=False, usage=Usage(1, 1), total_s=1.0)
        w.box.router.accounts.settle(call)
        return Asked(**more)

    return seed


async def delivery(w: World, who: Person) -> Asked:
    outbox = Outbox(lambda: w.box.state.store)
    seq = await outbox.begin(who.tenant, 0)
    event = Event(w.fresh(), "turn.blocked", b"{}", ts_us=time.time_ns() // 1000, seq=seq)
    await outbox.take(who.tenant, {SECRET: [event]}, upto=seq)
    return Asked()


def tenant(*, suspended: bool = False, **more: Any) -> Seed:
    async def seed(w: World, _: Person) -> Asked:
        name = w.fresh()
        await w.people.put(name, state="suspended" if suspended else "active")
        return Asked(path={"name": name}, **more)

    return seed


async def new_tenant(w: World, _: Person) -> Asked:
    return Asked(body={"name": w.fresh(), "note": "made here"})


async def stranger(w: World, _: Person) -> Asked:
    return Asked(body={"user": w.fresh()})


def user(**more: Any) -> Seed:
    async def seed(w: World, who: Person) -> Asked:
        await w.people.put(who.tenant, SECRET, state="active")
        return Asked(**more)

    return seed


def policy(level: str = "own", **more: Any) -> Seed:
    async def seed(w: World, who: Person) -> Asked:
        kept = {"toml": f'[topics.banned]\nbirds = ["{SECRET}"]\n'}
        level_of = "operator" if who.roles == ("platform_admin",) else level
        boss = Person(who.tenant, who.user, ("tenant_admin", "platform_admin"))
        path = {"level": level_of}
        sent = await w.send("put", "/v1/admin/policy/{level}", Asked(path=path, body=kept), boss.token())
        assert sent.status_code in (200, 428), sent.text
        return Asked(path={**path, "version": "1"}, **more)

    return seed


ROWS: dict[str, Seed] = {
    "openai.chat": nothing(body=_chat("hello")),
    "openai.completions": nothing(body={"model": "m", "prompt": "hello"}),
    "openai.embeddings": nothing(body={"input": ["hello"]}),
    "openai.responses": nothing(body={"model": "m", "input": "hello"}),
    "inference.models": nothing(),
    "chat.run": nothing(body={"message": "hello"}),
    "chat.stream": nothing(body={"message": "hello"}),
    "chat.agents": nothing(),
    "chat.agent": nothing(path={"name": "default"}),
    "sessions.list": conversation(),
    "sessions.get": conversation(),
    "sessions.export": conversation(),
    "sessions.title": conversation(body={"title": "mine"}),
    "sessions.delete": conversation(),
    "approvals.list": question("list"),
    "approvals.show": question("show"),
    "approvals.approve": question("approve"),
    "approvals.reject": question("reject"),
    "approvals.resume": question("resume"),
    "guard.check": nothing(body={"text": "hello"}),
    "guard.policy": nothing(),
    "memory.remember": nothing(body={"text": "I like tea."}),
    "memory.recall": memory(body={"query": SECRET}),
    "memory.list": memory(),
    "memory.export": memory(),
    "memory.get": memory(),
    "memory.update": memory(body={"text": "I like coffee."}),
    "memory.forget": memory(),
    "memory.forget_everything": memory(body={"everything": True}),
    "knowledge.add": nothing(query={"name": "a.md"}, content=b"# A\n\nSome text of mine."),
    "knowledge.list": document,
    "knowledge.search": document,
    "knowledge.remove": document,
    "sandbox.open": nothing(body={}),
    "sandbox.list": sandbox(),
    "sandbox.run": sandbox(body={"code": "print(open('bird.txt').read())"}),
    "sandbox.files": sandbox(),
    "sandbox.read": sandbox(query={"path": "bird.txt"}),
    "sandbox.write": sandbox(query={"path": "b.txt"}, content=b"x"),
    "sandbox.end": sandbox(),
    "tenant.usage": used(),
    "tenant.skills": nothing(),
    "tenant.routes": nothing(),
    "receipts.get": receipt,
    "audit.log": log(),
    "audit.checkpoint": log(),
    "audit.verify": log(),
    "audit.show": entry,
    "keys.list": key(),
    "keys.create": nothing(body={"user": "nightly"}),
    "keys.rotate": key(body={}),
    "keys.revoke": key(),
    "tenants.list": nothing(),
    "tenants.create": new_tenant,
    "tenants.show": tenant(),
    "tenants.suspend": tenant(body={}),
    "tenants.resume": tenant(suspended=True),
    "tenants.delete": tenant(suspended=True),
    "users.list": user(),
    "users.suspend": stranger,
    "users.resume": stranger,
    "policies.show": policy(),
    "policies.put": policy(body={"policy": {}}, headers=ANY_VERSION),
    "policies.withdraw": policy(headers=ANY_VERSION),
    "policies.versions": policy(),
    "policies.version": policy(),
    "admin.models": nothing(),
    "metrics.metrics": nothing(),
    "admin.policy": nothing(),
    "admin.budgets": nothing(query={"model": "b/m"}),
    "admin.egress": nothing(),
    "admin.verify": log(),
    "admin.reload": nothing(),
    "observability.state": used(),
    "observability.usage": used(),
    "observability.deliveries": delivery,
}
"""How each route is asked by somebody whose thing it is; what it needs is made first."""
BODIES: dict[str, Any] = {"knowledge.search": {"query": SECRET}}
ABSENT = {"id": "0" * 32, "turn": "00000000-0000-4000-8000-000000000000", "seq": str(10**9), "name": "nobody"}
ABSENT |= {"level": "own", "version": "999"}
ONE_FOR_ALL = {"chat.agent": "an agent is the server's", "policies.": "a level and a version are in every tenant"}
"""Has a part in its path that is nobody's: a stranger who asks for it asks for their own."""
SHOWN = {
    *("memory.recall", "memory.list", "memory.export", "knowledge.search", "keys.list", "users.list"),
    *("tenant.usage", "observability.usage", "observability.deliveries"),
    *("sessions.list", "approvals.list", "audit.log", "knowledge.list"),
    *("policies.show", "policies.version"),
}
"""What holds Eva's secret, for her."""
MARKED: dict[str, Callable[[Asked, Any], str]] = {
    "sandbox.list": lambda request, _: request.path["id"],
    "audit.checkpoint": lambda _, hers: str(hers.text.partition("\n")[0]),
    "observability.state": lambda _, hers: f'"tenant":"{hers.json()["tenant"]}"',
    "policies.versions": lambda _, hers: str(hers.json()["data"][0]["digest"]),
}
"""What says no more of a thing than its id, its digest or whose it is: how it is known, of her request and answer."""
TELL_NOTHING = {
    **dict.fromkeys(("audit.verify", "admin.verify", "memory.forget_everything"), "they count"),
    **dict.fromkeys(("tenants.create", "users.suspend", "users.resume"), "they tell what they were sent"),
    **dict.fromkeys(("policies.put", "policies.withdraw"), "they tell of the policy that they make or end"),
}
"""What is seeded and tells of nothing that is kept. That it changes nothing of anybody else's is tried below."""
OF_A_TENANT = ("keys.", "users.", "policies.", "admin.", "observability.")
"""Routes that take `?tenant=`."""
THE_TENANTS = {"receipts.get", "audit.show", "keys.rotate", "keys.revoke"}
"""What belongs to the tenant: those of its people who may ask at all may ask about all of it."""


class Model(Everything):
    """Has all the APIs, and chats as the world's model does."""

    def __init__(self) -> None:
        super().__init__()
        self._chat = ScriptedBackend(*[answer] * 100_000, name=self.name)

    async def complete(self, request: ChatRequest, *, scope: Scope) -> Completion:
        return await self._chat.complete(request, scope=scope)

    async def stream(self, request: ChatRequest, *, scope: Scope) -> AsyncIterator[Chunk]:
        async for chunk in self._chat.stream(request, scope=scope):
            yield chunk

    async def post(self, api: Api, request: ChatRequest, *, scope: Scope) -> Completion:
        return await (self.complete(request, scope=scope) if api == "chat" else super().post(api, request, scope=scope))

    def events(self, api: Api, request: ChatRequest, *, scope: Scope) -> AsyncIterator[Chunk]:
        return self.stream(request, scope=scope) if api == "chat" else super().events(api, request, scope=scope)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


TEXTS = (SECRET, "hello", '"mine"', "I like", "text of mine", "heron", "bird.txt", "a.md", "b.txt")
"""What people say, write, search for and call their things in the rows."""
LINE = {"ts", "level", "event", "correlation", "tenant", "method", "route", "status", "code", "ms"}
LINE |= {"input_tokens", "output_tokens"}


@pytest.fixture(scope="module")
async def w(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    said = io.BytesIO()
    async with world(tmp_path_factory.mktemp("isolation"), model=Model(), said=said) as made:
        yield made
    holds_no_text(said.getvalue())


def holds_no_text(log: bytes) -> None:
    """Each line of the server's log is JSON about one request, by its route, and no text of anybody's is in it."""
    lines = [json.loads(line) for line in log.splitlines()]
    assert lines
    assert [line for line in lines if line["event"] != "request"] == []
    assert [line for line in lines if set(line) != LINE] == []
    assert {line["route"] for line in lines} <= {*DOCUMENT["paths"], "other"}
    assert [(text, line) for text in TEXTS for line in lines if text in json.dumps(line)] == []


def of_a_thing(name: str) -> bool:
    """Whether it names a thing that is somebody's."""
    return "{" in OPERATIONS[name][1] and not name.startswith(tuple(ONE_FOR_ALL))


LISTS = SHOWN | {*MARKED}
CHANGES = [name for name in GUARDED if OPERATIONS[name][0] != "get" and not of_a_thing(name)]
THINGS = {
    "memory.list": "memory.list", "knowledge.list": "knowledge.list", "sessions.list": "sessions.export",
    "approvals.list": "approvals.show", "sandbox.list": "sandbox.read", "keys.list": "keys.list",
    "policies.show": "policies.show", "policies.versions": "policies.versions",
}  # fmt: skip
"""Which row makes something of Eva's, and how she looks at it."""


def told(answered: Any) -> tuple[int, bytes, dict[str, str]]:
    """An answer, whole, but for the id and the time that each has of its own."""
    headers = {name: value for name, value in answered.headers.items() if name not in ("x-correlation-id", "date")}
    return answered.status_code, answered.content, headers


async def asked(w: World, name: str, who: Person) -> Asked:
    made = await ROWS[name](w, who)
    if name in BODIES:
        made.body = BODIES[name]
    return made


async def send(w: World, name: str, request: Asked, bearer: str | None) -> Any:
    method, path, _ = OPERATIONS[name]
    return await w.send(method, path, request, bearer)


def test_every_route_has_a_row() -> None:
    """A route that is documented is in the matrix, and so is tried in every way below."""
    assert set(GUARDED) == set(ROWS)
    assert {name for name in OPERATIONS if name not in ROWS} == {"health.healthz", "ready.readyz", "document.openapi"}


def test_what_is_seeded_is_looked_for() -> None:
    """What makes something and asks for no thing by an id shows it to its owner, or it says why it tells of nothing."""
    assert {name for name in GUARDED if ROWS[name] not in UNSEEDED and not of_a_thing(name)} == LISTS | {*TELL_NOTHING}
    assert not LISTS & {*TELL_NOTHING}


@pytest.mark.parametrize("name", GUARDED)
async def test_who_does_not_prove_who_they_are_gets_nothing(w: World, name: str) -> None:
    """No token, an expired one, one for another audience or of another issuer: 401; one without a tenant: 403."""
    tokens = {
        "none": None,
        "expired": EVA.token(iat=1_700_000_000, exp=1_700_003_600),
        "audience": EVA.token(aud="another"),
        "issuer": EVA.token(iss="https://id.example.net"),
        "nonsense": "x.y.z",
        "tenant": EVA.token(tenant=""),
    }
    for bad, bearer in tokens.items():
        answered = await send(w, name, Asked(path=ABSENT), bearer)
        assert answered.status_code == (403 if bad == "tenant" else 401), (bad, answered.text)
        assert ("policy.access" if bad == "tenant" else "policy.auth") in answered.text, bad
        # RFC 6750 sec. 3: of nothing there is nothing to say but how.
        told = {"none": "Bearer", "tenant": None}.get(bad, 'Bearer error="invalid_token"')
        assert answered.headers.get("www-authenticate") == told, bad


@pytest.mark.parametrize("name", GUARDED)
async def test_a_role_opens_what_the_document_says_and_nothing_else(w: World, name: str) -> None:
    """Whoever has a role of the route gets what is their own; whoever has none is refused before anything is read."""
    _, _, operation = OPERATIONS[name]
    good = next(int(status) for status in operation["responses"] if status.startswith("2"))
    for role in (*ROLES, "nothing"):
        who = Person("acme", f"only-{role}", (role,) if role != "nothing" else ())
        if role not in operation["x-roles"]:
            answered = await send(w, name, Asked(path=ABSENT), who.token())
            assert (answered.status_code, "policy.access" in answered.text) == (403, True), (role, answered.text)
            continue
        answered = await send(w, name, await asked(w, name, who), who.token())
        assert answered.status_code == good, (role, answered.text)


@pytest.mark.parametrize("name", GUARDED)
async def test_a_key_opens_what_it_is_for_and_nothing_else(w: World, name: str) -> None:
    """Of all scopes but the route's own: 403, which names it. Of that one alone: what the roles allow; no wider key."""
    _, _, operation = OPERATIONS[name]
    good = next(int(status) for status in operation["responses"] if status.startswith("2"))
    needed = operation.get("x-scope")
    roles = [Role(role) for role in EVA.roles]
    if needed is not None:
        others = await w.keys.create(scope=EVA.scope, roles=roles, scopes=set(KeyScope) - {needed})
        refused = await send(w, name, await asked(w, name, EVA), others)
        assert (refused.status_code, "policy.scope" in refused.text) == (403, True), refused.text
        assert f"this needs the scope {needed}" in refused.text
    own = await w.keys.create(scope=EVA.scope, roles=roles, scopes=[needed or KeyScope.GUARD])
    answered = await send(w, name, await asked(w, name, EVA), own)
    if name in ("keys.create", "keys.rotate", "keys.revoke"):
        # What the row makes is a key for everything.
        assert (answered.status_code, "gives no more" in answered.text) == (403, True), answered.text
        return
    assert answered.status_code == good, answered.text


@pytest.mark.parametrize("name", [n for n in GUARDED if of_a_thing(n)])
@pytest.mark.parametrize("stranger", STRANGERS, ids=["another tenant", "another user"])
async def test_what_is_somebody_elses_is_not_there(w: World, name: str, stranger: Person) -> None:
    """A stranger's answer about what is there is that about what is not, also its headers; and it is still there."""
    roles = set(OPERATIONS[name][2]["x-roles"])
    if stranger.tenant == EVA.tenant and (name in THE_TENANTS and name != "receipts.get"):
        pytest.skip("it is the tenant's, and this person is refused for the role, as tried above")
    if not roles.intersection(stranger.roles):
        pytest.skip("refused for the role, as tried above")
    there = await asked(w, name, EVA)
    absent = Asked(path=ABSENT, query=there.query, body=there.body, content=there.content)
    one = await send(w, name, there, stranger.token())
    other = await send(w, name, absent, stranger.token())
    assert told(one) == told(other)
    assert one.status_code == 404
    good = await send(w, name, there, EVA.token())
    assert good.status_code < 300, good.text
    if OPERATIONS[name][0] != "get":
        # Whoever reaches for it is on record, in their own log.
        for answered in (one, other):
            id_ = answered.headers["x-correlation-id"]
            left = [e async for e in w.box.audit.entries(stranger.tenant) if e.detail.get("correlation") == id_]
            found = [(e.kind, e.detail["operation"], e.detail["outcome"]) for e in left]
            assert found == [("request.ended", name, "policy.access")]


@pytest.mark.parametrize("name", sorted(LISTS))
@pytest.mark.parametrize("stranger", STRANGERS, ids=["another tenant", "another user"])
async def test_a_list_holds_nothing_of_anybody_else(w: World, name: str, stranger: Person) -> None:
    """What answers with several things answers with the caller's own: of Eva's there is no word."""
    request = await asked(w, name, EVA)
    hers = await send(w, name, request, EVA.token())
    known = MARKED[name](request, hers) if name in MARKED else SECRET
    assert known in hers.text
    answered = await send(w, name, request, stranger.token())
    assert known not in answered.text.replace(f'"query":"{SECRET}"', "")


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("stranger", DOERS, ids=["another tenant", "another user"])
async def test_what_is_done_without_an_id_is_done_to_ones_own(w: World, name: str, stranger: Person) -> None:
    """A change that names no thing is made for a stranger, with theirs; each of Eva's things is as it was."""
    if not set(OPERATIONS[name][2]["x-roles"]).intersection(stranger.roles):
        pytest.skip("refused for the role, as tried above")
    looks = {look: await asked(w, made, EVA) for made, look in THINGS.items()}
    looks["sandbox.read"].query = {"path": "bird.txt"}

    async def seen() -> dict[str, str]:
        found = {look: await send(w, look, request, EVA.token()) for look, request in looks.items()}
        assert {answered.status_code for answered in found.values()} == {200}
        return {look: answered.text for look, answered in found.items()}

    before = await seen()
    done = await send(w, name, await asked(w, name, stranger), stranger.token())
    assert done.status_code < 300, done.text
    assert await seen() == before


@pytest.mark.parametrize("name", [n for n in GUARDED if n.startswith(OF_A_TENANT)])
async def test_a_tenant_is_named_by_the_platforms_administrator_alone(w: World, name: str) -> None:
    """`?tenant=` of another is a 403 for a tenant's administrator, whether there is such a tenant or not."""
    if "tenant_admin" not in OPERATIONS[name][2]["x-roles"]:
        pytest.skip("a tenant's administrator is refused for the role, as tried above")
    there = await asked(w, name, EVA)
    admin = Person("rival", "boss", ("tenant_admin",))
    answers = []
    for tenant in ("acme", "never-heard-of"):
        there.query = {**there.query, "tenant": tenant}
        answers.append(await send(w, name, there, admin.token()))
    assert [one.status_code for one in answers] == [403, 403]
    assert answers[0].content == answers[1].content
    assert Role.PLATFORM_ADMIN in EVA.roles
