"""What must hold for the drm kernels: each check raises where it does not."""

from __future__ import annotations

import numpy as np

from rap import reference

from .build import Mutation
from .drm import drm

SPECIAL = np.array([0.0, -0.0, 1.0, 0.2, 0.4, 0.6, 5e-324, 1 - 2**-53, np.nan, np.inf, 2.0])


def _counts(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores with many ties, as pass rates are."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 6, n) / 5, rng.integers(-5, 6, n) / 5, rng.random(n) < 0.7


def exact(mutation: Mutation | None = None) -> None:
    """Every index, on ties, special values and lengths around a batch."""
    rng = np.random.default_rng(2)
    for n in (1, 5, 1023, 2500):
        d, g, e = _counts(n)
        d[rng.integers(0, n, n // 5)] = rng.choice(SPECIAL, n // 5)
        g[rng.integers(0, n, n // 5)] = rng.choice(SPECIAL, n // 5)
        for k in (1, n // 3, n):
            got = drm(d, k, gain=g, eligible=e, mutation=mutation)
            np.testing.assert_array_equal(got, reference.drm(d, k, gain=g, eligible=e))


def large_order(mutation: Mutation | None = None) -> None:
    """More chosen than one tile sorts: runs of unequal length are merged."""
    d = np.random.default_rng(4).random(6000).astype(np.float32)
    for k in (1025, 2048, 2900, 5500):
        np.testing.assert_array_equal(drm(d, k, mutation=mutation), reference.drm(d, k))


def ties(mutation: Mutation | None = None) -> None:
    """All equal: the least indices."""
    d = np.full(3000, 0.5)
    np.testing.assert_array_equal(drm(d, 70, mutation=mutation), np.arange(70))


def bounds(mutation: Mutation | None = None) -> None:
    """AddressSanitizer watches the ends of every array."""
    d, g, e = _counts(1030)
    got = drm(
        d, 40, gain=g.astype(np.float32), eligible=e, variant="asan", grid=2, block=64,
        mutation=mutation,
    )  # fmt: skip
    np.testing.assert_array_equal(got, reference.drm(d, 40, gain=g, eligible=e))


def schedules(mutation: Mutation | None = None, count: int = 20) -> None:
    """Any order of threads and blocks: one answer."""
    d, g, e = _counts(900)
    want = reference.drm(d, 200, gain=g, eligible=e)
    for seed in range(count):
        got = drm(
            d, 200, gain=g, eligible=e, grid=4, block=64, seed=seed, mutation=mutation
        )
        np.testing.assert_array_equal(got, want)


def races(mutation: Mutation | None = None) -> None:
    """ThreadSanitizer, within blocks and between them."""
    d = _counts(300)[0].astype(np.float32)
    drm(d, 100, grid=2, block=64, variant="tsan", mutation=mutation)


def merge_races(mutation: Mutation | None = None) -> None:
    """The same for a sort of two tiles."""
    d = np.random.default_rng(6).random(1200).astype(np.float32)
    got = drm(d, 1100, grid=2, block=64, variant="tsan", mutation=mutation)
    np.testing.assert_array_equal(got, reference.drm(d, 1100))
