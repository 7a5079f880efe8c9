"""`aibox verify isolation`: it holds where nothing crosses, finds each way that is open, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn
from platform_world import Person, World, world
from rich.console import Console
from typer.testing import CliRunner
from waiting import until

import aibox
from aibox.agents.approvals import Approvals
from aibox.audit.chain import AuditChain
from aibox.chat import ChatRequest
from aibox.cli.app import app
from aibox.cli.isolation import isolation
from aibox.errors import AccessError, AuthError, BackendError, ConfigError, IntegrityError, StoreError
from aibox.protocols import Health
from aibox.server import admin_api, isolation_rows, observability_api, people_api, policies_api
from aibox.server.answers import Answers, Asking
from aibox.server.isolation import verify_isolation
from aibox.server.isolation_report import IsolationReport, Outcome, Row, is_report
from aibox.server.isolation_ways import ABSENT, THINGS, WRITTEN
from aibox.server.once import Once
from aibox.server.policies import Policies
from aibox.server.principal import Principal
from aibox.server.table import openapi
from aibox.settings import ServerSettings, Settings
from aibox.types import Scope

pytestmark = pytest.mark.anyio

A, B = (Person(name, "probe", ("user", "tenant_admin")) for name in ("one", "two"))


@pytest.fixture
async def w(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as made:
        yield made


UNNAMED = "tenant = coalesce(current_setting('aibox.tenant', true), tenant)"
"""A rule that forgets to ask whose the transaction is."""
EVIDENCE = {
    *(("audit", way) for way in ("log", "show")),
    ("checkpoint", "get"),
    ("receipts", "of a turn"),
    ("calls", "receipt of a call to a model"),
}
NAMED = {
    *((area, way) for area, way, _ in THINGS if area.endswith("tenant named")),
    *((area, way) for area, way, _ in WRITTEN),
    *((area, "still there") for area in ("keys", "policies")),
}
KEYED = {
    ("caches", f"{way}, {what} request under the same key")
    for way in ("memory remembered", "chat completion", "stream")
    for what in ("the same", "another")
}


NOT_TRIED = {
    "chat.agent": "an agent is the server's, and every tenant may ask it",
    "audit.show": "each log has an entry of that number: what it says is looked at, as in a list",
    **dict.fromkeys(
        ("tenants.show", "tenants.suspend", "tenants.resume", "tenants.delete"),
        "they are for a platform_admin alone, which neither of the two is",
    ),
}
"""Operations that have somebody's name in their path or query and are not asked with an absent one."""


class Noting(httpx2.ASGITransport):
    """Notes which requests are about what is absent: each way is asked so once, beside what is there."""

    def __init__(self, w: World, asked: set[tuple[str, str]]) -> None:
        super().__init__(app=w.app)
        self._asked = asked

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if ABSENT in str(request.url):
            self._asked.add((request.method.lower(), request.url.path))
        return await super().handle_async_request(request)


async def verified(w: World, transport: httpx2.AsyncBaseTransport | None = None) -> IsolationReport:
    transport = transport or httpx2.ASGITransport(app=w.app)
    url = "http://127.0.0.1"
    one, two = (aibox.Client(url, who.token(), transport=transport) for who in (A, B))
    return await verify_isolation(url, ("one", one), ("two", two), databases=w.box.settings.databases)


async def test_it_holds_and_leaves_nothing_behind(w: World) -> None:
    """Every way is tried in both directions; afterwards both tenants have nothing but their logs."""
    found = await verified(w)
    rows = [row for row in found.rows if row.area != "database"]
    assert {row.outcome for row in rows} == {"held"}, [row for row in rows if row.outcome != "held"]
    assert all("no PostgreSQL database" in row.why for row in found.rows if row not in rows)
    assert found.ok
    assert len(found.rows) > 60
    assert found.left == ()
    for who in (A, B):
        assert await w.box.memory.list(scope=who.scope) == []
        assert await w.box.memory.documents(scope=who.scope) == []
        assert await w.box.state.sessions.list(scope=who.scope) == []
        assert w.box.sandbox.ids(scope=who.scope) == []
        assert await w.box.state.approvals.pending(scope=who.scope) == []
        assert all(key.revoked for key in await w.keys.list(who.tenant))


async def test_what_its_owner_never_finds_is_not_said_to_be_taken(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The messages of an agent without state are nowhere: nothing has crossed, and it is said that it was not tried."""

    async def of_none(*, scope: Scope) -> Any:
        raise AccessError("there is no such session", absent=True)

    monkeypatch.setattr(w.box.state.sessions, "export", of_none)
    found = await verified(w)
    assert [row for row in found.rows if row.outcome == "crossed"] == []
    assert {row.outcome for row in found.rows if (row.area, row.way) == ("sessions", "still there")} == {"not tried"}


async def test_every_route_that_names_a_thing_or_a_tenant_is_tried(w: World) -> None:
    """Held against the OpenAPI document: an id in the path and `?tenant=`, but for what says why it is not."""
    asked: set[tuple[str, str]] = set()
    await verified(w, Noting(w, asked))
    named, tried = set(), set()
    for path, methods in openapi()["paths"].items():
        pattern = re.compile(re.sub(r"\{[^}]*\}", "[^/]+", path))
        for method, operation in methods.items():
            if "{" in path or "tenant" in {one.get("name") for one in operation.get("parameters", ())}:
                named.add(operation["operationId"])
            if any(method == how and pattern.fullmatch(where) for how, where in asked):
                tried.add(operation["operationId"])
    assert tried == named - {*NOT_TRIED}
    assert {*NOT_TRIED} <= named


async def test_the_report_is_held_by_its_receipt(w: World) -> None:
    """A report that somebody has changed is not the one that was sealed."""
    sealed = await (await verified(w)).seal(w.box.audit, scope=A.scope)
    sealed.verify()
    better = IsolationReport(sealed.url, sealed.tenants, sealed.rows[1:], (), sealed.receipt)
    with pytest.raises(IntegrityError, match="not the one"):
        better.verify()


async def test_a_saved_report_is_read_back(w: World, tmp_path: Path) -> None:
    """It is the report that was saved; changed anywhere, under another key or never sealed it does not hold."""
    found, file = await verified(w), tmp_path / "report.json"
    found.save(file)
    with pytest.raises(IntegrityError, match="not sealed"):
        IsolationReport.read(file)
    sealed = await found.seal(w.box.audit, scope=A.scope)
    sealed.save(file)
    assert sealed.receipt is not None
    assert is_report(file)
    assert IsolationReport.read(file, sealed.receipt.public_key) == sealed
    value = json.loads(file.read_text())
    told = value["report"]
    for change in (
        {"ok": not told["ok"]},
        {"rows": told["rows"][1:]},
        {"rows": [[*told["rows"][0][:3], "not tried", ""], *told["rows"][1:]]},
        {"url": "http://elsewhere"},
        {"tenants": ["one", "three"]},
        {"left": ["a memory"]},
        {"more": 1},
    ):
        file.write_text(json.dumps({**value, "report": {**told, **change}}))
        with pytest.raises(IntegrityError):
            IsolationReport.read(file)
    sealed.save(file)
    elsewhere = AuditChain(tmp_path / "elsewhere.db", keys=tmp_path / "elsewhere")
    other = await sealed.seal(elsewhere, scope=A.scope)
    await elsewhere.close()
    assert other.receipt is not None
    with pytest.raises(IntegrityError, match="not signed by this key"):
        IsolationReport.read(file, other.receipt.public_key)


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{", "[" * 100_000, '{"report": {}, "receipt": null}', '{"report": null, "receipt": null}'),
        json.dumps({"report": {"format": "aibox/isolation/v1"}, "receipt": None}),
        json.dumps({"report": {"format": "aibox/isolation/v1", "rows": [[]]}, "receipt": None}),
        json.dumps({"report": {"format": "aibox/isolation/v1"}, "receipt": {"format": "aibox/receipt/v1"}}),
    ],
)
def test_what_is_no_report_is_refused(tmp_path: Path, text: str) -> None:
    """Whatever else is in the file, and no file at all, is a StoreError that names it."""
    file = tmp_path / "report.json"
    with pytest.raises(StoreError, match=r"report\.json"):
        IsolationReport.read(file)
    file.write_text(text)
    with pytest.raises(StoreError, match=r"report\.json"):
        IsolationReport.read(file)


def _everybodys_keys(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def named(self: Answers, asking: Asking) -> bytes:
        return self._hidden(asking.scope.user, asking.route, asking.key)

    monkeypatch.setattr(Answers, "_name", named)


def _telling_keys(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    begin, used = Answers.begin, dict[str, str]()

    async def telling(self: Answers, asking: Asking) -> Any:
        if used.setdefault(asking.key, asking.scope.tenant) != asking.scope.tenant:
            raise ConfigError("that key is not yours")
        return await begin(self, asking)

    monkeypatch.setattr(Answers, "begin", telling)


def _everybodys_questions(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    select = Approvals._select

    async def anywhere(self: Approvals, scope: Scope, *more: Any) -> Any:
        return [found for who in (A, B) for found in await select(self, who.scope, *more)]

    monkeypatch.setattr(Approvals, "_select", anywhere)


def _one_log(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks for the log reads that of the first tenant, and every receipt is anybody's."""
    chain, entries, checkpoint, receipt = w.box.audit, w.box.audit.entries, w.box.audit.checkpoint, w.box.audit.receipt

    async def anybodys(turn: str, *, scope: Scope) -> Any:
        for who in (A, B):
            with contextlib.suppress(ConfigError):
                return await receipt(turn, scope=who.scope)
        raise ConfigError("there is no such turn")

    monkeypatch.setattr(chain, "entries", lambda tenant, start=0: entries("one", start=start))
    monkeypatch.setattr(chain, "checkpoint", lambda tenant: checkpoint("one"))
    monkeypatch.setattr(chain, "receipt", anybodys)


def _everybodys_sandbox(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def attach(id_: str, *, scope: Scope) -> Any:
        if id_ not in w.box.sandbox._held:
            raise AccessError("there is no such sandbox session", absent=True)
        return w.box.sandbox._held[id_].session

    monkeypatch.setattr(w.box.sandbox, "attach", attach)


def _telling_sandbox(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    attach = w.box.sandbox.attach

    async def telling(id_: str, *, scope: Scope) -> Any:
        if id_ in w.box.sandbox._held and w.box.sandbox._held[id_].scope.tenant != scope.tenant:
            raise AccessError("that session is not yours")
        return await attach(id_, scope=scope)

    monkeypatch.setattr(w.box.sandbox, "attach", telling)


def _everybodys_memory(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    recall = w.box.memory.recall

    async def everywhere(query: str, *, scope: Scope, **more: Any) -> Any:
        return [hit for who in (A, B) for hit in await recall(query, scope=who.scope, **more)]

    monkeypatch.setattr(w.box.memory, "recall", everywhere)


def _any_tenant_named(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever names a tenant is believed."""

    def named(who: Principal, query: Any) -> str:
        return query.tenant or who.scope.tenant

    for part in (admin_api, people_api, policies_api, observability_api):
        monkeypatch.setattr(part, "tenant_of", named)


def _everybody_forgets(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    forget = w.box.memory.forget

    async def everywhere(*, scope: Scope, **more: Any) -> int:
        return sum([await forget(scope=who.scope, **more) for who in (A, B)])

    monkeypatch.setattr(w.box.memory, "forget", everywhere)


def _everybodys_sessions(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    past = w.box.state.sessions.past

    async def any_past(*, scope: Scope) -> Any:
        found = await past(scope=scope)
        other = A if scope.tenant == B.tenant else B
        more = await past(scope=other.scope.narrow(agent=scope.agent, session=scope.session))
        return found if found.messages else more

    monkeypatch.setattr(w.box.state.sessions, "past", any_past)


@pytest.mark.parametrize(
    ("opened", "ways"),
    [
        (_everybodys_sandbox, {("sandbox", "read"), ("sandbox", "run"), ("sandbox", "still there")}),
        (_telling_sandbox, {("sandbox", "read"), ("sandbox", "end")}),
        (_everybodys_memory, {("memory", "recall"), ("knowledge", "search")}),
        (_everybodys_questions, {("approvals", way) for way in ("get", "list", "approve", "reject")}),
        (_one_log, EVIDENCE),
        (_everybodys_keys, KEYED),
        (_telling_keys, KEYED),
        (_any_tenant_named, NAMED),
        (_everybody_forgets, {("memory", "forget everything")}),
    ],
)
async def test_a_way_that_is_open_is_found(
    w: World, opened: Any, ways: set[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one part that forgets to look whose something is, or only tells that it is there: that way is named."""
    opened(w, monkeypatch)
    found = await verified(w)
    crossed = {(row.area, row.way) for row in found.rows if row.outcome == "crossed"}
    assert not found.ok
    assert ways <= crossed
    assert {area for area, _ in crossed} == {area for area, _ in ways}


async def test_a_conversation_that_another_tenant_continues_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that repeats all that it was told gives away whose past it was given."""

    def repeats(request: Any) -> str:
        return str([message.get("content") for message in request.messages])

    async with world(tmp_path, model=repeats) as w:
        _everybodys_sessions(w, monkeypatch)
        crossed = {(row.area, row.way) for row in (await verified(w)).rows if row.outcome == "crossed"}
        assert crossed == {("sessions", "chat under the same name"), ("streams", "stream under the same name")}


async def test_what_cannot_be_had_here_is_not_tried_and_said(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without isolation for code there is no sandbox to try: the report says so, and why, and holds for the rest."""

    async def nothing(**_: Any) -> Any:
        raise aibox.SandboxError("code cannot be isolated here")

    monkeypatch.setattr(w.box.sandbox, "open", nothing)
    found = await verified(w)
    skipped = [row for row in found.rows if row.outcome == "not tried" and row.area != "database"]
    assert {row.area for row in skipped} == {"sandbox"}
    assert all("cannot be isolated" in row.why for row in skipped)
    assert found.ok


async def test_without_a_question_none_is_tried(tmp_path: Path) -> None:
    """Where no call waits for a person, be it for want of such a tool or of the call, no way to questions has held."""
    async with world(tmp_path, model="I would rather not.") as w:
        pay = w.agents["default"].parts.tools[0]
        for asks, why in ((True, "was told to call pay"), (False, "has a tool whose calls wait")):
            pay.approve = asks  # type: ignore[attr-defined]  # a FunctionTool
            rows = [row for row in (await verified(w)).rows if row.area in {"approvals", "runs"}]
            assert {row.way for row in rows} == {"get", "approve", "reject", "resume", "list"}
            assert {row.outcome for row in rows} == {"not tried"}
            assert all(why in row.why for row in rows)


async def test_where_no_answer_is_kept_no_key_is_tried(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is proved by a key that is not held for its owner either, and the report says so."""

    async def passed_over(self: Once, inner: Any, request: Any, scope: Any, receive: Any, send: Any) -> None:
        await inner(scope, receive, send)

    monkeypatch.setattr(Once, "__call__", passed_over)
    rows = [row for row in (await verified(w)).rows if row.area == "caches"]
    assert {(row.outcome, row.why) for row in rows} == {("not tried", "the owner's key is not held either")}


async def test_rows_of_a_shared_database_are_tried(tmp_path: Path, postgres_url: str) -> None:
    """With a shared database every table with something of the owner's is read as the server's role, and holds."""
    async with world(tmp_path, database=postgres_url) as w:
        found = await verified(w)
    assert found.ok, [row for row in found.rows if row.outcome == "crossed"]
    assert found.left == ()
    assert "owner@" not in json.dumps(found.as_dict())
    rows = [row for row in found.rows if row.area == "database"]
    held = {row.way for row in rows if row.outcome == "held"}
    assert held >= {
        *(f"aibox_audit.{name}" for name in ("entries", "checkpoints", "turns")),
        *(f"aibox_agents.{name}" for name in ("sessions", "messages", "runs", "approvals")),
        *("aibox_memory.records", "aibox_documents.documents", "aibox_documents.passages", "aibox_server.people"),
    }
    assert {row.way for row in rows if row.outcome == "not tried"} == {*isolation_rows.OPEN, "rows elsewhere"}


@pytest.mark.parametrize(
    ("opened", "why"),
    [
        ("ALTER TABLE aibox_memory.records DISABLE ROW LEVEL SECURITY", "in the other tenant's name"),
        ("CREATE POLICY lost ON aibox_memory.records USING (current_setting('aibox.tenant') = '')", "in nobody's name"),
        (f"ALTER POLICY one_tenant ON aibox_memory.records USING ({UNNAMED})", "in nobody's name"),
    ],
)
async def test_a_table_that_is_open_is_found(
    tmp_path: Path, postgres_full: str, postgres_url: str, opened: str, why: str
) -> None:
    """Where a table's security is off, or a rule lets in whoever names no tenant, that table is named, and no other."""
    import psycopg

    with psycopg.connect(postgres_full, autocommit=True) as db:
        db.execute(opened.encode())
    async with world(tmp_path, database=postgres_url) as w:
        found = await verified(w)
    crossed = {(row.way, row.why) for row in found.rows if row.outcome == "crossed" and row.area == "database"}
    assert {way for way, _ in crossed} == {"aibox_memory.records"}
    assert all(why in said for _, said in crossed)


async def test_a_database_that_cannot_be_asked_is_not_tried(tmp_path: Path) -> None:
    """It is told, without the password that its URL holds, and nothing of it counts as held."""
    url = f"postgresql://writer:secret@/nowhere?host={tmp_path}"
    (row,) = await asyncio.to_thread(isolation_rows.tried, [url], "one", "two")
    assert (row.outcome, "secret" in row.why) == ("not tried", False)


async def test_without_a_model_the_rest_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model server that is away keeps nobody from looking at what asks none; with a wrong key nothing is tried."""

    def away(_: ChatRequest) -> str:
        raise BackendError("the model server is away")

    async def unwell() -> Health:
        return Health(ok=False, detail="away")

    async with world(tmp_path, model=away) as w:
        monkeypatch.setattr(w.box.router, "health", unwell)
        found = await verified(w)
        assert (await w.http.get("/healthz")).status_code == 200  # it is not this process that is away
        assert found.ok
        assert {row.area for row in found.rows if row.outcome == "held"} >= {"memory", "knowledge", "keys", "sandbox"}
        assert {row.area for row in found.rows if row.outcome == "not tried"} >= {"sessions", "receipts"}
        url = "http://127.0.0.1"
        wrong = aibox.Client(url, "wrong", transport=httpx2.ASGITransport(app=w.app))
        with pytest.raises(AuthError):
            await verify_isolation(url, ("one", wrong), ("two", wrong))


@pytest.mark.loopback
async def test_the_command_tries_a_running_server(w: World, tmp_path: Path) -> None:
    """Its keys are made for it and end with it; the report that it writes is sealed in the box's own chain."""
    config = uvicorn.Config(w.app, port=0, log_level="warning", lifespan="off", timeout_graceful_shutdown=30)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    await until(lambda: server.started)
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    settings = Settings(home=tmp_path / "home", server=ServerSettings(api_keys=str(tmp_path / "api-keys.db")))
    console = Console(file=io.StringIO(), width=200)
    try:
        assert await isolation(settings, url=url, report=tmp_path / "report.json", console=console)
    finally:
        server.should_exit = True
        await serving
    value = json.loads((tmp_path / "report.json").read_text())
    assert value["report"]["ok"] is True
    assert IsolationReport.read(tmp_path / "report.json").ok
    told = CliRunner().invoke(app, ["verify", str(tmp_path / "report.json")])
    assert (told.exit_code, "holds: isolated at" in told.output) == (0, True)
    pin = tmp_path / "log.pub"
    pin.write_text(value["receipt"]["public_key"])
    pinned = CliRunner().invoke(app, ["verify", str(tmp_path / "report.json"), "--key", str(pin), "--json"])
    assert json.loads(pinned.output) == {"ok": True, "holds": True, "key_pinned": True, "report": value["report"]}
    receipt = IsolationReport.read(tmp_path / "report.json").receipt
    assert receipt is not None
    # What was begun on record has its end there.
    assert [entry.kind for entry in receipt.entries] == ["request.begun", "isolation.verified", "turn.sealed"]
    value["report"]["rows"].pop()
    (tmp_path / "changed.json").write_text(json.dumps(value))
    for more in ((), ("--json",)):
        changed = CliRunner().invoke(app, ["verify", str(tmp_path / "changed.json"), *more])
        assert (changed.exit_code, "not the one" in changed.output) == (1, True)
    for tenant in value["report"]["tenants"]:
        assert all(key.revoked for key in await w.keys.list(tenant))
        assert await w.people.users(tenant) == []
    assert await w.people.tenants() == []
    policies = Policies(tmp_path / "home" / "policies.db")
    assert await policies.heads() == {}
    await policies.close()
    assert "isolated" in console.file.getvalue()  # type: ignore[attr-defined]  # a StringIO


@pytest.mark.parametrize(
    ("outcomes", "says"),
    [(("held", "crossed"), "one tenant reached the other"), (("not tried",), "no way was tried, which proves nothing")],
)
async def test_a_report_that_holds_and_says_no_is_a_no(
    tmp_path: Path, outcomes: tuple[Outcome, ...], says: str
) -> None:
    """The evidence is good and what it is about is not: exit code 1, also as JSON, and what crossed is named."""
    rows = tuple(Row("memory", f"way {n}", "two", outcome, "it was seen") for n, outcome in enumerate(outcomes))
    async with AuditChain(tmp_path / "audit.db") as chain:
        sealed = await IsolationReport("http://here", ("one", "two"), rows).seal(chain, scope=A.scope)
    file = tmp_path / "report.json"
    sealed.save(file)
    told = CliRunner().invoke(app, ["verify", str(file)])
    assert told.exit_code == 1
    assert "holds: not isolated at http://here" in told.output
    assert f"not isolated: the evidence holds, and the report says that {says}" in told.output
    assert ("crossed: memory, way 1: it was seen" in told.output) is ("crossed" in outcomes)
    assert "way 0" not in told.output
    as_json = CliRunner().invoke(app, ["verify", str(file), "--json"])
    assert as_json.exit_code == 1
    assert json.loads(as_json.output) == {"ok": False, "holds": True, "key_pinned": False, "report": sealed.as_dict()}
    file.write_text(file.read_text().replace("it was seen", "it was not"))
    changed = CliRunner().invoke(app, ["verify", str(file), "--json"])
    assert (changed.exit_code, json.loads(changed.output)["holds"]) == (1, False)
