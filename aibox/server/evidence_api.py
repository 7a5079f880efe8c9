"""`/v1/audit` and `/v1/receipts`: the evidence of the caller's tenant, for those who may read it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from aibox.audit.chain import AuditChain
from aibox.audit.receipt import ReceiptEntry
from aibox.audit.record import leaf_hash
from aibox.audit.report import BrokenEvidenceError, Report
from aibox.errors import AccessError, ConfigError
from aibox.server.principal import Principal, Role
from aibox.server.route import READS_EVIDENCE, route
from aibox.server.shapes import evidence as shapes
from aibox.server.shapes.shape import Id

Number = Annotated[int, Field(ge=0, lt=2**53)]
EVERYBODY = (*READS_EVIDENCE, Role.USER, Role.SERVICE, Role.PLATFORM_ADMIN)


class AuditAPI:
    """The log of the caller's tenant."""

    def __init__(self, chain: AuditChain) -> None:
        self._chain = chain

    @route("GET", "/v1/audit", roles=READS_EVIDENCE)
    async def log(self, who: Principal, query: shapes.LogQuery) -> shapes.EntryList:
        """Entries of the log in order; without a `start` the last of them."""
        tenant, start = who.scope.tenant, query.start
        if start is None:
            start = max(0, await self._size(tenant) - query.limit)
        read = 0
        found: list[shapes.EntryShown] = []
        async for entry in self._chain.entries(tenant, start=start):
            if read == query.limit:
                return shapes.EntryList(data=found, next=entry.seq)
            read += 1
            if entry.open and entry.kind.startswith(query.kind):
                found.append(_entry(entry))
        return shapes.EntryList(data=found, next=None)

    @route("GET", "/v1/audit/checkpoint", roles=READS_EVIDENCE)
    async def checkpoint(self, who: Principal) -> shapes.CheckpointShown:
        """How far the log has come, signed."""
        try:
            return shapes.CheckpointShown(note=await self._chain.checkpoint(who.scope.tenant))
        except ConfigError:
            raise AccessError("there is no log yet", hint="it begins with the first entry", absent=True) from None

    @route("POST", "/v1/audit/verify", roles=READS_EVIDENCE)
    async def verify(self, who: Principal) -> shapes.Verified:
        """Hold the whole log of the tenant against itself, its keys and its mark."""
        return await verified(self._chain, who.scope.tenant)

    @route("GET", "/v1/audit/{seq}", roles=READS_EVIDENCE)
    async def show(self, who: Principal, seq: Number) -> shapes.EntryShown:
        """One entry."""
        async for entry in self._chain.entries(who.scope.tenant, start=seq):
            if entry.seq == seq and entry.open:
                return _entry(entry)
            break
        raise AccessError("there is no such entry, or it is past its retention", absent=True)

    async def _size(self, tenant: str) -> int:
        try:
            return int((await self._chain.checkpoint(tenant)).split("\n", 2)[1])
        except ConfigError:
            return 0  # there is no log of the tenant yet


class ReceiptsAPI:
    """Proofs of turns: for the one whose turn it was, and for those who read the tenant's evidence."""

    def __init__(self, chain: AuditChain) -> None:
        self._chain = chain

    @route("GET", "/v1/receipts/{turn}", roles=EVERYBODY)
    async def get(self, who: Principal, turn: Id) -> shapes.ReceiptShown:
        """The receipt of a turn that is over. It is verified offline, by `aibox verify`."""
        try:
            receipt = await self._chain.receipt(turn, scope=who.scope)
        except ConfigError:
            raise _no_turn() from None
        owner = receipt.entries[0].actor
        if not who.roles.intersection(READS_EVIDENCE) and (owner is None or owner["user"] != who.scope.user):
            raise _no_turn()
        return shapes.ReceiptShown.model_validate(receipt.as_dict())


async def verified(chain: AuditChain, tenant: str | None) -> shapes.Verified:
    """What a verification found: evidence that does not hold is an answer here, and not a failure of the server."""
    try:
        report: Report = await chain.verify(tenant)
    except BrokenEvidenceError as error:
        report = error.report
    return shapes.Verified.model_validate(report.as_dict())


def _no_turn() -> AccessError:
    return AccessError("there is no such turn, or it is past its retention", absent=True)


def _entry(entry: ReceiptEntry) -> shapes.EntryShown:
    return shapes.EntryShown(
        seq=entry.seq,
        ts_us=entry.ts_us,
        kind=entry.kind,
        turn=entry.turn,
        actor=entry.actor,
        detail=entry.detail,
        leaf=leaf_hash(entry.header).hex(),
    )
