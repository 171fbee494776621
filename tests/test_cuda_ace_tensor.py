"""ace on emulated tensor cores, against the float64 specification."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from cuda_emulator import build, checks_ace_tensor
from cuda_emulator.ace_tensor import ace
from cuda_emulator.checks_ace import difference
from cuda_emulator.checks_ace_tensor import half_input
from test_ace import DTYPES, naive

from rap import reference

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="needs gcc")
HALVES = {name: DTYPES[name] for name in ("bfloat16", "float16")}


@pytest.mark.parametrize(
    "check",
    [
        checks_ace_tensor.values,
        checks_ace_tensor.windows,
        checks_ace_tensor.deep,
        checks_ace_tensor.large_scores,
        checks_ace_tensor.shares,
        checks_ace_tensor.packed,
        checks_ace_tensor.given,
        checks_ace_tensor.bounds,
        checks_ace_tensor.schedules,
        checks_ace_tensor.races,
    ],
    ids=lambda check: check.__name__,
)
def test_holds(check):
    check()


@pytest.mark.parametrize("heads", ["mean", "max"])
@pytest.mark.parametrize("dtype", HALVES)
def test_error_is_at_most_four_times_the_naive_one(dtype, heads):
    """Of attention in float32 from the same 16-bit queries and keys."""
    for hq, hkv, length, dim in [(2, 1, 14, 8), (4, 2, 33, 16), (6, 3, 150, 40)]:
        q, k = half_input(hq, hkv, length, dim, HALVES[dtype])
        start = length // 3
        for normalise, min_rows in ((True, 8), (False, 1)):
            options = dict(
                response_start=start, heads=heads, normalise=normalise, min_rows=min_rows
            )
            got = ace(q, k, **options, stats=False)["log_psi_columns"]
            truth = reference.ace(q.double(), k.double(), **options)["log_psi_columns"]
            plain = naive(q.float(), k.float(), start, heads, normalise, min_rows)[0]
            keep = np.isfinite(truth) & np.isfinite(plain)
            assert (np.isfinite(truth) == np.isfinite(got)).all()
            error = np.abs(got[keep] - truth[keep]).max()
            assert error <= 4 * np.abs(plain[keep] - truth[keep]).max(), (length, normalise)


@pytest.mark.parametrize("heads", ["mean", "max"])
def test_every_option(heads, rng):
    q, k = half_input(2, 1, 50, 12)
    column_mask, image_mask = rng.random(50) < 0.8, rng.random(50) < 0.3
    choices = itertools.product(
        ("response", "prompt", "all"), (None, 20), (None, 15), (True, False)
    )
    for columns, window, key_window, normalise in choices:
        options = dict(
            response_start=17, heads=heads, columns=columns, window=window,
            key_window=key_window, normalise=normalise, renormalise=not normalise,
            min_rows=9, column_mask=column_mask, image_mask=image_mask, sigma=1.5,
            scale=0.3, top=5,
        )  # fmt: skip
        got = ace(q, k, **options)
        truth = reference.ace(q.double(), k.double(), **options)
        checks_ace_tensor.compare(got, truth, 4e-6 if normalise else 4e-6 * 33, options)
    bare = ace(q, k, **options, stats=False)
    np.testing.assert_array_equal(bare["log_psi_columns"], got["log_psi_columns"])
    assert np.isnan(bare["attention_entropy"]).all()


@pytest.mark.parametrize("dim", [1, 64, 80, 96, 128, 256])
def test_dimensions_of_a_head(dim):
    q, k = half_input(4, 2, 66, dim)
    options = dict(response_start=1, heads="mean", columns="all")
    got, truth = ace(q, k, **options), reference.ace(q.double(), k.double(), **options)
    checks_ace_tensor.compare(got, truth, 4e-6)


@pytest.mark.parametrize("top", [1, 8, 64])
def test_the_largest_weights_of_a_row_with_ties(top):
    """Rows shorter than `top`, rows of equal weights, weights that are 0."""
    q, k = half_input(2, 1, 140, 4)
    k[:, 30:60] = k[:, :1]
    q[:, 130:] *= 400  # almost all weight on one key: the others vanish
    for heads, blocks in (("mean", 1), ("max", 1000)):
        options = dict(response_start=3, heads=heads, top=top)
        got = ace(q, k, **options, blocks=blocks)
        truth = reference.ace(q.double(), k.double(), **options)
        assert difference(got["attention_top"], truth["attention_top"]) < 4e-6


@pytest.mark.parametrize("where", ["q", "k"])
def test_fault_21_nan_and_inf_surface(where):
    for heads, bad in itertools.product(("mean", "max"), (np.nan, np.inf)):
        q, k = half_input(2, 1, 40, 8)
        (q if where == "q" else k)[0, 30, 0] = bad
        got = ace(q, k, response_start=10, heads=heads, min_rows=2)
        assert np.isnan(got["log_psi"]).any()
        assert (got["position"][np.isnan(got["log_psi"])] == -1).all()


def test_fault_24_a_sink_and_vanishing_columns_stay_finite():
    length = 140
    q = torch.ones(1, length, 1, dtype=torch.bfloat16)
    k = torch.full((1, length, 1), -200.0, dtype=torch.bfloat16)
    k[0, 0] = 0.0  # every row puts all its mass on column 0
    got = ace(
        q, k, response_start=0, columns="all", normalise=False, min_rows=1, scale=1.0,
        blocks=1,
    )  # fmt: skip
    assert got["log_psi"][0] == pytest.approx(length * np.log(2), rel=1e-6)
    assert got["position"][0] == 0
    floor = np.log(2.0) + np.log(reference.ACE_FLOOR)
    assert got["log_psi_columns"][1] == pytest.approx((length - 1) * floor, rel=1e-5)
