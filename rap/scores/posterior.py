"""What few completions say of a pass rate: Beta posteriors, and the probability that a
sample can be learned from. Pure NumPy.

**Prior** of a pass rate p, for each arm (with, without the image): Beta(a, b), uniform
where nothing is known (a = b = 1), else what the cheap evidence of the sample says
(``rap.scores.prior``). After c of m completions were accepted,

    p ~ Beta(a + c, b + m - c).

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
FORESEEN = 128
"""Such matrices that `Foreseen` keeps, at most."""
STEPS = 16
"""Steps of a prior's a and b for a factor of two, so that few distinct rows stand for a
large pool."""
LEAST, MOST = 1 / 32, 64.0
"""What a prior's a and b lie between: at the least nearly certain that all or none are
right, at the most worth as much as 128 completions."""


@dataclass(frozen=True, slots=True)
class Prior:
    """Beta(a, b) of each row, in steps: a = 2^(steps / `STEPS`). int64 [n] each."""

    a_steps: np.ndarray
    b_steps: np.ndarray

    @classmethod
    def of(cls, log_a: np.ndarray, log_b: np.ndarray) -> Prior:
        """From natural logarithms, float64 [n], which are put between `LEAST` and `MOST`.
        NaN: a = 1."""
        low, high = math.log(LEAST), math.log(MOST)
        a, b = (
            np.rint(np.clip(np.nan_to_num(x), low, high) * (STEPS / math.log(2.0)))
            for x in (log_a, log_b)
        )
        return cls(a.astype(np.int64), b.astype(np.int64))

    @property
    def ab(self) -> tuple[np.ndarray, np.ndarray]:
        """(a, b), float64 [n]."""
        return np.exp2(self.a_steps / STEPS), np.exp2(self.b_steps / STEPS)

    def take(self, rows: np.ndarray) -> Prior:
        """Of these rows."""
        return Prior(self.a_steps[rows], self.b_steps[rows])


@dataclass(frozen=True, slots=True)
class Arm:
    """What is known of the pass rate with, or without, the image; one entry a row.

    ``c``, ``m``: int64 [n], accepted of graded completions, 0 <= c <= m. ``prior``: before
    any of them; None: uniform.
    """

    c: np.ndarray
    m: np.ndarray
    prior: Prior | None = None

    def beta(self) -> tuple[np.ndarray, np.ndarray]:
        """(a, b) of the posterior, float64 [n], both >= `LEAST`."""
        if self.prior is None:
            return 1.0 + self.c, 1.0 + (self.m - self.c)
        a, b = self.prior.ab
        return a + self.c, b + (self.m - self.c)

    def mean(self) -> np.ndarray:
        """float64 [n]: the posterior mean of the pass rate."""
        a, b = self.beta()
        return a / (a + b)

    def take(self, rows: np.ndarray) -> Arm:
        """The arm of these rows."""
        prior = None if self.prior is None else self.prior.take(rows)
        return Arm(self.c[rows], self.m[rows], prior)

    def distinct(self) -> tuple[np.ndarray, np.ndarray]:
        """(rows that differ, which of them each row equals), int64."""
        key = (self.c << 40) + (self.m << 16)
        if self.prior is not None:  # from LEAST to MOST there are under 256 steps
            key = key + ((self.prior.a_steps + 128) << 8) + (self.prior.b_steps + 128)
        _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
        return first, inverse.reshape(-1)


def prob_above(with_image: Arm, without: Arm, threshold: float = 0.0) -> np.ndarray:
    """float64 [n]: P(p1 - p0 > threshold), within 1e-4 where a, b >= 1; of less certain
    priors two rates in the same outer cell (both below 4e-5, say) count as half above."""
    return _by_distinct(with_image, without, threshold, 0)


def keep_probability(
    with_image: Arm, without: Arm, threshold: float, group: int
) -> np.ndarray:
    """float64 [n], in [0, 1], within 1e-4 (2e-3 where a prior's a or b is below 1): see
    the module's docstring. ``group``: G."""
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
    """E[1{p1 - p0 > threshold} g(p1)], g = 1 for group 0, else 1 - p^G - (1 - p)^G. Rows
    that need as many cells are worked out together, so that none depends on another."""
    found = np.empty(len(with_image[0]))
    need = _cells(np.maximum(*(a + b for a, b in (with_image, without))))
    for cells in np.unique(need).tolist():
        rows = np.flatnonzero(need == cells)
        most = max(1, NUMBERS // cells)
        for start in range(0, len(rows), most):
            part = rows[start : start + most]
            one, zero = ((a[part], b[part]) for a, b in (with_image, without))
            found[part] = _integral(one, zero, threshold, group, cells)
    return np.clip(found, 0.0, 1.0)


def _integral(
    with_image: Beta, without: Beta, threshold: float, group: int, cells: int
) -> np.ndarray:
    """``_expected`` on a grid of so many cells."""
    mass1, mass0 = (_masses(a, b, cells) for a, b in (with_image, without))
    below = _below(mass0, threshold)
    value: np.ndarray = (mass1 * _mixed(cells, group) * below).sum(axis=1)
    return value


def _angles(cells: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(t, log p, log (1 - p)) at the middles of the cells."""
    angle = (np.arange(cells) + 0.5) * (np.pi / 2 / cells)
    return angle, 2 * np.log(np.sin(angle)), 2 * np.log(np.cos(angle))


def _mixed(cells: int, group: int) -> np.ndarray:
    """g(p) of ``_expected`` there."""
    if not group:
        return np.ones(cells)
    _, log_p, log_q = _angles(cells)
    g: np.ndarray = 1.0 - np.exp(group * log_p) - np.exp(group * log_q)
    return g


class Foreseen:
    """`keep_probability` and `prob_above` (threshold 0) of the same rows after any counts:
    the same numbers, what an arm's counts make of it worked out once and not for each of
    the other's. ``one``, ``zero``: the priors of the rows; ``group``: G."""

    def __init__(self, one: Prior, zero: Prior, group: int) -> None:
        self._ab = {1: one.ab, 0: zero.ab}
        self._group = group
        self._kept: dict[tuple[int, int, int, int], np.ndarray] = {}

    def after(self, c1: int, m1: int, c0: int, m0: int) -> tuple[np.ndarray, np.ndarray]:
        """(keep-probability, P(p1 > p0)), float64 [n] each, where c1 of m1 completions with
        the image and c0 of m0 without it are right."""
        totals = [a + b + m for (a, b), m in ((self._ab[1], m1), (self._ab[0], m0))]
        need = _cells(np.maximum(*totals))
        found = np.empty((2, len(need)))
        for cells in np.unique(need).tolist():
            rows = np.flatnonzero(need == cells)
            mass, below = self._of(1, c1, m1, cells)[rows], self._of(0, c0, m0, cells)[rows]
            found[0, rows] = (mass * _mixed(cells, self._group) * below).sum(axis=1)
            found[1, rows] = (mass * below).sum(axis=1)
        keep, above = np.clip(found, 0.0, 1.0)
        return keep, above

    def _of(self, arm: int, c: int, m: int, cells: int) -> np.ndarray:
        """[n, cells]: of arm 1 the probability of each cell, of arm 0 that of below it."""
        key = arm, c, m, cells
        if key in self._kept:
            return self._kept[key]
        a, b = self._ab[arm]
        made = _masses(a + c, b + (m - c), cells)
        made = made if arm else _below(made, 0.0)
        if len(self._kept) < FORESEEN:
            self._kept[key] = made
        return made


def _cells(most: np.ndarray) -> np.ndarray:
    """Cells that a row needs, int64 [n]. ``most``: the larger a + b; a posterior of m
    completions is 1 / (2 sqrt(m)) wide in the angle, ten cells or more."""
    return CELLS * np.ceil(np.sqrt(np.maximum(1.0, most / MAX_M))).astype(np.int64)


def _masses(a: np.ndarray, b: np.ndarray, cells: int) -> np.ndarray:
    """Probability of each cell, [n, cells]: the density in the angle is proportional to
    p^(a - 1/2) (1 - p)^(b - 1/2). In the outer cells, where it may have no bound, its
    integral stands: of t^(2 a - 1) over [0, h], not h times its value at h / 2."""
    _, log_p, log_q = _angles(cells)
    log = np.multiply.outer(a - 0.5, log_p) + np.multiply.outer(b - 0.5, log_q)
    for cell, x in ((0, a), (-1, b)):
        log[:, cell] += (2.0 * x - 1.0) * math.log(2.0) - np.log(2.0 * x)
    mass = np.exp(log - log.max(axis=1, keepdims=True))
    return mass / mass.sum(axis=1, keepdims=True)


def _below(mass: np.ndarray, threshold: float) -> np.ndarray:
    """P(p < x - threshold) at the middles x of the cells, [n, cells]: the distribution
    function, linear between the borders of the cells."""
    cells = mass.shape[1]
    angle = _angles(cells)[0]
    x = np.clip(np.sin(angle) ** 2 - threshold, 0.0, 1.0)
    place = np.arcsin(np.sqrt(x)) * (cells / (np.pi / 2))
    cell = np.minimum(place.astype(np.int64), cells - 1)
    up_to = np.concatenate([np.zeros((len(mass), 1)), np.cumsum(mass, axis=1)], axis=1)
    return up_to[:, cell] + mass[:, cell] * (place - cell)
