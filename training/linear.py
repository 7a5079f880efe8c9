"""What the trained heads have in common: rows of features, a fit with weighed groups, scores by rarity, a file."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
from sklearn.linear_model import LogisticRegression

from aibox.guardrails.addressed import classes
from aibox.guardrails.features import BITS, features
from aibox.guardrails.normalise import normalise

OUT = Path(__file__).parent.parent / "aibox" / "guardrails" / "weights"
ROLES_BENIGN = ("benign", "harm", "topic", "trigger_en", "over_refusal")
RARITY = ((0.5, 0.0), (0.05, 0.5), (0.01, 0.8), (0.001, 0.95))
"""(share of benign texts above, score)."""
EVENNESS = 0.5
"""A group weighs as this power of its size less than all of it, so that the largest source does not decide alone."""

Array = np.ndarray[Any, Any]


def folded(text: str) -> str:
    return normalise(text).text


def matrix(texts: list[list[str]], *, addressed: bool = False) -> Any:
    """One row of features a text, of unit length. `addressed`: as the head for documents weighs a sentence."""
    places: list[int] = []
    values: list[float] = []
    ends = [0]
    for words in texts:
        found = sorted(features(words, apart=True) | (classes(words) if addressed else set()))
        places += found
        values += [max(1, len(found)) ** -0.5] * len(found)
        ends.append(len(places))
    return scipy.sparse.csr_matrix((np.array(values), places, ends), shape=(len(texts), 1 << BITS))


def fit(rows: Any, labels: Any, weights: Array, *, strength: float, rare: float) -> LogisticRegression:
    """`weights`: of the rows, see `evened`. `rare`: see `freedom`."""
    model = LogisticRegression(C=strength, solver="liblinear", random_state=0)
    scale = freedom(rows, rare)
    scaled = scipy.sparse.csr_matrix((rows.data * scale[rows.indices], rows.indices, rows.indptr), shape=rows.shape)
    model.fit(scaled, labels, sample_weight=weights * len(weights) / weights.sum())
    # Whoever weighs a text knows nothing of it: how rare a feature is, is in its weight.
    model.coef_ = model.coef_ * scale
    return model


def evened(groups: Any, emphasis: dict[str, float]) -> Array:
    """The weight of each row, by its group. `emphasis`: how much one whose name begins so weighs beside others of its
    size."""
    count = Counter(groups)
    more = {group: next((by for start, by in emphasis.items() if group.startswith(start)), 1.0) for group in count}
    return np.array([count[group] ** -EVENNESS * more[group] for group in groups])


def freedom(rows: Any, power: float) -> Array:
    """How freely each feature may be learned: its inverse document frequency to a power, 0 for all alike. At 2 a word
    in one of 1,000 texts may weigh nine times what one in every tenth does for the same cost; rows keep their length.
    """
    known = np.bincount(rows.indices, minlength=rows.shape[1])
    free = np.log((rows.shape[0] + 1) / (known + 1)) ** power
    length = np.sqrt((rows.data**2 * free[rows.indices] ** 2).sum() / (rows.data**2).sum())
    scale: Array = free / length
    return scale


def curve(benign: Array) -> list[tuple[float, float]]:
    """Margin to score, from the margins of benign texts."""
    points = [(float(np.quantile(benign, 1 - share)), score) for share, score in RARITY if share * len(benign) >= 0.5]
    top = points[-1][0] + 2.0 * max(1.0, points[-1][0] - points[1][0])
    # Beyond what benign texts showed, the score goes on rising to 1.
    points.append((top, 1.0))
    rising = [points[0]]
    for margin, score in points[1:]:
        rising.append((max(margin, rising[-1][0] + 1e-3), score))
    return [(round(margin, 4), score) for margin, score in rising]


def save(name: str, model: LogisticRegression, benign: Array, card: dict[str, Any]) -> None:
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
