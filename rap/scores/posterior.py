"""What few completions say of a pass rate: Beta posteriors, and the probability that a
sample can be learned from. Pure NumPy.

**Prior** of a pass rate p, for each arm (with, without the image): uniform, plus the
teacher-forced p(answer) = q where it is known, counted as ``w`` completions of which
``w q`` are right. After c of m completions were accepted,

    p ~ Beta(1 + w q + c, 1 + w (1 - q) + m - c).

``w`` is the same for a whole pool and is fitted to it (``fit_weight``): where p(answer)
says nothing about the pass rate it comes out as 0, and the prior is uniform. q is taken to
two decimals.

**Keep-probability** of a sample, for a threshold lambda on D = p1 - p0:

    P = E[ 1{p1 - p0 > lambda} (1 - p1^G - (1 - p1)^G) ],   p1, p0 independent,

the probability that the image helps by more than lambda and that a group of G completions
holds both right and wrong ones. With none or all of them right the group's advantages are
zero and it teaches nothing (GRPO: Shao et al., DeepSeekMath, arXiv 2402.03300, section
4.1; groups without a mix are left out by DAPO, arXiv 2503.14476, section 3.2).
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
STEPS = 100
"""Steps of p(answer), so that few distinct rows stand for a large pool."""
WEIGHTS = (0.0, 0.5, 1.0, 2.0)
"""What ``fit_weight`` chooses from: completions that p(answer) is worth. No more: one
weight serves a pool, and a larger one, right for most of its samples, outvotes the
completions of those whose p(answer) is wrong (benchmarks/results/cascade.md)."""
FIT_MIN = 20
"""Samples with completions that a weight is fitted to, at least."""
DEFAULT_WEIGHT = 1.0
"""The weight of p(answer) where no pool can be looked at."""


@dataclass(frozen=True, slots=True)
class Arm:
    """What is known of the pass rate with, or without, the image; one entry a row.

    ``c``, ``m``: int64 [n], accepted of graded completions, 0 <= c <= m. ``q``: float64
    [n], p(answer), NaN: unknown, which counts as no completion; None: of no row.
    ``weight``: completions that q counts as.
    """

    c: np.ndarray
    m: np.ndarray
    q: np.ndarray | None = None
    weight: float = 0.0

    def beta(self) -> tuple[np.ndarray, np.ndarray]:
        """(a, b) of the posterior, float64 [n], both >= 1."""
        steps = self._steps()
        known = steps >= 0
        q = steps / STEPS
        a = 1.0 + self.c + np.where(known, self.weight * q, 0.0)
        b = 1.0 + (self.m - self.c) + np.where(known, self.weight * (1.0 - q), 0.0)
        return a, b

    def mean(self) -> np.ndarray:
        """float64 [n]: the posterior mean of the pass rate."""
        a, b = self.beta()
        return a / (a + b)

    def take(self, rows: np.ndarray) -> Arm:
        """The arm of these rows."""
        q = None if self.q is None else self.q[rows]
        return Arm(self.c[rows], self.m[rows], q, self.weight)

    def distinct(self) -> tuple[np.ndarray, np.ndarray]:
        """(rows that differ, which of them each row equals), int64."""
        key = (self.c << 40) + (self.m << 16) + (self._steps() + 1)
        _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
        return first, inverse.reshape(-1)

    def _steps(self) -> np.ndarray:
        """q in steps, int64 [n]; -1: unknown."""
        if self.q is None or not self.weight:
            return np.full(len(self.c), -1, np.int64)
        return np.rint(STEPS * np.nan_to_num(self.q, nan=-1.0 / STEPS)).astype(np.int64)


def prob_above(with_image: Arm, without: Arm, threshold: float = 0.0) -> np.ndarray:
    """float64 [n]: P(p1 - p0 > threshold), within 1e-4."""
    return _by_distinct(with_image, without, threshold, 0)


def keep_probability(
    with_image: Arm, without: Arm, threshold: float, group: int
) -> np.ndarray:
    """float64 [n], in [0, 1], within 1e-4: see the module's docstring. ``group``: G."""
    return _by_distinct(with_image, without, threshold, group)


def _by_distinct(with_image: Arm, without: Arm, threshold: float, group: int) -> np.ndarray:
    """``_expected`` of each row, each distinct pair of posteriors worked out once."""
    rows1, which1 = with_image.distinct()
    rows0, which0 = without.distinct()
    pairs, inverse = np.unique(which1 * len(rows0) + which0, return_inverse=True)
    one = with_image.take(rows1[pairs // max(1, len(rows0))])
    zero = without.take(rows0[pairs % max(1, len(rows0))])
    return _expected(one.beta(), zero.beta(), threshold, group)[inverse.reshape(-1)]


Beta = tuple[np.ndarray, np.ndarray]


def _expected(with_image: Beta, without: Beta, threshold: float, group: int) -> np.ndarray:
    """E[1{p1 - p0 > threshold} g(p1)], g = 1 for group 0, else 1 - p^G - (1 - p)^G."""
    n = len(with_image[0])
    found = np.empty(n)
    if n == 0:
        return found
    angle = _angles(max(float((a + b).max()) for a, b in (with_image, without)))
    log_p, log_q = 2 * np.log(np.sin(angle)), 2 * np.log(np.cos(angle))
    g = np.ones(len(angle))
    if group:
        g = 1.0 - np.exp(group * log_p) - np.exp(group * log_q)
    rows = max(1, NUMBERS // len(angle))
    for start in range(0, n, rows):
        part = slice(start, start + rows)
        mass1, mass0 = (
            _masses(a[part], b[part], log_p, log_q) for a, b in (with_image, without)
        )
        found[part] = (mass1 * g * _below(mass0, angle, threshold)).sum(axis=1)
    return np.clip(found, 0.0, 1.0)


def _angles(most: float) -> np.ndarray:
    """Middles of the cells. ``most``: the largest a + b; a posterior of m completions is
    1 / (2 sqrt(m)) wide in the angle, ten cells or more."""
    cells = CELLS * math.ceil(math.sqrt(max(1.0, most / MAX_M)))
    return (np.arange(cells) + 0.5) * (np.pi / 2 / cells)


def _masses(
    a: np.ndarray, b: np.ndarray, log_p: np.ndarray, log_q: np.ndarray
) -> np.ndarray:
    """Probability of each cell, [n, cells]: the density in the angle is proportional to
    p^(a - 1/2) (1 - p)^(b - 1/2)."""
    log = np.multiply.outer(a - 0.5, log_p) + np.multiply.outer(b - 0.5, log_q)
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
    return up_to[:, cell] + mass[:, cell] * (place - cell)


def fit_weight(c: np.ndarray, m: np.ndarray, q: np.ndarray) -> float:
    """The weight of ``WEIGHTS`` that makes the counts most likely: of each c of m, under
    p ~ Beta(1 + w q, 1 + w (1 - q)), the beta-binomial likelihood B(a + c, b + m - c) /
    B(a, b). Ties go to the smaller. ``DEFAULT_WEIGHT`` for fewer than ``FIT_MIN`` rows
    with completions and a p(answer). Deterministic; rows in any order give the same.
    """
    use = np.flatnonzero((m > 0) & ~np.isnan(q))
    if len(use) < FIT_MIN:
        return DEFAULT_WEIGHT
    arm = Arm(c, m, q, 1.0).take(use)
    rows, which = arm.distinct()
    times = np.bincount(which).tolist()
    said = []
    for weight in WEIGHTS:
        seen = Arm(c, m, q, weight).take(use[rows])
        prior = Arm(np.zeros_like(c), np.zeros_like(m), q, weight).take(use[rows])
        after = zip(*(x.tolist() for x in seen.beta()), strict=True)
        before = zip(*(x.tolist() for x in prior.beta()), strict=True)
        said.append(
            math.fsum(
                t * (_log_beta(*new) - _log_beta(*old))
                for t, new, old in zip(times, after, before, strict=True)
            )
        )
    return WEIGHTS[int(np.argmax(said))]


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
