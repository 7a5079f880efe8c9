"""People, addresses and places in running text, by a small named-entity model: the check `entities`, an extra.

Where the policy asks for it. It works in a thread of its own, and what it found in a sentence is remembered by a keyed
digest, never with the text. Organisations are not looked for.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from functools import cache

from aibox.guardrails import entity_model
from aibox.guardrails.entity_model import GROUPS, PIECES, EntityModel, model
from aibox.guardrails.formats import Found
from aibox.guardrails.marks import masked
from aibox.guardrails.names import NOT_A_NAME, common_words, is_given
from aibox.guardrails.normalise import normalise
from aibox.guardrails.wordpiece import Piece
from aibox.types import Decision, Finding, Label, Scope, Verdict, Where

FLOOR = 0.25
"""A word counts from this likelihood on; chosen on half of the sentence templates, see docs/guardrails-measured.md."""
PLACE_SCORE = 0.5
"""The score of a city or a state by itself. Names and addresses score from 0.7 to 1."""
CACHED = 4_096
"""So many sentences are remembered."""
BATCH_PIECES = 1024
"""So much is looked at in one go: it bounds the memory, and how long abandoned work goes on (some 0.1 s)."""
_START_PIECES = 20
"""To begin a batch costs about as much as so many pieces of padding: 2 ms where a piece takes 0.11 ms."""
_OVERLAP = 32
_STEP = PIECES - _OVERLAP

Mark = tuple[int, int, str, float]
"""A word that tells of an entity: start, end, type, likelihood."""
_REASONS = {"PERSON": "a person's name", "ADDRESS": "a postal address", "PLACE": "a place"}

# A sentence, as far as the model is concerned: an address may go over several lines, but not over an empty one.
_ABBREVIATIONS = ("apt", "ste", "no", "st", "mr", "mrs", "ms", "dr", "prof", "tel", "ext", "ul", "str")
_NO_END = "".join(rf"(?<!\b{word})" for word in ("[a-z]", *_ABBREVIATIONS))
_END = re.compile(rf"(?:(?i:{_NO_END})\.|[!?])[\"')\]]{{0,3}}\s|\n[ \t]{{0,8}}\n")
# Forms that the model does not know well: rooms after a street, post boxes, and mail to the forces.
_UNIT = re.compile(
    r"(?i)\b(?:p\.? ?o\.? box \d{1,6}|psc \d{1,5},? box \d{1,5}|(?:unit|cmr) \d{1,5},? box \d{1,5}"
    r"|[afd]po,? a[aep] \d{5}(?:-\d{4})?|(?:apt|apartment|suite|ste|unit|room)\.? ?#? ?\d{1,5}[a-z]?)\b"
)
_GAPS = {"PERSON": re.compile(r"[ .'’-]{0,2}"), "ADDRESS": re.compile(r"[\s,.>/-]{0,12}")}


class Entities:
    """Finds people, addresses and places: a Check. Rules PERSON, ADDRESS and PLACE; findings do not overlap.

    Measured in `docs/guardrails-measured.md`; the model knows English best. Raises MissingExtraError from `check`
    when it is not installed, IntegrityError when its files are not the known ones.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._key = os.urandom(32)
        self._seen: OrderedDict[bytes, tuple[Found, ...]] = OrderedDict()

    @property
    def name(self) -> str:
        return "entities"

    async def check(self, text: str, *, where: Where = "input", scope: Scope, label: Label | None = None) -> Verdict:  # noqa: ARG002 - the protocol's arguments
        """FLAG with findings in order, or ALLOW. The text is never changed. Who is cancelled leaves no work behind."""
        gone = threading.Event()
        try:
            loop = asyncio.get_running_loop()
            findings = await loop.run_in_executor(_worker(), self.scan, text, gone)
        finally:
            gone.set()
        return Verdict(Decision.FLAG if findings else Decision.ALLOW, text, findings, where=where)

    def scan(self, text: str, gone: threading.Event | None = None) -> tuple[Finding, ...]:
        """What `check` finds, in this thread. Time is linear in the text. A pseudonym is nobody's name or address."""
        normal = normalise(masked(text), fold=False)
        sentences = list(_sentences(normal.text))
        known = self._of([normal.text[start:end] for start, end in sentences], gone)
        return tuple(
            Finding("entities", type_, normal.span(at + start, at + end), score, _REASONS[type_])
            for (at, _), found in zip(sentences, known, strict=True)
            for start, end, type_, score in found
        )

    def _of(self, sentences: Sequence[str], gone: threading.Event | None) -> Iterator[tuple[Found, ...]]:
        """What each sentence holds, remembered."""
        keys = [
            hashlib.blake2b(sentence.encode("utf-8", "surrogatepass"), key=self._key, digest_size=16).digest()
            for sentence in sentences
        ]
        with self._lock:
            here = {key: self._seen[key] for key in keys if key in self._seen}
        new = {key: sentence for key, sentence in zip(keys, sentences, strict=True) if key not in here}
        made = zip(new, _weighed(list(new.values()), model(), gone), strict=True)
        here |= {key: tuple(_entities(new[key], marks)) for key, marks in made}
        with self._lock:
            for key in keys:
                self._seen[key] = here[key]
                self._seen.move_to_end(key)
            while len(self._seen) > CACHED:
                self._seen.popitem(last=False)
        return (here[key] for key in keys)

    def __repr__(self) -> str:
        return f"Entities({'' if entity_model.installed() else 'not installed'})"


@cache
def _worker() -> ThreadPoolExecutor:
    """Some processors are left to the event loop and to models."""
    return ThreadPoolExecutor(max_workers=max(1, (os.cpu_count() or 2) // 2), thread_name_prefix="aibox-entities")


def _sentences(text: str) -> Iterator[tuple[int, int]]:
    """Those with a letter in them, in order, without the space around them."""
    at = 0
    for stop in (*(match.end() for match in _END.finditer(text)), len(text)):
        sentence = text[at:stop]
        if any(map(str.isalpha, sentence)):
            yield at + len(sentence) - len(sentence.lstrip()), at + len(sentence.rstrip())
        at = stop


def _weighed(sentences: Sequence[str], by: EntityModel, gone: threading.Event | None) -> list[list[Mark]]:
    """The telling words of each sentence. Raises CancelledError where `gone` is set meanwhile."""
    rows: list[tuple[int, list[Piece]]] = []
    for number, sentence in enumerate(sentences):
        pieces = by.pieces(sentence)
        if _may_name(sentence, pieces):
            rows += ((number, pieces[at : at + PIECES]) for at in range(0, max(1, len(pieces) - _OVERLAP), _STEP))
    marks: list[list[Mark]] = [[] for _ in sentences]
    for batch in _batches(sorted(rows, key=lambda row: len(row[1]))):
        if gone is not None and gone.is_set():
            raise CancelledError
        for (number, pieces), chances in zip(batch, by.weigh([row[1] for row in batch]), strict=True):
            marks[number] += _telling(sentences[number], pieces, chances)
    return marks


def _batches(rows: Sequence[tuple[int, list[Piece]]]) -> Iterator[Sequence[tuple[int, list[Piece]]]]:
    """Rows, the short ones first, together while that costs less than another batch; none above `BATCH_PIECES`."""
    at = 0
    while at < len(rows):
        end = at + 1
        while end < len(rows):
            longest, before = len(rows[end][1]), len(rows[end - 1][1])
            if (end + 1 - at) * longest > BATCH_PIECES or (end - at) * (longest - before) > _START_PIECES:
                break
            end += 1
        yield rows[at:end]
        at = end


def _may_name(text: str, pieces: Sequence[Piece]) -> bool:
    """False for a sentence of common words alone: the model need not be asked, which is what saves most of the time.

    A name has a capital, or is a known given name, or no common word; an address has a number or a capital. A word is
    common that the model knows whole, or that is listed.
    """
    for number, (start, end, its) in enumerate(_words(pieces)):
        word = text[start:end]
        if word[0].isdigit():
            return True
        if not word[0].isalpha():
            continue
        small = word.lower()
        if small != word and number and small not in NOT_A_NAME and small != "i":
            return True
        if is_given(word) or (its.stop - its.start > 1 and small not in common_words()):
            return True
    return False


def _words(pieces: Sequence[Piece]) -> Iterator[tuple[int, int, slice]]:
    """Words whole: start, end, and which pieces they are."""
    firsts = [number for number, piece in enumerate(pieces) if piece.first or not number]
    for first, after in zip(firsts, [*firsts[1:], len(pieces)], strict=True):
        yield pieces[first].start, pieces[after - 1].end, slice(first, after)


def _telling(text: str, pieces: Sequence[Piece], chances: Sequence[list[float]]) -> Iterator[Mark]:
    for start, end, its in _words(pieces):
        each = max(chances[its], key=sum)
        chance, group = max(zip(each, GROUPS, strict=True))
        if sum(each) >= FLOOR and text[start:end].strip(".,;:!?'\"()-"):
            yield start, end, group, min(1.0, max(chance, FLOOR))


def _entities(text: str, marks: list[Mark]) -> list[Found]:
    """The entities of a sentence, in order and apart from each other."""
    forms = [(*match.span(), "ADDRESS", 0.9) for match in _UNIT.finditer(text)]
    return _joined(text, sorted({*marks, *forms}))


def _joined(text: str, marks: list[Mark]) -> list[Found]:
    """Words beside each other as one entity: names with names, and whatever leads to a door with the like."""
    joined: list[list[Mark]] = []
    end = 0
    for mark in marks:
        person = mark[2] == "PERSON"
        beside = bool(joined) and (
            mark[0] < end
            or (
                (joined[-1][-1][2] == "PERSON") == person
                and _GAPS["PERSON" if person else "ADDRESS"].fullmatch(text, end, mark[0])
            )
        )
        if beside:
            joined[-1].append(mark)
            end = max(end, mark[1])
        else:
            joined.append([mark])
            end = mark[1]
    return [_entity(text, group) for group in joined]


def _entity(text: str, marks: list[Mark]) -> Found:
    start, end = marks[0][0], max(mark[1] for mark in marks)
    types = {mark[2] for mark in marks}
    type_ = "ADDRESS" if "ADDRESS" in types else "PERSON" if "PERSON" in types else "PLACE"
    if type_ == "PERSON" and text[end - 2 : end] in ("'s", "’s"):
        end -= 2
    sure = max(mark[3] for mark in marks)
    return start, end, type_, PLACE_SCORE if type_ == "PLACE" else round(0.7 + 0.3 * (sure - FLOOR) / (1 - FLOOR), 3)
