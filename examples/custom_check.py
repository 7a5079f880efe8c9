"""A check of your own: it only looks, and the policy decides what follows."""

import asyncio
import re

import aibox
from aibox.types import Finding, Where

PROJECT = re.compile(r"\bPROJ-\d{4}\b")


class ProjectNames:
    """Finds the code names of projects. Whatever has `name` and `check` is a Check."""

    name = "projects"

    async def check(
        self, text: str, *, where: Where = "input", scope: aibox.Scope, label: aibox.Label | None = None
    ) -> aibox.Verdict:
        found = tuple(
            Finding(self.name, "CODE_NAME", match.span(), 1.0, "the code name of a project")
            for match in PROJECT.finditer(text)
        )
        return aibox.Verdict(aibox.Decision.FLAG if found else aibox.Decision.ALLOW, text, found, where=where)


POLICY = aibox.Policy.read({"checks": {"projects": {"input": "block", "output": "redact"}}})


async def main() -> None:
    guardrail = aibox.Guardrail(POLICY, checks={"projects": ProjectNames()})
    scope = aibox.Scope.local()
    for text, where in (("When does PROJ-1234 end?", "input"), ("It is PROJ-1234.", "output"), ("Hello", "input")):
        verdict = await guardrail.check(text, where=where, scope=scope)
        print(f"{where:<7} {text!r} -> {verdict.decision}: {verdict.text!r} {', '.join(verdict.reasons())}")


if __name__ == "__main__":
    asyncio.run(main())
