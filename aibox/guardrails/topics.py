"""What a text is about, by the words of the policy: topics that are banned, and those that alone are allowed.

Words only: who writes around them is not found, and a word may be used for something else.
"""

from __future__ import annotations

import re
from functools import partial

from anyio import to_thread

from aibox.guardrails.normalise import LONG_CHARS, normalise
from aibox.guardrails.phrases import Phrases
from aibox.policy.texts import TopicRules
from aibox.types import Decision, Finding, Label, Scope, Verdict, Where

_PARAGRAPH = re.compile(r"\n[ \t]{0,8}\n")
MIN_WORDS = 4
"""A shorter message, such as "yes, please", has no topic."""


class Topics:
    """Finds banned topics everywhere, and users' messages off the allowed ones: a Check.

    Rules are the topics' names, score 0.9, and `off-topic`, score 0.6. Raises ConfigError for a phrase without a word.
    """

    def __init__(self, rules: TopicRules | None = None) -> None:
        rules = rules or TopicRules()
        self._banned = Phrases((name, phrase) for name, phrases in rules.banned.items() for phrase in sorted(phrases))
        self._allowed = [Phrases(("", phrase) for phrase in sorted(fence)) for fence in rules.allowed]
        self._names = sorted(rules.banned)

    @property
    def name(self) -> str:
        return "topics"

    async def check(self, text: str, *, where: Where = "input", scope: Scope, label: Label | None = None) -> Verdict:  # noqa: ARG002 - the protocol's arguments
        """FLAG with findings in order, or ALLOW. The text is never changed."""
        look = partial(self._scan, text, asked=where == "input")
        findings = look() if len(text) < LONG_CHARS else await to_thread.run_sync(look, abandon_on_cancel=True)
        return Verdict(Decision.FLAG if findings else Decision.ALLOW, text, findings, where=where)

    def _scan(self, text: str, *, asked: bool) -> tuple[Finding, ...]:
        if not self._names and not (asked and self._allowed):
            return ()
        normal = normalise(text)
        spans: dict[str, list[tuple[int, int]]] = {}
        for first, last, name in self._banned.find(normal.text):
            start, end = normal.span(first, last)
            if _PARAGRAPH.search(text, start, end):
                continue
            known = spans.setdefault(name, [])
            if known and start < known[-1][1]:
                known[-1] = known[-1][0], max(end, known[-1][1])
            else:
                known.append((start, end))
        found = [
            Finding("topics", name, span, 0.9, f"speaks of {name}") for name, places in spans.items() for span in places
        ]
        if asked and len(normal.text.split()) >= MIN_WORDS:
            off = any(next(fence.find(normal.text), None) is None for fence in self._allowed)
            found += [Finding("topics", "off-topic", (0, len(text)), 0.6, "is not about what is allowed here")] * off
        return tuple(sorted(found, key=lambda finding: finding.span))

    def __repr__(self) -> str:
        fences = f", {len(self._allowed)} lists of allowed phrases" if self._allowed else ""
        return f"Topics(banned: {', '.join(self._names) or 'none'}{fences})"
