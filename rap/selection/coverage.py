"""Coverage: a concave reward over groups of samples, so that no group takes all.

    reward(S) = sum over groups g of log(1 + sum of s_i over S in g / scale)

``marginal`` says how much each sample adds, ``top`` takes the best. Pure NumPy.
"""

from __future__ import annotations

import numpy as np

SCALE = 0.2
"""About one sample: p (1 - p) is at most 1/4. The next of its group then counts half."""


def marginal(value: np.ndarray, group: np.ndarray, scale: float = SCALE) -> np.ndarray:
    """float64 [n]: s / (scale + sum of the larger s of its group).

    log(1 + this) is what the sample adds to the reward when those are chosen already. In a
    group the larger value always adds more, ties by row, so the order within it does not
    depend on what is chosen elsewhere; these numbers fall along that order. Hence the k
    largest of all are what choosing greedily, one at a time, gives: exactly, whatever k.

    value: float64 [n], >= 0. group: int [n].
    """
    order = np.lexsort((-value, group))  # stable: ties by row
    ordered, found = value[order], np.empty(len(value))
    bounds = np.flatnonzero(np.diff(group[order])) + 1
    start = 0
    for end in [*bounds.tolist(), len(value)]:
        part = ordered[start:end]
        before = np.zeros(len(part))
        np.cumsum(part[:-1], out=before[1:])
        part /= scale + before
        start = end
    found[order] = ordered
    return found


def top(value: np.ndarray, k: int) -> np.ndarray:
    """int64 [<= k], ascending: the places of the k largest, ties by place."""
    if k >= len(value):
        return np.arange(len(value))
    return np.sort(np.argsort(-value, kind="stable")[: max(k, 0)])


def reward(value: np.ndarray, group: np.ndarray, scale: float = SCALE) -> float:
    """What the samples of these values and groups are worth together."""
    if not len(value):
        return 0.0
    _, place = np.unique(group, return_inverse=True)
    return float(np.log1p(np.bincount(place.reshape(-1), value) / scale).sum())
