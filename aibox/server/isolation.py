"""Tries every way from one tenant into another in a running deployment, and says what held.

All is asked over HTTP, as anybody would, but for the rows of a shared database (`isolation_rows`).
Two tenants are seeded with a word each. Whoever is not the owner must never meet the owner's word, and must hear of
what is there exactly what is heard of what is not. Where the owner does not meet the word either, nothing was proved.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from pydantic import BaseModel

from aibox.errors import AIBoxError, ConfigError
from aibox.server import isolation_rows
from aibox.server.client import Client
from aibox.server.isolation_report import IsolationReport, Outcome, Row
from aibox.server.isolation_ways import ABSENT, CLAIMS, KEPT, LISTS, MARKED, THINGS, WRITTEN, Look, Probe, Thing


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
        for owner, stranger in ((first, second), (second, first)):
            rows += [row async for row in _tried_last(owner, stranger)]
    finally:
        for probe in (first, second):
            left += await asyncio.shield(_clean(probe, {*first.ids.values(), *second.ids.values()}))
    return IsolationReport(url, (first.tenant, second.tenant), tuple(rows), tuple(left))


async def _seed(probe: Probe) -> None:
    client, word = probe.client, probe.word

    async def memory() -> str:
        return await _remembered(probe)

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
        await _made(probe, make.__name__, make)
    if "keys" in probe.ids:
        probe.ids["keys of the tenant named"] = f"{probe.ids['keys']}@{probe.tenant}"


async def _made(probe: Probe, area: str, make: Callable[[], Awaitable[str]]) -> None:
    try:
        probe.ids[area] = await make()
    except AIBoxError as error:
        probe.ids.pop(area, None)
        probe.refused[area] = f"{error.code}: {error.message}"


async def _remembered(probe: Probe) -> str:
    return (await probe.client.memory.remember(f"My word is {probe.word}.")).id


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


async def _things(owner: Probe, stranger: Probe, things: Sequence[tuple[str, str, Thing]]) -> AsyncIterator[Row]:
    for area, way, act in things:
        if area not in owner.ids:
            yield Row(area, way, stranger.tenant, "not tried", _why(owner, area))
            continue
        there = await _outcome(act(stranger.client, owner.ids[area]))
        absent = await _outcome(act(stranger.client, f"absent-{ABSENT}"))
        outcome, why = _judged(owner, there, absent)
        yield Row(area, way, stranger.tenant, outcome, why)


async def _tried(owner: Probe, stranger: Probe) -> AsyncIterator[Row]:
    before = await _finds(owner)
    async for row in _things(owner, stranger, THINGS):
        yield row
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
    for area, found in (await _finds(owner)).items():
        yield _found(owner, stranger, area, found, before=before[area])


async def _tried_last(owner: Probe, stranger: Probe) -> AsyncIterator[Row]:
    """What takes from the stranger, or from what is allowed to the owner, something that all else is tried with."""

    async def policy() -> str:
        await owner.client.policies.put({"tools": {"deny": [owner.word]}})
        return owner.tenant

    await _made(owner, "policies", policy)
    async for row in _things(owner, stranger, WRITTEN):
        yield row
    if "policies" in owner.ids:
        yield _found(owner, stranger, "policies", await _outcome(owner.client.policies.get()))
    if "memory" in owner.ids:
        # The owner may have been the stranger before, who forgot everything.
        await _made(owner, "memory", partial(_remembered, owner))
    if "memory" in owner.ids:
        # What is shared stays, and would be nobody's.
        if (
            "knowledge" in stranger.ids
            and (await _outcome(stranger.client.knowledge.remove(stranger.ids["knowledge"])))[0]
        ):
            del stranger.ids["knowledge"]
        good, said = await _outcome(stranger.client.memory.forget_everything())
        found = _found(owner, stranger, "memory", await _outcome(owner.client.memory.get(owner.ids["memory"])))
        outcome: Outcome = "not tried" if found.outcome == "held" and not good else found.outcome
        yield Row("memory", "forget everything", stranger.tenant, outcome, found.why if good else said[:200])
    else:
        yield Row("memory", "forget everything", stranger.tenant, "not tried", _why(owner, "memory"))


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


async def _finds(owner: Probe) -> dict[str, tuple[bool, str]]:
    """What the owner meets of what was made."""
    looks: dict[str, Look] = {
        "memory": lambda c: c.memory.get(owner.ids["memory"]),
        "knowledge": lambda c: c.knowledge.search(owner.word),
        "sessions": lambda c: c.sessions.export(owner.ids["sessions"]),
        "sandbox": lambda c: c.sandbox.read(owner.ids["sandbox"], "word.txt"),
        "keys": lambda c: _unrevoked(c, owner.ids["keys"]),
        "approvals": lambda c: _waiting(c, owner),
    }
    return {area: await _outcome(look(owner.client)) for area, look in looks.items() if area in owner.ids}


def _found(
    owner: Probe, stranger: Probe, area: str, seen: tuple[bool, str], *, before: tuple[bool, str] | None = None
) -> Row:
    if owner.word in seen[1]:
        return Row(area, "still there", stranger.tenant, "held")
    if before is not None and owner.word not in before[1]:
        # Such as the messages of an agent without state.
        return Row(area, "still there", stranger.tenant, "not tried", "the owner did not find it before either")
    return Row(area, "still there", stranger.tenant, "crossed", "the owner does not find it as it was")


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
    # First: under another policy an agent is another version of it, and no run goes on.
    acts += [("policy", client.policies.withdraw(match="*"))] if "policies" in probe.ids else []
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
    of = {"receipts": "sessions", "runs": "approvals", "keys of the tenant named": "keys"}
    return probe.refused.get(of.get(area, area), "")
