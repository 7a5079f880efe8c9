"""Write the list of common words that are nobody's name: `make train-guards`. Same texts, same list.

From the project's own texts in scripts that have capitals: a word is common when several authors write it in small
letters and hardly anybody writes it otherwise, except at the start of a sentence.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import attacks

from aibox.guardrails.names import is_given

OUT = Path(__file__).parents[1] / "aibox" / "guardrails" / "common_words.txt"
AUTHORS = 3
CAPITALS = 0.1
"""The share of a word's places, other than starts of sentences, that may have a capital."""
_WIDTH = 119
_START = re.compile(r"[.!?:]\s|\n")
_WORD = re.compile(r"[^\W\d_]{2,}")
_TITLE = "# Words that people write in small letters, and so nobody's name: training/common_words.py made this list.\n"


def common(texts: Iterable[attacks.Made]) -> list[str]:
    """The words, sorted."""
    authors: dict[str, set[str]] = {}
    capital: Counter[str] = Counter()
    small: Counter[str] = Counter()
    for made in texts:
        for sentence in _START.split(made.text):
            for number, word in enumerate(_WORD.findall(sentence)):
                if word != word.lower():
                    capital[word.lower()] += number > 0
                elif word != word.upper():
                    small[word] += 1
                    authors.setdefault(word, set()).add(made.author)
    return sorted(
        word
        for word, who in authors.items()
        if len(who) >= AUTHORS and capital[word] <= CAPITALS * (capital[word] + small[word]) and not is_given(word)
    )


def written() -> str:
    """What the file holds: the words of all texts that were written whole, in lines of at most 119 characters."""
    words = common(made for made in attacks.direct() if made.author != "own")
    return _TITLE + textwrap.fill(" ".join(words), _WIDTH) + "\n"


def main() -> int:
    OUT.write_text(written(), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
