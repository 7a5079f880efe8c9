"""Phrases found in a text word by word, all at once: time grows with the text, not with the number of phrases.

A trie over words. A word that ends in `*` stands for all that begin with it; where a script has no spaces (Chinese,
Japanese, Thai), every character is a word.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from aibox.errors import ConfigError
from aibox.guardrails.normalise import normalise

MAX_WORDS = 12
"""Of a phrase."""
_WORD = re.compile(r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]|[^\W_\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]{1,64}\*?")

_END = re.compile(r"[!?]|\.\s")


@dataclass(slots=True)
class _Node:
    words: dict[str, _Node] = field(default_factory=dict)
    stems: dict[str, _Node] = field(default_factory=dict)
    ends: list[str] = field(default_factory=list)
    longest_stem: int = 0


class Phrases:
    """A set of phrases, each under a name. Raises ConfigError for a phrase that holds no word, or too many."""

    def __init__(self, named: Iterable[tuple[str, str]]) -> None:
        self._root = _Node()
        for name, phrase in named:
            self._add(name, phrase)

    def find(self, text: str) -> Iterator[tuple[int, int, str]]:
        """(start, end, name) of every phrase in a folded normal form, overlaps included, in order of their starts.

        No phrase goes over the end of a sentence, so that a text that streams gives what the whole text gives.
        """
        found = [(match.start(), match.end(), match[0].rstrip("*")) for match in _WORD.finditer(text)]
        for first in range(len(found)):
            yield from self._at(text, found[first : first + MAX_WORDS])

    def _at(self, text: str, words: list[tuple[int, int, str]]) -> Iterator[tuple[int, int, str]]:
        nodes, before = [self._root], words[0][0]
        for start, end, word in words:
            if _END.search(text, before, start):
                return
            following = []
            for node in nodes:
                if (known := node.words.get(word)) is not None:
                    following.append(known)
                stems = (word[:size] for size in range(1, min(len(word), node.longest_stem) + 1))
                following += [node.stems[stem] for stem in stems if stem in node.stems]
            if not following:
                return
            yield from ((words[0][0], end, name) for node in following for name in node.ends)
            nodes, before = following, end

    def _add(self, name: str, phrase: str) -> None:
        words = _WORD.findall(normalise(phrase).text)
        if not words or len(words) > MAX_WORDS:
            raise ConfigError(f"not a phrase to look for: {phrase[:60]!r}", hint=f"1 to {MAX_WORDS} words")
        node = self._root
        for word in words:
            if word.endswith("*"):
                stem = word[:-1]
                node.longest_stem = max(node.longest_stem, len(stem))
                node = node.stems.setdefault(stem, _Node())
            else:
                node = node.words.setdefault(word, _Node())
        if name not in node.ends:
            node.ends.append(name)
