"""Orders to the assistant, found by two trained heads: one for what users write, one for what documents say.

They know English best and 37 other languages a little, and who knows them gets round them.
docs/guardrails-measured.md has the figures.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from aibox.guardrails.encodings import views
from aibox.guardrails.features import segments, words_of
from aibox.guardrails.heads import head, standing_out
from aibox.guardrails.normalise import normalise
from aibox.guardrails.reading import flagged
from aibox.types import Finding, Label, Scope, Verdict, Where

FLOOR = 0.5
"""Lower scores are no finding."""
_REASONS = {"direct": "reads like an attempt to take over the assistant", "indirect": "a document that gives orders"}


class Injection:
    """Finds attempts to steer the assistant: a Check. Rules `direct` and `indirect`; scores as in `heads`.

    In tool results and retrieved texts each sentence is weighed by itself, by the head for documents, and beside the
    others of its text; a finding spans that sentence. Elsewhere windows of 200 words are weighed. Encoded text is
    weighed decoded too.
    """

    @property
    def name(self) -> str:
        return "injection"

    async def check(self, text: str, *, where: Where = "input", scope: Scope, label: Label | None = None) -> Verdict:  # noqa: ARG002 - the protocol's arguments
        """FLAG with findings in order, or ALLOW. The text is never changed."""
        return await flagged(text, partial(scan, foreign=where in ("tool_result", "retrieved")), where=where)

    def __repr__(self) -> str:
        return "Injection()"


def scan(text: str, *, foreign: bool = False, floor: float = FLOOR) -> tuple[Finding, ...]:
    """All findings of at least `floor`, in order. `foreign`: the text is a document or a result, not a user's."""
    normal = normalise(text)
    found = [
        Finding("injection", rule, normal.span(start, end), score, _REASONS[rule])
        for start, end, rule, score in _weighed(normal.text, foreign=foreign)
        if score >= floor
    ]
    for view in views(text):
        scores = [(score, rule) for _, _, rule, score in _weighed(normalise(view.text).text, foreign=foreign)]
        score, rule = max(scores, default=(0.0, "direct"))
        if score >= floor:
            found.append(Finding("injection", rule, view.span, score, f"{_REASONS[rule]}, in {view.how}"))
    return tuple(sorted(found, key=lambda finding: finding.span))


def _weighed(text: str, *, foreign: bool) -> Iterator[tuple[int, int, str, float]]:
    if foreign:
        indirect, spans = head("indirect"), list(segments(text))
        margins = in_words([text[start:end] for start, end in spans])
        for (start, end), margin in zip(spans, margins, strict=True):
            yield start, end, "indirect", indirect.calibrated(margin)
        return
    direct = head("direct")
    for start, end, margin in direct.margins(text):
        yield start, end, "direct", direct.calibrated(margin)


def in_words(sentences: list[str]) -> list[float]:
    """The margins of a document's sentences, in normal form, by the head for documents, each beside the others."""
    indirect, parts = head("indirect"), dict[bytes, list[int]]()
    return standing_out([indirect.margin(words_of(sentence), parts) for sentence in sentences])
