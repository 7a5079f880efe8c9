"""Whether an answer gives the assistant's instructions away: a mark that stands only there, or runs of their words."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator

from aibox.guardrails.encodings import views
from aibox.guardrails.normalise import normalise
from aibox.guardrails.reading import flagged
from aibox.types import Decision, Finding, Label, Scope, Verdict, Where

RUN_WORDS = 8
"""As many words in a row as stand in the instructions are no chance."""
_WORD = re.compile(r"[^\W_]{1,64}")


class PromptLeak:
    """Finds what was copied from `prompt`: a Check. Rules `canary`, score 1.0, and `instructions`, score 0.8.

    What was encoded on the way out is read too. A translation or a summary of the instructions is not found.
    """

    def __init__(self, prompt: str = "", *, canary: str = "") -> None:
        self._canary = canary.casefold()
        words = _WORD.findall(normalise(prompt).text)
        self._runs = {tuple(words[at : at + RUN_WORDS]) for at in range(len(words) - RUN_WORDS + 1)}

    @property
    def name(self) -> str:
        return "prompt_leak"

    async def check(self, text: str, *, where: Where = "input", scope: Scope, label: Label | None = None) -> Verdict:  # noqa: ARG002 - the protocol's arguments
        """FLAG with findings in order, or ALLOW. The text is never changed."""
        if where not in ("output", "tool_arguments") or not (self._runs or self._canary):
            return Verdict(Decision.ALLOW, text, where=where)
        return await flagged(text, self._scan, where=where)

    def _scan(self, text: str) -> tuple[Finding, ...]:
        normal = normalise(text)
        found = [_finding(rule, normal.span(start, end), "") for rule, start, end in self._copied(normal.text)]
        for view in views(text):
            rules = {rule for rule, _, _ in self._copied(normalise(view.text).text)}
            found += [_finding(rule, view.span, f", in {view.how}") for rule in sorted(rules)]
        return tuple(sorted(found, key=lambda finding: finding.span))

    def _copied(self, text: str) -> Iterator[tuple[str, int, int]]:
        if self._canary:
            for match in re.finditer(re.escape(self._canary), text):
                yield "canary", *match.span()
        words = list(_WORD.finditer(text))
        start, end = -1, -1
        for at in range(len(words) - RUN_WORDS + 1):
            if tuple(word[0] for word in words[at : at + RUN_WORDS]) not in self._runs:
                continue
            first, last = words[at].start(), words[at + RUN_WORDS - 1].end()
            if first > end >= 0:
                yield "instructions", start, end
                start = first
            elif end < 0:
                start = first
            end = last
        if end >= 0:
            yield "instructions", start, end

    def __repr__(self) -> str:
        return f"PromptLeak({len(self._runs)} runs of {RUN_WORDS} words{', a canary' if self._canary else ''})"


def canary(prompt: str) -> str:
    """A mark for a prompt: always the same, so that what is sent can be recorded and played back."""
    return hashlib.sha256(f"aibox canary|{prompt}".encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _finding(rule: str, span: tuple[int, int], how: str) -> Finding:
    score = 1.0 if rule == "canary" else 0.8
    return Finding("prompt_leak", rule, span, score, f"gives the assistant's instructions away{how}")
