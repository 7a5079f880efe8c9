"""Attacks and harmless texts of the project's own, intent by intent and language by language.

`attacks/LANGUAGE.toml` holds patterns: `<one|another>` stands for either. `attacks/texts/LANGUAGE.toml` holds texts
written whole, one line or a page, that are taken as they stand, and `attacks/texts/LANGUAGE_AUTHOR.toml` those of
another author. Harmless texts use the words of the attacks, so that neither a word nor a language is suspicious by
itself. No sentence is from any data set.
"""

from __future__ import annotations

import random
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PER_PATTERN = 12
_CHOICE = re.compile(r"<([^<>]*\|[^<>]*)>")
FOLDER = Path(__file__).with_suffix("")


@dataclass(frozen=True, slots=True)
class Made:
    text: str
    label: int
    """1 is an attack."""
    intent: str
    language: str
    pattern: str = ""
    """What it was filled from, so that whoever weighs or samples may count a pattern once; a whole text is its own."""
    author: str = "own"
    """Of the patterns `own`, of texts written whole `whole`, and who else wrote some is named behind that."""


def files() -> dict[str, dict[str, Any]]:
    """Language to what its file says, in the order of their names."""
    return {path.stem: tomllib.loads(path.read_text("utf-8")) for path in sorted(FOLDER.glob("*.toml"))}


def whole() -> dict[str, dict[str, dict[str, list[str]]]]:
    """Name of a file to `attack` or `harmless`, to intent, to texts; nothing in them stands for anything else."""
    return {path.stem: tomllib.loads(path.read_text("utf-8")) for path in sorted(FOLDER.glob("texts/*.toml"))}


def author(name: str) -> str:
    """Who wrote a file of whole texts."""
    return " ".join(["whole", *name.split("_")[1:]])


def authors() -> list[str]:
    """All of them: of the patterns, then of whole texts, sorted."""
    return ["own", *sorted({author(name) for name in whole()})]


def languages() -> list[str]:
    """All of them, sorted: some have no patterns, only whole texts."""
    return sorted({*files(), *(name.partition("_")[0] for name in whole())})


def filled(pattern: str, most: int = PER_PATTERN) -> list[str]:
    """Up to `most` different texts of a pattern, always the same ones."""
    chance = random.Random(pattern)
    found = dict.fromkeys(
        _CHOICE.sub(lambda choice: chance.choice(choice[1].split("|")), pattern).strip() for _ in range(2 * most)
    )
    return list(found)[:most]


def direct() -> Iterator[Made]:
    """Texts of patterns, each by itself and once more among harmless sentences of its language; whole texts."""
    by_language, written = files(), whole()
    for language in languages():
        parts = by_language.get(language, {})
        chance = random.Random(language)
        own = {
            label: [
                Made(text, label, intent, language, pattern)
                for intent, patterns in parts.get(key, {}).items()
                for pattern in patterns
                for text in filled(pattern)
            ]
            for label, key in enumerate(("harmless", "attack"))
        }
        for label in (0, 1):
            for made in own[label]:
                yield made
                around = [chance.choice(own[0]).text for _ in range(chance.choice((1, 1, 2, 3)))] if own[0] else []
                around.insert(chance.randrange(len(around) + 1), made.text)
                yield Made(chance.choice((" ", "\n", "\n\n")).join(around), label, made.intent, language, made.pattern)
        for name, texts_of in written.items():
            if name.partition("_")[0] == language:
                for label, key in enumerate(("harmless", "attack")):
                    for intent, texts in texts_of.get(key, {}).items():
                        yield from (Made(text, label, intent, language, text, author(name)) for text in texts)


_WRAPPED = (
    "{}", "{}", "{}", "- {}", "# {}", "// {}", "<!-- {} -->", '"note": "{}",', "| 12 | {} | 7 |", "INFO {}", "> {}"
)  # fmt: skip
"""As an order stands in a document: by itself, in a list, a comment, JSON, a table, a log, a quotation."""


def documents() -> Iterator[Made]:
    """Sentences and lines of documents: orders to a machine that reads (label 1), orders to people, plain text."""
    for language, parts in files().items():
        chance = random.Random(language)
        for intent, patterns in parts.get("documents", {}).items():
            for pattern in patterns:
                for text in filled(pattern):
                    yield Made(
                        chance.choice(_WRAPPED).format(text), int(intent == "machine"), intent, language, pattern
                    )
