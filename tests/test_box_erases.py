"""A person who is erased from the evidence is erased from everything that the same box keeps."""

from __future__ import annotations

from pathlib import Path

import pytest

import aibox
from aibox.box import Box
from aibox.chat import Usage
from aibox.cli.app import run
from aibox.errors import AccessError
from aibox.inference.accounts import Call
from aibox.server import stores
from aibox.server.api_keys import ApiKeys
from aibox.settings import Settings
from aibox.testing import ScriptedBackend
from aibox.types import Scope

pytestmark = pytest.mark.anyio
WORDS = {"eva": "eva's allergy is to peanuts", "ben": "ben's hobby is chess"}


async def told(box: Box, user: str) -> list[str]:
    """Put something of a person into each store; the pseudonyms of an address of theirs."""
    scope = Scope(tenant="acme", user=user, agent="default", session="s")
    await aibox.Agent("x", router=ScriptedBackend("noted"), state=box.state, audit=box.audit).run(
        WORDS[user], scope=scope
    )
    await box.memory.remember(WORDS[user], scope=scope)
    box.accounts.settle(Call(scope=scope, model="m", backend="b", external=False, usage=Usage(3, 4), total_s=1.0))
    return await box.pseudonyms.tokens([("EMAIL", f"{user}@acme.example")], scope=scope)


async def held(box: Box, user: str, token: str) -> dict[str, bool]:
    """Which store still has something of them."""
    scope = Scope(tenant="acme", user=user, agent="default", session="s")
    return {
        "memory": bool(await box.memory.list(scope=scope)),
        "usage": user in {one.user for one in await box.accounts.shares("acme")},
        "vectors": bool(await box.memory.recall("peanuts and chess", scope=scope)),
        "conversations": bool(await box.state.sessions.list(scope=scope)),
        "pseudonyms": "@" in await box.pseudonyms.restore(token, scope=scope),
        "entries": any([e async for e in box.audit.entries("acme") if e.actor and e.actor["user"] == user]),
    }


@pytest.mark.parametrize("opened", [True, False], ids=["in the box that told", "in a box that opened nothing yet"])
async def test_an_erasure_takes_memory_vectors_transcripts_and_pseudonyms_along(tmp_path: Path, opened: bool) -> None:
    """Everything of one person is gone, of another nothing; the certificate says how much went where, and verifies."""
    async with aibox.open(tmp_path) as box:
        tokens = {user: (await told(box, user))[0] for user in WORDS}
        for user in WORDS:
            assert set((await held(box, user, tokens[user])).values()) == {True}
        if opened:
            certificate = await box.audit.erase(scope=Scope(tenant="acme", user="dpo"), subject="eva", reason="art. 17")
    if not opened:
        async with aibox.open(tmp_path) as box:
            certificate = await box.audit.erase(scope=Scope(tenant="acme", user="dpo"), subject="eva", reason="art. 17")
    async with aibox.open(tmp_path) as box:
        assert set((await held(box, "eva", tokens["eva"])).values()) == {False}
        assert set((await held(box, "ben", tokens["ben"])).values()) == {True}
    certificate.verify((tmp_path / "keys" / "log.pub").read_text())
    assert certificate.entries[0].detail["stores"] == {
        "pseudonyms": 1,
        "conversations": 1,
        "usage": 3,
        "memory": 1,
    }
    assert aibox.verify(tmp_path / "audit.db").erased > 0
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or b"peanuts" not in file.read_bytes(), file


async def test_a_store_that_fails_leaves_no_certificate(tmp_path: Path) -> None:
    """Nothing is reported as erased that was not: the log has no tombstone, and the erasure can be done again."""

    class Broken:
        async def erase(self, *, scope: Scope, subject: str | None = None) -> int:
            raise aibox.errors.StoreError("the disk is away")

    who = Scope(tenant="acme", user="dpo")
    async with aibox.open(tmp_path) as box:
        await told(box, "eva")
        box.audit.register("memory", Broken())
        with pytest.raises(aibox.errors.StoreError, match="the disk is away"):
            await box.audit.erase(scope=who, subject="eva", reason="art. 17")
        assert not [entry async for entry in box.audit.entries("acme") if entry.kind == "subject.erased"]
        box.audit.register("memory", box.memory)
        again = await box.audit.erase(scope=who, subject="eva", reason="art. 17")
    assert again.entries[0].detail["stores"]["memory"] == 1


async def _tell(home: Path) -> None:
    async with aibox.open(home) as box:
        await told(box, "eva")


def test_the_command_says_what_went_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`aibox audit erase` prints each store with what it lost."""
    monkeypatch.setenv("AIBOX_HOME", str(tmp_path))
    aibox.run_sync(_tell(tmp_path))
    assert run(["audit", "erase", "eva", "--tenant", "acme", "--reason", "art. 17"]) == 0
    said = capsys.readouterr().out
    assert all(part in said for part in ("1 from pseudonyms", "1 from conversations", "3 from usage", "1 from memory"))


async def test_a_tenant_goes_from_a_database_that_servers_share(postgres_url: str, tmp_path: Path) -> None:
    """Once and for all, from every store that a server has, under row-level security; another tenant keeps its own."""
    keys = ApiKeys(postgres_url)
    async with Box(Settings(home=tmp_path / "home", database=postgres_url, policy="permissive")) as box:
        kept = stores.keep(box)
        box.audit.register("keys", keys)

        async def left(tenant: str) -> list[int]:
            scope = Scope(tenant=tenant, user="eva", agent="default", session="s")
            found = (
                await box.memory.list(scope=scope), await box.memory.documents(scope=scope),
                await box.state.sessions.list(scope=scope), await keys.list(tenant),
                await kept.policies.newest(tenant), await kept.people.users(tenant),
            )  # fmt: skip
            return [len(one) for one in found]

        for tenant in ("acme", "rival"):
            scope = Scope(tenant=tenant, user="eva", agent="default", session="s")
            await aibox.Agent("x", router=ScriptedBackend("noted"), state=box.state, audit=box.audit).run(
                "hi", scope=scope
            )
            await box.memory.remember("eva likes tea", scope=scope)
            await box.memory.add(b"# Tea\n\nis served at four", name="tea.md", scope=scope)
            await box.pseudonyms.tokens([("EMAIL", "eva@acme.example")], scope=scope)
            await keys.create(scope=scope, scopes=["inference"])
            await kept.policies.write(tenant, "own", text="{}", digest="d", author="eva", match=None)
            await kept.people.put(tenant, "tom", state="suspended")
            assert await left(tenant) == [1] * 6
        for state in ("suspended", "deleted"):
            await kept.people.put("acme", state=state)  # type: ignore[arg-type]
        operator = Scope(tenant="acme", user="aibox")
        hold = await box.audit.hold(scope=operator, subject="eva", reason="a case")
        with pytest.raises(AccessError, match="legal hold"):
            await box.audit.empty(scope=operator)
        await box.audit.release(hold.seq, scope=operator, reason="over")
        for _ in range(2):
            await box.audit.empty(scope=operator)
            assert (await left("acme"), await left("rival")) == ([0] * 6, [1] * 6)
        first, again = [e.detail["stores"] async for e in box.audit.entries("acme") if e.kind == "tenant.emptied"]
        assert first == {
            "pseudonyms": 1, "conversations": 1, "usage": 0, "memory": 2, "people": 1, "answers": 0, "policies": 1,
            "keys": 1,
        }  # fmt: skip
        assert not any(again.values())
        assert (await box.audit.verify()).ok
        await box.audit.may_empty("never-heard-of")
    await keys.close()
