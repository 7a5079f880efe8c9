"""External models that need a yes: asked before anything leaves, for the run, and bound to what was shown."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import aibox
from aibox.agents.events import ApprovalAsked
from aibox.agents.state import AgentState
from aibox.agents.subagents import SubagentSpec
from aibox.errors import AccessError, ApprovalError, BackendError, EgressError
from aibox.policy.egress import EgressRules
from aibox.policy.policy import Policy
from aibox.policy.tools import ToolRules
from aibox.testing import ScriptedBackend, call
from aibox.types import Label, Scope

pytestmark = pytest.mark.anyio

KEY = bytes(range(32))
BOSS = Scope(tenant="acme", user="boss")
OUT = "out/out"


def rules(**more: Any) -> Policy:
    door: dict[str, Any] = {"models": {OUT}, "approve": {OUT}, "ceiling": Label.parse("confidential")}
    return Policy(egress=EgressRules(**{**door, **more}))


@pytest.fixture
async def chain(tmp_path: Path) -> AsyncIterator[aibox.AuditChain]:
    async with aibox.AuditChain(tmp_path / "audit.db") as chain:
        yield chain


@pytest.fixture
async def state(tmp_path: Path, chain: aibox.AuditChain) -> AsyncIterator[AgentState]:
    state = AgentState(tmp_path / "agents.db", key=KEY, audit=chain)
    yield state
    await state.close()


@aibox.tool(label="confidential/PHI")
def chart() -> str:
    """Read a chart."""
    return "120/80"


@aibox.tool
def clock() -> str:
    """Read the clock."""
    return "noon"


class Desk:
    """An agent whose model is external, and everything around it real."""

    def __init__(self, chain: aibox.AuditChain, state: AgentState | None) -> None:
        self.chain, self.state = chain, state
        self.outside: list[ScriptedBackend] = []

    def agent(self, *answers: Any, policy: Policy | None = None, **options: Any) -> aibox.Agent:
        outside = ScriptedBackend(*answers, name="out", external=True)
        self.outside.append(outside)
        inside = ScriptedBackend(*options.pop("inside", ()), name="in")
        policy = policy or rules()
        fallbacks = options.pop("fallbacks", None)
        router = aibox.Router(inside, outside, policy=policy, audit=self.chain, fallbacks=fallbacks)
        parts = {"model": OUT, "tools": [chart, clock], "state": self.state, "audit": self.chain, "policy": policy}
        return aibox.Agent("Books.", router=router, **{**parts, **options})

    async def details(self, kind: str) -> list[Mapping[str, Any]]:
        return [entry.detail async for entry in self.chain.entries("acme") if entry.kind == kind]

    async def yes(self, reply: aibox.Reply) -> None:
        assert self.state is not None
        (asked,) = reply.pending
        await self.state.approvals.approve(asked.id, digest=asked.digest, scope=BOSS)


@pytest.fixture
def desk(chain: aibox.AuditChain, state: AgentState) -> Desk:
    return Desk(chain, state)


@pytest.mark.parametrize("stream", [False, True])
async def test_nothing_leaves_before_the_yes(stream: bool, desk: Desk, scope: Scope) -> None:
    """The run pauses with the model, the host and the words that would leave; after a yes they do, once for the run."""
    agent = desk.agent()
    if stream:
        events = [event async for event in agent.stream("Sum it up.", scope=scope)]
        assert [event.tool for event in events if isinstance(event, ApprovalAsked)] == ["model out/out"]
        reply = events[-1]
        assert isinstance(reply, aibox.Reply)
    else:
        reply = await agent.run("Sum it up.", scope=scope)
    (asked,) = reply.pending
    assert (asked.tool, asked.arguments["model"], asked.arguments["host"]) == ("model out/out", OUT, "out")
    assert asked.arguments["messages"] == [{"role": "user", "content": "Sum it up."}]
    assert not desk.outside[0].requests
    assert [detail["reason"] for detail in await desk.details("egress.denied")] == [
        "the policy lets text out to out/out when a person has agreed, and nobody has"
    ]
    later = desk.agent(call("clock", {}), "Done.")
    with pytest.raises(AccessError, match="still waits"):
        await later.resume(reply.run, scope=scope)
    await desk.yes(reply)
    done = await later.resume(reply.run, scope=scope)
    assert done.text == "Done."
    desk.outside[1].assert_done()
    assert [detail["approval"] for detail in await desk.details("egress.allowed")] == [asked.id, asked.id]
    assert done.receipt is not None
    with pytest.raises(AccessError):
        await later.resume(reply.run, scope=scope)


async def test_a_no_ends_the_turn(desk: Desk, scope: Scope) -> None:
    """Nothing leaves, the reply says who and why, and the run is over."""
    reply = await desk.agent().run("Sum it up.", scope=scope)
    assert desk.state is not None
    await desk.state.approvals.reject(reply.pending[0].id, "not this one", scope=BOSS)
    done = await desk.agent().resume(reply.run, scope=scope)
    assert "said no to sending this to out/out: not this one" in done.stopped
    assert not desk.outside[-1].requests
    with pytest.raises(AccessError):
        await desk.agent().resume(reply.run, scope=scope)


async def test_a_yes_is_to_a_label(desk: Desk, scope: Scope) -> None:
    """When the turn reads something more secret afterwards, it asks again, under that label."""
    first = await desk.agent(policy=rules(ceiling=Label.parse("confidential/PHI"))).run("Sum it up.", scope=scope)
    await desk.yes(first)
    policy = rules(ceiling=Label.parse("confidential/PHI"))
    second = await desk.agent(call("chart", {}), policy=policy).resume(first.run, scope=scope)
    assert str(second.pending[0].label) == "confidential/PHI"
    assert len(desk.outside[-1].requests) == 1
    await desk.yes(second)
    done = await desk.agent("It is normal.", policy=policy).resume(first.run, scope=scope)
    assert done.text == "It is normal."


async def test_a_yes_is_to_a_policy_and_to_an_agent(desk: Desk, scope: Scope) -> None:
    """Another policy or other instructions do not go on with it, and the door takes no yes to another model."""
    reply = await desk.agent().run("Sum it up.", scope=scope)
    await desk.yes(reply)
    other = rules(models={OUT, "out/else"})
    with pytest.raises(AccessError, match="another"):
        await desk.agent("x", policy=other).resume(reply.run, scope=scope)
    # A door whose rules changed under an agent that is the same asks anew.
    same = desk.agent("x")
    agent = aibox.Agent(
        "Books.",
        router=aibox.Router(ScriptedBackend("x", name="out", external=True), policy=other & rules(pseudonymise=False),
                            audit=desk.chain, tenant_policies={"acme": Policy(tools=ToolRules(deny=frozenset({"y"})),
                            egress=rules().egress)}),
        model=OUT, tools=[chart, clock], state=desk.state, audit=desk.chain, policy=rules(),
    )  # fmt: skip
    assert agent.version == same.version
    again = await agent.resume(reply.run, scope=scope)
    assert again.pending


async def test_it_goes_on_in_another_process(desk: Desk, scope: Scope, tmp_path: Path) -> None:
    """The yes and the run are on the disk: the process that goes on is not the one that asked."""
    reply = await desk.agent().run("Sum it up.", scope=scope)
    await desk.yes(reply)
    assert desk.state is not None
    await desk.state.close()
    await desk.chain.close()
    program = """
        import asyncio, sys
        sys.path.insert(0, sys.argv[1])
        import aibox, test_agents_agreements as here
        from aibox.agents.state import AgentState
        from aibox.types import Scope

        async def main():
            async with aibox.AuditChain(sys.argv[2] + "/audit.db") as chain:
                desk = here.Desk(chain, AgentState(sys.argv[2] + "/agents.db", key=here.KEY, audit=chain))
                scope = Scope(tenant="acme", user="eva", agent="books", session="s1")
                print((await desk.agent("Done elsewhere.").resume(sys.argv[3], scope=scope)).text)
                await desk.state.close()

        asyncio.run(main())
    """
    here = str(Path(__file__).parent)
    words = [sys.executable, "-c", textwrap.dedent(program), here, str(tmp_path), reply.run]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "Done elsewhere."


async def test_a_local_model_that_fails_leads_to_a_question_and_not_outside(desk: Desk, scope: Scope) -> None:
    """A fallback that needs a yes is asked about; without one that can ask, the refusal is what comes out."""
    broken = BackendError("down", retryable=True, status=None)
    options: dict[str, Any] = {"model": "in/in", "fallbacks": {"in/in": [OUT]}}
    reply = await desk.agent(inside=[broken] * 4, **options).run("Sum it up.", scope=scope)
    assert [asked.tool for asked in reply.pending] == ["model out/out"]
    await desk.yes(reply)
    done = await desk.agent("Done.", inside=[broken] * 4, **options).resume(reply.run, scope=scope)
    assert done.text == "Done."


async def test_a_subagents_model_is_asked_about_in_its_parents_run(desk: Desk, scope: Scope) -> None:
    """The question is the run's, and after the yes the child goes on where it stood."""
    spec = SubagentSpec.read(f"---\nname: s\ndescription: x\nmodel: {OUT}\n---\nYou.", source="s.md")
    asks = call("delegate", {"description": "d", "subagent_type": "s", "prompt": "Look."})
    options: dict[str, Any] = {"model": "in/in", "subagents": [spec], "tools": [clock]}
    reply = await desk.agent(inside=[asks], **options).run("go", scope=scope)
    assert [asked.tool for asked in reply.pending] == ["model out/out"]
    await desk.yes(reply)
    done = await desk.agent("seen", inside=["Done."], **options).resume(reply.run, scope=scope)
    assert (done.text, done.tool_calls[0].text) == ("Done.", "seen")


class Person:
    """Answers at once."""

    def __init__(self, answer: bool) -> None:
        self.answer, self.asked = answer, 0

    async def approve(self, tool: str, arguments: Mapping[str, Any], *, scope: Scope, label: Label) -> bool:
        self.asked += 1
        return self.answer


async def test_who_answers_at_once_is_asked_once(chain: aibox.AuditChain, scope: Scope) -> None:
    """An approver's yes holds for the turn, its no ends it; where nobody can be asked, it is the door's refusal."""
    desk = Desk(chain, None)
    yes, no = Person(True), Person(False)
    reply = await desk.agent(call("clock", {}), "Noon.", approver=yes).run("When?", scope=scope)
    assert (reply.text, yes.asked) == ("Noon.", 1)
    assert "said no" in (await desk.agent(approver=no).run("When?", scope=scope)).stopped
    with pytest.raises(ApprovalError, match="when a person has agreed"):
        await desk.agent().run("When?", scope=scope)


async def test_a_call_without_an_agent_is_refused(desk: Desk, scope: Scope) -> None:
    """Who asks the router directly has nobody who could agree."""
    router = desk.agent("x").parts.router
    with pytest.raises(EgressError, match="an agent with a state asks"):
        await router.complete(aibox_request(), scope=scope)


async def test_the_policy_of_an_agent_narrows_the_door_for_its_models(desk: Desk, scope: Scope) -> None:
    """What the box lets out an agent need not: its own door is shut, or lower, or asks."""
    wide = rules(approve=frozenset())
    assert (await desk.agent("out", policy=wide).run("go", scope=scope)).text == "out"
    outside = ScriptedBackend("out", name="out", external=True)
    router = aibox.Router(outside, policy=wide, audit=desk.chain)
    with pytest.raises(EgressError, match="does not open the door"):
        await aibox.Agent("x", router=router, model=OUT, policy=Policy()).run("go", scope=scope)
    lower = rules(approve=frozenset(), ceiling=Label.parse("public"))
    with pytest.raises(EgressError, match="public at most"):
        await aibox.Agent("x", router=router, model=OUT, policy=lower).run("go", scope=scope)
    with pytest.raises(ApprovalError):
        await aibox.Agent("x", router=router, model=OUT, policy=rules()).run("go", scope=scope)
    assert not outside.requests


def aibox_request() -> Any:
    from aibox.chat import ChatRequest

    return ChatRequest({"model": OUT, "messages": [{"role": "user", "content": "x"}]})
