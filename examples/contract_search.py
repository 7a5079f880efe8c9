"""Search in contracts: each passage comes with where it stands, and only with what its reader may see."""

import asyncio

import aibox

CONTRACTS = {
    "hosting.md": "# Hosting\n\nEither side may terminate with a notice of 90 days to the end of a quarter.\n",
    "cleaning.md": "# Cleaning\n\nThe windows are cleaned on the first Monday of each month.\n",
    "merger.md": "# Merger\n\nThe purchase price is agreed at 41 million EUR.\n",
}


async def main() -> None:
    eva = aibox.Scope(tenant="acme", user="eva")
    bob = aibox.Scope(tenant="acme", user="bob")
    async with aibox.Memory() as memory:
        for name, text in CONTRACTS.items():
            secret = name == "merger.md"
            await memory.add(
                text.encode(),
                name=name,
                scope=eva,
                label="confidential/MNPI" if secret else "internal",
                visibility="private" if secret else "shared",
            )
        for who in (eva, bob):
            print(f"-- {who.user}")
            for question in ("How long is the notice of termination?", "What is the purchase price?"):
                hits = await memory.recall(question, scope=who, limit=1)
                for hit in hits:
                    print(f"{question}\n   {hit.record.text.strip()!r}\n   from {hit.citation}, {hit.label}")


if __name__ == "__main__":
    asyncio.run(main())
