"""Train the guardrail's heads from labelled text on disk: `make train-guards DATA=folder`. Same files, same weights.

The folder holds a `sources.toml` that names each file's role and whether it may be trained on. What is trained on, and
what came of it, goes to the card beside the weights. A text of bench/held_out is refused wherever it turns up.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import attacks
import held_out
import numpy as np
import scipy.sparse
import sklearn
from benign import families
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sources import Source, read

from aibox.guardrails.features import BITS, features, segments, windows, words_of
from aibox.guardrails.normalise import normalise

OUT = Path(__file__).parent.parent / "aibox" / "guardrails" / "weights"
ROLES_BENIGN = ("benign", "harm", "topic", "trigger_en", "over_refusal")
RARITY = ((0.5, 0.0), (0.05, 0.5), (0.01, 0.8), (0.001, 0.95))
"""(share of benign texts above, score)."""


def matrix(texts: list[list[str]]) -> Any:
    """One row of features a text, of unit length."""
    places: list[int] = []
    values: list[float] = []
    ends = [0]
    for words in texts:
        found = sorted(features(words))
        places += found
        values += [max(1, len(found)) ** -0.5] * len(found)
        ends.append(len(places))
    return scipy.sparse.csr_matrix((np.array(values), places, ends), shape=(len(texts), 1 << BITS))


def fit(rows: Any, labels: Any, groups: Any, *, strength: float) -> LogisticRegression:
    """Groups weigh as a power of their size, so that the largest source does not decide alone."""
    count = Counter(groups)
    weights = np.array([count[group] ** -EVENNESS * emphasis(group) for group in groups])
    model = LogisticRegression(C=strength, solver="liblinear", random_state=0)
    return model.fit(rows, labels, sample_weight=weights * len(weights) / weights.sum())


def emphasis(group: str) -> float:
    """How much a group weighs beside others of its size."""
    return next((weight for start, weight in EMPHASIS.items() if group.startswith(start)), 1.0)


def curve(benign: np.ndarray[Any, Any]) -> list[tuple[float, float]]:
    """Margin to score, from the margins of benign texts."""
    points = [(float(np.quantile(benign, 1 - share)), score) for share, score in RARITY if share * len(benign) >= 0.5]
    top = points[-1][0] + 2.0 * max(1.0, points[-1][0] - points[1][0])
    # Beyond what benign texts showed, the score goes on rising to 1.
    points.append((top, 1.0))
    rising = [points[0]]
    for margin, score in points[1:]:
        rising.append((max(margin, rising[-1][0] + 1e-3), score))
    return [(round(margin, 4), score) for margin, score in rising]


def save(name: str, model: LogisticRegression, benign: np.ndarray[Any, Any], card: dict[str, Any]) -> None:
    weights = model.coef_[0]
    scale = float(np.abs(weights).max() / 127)
    data = array("b", [int(value) for value in np.rint(weights / scale)]).tobytes()
    OUT.mkdir(exist_ok=True)
    (OUT / f"{name}.bin").write_bytes(data)
    card["heads"][name] = {
        "sha256": hashlib.sha256(data).hexdigest(),
        "scale": scale,
        "bias": float(model.intercept_[0]),
        "curve": curve(benign),
        **card["heads"].get(name, {}),
    }


def folded(text: str) -> str:
    return normalise(text).text


EVENNESS = 0.5
EMPHASIS = {"family": 4.0, "own": 1.0}
"""How much more a family of harmless sentences, and a language of attacks of our own, weighs than a source of its size.

At 8 and 4, which did for English alone, the many groups of ours drown the sources: left out, 39 % of S-Labs, 25 % of
NeurAlchemy and 65 % of the collected jailbreaks are found; at 1 and 1 57 %, 25 % and 71 % (as `left_out.py` counts).
With families at 1, 8 % of NotInject's trigger words are flagged, at 4 5.3 %."""
STRENGTH = 8.0


@dataclass(frozen=True, slots=True)
class Part:
    """A window of a text, and what may be left out together with it."""

    words: list[str]
    label: int
    source: str
    language: str = ""
    intent: str = ""

    @property
    def group(self) -> str:
        return f"{self.source}{self.language}/{self.label}"


def parts_of(sources: list[Source]) -> Iterator[Part]:
    """What the head for users' texts is trained on: attacks against harmless texts, harmful requests and documents."""
    for source in sources:
        if source.train:
            for row in source.rows:
                label = 0 if source.role in ROLES_BENIGN else row["label"]
                if source.role != "indirect" or label == 0:
                    for words in windows_of(row["text"]):
                        yield Part(words, label, source.name, row.get("lang", ""))
    for number, family in enumerate(families()):
        held_out.refuse(family, f"family {number} of training/benign")
        for sentence in family:
            for words in windows_of(sentence):
                yield Part(words, 0, f"family {number}")
    made = list(attacks.direct())
    held_out.refuse((each.text for each in made), "training/attacks")
    for each in made:
        for words in windows_of(each.text):
            yield Part(words, each.label, "own", each.language, each.intent)


def windows_of(text: str) -> list[list[str]]:
    return [words for _, _, words in windows(folded(text))]


FOLDS = 4


@dataclass(frozen=True, slots=True)
class Calm:
    """A harmless text, and what is left out with it: a source, or a quarter of the languages and families of ours."""

    text: str
    fold: str


def calm_texts(sources: list[Source]) -> Iterator[Calm]:
    """As many of each source, of each language and of each family, however large they are."""
    for source in sources:
        if source.train:
            texts = [row["text"] for row in source.rows if source.role in ROLES_BENIGN or not row["label"]]
            yield from (Calm(text, source.name) for text in spread(texts, 100))
    ours: dict[str, list[str]] = {}
    for made in attacks.direct():
        if not made.label:
            ours.setdefault(made.language, []).append(made.text)
    for number, texts in enumerate(ours.values()):
        yield from (Calm(text, fold_of(number)) for text in spread(texts, 25))
    for number, family in enumerate(families()):
        yield from (Calm(text, fold_of(number)) for text in spread(list(family), 12))


def folds_of_ours() -> dict[str, str]:
    """A language, or the name of a family, to its fold."""
    of_families = [f"family {number}" for number, _ in enumerate(families())]
    return {name: fold_of(number) for names in (attacks.files(), of_families) for number, name in enumerate(names)}


def fold_of(number: int) -> str:
    return f"ours {number % FOLDS}"


def spread(texts: list[str], most: int) -> list[str]:
    return texts[:: max(1, len(texts) // most)][:most]


def unseen(sources: list[Source], parts: list[Part], rows: Any) -> list[float]:
    """Margins of harmless texts, each by a model that had seen nothing of its kind."""
    ours = folds_of_ours()
    folds = np.array([ours.get(part.language if part.source == "own" else part.source, part.source) for part in parts])
    calm = list(calm_texts(sources))
    margins = []
    for fold in sorted({each.fold for each in calm}):
        seen = np.flatnonzero(folds != fold)
        model = fit(rows[seen], [parts[at].label for at in seen], [parts[at].group for at in seen], strength=STRENGTH)
        margins += [highest(model, each.text) for each in calm if each.fold == fold]
    return margins


def highest(model: LogisticRegression, text: str) -> float:
    return float(max(model.decision_function(matrix(windows_of(text)))))


def direct(sources: list[Source], card: dict[str, Any]) -> None:
    parts = list(parts_of(sources))
    rows = matrix([part.words for part in parts])
    model = fit(rows, [part.label for part in parts], [part.group for part in parts], strength=STRENGTH)
    held = [s for s in sources if not s.train and s.role in ("benign", "topic", "harm")]
    benign = np.array(
        [*(highest(model, row["text"]) for source in held for row in source.rows), *unseen(sources, parts, rows)]
    )
    card["heads"]["direct"] = {
        "windows": len(parts),
        "calibrated_on": [
            *(s.name for s in held),
            "harmless texts of training, each by a model that had not seen its source, language or family",
        ],
        "texts": len(benign),
        "families_made": len({part.source for part in parts if part.source.startswith("family")}),
        "languages_made": sorted({part.language for part in parts if part.source == "own"}),
        "windows_made": dict(Counter("attack" if part.label else "harmless" for part in parts if part.source == "own")),
    }
    save("direct", model, benign, card)


def sentences_of(text: str) -> list[list[str]]:
    text = folded(text)
    return [words_of(text[start:end]) for start, end in segments(text)]


def requests(sources: list[Source], templates: Path) -> tuple[list[list[str]], list[list[str]]]:
    """Sentences that ask something of an assistant, and sentences of harmless texts."""
    negative: list[list[str]] = []
    positive: list[list[str]] = []
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


def indirect(sources: list[Source], card: dict[str, Any], templates: Path) -> None:
    """Sentences of documents: what is addressed to an assistant against everything else. Five folds, attacks apart."""
    documents = [row for source in sources if source.train and source.role == "indirect" for row in source.rows]
    clean = [row for row in documents if row["label"] == 0]
    dirty = [row for row in documents if row["label"] == 1]
    positive, negative = requests(sources, templates)
    made = list(attacks.documents())
    held_out.refuse((each.text for each in made), "training/attacks")
    own = [(words, each.label) for each in made for words in sentences_of(each.text)]

    def trained(planted: list[dict[str, Any]], others: list[dict[str, Any]]) -> LogisticRegression:
        orders = sorted({" ".join(words) for row in planted for words in sentences_of(row["inj"])})
        plain = sorted({" ".join(words) for row in others for words in sentences_of(row["text"])})
        texts = [*(words_of(text) for text in orders), *positive, *(words_of(text) for text in plain), *negative]
        labels = [1] * (len(orders) + len(positive)) + [0] * (len(plain) + len(negative))
        groups = ["order"] * len(orders) + ["request"] * len(positive)
        groups += ["document"] * len(plain) + ["other"] * len(negative)
        texts += [words for words, _ in own]
        labels += [label for _, label in own]
        groups += [f"own/{label}" for _, label in own]
        return fit(matrix(texts), labels, groups, strength=4)

    kinds = sorted({row["attack"] for row in dirty})
    margins: list[float] = []
    truth: list[int] = []
    for fold in range(5):
        held = set(kinds[fold::5])
        model = trained(
            [row for row in dirty if row["attack"] not in held],
            [row for number, row in enumerate(clean) if number % 5 != fold],
        )
        rows = [row for row in dirty if row["attack"] in held]
        rows += [row for number, row in enumerate(clean) if number % 5 == fold]
        for row in rows:
            margins.append(max(model.decision_function(matrix(sentences_of(row["text"])))))
            truth.append(row["label"])
    auc = roc_auc_score(truth, margins)
    benign = np.array([margin for margin, label in zip(margins, truth, strict=True) if not label])
    card["heads"]["indirect"] = {
        "calibrated_on": ["clean documents, each by a model that had not seen it"],
        "texts": len(benign),
        "auc_of_unseen_attack_kinds": round(float(auc), 4),
        "sentences_made": dict(Counter("order" if each.label else "harmless" for each in made)),
    }
    save("indirect", trained(dirty, clean), benign, card)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="a folder with sources.toml and the files it names")
    options = parser.parse_args()
    sources = read(options.data)
    card: dict[str, Any] = {
        "made_by": f"training/guards.py with scikit-learn {sklearn.__version__}",
        "score": "5 in 100 benign texts lie above 0.5, 1 in 100 above 0.8, 1 in 1,000 above 0.95",
        "trained_on": {s.name: {"rows": len(s.rows), "role": s.role, "sha256": s.sha256} for s in sources if s.train},
        "heads": {},
    }
    direct(sources, card)
    indirect(sources, card, options.data.parent / "pii" / "presidio_templates.txt")
    (OUT / "card.json").write_text(json.dumps(card, indent=1) + "\n", "utf-8")
    for name, head in card["heads"].items():
        print(f"{name}: {head['sha256'][:16]}", {key: head[key] for key in head if key != "sha256"})
    return 0


if __name__ == "__main__":
    sys.exit(main())
