"""The typed client against a really served process: every route, errors as they were, streams that can be left."""

from __future__ import annotations

import ast
import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest
import uvicorn
from platform_world import ROLES, Person, World, world
from test_server_openai import Everything
from waiting import until

import aibox
from aibox import errors
from aibox.audit.receipt import Receipt
from aibox.chat import ChatRequest, Chunk
from aibox.errors import AIBoxError
from aibox.inference.capabilities import Api
from aibox.server import calls, client, inference_calls
from aibox.server.problem import STATUS, problem, status_of, told
from aibox.server.table import table
from aibox.server.told import error_of
from aibox.testing import call
from aibox.types import Scope

pytestmark = [pytest.mark.anyio, pytest.mark.loopback]

EVA = Person("acme", "eva", ROLES)


@asynccontextmanager
async def served(w: World) -> AsyncIterator[str]:
    """The URL under which a world is served over a real socket."""
    config = uvicorn.Config(w.app, port=0, log_level="warning", lifespan="off", timeout_graceful_shutdown=30)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    await until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        await serving


@asynccontextmanager
async def talking(home: Path, **options: Any) -> AsyncIterator[tuple[World, aibox.Client]]:
    async with world(home, **options) as w, served(w) as url, aibox.Client(url, EVA.token()) as made:
        yield w, made


def test_the_client_has_a_call_for_every_route() -> None:
    """Of each row of the table: a route without a call fails here."""
    asked = set()
    for module in (client, calls, inference_calls):
        for node in ast.walk(ast.parse(Path(module.__file__).read_text())):
            if isinstance(node, ast.Call):
                words = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
                asked.update(pairwise(words))
                asked.update(("POST", word) for word in words if word.startswith("/v1/chat/stream"))
    missing = {(r.method, r.path) for r in table()} - asked
    # It is written a line above its call.
    assert '"/v1/admin/keys/{id}/rotate"' in Path(calls.__file__).read_text()
    assert missing == {("POST", "/v1/admin/keys/{id}/rotate")}


def drawing(request: ChatRequest) -> Any:
    """The model: it writes a table and a picture, and says so."""
    code = r"open('a.csv', 'w').write('n\n1\n'); open('b.png', 'wb').write(b'\x89PNG\r\n\x1a\n\xff')"
    return call("python", {"code": code}) if request.messages[-1]["role"] == "user" else "Drawn."


async def test_artifacts_and_usage_come_over_the_wire(tmp_path: Path) -> None:
    """A turn's files come whole: each as an event of the stream, all with an answer that is not streamed."""
    async with talking(tmp_path, model=drawing, code=True) as (_, ask):
        events = [event async for event in ask.stream("draw", session="s1")]
        made = [event for event in events if event.type == "artifact"]
        begun = next(event for event in events if event.type == "tool_called")
        assert [(one.name, one.media_type, one.call_id) for one in made] == [
            ("a.csv", "text/csv", begun.call_id),
            ("b.png", "image/png", begun.call_id),
        ]
        contents = [base64.b64decode(one.data or "") for one in made]
        assert contents == [b"n\n1\n", b"\x89PNG\r\n\x1a\n\xff"]
        assert [one.sha256 for one in made] == [hashlib.sha256(content).hexdigest() for content in contents]
        used = [event for event in events if event.type == "usage"]
        reply = events[-1]
        assert reply.type == "reply"
        assert used[-1].total == reply.usage
        assert [one.data for one in reply.artifacts] == [None, None]

        whole = await ask.chat("draw", session="s2")
        assert [base64.b64decode(one.data or "") for one in whole.artifacts] == contents


async def test_a_day_with_the_client(tmp_path: Path) -> None:
    """Turns, conversations, memories, documents, code, evidence and keys: each call answers with its object."""
    async with talking(tmp_path) as (_, ask):
        assert [agent.name for agent in await ask.agents()] == ["default"]
        assert [(one.name, one.approve) for one in (await ask.agent("default")).tools] == [("pay", True)]
        told = await ask.chat("hello", session="s1", label="confidential/PHI")
        assert (told.text, told.label) == ("You said: hello", "confidential/PHI")
        Receipt.read((await ask.receipt(told.turn)).model_dump_json().encode()).verify()
        events = [event async for event in ask.stream("again", session="s1")]
        assert "".join(event.text for event in events if event.type == "text") == "You said: again"
        assert events[-1].type == "reply"
        await ask.sessions.title("s1", "Plans")
        assert [(s.id, s.title) for s in await ask.sessions.list()] == [("s1", "Plans")]
        assert (await ask.sessions.get("s1")).label == "confidential/PHI"
        assert len((await ask.sessions.export("s1")).messages) == 4
        await ask.sessions.delete("s1")

        paused = await ask.chat("pay Acme")
        (question,) = await ask.approvals.list()
        assert question == await ask.approvals.get(paused.pending[0].id)
        assert (await ask.approvals.approve(question.id, digest=question.digest)).status == "approved"
        assert (await ask.resume(paused.run)).choices[0].message.content == "You said: paid pay Acme"
        other = await ask.chat("pay Rival")
        assert (await ask.approvals.reject(other.pending[0].id, reason="no")).rejected_because == "no"

        tomorrow = datetime.now(UTC) + timedelta(days=1)
        kept = await ask.memory.remember("I like green tea.", type="user", valid_until=tomorrow)
        assert [hit.id for hit in await ask.memory.recall("what tea do I like?", types=["user"])] == [kept.id]
        newer = await ask.memory.update(kept.id, "I like black tea.")
        assert newer.supersedes == (await ask.memory.get(kept.id)).id
        assert [one.id for one in await ask.memory.list(types=["user", "project"])] == [newer.id]
        assert "black tea" in await ask.memory.export()
        await ask.memory.forget(newer.id)
        added = (await ask.knowledge.add(b"# Terms\n\nNine days.", name="terms.md", label="public")).document
        assert added is not None
        assert [one.id for one in await ask.knowledge.list()] == [added.id]
        assert "Nine days" in (await ask.knowledge.search("How many days?"))[0].text
        await ask.knowledge.remove(added.id)
        await ask.memory.forget_everything()

        box = await ask.sandbox.open()
        await ask.sandbox.write(box, "a/b.txt", b"hi")
        assert [one.path for one in await ask.sandbox.files(box, deep=True) if one.kind == "file"] == ["a/b.txt"]
        ran = await ask.sandbox.run(box, "cat a/b.txt", language="bash")
        assert (ran.stdout, ran.exit_code, await ask.sandbox.read(box, "a/b.txt")) == ("hi", 0, b"hi")
        assert await ask.sandbox.list() == [box]
        await ask.sandbox.end(box)

        assert (await ask.check("hello")).decision == "allow"
        assert (await ask.policy()).digest == (await ask.admin.policy()).digest
        assert (await ask.complete("hello", model="m")).choices[0].message.content == "You said: hello"
        assert len((await ask.inference.embeddings(["a"])).data[0]["embedding"]) == 384
        assert (await ask.models()).data[0].id == "agent:default"
        assert {route.model for route in (await ask.routes()).data} > {"m"}
        assert (await ask.usage()).user.day.calls > 3
        assert await ask.skills() == []
        assert (await ask.health()).ok
        assert (await ask.ready()).parts["audit"] == "ok"
        assert 'aibox_requests_total{tenant="' in await ask.metrics()
        assert b'"openapi":"3.1.0"' in await ask.openapi()

        seqs = [entry.seq async for entry in ask.audit.entries()]
        assert seqs == list(range(len(seqs)))
        assert (await ask.audit.show(3)).seq == 3
        assert (await ask.audit.log(limit=1)).data[0].seq == seqs[-1]
        assert (await ask.audit.checkpoint()).startswith("aibox")
        assert (await ask.audit.verify()).ok
        assert (await ask.admin.verify()).ok
        key = await ask.keys.create("nightly", note="reports", tenant="rival")
        fresh = await ask.keys.rotate(key.split("-")[1], overlap_days=0, tenant="rival")
        await ask.keys.revoke(fresh.split("-")[1], tenant="rival")
        assert sum(one.revoked for one in await ask.keys.list(tenant="rival")) == 1
        assert [(one.name, one.state) for one in await ask.admin.tenants()] == [("acme", "active")]
        made = await ask.admin.create_tenant("clinic", note="from May on")
        assert (made.state, made.note, made.seen) == ("active", "from May on", None)
        assert (await ask.admin.suspend_tenant("clinic", note="unpaid")).state == "suspended"
        assert (await ask.admin.tenant("clinic")).note == "unpaid"
        assert (await ask.admin.resume_tenant("clinic")).state == "active"
        assert (await ask.admin.suspend_tenant("clinic")).note == "unpaid"
        assert (await ask.admin.delete_tenant("clinic")).state == "deleted"
        assert (await ask.admin.suspend_user("tom")).state == "suspended"
        assert [one.user for one in await ask.admin.users()] == ["eva", "tom"]
        assert (await ask.admin.resume_user("tom")).state == "active"
        narrow = await ask.keys.create("ci", scopes=["inference"], models=["m"])
        (shown,) = [one for one in await ask.keys.list() if one.id == narrow.split("-")[1]]
        assert (shown.scopes, shown.models) == (["inference"], ["m"])
        assert (await ask.admin.reload()).restart == []
        assert (await ask.admin.models()).healthy
        assert (await ask.admin.budgets()).spent.day.calls > 3
        assert await ask.admin.egress() == []
        watched = await ask.admin.observability()
        assert (watched.tenant, watched.traces, watched.webhooks) == ("acme", None, [])
        (share,) = [one for one in (await ask.admin.usage(user="eva")).data if one.model == "m/m"]
        assert (share.calls, share.model) == (watched.spent.day.calls - 1, "m/m")  # and one of the embedder
        assert (await ask.admin.deliveries()).data == []


async def test_a_call_with_a_key_is_done_once(tmp_path: Path) -> None:
    """Made again with the same idempotency key a call has the same answer, a stream the same events."""
    async with talking(tmp_path) as (w, ask):
        for number, call_ in enumerate((ask.chat, ask.complete, ask.memory.remember)):
            first = await call_("hello", idempotency_key=f"k-{number}")
            assert await call_("hello", idempotency_key=f"k-{number}") == first
        told = [[event async for event in ask.stream("hello", idempotency_key="s")] for _ in range(2)]
        assert told[0] == told[1]
        assert len(w.model.requests) == 3
        with pytest.raises(errors.ConfigError, match="another request"):
            await ask.chat("goodbye", idempotency_key="k-0")


def pieces(chunks: list[Any]) -> list[Any]:
    """The fields of each first choice, of those chunks that have one."""
    return [chunk.choices[0] for chunk in chunks if chunk.choices]


async def test_openais_apis_are_typed_and_stream(tmp_path: Path) -> None:
    """Chat, completions, responses and embeddings: whole answers as objects, and streams that say the same."""
    async with talking(tmp_path) as (w, ask):
        w.box.__dict__["router"] = aibox.Router(Everything(), policy=w.box.policy, audit=w.box.audit)
        open_ = ask.inference
        chat = await open_.chat([{"role": "user", "content": "hi"}], model="m", temperature=0)
        told = [chunk async for chunk in open_.stream_chat([{"role": "user", "content": "hi"}], model="m")]
        said = chat.choices[0].message.content
        assert isinstance(said, str)
        assert said.startswith("You said: ")
        assert "".join(piece["delta"].get("content") or "" for piece in pieces(told)) == said

        whole = await open_.completions("hi", model="m")
        parts = [chunk async for chunk in open_.stream_completions("hi", model="m")]
        assert whole.choices[0]["text"] == "You said: hi"
        assert "".join(piece["text"] for piece in pieces(parts)) == "You said: hi"

        answer = await open_.responses("hi", model="m")
        assert answer.object == "response"
        assert answer.model_dump()["output"][0]["content"][0]["text"] == "You said: hi"
        events = [event async for event in open_.stream_responses("hi", model="m")]
        deltas = [event.model_dump()["delta"] for event in events if event.type == "response.output_text.delta"]
        assert ("".join(deltas), events[-1].type) == ("You said: hi", "response.completed")

        vectors = await open_.embeddings(["a", "b"], model="m")
        assert [one["embedding"] for one in vectors.data] == [[0.5, -0.25]] * 2


class Breaking(Everything):
    """A model server that goes away in the middle of a stream."""

    async def events(self, api: Api, request: ChatRequest, *, scope: Scope) -> AsyncIterator[Chunk]:
        said = [chunk async for chunk in super().events(api, request, scope=scope)]
        for chunk in said[: len(said) // 2]:
            yield chunk
        raise aibox.BackendError("the model server is gone")


async def test_a_stream_of_openais_that_fails_raises(tmp_path: Path) -> None:
    """Before the first chunk and after it: the library's own error, with its code, in each of the APIs."""
    async with talking(tmp_path) as (w, ask):
        with pytest.raises(aibox.ConfigError, match="no model"):
            [_ async for _ in ask.inference.stream_chat("hello", model="nothing")]
        w.box.__dict__["router"] = aibox.Router(Breaking(), policy=w.box.policy, audit=w.box.audit)
        long = "one two three four five six seven " * 200
        open_ = ask.inference
        for stream in (open_.stream_completions(long, model="m"), open_.stream_responses(long, model="m")):
            assert await anext(stream)
            with pytest.raises(aibox.BackendError, match="gone") as caught:
                [_ async for _ in stream]
            assert caught.value.code == "upstream.backend"


async def test_errors_come_out_as_they_were(tmp_path: Path) -> None:
    """Not proved, not there, wrongly asked, a model that is gone: the library's own classes, with code and hint."""
    async with talking(tmp_path, model=aibox.BackendError("the model server is gone")) as (_, ask):
        with pytest.raises(aibox.BackendError, match="the model server is gone"):
            await ask.chat("hello")
        with pytest.raises(aibox.AccessError) as absent:
            await ask.memory.get("none")
        assert absent.value.absent
        assert absent.value.hint
        with pytest.raises(aibox.ConfigError, match="label"):
            await ask.memory.remember("x", label="secretish")
        with pytest.raises(aibox.ConfigError, match="no model"):
            await ask.complete("hello", model="nothing")
        with pytest.raises(aibox.ConfigError, match="message"):
            [_ async for _ in ask.stream("")]
        url = ask._url
        async with aibox.Client(url, "wrong") as stranger:
            with pytest.raises(aibox.AuthError):
                await stranger.models()
    with pytest.raises(aibox.UpstreamError, match="cannot be asked") as unreachable:
        await ask.usage()
    assert unreachable.value.retryable
    assert url in str(unreachable.value)
    assert "running" in unreachable.value.hint
    await ask.close()


# It says of which model and policy, which a problem does not: it comes out as the class above it, with its own code.
NEEDS_MORE = {errors.ApprovalError: aibox.EgressError}


@pytest.mark.parametrize("kind", [k for k in STATUS if k is not AIBoxError], ids=lambda kind: kind.__name__)
def test_every_error_survives_the_way(kind: type[AIBoxError]) -> None:
    """From the server's problem to the client's exception: class, code, hint, and the message that callers are told."""
    error = NEEDS_MORE.get(kind, kind)("what happened", hint="what to do")
    error.code = kind.code
    found = error_of(status_of(error), msgspec.json.encode(problem(error)), {})
    assert type(found) is NEEDS_MORE.get(kind, kind)
    assert (found.code, found.message, found.hint) == (error.code, *told(error))
    assert type(error_of(500, b"<html>", {})) is errors.UpstreamError


async def test_leaving_a_stream_ends_the_turn(tmp_path: Path) -> None:
    """The connection is closed, the model's call is cancelled, and the log says that the turn failed."""
    asked, left = asyncio.Event(), asyncio.Event()

    async def never(_: ChatRequest) -> str:
        asked.set()
        try:
            await asyncio.Event().wait()
        finally:
            left.set()
        return ""

    async with talking(tmp_path, model=never) as (w, ask):
        async with aclosing(ask.stream("hello")) as events:
            assert (await anext(events)).type == "recalled"
            async with asyncio.timeout(120):
                await asked.wait()
        async with asyncio.timeout(120):
            await left.wait()
            while [e.kind async for e in w.box.audit.entries("acme")][-1] != "turn.failed":
                await asyncio.sleep(0.01)


async def test_connections_are_used_again(tmp_path: Path) -> None:
    """Twenty calls one after the other are one connection."""
    async with talking(tmp_path) as (_, ask):
        await ask.agents()
        pool = ask._to._open()._transport._pool
        first = [id(connection) for connection in pool.connections]
        for _ in range(20):
            await ask.agents()
        assert [id(connection) for connection in pool.connections] == first
        assert len(first) == 1


def test_a_key_goes_to_no_plain_http_and_into_no_repr() -> None:
    """A URL without TLS is refused beyond loopback, and who prints a client sees no secret."""
    with pytest.raises(aibox.ConfigError, match="https"):
        aibox.Client("http://aibox.example.org", "aibox-secret")
    made = aibox.Client("https://aibox.example.org", "aibox-secret")
    assert "secret" not in repr(made)
    assert httpx2.URL(made._url).scheme == "https"


async def test_a_policy_is_written_with_the_client(tmp_path: Path) -> None:
    """Tried, written, read, replaced under its digest, looked up by version and withdrawn; what is refused says why."""
    async with talking(tmp_path) as (_, ask):
        tried = await ask.policies.put('[tools]\napprove = ["*"]\n', dry_run=True)
        assert (tried.version, 'tools.approve: [] -> ["*"]' in tried.stricter) == (None, True)
        first = await ask.policies.put('[tools]\napprove = ["*"]\n')
        assert (await ask.policies.get()).digest == first.digest == tried.digest
        with pytest.raises(errors.ConfigError, match="not said which one"):
            await ask.policies.put({"tools": {"deny": ["x"]}})
        second = await ask.policies.put({"tools": {"deny": ["x"]}}, match=first.digest)
        assert (second.relaxed, (await ask.admin.policy()).digest) == (['tools.approve: ["*"] -> []'], second.effective)
        with pytest.raises(errors.ConfigError, match="changed meanwhile") as caught:
            await ask.policies.withdraw(match=first.digest)
        assert caught.value.code == "config.policy_changed"
        assert (await ask.policies.version(1)).policy == {"tools": {"approve": ["*"]}}
        await ask.policies.withdraw(match=second.digest)
        assert [one.version for one in await ask.policies.versions()] == [3, 2, 1]
        other = await ask.policies.put({}, level="operator", tenant="rival")
        assert (await ask.policies.get(level="operator", tenant="rival")).digest == other.digest
