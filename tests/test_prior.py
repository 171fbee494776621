"""Priors of a pass rate: the regression against data that a known one made."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rap.scores.prior import (
    FEATURES,
    N_FEATURES,
    WITH_IMAGE,
    WITHOUT,
    _Counts,
    features,
    fit,
    predict,
)


def columns(rng, n: int) -> dict[str, np.ndarray]:
    found = {name: rng.random(n) for name in ("p_answer1", "p_answer0")}
    found["js"] = np.exp(rng.uniform(-8, -0.4, n))
    return found | {name: rng.uniform(0, 2, n) for name in ("entropy1", "entropy0")}


def drawn(rng, a, b, m):
    return rng.binomial(m, rng.beta(a, b))


def test_features_are_as_said():
    row = {
        "p_answer1": 0.9,
        "p_answer0": 1.0,
        "js": 0.0,
        "entropy1": 0.3,
        "entropy0": 0.5,
    }
    (z,) = features({name: np.array([row[name]]) for name in FEATURES})
    logit = math.log(9.0)
    js = (math.log(1e-4) + 3) / 2
    want = [1, logit / 3, 7 / 3, js, logit / 3, 0.3, 0.5, logit * 7 / 9]
    np.testing.assert_allclose(z, want)
    for name in FEATURES:
        lacking = {k: np.array([math.nan if k == name else v]) for k, v in row.items()}
        assert not features(lacking).any()


def test_without_completions_the_prior_leans_towards_p_answer(rng):
    z = features(columns(rng, 50))
    none = np.zeros(50, int)
    for start, column in ((WITH_IMAGE, 1), (WITHOUT, 2)):
        assert fit(z, none, none, start) == start
        a, b = predict(start, z).ab
        order = np.argsort(z[:, column])
        mean = (a / (a + b))[order]
        assert np.all(np.diff(mean) >= -1e-12) and mean[0] < 0.4 < 0.6 < mean[-1]
        assert 2.0 < float((a + b).mean()) < 4.0
    a, b = predict(WITH_IMAGE, np.zeros((1, N_FEATURES))).ab
    assert (a[0], b[0]) == (1.0, 1.0)


def test_finds_the_regression_that_made_the_counts(rng):
    n = 6000
    z = features(columns(rng, n))
    u, v = np.zeros(N_FEATURES), np.zeros(N_FEATURES)
    u[[0, 3]], v[[0, 1, 3]] = (0.2, -0.5), (0.4, 0.3, 0.4)  # p(answer) misleads here
    a, b = np.exp(z @ u), np.exp(z @ v)
    m = np.full(n, 5)
    found = fit(z, drawn(rng, a, b, m), m, WITH_IMAGE)
    got_a, got_b = predict(found, z).ab
    mean, want = got_a / (got_a + got_b), a / (a + b)
    assert np.abs(mean - want).mean() < 0.02
    assert np.median((got_a + got_b) / (a + b)) == pytest.approx(1.0, abs=0.15)


def test_the_slope_is_that_of_the_likelihood(rng):
    z = features(columns(rng, 40))
    m = rng.integers(1, 6, 40)
    data = _Counts(z, rng.integers(0, m + 1), m)
    at = np.array(WITH_IMAGE) + rng.normal(0, 0.1, 2 * N_FEATURES)
    slope, curvature = data.slopes(at)
    for i in range(2 * N_FEATURES):
        step = np.zeros(2 * N_FEATURES)
        step[i] = 1e-5
        difference = data.likelihood(at + step) - data.likelihood(at - step)
        assert slope[i] == pytest.approx(difference / 2e-5, abs=1e-4)
    np.testing.assert_allclose(curvature, curvature.T, atol=1e-9)


def test_the_likelihood_is_the_beta_binomial_one(rng):
    z = features(columns(rng, 1))
    at = np.array(WITH_IMAGE)
    a, b = (float(np.exp(z @ at[i : i + N_FEATURES])[0]) for i in (0, N_FEATURES))

    def log_beta(x: float, y: float) -> float:
        return math.lgamma(x) + math.lgamma(y) - math.lgamma(x + y)

    for c, m in ((0, 3), (2, 5), (4, 4)):
        got = _Counts(z, np.array([c]), np.array([m])).likelihood(at)
        want = log_beta(a + c, b + m - c) - log_beta(a, b)
        assert got == pytest.approx(want, abs=1e-12)


def test_the_order_of_rows_and_rows_without_completions_change_nothing(rng):
    n = 300
    z = features(columns(rng, n))
    m = rng.integers(0, 4, n)
    c = rng.integers(0, m + 1)
    found = fit(z, c, m, WITH_IMAGE)
    order = rng.permutation(n)
    np.testing.assert_allclose(
        fit(z[order], c[order], m[order], WITH_IMAGE), found, atol=2e-6
    )
    here = m > 0
    assert fit(z[here], c[here], m[here], WITH_IMAGE) == found
    z[:5] = 0.0  # of these nothing is known
    m[:5] = c[:5] = 3
    assert fit(z, c, m, WITH_IMAGE) == fit(z[5:], c[5:], m[5:], WITH_IMAGE)
    assert found != WITH_IMAGE
