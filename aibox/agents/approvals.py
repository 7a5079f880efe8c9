"""Questions to people that outlive the process: what is asked, what was answered, by whom, until when.

An answer is to what was shown: it names the digest over the tool, its arguments, the policy, the label and the agent's
version, and holds for nothing else. Whoever asked may not answer where two people are wanted.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from aibox.agents.evidence import digest as sha256
from aibox.agents.store import Store
from aibox.errors import AccessError, ConfigError
from aibox.postgres import Rows
from aibox.protocols import Recorder
from aibox.types import Label, Scope

Status = Literal["waiting", "approved", "rejected", "expired", "used"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Approval:
    """A question as it stands. `digest` is what an answer must name; `arguments` are what the tool would get."""

    id: str
    run: str
    call: str
    tool: str
    arguments: Mapping[str, Any]
    reason: str
    label: Label
    policy: str
    version: str
    agent: str
    asked_by: str
    people: int
    status: Status
    expires_us: int
    digest: str = ""
    approved_by: tuple[str, ...] = ()
    rejected_by: str = ""
    said: str = ""
    """Why it was rejected, for the model."""


def digest_of(
    *, tool: str, arguments: Mapping[str, Any], policy: str, label: Label, version: str, scope: Scope, call: str
) -> str:
    """What an approval is bound to."""
    shown = {
        "tool": tool,
        "arguments": dict(arguments),
        "policy": policy,
        "label": str(label),
        "version": version,
        "tenant": scope.tenant,
        "user": scope.user,
        "call": call,
    }
    return "sha256:" + sha256(msgspec.json.encode(shown, order="deterministic"))


class Approvals:
    """The questions of a store, for whoever may answer them. `audit` gets an entry for every answer."""

    def __init__(self, store: Store, *, audit: Recorder | None = None) -> None:
        self._store = store
        self._audit = audit

    async def ask(self, approval: Approval, *, scope: Scope) -> None:
        """Keep a question, durably. Raises ConfigError where the store has no key: what is shown is never in clear."""
        if not self._store.encrypted:
            raise ConfigError("a question with arguments is kept encrypted only", hint="AgentState(path, key=...)")
        shown = {
            "arguments": dict(approval.arguments),
            "reason": approval.reason,
            "label": str(approval.label),
            "why": list(approval.label.why),
            "policy": approval.policy,
            "version": approval.version,
            "agent": approval.agent,
            "asked_by": approval.asked_by,
        }
        sealed = self._store.seal(msgspec.json.encode(shown), "approvals", scope.tenant, approval.id, approval.digest)
        row = (
            scope.tenant,
            approval.id,
            approval.run,
            approval.call,
            approval.tool,
            sealed,
            approval.digest,
            approval.people,
            "waiting",
            approval.expires_us,
        )
        await self._store.run(
            lambda db: db.execute("INSERT INTO approvals VALUES (?,?,?,?,?,?,?,?,?,?)", row),
            tenant=scope.tenant,
            durable=True,
        )

    async def pending(self, *, scope: Scope, run: str | None = None) -> list[Approval]:
        """What waits for an answer in the scope's tenant, the most urgent first."""
        found = await self._select(
            scope, "status='waiting' AND (CAST(? AS TEXT) IS NULL OR run=?) ORDER BY expires_us", (run, run)
        )
        return [approval for approval in found if approval.status == "waiting"]

    async def of_run(self, run: str, *, scope: Scope) -> list[Approval]:
        """All questions of a run, answered or not."""
        return await self._select(scope, "run=? ORDER BY id", (run,))

    async def get(self, approval: str, *, scope: Scope) -> Approval:
        """One question. Raises AccessError where the tenant has none of that id."""
        found = await self._select(scope, "id=?", (approval,))
        if not found:
            raise unknown()
        return found[0]

    async def approve(self, approval: str, *, digest: str, scope: Scope) -> Approval:
        """The scope's user says yes to exactly what `digest` stands for. Raises AccessError when that is not possible.

        Refused: another tenant's question, other arguments than were shown, a second yes of the same person, a question
        that is answered or expired, and the yes of the person who asked where two people are wanted.
        """
        return await self._answer(approval, scope=scope, digest=digest, yes=True, reason="")

    async def reject(self, approval: str, reason: str = "", *, scope: Scope) -> Approval:
        """The scope's user says no, and the model is told `reason`. One no is enough."""
        return await self._answer(approval, scope=scope, digest=None, yes=False, reason=reason)

    async def _answer(self, approval: str, *, scope: Scope, digest: str | None, yes: bool, reason: str) -> Approval:
        asked = await self.get(approval, scope=scope)
        now = time.time_ns() // 1000
        if asked.status != "waiting":
            raise AccessError(f"the question about {asked.tool} is closed: {asked.status}")
        if yes and digest != asked.digest:
            raise AccessError("what you saw is not what is asked", hint="look at it again: arguments, label and policy")
        if yes and asked.people > 1 and scope.user == asked.asked_by:
            raise AccessError("two other people must agree; you are the one who asked")
        if self._audit is not None:
            # Durable before it has any effect: an answer that nobody can prove is none.
            detail = {"approval": approval, "run": asked.run, "tool": asked.tool, "digest": asked.digest}
            kind = "approval.given" if yes else "approval.rejected"
            await self._audit.append(kind, scope=scope, detail={**detail, "reason_sha256": sha256(reason.encode())})

        def write(db: Rows) -> None:
            where = (scope.tenant, approval)
            row = db.execute("SELECT status, people FROM approvals WHERE tenant=? AND id=?", where).fetchone()
            if row is None or row[0] != "waiting":
                raise AccessError(f"the question about {asked.tool} was answered meanwhile")
            kept = json.dumps({"yes": yes, "reason": reason})
            sealed = self._store.seal(kept.encode(), "votes", scope.tenant, approval, scope.user)
            vote = "INSERT INTO votes VALUES (?,?,?,?,?) ON CONFLICT DO NOTHING"
            if not db.execute(vote, (*where, scope.user, sealed, now)).rowcount:
                raise AccessError("you have answered already; somebody else must agree too")
            said = db.execute("SELECT count(*) FROM votes WHERE tenant=? AND approval=?", where).fetchone()[0]
            if not yes or said >= row[1]:
                status = "approved" if yes else "rejected"
                db.execute("UPDATE approvals SET status=? WHERE tenant=? AND id=?", (status, *where))

        await self._store.run(write, tenant=scope.tenant, durable=True)
        return await self.get(approval, scope=scope)

    async def _select(self, scope: Scope, where: str, values: tuple[Any, ...]) -> list[Approval]:
        def read(db: Rows) -> list[tuple[Any, list[Any]]]:
            now = time.time_ns() // 1000
            db.execute(
                "UPDATE approvals SET status='expired' WHERE tenant=? AND status='waiting' AND expires_us<=?",
                (scope.tenant, now),
            )
            rows = db.execute(  # the conditions are written in this file
                "SELECT id, run, call, tool, shown, digest, people, status, expires_us FROM approvals "  # noqa: S608
                f"WHERE tenant=? AND {where}",
                (scope.tenant, *values),
            ).fetchall()
            votes = "SELECT person, reason FROM votes WHERE tenant=? AND approval=? ORDER BY at_us"
            return [(row, db.execute(votes, (scope.tenant, row[0])).fetchall()) for row in rows]

        return [self._read(scope, row, votes) for row, votes in await self._store.run(read, tenant=scope.tenant)]

    def _read(self, scope: Scope, row: Any, votes: list[Any]) -> Approval:
        id_, run, call, tool, shown, digest, people, status, expires_us = row
        seen = json.loads(self._store.open(shown, "approvals", scope.tenant, id_, digest))
        label = Label.parse(seen["label"])
        for reason in seen["why"]:
            label = label.because(reason)
        answers = [
            (person, json.loads(self._store.open(sealed, "votes", scope.tenant, id_, person)))
            for person, sealed in votes
        ]
        no = next(((person, answer["reason"]) for person, answer in answers if not answer["yes"]), ("", ""))
        return Approval(
            id=id_,
            run=run,
            call=call,
            tool=tool,
            arguments=seen["arguments"],
            reason=seen["reason"],
            label=label,
            policy=seen["policy"],
            version=seen["version"],
            agent=seen["agent"],
            asked_by=seen["asked_by"],
            people=people,
            status=status,
            expires_us=expires_us,
            digest=digest,
            approved_by=tuple(person for person, answer in answers if answer["yes"]),
            rejected_by=no[0],
            said=no[1],
        )


def unknown() -> AccessError:
    """One answer for what is not there and for what is somebody else's."""
    return AccessError("there is no such question", hint="the list of approvals names those that wait", absent=True)
