"""A person who is erased from the evidence is erased from everything that the same box keeps."""

from __future__ import annotations

from pathlib import Path

import pytest

import aibox
from aibox.box import Box
from aibox.chat import Usage
from aibox.cli.app import run
from aibox.inference.accounts import Call
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
