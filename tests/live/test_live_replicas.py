"""Two replicas behind nginx, over one PostgreSQL and one Redis: requests of one caller land on both, in turn."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from typing import Any

import httpx2
import openai
import pytest
from services import OF_TWO, Platform

from aibox.audit.chain import AuditChain

pytestmark = OF_TWO


@pytest.fixture(scope="module")
def key(both: Platform) -> str:
    return both.key("acme", "user", "tenant_admin")


def ask(url: str, key: str, method: str, path: str, **more: Any) -> httpx2.Response:
    headers = {"authorization": f"Bearer {key}", **more.pop("headers", {})}
    return httpx2.request(method, url + path, headers=headers, timeout=60, **more)


def at(both: Platform) -> Counter[str]:
    """How many requests nginx has sent to each replica."""
    lines = (both.folder / "nginx" / "at.log").read_text().splitlines()
    return Counter(f"http://{place.strip()}" for line in lines for place in line.split(","))


def test_the_official_client_is_served_by_both_in_turn(both: Platform, key: str) -> None:
    """Models, answers, and a stream whose first word is here while the model still waits to say the second."""
    before = at(both)
    client = openai.OpenAI(base_url=both.url + "/v1", api_key=key, max_retries=0)
    assert {model.id for model in client.models.list()} >= {"m", "agent:default"}
    asked: Any = [{"role": "user", "content": "Hello."}]
    for _ in range(4):
        answer = client.chat.completions.create(model="m", messages=asked)
        assert answer.choices[0].message.content == "I have read 1"
    for _ in range(2):
        both.model.goes_on.clear()
        chunks = client.chat.completions.create(model="m", messages=asked, stream=True)
        first = next(chunk.choices[0].delta.content for chunk in chunks if chunk.choices[0].delta.content)
        both.model.goes_on.set()
        rest = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert first + rest == "I have read 1"
    assert all(at(both)[url] > before[url] for url in both.replicas)


def test_a_key_made_at_one_works_at_the_other_until_it_is_ended_there(both: Platform, key: str) -> None:
    """No replica remembers a key on its own: what one makes, renews or ends holds for both with the next request."""
    one, other = both.replicas
    body = {"user": "tom", "roles": ["user"], "days": 1}
    made = ask(one, key, "POST", "/v1/admin/keys", json=body).json()
    toms = made["key"]
    assert ask(other, toms, "GET", "/v1/usage").status_code == 200
    (listed,) = [k for k in ask(other, key, "GET", "/v1/admin/keys").json()["data"] if k["user"] == "tom"]
    assert ask(other, key, "DELETE", f"/v1/admin/keys/{listed['id']}").status_code < 300
    assert ask(one, toms, "GET", "/v1/usage").status_code == 401


def test_a_conversation_goes_on_wherever_it_lands(both: Platform, key: str) -> None:
    """Each turn knows those before it, of whichever replica; it is listed, titled and let go of at both."""
    spread = cycle(both.replicas)
    for number in range(1, 5):
        said = ask(next(spread), key, "POST", "/v1/chat", json={"message": "Go on.", "session": "s1"}).json()
        assert said["text"] == f"I have read {number}"
    one, other = both.replicas
    assert "s1" in [s["id"] for s in ask(one, key, "GET", "/v1/sessions").json()["data"]]
    assert ask(other, key, "PATCH", "/v1/sessions/s1", json={"title": "Plans"}).status_code < 300
    assert ask(one, key, "GET", "/v1/sessions/s1").json()["title"] == "Plans"
    assert ask(one, key, "DELETE", "/v1/sessions/s1").status_code < 300
    assert ask(other, key, "GET", "/v1/sessions/s1").status_code == 404


def test_a_question_of_one_is_answered_at_the_other_and_done_once(both: Platform, key: str) -> None:
    """The yes comes to the other replica, both are told to go on at once, and what was asked for happens once."""
    one, other = both.replicas
    ask(one, key, "POST", "/v1/chat", json={"message": "pay Acme", "session": "s2"})
    (question,) = ask(other, key, "GET", "/v1/approvals").json()["data"]
    shown = ask(other, key, "GET", f"/v1/approvals/{question['id']}").json()
    said = ask(other, key, "POST", f"/v1/approvals/{question['id']}/approve", json={"digest": shown["digest"]})
    assert said.status_code == 200
    resume = f"/v1/runs/{shown['run']}/resume"
    with ThreadPoolExecutor(4) as pool:
        answers = [*pool.map(lambda url: ask(url, key, "POST", resume), [one, other, one, other])]
    assert [answer.status_code for answer in answers].count(200) == 1
    assert both.paid.read_text().split() == ["Acme"]


def test_a_request_with_a_key_is_done_once_whoever_gets_it(both: Platform, key: str) -> None:
    """Its repeats at either replica have the same answer to the byte; of eight at once one is done."""
    one, other = both.replicas
    body = {"model": "m", "messages": [{"role": "user", "content": "Once."}]}

    def once(url: str, name: str) -> httpx2.Response:
        return ask(url, key, "POST", "/v1/chat/completions", json=body, headers={"idempotency-key": name})

    before = both.model.asked
    first = once(one, "k1")
    for url in (other, one, both.url):
        again = once(url, "k1")
        assert (again.status_code, again.content) == (first.status_code, first.content)
        assert again.headers["idempotency-replayed"] == "true"
    assert both.model.asked == before + 1
    with ThreadPoolExecutor(8) as pool:
        answers = [*pool.map(lambda url: once(url, "k2"), [one, other] * 4)]
    assert {answer.status_code for answer in answers} <= {200, 409}
    assert both.model.asked == before + 2


def test_a_bound_holds_for_both_together(both: Platform) -> None:
    """Six a minute, asked for fourteen times in turn: six go through, and what comes back in the meantime."""
    few = both.key("few", "user")
    began = time.monotonic()
    told = [ask(url, few, "GET", "/v1/usage").status_code for url in both.replicas * 7]
    assert {*told} == {200, 429}
    assert 6 <= told.count(200) <= 6 + (time.monotonic() - began) / 10 + 1
    assert told[:6] == [200] * 6


def test_a_budget_that_was_spent_at_one_is_spent_at_the_other(both: Platform) -> None:
    """Twenty tokens a day, ten a call: a replica that was idle looks before it lets a call through."""
    poor = both.key("poor", "user")
    one, other = both.replicas
    body = {"model": "m", "messages": [{"role": "user", "content": "Hello."}]}
    assert ask(other, poor, "POST", "/v1/chat/completions", json=body).status_code == 200
    until = time.monotonic() + 30
    while ask(one, poor, "POST", "/v1/chat/completions", json=body).status_code == 200:
        assert time.monotonic() < until
    while ask(other, poor, "POST", "/v1/chat/completions", json=body).status_code != 429:
        assert time.monotonic() < until
    used = ask(other, poor, "GET", "/v1/usage").json()
    assert used["user"]["day"]["tokens"] >= 20


def test_a_sandbox_session_is_found_by_the_replica_in_its_id(both: Platform, key: str) -> None:
    """Through nginx every request reaches its own; the other replica says where it lives, of any id that names one."""
    opened = ask(both.url, key, "POST", "/v1/sandbox", json={"gpus": 0})
    if opened.status_code == 503:
        pytest.skip("no sandbox can be had here: " + opened.json()["detail"])
    id_ = opened.json()["id"]
    name, _, _ = id_.partition(".")
    for number in range(4):
        ran = ask(
            both.url, key, "POST", f"/v1/sandbox/{id_}/run", json={"code": f"x = {number}\nx", "language": "python"}
        )
        assert ran.json()["value"] == str(number)
    wrong = both.replicas[name == "a"]
    for absent in (id_, f"{name}.nothing-like-it"):
        answer = ask(wrong, key, "GET", f"/v1/sandbox/{absent}/files")
        assert (answer.status_code, answer.json()["title"]) == (409, "config.other_replica")
    assert ask(both.url, key, "GET", f"/v1/sandbox/{name}.nothing-like-it/files").status_code == 404
    assert ask(both.url, key, "DELETE", f"/v1/sandbox/{id_}").status_code < 300


class Streams:
    """Of one caller: a model's and a turn's at each replica, which the model holds after its first word."""

    def __init__(self, both: Platform, key: str, name: str) -> None:
        self.names = [f"{name}-{where}-{what}" for where in "ab" for what in ("model", "turn")]
        before = both.model.asked
        self._pool = ThreadPoolExecutor(len(self.names))
        self._told = [self._pool.submit(self._read, both, key, one) for one in self.names]
        until = time.monotonic() + 60
        while both.model.asked < before + len(self.names):
            assert time.monotonic() < until, "not all of them came to the model"
            time.sleep(0.02)

    def _read(self, both: Platform, key: str, name: str) -> str:
        url, headers = both.replicas["-b-" in name], {"x-correlation-id": name}
        if name.endswith("turn"):
            return ask(url, key, "POST", "/v1/chat/stream", json={"message": "Hello."}, headers=headers).text
        body = {"model": "m", "messages": [{"role": "user", "content": "Hello."}], "stream": True}
        return ask(url, key, "POST", "/v1/chat/completions", json=body, headers=headers).text

    def going_on(self) -> bool:
        return not any(told.done() for told in self._told)

    def last(self) -> set[str]:
        """The last event of each but OpenAI's mark of the end, when all have ended."""
        found = {told.result(60).replace("data: [DONE]", "").strip().rpartition("data: ")[2] for told in self._told}
        self._pool.shutdown()
        return found


async def ends(both: Platform, tenant: str, names: list[str]) -> list[tuple[str, str]]:
    """The terminal entries of these requests, in the order of their names: name, and code or outcome."""
    async with AuditChain(both.database, keys=both.keys) as chain:
        found = [entry.detail async for entry in chain.entries(tenant) if entry.kind in ("turn.sealed", "turn.failed")]
    ended = [(str(one.get("correlation")), str(one.get("code") or one["outcome"])) for one in found]
    return sorted(end for end in ended if end[0] in names)


@pytest.mark.parametrize("what", ["tenant", "user", "key"])
def test_who_is_shut_out_at_one_is_ended_at_both(both: Platform, what: str) -> None:
    """Streams of models and agents, and sandbox sessions, at the one that was told and at the other; nobody else's."""
    one = both.replicas[0]
    boss, root = both.key(what, "tenant_admin", user="boss"), both.key("ours", "platform_admin", user="root")
    key, bystander = both.key(what, "user"), both.key("bystanders" if what == "tenant" else what, "user", user="tom")
    both.model.goes_on.clear()
    opened = [ask(url, key, "POST", "/v1/sandbox", json={"gpus": 0}) for url in both.replicas]
    theirs, others = Streams(both, key, f"{what}-theirs"), Streams(both, bystander, f"{what}-others")
    if what == "tenant":
        done = ask(one, root, "POST", f"/v1/admin/tenants/{what}/suspend", json={"note": "unpaid"})
    elif what == "user":
        done = ask(one, boss, "POST", "/v1/admin/users/suspend", json={"user": "eva"})
    else:
        done = ask(one, boss, "DELETE", f"/v1/admin/keys/{key.split('-')[1]}")
    assert done.status_code < 300
    code = "policy.auth" if what == "key" else "policy.suspended"
    assert all(code in last for last in theirs.last())
    assert others.going_on()
    both.model.goes_on.set()
    assert not any("error" in last or "failed" in last for last in others.last())
    assert asyncio.run(ends(both, what, theirs.names)) == [(name, code) for name in sorted(theirs.names)]
    tenant = "bystanders" if what == "tenant" else what
    assert asyncio.run(ends(both, tenant, others.names)) == [(name, "answered") for name in sorted(others.names)]
    if any(answer.status_code == 503 for answer in opened):
        return
    # Let in again, they find their sessions gone, but for what another key of theirs still reaches.
    back: dict[str, tuple[str, Any]] = {
        "tenant": ("tenants/tenant/resume", None),
        "user": ("users/resume?tenant=user", {"user": "eva"}),
    }
    if what in back:
        assert ask(one, root, "POST", f"/v1/admin/{back[what][0]}", json=back[what][1]).status_code == 200
    again, left = both.key(what, "user"), 200 if what == "key" else 404
    for url, answer in zip(both.replicas, opened, strict=True):
        until, id_ = time.monotonic() + 60, answer.json()["id"]
        while (found := ask(url, again, "GET", f"/v1/sandbox/{id_}/files").status_code) != left:
            assert time.monotonic() < until, found
            time.sleep(0.1)


def test_nobody_is_believed_about_who_they_are(both: Platform, key: str) -> None:
    """Headers of identity change nothing, and the metrics, which name tenants, are not to be had through nginx."""
    forged = {"x-tenant": "poor", "x-user-id": "boss", "x-forwarded-user": "boss", "remote-user": "boss"}
    usage = ask(both.url, key, "GET", "/v1/usage", headers=forged).json()
    assert usage["tenant_budget"]["tokens_per_day"] is None
    assert ask(both.url, key, "GET", "/metrics").status_code == 404
