"""Clusters of the model's own hidden states: groups for coverage where no column has any.

K-means (Lloyd 1982, seeded as k-means++: Arthur and Vassilvitskii 2007) on the principal
components of the states that scoring kept of the prompts (``rap.scores.states``). Fitted to
at most ``FIT`` samples, evenly spaced; all are assigned, a batch at a time. Same table,
same clusters.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..scores.reader import Reader
from ..scores.states import COLUMN, states_of

K = 8
COMPONENTS = 16
FIT = 2**13
STARTS = 3
"""K-means is run from so many seeds; the one with the least squared distances is taken."""
ROUNDS = 40

Array = np.ndarray


@dataclass(frozen=True, slots=True)
class Clusters:
    """``code``: int8 [n], 0 .. ``k`` - 1 by size, largest first; ``k``: the sample has no
    state. ``known``: samples with one."""

    code: Array
    k: int
    known: int


def clusters_of(reader: Reader, k: int = K) -> Clusters:
    """Clusters of all rows; ``k`` is 0 where no row has a state."""
    n, known = reader.num_rows, 0
    code = np.zeros(n, np.int8)
    step = max(1, -(-n // FIT))
    some = []
    for rows, states in _states(reader):
        some.append(states[rows % step == 0])
        known += len(rows)
    if not known:
        return Clusters(code, 0, 0)
    fitted = np.concatenate(some)
    if not len(fitted):  # all that are known lie between those rows
        fitted = next(states for _, states in _states(reader) if len(states))
    mean, axes = components(fitted)
    centres = kmeans(fitted.astype(np.float64) @ axes - mean, k)
    code[:] = len(centres)
    for rows, states in _states(reader):
        code[rows] = nearest(states.astype(np.float64) @ axes - mean, centres)[0]
    return Clusters(_by_size(code, len(centres)), len(centres), known)


def _states(reader: Reader) -> Iterator[tuple[Array, Array]]:
    """(int64 rows that have a state, float32 states) a batch."""
    start = 0
    if COLUMN not in reader.schema.names:
        return
    for batch in reader.batches([COLUMN]):
        rows, states = states_of(batch[COLUMN])
        yield rows + start, states
        start += batch.num_rows


def _by_size(code: Array, k: int) -> Array:
    """The codes renumbered, largest cluster first, ties as they are."""
    order = np.argsort(-np.bincount(code, minlength=k + 1)[:k], kind="stable")
    new = np.empty(k + 1, np.int8)
    new[order], new[k] = np.arange(k), k
    return new[code]


def components(states: Array, many: int = COMPONENTS) -> tuple[Array, Array]:
    """(mean [c], axes [d, c]) of the first principal components: x @ axes - mean."""
    x = states.astype(np.float64)
    centre = x.mean(axis=0)
    x -= centre
    _, vectors = np.linalg.eigh(x.T @ x)  # ascending
    axes = vectors[:, ::-1][:, :many]
    return centre @ axes, axes


def nearest(x: Array, centres: Array) -> tuple[Array, Array]:
    """(the nearest centre of each row, its squared distance); ties to the first."""
    squared = np.maximum(
        (x * x).sum(axis=1)[:, None] - 2 * x @ centres.T + (centres * centres).sum(axis=1),
        0.0,
    )
    return squared.argmin(axis=1), squared.min(axis=1)


def kmeans(x: Array, k: int, *, seed: int = 0) -> Array:
    """At most ``k`` centres [k, d] of the rows of x [n, d], n >= 1; fewer where there are
    fewer distinct rows."""
    k = min(k, len(np.unique(x, axis=0)))
    rng = np.random.default_rng(seed)
    best: tuple[float, Array] | None = None
    for _ in range(STARTS):
        centres = _seeded(x, k, rng)
        place, far = nearest(x, centres)
        for _ in range(ROUNDS):
            centres = _means(x, place, far, centres)
            again, far = nearest(x, centres)
            if np.array_equal(again, place):
                break
            place = again
        total = float(far.sum())
        if best is None or total < best[0]:
            best = total, centres
    assert best is not None
    return best[1]


def _seeded(x: Array, k: int, rng: np.random.Generator) -> Array:
    """k-means++: each next centre by lot, in proportion to its squared distance."""
    centres = x[rng.integers(len(x))][None]
    while len(centres) < k:
        up_to = np.cumsum(nearest(x, centres)[1])
        place = int(np.searchsorted(up_to, rng.random() * up_to[-1], side="right"))
        centres = np.concatenate([centres, x[min(place, len(x) - 1)][None]])
    return centres


def _means(x: Array, place: Array, far: Array, centres: Array) -> Array:
    """The mean of each cluster; an empty one moves to the row farthest from its own."""
    counts = np.bincount(place, minlength=len(centres))
    members = np.equal.outer(np.arange(len(centres)), place).astype(np.float64)
    found = (members @ x) / np.maximum(counts, 1)[:, None]
    empty = np.flatnonzero(counts == 0)
    if len(empty):
        found[empty] = x[np.argsort(-far, kind="stable")[: len(empty)]]
    return found
