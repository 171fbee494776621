"""The ace kernels on the emulated device, against the float64 specification."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from cuda_emulator import build, checks_ace
from cuda_emulator.ace import ace
from cuda_emulator.checks_ace import attention_input, difference, log_sum_exps
from test_ace import DTYPES, naive

import rap
from rap import reference

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="needs gcc")


@pytest.mark.parametrize(
    "check",
    [
        checks_ace.values,
        checks_ace.windows,
        checks_ace.large_scores,
        checks_ace.sums_of_logarithms,
        checks_ace.packed,
        checks_ace.linear_form,
        checks_ace.bounds,
        checks_ace.linear_bounds,
        checks_ace.schedules,
        checks_ace.races,
        checks_ace.linear_races,
    ],
    ids=lambda check: check.__name__,
)
def test_holds(check):
    check()


@pytest.mark.parametrize("heads", ["mean", "max", "each"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_error_is_at_most_four_times_the_naive_one(dtype, heads):
    for hq, hkv, length, dim in [(2, 1, 14, 8), (4, 2, 33, 16), (6, 3, 200, 40)]:
        q, k = (x.to(DTYPES[dtype]) for x in attention_input(hq, hkv, length, dim))
        start = length // 3
        for normalise, min_rows in ((True, 8), (False, 1)):
            options = dict(
                response_start=start, heads=heads, normalise=normalise, min_rows=min_rows
            )
            got = ace(q, k, **options, block_rows=64, stats=False)["log_psi_columns"]
            truth = reference.ace(q.double(), k.double(), **options)["log_psi_columns"]
            plain = naive(q, k, start, heads, normalise, min_rows)
            plain = plain if heads == "each" else plain[0]
            keep = np.isfinite(truth) & np.isfinite(plain)
            assert (np.isfinite(truth) == np.isfinite(got)).all()
            error = np.abs(got[keep] - truth[keep]).max()
            assert error <= 4 * np.abs(plain[keep] - truth[keep]).max(), (length, normalise)


@pytest.mark.parametrize("heads", ["mean", "max", "each"])
def test_every_option(heads, rng):
    q, k = attention_input(4, 2, 50, 12)
    column_mask, image_mask = rng.random(50) < 0.8, rng.random(50) < 0.3
    choices = itertools.product(
        ("response", "prompt", "all"),
        (None, 20),
        (None, 15),
        ((True, False), (False, True)),
    )
    for columns, window, key_window, (normalise, renormalise) in choices:
        options = dict(
            response_start=17, heads=heads, columns=columns, window=window,
            key_window=key_window, normalise=normalise, renormalise=renormalise,
            min_rows=9, column_mask=column_mask, image_mask=image_mask, sigma=1.5,
            scale=0.3, top=5,
        )  # fmt: skip
        got, truth = ace(q, k, **options), reference.ace(q, k, **options)
        bound = 4e-6 if normalise else 4e-6 * 33
        checks_ace.compare(got, truth, bound, options)
    bare = ace(q, k, **options, stats=False)
    np.testing.assert_array_equal(bare["log_psi_columns"], got["log_psi_columns"])
    assert np.isnan(bare["attention_entropy"]).all()


@pytest.mark.parametrize("heads", ["mean", "max", "each"])
def test_given_log_sum_exps(heads):
    q, k = attention_input(4, 2, 60, 16)
    lse = log_sum_exps(q, k, 0.25)
    for columns, window in (("all", None), ("response", 4)):
        options = dict(response_start=21, heads=heads, window=window, columns=columns)
        options["min_rows"] = 2
        truth = reference.ace(q, k, **options)
        for given, stats in itertools.product((lse, lse.float()), (True, False)):
            got = ace(q, k, lse=given, stats=stats, **options)
            off = difference(got["log_psi_columns"], truth["log_psi_columns"])
            assert off < 2e-5, (columns, stats, off)
            np.testing.assert_array_equal(got["position"], truth["position"])


@pytest.mark.parametrize("dtype", DTYPES)
def test_linear_form_of_every_dtype_and_more_dimensions_than_lanes(dtype):
    q, k = (x.to(DTYPES[dtype]) for x in attention_input(2, 1, 90, 300))
    options = dict(response_start=11, heads="each", window=40, columns="all", scale=0.25)
    lse = log_sum_exps(q, k, 0.25)
    got = ace(q, k, lse=lse, stats=False, **options)["log_psi_columns"]
    truth = reference.ace(q.double(), k.double(), **options)["log_psi_columns"]
    assert difference(got, truth) < 1e-12


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["q", "k", "lse"])
def test_linear_form_answers_nan_and_infinity_as_the_cpu_does(where, bad):
    """A bad row poisons the columns up to it, also those whose window does not hold it."""
    for window, at in itertools.product((None, 5, 40), (20, 43, 70)):
        q, k = attention_input(2, 1, 90, 8)
        lse = log_sum_exps(q, k, 0.25)
        {"q": q, "k": k, "lse": lse}[where][0, at] = bad
        options = dict(
            response_start=11, heads="each", window=window, columns="all", scale=0.25,
            min_rows=1, stats=False, lse=lse,
        )  # fmt: skip
        got, cpu = ace(q, k, **options), rap.ace(q, k, **options)
        columns, want = got["log_psi_columns"], np.asarray(cpu.log_psi_columns)
        np.testing.assert_array_equal(np.isnan(columns), np.isnan(want))
        np.testing.assert_allclose(columns, want, rtol=1e-12, atol=1e-12)
        np.testing.assert_array_equal(got["position"], cpu.position)


@pytest.mark.parametrize("top", [1, 8, 64])
def test_the_largest_weights_of_a_row_with_ties(top):
    """Rows shorter than `top`, rows of equal weights, weights that are 0."""
    q, k = attention_input(2, 1, 90, 4)
    k[:, 30:60] = k[:, :1]
    q[:, 80:] *= 400  # almost all weight on one key: the others vanish
    for heads in ("mean", "each"):
        options = dict(response_start=3, heads=heads, top=top)
        got = ace(q, k, **options)
        truth = reference.ace(q, k, **options)
        assert difference(got["attention_top"], truth["attention_top"]) < 4e-6


@pytest.mark.parametrize("where", ["q", "k"])
def test_fault_21_nan_and_inf_surface(where):
    for heads, bad in itertools.product(("mean", "max", "each"), (np.nan, np.inf)):
        q, k = attention_input(2, 1, 40, 8)
        (q if where == "q" else k)[0, 30, 0] = bad
        got = ace(q, k, response_start=10, heads=heads, min_rows=2)
        assert np.isnan(got["log_psi"]).any()
        assert (got["position"][np.isnan(got["log_psi"])] == -1).all()


def test_fault_24_a_sink_and_vanishing_columns_stay_finite():
    length = 300
    q, k = torch.ones(1, length, 1), torch.full((1, length, 1), -200.0)
    k[0, 0] = 0.0  # every row puts all its mass on column 0
    got = ace(
        q, k, response_start=0, columns="all", normalise=False, min_rows=1, scale=1.0,
        block_rows=128,
    )  # fmt: skip
    assert got["log_psi"][0] == pytest.approx(length * np.log(2), rel=1e-6)
    assert got["position"][0] == 0
    floor = np.log(2.0) + np.log(reference.ACE_FLOOR)
    assert got["log_psi_columns"][1] == pytest.approx((length - 1) * floor, rel=1e-5)
