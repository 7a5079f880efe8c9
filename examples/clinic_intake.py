"""A clinic's intake: what a tool returns is PHI, so that the turn is, and no model outside can be asked about it."""

import asyncio

import aibox
from aibox.policy.egress import EgressRules
from aibox.testing import ScriptedBackend, call

POLICY = aibox.Policy.profile("balanced").model_copy(
    update={"egress": EgressRules(models=frozenset({"*"}), ceiling=aibox.Label.parse("internal"))}
)


@aibox.tool(label="confidential/PHI")
def chart(patient: str) -> str:
    """Read a patient's chart.

    Args:
        patient: the number on the wristband
    """
    return f"patient {patient}: penicillin allergy"


async def ask(model: str) -> None:
    script = [call("chart", {"patient": "17"}), "Patient 17 is allergic to penicillin."]
    inside = ScriptedBackend(*script, name="inside")
    outside = ScriptedBackend(*script, name="outside", external=True)
    async with aibox.AuditChain("audit.db") as chain:
        router = aibox.Router(inside, outside, policy=POLICY, audit=chain)
        guardrail = aibox.Guardrail(POLICY)
        nurse = aibox.Agent("Help.", router=router, model=model, tools=[chart], guardrail=guardrail, audit=chain)
        try:
            reply = await nurse.run("Any allergies, patient 17?")
            print(f"{model}: {reply.text}  [{reply.label}, because of {', '.join(reply.label.why)}]")
        except aibox.EgressError as error:
            print(f"{model}: refused. {error.message}")


async def main() -> None:
    await ask("inside/inside")
    await ask("outside/outside")


if __name__ == "__main__":
    asyncio.run(main())
