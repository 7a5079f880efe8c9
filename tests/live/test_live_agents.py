"""The ways of an agent with a real model, in this process and served: it is small, and what is around it holds."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from front import REPLICAS, Front, front

import aibox
from aibox.agents.events import ModelAnswered, Subagent
from aibox.agents.secret import Secret
from aibox.agents.state import AgentState
from aibox.agents.subagents import SubagentSpec
from aibox.agents.workflows import DifyApp, RunWorkflow
from aibox.inference import demo_model
from aibox.policy.egress import EgressRules
from aibox.policy.policy import Policy
from aibox.types import Label, Scope

sys.path.append(str(Path(__file__).parent.parent / "agents"))
from dify import dify, flow

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.live,
    pytest.mark.loopback,
    pytest.mark.skipif(demo_model.find() is None, reason="the demo model is not installed: make setup"),
]

SCOPE = Scope(tenant="live", user="eva")
BOSS = Scope(tenant="live", user="boss")
SHORT = {"max_tokens": 48, "temperature": 0}


@pytest.fixture
async def router() -> AsyncIterator[aibox.Router]:
    router = aibox.Router(aibox.Embedded())
    yield router
    await router.close()


async def test_a_real_model_pauses_for_a_person_and_goes_on_in_another_agent(
    router: aibox.Router, tmp_path: Path
) -> None:
    """It writes the call; nothing runs before the yes; another state and agent go on, and it answers in the end."""
    paid: list[str] = []

    @aibox.tool(approve=True, side_effects=True)
    def pay(to: str) -> str:
        """Pay an invoice.

        Args:
            to: the company that is paid
        """
        paid.append(to)
        return f"paid {to}"

    def agent(state: AgentState) -> aibox.Agent:
        return aibox.Agent("You keep the books.", router=router, tools=[pay], state=state, settings=SHORT)

    first = AgentState(tmp_path / "agents.db", key=bytes(32))
    reply = await agent(first).run("Pay the company Acme.", scope=SCOPE, tool_choice="pay")
    await first.close()
    assert (len(reply.pending), paid) == (1, [])
    second = AgentState(tmp_path / "agents.db", key=bytes(32))
    (asked,) = await second.approvals.pending(scope=BOSS)
    await second.approvals.approve(asked.id, digest=asked.digest, scope=BOSS)
    done = await agent(second).resume(reply.run, scope=SCOPE)
    await second.close()
    assert paid == [asked.arguments["to"]]
    assert done.text.strip()
    assert done.tool_calls[0].text == f"paid {paid[0]}"


async def test_a_real_model_runs_a_workflow(router: aibox.Router) -> None:
    """Its arguments fit the app, the server gets them and holds to its contract, and the answer comes after."""
    async with dify() as server:
        server.answer = [flow("workflow_finished", status="succeeded", outputs={"text": "Bonjour"})]
        key = Secret("dify", read=lambda _: server.key)
        app = DifyApp(
            name="french", url=server.url, key=key, description="Translates.", inputs={"text": "an English word"}
        )
        agent = aibox.Agent(
            "You translate with tools.",
            router=router,
            tools=[RunWorkflow([app])],
            policy=Policy(egress=EgressRules(hosts=frozenset({"127.0.0.1"}), ceiling=Label.parse("internal"))),
            settings=SHORT,
        )
        reply = await agent.run("Translate the word hello.", scope=SCOPE, tool_choice="run_workflow")
        assert reply.tool_calls[0].text == "Bonjour"
        assert set(server.requests[0][1]["inputs"]) <= {"text"}
    assert reply.text.strip()


async def test_a_real_model_delegates(router: aibox.Router) -> None:
    """A child gets the prompt that the model wrote and answers by a call of its own; its parent answers after it."""
    clerk = SubagentSpec.read("---\nname: clerk\ndescription: Answers.\n---\nAnswer shortly.", source="clerk.md")
    agent = aibox.Agent("You delegate.", router=router, subagents=[clerk], settings={**SHORT, "max_tokens": 160})
    events = [e async for e in agent.stream("What is 2 and 2?", scope=SCOPE, tool_choice="delegate")]
    reply = events[-1]
    assert isinstance(reply, aibox.Reply)
    assert (reply.tool_calls[-1].name, reply.tool_calls[-1].ok) == ("delegate", True)
    inside = [e.event for e in events if isinstance(e, Subagent)]
    assert any(isinstance(e, ModelAnswered) for e in inside)
    assert reply.text.strip()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, postgres_copy: Callable[[], str]) -> Iterator[Front]:
    """One server, or two replicas, each with the real model in its process."""
    tables = '[[backends]]\nkind = "embedded"\n'
    desk = f'def made(box):\n    return box.agent(name="small", settings={SHORT!r})\n'
    with front(tmp_path_factory.mktemp("agents"), tables, database=postgres_copy, desk=desk) as made:
        yield made


async def test_a_real_agent_is_a_model_for_the_official_client(served: Front) -> None:
    """Listed, whole, and streamed as it speaks, with the same beside it that every agent's answer has."""
    client = openai.AsyncOpenAI(base_url=served.url + "/v1", api_key=await served.key("live"), max_retries=0)
    for _ in range(REPLICAS):
        assert "agent:small" in [model.id async for model in await client.models.list()]
        asked: Any = {"model": "agent:small", "messages": [{"role": "user", "content": "Say hello."}]}
        whole = await client.chat.completions.create(**asked)
        assert whole.choices[0].message.content
        chunks = [c async for c in await client.chat.completions.create(**asked, stream=True)]
        said = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert said
        assert chunks[-1].model_extra is not None
        assert chunks[-1].model_extra["aibox"]["pending"] == []
    await client.close()
    kinds = [entry.kind for entry in await served.entries("live")]
    assert kinds.count("turn.sealed") == 2 * REPLICAS


async def test_a_real_agents_conversation_goes_on_over_http(served: Front) -> None:
    """Each turn of a session has those before it in its prompt, of whichever server; it is told as events too."""
    async with aibox.Client(served.url, await served.key("talk")) as client:
        read = []
        for _ in range(REPLICAS):
            read.append((await client.chat("Say hello.", agent="small", session="s1")).usage.input_tokens)
            events = [event async for event in client.stream("And again.", agent="small", session="s1")]
            assert "".join(event.text for event in events if event.type == "text") == events[-1].text != ""
            read.append(events[-1].usage.input_tokens)
    assert read == sorted({*read})
