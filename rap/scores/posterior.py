"""What few completions say of a pass rate: Beta posteriors, and the probability that a
sample can be learned from. Pure NumPy.

**Prior** of a pass rate p, for each arm (with, without the image): uniform, plus the
teacher-forced p(answer) = q where it is known, counted as ``w`` completions of which
``w q`` are right. After c of m completions were accepted,

    p ~ Beta(1 + w q + c, 1 + w (1 - q) + m - c).

``w`` is the same for a whole pool and is fitted to it (``fit_weight``): where p(answer)
says nothing about the pass rate it comes out as 0, and the prior is uniform.

**Keep-probability** of a sample, for a threshold lambda on D = p1 - p0:

    P = E[ 1{p1 - p0 > lambda} (1 - p1^G - (1 - p1)^G) ],   p1, p0 independent,

the probability that the image helps by more than lambda and that a group of G completions
holds both right and wrong ones. With none or all of them right the group's advantages are
zero and it teaches nothing (GRPO: Shao et al., DeepSeekMath, arXiv 2402.03300, section
4.1; groups without a mix are thrown away by DAPO, arXiv 2503.14476, section 3.2).
D: arXiv 2506.04755, CDE.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

CELLS = 256
"""Cells of the grid over p, at least; equal steps of the angle t, p = sin(t)^2."""
MAX_M = 64
"""Completions up to which CELLS resolve a posterior; more cells for more."""
NUMBERS = 1 << 19
"""Numbers of a matrix of rows by cells, at most: bounds memory."""
WEIGHTS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
"""What ``fit_weight`` chooses from: completions that p(answer) is worth."""
FIT_MIN = 20
"""Samples with completions that a weight is fitted to, at least."""
DEFAULT_WEIGHT = 1.0
"""The weight of p(answer) where no pool can be looked at."""


@dataclass(frozen=True, slots=True)
class Beta:
    """Beta(a, b), one a row: float64 [n], both >= 1 (a density without poles)."""

    a: np.ndarray
    b: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """float64 [n]: a / (a + b)."""
        return self.a / (self.a + self.b)


def posterior(
    c: np.ndarray, m: np.ndarray, q: np.ndarray | None = None, weight: float = 0.0
) -> Beta:
    """See the module's docstring. c, m: int64 [n], accepted of graded completions.
    q: float64 [n], p(answer), NaN: unknown, which counts as no completion."""
    a, b = 1.0 + c, 1.0 + (m - c)
    if q is not None and weight:
        known = ~np.isnan(q)
        a = a + np.where(known, weight * q, 0.0)
        b = b + np.where(known, weight * (1.0 - q), 0.0)
    return Beta(a, b)


def _grid(most: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(log p, log(1 - p), angle) at the middles of the cells, [cells] each. ``most``: the
    largest a + b; a posterior of m completions is about 1/(2 sqrt(m)) wide in the angle."""
    cells = CELLS * math.ceil(math.sqrt(max(1.0, most / MAX_M)))
    angle = (np.arange(cells) + 0.5) * (np.pi / 2 / cells)
    return 2 * np.log(np.sin(angle)), 2 * np.log(np.cos(angle)), angle


def _masses(beta: Beta, log_p: np.ndarray, log_q: np.ndarray) -> np.ndarray:
    """Probability of each cell, [n, cells]: the density in the angle is proportional to
    p^(a - 1/2) (1 - p)^(b - 1/2)."""
    log = np.multiply.outer(beta.a - 0.5, log_p) + np.multiply.outer(beta.b - 0.5, log_q)
    mass = np.exp(log - log.max(axis=1, keepdims=True))
    return mass / mass.sum(axis=1, keepdims=True)


def _below(mass: np.ndarray, angle: np.ndarray, threshold: float) -> np.ndarray:
    """P(p < x - threshold) at the middles x of the cells, [n, cells]: the distribution
    function, linear between the borders of the cells."""
    cells = mass.shape[1]
    x = np.clip(np.sin(angle) ** 2 - threshold, 0.0, 1.0)
    place = np.arcsin(np.sqrt(x)) * (cells / (np.pi / 2))
    cell = np.minimum(place.astype(np.int64), cells - 1)
    up_to = np.concatenate([np.zeros((len(mass), 1)), np.cumsum(mass, axis=1)], axis=1)
    inside = np.where(x >= 1.0, 1.0, place - cell)
    return up_to[:, cell] + mass[:, cell] * inside


def _expected(with_image: Beta, without: Beta, threshold: float, group: int) -> np.ndarray:
    """E[1{p1 - p0 > threshold} g(p1)], g = 1 for group 0, else 1 - p^G - (1 - p)^G."""
    n = len(with_image.a)
    found = np.empty(n)
    if n == 0:
        return found
    most = max(float((x.a + x.b).max()) for x in (with_image, without))
    log_p, log_q, angle = _grid(most)
    g = np.ones(len(angle))
    if group:
        g = 1.0 - np.exp(group * log_p) - np.exp(group * log_q)
    rows = max(1, NUMBERS // len(angle))
    for start in range(0, n, rows):
        part = slice(start, start + rows)
        mass1 = _masses(Beta(with_image.a[part], with_image.b[part]), log_p, log_q)
        mass0 = _masses(Beta(without.a[part], without.b[part]), log_p, log_q)
        found[part] = (mass1 * g * _below(mass0, angle, threshold)).sum(axis=1)
    return np.clip(found, 0.0, 1.0)


def _by_distinct(
    with_image: Beta, without: Beta, threshold: float, group: int
) -> np.ndarray:
    """``_expected``, each distinct pair of posteriors worked out once."""
    rows = np.stack([with_image.a, with_image.b, without.a, without.b], axis=1)
    distinct, inverse = np.unique(rows, axis=0, return_inverse=True)
    a1, b1, a0, b0 = distinct.T
    values = _expected(Beta(a1, b1), Beta(a0, b0), threshold, group)
    return values[inverse.reshape(-1)]


def prob_above(with_image: Beta, without: Beta, threshold: float = 0.0) -> np.ndarray:
    """float64 [n]: P(p1 - p0 > threshold), within 1e-4."""
    return _by_distinct(with_image, without, threshold, 0)


def keep_probability(
    with_image: Beta, without: Beta, threshold: float, group: int
) -> np.ndarray:
    """float64 [n], in [0, 1], within 1e-4: see the module's docstring. ``group``: G."""
    return _by_distinct(with_image, without, threshold, group)


def fit_weight(c: np.ndarray, m: np.ndarray, q: np.ndarray) -> float:
    """The weight of ``WEIGHTS`` that makes the counts most likely: of each c of m, under
    p ~ Beta(1 + w q, 1 + w (1 - q)), the beta-binomial likelihood B(a + c, b + m - c) /
    B(a, b). Ties go to the smaller. ``DEFAULT_WEIGHT`` for fewer than ``FIT_MIN`` rows
    with completions and a p(answer). Deterministic; rows in any order give the same.
    """
    use = (m > 0) & ~np.isnan(q)
    if use.sum() < FIT_MIN:
        return DEFAULT_WEIGHT
    # p(answer) to two decimals: few distinct rows, however large the pool.
    rows = np.stack([c[use], m[use], np.round(100 * q[use])], axis=1)
    distinct, times = np.unique(rows, axis=0, return_counts=True)
    said = [
        math.fsum(
            t * _log_likelihood(float(row[0]), float(row[1]), row[2] / 100, w)
            for row, t in zip(distinct, times.tolist(), strict=True)
        )
        for w in WEIGHTS
    ]
    return WEIGHTS[int(np.argmax(said))]


def _log_likelihood(c: float, m: float, q: float, weight: float) -> float:
    a, b = 1 + weight * q, 1 + weight * (1 - q)
    return _log_beta(a + c, b + m - c) - _log_beta(a, b)


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
