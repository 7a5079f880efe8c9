"""Webhooks: what is told, to whom, how it is signed, and that none is lost; never a text of anybody's."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from receiver import Answer, Got, Receiver
from waiting import until

import aibox
from aibox.agents.bare import BareCall
from aibox.agents.postgres import PostgresStore
from aibox.agents.store import SqliteStore
from aibox.box import Box
from aibox.chat import ChatRequest
from aibox.errors import ConfigError, GuardrailError, LimitError, StoreError
from aibox.outbound import outbox as outbox_module
from aibox.outbound import signature
from aibox.outbound import webhooks as webhooks_module
from aibox.outbound.events import Event
from aibox.outbound.outbox import Outbox
from aibox.settings import Settings
from aibox.settings_outbound import EVENTS, WebhookSettings
from aibox.testing import ScriptedBackend, call
from aibox.types import Scope

pytestmark = [pytest.mark.anyio, pytest.mark.loopback]
WHO = Scope(tenant="acme", user="eva", session="s")
KEY, OLD = b"k" * 32, b"o" * 24
SECRET = "whsec_" + base64.b64encode(KEY).decode()
CANARY = "the merger with Initech"
OPEN = 'version = 1\n[egress]\nhosts = ["127.0.0.1"]\n'


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks_module, "POLL_S", 0.01)
    monkeypatch.setattr(webhooks_module, "DELAYS_S", (0.01,) * 9)


def verified(got: Got, key: bytes = KEY) -> dict[str, Any]:
    """As a receiver does it who has only the standard before them."""
    signed = f"{got.headers['webhook-id']}.{got.headers['webhook-timestamp']}.".encode() + got.body
    wanted = "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    assert wanted in got.headers["webhook-signature"].split()
    assert abs(time.time() - int(got.headers["webhook-timestamp"])) < 300
    found: dict[str, Any] = json.loads(got.body)
    return found


@asynccontextmanager
async def box(home: Path, receiver: Receiver, *, policy: str = OPEN, **more: Any) -> AsyncIterator[Box]:
    home.mkdir(exist_ok=True)
    (home / "box.toml").write_text(policy)
    webhook = {"name": "ops", "url": f"{receiver.url}/hook", "key": SECRET, "private": True, **more}
    settings = Settings(
        home=home / "home",
        policy=str(home / "box.toml"),
        tenants={"acme": {"webhooks": [webhook]}},  # type: ignore[dict-item]  # pydantic reads it
        memory={"enabled": False},  # type: ignore[arg-type]  # likewise
    )
    async with Box(settings) as made:
        yield made


def modelled(box: Box, *answers: Any, **more: Any) -> None:
    model = ScriptedBackend(*answers, name="m", **more)
    box.__dict__["router"] = aibox.Router(model, policy=box.policy, audit=box.audit)


async def test_a_box_that_cannot_begin_to_deliver_is_not_left_half_open(tmp_path: Path) -> None:
    """What it had opened by then is closed, and the reason is told."""
    webhook = {"name": "ops", "url": "https://hooks.example/x", "key": SECRET}
    made = Box(Settings(home=tmp_path, tenants={"acme": {"webhooks": [webhook]}}))  # type: ignore[dict-item]
    (tmp_path / "agents.db").mkdir()
    before = set(threading.enumerate())
    with pytest.raises(StoreError, match=r"agents\.db"):
        async with made:
            pytest.fail("it is open")
    for part in (made.audit.size("acme"), made.state.sessions.list(scope=Scope(tenant="acme", user="eva"))):
        with pytest.raises(StoreError, match="closed"):
            await part
    assert {one for one in set(threading.enumerate()) - before if one.name.startswith("aibox")} == set()
    with pytest.raises(ConfigError, match="not open"):
        made.keep(made.audit)


def test_the_signature_is_that_of_the_standard() -> None:
    """The published vector of Standard Webhooks' own libraries: same key, id, time and body, same signature."""
    key = signature.read_key("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", name="x")
    made = signature.headers(
        [key], id="msg_p5jXN8AQM9LWM0D4loKWxJek", timestamp=1614265330, body=b'{"test": 2432232314}'
    )
    assert made["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert made["webhook-id"] == "msg_p5jXN8AQM9LWM0D4loKWxJek"


@pytest.mark.parametrize("bad", ["", "whsec_", "whsec_c2hvcnQ=", "not base64 at all!", "whsec_" + "A" * 96])
def test_a_key_that_could_be_guessed_or_is_none_is_refused_and_not_quoted(bad: str) -> None:
    """24 to 64 bytes in base64; the message says how to make one."""
    with pytest.raises(ConfigError, match="24 to 64 bytes") as caught:
        signature.read_key(bad, name="ops")
    assert len(bad) < 8 or bad not in str(caught.value)


async def test_a_question_and_its_answer_are_told_without_what_is_asked(tmp_path: Path, receiver: Receiver) -> None:
    """Asked and given, each once, with the id to ask by; neither arguments nor the message nor who asked."""

    @aibox.tool(approve=True)
    def pay(to: str) -> str:
        """Pay somebody."""
        return f"paid {to}"

    async with box(tmp_path, receiver) as b:
        modelled(b, call("pay", {"to": CANARY}), "Done.")
        agent = b.agent(tools=[pay])
        (asked,) = (await agent.run(f"Pay for {CANARY}", scope=WHO)).pending
        await until(lambda: receiver.got)
        await b.state.approvals.approve(asked.id, digest=asked.digest, scope=Scope(tenant="acme", user="ben"))
        await until(lambda: len(receiver.got) == 2)
    first, second = (verified(got) for got in receiver.got)
    assert first["type"] == "approval.asked"
    assert first["data"] == {
        "tenant": "acme", "entry": first["data"]["entry"], "turn": first["data"]["turn"], "approval": asked.id,
        "run": asked.run, "tool": "pay", "people": 1, "label": "internal",
    }  # fmt: skip
    assert (second["type"], second["data"]["approval"]) == ("approval.given", asked.id)
    sent = b"".join(got.body for got in receiver.got) + str([got.headers for got in receiver.got]).encode()
    assert not any(word in sent for word in (CANARY.encode(), b"eva", b"ben"))
    assert {got.path for got in receiver.got} == {"/hook"}


async def test_a_blocked_turn_and_a_spent_budget_are_told(tmp_path: Path, receiver: Receiver) -> None:
    """Of an agent and of a bare model; a budget once a day, however many calls it refuses."""
    policy = (
        OPEN + 'models = ["out/*"]\n[checks.secrets]\ninput = "block"\n[budgets.tenant]\ntokens_per_day = 1\n'
        "[budgets.user]\ntokens_per_day = 1000000\n"
    )
    key = "AKIA" + "IOSFODNN7EXAMPLQ"
    async with box(tmp_path, receiver, policy=policy) as b:
        modelled(b, "One two three four.", "More.")
        agent = b.agent()
        assert (await agent.run(f"my key is {key}", scope=WHO)).blocked
        assert not (await agent.run("hello there", scope=WHO)).blocked
        for _ in range(3):
            with pytest.raises(LimitError, match="budget"):
                await agent.run("hello again", scope=WHO)
        request = ChatRequest({"model": "m", "messages": [{"role": "user", "content": f"my key is {key}"}]})
        bare = BareCall(request, router=b.router, guardrail=b.guardrail, audit=b.audit, scope=WHO)
        with pytest.raises(GuardrailError):
            await bare.complete()
        await until(lambda: len(receiver.got) == 3)
        deliveries = await b.webhooks.outbox.list("acme")  # type: ignore[union-attr]
    told = sorted(verified(got)["type"] for got in receiver.got)
    assert told == ["budget.exhausted", "turn.blocked", "turn.blocked"]
    assert len(deliveries) == 3
    spent = next(verified(got)["data"] for got in receiver.got if verified(got)["type"] == "budget.exhausted")
    assert spent["budget"] == "tenant"
    assert key.encode() not in b"".join(got.body for got in receiver.got)


async def test_each_attempt_is_on_record_and_goes_on_until_it_is_taken(tmp_path: Path, receiver: Receiver) -> None:
    """500 and silence are tried again with the same id and a new signature; 410 is not; the log names each attempt."""
    wanted = [500, 503, 204]
    receiver.answers = lambda _: Answer(wanted[min(len(receiver.got), 3) - 1])
    async with box(tmp_path, receiver) as b:
        await b.audit.append("turn.sealed", scope=WHO, detail={"outcome": "blocked", "label": "internal"})
        await until(lambda: b.webhooks.counts["delivered"] == 1)  # type: ignore[union-attr]
        (delivery,) = await b.webhooks.outbox.list("acme")  # type: ignore[union-attr]
        entries = [entry async for entry in b.audit.entries("acme")]
    assert (delivery.status, delivery.attempts, delivery.answered) == ("delivered", 3, "answered 204")
    assert len({got.headers["webhook-id"] for got in receiver.got}) == 1
    assert [verified(got)["type"] for got in receiver.got] == ["turn.blocked"] * 3
    allowed = [entry.detail for entry in entries if entry.kind == "egress.allowed"]
    assert [detail["attempt"] for detail in allowed] == ["attempt 1", "attempt 2", "attempt 3"]
    assert {detail["purpose"] for detail in allowed} == {"webhook"}
    ended = [entry.detail["outcome"] for entry in entries if entry.kind == "egress.returned"]
    assert ended == ["answered 500", "answered 503", "answered 204"]
    assert allowed[0]["sha256"] == hashlib.sha256(receiver.got[0].body).hexdigest()


async def test_it_is_given_up_after_the_last_attempt_or_when_it_is_not_wanted(
    tmp_path: Path, receiver: Receiver
) -> None:
    """Ten attempts, or one that is answered 410 Gone; then it is said so and never sent again."""
    gone = 500
    receiver.answers = lambda _: Answer(gone)
    async with box(tmp_path, receiver) as b:
        assert b.webhooks is not None
        await b.audit.append("turn.sealed", scope=WHO, detail={"outcome": "blocked", "label": "internal"})
        await until(lambda: b.webhooks.counts["given_up"] == 1)  # type: ignore[union-attr]
        assert len(receiver.got) == 10
        gone = 410
        await b.audit.append("turn.sealed", scope=WHO, detail={"outcome": "blocked", "label": "internal"})
        await until(lambda: b.webhooks.counts["given_up"] == 2)  # type: ignore[union-attr]
        assert len(receiver.got) == 11
        assert [one.status for one in await b.webhooks.outbox.list("acme")] == ["given_up"] * 2


async def test_a_taken_event_is_not_sent_again_for_the_length_of_the_answer(tmp_path: Path, receiver: Receiver) -> None:
    """The status is the answer (Standard Webhooks): a page of any length beside it is not read to its end."""
    receiver.answers = lambda _: Answer(200, body=b"x" * (1 << 20))
    async with box(tmp_path, receiver) as b:
        assert b.webhooks is not None
        await b.audit.append("turn.sealed", scope=WHO, detail={"outcome": "blocked", "label": "internal"})
        await until(b.webhooks.counts.total)
        assert (b.webhooks.counts["delivered"], b.webhooks.counts["failed"]) == (1, 0)
    assert len(receiver.got) == 1


async def test_a_receiver_that_drips_ends_within_the_lease(
    tmp_path: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer a byte at a time is given up as a whole: nobody else has taken the event meanwhile, or waits for it."""
    assert webhooks_module.TIMEOUT_S < webhooks_module.WHOLE_S < outbox_module.LEASE_S
    monkeypatch.setattr(webhooks_module, "WHOLE_S", 0.3)
    monkeypatch.setattr(webhooks_module, "DELAYS_S", (60.0,) * 9)

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            writer.write(b"HTTP/1.1 200 OK\r\nX: ")
            while True:
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.01)
        writer.close()
        left.set()

    left = asyncio.Event()
    server = await asyncio.start_server(drip, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    async with box(tmp_path, receiver, url=url) as b:
        assert b.webhooks is not None
        await b.audit.append("turn.sealed", scope=WHO, detail={"outcome": "blocked", "label": "internal"})
        await until(lambda: b.webhooks.counts["failed"])  # type: ignore[union-attr]
        (waits,) = await b.webhooks.outbox.list("acme")
        assert "took longer" in waits.answered
    await asyncio.wait_for(left.wait(), 30)
    server.close()
    await server.wait_closed()


async def test_a_late_failure_does_not_send_again_what_another_has_delivered(tmp_path: Path) -> None:
    """Whose lease was over when their attempt failed does not undo what became of it at the next one."""
    store = SqliteStore(tmp_path / "state.db")
    outbox = Outbox(lambda: store)
    await outbox.begin("acme", 0)
    await outbox.take("acme", {"ops": [Event("msg_1", "egress.denied", b"{}", 1, 0)]}, upto=1)
    (late,) = await outbox.due("acme", limit=9)
    await outbox.settle("acme", late, status="delivered", answered="answered 200")
    await outbox.settle("acme", late, status="waiting", answered="took too long")
    (kept,) = await outbox.list("acme")
    assert (kept.status, kept.answered) == ("delivered", "answered 200")
    await store.close()


@pytest.mark.parametrize("policy", ["version = 1", OPEN + 'tenants = ["rival"]'])
async def test_nothing_is_delivered_while_the_door_is_shut_and_it_is_when_it_opens(
    tmp_path: Path, receiver: Receiver, policy: str
) -> None:
    """The refusal is on record and is no event itself; what waits goes when a policy that was read anew allows it."""
    async with box(tmp_path, receiver, policy=policy) as b:
        await b.audit.append("turn.sealed", scope=WHO, detail={"outcome": "blocked", "label": "internal"})
        await until(lambda: b.webhooks.counts["failed"] >= 2)  # type: ignore[union-attr]
        assert not receiver.got
        (tmp_path / "box.toml").write_text(OPEN)
        await b.reload(b.settings)
        await until(lambda: receiver.got)
        kinds = [entry.kind async for entry in b.audit.entries("acme")]
    assert kinds.count("egress.denied") >= 2
    assert {verified(got)["type"] for got in receiver.got} == {"turn.blocked"}


async def test_an_address_of_the_inside_is_not_reached_unless_the_operator_says_that_it_is_theirs(
    tmp_path: Path, receiver: Receiver
) -> None:
    """Whatever a name resolves to is looked at; a redirect that leads there is no success and is not followed."""
    async with box(tmp_path / "a", receiver, private=False) as b:
        await b.audit.append("turn.sealed", scope=WHO, detail={"outcome": "blocked", "label": "internal"})
        await until(lambda: b.webhooks.counts["failed"])  # type: ignore[union-attr]
        (delivery,) = await b.webhooks.outbox.list("acme")  # type: ignore[union-attr]
        assert "not a public address" in delivery.answered
    assert not receiver.got
    receiver.answers = lambda _: Answer(302, {"location": f"{receiver.url}/elsewhere"})
    async with box(tmp_path / "b", receiver) as b:
        await b.audit.append("turn.sealed", scope=WHO, detail={"outcome": "blocked", "label": "internal"})
        await until(lambda: b.webhooks.counts["failed"] >= 2)  # type: ignore[union-attr]
    assert {got.path for got in receiver.got} == {"/hook"}


async def test_what_happened_while_nobody_delivered_is_delivered_by_the_next(
    tmp_path: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was put into the log, read or not, waits for the next process; two that run share the work."""
    monkeypatch.setattr(outbox_module, "LEASE_S", 5.0)
    receiver.answers = lambda _: Answer(500)
    async with box(tmp_path, receiver) as b:
        await b.audit.append("turn.sealed", scope=WHO, detail={"outcome": "blocked", "label": "internal"})
        await until(lambda: receiver.got)
        await b.webhooks.close()  # type: ignore[union-attr]
        await b.audit.append("turn.sealed", scope=WHO, detail={"outcome": "blocked", "label": "restricted"})
    receiver.got.clear()
    receiver.answers = lambda _: Answer()
    async with box(tmp_path, receiver) as one, box(tmp_path, receiver) as two:
        await until(lambda: len({got.headers["webhook-id"] for got in receiver.got}) == 2)
        await until(lambda: (one.webhooks.counts + two.webhooks.counts)["delivered"] == 2)  # type: ignore[union-attr]
    assert {verified(got)["data"]["label"] for got in receiver.got} == {"internal", "restricted"}


async def test_both_keys_sign_until_the_receiver_has_changed_over(tmp_path: Path, receiver: Receiver) -> None:
    """A receiver with either key takes what is sent; keys come from files, and are in no setting that is shown."""
    (tmp_path / "new").write_text(SECRET + "\n")
    (tmp_path / "old").write_text("whsec_" + base64.b64encode(OLD).decode())
    keys = {"key": None, "key_file": tmp_path / "new", "retiring_key_file": tmp_path / "old"}
    async with box(tmp_path, receiver, **keys) as b:
        assert SECRET not in repr(b.settings)
        await b.audit.append("turn.sealed", scope=WHO, detail={"outcome": "blocked", "label": "internal"})
        await until(lambda: receiver.got)
    assert verified(receiver.got[0], KEY) == verified(receiver.got[0], OLD)


async def test_an_address_hears_of_what_it_asked_for_and_of_its_own_tenant(tmp_path: Path, receiver: Receiver) -> None:
    """Neither events that it did not name, nor another tenant's, nor what was before it was there."""
    blocked = {"outcome": "blocked", "label": "internal"}
    async with Box(Settings(home=tmp_path / "home", memory={"enabled": False})) as before:  # type: ignore[arg-type]
        await before.audit.append("turn.sealed", scope=WHO, detail=blocked)
    async with box(tmp_path, receiver, events=["budget.exhausted"]) as b:
        await b.audit.append("turn.sealed", scope=WHO, detail=blocked)
        failed = {"outcome": "failed", "code": "policy.limit.budget_user", "label": "internal"}
        await b.audit.append("turn.failed", scope=Scope(tenant="rival", user="eva"), detail=failed)
        await b.audit.append("turn.failed", scope=WHO, detail=failed)
        await b.audit.append("turn.failed", scope=WHO, detail={**failed, "code": "policy.limit.budget_model"})
        await until(lambda: len(receiver.got) == 2)
        assert len(await b.webhooks.outbox.list("acme")) == 2  # type: ignore[union-attr]
    told = sorted((verified(got)["data"] for got in receiver.got), key=lambda data: data["entry"])
    assert [one | {"turn": ""} for one in told] == [
        {"tenant": "acme", "entry": number, "budget": budget, "day": told[0]["day"], "turn": ""}
        for number, budget in ((2, "user"), (3, "model"))
    ]


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
async def test_the_outbox_is_bounded_and_an_event_is_taken_once(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has no room is given up and counted; the same part of the log read twice puts nothing there twice."""
    monkeypatch.setattr(outbox_module, "WAITING", 3)
    monkeypatch.setattr(outbox_module, "KEPT", 2)
    server = kind == "postgres"
    store = PostgresStore(request.getfixturevalue("postgres_url"), key=b"k" * 32) if server else SqliteStore(None)
    outbox = Outbox(lambda: store)
    assert await outbox.begin("acme", 7) == 7
    assert await outbox.begin("acme", 9) == 7
    events = [Event(f"msg_{n}", "turn.blocked", b"{}", n, n) for n in range(5, 12)]
    assert await outbox.take("acme", {"ops": events}, upto=12) == 2
    assert await outbox.take("acme", {"ops": events}, upto=12) == 0
    assert [one.id for one in await outbox.due("acme", limit=9)] == ["msg_7", "msg_8", "msg_9"]
    assert await outbox.due("acme", limit=9) == []
    monkeypatch.setattr(outbox_module, "LEASE_S", 0.0)
    for one in await outbox.list("acme"):
        await outbox.settle("acme", one, status="delivered", answered="answered 200")
    await outbox.take("acme", {}, upto=12)
    assert [one.id for one in await outbox.list("acme")] == ["msg_11", "msg_10"]
    assert await outbox.begin("acme", 4) == 4
    await store.close()


def test_settings_of_webhooks_are_refused_where_they_cannot_work(tmp_path: Path) -> None:
    """One key, one name each, known events; a file of settings names keys relative to itself."""
    with pytest.raises(ValueError, match="needs a key_file"):
        WebhookSettings(name="a", url="https://x.example")
    config = tmp_path / "aibox.toml"
    table = '[[tenants.acme.webhooks]]\nname = "ops"\nurl = "https://x.example/h"\nkey_file = "ops.key"\n'
    config.write_text(table)
    (webhook,) = Settings.load(config=config).tenants["acme"].webhooks
    assert (webhook.key_file, webhook.events) == (tmp_path / "ops.key", frozenset(EVENTS))
    config.write_text(table + table)
    with pytest.raises(ConfigError, match="one name"):
        Settings.load(config=config)
    config.write_text(table + 'events = ["turn.blokked"]\n')
    with pytest.raises(ConfigError, match=r"turn\.blocked"):
        Settings.load(config=config)


async def test_a_process_that_is_killed_between_event_and_delivery_loses_none(
    tmp_path: Path, receiver: Receiver
) -> None:
    """kill -9 while one event is being delivered and another is in the log only: the next process delivers both."""
    (tmp_path / "box.toml").write_text(OPEN)
    (tmp_path / "ops.key").write_text(SECRET)
    (tmp_path / "aibox.toml").write_text(
        f'home = "home"\npolicy = "box.toml"\n[memory]\nenabled = false\n[[tenants.acme.webhooks]]\nname = "ops"\n'
        f'url = "{receiver.url}/hook"\nkey_file = "ops.key"\nprivate = true\n'
    )
    receiver.open.clear()
    command = [sys.executable, str(Path(__file__).with_name("doomed.py")), str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        await until(lambda: receiver.got)
        process.stdin.write("go on\n")
        process.stdin.flush()
        assert await asyncio.to_thread(process.stdout.readline) == "both have happened\n"
        process.kill()
    (first,) = receiver.got
    receiver.open.set()
    async with aibox.open(tmp_path / "aibox.toml") as b:
        await until(lambda: b.webhooks.counts["delivered"] == 2)  # type: ignore[union-attr]
        assert (await b.audit.verify()).ok
    assert sorted(verified(got)["data"]["label"] for got in receiver.got) == ["internal", "internal", "restricted"]
    assert sum(got.headers["webhook-id"] == first.headers["webhook-id"] for got in receiver.got) == 2
