"""The drm kernels on the emulated device: exact, so every index must agree."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_emulator import build, checks_drm
from cuda_emulator.drm import drm

from rap import reference

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="needs gcc")


@pytest.mark.parametrize(
    "check",
    [
        checks_drm.exact,
        checks_drm.large_order,
        checks_drm.ties,
        checks_drm.bounds,
        checks_drm.schedules,
        checks_drm.races,
        checks_drm.merge_races,
    ],
    ids=lambda check: check.__name__,
)
def test_holds(check):
    check()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", ["uniform", "equal", "tiny", "counts"])
def test_every_kind_of_scores(dtype, kind, rng):
    n = 5003
    d = {
        "uniform": lambda: rng.random(n),
        "equal": lambda: np.full(n, 0.5),
        "tiny": lambda: rng.random(n) * 1e-30,
        "counts": lambda: rng.integers(0, 6, n) / 5,
    }[kind]().astype(dtype)
    g = rng.integers(-5, 6, n).astype(np.float64) / 5
    d[rng.integers(0, n, 50)] = np.nan
    g[rng.integers(0, n, 50)] = np.nan
    for k in (1, 600, n):
        np.testing.assert_array_equal(drm(d, k, gain=g), reference.drm(d, k, gain=g))
    np.testing.assert_array_equal(drm(d, 1500), reference.drm(d, 1500))


def test_fault_43_nothing_to_choose_from():
    for d in ([], [0.0, 1.0], [np.nan, np.nan]):
        assert drm(np.array(d), 3).shape == (0,)
    assert drm(np.array([0.5, 0.5]), 0).shape == (0,)
    np.testing.assert_array_equal(drm(np.array([0.5, 0.5, 0.6]), 9), [2, 0, 1])


def test_masks_may_hold_any_true_byte():
    two = np.array([0, 2, 255, 1], np.uint8)
    assert drm(np.full(4, 0.5), 4, eligible=two).tolist() == [1, 2, 3]
