"""A linear head that cannot rely on any one feature: of every text most are hidden while it is learned.

Logistic loss by AdaGrad (Duchi, Hazan and Singer, 2011: a feature that is seldom there takes larger steps) with
features dropped at random (Wager, Wang and Liang, 2013: as if each were restrained by how surely it tells), the mean of
the weights after all but the first rounds. Sums go in one order, so that the same rows give the same weights.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse
from linear import Array
from scipy.special import expit

KEPT = 0.3
"""The share of a text's features that is shown at a time."""
ROUNDS, LEFT_OUT = 12, 4
"""How often each text is shown, and after how many rounds the mean begins."""
BATCH = 128
STEP = 0.1
GAIN = 10.0
"""Of the margin: rows have length 1, and a head of unit weights would tell hardly anything apart."""
SEEN = 2
"""In so many texts at least a feature must be, or it keeps the weight 0."""


def learned(rows: Any, labels: Any, weights: Array) -> tuple[Array, float]:
    """The weights of the features and the bias, from rows of `matrix` and what each weighs."""
    chance = np.random.default_rng(0)
    known = np.flatnonzero(np.bincount(rows.indices, minlength=rows.shape[1]) >= SEEN)
    some = rows[:, known]
    wanted, costs = np.asarray(labels, dtype=float), weights / weights.mean()
    head, total = np.zeros(len(known)), np.zeros(len(known))
    bias = bias_total = 0.0
    steps, bias_steps = np.full(len(known), 1e-6), 1e-6
    for number in range(ROUNDS):
        order = chance.permutation(some.shape[0])
        for at in range(0, len(order), BATCH):
            batch = order[at : at + BATCH]
            shown = _shown(some[batch], chance)
            wrong = costs[batch] * (expit(GAIN * (shown @ head) + bias) - wanted[batch]) / len(batch)
            here, places = np.unique(shown.indices, return_inverse=True)
            slope = GAIN * np.bincount(places, weights=shown.data * np.repeat(wrong, np.diff(shown.indptr)))
            steps[here] += slope**2
            head[here] -= STEP * slope / np.sqrt(steps[here])
            bias_steps += wrong.sum() ** 2
            bias -= STEP * wrong.sum() / bias_steps**0.5
        if number >= LEFT_OUT:
            total += head
            bias_total += bias
    made = np.zeros(rows.shape[1])
    made[known] = GAIN * total / (ROUNDS - LEFT_OUT)
    return made, bias_total / (ROUNDS - LEFT_OUT)


def _shown(rows: Any, chance: np.random.Generator) -> Any:
    """Rows with most of their features dropped, the others larger for it: their sum stays what it was in the mean."""
    kept = chance.random(len(rows.data)) < KEPT
    ends = np.concatenate([[0], np.cumsum(kept)])[rows.indptr]
    return scipy.sparse.csr_matrix((rows.data[kept] / KEPT, rows.indices[kept], ends), shape=rows.shape)
