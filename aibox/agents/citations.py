"""What an answer cites: each number in it, resolved to the passage that the model was shown under that number."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from aibox.memory.record import Passage
from aibox.types import Verdict

_CITED = re.compile(r"\[(\d{1,3}(?:\s*,\s*\d{1,3})*)\]")


@dataclass(frozen=True, slots=True)
class Citation:
    """`[number]` in an answer stands for this place: document, page from 1 (0: none), headings, characters of its text.

    `await memory.get(id, scope=...)` reads the passage, for as long as it is kept. Its text is not part of this.
    """

    number: int
    id: str
    document: str
    name: str
    page: int
    heading: str
    start: int
    end: int
    where: str
    """For people: the document's name, page, headings and the id."""

    def __str__(self) -> str:
        return f"[{self.number}] {self.where}"


def cited(answer: str, passages: Sequence[Passage]) -> tuple[Citation, ...]:
    """The citations of an answer in their order, each once. A number that no passage has is none."""
    numbers = dict.fromkeys(int(n) for match in _CITED.finditer(answer) for n in match[1].split(","))
    return tuple(_citation(n, passages[n - 1]) for n in numbers if 0 < n <= len(passages))


def _citation(number: int, p: Passage) -> Citation:
    return Citation(number, p.id, p.document, p.name, p.page, p.heading, p.start, p.end, p.citation)


def unsupported(answer: str, verdict: Verdict | None) -> tuple[str, ...]:
    """The sentences of an answer in which the grounding check found what no source says, in order, each once."""
    findings = verdict.findings if verdict is not None else ()
    spans = [f.span for f in findings if f.check == "grounding" and f.rule in ("unsupported", "no-source")]
    return tuple(dict.fromkeys(answer[start:end].strip() for start, end in spans))
