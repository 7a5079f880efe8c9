"""Tries every way from one tenant into another in a running deployment, and says what held.

All is asked over HTTP, as anybody would, but for the rows of a shared database (`isolation_rows`).
Two tenants are seeded with a word each. Whoever is not the owner must never meet the owner's word, and must hear of
what is there exactly what is heard of what is not. Where the owner does not meet the word either, nothing was proved.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from pydantic import BaseModel

from aibox.errors import AIBoxError, ConfigError
from aibox.server import isolation_rows
from aibox.server.client import Client
from aibox.server.isolation_report import IsolationReport, Outcome, Row

ABSENT = uuid.UUID(int=0).hex


@dataclass(slots=True)
class Probe:
    """One side: a client, what only it knows, and the ids of what it made."""

    tenant: str
    client: Client
    word: str = field(default_factory=lambda: f"heron-{uuid.uuid4().hex}")
    ids: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    """Areas that could not be seeded, and why."""


Thing = Callable[[Client, str], Awaitable[Any]]
Look = Callable[[Client], Awaitable[Any]]
Keyed = Callable[[Client, str, str], Awaitable[Any]]


async def _streamed(client: Client, said: str, **more: str) -> str:
    async with aclosing(client.stream(said, **more)) as events:
        return "\n".join([event.model_dump_json() async for event in events])


async def _log(client: Client) -> str:
    async with aclosing(client.audit.entries()) as entries:
        return "\n".join([entry.model_dump_json() async for entry in entries])


# What has an id: asked for by whoever does not own it.
THINGS: Sequence[tuple[str, str, Thing]] = (
    ("memory", "get", lambda c, id_: c.memory.get(id_)),
    ("memory", "update", lambda c, id_: c.memory.update(id_, "mine now")),
    ("memory", "forget", lambda c, id_: c.memory.forget(id_)),
    ("knowledge", "remove", lambda c, id_: c.knowledge.remove(id_)),
    ("sessions", "get", lambda c, id_: c.sessions.get(id_)),
    ("sessions", "export", lambda c, id_: c.sessions.export(id_)),
    ("sessions", "title", lambda c, id_: c.sessions.title(id_, "mine now")),
    ("sessions", "delete", lambda c, id_: c.sessions.delete(id_)),
    ("receipts", "of a turn", lambda c, id_: c.receipt(id_)),
    ("calls", "receipt of a call to a model", lambda c, id_: c.receipt(id_)),
    ("sandbox", "run", lambda c, id_: c.sandbox.run(id_, "cat word.txt", language="bash")),
    ("sandbox", "files", lambda c, id_: c.sandbox.files(id_)),
    ("sandbox", "read", lambda c, id_: c.sandbox.read(id_, "word.txt")),
    ("sandbox", "write", lambda c, id_: c.sandbox.write(id_, "word.txt", b"")),
    ("sandbox", "end", lambda c, id_: c.sandbox.end(id_)),
    ("approvals", "get", lambda c, id_: c.approvals.get(id_)),
    ("approvals", "approve", lambda c, id_: c.approvals.approve(id_, digest=f"sha256:{ABSENT * 2}")),
    ("approvals", "reject", lambda c, id_: c.approvals.reject(id_)),
    ("runs", "resume", lambda c, id_: c.resume(id_)),
    ("keys", "rotate", lambda c, id_: c.keys.rotate(id_)),
    ("keys", "revoke", lambda c, id_: c.keys.revoke(id_)),
    ("tenant named", "keys", lambda c, name: c.keys.list(tenant=name)),
    ("tenant named", "policy", lambda c, name: c.admin.policy(tenant=name)),
    ("tenant named", "policy's versions", lambda c, name: c.policies.versions(tenant=name)),
    ("tenant named", "policy written", lambda c, name: c.policies.put({}, match="*", tenant=name)),
    ("tenant named", "policy withdrawn", lambda c, name: c.policies.withdraw(match="*", tenant=name)),
    ("tenant named", "budgets", lambda c, name: c.admin.budgets(tenant=name)),
    ("tenant named", "budget of a model", lambda c, name: c.admin.budgets(model="m/m", tenant=name)),
    ("tenant named", "egress", lambda c, name: c.admin.egress(tenant=name)),
    ("tenant named", "users", lambda c, name: c.admin.users(tenant=name)),
    ("tenant named", "user suspended", lambda c, name: c.admin.suspend_user("isolation", tenant=name)),
)
# What answers with several things: in the stranger's there must be no word of the owner.
LISTS: Sequence[tuple[str, str, Callable[[Client, Probe], Awaitable[Any]]]] = (
    ("memory", "list", lambda c, _: c.memory.list()),
    ("memory", "recall", lambda c, owner: c.memory.recall(owner.word)),
    ("memory", "export", lambda c, _: c.memory.export()),
    ("knowledge", "search", lambda c, owner: c.knowledge.search(owner.word)),
    ("knowledge", "list", lambda c, _: c.knowledge.list()),
    ("sessions", "list", lambda c, _: c.sessions.list()),
    ("keys", "list", lambda c, _: c.keys.list()),
    ("approvals", "list", lambda c, _: c.approvals.list()),
    ("audit", "log", lambda c, _: _log(c)),
    # The stranger has an entry of that number too, or none; its leaf is another.
    ("audit", "show", lambda c, owner: c.audit.show(int(owner.ids.get("seq", "0")))),
    ("checkpoint", "get", lambda c, _: c.audit.checkpoint()),
)
# What the owner's is known by in a list, where it need not hold the word.
MARKED = ("approvals", "audit", "checkpoint")
# A conversation under the name that the owner's has: the owner's word may not turn up.
CLAIMS: Sequence[tuple[str, str, Callable[[Client, Probe], Awaitable[Any]]]] = (
    ("sessions", "chat under the same name", lambda c, o: c.chat("What did I tell you?", session=o.ids["sessions"])),
    ("streams", "stream under the same name", lambda c, o: _streamed(c, "Tell me.", session=o.ids["sessions"])),
)
# What is answered once and kept under an Idempotency-Key: by a route of the platform, by a model, by a stream. No two
# answers are alike, for each has an id of its own.
KEPT: Sequence[tuple[str, Keyed]] = (
    ("memory remembered", lambda c, said, key: c.memory.remember(said, idempotency_key=key)),
    ("chat completion", lambda c, said, key: c.complete(said, max_tokens=16, idempotency_key=key)),
    ("stream", lambda c, said, key: _streamed(c, said, idempotency_key=key)),
)


async def verify_isolation(
    url: str, one: tuple[str, Client], other: tuple[str, Client], *, databases: Sequence[str] = ()
) -> IsolationReport:
    """Seed both tenants, try every way in both directions, and clean up. The clients are administrators of theirs.

    `databases` are those of the server, by its own role: rows are tried there without the server between.

    What an area cannot do here (no sandbox, no model) is `not tried`, with the reason. Raises AIBoxError where the
    server cannot be asked at all.
    """
    first, second = Probe(*one), Probe(*other)
    rows: list[Row] = []
    left: list[str] = []
    await first.client.usage()  # any server has that, and to a key that is not its own it says no
    try:
        for probe in (first, second):
            await _seed(probe)
        for owner, stranger in ((first, second), (second, first)):
            rows += [row async for row in _tried(owner, stranger)]
            rows += await asyncio.to_thread(isolation_rows.tried, databases, owner.tenant, stranger.tenant)
    finally:
        for probe in (first, second):
            left += await asyncio.shield(_clean(probe, {*first.ids.values(), *second.ids.values()}))
    return IsolationReport(url, (first.tenant, second.tenant), tuple(rows), tuple(left))


async def _seed(probe: Probe) -> None:
    client, word = probe.client, probe.word

    async def memory() -> str:
        return (await client.memory.remember(f"My word is {word}.")).id

    async def knowledge() -> str:
        text = f"# The word\n\nThe word of this tenant is {word}.\n".encode()
        made = (await client.knowledge.add(text, name=f"{word}.md", visibility="shared")).document
        return "" if made is None else made.id

    async def sessions() -> str:
        session = f"isolation-{uuid.uuid4().hex}"
        probe.ids["receipts"] = (await client.chat(f"{word} is my word.", session=session)).turn
        return session

    async def sandbox() -> str:
        made = await client.sandbox.open()
        await client.sandbox.write(made, "word.txt", word.encode())
        return made

    async def keys() -> str:
        return (await client.keys.create("isolation", note=word)).split("-")[1]

    async def calls() -> str:
        return await _called(client, word)

    async def audit() -> str:
        entry = (await client.audit.log(limit=1)).data[0]
        probe.ids["seq"] = str(entry.seq)
        return entry.leaf

    async def checkpoint() -> str:
        """The name of the log, which the first line of its checkpoint is."""
        return (await client.audit.checkpoint()).partition("\n")[0]

    async def approvals() -> str:
        probe.ids["runs"], question = await _asked(client, word)
        return question

    probe.ids["tenant named"] = probe.tenant
    for make in (memory, knowledge, sessions, sandbox, keys, approvals, calls, audit, checkpoint):
        try:
            probe.ids[make.__name__] = await make()
        except AIBoxError as error:
            probe.refused[make.__name__] = f"{error.code}: {error.message}"


async def _called(client: Client, word: str) -> str:
    """The turn that a call to a model was, as only the log names it."""
    await client.complete(f"{word} is my word.", max_tokens=16)
    turns = [entry.turn for entry in (await client.audit.log(kind="turn.")).data]
    if not turns:
        raise ConfigError("the log names no turn of the call")
    return turns[-1]


async def _asked(client: Client, word: str) -> tuple[str, str]:
    """A run that waits for a person, and its question. Raises AIBoxError where there is no way to one.

    Only a tool that never runs without a yes is asked for: nothing is done here that somebody would have to undo.
    """
    tool = ""
    for agent in await client.agents():
        tools = [tool.name for tool in agent.tools if tool.approve]
        for tool in tools[:1]:
            said = f"{tool} {word} - call the tool {tool} now, with the word {word}."
            told = await client.chat(said, agent=agent.name)
            if told.pending:
                return told.run, told.pending[0].id
    if not tool:
        raise ConfigError("no agent here has a tool whose calls wait for a person")
    raise ConfigError(f"the model was told to call {tool}, which waits for a person, and did not")


async def _tried(owner: Probe, stranger: Probe) -> AsyncIterator[Row]:
    for area, way, act in THINGS:
        if area not in owner.ids:
            yield Row(area, way, stranger.tenant, "not tried", _why(owner, area))
            continue
        there = await _outcome(act(stranger.client, owner.ids[area]))
        absent = await _outcome(act(stranger.client, f"absent-{ABSENT}"))
        outcome, why = _judged(owner, there, absent)
        yield Row(area, way, stranger.tenant, outcome, why)
    for area, way, look in LISTS:
        mark = owner.ids.get(area, "") if area in MARKED else owner.word
        mine, theirs = await _outcome(look(owner.client, owner)), await _outcome(look(stranger.client, owner))
        if mark and mark in theirs[1]:
            yield Row(area, way, stranger.tenant, "crossed", "what is the owner's stands in the stranger's answer")
        elif not mark or mark not in mine[1]:
            yield Row(area, way, stranger.tenant, "not tried", _why(owner, area) or "the owner does not see it either")
        else:
            yield Row(area, way, stranger.tenant, "held")
    for area, way, claim in CLAIMS:
        if "sessions" not in owner.ids:
            yield Row(area, way, stranger.tenant, "not tried", _why(owner, "sessions"))
            continue
        good, said = await _outcome(claim(stranger.client, owner))
        if owner.word in said:
            yield Row(area, way, stranger.tenant, "crossed", "what is the owner's stands in the stranger's answer")
        else:
            yield Row(area, way, stranger.tenant, "held" if good else "not tried", "" if good else said[:200])
    async for row in _kept(owner, stranger):
        yield row
    async for row in _still_there(owner, stranger):
        yield row


def _judged(owner: Probe, there: tuple[bool, str], absent: tuple[bool, str]) -> tuple[Outcome, str]:
    if there[0]:
        return "crossed", "the stranger was answered"
    if owner.word in there[1] or there != absent:
        return "crossed", "what is there is refused otherwise than what is not"
    return "held", there[1].partition(":")[0]


async def _kept(owner: Probe, stranger: Probe) -> AsyncIterator[Row]:
    """A key that the owner has used is to the stranger one that nobody has: no answer of the owner's, no refusal."""
    said, otherwise = "This is asked under a key.", "This is asked otherwise, under the same key."
    for way, ask in KEPT:
        for what, body in (("the same request", said), ("another request", otherwise)):
            key = f"isolation-{uuid.uuid4().hex}"
            mine = await _outcome(ask(owner.client, said, key))
            good, again = await _outcome(ask(owner.client, otherwise, key))
            if good or not again.startswith("config.key_reused"):
                why = "the owner's key is not held either" if mine[0] else mine[1][:200]
                outcome: Outcome = "not tried"
            else:
                outcome, why = await _judged_key(partial(ask, stranger.client, body), key, mine)
            yield Row("caches", f"{way}, {what} under the same key", stranger.tenant, outcome, why)


async def _judged_key(ask: Callable[[str], Awaitable[Any]], key: str, mine: tuple[bool, str]) -> tuple[Outcome, str]:
    there = await _outcome(ask(key))
    if there[0] and there != mine:
        return "held", ""
    unused = await _outcome(ask(f"isolation-{uuid.uuid4().hex}"))
    if there == unused:
        return "not tried", "answers are alike here, whoever asks" if there[0] else there[1][:200]
    if there[0]:
        return "crossed", "the stranger was told the owner's answer"
    return "crossed", f"a key that another has used is refused ({there[1].partition(':')[0]}), an unused one is not"


async def _still_there(owner: Probe, stranger: Probe) -> AsyncIterator[Row]:
    """That the stranger changed nothing: the owner meets all of it as it was."""
    looks: dict[str, Look] = {
        "memory": lambda c: c.memory.get(owner.ids["memory"]),
        "knowledge": lambda c: c.knowledge.search(owner.word),
        "sessions": lambda c: c.sessions.export(owner.ids["sessions"]),
        "sandbox": lambda c: c.sandbox.read(owner.ids["sandbox"], "word.txt"),
        "keys": lambda c: _unrevoked(c, owner.ids["keys"]),
        "approvals": lambda c: _waiting(c, owner),
    }
    for area, look in looks.items():
        if area not in owner.ids:
            continue
        _, seen = await _outcome(look(owner.client))
        if owner.word in seen:
            yield Row(area, "still there", stranger.tenant, "held")
        else:
            yield Row(area, "still there", stranger.tenant, "crossed", "the owner does not find it as it was")


async def _unrevoked(client: Client, key: str) -> str:
    return "".join(one.note for one in await client.keys.list() if one.id == key and not one.revoked)


async def _waiting(client: Client, owner: Probe) -> str:
    return owner.word if (await client.approvals.get(owner.ids["approvals"])).status == "waiting" else ""


async def _clean(probe: Probe, ids: set[str]) -> list[str]:
    """Let go of all that was made; what could not be."""
    client = probe.client
    left: list[str] = []
    acts: list[tuple[str, Awaitable[Any]]] = []
    try:
        sessions = [s.id for s in await client.sessions.list(limit=1000) if s.id in ids]
        acts += [("session", client.sessions.delete(session)) for session in sessions]
    except AIBoxError as error:
        left.append(f"sessions of {probe.tenant}: {error.code}: {error.message}")
    if "approvals" in probe.ids:
        # The run goes on with the no that it was told, and so ends.
        acts.append(
            ("question", client.approvals.reject(probe.ids["approvals"], reason="it was asked to be looked at"))
        )
        acts.append(("run", client.resume(probe.ids["runs"])))
    acts += [("sandbox", client.sandbox.end(probe.ids["sandbox"]))] if "sandbox" in probe.ids else []
    acts += [("key", client.keys.revoke(probe.ids["keys"]))] if "keys" in probe.ids else []
    acts += [("document", client.knowledge.remove(probe.ids["knowledge"]))] if "knowledge" in probe.ids else []
    acts += [("memories", client.memory.forget_everything())] if "memory" in probe.ids else []
    for what, act in acts:
        good, said = await _outcome(act)
        if not good:
            left.append(f"{what} of {probe.tenant}: {said}")
    return left


async def _outcome(act: Awaitable[Any]) -> tuple[bool, str]:
    """Whether it was answered, and with what; a refusal by its code and words."""
    try:
        return True, _text(await act)
    except AIBoxError as error:
        return False, f"{error.code}: {error.message}"


def _text(value: Any) -> str:
    if isinstance(value, BaseModel):
        return value.model_dump_json()
    if isinstance(value, list):
        return "\n".join(map(_text, value))
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _why(probe: Probe, area: str) -> str:
    return probe.refused.get({"receipts": "sessions", "runs": "approvals"}.get(area, area), "")
