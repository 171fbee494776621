"""What two forward passes say of a pass rate, before any completion: a Beta prior for each
sample, from a regression that is fitted to the pool's own completions. Pure NumPy.

Of each arm, with z the features of a sample (`features`), c of m completions right:

    c ~ BetaBinomial(m, a, b),   a = exp(u . z),   b = exp(v . z)

u and v maximise the likelihood less ``RIDGE`` |(u, v) - start|^2 / 2; ``start`` leans
towards p(answer), and is what stands where no completion was graded. p(answer) alone would
not do: a model may answer better after reasoning than at once, and how much better differs
between samples whose p(answer) is equal (benchmarks/results/cascade.md).

Beta-binomial regression: e.g. Griffiths, Biometrics 29 (1973), 637-648, and Crowder,
Applied Statistics 27 (1978), 34-37.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .posterior import LEAST, MOST, Prior

FEATURES = ("p_answer1", "p_answer0", "js", "entropy1", "entropy0")
"""Columns that the prior is made of."""
N_FEATURES = 8
RIDGE = 1.0
"""Of each coefficient; of the two constants a tenth."""
_LOGIT = 7.0
"""Logits of p(answer) are cut here: p from 0.0009 to 0.9991."""
_LEAST_JS = 1e-4
"""Nats; below, a divergence is rounding noise."""
_STEPS = 60
_DECIMALS = 6
"""Coefficients are rounded, so that sums in another order give the same ones."""

Coefficients = tuple[float, ...]
"""(u, v), one after the other: 2 * N_FEATURES numbers."""

WITH_IMAGE: Coefficients = (0.4, 0.3, *[0.0] * 6, 0.4, -0.3, *[0.0] * 6)
WITHOUT: Coefficients = (0.4, 0.0, 0.3, *[0.0] * 5, 0.4, 0.0, -0.3, *[0.0] * 5)
"""``start`` of the two arms: near Beta(1 + q, 2 - q), q the arm's p(answer)."""


def features(columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """float64 [n, N_FEATURES], of the columns `FEATURES`, float64 [n]. A row that lacks one
    of them (NaN) is zeros, the constant included: its prior is uniform."""
    one, zero = (_logit(columns[name]) for name in ("p_answer1", "p_answer0"))
    js = (np.log(np.maximum(columns["js"], _LEAST_JS)) + 3.0) / 2.0
    z = np.stack(
        [
            np.ones(len(js)),
            one / 3.0,
            zero / 3.0,
            js,
            np.abs(one) / 3.0,
            columns["entropy1"],
            columns["entropy0"],
            one * zero / 9.0,
        ],
        axis=1,
    )
    z[~np.isfinite(z).all(axis=1)] = 0.0
    return z


def _logit(p: np.ndarray) -> np.ndarray:
    cut = np.clip(p, 1e-9, 1.0 - 1e-9)
    return np.clip(np.log(cut) - np.log1p(-cut), -_LOGIT, _LOGIT)


def predict(found: Coefficients, z: np.ndarray) -> Prior:
    """The prior of each row of ``z``."""
    u, v = _halves(np.array(found))
    return Prior.of(_dot(z, u), _dot(z, v))


def fit(z: np.ndarray, c: np.ndarray, m: np.ndarray, start: Coefficients) -> Coefficients:
    """The coefficients of one arm. z: float64 [n, N_FEATURES]; c, m: int64 [n], accepted of
    graded completions. Rows without any, or without features, are left out.

    Newton's method with the curvature kept positive, damped until the objective rises
    (Levenberg, Quarterly of Applied Mathematics 2 (1944), 164-168). Deterministic.
    """
    use = (m > 0) & (z[:, 0] != 0.0)
    data = _Counts(z[use], c[use], m[use])
    first = np.array(start)
    ridge = np.full(2 * N_FEATURES, RIDGE)
    ridge[[0, N_FEATURES]] = RIDGE / 10.0

    def objective(at: np.ndarray) -> float:
        return data.likelihood(at) - float((ridge * (at - first) ** 2).sum()) / 2.0

    here, value, damping = first, objective(first), 1e-2
    for _ in range(_STEPS if use.any() else 0):
        slope, curvature = data.slopes(here)
        slope = slope - ridge * (here - first)
        curvature = curvature + np.diag(ridge)
        scale = np.diag(np.diag(curvature))
        for _ in range(20):
            step = np.clip(np.linalg.solve(curvature + damping * scale, slope), -1.0, 1.0)
            new = objective(here + step)
            if new > value:
                break
            damping *= 4.0
        else:
            break
        here, gain, value = here + step, new - value, new
        damping = max(damping / 4.0, 1e-4)
        if gain < 1e-7:
            break
    return tuple(np.round(here, _DECIMALS).tolist())


def _halves(found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return found[:N_FEATURES], found[N_FEATURES:]


def _dot(z: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Not BLAS, whose sums depend on the number of threads."""
    return np.einsum("nd,d->n", z, u)


@dataclass(frozen=True, slots=True)
class _Counts:
    """What coefficients are fitted to: z [n, N_FEATURES], c of m completions right [n]."""

    z: np.ndarray
    c: np.ndarray
    m: np.ndarray

    def _ab(self, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        low, high = np.log(LEAST), np.log(MOST)
        u, v = (np.exp(np.clip(_dot(self.z, x), low, high)) for x in _halves(at))
        return u, v

    def likelihood(self, at: np.ndarray) -> float:
        """Log-likelihood: B(a + c, b + m - c) / B(a, b) as a product of c + 2 m - c terms,
        the binomial factor left out."""
        a, b = self._ab(at)
        total = np.zeros(len(a))
        for i in range(int(self.m.max(initial=0))):
            total += np.where(i < self.c, np.log(a + i), 0.0)
            total += np.where(i < self.m - self.c, np.log(b + i), 0.0)
            total -= np.where(i < self.m, np.log(a + b + i), 0.0)
        return float(total.sum())

    def slopes(self, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(gradient [2 d], minus the Hessian with its diagonal parts made positive)."""
        a, b = self._ab(at)
        da, db, d_aa, d_bb, d_ab = np.zeros((5, len(a)))
        for i in range(int(self.m.max(initial=0))):
            right, wrong, both = (i < n for n in (self.c, self.m - self.c, self.m))
            together = np.where(both, 1.0 / (a + b + i), 0.0)
            da += np.where(right, 1.0 / (a + i), 0.0) - together
            db += np.where(wrong, 1.0 / (b + i), 0.0) - together
            d_aa += together**2 - np.where(right, 1.0 / (a + i) ** 2, 0.0)
            d_bb += together**2 - np.where(wrong, 1.0 / (b + i) ** 2, 0.0)
            d_ab += together**2
        slope = np.concatenate(
            [np.einsum("nd,n->d", self.z, a * da), np.einsum("nd,n->d", self.z, b * db)]
        )
        waa = np.maximum(-(a * da + a * a * d_aa), 1e-6)
        wbb = np.maximum(-(b * db + b * b * d_bb), 1e-6)
        curves = [
            np.einsum("nd,n,ne->de", self.z, w, self.z) for w in (waa, -a * b * d_ab, wbb)
        ]
        return slope, np.block([[curves[0], curves[1]], [curves[1].T, curves[2]]])
