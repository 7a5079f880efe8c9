"""Cases for a policy: texts with the decision that it should make about each, in a file of TOML or YAML."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from aibox.errors import ConfigError
from aibox.guardrails.guardrail import Guardrail
from aibox.policy import files
from aibox.policy.fields import DecisionField, LabelField, Part
from aibox.types import Label, Scope, Verdict, Where
from aibox.validation import explain_validation


class Case(Part):
    """One text, the place it stands in, and what should follow."""

    text: str
    where: Where = "input"
    decision: DecisionField
    check: str | None = None
    """The check that must have found something; None: whichever."""
    rule: str | None = None
    becomes: str | None = None
    """What must be left of the text; None: not asked. Pseudonyms differ from key to key and are not written here."""
    label: LabelField = Label()


class Cases(Part):
    """A file of cases."""

    version: Literal[1] = 1
    cases: Annotated[list[Case], Field(min_length=1)]


@dataclass(frozen=True, slots=True)
class Outcome:
    """A case and its verdict; `wrong` says in words what is not as it should be, and is empty when all is."""

    case: Case
    verdict: Verdict
    wrong: str


def read_cases(path: Path) -> list[Case]:
    """Raises ConfigError that names the file and the key."""
    try:
        return Cases.model_validate(files.read(path)).cases
    except ValidationError as error:
        raise ConfigError(f"{path}: {explain_validation(error, Cases)}") from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.message}", hint=error.hint) from None


async def tried(guardrail: Guardrail, cases: Iterable[Case], *, scope: Scope) -> AsyncIterator[Outcome]:
    """Each case's outcome, in order."""
    for case in cases:
        verdict = await guardrail.check(case.text, where=case.where, scope=scope, label=case.label)
        yield Outcome(case, verdict, _wrong(case, verdict))


def _wrong(case: Case, verdict: Verdict) -> str:
    if verdict.decision != case.decision:
        return f"{verdict.decision}, not {case.decision}"
    found = {(finding.check, finding.rule) for finding in verdict.findings}
    for what, wanted, have in (
        ("check", case.check, {check for check, _ in found}),
        ("rule", case.rule, {rule for check, rule in found if case.check in {None, check}}),
    ):
        if wanted is not None and wanted not in have:
            return f"{verdict.decision}, but not by the {what} {wanted} ({', '.join(sorted(have)) or 'nothing found'})"
    if case.becomes is not None and verdict.text != case.becomes:
        return f"becomes {verdict.text!r}"
    return ""
