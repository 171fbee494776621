"""What must hold for the cde kernels: each check raises where it does not.

The tests run them on the kernels as they are; test_cuda_bugs.py runs them on kernels with
one seeded bug, where each must raise.
"""

from __future__ import annotations

import numpy as np
import torch

from rap import reference

from .build import Mutation
from .cde import cde, linear_cde, means

DIVERGENCES = ("kl", "rkl", "js", "tv", "hellinger2", "entropy1", "entropy0")


def _pair(rows: int, vocab: int, seed: int = 5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    l1 = (rng.normal(size=(rows, vocab)) * 3).astype(np.float32)
    return l1, (l1 + rng.normal(size=l1.shape)).astype(np.float32)


def _equal(got: dict, want: dict) -> None:
    for name, value in want.items():
        assert got[name].tobytes() == value.tobytes(), name


def values(mutation: Mutation | None = None) -> None:
    """Ragged rows, more rows than blocks, targets at both ends."""
    l1, l0 = _pair(5, 4099)
    targets = np.array([0, 4098, 2048, 2047, 7])
    got = cde(l1, l0, targets=targets, grid=2, mutation=mutation)
    truth = reference.cde(l1, l0, targets=targets)
    for name, value in truth.items():
        np.testing.assert_allclose(got[name], value, rtol=2e-6, atol=2e-6, err_msg=name)


def masked(mutation: Mutation | None = None) -> None:
    """-inf is a token outside the support, whole tiles of it too."""
    l1, l0 = _pair(4, 5000)
    both = np.random.default_rng(1).random(5000) < 0.6
    l1[:, both] = l0[:, both] = -np.inf
    l1[:, :2048] = l0[:, :2048] = -np.inf
    got, truth = cde(l1, l0, mutation=mutation), reference.cde(l1, l0)
    for name in DIVERGENCES:
        np.testing.assert_allclose(got[name], truth[name], rtol=1e-5, atol=1e-6)
    l0[:, 4999], l1[:, 4999] = -np.inf, 1.0
    got = cde(l1, l0, mutation=mutation)
    assert np.isposinf(got["kl"]).all() and np.isposinf(got["jeffreys"]).all()
    assert np.isfinite(got["rkl"]).all() and np.isfinite(got["js"]).all()


def any_size(mutation: Mutation | None = None) -> None:
    """Logits near the end of float32, and masks as large among common logits."""
    for size in (1e4, 1e30, 3.3e38):
        l1 = np.array([[size, size, -size, 0.0] * 600] * 2, np.float32)
        l0 = np.array([[0.0, size, size, -size] * 600] * 2, np.float32)
        l1[1], l0[1] = 0.5, 0.25
        l1[1, 1500:], l0[1, 1500:] = -size, -size
        got, truth = cde(l1, l0, mutation=mutation), reference.cde(l1, l0)
        for name in DIVERGENCES:
            np.testing.assert_allclose(got[name], truth[name], rtol=1e-5, atol=1e-5)


def late_peak(mutation: Mutation | None = None) -> None:
    """The peak comes in the last tile of a warp: the references must follow it."""
    for peak in (
        100.0,
        30.0,
    ):  # beyond float32's range from the first reference, and inside
        l1, l0 = _pair(2, 9000)
        l1[:, 5000] = l0[:, 5500] = peak
        got = cde(l1, l0, block=64, mutation=mutation)
        truth = reference.cde(l1, l0)
        for name in ("entropy1", "entropy0"):
            np.testing.assert_allclose(got[name], truth[name], rtol=0, atol=4e-7)
        np.testing.assert_allclose(got["kl"], truth["kl"], rtol=4e-7)


def halves(mutation: Mutation | None = None) -> None:
    """16-bit logits and branches of two dtypes, whole chunks and a rest."""
    l1, l0 = (torch.from_numpy(x) for x in _pair(2, 3001))
    for a, b in (
        (l1.bfloat16(), l0.bfloat16()),
        (l1.half(), l0.half()),
        (l1.bfloat16(), l0.half()),
        (l1, l0.bfloat16()),
    ):
        got, truth = cde(a, b, mutation=mutation), reference.cde(a.double(), b.double())
        for name, value in truth.items():
            if value is not None and name in got:
                np.testing.assert_allclose(got[name], value, rtol=3e-6, atol=3e-6)


def offset(mutation: Mutation | None = None) -> None:
    """Logits far from 0: only differences matter, and their exponents have one rounding."""
    l1, l0 = _pair(2, 4099)
    l1, l0 = (np.round(x * 64) / 64 for x in (l1, l0))  # float32 holds the sums exactly
    l1, l0 = l1 + 10000, l0 - 5000
    got, truth = cde(l1, l0, mutation=mutation), reference.cde(l1, l0)
    for name in DIVERGENCES:
        np.testing.assert_allclose(got[name], truth[name], rtol=3e-6, atol=3e-6)


def bad_logits(mutation: Mutation | None = None) -> None:
    """A NaN or +inf among whole chunks or in the rest: NaN, in its row only."""
    for vocab, at in ((2100, 5), (2100, 2060), (2048, 5)):
        for bad in (np.nan, np.inf):
            l1, l0 = _pair(3, vocab)
            l1[1, at] = bad
            got = cde(l1, l0, mutation=mutation)
            for name in ("kl", "rkl", "js", "tv", "hellinger2", "entropy1"):
                assert np.isnan(got[name][1]), (name, at, bad)
                assert np.isfinite(got[name][[0, 2]]).all(), (name, at, bad)


def rising(mutation: Mutation | None = None) -> None:
    """The references move again and again, and the sums before still count."""
    l1 = np.linspace(-9, 9, 24_000, dtype=np.float32)[None]
    noise = np.random.default_rng(8).normal(size=l1.shape)
    l0 = (0.4 * l1 + noise).astype(np.float32)
    got = cde(l1, l0, block=64, mutation=mutation)
    truth = reference.cde(l1, l0)
    for name in DIVERGENCES:
        np.testing.assert_allclose(got[name], truth[name], rtol=2e-6, atol=2e-6)


def mapped(mutation: Mutation | None = None) -> None:
    """linear_cde: bias, scale and softcap on products, targets at both ends."""
    rng = np.random.default_rng(3)
    p1, p0 = _pair(3, 1000)
    bias = rng.normal(size=1000).astype(np.float32)
    targets = np.array([999, 300, 0])
    got = linear_cde(
        p1, p0, bias=bias, scale=0.5, softcap=5.0, targets=targets, mutation=mutation
    )

    def logits(x: np.ndarray) -> np.ndarray:
        return 5.0 * np.tanh(0.5 * (x.astype(float) + bias) / 5.0)

    truth = reference.cde(logits(p1), logits(p0), targets=targets)
    for name, value in truth.items():
        np.testing.assert_allclose(got[name], value, rtol=3e-6, atol=3e-6, err_msg=name)


def unaligned(mutation: Mutation | None = None) -> None:
    """Rows of an odd width start on any address; AddressSanitizer and UBSan watch."""
    l1, l0 = _pair(3, 2061)
    for dtype in (torch.float32, torch.bfloat16):
        a, b = torch.from_numpy(l1).to(dtype), torch.from_numpy(l0).to(dtype)
        got = cde(a, b, variant="asan", block=64, mutation=mutation)
        truth = reference.cde(a.double(), b.double())
        np.testing.assert_allclose(got["kl"], truth["kl"], rtol=1e-5)


def schedules(mutation: Mutation | None = None, count: int = 20) -> None:
    """20 random orders of threads and blocks, shared memory full of 0xFF: one answer."""
    l1, l0 = _pair(4, 2600)
    targets = np.array([1, 2, 3, 2599])
    want = None
    for seed in range(count):
        got = cde(l1, l0, targets=targets, grid=2, seed=seed, mutation=mutation)
        assert np.isfinite(np.stack(list(got.values()))).all()
        want = want or got
        _equal(got, want)


def packed(mutation: Mutation | None = None) -> None:
    """Means over samples: ragged, empty, without weight, with bad rows and bad weights."""
    rng = np.random.default_rng(2)
    answers = rng.normal(size=(10, 700))
    answers[:, 3] = np.nan  # of weight 0 below
    answers[4, 690] = np.inf  # in its own sample only
    weights = np.where(rng.random(700) < 0.7, rng.random(700), 0.0)
    weights[3], weights[600:640] = 0.0, 0.0
    cu = np.array([0, 5, 5, 300, 600, 640, 700])
    for w in (weights, weights.astype(np.float32)):
        got = means(answers, w, cu, grid=2, mutation=mutation)
        for row in range(10):
            truth = reference.sample_means(answers[row], w, cu)
            np.testing.assert_allclose(got[row], truth, rtol=1e-13, atol=1e-15)
    got = means(answers, None, cu, want=5, seed=3, mutation=mutation)
    truth = reference.sample_means(answers[2], None, cu)
    np.testing.assert_allclose(got[2], truth, rtol=1e-13, atol=1e-15)
    assert np.isnan(got[1]).all(), "written though not wanted"
    for bad in (-1.0, np.nan, np.inf):
        weights[400] = bad
        got = means(answers, weights, cu, mutation=mutation)[0]
        assert np.isnan(got[3]) and np.isfinite(got[2]), bad
    lost = means(answers, None, [0, 9, 4, 701, -1, 2], mutation=mutation)[0]
    assert np.isnan(lost[1:]).all()


def packed_races(mutation: Mutation | None = None) -> None:
    answers, cu = np.ones((10, 150)), [0, 70, 70, 150]
    means(answers, None, cu, grid=2, block=64, variant="tsan", mutation=mutation)


def races(mutation: Mutation | None = None) -> None:
    """ThreadSanitizer sees every pair of accesses that no barrier orders."""
    l1, l0 = _pair(4, 4100)
    targets = np.array([1, 2, 3, 4099])
    run = dict(variant="tsan", block=64, mutation=mutation)
    cde(l1, l0, targets=targets, grid=2, **run)
    linear_cde(l1[:2, :400], l0[:2, :400], softcap=9.0, **run)
