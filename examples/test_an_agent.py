"""An agent under test: run it with `pytest examples/test_an_agent.py`. See docs/evals.md."""

import pytest

import aibox
from aibox.evals.case import Case, Dataset
from aibox.evals.faults import FaultyTool
from aibox.evals.trajectory import contains
from aibox.testing import ScriptedBackend, call

CASES = Dataset.of(
    [
        {"id": name, "input": f"What does {name} owe?", "expected": f"{sum_:.2f}"}
        for name, sum_ in (("acme", 1240.5), ("globex", 310))
    ]
)


@aibox.tool
def owed(customer: str) -> str:
    """Open invoices of a customer, in EUR."""
    return {"acme": "1240.50", "globex": "310.00"}[customer]


def model(customer: str) -> ScriptedBackend:
    return ScriptedBackend(call("owed", {"customer": customer}), lambda r: f"It is {r.messages[-1]['content']} EUR.")


@pytest.mark.parametrize("case", CASES.params())
async def test_each_case(agent_run, case: Case) -> None:
    """The amount is looked up, not guessed, and stays in the house."""
    run = await agent_run(agent_run.agent("Books.", router=model(case.id), tools=[owed]), case.input)
    run.called("owed", customer=contains(case.id)).times(1).succeeded()
    run.no_egress()
    run.audit.verifies()
    assert case.expected in run.text


@pytest.mark.agent_eval(repeats=14, min_pass=0.8)
async def test_it_is_reliable(agent_run) -> None:
    """Fourteen of fourteen prove 0.8 with 95% confidence."""
    run = await agent_run(agent_run.agent("Books.", router=model("acme"), tools=[owed]), "What does acme owe?")
    assert "1240.50" in run.text


async def test_a_broken_tool_is_told(agent_run) -> None:
    """When the books cannot be read the model hears why, and the turn goes on."""
    tool = FaultyTool(owed, which={1}, error=OSError("the disk is gone"))
    run = await agent_run(agent_run.agent("Books.", router=model("acme"), tools=[tool]), "What does acme owe?")
    assert "the disk is gone" in run.calls[0].result
