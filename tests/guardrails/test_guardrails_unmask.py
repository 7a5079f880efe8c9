"""Pseudonyms that are never turned back, and looking behind those that can be: a permission, and an entry."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import aibox
from aibox.cli.app import run
from aibox.errors import AccessError
from aibox.guardrails.guardrail import Guardrail
from aibox.guardrails.pseudonyms import Pseudonyms
from aibox.policy.policy import Policy
from aibox.policy.pseudonyms import PseudonymRules
from aibox.types import Scope

pytestmark = pytest.mark.anyio

EVA = Scope(tenant="acme", user="eva")
OFFICER = Scope(tenant="acme", user="officer")
TEXT = "My card is 4111 1111 1111 1111, write to eva@example.org. <PERSON_482139> is what I typed."
FOR_GOOD = Policy.read({"checks": {"pii": {"input": "redact"}}, "pseudonyms": {"irreversible": ["CARD"]}})
ASKED = {"unmask": ["officer"]}
names = st.frozensets(st.sampled_from(["*", "CARD", "PERSON"]))
users = st.frozensets(st.sampled_from(["*", "eva", "officer"]))
rules = st.builds(PseudonymRules, irreversible=names, unmask=users)


@pytest.fixture
async def chain(tmp_path: Path) -> AsyncIterator[aibox.AuditChain]:
    async with aibox.AuditChain(tmp_path / "audit.db") as chain:
        yield chain


@given(rules, rules, st.sampled_from(["CARD", "PERSON", "EMAIL"]), st.sampled_from(["eva", "officer", "bob"]))
def test_a_join_only_restricts(a: PseudonymRules, b: PseudonymRules, type_: str, user: str) -> None:
    """What either level calls irreversible is, and only whom both name may unmask; order changes nothing."""
    both = a & b
    assert both.reversible(type_) == (a.reversible(type_) and b.reversible(type_))
    assert both.may_unmask(user) == (a.may_unmask(user) and b.may_unmask(user))
    assert both == b & a
    assert both & a == both


async def test_what_is_irreversible_is_kept_nowhere(tmp_path: Path) -> None:
    """The card is the same token whenever it comes up, and nobody gets it back; the rest is as it was."""
    vault = tmp_path / "vault.db"
    pseudonyms = Pseudonyms(vault, key=bytes(range(32)))
    guardrail = Guardrail(FOR_GOOD, pseudonyms=pseudonyms)
    shown = (await guardrail.check(TEXT, scope=EVA)).text
    again = (await guardrail.check("Card 4111-1111-1111-1111?", scope=OFFICER)).text
    [token] = re.findall(r"<CARD_\d{8}zz>", shown)
    assert token in again
    back = await guardrail.restore(shown, scope=EVA)
    assert back == TEXT.replace("4111 1111 1111 1111", "[withheld card number]")
    assert await pseudonyms.erase(scope=EVA) == 2
    await pseudonyms.close()
    assert b"4111" not in vault.read_bytes()


async def test_another_tenants_token_of_the_same_value_is_another() -> None:
    """Tokens that are not kept tell no tenant what another one holds."""
    guardrail = Guardrail(FOR_GOOD)
    there = Scope(tenant="rival", user="eva")
    shown = [(await guardrail.check(TEXT, scope=scope)).text for scope in (EVA, there)]
    assert len({re.findall(r"<CARD_\w+>", text)[0] for text in shown}) == 2


async def test_unmasking_is_for_whom_the_policy_names_and_is_recorded_first(chain: aibox.AuditChain) -> None:
    """The officer reads what another user gave, after the entry; nobody else does, and their try is an entry too."""
    policy = Policy.read({"checks": {"pii": {"input": "redact"}}, "pseudonyms": ASKED})
    guardrail = Guardrail(policy)
    shown = (await guardrail.check("Write to eva@example.org.", scope=EVA)).text
    assert "[unknown" in await guardrail.restore(shown, scope=OFFICER)
    told = await guardrail.unmask(shown, scope=OFFICER, reason="court order 7", audit=chain)
    assert told == "Write to eva@example.org."
    for scope, reason in ((EVA, "curious"), (OFFICER, " "), (Scope(tenant="rival", user="bob"), "mine?")):
        with pytest.raises(AccessError):
            await guardrail.unmask(shown, scope=scope, reason=reason, audit=chain)
    elsewhere = Scope(tenant="rival", user="officer")
    assert "eva" not in await guardrail.unmask(shown, scope=elsewhere, reason="a try", audit=chain)
    found = [(e.kind, e.detail) async for e in chain.entries("acme")]
    assert [kind for kind, _ in found] == ["pseudonym.unmasked", "pseudonym.refused", "pseudonym.refused"]
    assert found[0][1]["reason"] == "court order 7"
    assert (found[0][1]["count"], found[0][1]["types"]) == (1, ["EMAIL"])


async def test_without_an_entry_nothing_is_told() -> None:
    """A chain that cannot write stops the unmasking before the vault is read."""

    class Full:
        async def append(self, kind: str, **_: object) -> None:
            raise aibox.StoreError("the disk is full")

    guardrail = Guardrail(Policy.read({"pseudonyms": ASKED}))
    with pytest.raises(aibox.StoreError):
        await guardrail.unmask("<EMAIL_123456>", scope=OFFICER, reason="why", audit=Full())  # type: ignore[arg-type]


def test_the_command_asks_the_policy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`aibox audit unmask` is 2 for who is not named, and answers who is."""
    policy = tmp_path / "own.toml"
    policy.write_text('[pseudonyms]\nunmask = ["officer"]\n', "utf-8")
    (tmp_path / "aibox.toml").write_text(f'policy = "own.toml"\nhome = "{tmp_path / "home"}"\n', "utf-8")
    ask = ["audit", "unmask", "<EMAIL_123456>", "--tenant", "acme", "--reason", "why", "--config"]
    assert run([*ask, str(tmp_path / "aibox.toml"), "--by", "eva"]) == 2
    assert run([*ask, str(tmp_path / "aibox.toml"), "--by", "officer"]) == 0
    assert "[unknown e-mail address]" in capsys.readouterr().out
