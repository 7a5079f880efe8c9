"""The head for documents: a sentence that is an order to a model that reads it, against every other sentence.

Learned from BIPIA's documents, from what users ask of assistants, and from documents of our own in pairs, which hold an
order to a model or one to somebody else in the same place.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import attacks
import documents
import held_out
import numpy as np
from linear import OUT, Array, evened, fit, folded, matrix, save
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sources import Source

from aibox.guardrails.features import segments, words_of
from aibox.guardrails.heads import standing_out
from aibox.guardrails.normalise import normalise

STRENGTH = 4.0
RARE = 2.0
"""At 0 the pairs of an author left out are parted worse (AUC 0.83 for 0.87), and BIPIA left out too (0.78 for 0.86);
at 3 they are again (0.86 and 0.83)."""
EMPHASIS = {"request": 0.3, "pair": 2.5}
"""What people ask of an assistant is an order to a model, and most of it could as well be said to a person: at 1, ever
more twins are taken for planted orders, and at 0 the plain tasks that BIPIA plants are not found. With pairs at 3
BIPIA's kinds of attack that are left out lose (AUC 0.951), at 2 an author's pairs that are (42 % found for 45 %)."""
FOLDS = 5

Words = list[str]


@dataclass(frozen=True, slots=True)
class Read:
    """A document sentence by sentence: `orders` says which of them are planted, `put` which of a pair differ."""

    sentences: list[Words]
    label: int
    fold: int
    """What is left out together: kinds of attack, acts that are asked for, documents that hold none."""
    origin: str
    version: str
    put: Collection[int] = ()
    planted: tuple[Words, ...] = ()
    """The planted sentences as they were before they stood in the document, where that is known."""


def sentences_of(text: str) -> list[Words]:
    text = folded(text)
    return [words_of(text[start:end]) for start, end in segments(text)]


def bipia(sources: list[Source]) -> Iterator[Read]:
    rows = [row for source in sources if source.train and source.role == "indirect" for row in source.rows]
    kinds = sorted({row["attack"] for row in rows if row["label"]})
    clean = 0
    for row in rows:
        if row["label"]:
            orders = tuple(sentences_of(row["inj"]))
            fold = kinds.index(row["attack"]) % FOLDS
            yield Read(sentences_of(row["text"]), 1, fold, "bipia", "planted", planted=orders)
        else:
            yield Read(sentences_of(row["text"]), 0, clean % FOLDS, "bipia", "plain")
            clean += 1


def own() -> Iterator[Read]:
    """The pairs. An act that is left out is left out of all documents; who holds no order goes by the document."""
    made = list(documents.documents())
    held_out.refuse((each.text for each in made), "training/documents")
    acts = sorted({each.act for each in made if each.act})
    for each in made:
        normal = normalise(each.text)
        sentences: list[Words] = []
        put = []
        for start, end in segments(normal.text):
            if each.pair and within(normal.span(start, end), each.span):
                put.append(len(sentences))
            sentences.append(words_of(normal.text[start:end]))
        fold = acts.index(each.act) if each.act else zlib.crc32(each.origin.encode())
        yield Read(sentences, each.label, fold % FOLDS, "own", each.version, tuple(put))


def within(sentence: tuple[int, int], put: tuple[int, int]) -> bool:
    """Whether a sentence holds enough of what a pair put into a text."""
    shared = min(sentence[1], put[1]) - max(sentence[0], put[0])
    return shared >= min(12, (put[1] - put[0]) // 2)


def requests(sources: list[Source], templates: Path) -> tuple[list[Words], list[Words]]:
    """Sentences that ask something of an assistant, and sentences of harmless texts."""
    negative: list[Words] = []
    positive: list[Words] = []
    for source in sources:
        if not source.train:
            continue
        for row in source.rows:
            if source.role == "benign" and "gsm" in source.name:
                negative += sentences_of(row["text"])[:-1]
            elif source.role == "benign":
                positive += sentences_of(row["text"])[:1]
            elif source.role == "harm" and len(row["text"]) > 200 and "moderation" in source.name:
                negative += sentences_of(row["text"])[1:6]
        if source.role == "attack":
            short = [row for row in source.rows if len(row["text"]) < 400]
            positive += [words_of(folded(row["text"])) for row in short[:: max(1, len(short) // 2500)]]
    if templates.is_file():
        lines = templates.read_text("utf-8").splitlines()
        held_out.refuse(lines, templates.name)
        negative += [words_of(folded(re.sub(r"\{\{(\w+)\}\}", r"\1", line))) for line in lines]
    return positive, negative


class Sentences:
    """What stays in training whatever is left out, and what is learned from the documents that are not."""

    def __init__(self, sources: list[Source], templates: Path) -> None:
        self._positive, self._negative = requests(sources, templates)
        made = list(attacks.documents())
        held_out.refuse((each.text for each in made), "training/attacks")
        self._lines = [(words, each.label) for each in made for words in sentences_of(each.text)]
        self.made = Counter("order" if each.label else "harmless" for each in made)

    def trained(self, read: list[Read]) -> LogisticRegression:
        rows: dict[tuple[str, str], None] = {}

        def add(group: str, some: list[Words]) -> None:
            rows.update(dict.fromkeys((group, " ".join(words)) for words in some))

        for each in read:
            if each.origin == "bipia":
                add("order/1", list(each.planted)) if each.label else add("document/0", each.sentences)
            else:
                inside = [each.sentences[at] for at in each.put]
                add(f"pair/{each.label}" if each.label else "pair twin/0", inside)
                add("pair around/0", [words for at, words in enumerate(each.sentences) if at not in each.put])
        known = [*rows, *(("request/1", " ".join(words)) for words in self._positive)]
        known += (("other/0", " ".join(words)) for words in self._negative)
        known += ((f"lines/{label}", " ".join(words)) for words, label in self._lines)
        groups = [group for group, _ in known]
        labels = [int(group[-1]) for group in groups]
        # Words hold no space.
        texts = [text.split(" ") for _, text in known]
        return fit(matrix(texts, addressed=True), labels, evened(groups, EMPHASIS), strength=STRENGTH, rare=RARE)


def margin(model: LogisticRegression, read: Read) -> float:
    """Of a document: that of the sentence which stands out most."""
    return max(standing_out(list(model.decision_function(matrix(read.sentences, addressed=True)))))


def unseen(sentences: Sentences, read: list[Read]) -> list[float]:
    """Margins of all documents, each by a model that has seen no attack of its kind, or no order to do such a thing."""
    margins = [0.0] * len(read)
    for fold in range(FOLDS):
        model = sentences.trained([each for each in read if each.fold != fold])
        for at, each in enumerate(read):
            if each.fold == fold:
                margins[at] = margin(model, each)
    return margins


def auc(read: list[Read], margins: list[float], origin: str, against: Collection[str]) -> float:
    """Planted documents of an origin against its other versions."""
    chosen = [at for at, each in enumerate(read) if each.origin == origin and (each.label or each.version in against)]
    return round(float(roc_auc_score([read[at].label for at in chosen], [margins[at] for at in chosen])), 4)


def indirect(sources: list[Source], card: dict[str, Any], templates: Path) -> None:
    sentences = Sentences(sources, templates)
    read = [*bipia(sources), *own()]
    margins = unseen(sentences, read)
    benign: Array = np.array([margin for margin, each in zip(margins, read, strict=True) if not each.label])
    card["heads"]["indirect"] = {
        "calibrated_on": ["documents without an order to a model, each by a model that had not seen it or its like"],
        "texts": len(benign),
        "auc_of_unseen_attack_kinds": auc(read, margins, "bipia", ("plain",)),
        "auc_of_pairs_unseen_acts": auc(read, margins, "own", ("twin",)),
        "addressed": hashlib.sha256((OUT.parent / "addressed.toml").read_bytes()).hexdigest(),
        "sentences_made": dict(sentences.made),
        "documents_made": dict(Counter(each.version for each in read if each.origin == "own")),
    }
    save("indirect", sentences.trained(read), benign, card)
