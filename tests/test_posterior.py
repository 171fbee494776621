"""Beta posteriors and the keep-probability, against exact integration of polynomials."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

from rap.scores import posterior
from rap.scores.posterior import (
    FORESEEN,
    LEAST,
    MOST,
    STEPS,
    Arm,
    Foreseen,
    Prior,
    keep_probability,
    prob_above,
)

Poly = list[Fraction]


def times(p: Poly, q: Poly) -> Poly:
    found = [Fraction(0)] * (len(p) + len(q) - 1)
    for (i, x), (j, y) in itertools.product(enumerate(p), enumerate(q)):
        found[i + j] += x * y
    return found


def power(p: Poly, n: int) -> Poly:
    found = [Fraction(1)]
    for _ in range(n):
        found = times(found, p)
    return found


def at(p: Poly, x: Fraction) -> Fraction:
    found = Fraction(0)
    for c in reversed(p):
        found = found * x + c
    return found


def primitive(p: Poly) -> Poly:
    return [Fraction(0), *(c / (i + 1) for i, c in enumerate(p))]


def composed(p: Poly, q: Poly) -> Poly:
    found = [Fraction(0)]
    for c in reversed(p):
        found = times(found, q)
        found[0] += c
    return found


X, REST = [Fraction(0), Fraction(1)], [Fraction(1), Fraction(-1)]


def density(c: int, m: int) -> Poly:
    """Of Beta(1 + c, 1 + m - c)."""
    scale = Fraction(math.factorial(m + 1), math.factorial(c) * math.factorial(m - c))
    return [scale * v for v in times(power(X, c), power(REST, m - c))]


def exactly(c1: int, m1: int, c0: int, m0: int, threshold: Fraction, group: int) -> float:
    """E[1{p1 - p0 > threshold} g(p1)] with uniform priors, as a fraction."""
    g = [Fraction(1)]
    if group:
        g = [-(a + b) for a, b in zip(power(X, group), power(REST, group), strict=True)]
        g[0] += 1
    f = times(density(c1, m1), g)
    below = composed(primitive(density(c0, m0)), [-threshold, Fraction(1)])
    part = primitive(times(f, below))
    low, high = max(threshold, Fraction(0)), min(1 + threshold, Fraction(1))
    sure = primitive(f)  # from high on every p0 is below
    return float(at(part, high) - at(part, low) + at(sure, Fraction(1)) - at(sure, high))


def one(c: int, m: int) -> Arm:
    return Arm(np.array([c]), np.array([m]))


@pytest.mark.parametrize("group", [0, 2, 8])
@pytest.mark.parametrize("threshold", ["0", "0.5", "-0.25"])
def test_against_exact_integrals(rng, group, threshold):
    rows = []
    for _ in range(12):
        m1, m0 = rng.integers(0, 12, 2)
        rows.append([rng.integers(0, m1 + 1), m1, rng.integers(0, m0 + 1), m0])
    rows += [[0, 0, 0, 0], [5, 5, 0, 5], [0, 5, 5, 5]]
    c1, m1, c0, m0 = np.array(rows).T
    got = keep_probability(Arm(c1, m1), Arm(c0, m0), float(threshold), group)
    want = [exactly(*map(int, row), Fraction(threshold), group) for row in rows]
    np.testing.assert_allclose(got, want, atol=1e-4)
    if group == 0:
        assert np.array_equal(got, prob_above(Arm(c1, m1), Arm(c0, m0), float(threshold)))


def test_known_values():
    """Two uniforms: P(p1 > p0) = 1/2; P(a group of two is mixed) = 2 E[p (1 - p)] = 1/3."""
    nothing = one(0, 0)
    assert prob_above(nothing, nothing)[0] == pytest.approx(1 / 2, abs=1e-6)
    mixed = keep_probability(nothing, nothing, -1.0, 2)[0]
    assert mixed == pytest.approx(1 / 3, abs=1e-4)
    assert keep_probability(nothing, nothing, 1.0, 8)[0] == pytest.approx(0, abs=1e-6)


def test_large_counts_keep_their_precision():
    """Against a grid sixteen times finer, for posteriors a hundred times narrower."""
    many, fewer = one(16_000, 32_000), one(15_900, 32_000)
    got = prob_above(many, fewer)[0]
    step = 1e-5
    p = np.arange(0.45, 0.55, step) + step / 2

    def mass(c: int, m: int) -> np.ndarray:
        log = c * np.log(p) + (m - c) * np.log1p(-p)
        found = np.exp(log - log.max())
        return found / found.sum()

    below = np.cumsum(mass(15_900, 32_000)) - mass(15_900, 32_000) / 2
    assert got == pytest.approx(float((mass(16_000, 32_000) * below).sum()), abs=1e-4)


def prior(*ab: tuple[float, float]) -> Prior:
    return Prior.of(*np.log(np.array(ab, float)).T)


def test_a_prior_counts_as_completions():
    """Beta(2, 4) is what one right and three wrong completions make of a uniform prior."""
    c, m = np.array([2, 2]), np.array([3, 3])
    arm = Arm(c, m, prior((2.0, 4.0), (1.0, 1.0)))
    np.testing.assert_allclose(arm.beta(), [[4.0, 3.0], [5.0, 2.0]])
    np.testing.assert_allclose(arm.mean(), [4 / 9, 3 / 5])
    same = Arm(c + 1, m + 4)
    nothing = Arm(np.zeros(2, int), np.zeros(2, int))
    got = keep_probability(arm, nothing, 0.0, 8)[0]
    assert got == pytest.approx(keep_probability(same, nothing, 0.0, 8)[0], abs=1e-9)


def test_priors_are_kept_in_steps_and_in_bounds():
    found = Prior.of(
        np.log([1e-9, 1e9, 3.0, math.nan]), np.array([0.0, 0.0, 0.3, math.nan])
    )
    a, b = found.ab
    np.testing.assert_allclose(a[:2], [posterior.LEAST, posterior.MOST])
    assert a[2] == pytest.approx(3.0, rel=2 ** (0.5 / STEPS) - 1)
    assert (a[3], b[3]) == (1.0, 1.0)
    assert np.array_equal(found.take(np.array([2, 0])).ab[0], a[[2, 0]])


@pytest.mark.parametrize("ab", [(0.1, 0.1), (1 / 32, 2.0), (0.05, 0.3), (24.0, 0.5)])
def test_densities_without_a_bound_at_the_ends(rng, ab):
    """Against a million draws: standard error 5e-4. Two rates that are both within half a
    cell of 0 or 1 count as half above; neither teaches anything."""
    arms = [Arm(np.zeros(1, int), np.zeros(1, int), prior(x)) for x in (ab, (0.2, 3.0))]
    p1, p0 = (rng.beta(*(float(x[0]) for x in arm.beta()), 1_000_000) for arm in arms)
    near = [(p < 4e-5) | (p > 1 - 4e-5) for p in (p1, p0)]  # sin(pi / 2 / 256)^2
    tied = near[0] & near[1] & ((p1 < 0.5) == (p0 < 0.5))
    above = np.where(tied, 0.5, p1 > p0).mean()
    assert prob_above(*arms)[0] == pytest.approx(above, abs=4e-3)
    mixed = (p1 > p0) * (1 - p1**8 - (1 - p1) ** 8)
    assert keep_probability(*arms, 0.0, 8)[0] == pytest.approx(mixed.mean(), abs=2e-3)


def test_what_is_foreseen_is_what_comes(rng):
    """The same numbers, bit by bit, whatever was asked before; of long arms, too."""
    log = rng.uniform(math.log(LEAST), math.log(MOST), (4, 40))
    one, zero = Prior.of(log[0], log[1]), Prior.of(log[2], log[3])
    foreseen = Foreseen(one, zero, 8)
    many = [(1, 2, 0, m) for m in range(FORESEEN + 5)]
    for c1, m1, c0, m0 in [(0, 0, 0, 0), (2, 5, 1, 3), (70, 99, 0, 0), (2, 5, 0, 0), *many]:
        full = [np.full(40, x) for x in (c1, m1, c0, m0)]
        arms = Arm(full[0], full[1], one), Arm(full[2], full[3], zero)
        keep, above = foreseen.after(c1, m1, c0, m0)
        assert np.array_equal(keep, keep_probability(*arms, 0.0, 8))
        assert np.array_equal(above, prob_above(*arms))


def test_many_rows_equal_each_alone(rng):
    """Distinct rows are worked out once, in blocks: no row sees another."""
    n = 5000
    m1, m0 = rng.integers(0, 6, n), rng.integers(0, 6, n)
    c1, c0 = rng.integers(0, m1 + 1), rng.integers(0, m0 + 1)
    log = rng.normal(0, 1, (3, n))
    log[0, ::7] = np.nan
    arms = Arm(c1, m1, Prior.of(log[0], log[1])), Arm(c0, m0, Prior.of(log[2], log[2]))
    together = keep_probability(*arms, 0.1, 8)
    for i in range(0, n, 997):
        alone = keep_probability(*(arm.take(np.array([i])) for arm in arms), 0.1, 8)
        assert together[i] == pytest.approx(alone[0], abs=1e-12)
    assert keep_probability(*(arm.take(np.array([], int)) for arm in arms), 0, 8).size == 0
