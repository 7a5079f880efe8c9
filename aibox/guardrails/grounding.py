"""Whether the sentences of an answer stand in the sources that it was given, by their words, numbers and names.

A comparison of words: what is said in other words counts as less supported, and a false sentence made of the words of a
source as more. docs/guardrails.md has the figures. Nothing is looked up anywhere else.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import pairwise

from anyio import to_thread

from aibox.guardrails.features import segments
from aibox.guardrails.heads import card_of
from aibox.guardrails.normalise import normalise
from aibox.types import Decision, Finding, Label, Scope, Verdict, Where

MIN_WORDS = 3
"""A sentence with fewer words that mean something claims nothing."""
_WORD = re.compile(r"\d+(?:\.\d+)?(?=(?:st|nd|rd|th|s)?(?![^\W_]))|[^\W_]+(?:['’][^\W_]+)?")
_ORDINAL = re.compile(r"(?<=\d)(?:st|nd|rd|th|s)(?![^\W_])")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_DAY = re.compile(r"(?<!\d)(\d{4})-(\d\d)-(\d\d)(?!\d)")
_MONTHS = (
    *("january", "february", "march", "april", "may", "june"),
    *("july", "august", "september", "october", "november", "december"),
)
_COUNTED = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("", "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth"),
)
_NUMBERS = {word: str(at % 13) for at, word in enumerate(_COUNTED) if word}
_NAME = re.compile(r"(?<![.!?\"“(]\s)(?<!^)\b[A-Z][^\W\d_]+")
_CITED = re.compile(r"\[(\d{1,3})\]")
_STEM_CHARS = 6
_COMMON = """
a about after all also an and any are as at be because been before being both but by can could did do does doing down
during each few for from further had has have having he her here hers him his how i if in into is it its just me more
most my no nor not now of off on once only or other our out over own same she should so some such than that the their
them then there these they this those through to too under until up very was we were what when where which while who
whom why will with would you your
"""
_STOP = frozenset(_COMMON.split())
_CLAUSE = re.compile(r"[,;:()]|\b(?:and|but|which|who|while)\b")
SPECIAL = 3.0
"""How much more a name or a number weighs than another word as rare."""


@dataclass(frozen=True, slots=True)
class Claim:
    """One sentence of an answer. `score` is 0, stands there, to 1, does not; `source` is the nearest, -1 if none."""

    span: tuple[int, int]
    score: float
    source: int


@dataclass(slots=True)
class Sources:
    """What an answer may rest on: numbered `passages`, and `others` such as results of tools. It grows in a turn.

    `said` is what the user wrote: it supports what repeats it, and is no source.
    """

    passages: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.passages or self.others)


def claims(answer: str, sources: Sequence[str]) -> tuple[Claim, ...]:
    """The sentences of an answer that claim something, in order, each held against the sources.

    Time grows with the product of both; `Grounding` moves to a thread what is long.
    """
    known = _Known(sources)
    found = []
    for start, end in segments(answer):
        sentence = answer[start:end]
        if sentence.rstrip().endswith("?") or len(_content(sentence)) < MIN_WORDS:
            continue
        values, source = known.features(sentence)
        found.append(Claim((start, end), _score(values), source))
    return tuple(found)


def score(claim: str, sources: Sequence[str]) -> float:
    """Of one claim, however short: from 0, stands in the sources, to 1, does not."""
    return _score(_Known(sources).features(claim)[0])


class Grounding:
    """Finds what an answer says and its sources do not: a Check.

    Rules: `unsupported` with the claim's score; `no-source`, 0.5, for an answer that was given none; `citation`, 0.9,
    for a number such as [4] that no passage has. Outputs only.
    """

    def __init__(self, sources: Sources | None = None) -> None:
        # Not `or`: sources that are empty now grow later.
        self._sources = Sources() if sources is None else sources

    @property
    def name(self) -> str:
        return "grounding"

    async def check(self, text: str, *, where: Where = "input", scope: Scope, label: Label | None = None) -> Verdict:  # noqa: ARG002 - the protocol's arguments
        """FLAG with findings in order, or ALLOW. The text is never changed."""
        if where != "output":
            return Verdict(Decision.ALLOW, text, where=where)
        findings = await to_thread.run_sync(partial(self._scan, text), abandon_on_cancel=True)
        return Verdict(Decision.FLAG if findings else Decision.ALLOW, text, findings, where=where)

    def _scan(self, text: str) -> tuple[Finding, ...]:
        sources = self._sources
        found = [
            Finding("grounding", "citation", match.span(), 0.9, f"cites a passage {match[0]} that there is not")
            for match in _CITED.finditer(text)
            if not (0 < int(match[1]) <= len(sources.passages) or _numbered(int(match[1]), sources.others))
        ]
        if not sources:
            if any(len(_content(text[start:end])) >= MIN_WORDS for start, end in segments(text)):
                found.append(Finding("grounding", "no-source", (0, len(text)), 0.5, "rests on no source"))
        else:
            every = [*sources.passages, *sources.others, *sources.said]
            found += [
                Finding("grounding", "unsupported", claim.span, claim.score, "is not in the sources")
                for claim in claims(text, every)
            ]
        return tuple(sorted(found, key=lambda finding: finding.span))

    def __repr__(self) -> str:
        return f"Grounding({len(self._sources.passages)} passages, {len(self._sources.others)} other sources)"


class _Known:
    """Sources as sentences, each with its words, in all of which a claim is looked for."""

    def __init__(self, sources: Sequence[str]) -> None:
        self._sentences: list[tuple[int, frozenset[str]]] = []
        self._pairs: set[tuple[str, str]] = set()
        for number, source in enumerate(sources):
            for start, end in segments(source):
                words = _stems(source[start:end])
                self._sentences.append((number, frozenset(words)))
                self._pairs |= _pairs(words)
        self._counts = Counter(word for _, words in self._sentences for word in words)

    def features(self, claim: str) -> tuple[list[float], int]:
        """What the head weighs, each the more the less of the claim is there; and which source is the nearest."""
        special = {_stem(name.casefold()) for name in _NAME.findall(claim)}
        weights = {word: self._weight(word, special) for word in _content(claim)}
        total = sum(weights.values()) or 1.0
        one, nearest = self._left(weights, 1)
        three, _ = self._left(weights, 3)
        six, _ = self._left(weights, 6)
        parts = [set(part) for part in map(_content, _CLAUSE.split(claim)) if len(part) >= 2] or [set(weights)]
        known = ({word: self._weight(word, special) for word in part} for part in parts)
        shares = [sum(self._left(part, 1)[0].values()) / (sum(part.values()) or 1.0) for part in known]
        pairs = _pairs(_stems(claim))
        values = [
            sum(one.values()) / total,
            sum(three.values()) / total,
            math.log(1 + sum(three.values())),
            math.log(1 + sum(six.values())),
            math.log(1 + sum(word[0].isdigit() for word in three)),
            1 - len(pairs & self._pairs) / (len(pairs) or 1),
            max(shares),
            sum(shares) / len(shares),
        ]
        return values, nearest

    def _weight(self, word: str, special: set[str]) -> float:
        """Rare words weigh more; a name or a number more again: that is what an answer gets wrong."""
        rare = math.log(1 + (len(self._sentences) + 1) / (1 + self._counts[word]))
        return rare * (SPECIAL if word in special or word[0].isdigit() else 1.0)

    def _left(self, weights: Mapping[str, float], sentences: int) -> tuple[dict[str, float], int]:
        """The words that stand in none of the few sentences that hold most, weighed; the source of the first."""
        left, nearest = dict(weights), -1
        for _ in range(sentences):
            gains = (
                (sum(left[word] for word in left.keys() & words), -at) for at, (_, words) in enumerate(self._sentences)
            )
            gain, at = max(gains, default=(0.0, 0))
            if gain <= 0:
                break
            number, words = self._sentences[-at]
            nearest = number if nearest < 0 else nearest
            left = {word: weight for word, weight in left.items() if word not in words}
        return left, nearest


def _numbered(number: int, others: Sequence[str]) -> bool:
    """Whether a tool has given passages with numbers of its own, and one with this."""
    return any(f'number="{number}"' in text or f"[{number}]" in text for text in others)


def _stem(word: str) -> str:
    word = word.replace("’", "'").removesuffix("'s")
    return word if word.isdigit() else word[:_STEM_CHARS].rstrip("s") or word


def _words(text: str) -> list[str]:
    """Words in order; a number reads the same however it is written: 1,200, 2nd and second, 5.0, 2016-08-25."""
    text = _THOUSANDS.sub("", normalise(text).text)
    text = _DAY.sub(_spelled, text)
    found = [_NUMBERS.get(word, word) for word in _WORD.findall(_ORDINAL.sub("", text))]
    return [word.rstrip("0").rstrip(".") if "." in word else word for word in found]


def _spelled(day: re.Match[str]) -> str:
    month = int(day[2])
    return f"{day[1]} {_MONTHS[month - 1]} {int(day[3])}" if 1 <= month <= 12 else day[0]


def _stems(text: str) -> list[str]:
    return [_stem(word) for word in _words(text)]


def _content(text: str) -> list[str]:
    return [_stem(word) for word in _words(text) if word not in _STOP]


def _pairs(words: Sequence[str]) -> set[tuple[str, str]]:
    return set(pairwise(words))


def _score(values: Sequence[float]) -> float:
    head = _head()
    margin = head[0] + sum(weight * value for weight, value in zip(head[1:], values, strict=True))
    return round(1 / (1 + math.exp(-max(-30.0, min(30.0, margin)))), 4)


@cache
def _head() -> tuple[float, ...]:
    """Bias and weights, in the order of the features; `training/grounding.py` writes them."""
    return tuple(card_of("grounding")["weights"])


def each_feature(claim: str, sources: Sequence[str]) -> Iterator[float]:
    """What the head is trained on."""
    yield from _Known(sources).features(claim)[0]
