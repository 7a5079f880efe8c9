"""Questions to people over HTTP: who sees them, who may answer, and that nobody learns of another tenant's."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

import aibox
from aibox.agents.state import AgentState
from aibox.box import Box
from aibox.policy.limits import TurnLimits
from aibox.server.app import create_app
from aibox.server.auth import Callers
from aibox.server.principal import Principal, Role
from aibox.settings import Settings
from aibox.testing import ScriptedBackend, call
from aibox.types import Scope

pytestmark = pytest.mark.anyio

PAY = call("pay", {"to": "Acme"})
PEOPLE = {
    "eva": Principal(Scope(tenant="acme", user="eva"), frozenset({Role.USER})),
    "tom": Principal(Scope(tenant="acme", user="tom"), frozenset({Role.USER})),
    "boss": Principal(Scope(tenant="acme", user="boss"), frozenset({Role.TENANT_ADMIN})),
    "cfo": Principal(Scope(tenant="acme", user="cfo"), frozenset({Role.TENANT_ADMIN})),
    "nightly": Principal(Scope(tenant="acme", user="nightly"), frozenset({Role.SERVICE})),
    "auditor": Principal(Scope(tenant="acme", user="auditor"), frozenset({Role.AUDITOR})),
    "platform": Principal(Scope(tenant="acme", user="platform"), frozenset({Role.PLATFORM_ADMIN})),
    "rival": Principal(Scope(tenant="rival", user="eva"), frozenset({Role.USER, Role.TENANT_ADMIN})),
}


class ByName:
    """Takes a name for a proof, which other tests are about."""

    async def authenticate(self, token: str, *, correlation: str = "") -> Principal | None:
        return PEOPLE.get(token)

    async def close(self) -> None:
        """Nothing is held open."""


class Office:
    """A served agent that pays, and people who talk to the server."""

    def __init__(self, box: Box, *, two: bool = False, state: AgentState | None = None) -> None:
        self.box = box
        self.paid: list[str] = []
        self.model = ScriptedBackend()
        self.two = two
        self.state = state or box.state
        self.http = self.restart(PAY)

    def restart(self, *answers: Any) -> httpx2.AsyncClient:
        """The same box behind a new server, with an agent that is made anew; nothing else goes on living."""

        @aibox.tool(approve=True, side_effects=True)
        def pay(to: str) -> str:
            """Pay somebody."""
            self.paid.append(to)
            return f"paid {to}"

        self.model = ScriptedBackend(*answers)
        rules = {"two_people": ["pay"]} if self.two else {}
        agent = aibox.Agent(
            "Books.",
            name="books",
            router=self.model,
            tools=[pay],
            state=self.state,
            audit=self.box.audit,
            policy=aibox.Policy.read({"tools": rules}),
        )
        app = create_app(self.box, callers=Callers(ByName()), agents={"books": agent})
        self.http = httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://aibox")
        return self.http

    async def ask(self, who: str, path: str, body: Any = None) -> httpx2.Response:
        headers = {"authorization": f"Bearer {who}"}
        if body is None:
            return await self.http.get(path, headers=headers)
        return await self.http.post(path, json=body, headers=headers)

    async def paused(self, who: str = "eva") -> dict[str, Any]:
        body = {"model": "agent:books", "messages": [{"role": "user", "content": "pay Acme"}]}
        answer = await self.ask(who, "/v1/chat/completions", body)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()["aibox"]
        return found


@pytest.fixture
async def box(tmp_path: Path) -> AsyncIterator[Box]:
    async with Box(Settings(home=tmp_path / "home")) as box:
        yield box


@pytest.fixture
def office(box: Box) -> Office:
    return Office(box)


async def test_a_run_pauses_is_approved_and_goes_on_over_http(office: Office, box: Box) -> None:
    """The answer names the question; it is seen, approved by its digest, and another server goes on with the run."""
    about = await office.paused()
    (pending,) = about["pending"]
    assert (pending["tool"], about["stopped"], office.paid) == ("pay", "", [])
    assert "Acme" not in str(about)
    (listed,) = (await office.ask("boss", "/v1/approvals")).json()["data"]
    shown = (await office.ask("boss", f"/v1/approvals/{pending['id']}")).json()
    assert shown == listed
    assert (shown["arguments"], shown["asked_by"], shown["status"]) == ({"to": "Acme"}, "eva", "waiting")
    yes = await office.ask("boss", f"/v1/approvals/{pending['id']}/approve", {"digest": shown["digest"]})
    assert (yes.status_code, yes.json()["status"], yes.json()["approved_by"]) == (200, "approved", ["boss"])
    office.restart("Paid.")
    done = await office.ask("eva", f"/v1/runs/{about['run']}/resume", {})
    assert done.json()["choices"][0]["message"]["content"] == "Paid."
    assert (done.json()["model"], office.paid) == ("agent:books", ["Acme"])
    assert (await office.ask("eva", f"/v1/runs/{about['run']}/resume", {})).status_code == 403
    assert office.paid == ["Acme"]
    kinds = [entry.kind async for entry in box.audit.entries("acme")]
    assert [k for k in kinds if k.startswith("approval.")] == ["approval.asked", "approval.given"]


async def test_a_no_reaches_the_model_with_its_reason(office: Office) -> None:
    """Whoever asked may say no to their own call, and what they say is what the model reads."""
    about = await office.paused()
    no = await office.ask("eva", f"/v1/approvals/{about['pending'][0]['id']}/reject", {"reason": "wrong account"})
    assert no.json()["rejected_because"] == "wrong account"
    office.restart("I did not pay.")
    assert (await office.ask("eva", f"/v1/runs/{about['run']}/resume", {})).status_code == 200
    assert "wrong account" in str(office.model.requests[0].messages)
    assert not office.paid


async def test_another_tenants_question_and_none_answer_alike(office: Office) -> None:
    """Whatever is tried, a stranger's answer is that of something that is not there, to the byte."""
    about = await office.paused()
    there, absent = about["pending"][0]["id"], "0" * 32
    digest = (await office.ask("boss", f"/v1/approvals/{there}")).json()["digest"]
    assert (await office.ask("rival", "/v1/approvals")).json()["data"] == []
    assert (await office.ask("tom", "/v1/approvals")).json()["data"] == []
    for who in ("rival", "tom"):
        for path, body in (("", None), ("/approve", {"digest": digest}), ("/reject", {"reason": "x"})):
            one = await office.ask(who, f"/v1/approvals/{there}{path}", body)
            other = await office.ask(who, f"/v1/approvals/{absent}{path}", body)
            assert (one.status_code, one.content) == (404, other.content), (who, path)
    for who in ("rival", "tom", "boss"):
        one = await office.ask(who, f"/v1/runs/{about['run']}/resume", {})
        other = await office.ask(who, f"/v1/runs/{absent}/resume", {})
        assert (one.status_code, one.content) == (404, other.content), who
    assert (await office.ask("boss", f"/v1/approvals/{there}")).json()["status"] == "waiting"


@pytest.mark.parametrize(
    ("who", "look", "answer"),
    [("auditor", 403, 403), ("platform", 403, 403), ("nightly", 404, 403), ("nobody", 401, 401), ("cfo", 200, 200)],
)
async def test_roles_decide_who_may_answer(who: str, look: int, answer: int, office: Office) -> None:
    """A program never answers for a person, an auditor not at all, and no platform role reaches into a tenant."""
    about = await office.paused()
    path = f"/v1/approvals/{about['pending'][0]['id']}"
    assert (await office.ask(who, path)).status_code == look
    assert (await office.ask(who, f"{path}/reject", {})).status_code == answer


async def test_a_program_sees_its_own_question_and_cannot_answer_it(office: Office) -> None:
    """It may show it to somebody; the yes is that somebody's."""
    about = await office.paused("nightly")
    path = f"/v1/approvals/{about['pending'][0]['id']}"
    shown = await office.ask("nightly", path)
    assert shown.status_code == 200
    refused = await office.ask("nightly", f"{path}/approve", {"digest": shown.json()["digest"]})
    assert refused.status_code == 403
    assert not office.paid


async def test_two_people_are_two_administrators_and_not_who_asked(box: Box) -> None:
    """The asker is refused, one yes leaves it waiting, the same person's second is refused, another's counts."""
    office = Office(box, two=True)
    about = await office.paused()
    path = f"/v1/approvals/{about['pending'][0]['id']}"
    body = {"digest": (await office.ask("boss", path)).json()["digest"]}
    assert (await office.ask("eva", f"{path}/approve", body)).status_code == 403
    assert (await office.ask("boss", f"{path}/approve", body)).json()["status"] == "waiting"
    assert (await office.ask("boss", f"{path}/approve", body)).status_code == 403
    assert (await office.ask("cfo", f"{path}/approve", body)).json()["status"] == "approved"
    assert (await office.ask("cfo", f"{path}/approve", body)).status_code == 403


@pytest.mark.parametrize("body", [{}, {"digest": 1}, {"digest": "sha256:" + "0" * 64}])
async def test_a_yes_without_what_was_shown_is_none(body: Any, office: Office) -> None:
    """No digest, or another one, leaves the question as it was."""
    path = f"/v1/approvals/{(await office.paused())['pending'][0]['id']}"
    assert (await office.ask("boss", f"{path}/approve", body)).status_code in (400, 403)
    assert (await office.ask("boss", path)).json()["status"] == "waiting"


async def test_an_answer_is_small_and_json(office: Office) -> None:
    """What is no JSON object, or too long, is refused before anything is looked for."""
    path = f"/v1/approvals/{(await office.paused())['pending'][0]['id']}/reject"
    headers = {"authorization": "Bearer boss"}
    for content, status in ((b"{", 400), (b"[]", 400), (b'{"reason": 1}', 400), (b" " * 70_000, 413)):
        assert (await office.http.post(path, content=content, headers=headers)).status_code == status


async def test_an_agent_with_a_state_of_its_own_is_answered_too(box: Box, tmp_path: Path) -> None:
    """A hand-made agent's questions are found where they lie, and those of the box beside them."""
    own = AgentState(tmp_path / "own.db", key=bytes(32), audit=box.audit)
    office = Office(box, state=own)
    about = await office.paused()
    path = f"/v1/approvals/{about['pending'][0]['id']}"
    digest = (await office.ask("boss", path)).json()["digest"]
    assert (await office.ask("boss", f"{path}/approve", {"digest": digest})).status_code == 200
    office.restart("ok")
    assert (await office.ask("eva", f"/v1/runs/{about['run']}/resume", {})).status_code == 200
    assert office.paid == ["Acme"]
    await own.close()


async def test_the_official_client_reads_what_became_of_a_turn(office: Office) -> None:
    """An agent is a model for any OpenAI client: listed, whole and streamed, with what waits and what ended it."""
    office.restart("Hello.", "Hello again.", PAY)
    client = openai.AsyncOpenAI(base_url="http://aibox/v1", api_key="eva", http_client=office.http, max_retries=0)
    listed = [model.id async for model in await client.models.list()]
    assert "agent:books" in listed
    asked: Any = {"model": "agent:books", "messages": [{"role": "user", "content": "hi"}]}
    whole = await client.chat.completions.create(**asked)
    assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == ("Hello.", "stop")
    assert whole.usage is not None
    streamed = [c async for c in await client.chat.completions.create(**asked, stream=True)]
    assert "".join(c.choices[0].delta.content or "" for c in streamed if c.choices) == "Hello again."
    waits = [c async for c in await client.chat.completions.create(**asked, stream=True)]
    assert "waits for a person" in "".join(c.choices[0].delta.content or "" for c in waits if c.choices)
    assert waits[-1].model_extra is not None
    assert waits[-1].model_extra["aibox"]["pending"][0]["tool"] == "pay"
    with pytest.raises(openai.NotFoundError):
        await client.get("/approvals/none", cast_to=object)
    with pytest.raises(openai.AuthenticationError):
        await client.with_options(api_key="nobody").models.list()


async def test_a_limit_is_told_to_the_client(box: Box) -> None:
    """A turn that a limit ended has finish_reason `length` and says which, whole and streamed."""

    @aibox.tool
    def look() -> str:
        """Look."""
        return "seen"

    def app() -> Any:
        model = ScriptedBackend(call("look", {}), call("look", {}))
        agent = aibox.Agent("x", name="a", router=model, tools=[look], limits=TurnLimits(model_calls=1))
        return create_app(box, callers=Callers(ByName()), agents={"a": agent})

    asked: Any = {"model": "agent:a", "messages": [{"role": "user", "content": "hi"}]}
    for stream in (False, True):
        http = httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app()), base_url="http://aibox")
        client = openai.AsyncOpenAI(base_url="http://aibox/v1", api_key="eva", http_client=http, max_retries=0)
        if stream:
            last = [c async for c in await client.chat.completions.create(**asked, stream=True)]
            text = "".join(c.choices[0].delta.content or "" for c in last if c.choices)
            reason, more = last[-1].choices[0].finish_reason, last[-1].model_extra
        else:
            whole = await client.chat.completions.create(**asked)
            text, reason, more = (
                whole.choices[0].message.content or "",
                whole.choices[0].finish_reason,
                whole.model_extra,
            )
        assert (reason, bool(text)) == ("length", True)
        assert more is not None
        assert "model_calls" in more["aibox"]["stopped"]
