"""The cde kernels on the emulated device, against the float64 specification.

Same inputs and same derived bound as tests/test_cde.py: at most 4x the error of the plain
computation in the same dtype.
"""

from __future__ import annotations

import math
import subprocess

import numpy as np
import pytest
import torch
from cuda_emulator import build, checks_cde
from cuda_emulator.cde import cde, linear_cde
from test_cde import DTYPES, logits, naive

from rap import ops, reference

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="needs gcc")

TWINS = """
#include <stdio.h>
#include "emulator.h"
int
main(void)
{
    for (int i = 0; i < 60000; i++) {
        const float x = -130.0f + i * 0.0022f, p = rap_emu_ex2(-120.0f + i * 0.002f);
        printf("%a %a %a %a\\n", x, rap_emu_ex2(x), p, rap_emu_lg2(p));
    }
    return 0;
}
"""
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
        checks_cde.halves,
        checks_cde.offset,
        checks_cde.bad_logits,
        checks_cde.rising,
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


@pytest.mark.parametrize("bias", ["1", "-1"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_error_holds_at_the_worst_the_approximations_may_do(
    dtype, bias, rng, monkeypatch
):
    """ex2 2 ulp and lg2 2^-22 up or down everywhere, which no sum averages out."""
    monkeypatch.setenv("RAP_EMU_BIAS", bias)
    for kind in ("apart", "near", "peaked"):
        for rows, vocab in ((3, 2049), (2, 16389)):
            l1, l0 = (
                torch.from_numpy(x).to(DTYPES[dtype])
                for x in logits(rng, rows, vocab, kind)
            )
            targets = torch.from_numpy(rng.integers(0, vocab, rows))
            check(cde(l1, l0, targets=targets), l1, l0, targets, (rows, vocab, kind))


def test_the_twins_of_the_approximations_stay_within_what_is_stated(tmp_path):
    """2^x within 2 ulp and log2 x within 2^-22 of max(1, |log2 x|), against float64; and
    they do go that far."""
    source = tmp_path / "twins.c"
    source.write_text(TWINS)
    program = tmp_path / "twins"
    subprocess.run(
        [build.compiler(), "-std=gnu11", "-O2", f"-I{build.HERE}", source,
         build.HERE / "approx.c", "-o", program, "-lm"],
        check=True,
    )  # fmt: skip
    out = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    x, ex2, log, lg2 = np.array(
        [[float.fromhex(n) for n in line.split()] for line in out.splitlines()]
    ).T
    right = np.exp2(x)
    ulp = np.abs(ex2 - right) / np.spacing(right.astype(np.float32)).astype(float)
    assert 1.5 < ulp[x >= -125.5].max() <= 2.5  # half an ulp to the nearest float32
    assert (ex2[x < -126] == 0).all()
    error = np.abs(lg2 - np.log2(log)) / np.maximum(1, np.abs(np.log2(log)))
    assert 0.9 * 2**-22 < error.max() <= 1.2 * 2**-22


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
