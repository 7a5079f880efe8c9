"""Many tenants, one process: memory, pseudonyms and evidence of each are its own. The scope travels with every call."""

import asyncio

import aibox
from aibox.testing import ScriptedBackend


async def main() -> None:
    async with aibox.Memory("memory") as memory, aibox.AuditChain("audit.db") as chain:
        guardrail = aibox.Guardrail(aibox.Policy.profile("balanced"))
        model = ScriptedBackend(*[lambda request: "Noted."] * 8)
        agent = aibox.Agent("You help.", router=model, memory=memory, guardrail=guardrail, audit=chain)

        async def turns(tenant: str) -> None:
            scope = aibox.Scope(tenant=tenant, user="eva")
            await agent.run(f"Remember that the key account of {tenant} is number {len(tenant)}.", scope=scope)
            hits = await memory.recall("Which key account?", scope=scope)
            print(tenant, "remembers", [hit.record.text for hit in hits])

        async with asyncio.TaskGroup() as group:
            for tenant in ("acme", "globex", "initech"):
                group.create_task(turns(tenant))
        for tenant in ("acme", "globex", "initech"):
            print(tenant, "evidence:", await chain.verify(tenant))


if __name__ == "__main__":
    asyncio.run(main())
