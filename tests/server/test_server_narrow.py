"""A tenant's policy that is written while a box is open: at once for what begins, and not for what has begun."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import aibox
from aibox.agents.subagents import SubagentSpec
from aibox.box import Box
from aibox.errors import AccessError, ConfigError, LimitError
from aibox.settings import Settings, TenantSettings
from aibox.testing import ScriptedBackend, call
from aibox.types import Scope

pytestmark = pytest.mark.anyio

EVA, TOM = Scope(tenant="acme", user="eva"), Scope(tenant="rival", user="tom")
MAIL = "eva@example.org"
NO_MAIL = aibox.Policy.read({"checks": {"pii": {"input": "block"}}})
NO_TOOL = aibox.Policy.read({"tools": {"deny": ["look"]}})


@pytest.fixture
async def box(tmp_path: Path) -> AsyncIterator[Box]:
    (tmp_path / "p.toml").write_text("version = 1\n")
    async with Box(Settings(home=tmp_path / "home", policy=str(tmp_path / "p.toml"))) as made:
        made.__dict__["router"] = routed(made, *["Fine."] * 50)
        yield made


def routed(box: Box, *answers: Any) -> aibox.Router:
    model = ScriptedBackend(*answers, name="m")
    return aibox.Router(model, policy=box.policy, audit=box.audit, tenant_policies=box.tenant_policies)


async def blocked(agent: aibox.Agent, scope: Scope) -> bool:
    return (await agent.run(f"I am at {MAIL}", scope=scope)).blocked


@pytest.mark.parametrize("own", [None, aibox.Policy(name="the agent's")], ids=["plain", "with a policy of its own"])
async def test_it_holds_for_agents_that_were_made_before(box: Box, own: aibox.Policy | None) -> None:
    """For that tenant, from the next turn on, and no more when it is taken away; another tenant is not touched."""
    agent = box.agent(policy=own) if own is not None else box.agent()
    assert not await blocked(agent, EVA)
    await box.narrow("acme", {"own": NO_MAIL})
    assert await blocked(agent, EVA)
    assert not await blocked(agent, TOM)
    assert box.rules("acme").digest == (box.policy & NO_MAIL).digest
    await box.narrow("acme", {})
    assert not await blocked(agent, EVA)
    assert box.rules("acme").digest == box.policy.digest


@pytest.mark.parametrize("before", [{}, {"own": aibox.Policy.read({"tools": {"deny": ["another"]}})}])
async def test_a_turn_ends_under_the_policy_that_it_began_with(box: Box, before: dict[str, aibox.Policy]) -> None:
    """Checks, tools and the router's rules are those of its beginning, in its subagents too; the next has the new."""
    looked = 0
    later = NO_TOOL & aibox.Policy.read({"budgets": {"tenant": {"tokens_per_day": 0}}})

    @aibox.tool
    async def look() -> str:
        """Look."""
        nonlocal looked
        looked += 1
        if looked == 1:
            await box.narrow("acme", {"own": later})
        return "seen"

    await box.narrow("acme", before)
    told = {"description": "x", "subagent_type": "reader", "prompt": "look"}
    answers = call("look", {}), call("delegate", told), call("look", {}), "The child's.", call("look", {}), "Done."
    box.__dict__["router"] = routed(box, *answers, "never")
    spec = "---\nname: reader\ndescription: Reads.\ntools: look\n---\nYou read."
    agent = box.agent(tools=[look], subagents=[SubagentSpec.read(spec, source="reader.md")])
    assert (await agent.run("go", scope=EVA)).text == "Done."
    assert looked == 3
    with pytest.raises(LimitError, match="budget"):
        await agent.run("go", scope=EVA)
    with pytest.raises(LimitError, match="budget"):
        await box.router.complete("go", scope=EVA)
    assert not (await agent.run("go", scope=TOM)).blocked


async def test_a_guardrail_in_use_stays_as_it_is(box: Box) -> None:
    """What a call holds goes on as it began; whoever asks anew gets what is written now."""
    held = box.guardrail.for_tenant("acme")
    await box.narrow("acme", {"own": NO_MAIL})
    assert not (await held.check(MAIL, scope=EVA)).blocked
    assert (await box.guardrail.check(MAIL, scope=EVA)).blocked
    later = box.guardrail.for_tenant("acme")
    await box.narrow("acme", {})
    assert (await later.check(MAIL, scope=EVA)).blocked
    assert not (await box.guardrail.check(MAIL, scope=EVA)).blocked


async def test_it_is_joined_with_what_the_operators_file_says(tmp_path: Path) -> None:
    """Neither level undoes the other, and what is everybody's stays as the platform has it."""
    (tmp_path / "p.toml").write_text("[sandbox]\nmemory_mib = 2048\n")
    (tmp_path / "t.toml").write_text("[tools]\ndeny = ['a']\n[sandbox]\nmemory_mib = 2048\n")
    tenants = {"acme": TenantSettings(policy=str(tmp_path / "t.toml"))}
    async with Box(Settings(home=tmp_path / "home", policy=str(tmp_path / "p.toml"), tenants=tenants)) as box:
        written = {
            who: aibox.Policy.read({"tools": {"deny": [name]}}) for who, name in (("own", "b"), ("operator", "c"))
        }
        await box.narrow("acme", written)
        assert box.rules("acme").tools.deny == {"a", "b", "c"}
        assert box.rules("acme").sandbox == box.policy.sandbox
        await box.narrow("acme", {})
        assert box.rules("acme").tools.deny == {"a"}


async def test_what_does_not_hold_changes_nothing(box: Box) -> None:
    """A check that is not there is refused, and what was written before holds."""
    await box.narrow("acme", {"own": NO_MAIL})
    with pytest.raises(ConfigError, match="checks that are not there: horoscope"):
        await box.narrow("acme", {"own": aibox.Policy.read({"checks": {"horoscope": {"input": "block"}}})})
    assert (await box.guardrail.check(MAIL, scope=EVA)).blocked


async def test_where_nobody_knows_what_holds_nothing_is_done(box: Box) -> None:
    """No model is asked and no tool called for that tenant, whoever was made before; others go on; `put` ends it."""
    agent = box.agent()
    await box.narrow("acme", "it cannot be read")
    with pytest.raises(LimitError):
        await agent.run("go", scope=EVA)
    assert not box.rules("acme").tools.allows("look")
    assert (await agent.run("go", scope=TOM)).text == "Fine."
    await box.narrow("acme", {"own": NO_TOOL})
    assert (await agent.run("go", scope=EVA)).text == "Fine."


async def test_what_was_written_outlives_a_reload(box: Box, tmp_path: Path) -> None:
    """Joined with the new files; what does not hold under them shuts its tenant and stops nobody's reload."""
    await box.narrow("acme", {"own": NO_MAIL})
    await box.narrow("rival", {"own": aibox.Policy.read({"checks": {"content": {"input": "block"}}})})
    (tmp_path / "p.toml").write_text("[limits]\nmodel_calls = 3\n")
    await box.reload(box.settings)
    assert (box.rules("acme").limits.model_calls, box.levels.shut) == (3, {})
    assert (await box.guardrail.check(MAIL, scope=EVA)).blocked
    # As after an upgrade that took a check away.
    box.levels.written["rival"]["own"] = aibox.Policy.read({"checks": {"gone": {"input": "block"}}})
    await box.reload(box.settings)
    assert {tenant: "gone" in why for tenant, why in box.levels.shut.items()} == {"rival": True}
    with pytest.raises(LimitError):
        await box.router.complete("go", scope=TOM)
    assert (await box.router.complete("go", scope=EVA)).text == "Fine."


async def test_a_run_that_waits_goes_on_under_the_policy_that_was_shown_alone(box: Box) -> None:
    """Whoever agreed saw what held then: under another it is refused, and under the same again it goes on."""
    sent: list[str] = []

    @aibox.tool(approve=True, side_effects=True)
    def send(to: str) -> str:
        """Send."""
        sent.append(to)
        return "sent"

    box.__dict__["router"] = routed(box, call("send", {"to": "maria"}), "Done.")
    agent = box.agent(tools=[send])
    paused = await agent.run("go", scope=EVA)
    (question,) = paused.pending
    await box.state.approvals.approve(question.id, digest=question.digest, scope=EVA)
    await box.narrow("acme", {"own": NO_MAIL})
    assert paused.run is not None
    with pytest.raises(AccessError, match="another version of this one"):
        await agent.resume(paused.run, scope=EVA)
    assert sent == []
    await box.narrow("acme", {})
    assert (await agent.resume(paused.run, scope=EVA)).text == "Done."
    assert sent == ["maria"]
