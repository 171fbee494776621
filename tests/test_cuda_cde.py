"""The cde kernels on the emulated device, against the float64 specification.

Same inputs and same derived bound as tests/test_cde.py: at most 4x the error of the plain
computation in the same dtype.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from cuda_emulator import build, checks_cde
from cuda_emulator.cde import cde, linear_cde
from test_cde import DTYPES, logits, naive

from rap import ops, reference

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="needs gcc")

SHAPES = [(9, 1), (5, 31), (4, 33), (3, 2049), (2, 7001), (2, 16389)]


def check(got, l1, l0, targets, label) -> None:
    truth = reference.cde(l1.double(), l0.double(), targets=targets)
    plain = naive(l1, l0, targets)
    unit = 2.0**-24 * max(1.0, float(l1.abs().max()), float(l0.abs().max()))
    for name in ops.CDE_OUTPUTS:
        error = np.abs(got[name] - truth[name]).max()
        allowed = 4 * max(np.abs(plain[name] - truth[name]).max(), unit)
        assert error <= allowed, (name, label, error, allowed)


@pytest.mark.parametrize("kind", ["apart", "near", "offset", "peaked"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_error_is_at_most_four_times_the_naive_one(dtype, kind, rng):
    for rows, vocab in SHAPES:
        l1, l0 = (
            torch.from_numpy(x).to(DTYPES[dtype]) for x in logits(rng, rows, vocab, kind)
        )
        targets = torch.from_numpy(rng.integers(0, vocab, rows))
        check(cde(l1, l0, targets=targets), l1, l0, targets, (rows, vocab))


@pytest.mark.parametrize(
    "check",
    [
        checks_cde.values,
        checks_cde.masked,
        checks_cde.late_peak,
        checks_cde.any_size,
        checks_cde.mapped,
        checks_cde.unaligned,
        checks_cde.packed,
        checks_cde.packed_races,
        checks_cde.schedules,
        checks_cde.races,
    ],
    ids=lambda check: check.__name__,
)
def test_holds(check):
    check()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_fault_21_a_bad_logit_makes_its_row_nan_and_no_other(bad, rng):
    l1, l0 = (rng.normal(size=(3, 3000)).astype(np.float32) for _ in range(2))
    l1[1, 2500] = bad
    got = cde(l1, l0, targets=[0, 0, 0])
    for name in ("kl", "rkl", "jeffreys", "js", "entropy1", "tv", "hellinger2", "logp1"):
        assert np.isnan(got[name][1]) and np.isfinite(got[name][[0, 2]]).all(), name


def test_only_what_is_wanted_and_the_same_bits(rng):
    l1, l0 = (rng.normal(size=(2, 700)).astype(np.float32) for _ in range(2))
    full = cde(l1, l0, targets=[3, 4])
    for want in (("kl",), ("tv",), ("hellinger2", "entropy0"), ("logp1", "js")):
        got = cde(l1, l0, want=want, targets=[3, 4])
        assert set(got) == set(want)
        for name in want:
            assert got[name].tobytes() == full[name].tobytes()


def test_two_dtypes_in_one_call(rng):
    l1 = torch.from_numpy(rng.normal(size=(3, 1001)) * 3)
    a, b = l1.to(torch.bfloat16), l1.to(torch.float16)
    truth = reference.cde(a.double(), b.double())
    got = cde(a, b)
    for name in ("kl", "rkl", "js", "tv"):
        np.testing.assert_allclose(got[name], truth[name], rtol=1e-4, atol=2e-7)


@pytest.mark.parametrize("block", [32, 64, 256])
def test_blocks_of_any_size_give_what_whole_rows_give(block, rng):
    """From hidden states, the products as a float32 matrix product leaves them; rows of
    products that do and do not begin on 16 bytes."""
    h1, h0 = (rng.normal(size=(4, 24)).astype(np.float32) for _ in range(2))
    w = rng.normal(size=(901, 24)).astype(np.float32)
    targets = [0, 900, 5, 6]
    truth = reference.linear_cde(h1, h0, w, softcap=9.0, targets=targets)
    for ld in (960, 901):
        got = linear_cde(
            h1 @ w.T, h0 @ w.T, softcap=9.0, targets=targets, ld=ld, block=block
        )
        for name, value in truth.items():
            np.testing.assert_allclose(got[name], value, rtol=1e-5, atol=2e-6, err_msg=name)
