"""No text of bench/held_out is trained or calibrated on, not as it stands and not changed a little.

Compared are runs of five letters or digits, whatever stands between them. A held-out text counts as copied where most
of its runs are in one text of the training data, however long that one is.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "bench" / "held_out"
RUN = 5
COPIED = 0.8
"""So much of a held-out text's runs in one other text. Of the data that the shipped heads were trained and calibrated
on, no text has more than 0.745 of any: stock phrases of short attacks, in pages full of them."""

_BETWEEN = re.compile(r"[\W_]+")


def plain(text: str) -> str:
    """Letters and digits without case, accents and dots, so that a text in capitals is the same text."""
    split = unicodedata.normalize("NFKD", text).casefold().replace("\N{LATIN SMALL LETTER DOTLESS I}", "i")
    return _BETWEEN.sub("", "".join(sign for sign in split if not unicodedata.combining(sign)))


def runs(text: str) -> set[str]:
    """All runs of a text; of one that is shorter, itself."""
    text = plain(text)
    return {text[at : at + RUN] for at in range(max(1, len(text) - RUN + 1))}


def texts(folder: Path = FOLDER) -> list[str]:
    """All held-out texts. None at all is an error: then nothing is checked."""
    found = [
        json.loads(line)["text"]
        for path in sorted(folder.glob("*.jsonl"))
        # Not splitlines(): a text may hold any other line separator of Unicode.
        for line in path.read_text("utf-8").split("\n")
        if line.strip()
    ]
    if not found:
        raise FileNotFoundError(
            f"no held-out text in {folder}: without them nobody can tell what must not be trained on"
        )
    return found


@cache
def _index() -> tuple[list[str], list[int], dict[str, list[int]]]:
    """The texts, how many runs each has, and in which texts a run is."""
    held = texts()
    sizes, places = [], dict[str, list[int]]()
    for number, text in enumerate(held):
        own = runs(text)
        sizes.append(len(own))
        for run in own:
            places.setdefault(run, []).append(number)
    return held, sizes, places


def nearest(text: str) -> tuple[float, str]:
    """Which held-out text a text holds most of, and the share of its runs."""
    held, sizes, places = _index()
    shared: Counter[int] = Counter()
    for run in runs(text):
        shared.update(places.get(run, ()))
    share, number = max(((count / sizes[number], number) for number, count in shared.items()), default=(0.0, 0))
    return share, held[number]


def copied(some: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Each text that holds a held-out one, and that one."""
    for text in some:
        share, which = nearest(text)
        if share >= COPIED:
            yield text, which


def refuse(some: Iterable[str], where: str) -> None:
    """Raises SystemExit where a text is held out: what was trained on cannot be measured with."""
    for text, which in copied(some):
        raise SystemExit(
            f"{where} holds a text of bench/held_out, which is for measuring and never for training: {text[:80]!r} "
            f"holds {which[:80]!r} or nearly so. Take it out."
        )
