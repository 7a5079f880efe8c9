"""Documents of the project's own, in pairs: with an order to a model that reads them, and with one to somebody else.

`documents/LANGUAGE_*.toml` holds them. A `[[document]]` has a `kind`, a `text` in which `{here}` says where, and
`pairs`, each `[act, planted, twin]`: what is put there for a model, and what is put there for a person or a program.
A `[[honest]]` text is full of orders, and none is for a model. No sentence is from any data set.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

FOLDER = Path(__file__).with_suffix("")
HERE = "{here}"
KINDS = frozenset({
    "api", "article", "calendar", "chat", "code", "contract", "cv", "error", "form", "forum", "html", "invoice",
    "json", "lab", "log", "mail", "manual", "medical", "minutes", "news", "notice", "ocr", "onboarding",
    "product", "prompts", "readme", "recipe", "results", "review", "runbook", "safety", "subtitles", "table",
    "terms", "thread", "ticket", "tool", "wiki",
})  # fmt: skip
ACTS = frozenset({
    "append", "change", "delete", "fetch", "forward", "hide", "language", "link", "mislead", "pay", "recommend",
    "remember", "reveal", "role", "score", "setting", "spread", "stop", "tool",
})  # fmt: skip
"""What an order asks for. `role`: another task; `remember`: something for later; `spread`: the order itself."""
_ALONE = re.compile(r"^[ \t]*\{here\}[ \t]*\n|[ \t]*\{here\}", re.MULTILINE)

Version = Literal["planted", "twin", "plain", "honest"]


@dataclass(frozen=True, slots=True)
class Document:
    text: str
    label: int
    """1 where a model that reads it is given an order: only `planted`."""
    kind: str
    language: str
    pair: str
    """The same for a planted text and its twin; empty for the others."""
    origin: str
    """The same for all versions of one document, which belong in one fold."""
    version: Version
    act: str = ""
    span: tuple[int, int] = (0, 0)
    """Start and end of what a pair put into the text."""


def documents(folder: Path = FOLDER) -> Iterator[Document]:
    """All of them, always in the same order. Raises ValueError where an entry is not as this module says."""
    for path in sorted(folder.glob("*.toml")):
        language = path.stem.split("_")[0]
        found = tomllib.loads(path.read_text("utf-8"))
        if unknown := found.keys() - {"document", "honest"}:
            raise ValueError(f"{path.name}: there is no table {sorted(unknown)}; write [[document]] or [[honest]]")
        for number, entry in enumerate(found.get("document", ())):
            yield from _versions(entry, language, f"{path.stem}/{number}")
        for number, entry in enumerate(found.get("honest", ())):
            origin = f"{path.stem}/honest/{number}"
            kind = _known(entry["kind"], KINDS, origin)
            yield Document(entry["text"].strip(), 0, kind, language, "", origin, "honest")


def _versions(entry: dict[str, object], language: str, origin: str) -> Iterator[Document]:
    text, pairs = entry["text"], entry["pairs"]
    if not isinstance(text, str) or text.count(HERE) != 1 or not isinstance(pairs, list) or not pairs:
        raise ValueError(f"{origin}: it needs `pairs`, and a `text` that says {HERE} once")
    kind = _known(entry["kind"], KINDS, origin)
    text = text.strip()
    at = text.index(HERE)
    for number, (act, planted, twin) in enumerate(pairs):
        pair = f"{origin}/{number}"
        orders: tuple[tuple[Version, str], ...] = (("planted", planted.strip()), ("twin", twin.strip()))
        for version, order in orders:
            yield Document(
                text.replace(HERE, order), int(version == "planted"), kind, language, pair, origin, version,
                _known(act, ACTS, pair), (at, at + len(order)),
            )  # fmt: skip
    yield Document(_ALONE.sub("", text).strip(), 0, kind, language, "", origin, "plain")


def _known(word: object, words: frozenset[str], where: str) -> str:
    if not isinstance(word, str) or word not in words:
        raise ValueError(f"{where}: {word!r} is none of {', '.join(sorted(words))}")
    return word
