"""Personal data found by form and by phrase: numbers are validated, names introduced or begun with a known given name.

Addresses, organisations and names in running text without such a sign are not found here.
"""

from __future__ import annotations

from collections.abc import Iterable

from aibox.guardrails import formats, names
from aibox.guardrails.marks import masked
from aibox.guardrails.normalise import normalise
from aibox.guardrails.reading import flagged
from aibox.types import Finding, Label, Scope, Verdict, Where

_REASONS = {
    "CARD": "a payment card number",
    "IBAN": "a bank account number",
    "SSN": "a social security number",
    "URL": "an address with a password in it",
    "EMAIL": "an e-mail address",
    "IP": "an IP address",
    "BIRTHDATE": "a date of birth",
    "PHONE": "a phone number",
    "PERSON": "a person's name",
}
TYPES = tuple(_REASONS)
"""Entity types, strongest first. Of two findings that overlap a format beats a name, and the longer the shorter."""


class PII:
    """Finds personal data: a Check. `Finding.rule` is the entity type, one of `TYPES`; findings do not overlap.

    Formats are international; the phrases that introduce a name are English. Measured in `docs/guardrails-measured.md`.
    """

    @property
    def name(self) -> str:
        return "pii"

    async def check(self, text: str, *, where: Where = "input", scope: Scope, label: Label | None = None) -> Verdict:  # noqa: ARG002 - the protocol's arguments
        """FLAG with findings in order, or ALLOW. The text is never changed."""
        return await flagged(text, scan, where=where)

    def __repr__(self) -> str:
        return "PII()"


def scan(text: str) -> tuple[Finding, ...]:
    """All personal data in a text, in order. Spans point at the text as given, through any disguise of characters.

    A pseudonym is none, whatever form it has.
    """
    normal = normalise(masked(text), fold=False)
    found = (*formats.find(normal.text), *names.find(normal.text))
    return tuple(
        Finding("pii", type_, normal.span(start, end), score, _REASONS[type_])
        for start, end, type_, score in _resolved(found)
    )


def _resolved(found: Iterable[tuple[int, int, str, float]]) -> list[tuple[int, int, str, float]]:
    """In order and without overlaps."""
    kept: list[tuple[int, int, str, float]] = []
    for item in sorted(found, key=lambda f: f[0]):
        # What is kept is disjoint and in order: only the last can reach over a later start.
        if not kept or kept[-1][1] <= item[0]:
            kept.append(item)
        elif _rank(item) > _rank(kept[-1]):
            kept[-1] = item
    return kept


def _rank(found: tuple[int, int, str, float]) -> tuple[bool, int, int]:
    start, end, type_, _ = found
    return type_ != "PERSON", end - start, -TYPES.index(type_)
