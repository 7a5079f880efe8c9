"""`run_workflow` against a Dify server that holds both sides to its published API."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from dify import FILED, TALK, TASK, Dify, blocking, dify, flow, said
from hypothesis import given
from hypothesis import strategies as st

import aibox
from aibox.agents.http import Http
from aibox.agents.secret import Secret
from aibox.agents.workflows import DifyApp, RunWorkflow, failure, pseudonym
from aibox.errors import AccessError, ConfigError, LimitError, UpstreamError
from aibox.policy.egress import EgressRules
from aibox.policy.policy import Policy
from aibox.settings import Settings
from aibox.testing import ScriptedBackend, call
from aibox.types import Label, Scope

pytestmark = [pytest.mark.anyio, pytest.mark.loopback]

PATHS = {"workflow": "/v1/workflows/run", "chat": "/v1/chat-messages"}
DONE: dict[str, list[Any]] = {
    "workflow": [
        flow("workflow_started"),
        flow("node_started", node_id="1", node_type="llm", title="LLM"),
        flow("text_chunk", text="Bon"),
        flow("workflow_finished", status="succeeded", outputs={"text": "Bonjour"}),
    ],
    "chat": [said("message", answer="Bon"), said("message", answer="jour"), said("message_end", metadata={})],
}


@pytest.fixture
async def server() -> AsyncIterator[Dify]:
    async with dify() as fake:
        yield fake


def rules(*hosts: str, ceiling: str = "internal") -> Policy:
    return Policy(egress=EgressRules(hosts=frozenset(hosts), ceiling=Label.parse(ceiling)))


def tool(server: Dify, **options: Any) -> RunWorkflow:
    key = Secret("dify", read=lambda _: server.key)
    http, sandbox = options.pop("http", None), options.pop("sandbox", None)
    given = {"name": "french", "url": server.url, "key": key, "inputs": {"text": "what to translate"}, **options}
    return RunWorkflow([DifyApp(**given)], http=http, sandbox=sandbox)


def asked(kind: str = "workflow", **more: Any) -> Any:
    query = {"query": "Translate."} if kind == "chat" else {}
    return call("run_workflow", {"app": "french", "inputs": {"text": "Hello"}, **query, **more})


async def ran(server: Dify, made: RunWorkflow, *, scope: Scope, one: Any = None, **options: Any) -> Any:
    """What the model was told of the one call."""
    agent = aibox.Agent(
        "x",
        router=ScriptedBackend(one or asked(made._apps["french"].kind), "done"),
        tools=[made],
        **{"policy": rules("127.0.0.1"), **options},
    )
    return (await agent.run("go", scope=scope)).tool_calls[0]


@pytest.mark.parametrize("kind", ["workflow", "chat"])
@pytest.mark.parametrize("streaming", [True, False])
async def test_an_app_runs_through_the_door(
    kind: str, streaming: bool, server: Dify, scope: Scope, tmp_path: Path
) -> None:
    """Both kinds and modes answer; the passage is on record, the result a stranger's, the user a pseudonym."""
    server.answer = DONE[kind] if streaming else blocking(PATHS[kind], "Bonjour")
    async with aibox.AuditChain(tmp_path / "a.db") as chain:
        made = tool(server, kind=kind, streaming=streaming, label=Label.parse("confidential/PHI"))
        model = ScriptedBackend(asked(kind), "done")
        agent = aibox.Agent("x", router=model, tools=[made], policy=rules("127.0.0.1"), audit=chain)
        reply = await agent.run("go", scope=scope)
        entries = [(entry.kind, entry.detail) async for entry in chain.entries(scope.tenant)]
    returned = reply.tool_calls[0]
    assert returned.ok
    assert returned.text == ("Bonjour" if kind == "workflow" else f"Bonjour\n(conversation {TALK})")
    assert str(reply.label) == "confidential/PHI"
    assert reply.label.why == ("workflow french",)
    ((path, body),) = server.requests
    assert (path, body["inputs"]) == (PATHS[kind], {"text": "Hello"})
    assert body["user"].startswith("aibox-")
    assert scope.user not in body["user"]
    assert server.correlations == [d["passage"] for name, d in entries if name == "egress.allowed"]
    kinds = [name for name, _ in entries]
    assert kinds.index("egress.allowed") < kinds.index("tool.returned")
    assert "untrusted content" in next(d["exposure"] for name, d in entries if name == "tool.returned")
    assert server.key not in str(entries) + str(model.requests) + repr(made)


@pytest.mark.parametrize(
    ("events", "text"),
    [
        # A moderated answer, an agent that repeats itself whole at the end, a chatflow, and an agent with thoughts.
        (
            [said("message", answer="bad"), said("message_replace", answer="good"), said("message_end", metadata={})],
            "good",
        ),
        (
            [
                said("agent_message", answer="ha"),
                said("agent_message", answer="ha"),
                said("message", answer="haha"),
                said("message_end", metadata={}),
            ],
            "haha",
        ),
        (
            [
                flow("workflow_started"),
                said("message", answer="a"),
                said("message_end", metadata={}),
                flow("workflow_finished", status="succeeded", outputs={}),
            ],
            "a",
        ),
        (
            [
                said("agent_thought", position=1, thought="hm"),
                said("agent_message", answer="b"),
                said("message_end", metadata={}),
            ],
            "b",
        ),
    ],
)
async def test_every_chat_apps_stream_is_read(events: Any, text: str, server: Dify, scope: Scope) -> None:
    """Chatbots, agents of both kinds and chatflows; what is no part of the answer is not in it."""
    server.answer = events
    told = await ran(server, tool(server, kind="chat"), scope=scope)
    assert told.text == f"{text}\n(conversation {TALK})"


async def test_a_conversation_goes_on(server: Dify, scope: Scope) -> None:
    """The id that an answer named leads back to it, as the same user."""
    server.answer = DONE["chat"]
    made = tool(server, kind="chat")
    await ran(server, made, scope=scope)
    await ran(server, made, scope=scope, one=asked("chat", conversation=TALK))
    first, second = (body for _, body in server.requests)
    assert (first["conversation_id"], second["conversation_id"]) == ("", TALK)
    assert first["user"] == second["user"]


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "app_unavailable", ConfigError),
        (400, "not_workflow_app", ConfigError),
        (400, "provider_not_initialize", ConfigError),
        (400, "provider_quota_exceeded", ConfigError),
        (400, "model_currently_not_support", ConfigError),
        (400, "completion_request_error", ConfigError),
        (400, "invalid_param", UpstreamError),
        (401, "unauthorized", ConfigError),
        (403, "forbidden", AccessError),
        (404, "not_found", UpstreamError),
        (413, "file_too_large", LimitError),
        (429, "too_many_requests", UpstreamError),
        (429, "rate_limit_error", LimitError),
        (500, "internal_server_error", UpstreamError),
    ],
)
async def test_an_error_is_mapped_before_and_inside_a_stream(
    status: int, code: str, kind: type[Exception], server: Dify, scope: Scope
) -> None:
    """The model reads what happened, a program finds our own class, and only what may pass is worth another try."""
    words = {"status": status, "code": code, "message": f"no, {server.key}"}
    error = failure(status, words, app="french")
    assert type(error) is kind
    assert getattr(error, "retryable", False) is (code in ("too_many_requests", "internal_server_error"))
    for answer in (words, [flow("workflow_started"), {"event": "error", **words}]):
        server.answer = answer
        told = await ran(server, tool(server), scope=scope)
        assert not told.ok
        assert "french" in told.text
        assert server.key not in told.text


@pytest.mark.parametrize(
    ("events", "words"),
    [
        (
            [flow("workflow_started"), flow("workflow_finished", status="failed", outputs=None, error="node 3")],
            "node 3",
        ),
        ([flow("workflow_started"), flow("workflow_finished", status="stopped", outputs={})], "stopped"),
        ([flow("workflow_started"), flow("workflow_paused")], "waits for a person"),
        ([flow("workflow_started")], "broke off"),
    ],
)
async def test_a_run_that_does_not_end_well_is_a_result(events: Any, words: str, server: Dify, scope: Scope) -> None:
    """Failed, stopped, paused and broken off are told as such, never as an answer."""
    server.answer = events
    told = await ran(server, tool(server), scope=scope)
    assert (told.ok, words in told.text) == (False, True), told.text


async def test_a_partial_success_says_so(server: Dify, scope: Scope) -> None:
    """The outputs come with the fact that some steps failed."""
    server.answer = [flow("workflow_finished", status="partial-succeeded", outputs={"a": 1, "b": "x"})]
    told = await ran(server, tool(server), scope=scope)
    assert told.text == '{"a": 1, "b": "x"}\n(some of its steps failed)'


class Watched(Http):
    """Says when what the server calls the task has been read."""

    def __init__(self) -> None:
        super().__init__(private_hosts=["127.0.0.1"])
        self.named = asyncio.Event()

    @asynccontextmanager
    async def request(self, *arguments: Any, **options: Any) -> AsyncIterator[Any]:
        async with super().request(*arguments, **options) as answer:
            yield _Pieces(answer, self.named)


class _Pieces:
    def __init__(self, answer: Any, named: asyncio.Event) -> None:
        self._answer = answer
        self._named = named
        self.status_code = answer.status_code

    async def aiter_raw(self) -> AsyncIterator[bytes]:
        seen = b""
        async for piece in self._answer.aiter_raw():
            yield piece
            seen += piece
            if TASK.encode() in seen:
                self._named.set()


@pytest.mark.parametrize("kind", ["workflow", "chat"])
async def test_a_caller_who_leaves_stops_the_task(kind: str, server: Dify, scope: Scope, tmp_path: Path) -> None:
    """The server is told to stop that task, as the same user, before the turn counts as over; both are on record."""
    server.answer, server.hangs = DONE[kind][:1], True
    watched = Watched()
    made = tool(server, kind=kind, http=watched)
    async with aibox.AuditChain(tmp_path / "a.db") as chain:
        turn = asyncio.create_task(ran(server, made, scope=scope, audit=chain))
        await watched.named.wait()
        turn.cancel()
        with pytest.raises(asyncio.CancelledError):
            await turn
        assert server.stopped.is_set()
        kinds = [entry.kind async for entry in chain.entries(scope.tenant)]
    (_, first), (path, stop) = server.requests
    assert path == {"workflow": f"/v1/workflows/tasks/{TASK}/stop", "chat": f"/v1/chat-messages/{TASK}/stop"}[kind]
    assert stop == {"user": first["user"]}
    assert kinds.count("egress.allowed") == 2
    assert kinds.index("workflow.stopped") < kinds.index("turn.failed")


async def test_a_run_that_takes_too_long_is_stopped(server: Dify, scope: Scope) -> None:
    """The model is told, the turn goes on, and the server does not work for nobody."""
    server.answer, server.hangs = DONE["workflow"][:1], True
    for timeout_s in (0.25, 1.0, 4.0, 16.0, 64.0):
        watched = Watched()
        told = await ran(server, tool(server, timeout_s=timeout_s, http=watched), scope=scope)
        assert f"took longer than {timeout_s:g} s" in told.text
        if watched.named.is_set():  # else this machine was too slow for so short a time
            break
    assert server.stopped.is_set()


@pytest.mark.parametrize(
    ("policy", "label", "words"),
    [
        (rules("example.org"), None, "does not open the door"),
        (rules("127.0.0.1", ceiling="public"), None, "lets out"),
        (rules("127.0.0.1"), "confidential", "lets out"),
    ],
)
async def test_the_door_holds(policy: Policy, label: str | None, words: str, server: Dify, scope: Scope) -> None:
    """A host that is not named and a label above the ceiling: the server is not asked for anything."""
    agent = aibox.Agent("x", router=ScriptedBackend(asked(), "done"), tools=[tool(server)], policy=policy)
    reply = await agent.run("go", scope=scope, label=label)
    assert words in reply.tool_calls[0].text
    assert server.requests == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"app": "german"}, "there are: french"),
        ({"app": "french", "inputs": [1]}, "must be an object"),
        ({"app": "french", "inputs": {"texts": "x"}}, "has no input texts"),
    ],
)
async def test_a_model_can_repair_its_call(arguments: Any, words: str, server: Dify, scope: Scope) -> None:
    """What is wrong is said in words that a small model can act on, and nothing is sent."""
    told = await ran(server, tool(server), scope=scope, one=call("run_workflow", arguments))
    assert words in told.text
    assert server.requests == []


async def test_a_run_can_need_a_person(server: Dify, scope: Scope) -> None:
    """`approve` holds for the tool as for any other: without somebody to ask nothing is sent."""
    told = await ran(server, tool(server, approve=True), scope=scope)
    assert "approval" in told.text
    assert server.requests == []


async def test_a_box_has_the_tool_where_apps_are_configured(server: Dify, tmp_path: Path) -> None:
    """From aibox.toml to an answer; the key is read from its file; without apps there is none."""
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "dify").write_text(server.key + "\n")
    (tmp_path / "aibox.toml").write_text(
        f'[[workflows]]\nname = "french"\nurl = "{server.url}"\nkey_file = "keys/dify"\n'
        'description = "Translates."\nlabel = "internal"\n[workflows.inputs]\ntext = "what to translate"\n'
    )
    server.answer = DONE["workflow"]
    settings = Settings.load(config=tmp_path / "aibox.toml", home=tmp_path / "home")
    async with aibox.open(settings=settings, policy=rules("127.0.0.1")) as box:
        assert [t.name for t in box.agent().parts.tools] == ["run_workflow"]
        made = box.workflows
        assert made is not None
        assert "what to translate" in made.description
        agent = aibox.Agent(
            "x", router=ScriptedBackend(asked(), "done"), tools=[made], policy=rules("127.0.0.1"), audit=box.audit
        )
        assert (await agent.run("go", scope=Scope(tenant="acme", user="eva"))).tool_calls[0].text == "Bonjour"
    async with aibox.open(settings=Settings(home=tmp_path / "home")) as box:
        assert box.workflows is None
        assert box.agent().parts.tools == ()


NAMES = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=12)


@given(NAMES, NAMES, NAMES)
def test_a_pseudonym_is_stable_and_tells_nothing(user: str, other: str, key: str) -> None:
    """The same person, tenant and app have the same one; changing any of the three changes it."""
    one = pseudonym(Scope(tenant="acme", user=user), key=key)
    assert one == pseudonym(Scope(tenant="acme", user=user, session="s"), key=key)
    assert one != pseudonym(Scope(tenant="rival", user=user), key=key)
    assert one != pseudonym(Scope(tenant="acme", user=user), key=key + "x")
    assert (one == pseudonym(Scope(tenant="acme", user=other), key=key)) == (user == other)


def test_what_cannot_be_wired_is_refused() -> None:
    """No address, no app, two of one name."""
    key = Secret("k", read=lambda _: "k")
    with pytest.raises(ConfigError):
        DifyApp(name="a", url="dify", key=key)
    with pytest.raises(ConfigError):
        RunWorkflow([])
    app = DifyApp(name="a", url="https://dify.example.org/v1", key=key)
    with pytest.raises(ConfigError):
        RunWorkflow([app, app])


@pytest.fixture
async def sandbox() -> AsyncIterator[aibox.Sandbox]:
    sandbox = aibox.Sandbox("bubblewrap")
    yield sandbox
    await sandbox.close()


READS: dict[str, Any] = {"files": {"document": "what to read"}}
NAMED = {"transfer_method": "local_file", "upload_file_id": FILED}


def written(path: str, text: str) -> Any:
    return call("write_file", {"path": path, "text": text})


async def told(server: Dify, sandbox: aibox.Sandbox, *calls: Any, scope: Scope, **options: Any) -> list[Any]:
    """What the model was told of each call, by an agent with the sandbox's tools and the workflow."""
    app = {name: options.pop(name) for name in ("kind", "files", "attach") if name in options}
    parts = {"policy": rules("127.0.0.1"), "tools": [tool(server, sandbox=sandbox, **app)], **options}
    agent = aibox.Agent("x", router=ScriptedBackend(*calls, "done"), sandbox=sandbox, **parts)
    return list((await agent.run("go", scope=scope)).tool_calls)


async def test_a_file_of_the_sandbox_is_an_input_of_a_workflow(
    server: Dify, sandbox: aibox.Sandbox, scope: Scope, tmp_path: Path
) -> None:
    """It is uploaded as it is, then named in the run; upload and run are passages of their own."""
    server.answer = DONE["workflow"]
    text = "A report.\r\n--boundary-like\n\u00fc"
    calls = written("out/the report.md", text), asked(files={"document": "out/the report.md"})
    async with aibox.AuditChain(tmp_path / "a.db") as chain:
        _, done = await told(server, sandbox, *calls, scope=scope, audit=chain, **READS)
        passages = [e.detail async for e in chain.entries(scope.tenant) if e.kind == "egress.allowed"]
    assert (done.ok, done.text) == (True, "Bonjour")
    assert server.files == [("the_report.md", text.encode())]
    (_, upload), (_, body) = server.requests
    assert body["user"] == upload["user"]
    assert body["inputs"] == {"text": "Hello", "document": {"type": "document", **NAMED}}
    assert len(passages) == 2
    assert passages[0]["bytes"] > len(text.encode())


async def test_files_go_along_with_a_message_of_a_chat_app(server: Dify, sandbox: aibox.Sandbox, scope: Scope) -> None:
    """What is no text goes as it is, under its own kind, where no pseudonyms are asked for."""
    server.answer = DONE["chat"]
    made = call("python", {"code": "open('a.png', 'wb').write(bytes(range(256)))"})
    run = asked("chat", attach=["a.png"])
    _, done = await told(server, sandbox, made, run, scope=scope, kind="chat", attach=True)
    assert done.ok
    assert server.files == [("a.png", bytes(range(256)))]
    assert server.requests[-1][1]["files"] == [{"type": "image", **NAMED}]


async def test_a_file_that_may_not_leave_does_not(server: Dify, sandbox: aibox.Sandbox, scope: Scope) -> None:
    """Shut door, low ceiling, personal data, no text where pseudonyms are asked for, no such file: nothing is sent."""
    run = asked(files={"document": "a.bin"})
    binary = call("python", {"code": "open('a.bin', 'wb').write(bytes(range(256)))"})
    personal = call("bash", {"command": "printf 'Write to maria.keller\\100example.org' > a.bin"})
    door = rules("127.0.0.1").egress
    checks = Policy(egress=door) & Policy.read(
        {"checks": {"pii": {"tool_arguments": "block"}}, "egress": {"hosts": ["*"], "ceiling": "restricted"}}
    )
    cases: list[tuple[Any, Policy, str]] = [
        (written("a.bin", "x"), rules("elsewhere.example"), "does not open the door"),
        (written("a.bin", "x"), rules("127.0.0.1", ceiling="public"), "public at most"),
        (binary, Policy(egress=door.model_copy(update={"pseudonymise": True})), "it is no text"),
        (written("b.bin", "x"), rules("127.0.0.1"), "there is no file"),
        (personal, checks, "may not leave as it is"),
    ]
    for number, (first, policy, why) in enumerate(cases):
        own = scope.narrow(session=f"s{number}")
        guard = aibox.Guardrail(policy)
        *_, refused = await told(server, sandbox, first, run, scope=own, policy=policy, guardrail=guard, **READS)
        assert not refused.ok
        assert why in refused.text
    assert not server.files
    assert not server.requests


async def test_what_a_server_says_of_a_file_is_told(server: Dify, sandbox: aibox.Sandbox, scope: Scope) -> None:
    """Too large, or of a kind that it does not take: no run is begun with what is not there."""
    for refuses in ((413, "file_too_large"), (415, "unsupported_file_type")):
        server.refuses = refuses
        calls = written("a.md", "x"), asked(files={"document": "a.md"})
        _, done = await told(server, sandbox, *calls, scope=scope, **READS)
        assert not done.ok
        assert str(refuses[0]) in done.text
    assert [path for path, _ in server.requests] == ["/v1/files/upload"] * 2


async def test_files_that_cannot_be_meant_are_told_to_the_model(
    server: Dify, sandbox: aibox.Sandbox, scope: Scope
) -> None:
    """An unknown input, what is no path, an app that takes none, no conversation; and no app without a sandbox."""
    with pytest.raises(ConfigError, match="no sandbox"):
        tool(server, **READS)
    for one, options, words in (
        (asked(files={"other": "a"}), READS, "takes no file as other"),
        (asked(files={"document": 3}), READS, "must be an object"),
        (asked("chat", attach=["a"]), {"kind": "chat"}, "takes no attached files"),
        (asked(files={"document": "../etc/passwd"}), READS, "not a path inside"),
    ):
        (done,) = await told(server, sandbox, one, scope=scope, **options)
        assert words in done.text
    alone = scope.narrow(session="")
    (done,) = await told(server, sandbox, asked(files={"document": "a"}), scope=alone, **READS)
    assert "no conversation" in done.text
    assert not server.requests
