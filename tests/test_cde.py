"""cde against its float64 specification, for every instruction set this CPU has.

The bound is derived, not tuned: at most 4x the error of the plain computation in the same
dtype (torch log_softmax), both held against float64.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import rap
from rap import _C, ops, reference

ISAS = _C.isa_names()
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SHAPES = [
    (64, 1),
    (64, 2),
    (40, 31),
    (40, 33),
    (24, 2047),
    (24, 2049),
    (8, 7001),
    (4, 32003),
]


def naive(
    l1: torch.Tensor, l0: torch.Tensor, targets: torch.Tensor
) -> dict[str, np.ndarray]:
    """What a user would write, in the dtype of the logits."""
    a1, a0 = torch.log_softmax(l1, -1), torch.log_softmax(l0, -1)
    p1, p0 = a1.exp(), a0.exp()
    mix = torch.log((0.5 * (p1 + p0)).clamp_min(torch.finfo(l1.dtype).tiny))
    out = {
        "kl": (p1 * (a1 - a0)).sum(-1),
        "rkl": (p0 * (a0 - a1)).sum(-1),
        "js": 0.5 * ((p1 * (a1 - mix)).sum(-1) + (p0 * (a0 - mix)).sum(-1)),
        "tv": 0.5 * (p1 - p0).abs().sum(-1),
        "hellinger2": 1 - (p1 * p0).sqrt().sum(-1),
        "entropy1": -(p1 * a1).sum(-1),
        "entropy0": -(p0 * a0).sum(-1),
        "logp1": a1.gather(-1, targets[:, None])[:, 0],
        "logp0": a0.gather(-1, targets[:, None])[:, 0],
    }
    out["jeffreys"] = out["kl"] + out["rkl"]
    return {name: x.double().numpy() for name, x in out.items()}


def logits(rng: np.random.Generator, rows: int, vocab: int, kind: str) -> tuple:
    base = rng.normal(size=(rows, vocab)) * 3
    if kind == "near":
        other = base + 0.05 * rng.normal(size=base.shape)
    elif kind == "offset":
        other = base + rng.normal(size=base.shape) + 20.0
    elif kind == "peaked":
        base[np.arange(rows), rng.integers(0, vocab, rows)] += 25.0
        other = rng.normal(size=base.shape) * 3
    else:
        other = rng.normal(size=base.shape) * 3
    return base, other


@pytest.mark.parametrize("isa", ISAS, indirect=True)
@pytest.mark.parametrize("kind", ["apart", "near", "offset", "peaked"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_error_is_at_most_four_times_the_naive_one(isa, dtype, kind, rng):
    for rows, vocab in SHAPES:
        l1, l0 = (
            torch.from_numpy(x).to(DTYPES[dtype]) for x in logits(rng, rows, vocab, kind)
        )
        targets = torch.from_numpy(rng.integers(0, vocab, rows))
        got = rap.cde(l1, l0, targets=targets)
        truth = reference.cde(l1.double(), l0.double(), targets=targets)
        plain = naive(l1, l0, targets)
        # half a unit of the largest number that was rounded on the way: what the naive
        # computation may be lucky enough to miss on a few rows
        unit = 2.0**-24 * max(1.0, float(l1.abs().max()), float(l0.abs().max()))
        for name in ops.CDE_OUTPUTS:
            error = np.abs(getattr(got, name).numpy() - truth[name]).max()
            allowed = 4 * max(np.abs(plain[name] - truth[name]).max(), unit)
            assert error <= allowed, (name, rows, vocab, error, allowed)


@pytest.mark.parametrize("isa", ISAS, indirect=True)
def test_large_vocabulary_and_rising_rows(isa, rng):
    """A row that keeps rising moves the reference again and again."""
    vocab = 151_936
    l1 = np.linspace(-300, 300, vocab, dtype=np.float32)[None]
    l0 = np.ascontiguousarray(l1[:, ::-1]) * 0.3 + rng.normal(size=(1, vocab)).astype(
        np.float32
    )
    got, truth = rap.cde(l1, l0), reference.cde(l1, l0)
    for name in ("kl", "rkl", "js", "tv", "hellinger2", "entropy1", "entropy0"):
        assert getattr(got, name)[0] == pytest.approx(truth[name][0], rel=2e-6, abs=2e-6), (
            name
        )


@pytest.mark.parametrize("isa", ISAS, indirect=True)
def test_a_peak_that_comes_late_costs_no_precision(isa, rng):
    """Entropy and divergences cancel what lies between the reference and the maximum, so
    the reference must follow: the peak stands 30 nats above the first blocks."""
    l1 = rng.normal(size=(8, 9000)).astype(np.float32)
    l0 = rng.normal(size=(8, 9000)).astype(np.float32)
    l1[:, 8000] = l0[:, 8500] = 30.0
    got, truth = rap.cde(l1, l0), reference.cde(l1, l0)
    for name in ("entropy1", "entropy0"):
        np.testing.assert_allclose(getattr(got, name), truth[name], rtol=0, atol=4e-7)
    np.testing.assert_allclose(got.kl, truth["kl"], rtol=4e-7)


@pytest.mark.parametrize("isa", ISAS, indirect=True)
def test_a_common_peak_that_comes_late_keeps_what_came_before(isa, rng):
    """Half of the probability is in the logits before the one that moves the reference."""
    l1 = rng.normal(size=(8, 9000)).astype(np.float32)
    l0 = rng.normal(size=(8, 9000)).astype(np.float32)
    l1[:, 8000] = l0[:, 8000] = 9.5
    got, truth = rap.cde(l1, l0), reference.cde(l1, l0)
    for name in ("kl", "rkl", "js", "tv", "hellinger2", "entropy1", "entropy0"):
        np.testing.assert_allclose(getattr(got, name), truth[name], rtol=1e-5)


@pytest.mark.parametrize("isa", ISAS, indirect=True)
def test_an_infinite_divergence_stays_infinite_when_the_maximum_rises(isa):
    """p1 > 0 = p0 is met first, the maxima of both rows rise by thousands afterwards."""
    l1 = np.zeros((2, 5000), np.float32)
    l0 = np.zeros((2, 5000), np.float32)
    l0[0, 3] = l1[1, 3] = -np.inf
    l1[:, 4000] = l0[:, 4000] = 5.0
    got, truth = rap.cde(l1, l0), reference.cde(l1, l0)
    np.testing.assert_array_equal(np.isinf(got.kl), np.isinf(truth["kl"]))
    np.testing.assert_array_equal(np.isinf(got.rkl), np.isinf(truth["rkl"]))
    assert not np.isnan(got.jeffreys).any()
    l1[:, 4000] = l0[:, 4000] = 5000.0  # what was summed before becomes 0
    got = rap.cde(l1, l0)
    assert np.isposinf([got.kl[0], got.rkl[1]]).all() and not np.isnan(got.jeffreys).any()


@pytest.mark.parametrize("isa", ISAS, indirect=True)
def test_masked_tokens_are_outside_the_support(isa, rng):
    l1 = rng.normal(size=(6, 5000)).astype(np.float32)
    l0 = l1 + rng.normal(size=l1.shape).astype(np.float32)
    both = rng.random(5000) < 0.6
    l1[:, both] = l0[:, both] = -np.inf
    l1[:, :2048] = l0[:, :2048] = -np.inf  # a whole block
    got, truth = rap.cde(l1, l0), reference.cde(l1, l0)
    for name in ("kl", "rkl", "js", "tv", "hellinger2", "entropy1", "entropy0"):
        np.testing.assert_allclose(getattr(got, name), truth[name], rtol=1e-5, atol=1e-6)
    l0[:, 4999], l1[:, 4999] = -np.inf, 1.0  # p1 > 0 = p0: KL(p1 || p0) is infinite
    got = rap.cde(l1, l0)
    assert np.isposinf(got.kl).all() and np.isposinf(got.jeffreys).all()
    assert np.isfinite(got.rkl).all() and np.isfinite(got.js).all()


@pytest.mark.parametrize("isa", ISAS, indirect=True)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("payload", [False, True])
def test_fault_21_a_bad_logit_makes_its_row_nan_and_no_other(isa, bad, payload, rng):
    l1 = rng.normal(size=(3, 3000)).astype(np.float32)
    l0 = rng.normal(size=(3, 3000)).astype(np.float32)
    l1[1, 2500] = bad
    if payload:  # a NaN with low bits set must stay one through integer steps
        l1.view(np.uint32)[1, 2500] = 0x7FC00001
    got = rap.cde(l1, l0, targets=[0, 0, 0])
    for name in ("kl", "rkl", "jeffreys", "js", "entropy1", "tv", "hellinger2", "logp1"):
        value = getattr(got, name)
        assert np.isnan(value[1]) and np.isfinite(value[[0, 2]]).all(), name


@pytest.mark.parametrize("isa", ISAS, indirect=True)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_is_its_own_float32(isa, dtype, rng):
    """16-bit logits are widened exactly, wherever the row begins, subnormals and both
    infinities included; branches may differ in dtype."""
    x1, x0 = (torch.from_numpy(rng.normal(size=(6, 3007))).to(DTYPES[dtype]) for _ in "ab")
    x1[1, 2006] = x0[2, 3006] = -math.inf
    x1[3] = x0[3] * 3e-6  # float16: subnormals
    x1[4, 2050] = math.inf
    x0[5, 1] = math.nan
    l1, l0 = x1[:, 1:], x0[:, 1:]
    ids = torch.tensor([3005, 2005, 0, 1024, 7, 8])
    got = rap.cde(l1, l0, targets=ids)
    for a, b in ((l1.float(), l0.float()), (l1.float(), l0), (l1, l0.float())):
        wide = rap.cde(a, b, targets=ids)
        for name in ops.CDE_OUTPUTS:
            x, y = getattr(got, name), getattr(wide, name)
            torch.testing.assert_close(x, y, rtol=1e-5, atol=2e-6, equal_nan=True)


@pytest.mark.parametrize("isa", ISAS, indirect=True)
@pytest.mark.parametrize("size", [1e4, 3e6, 1e9, 1e12, 1e20, 1e30, 2.3e38, 3.3e38])
def test_logits_of_any_finite_size(isa, size):
    """Whole rows near the end of float32, and masks as large among common logits."""
    l1 = np.array([[size, size, -size, 0.0] * 300] * 2, np.float32)
    l0 = np.array([[0.0, size, size, -size] * 300] * 2, np.float32)
    l1[1], l0[1] = 0.5, 0.25
    l1[1, 700:], l0[1, 700:] = -size, -size
    got, truth = rap.cde(l1, l0), reference.cde(l1, l0)
    for name in ("kl", "rkl", "js", "tv", "entropy1", "entropy0"):
        np.testing.assert_allclose(getattr(got, name), truth[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("isa", ISAS, indirect=True)
@pytest.mark.parametrize("offset", [2.0**14, 2.0**19, -(2.0**19), 2.0**21])
def test_a_common_offset_changes_nothing(isa, offset, rng):
    """Logits that stay exact float32 numbers under it: multiples of 1/4 below 2^22."""
    l1, l0 = (np.round(rng.normal(size=(4, 3000)) * 8).astype(np.float32) / 4 for _ in "ab")
    near = rap.cde(l1, l0, targets=[1, 2, 3, 4])
    far = rap.cde(l1 + np.float32(offset), l0 + np.float32(offset), targets=[1, 2, 3, 4])
    truth = reference.cde(l1, l0, targets=[1, 2, 3, 4])
    for name in ops.CDE_OUTPUTS:
        np.testing.assert_allclose(getattr(near, name), truth[name], rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(getattr(far, name), truth[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("isa", ISAS, indirect=True)
def test_float16_with_masked_tokens_has_the_bits_of_its_float32(isa, rng):
    """A piece that holds -inf is summed in float64, in every dtype and both sweeps; 16-bit
    pieces without are taken two logits a step, which rounds otherwise."""
    l1, l0 = (rng.normal(size=(5, 64)).astype(np.float16) for _ in "ab")
    l1[:, 7] = l0[:, 7] = -np.inf
    l0[1, 20:40] = -np.inf
    l1[2, :60] = -np.inf
    got, wide = rap.cde(l1, l0), rap.cde(l1.astype(np.float32), l0.astype(np.float32))
    for name in ("kl", "js", "tv", "entropy1"):
        assert getattr(got, name).tobytes() == getattr(wide, name).tobytes(), name


def test_rows_without_a_logit_are_refused():
    empty = np.zeros((3, 0), np.float32)
    for call in (
        lambda: rap.cde(empty, empty),
        lambda: rap.linear_cde(empty, empty, np.zeros((5, 0), np.float32)),
    ):
        with pytest.raises(rap.RapInputError, match="rows are empty"):
            call()
    with pytest.raises(rap.RapInputError, match="weight"):
        rap.linear_cde(
            np.zeros((3, 4), "f4"), np.zeros((3, 4), "f4"), np.zeros((0, 4), "f4")
        )


def test_equal_rows_have_no_divergence(rng):
    l1 = rng.normal(size=(4, 4000)).astype(np.float32)
    got = rap.cde(l1, l1.copy())
    for name in ("kl", "rkl", "jeffreys", "tv"):
        assert (getattr(got, name) == 0).all(), name
    # two roundings apart at most: sqrt(p p) and p are summed by different roads
    assert (np.abs(got.js) < 2e-7).all() and (np.abs(got.hellinger2) < 4e-7).all()
    assert (rap.cde(l1, l1 + 3.0).kl < 1e-6).all()  # a constant changes nothing


def test_only_what_is_wanted(rng):
    l1, l0 = (rng.normal(size=(2, 100)).astype(np.float32) for _ in range(2))
    got = rap.cde(l1, l0, want=("tv", "kl"))
    assert got.js is None and got.logp1 is None and got.entropy1 is None
    full = rap.cde(l1, l0)
    np.testing.assert_array_equal(got.kl, full.kl)
    np.testing.assert_array_equal(got.tv, full.tv)
    with pytest.raises(rap.RapConfigError, match="want"):
        rap.cde(l1, l0, want=("kld",))
    with pytest.raises(rap.RapConfigError, match="targets"):
        rap.cde(l1, l0, want=("logp1",))


def test_only_what_is_wanted_is_written(rng):
    l1, l0 = (rng.normal(size=(3, 50)).astype(np.float32) for _ in "ab")
    full = np.empty((len(ops.CDE_OUTPUTS), 3))
    _C.cde(l1, l0, np.array([0, 1, 2]), full, (1 << len(ops.CDE_OUTPUTS)) - 1, 1)
    for row in range(len(ops.CDE_OUTPUTS)):
        out = np.full((len(ops.CDE_OUTPUTS), 3), 7.0)
        _C.cde(l1, l0, np.array([0, 1, 2]), out, 1 << row, 1)
        assert (np.delete(out, row, 0) == 7).all()
        np.testing.assert_array_equal(out[row], full[row])


def test_branches_of_other_shapes_are_refused():
    a = np.zeros((4, 9), np.float32)
    for b in (a[:3], a[:, :8]):
        for pair in ((a, b), (b, a)):
            with pytest.raises(rap.RapInputError, match="must have the same shape"):
                rap.cde(*pair)
            with pytest.raises(rap.RapInputError, match="must have the same shape"):
                rap.linear_cde(*pair, a)
    with pytest.raises(rap.RapInputError, match="two dimensions"):
        rap.cde(a[0], a[0])


def test_packed_samples_give_weighted_means(rng):
    l1, l0 = (rng.normal(size=(10, 50)).astype(np.float32) for _ in range(2))
    cu = np.array([0, 3, 3, 10])
    w = rng.random(10)
    w[4] = 0
    l1[4] = np.nan  # a row of weight 0 says nothing
    got = rap.cde(l1, l0, cu_seqlens=cu, weights=w)
    truth = reference.cde(l1, l0, cu_seqlens=cu, weights=w)
    np.testing.assert_allclose(got.kl, truth["kl"], rtol=1e-5)
    assert np.isnan(got.kl[1])  # an empty sample
    with pytest.raises(rap.RapInputError, match="cu_seqlens"):
        rap.cde(l1, l0, cu_seqlens=[0, 5])
    with pytest.raises(rap.RapInputError, match="weights"):
        rap.cde(l1, l0, cu_seqlens=cu, weights=-w)


def test_targets_are_checked(rng):
    l1 = rng.normal(size=(2, 9)).astype(np.float32)
    with pytest.raises(rap.RapInputError, match=r"targets\[1\] = 9"):
        rap.cde(l1, l1, targets=[0, 9])
    with pytest.raises(rap.RapInputError, match=r"targets\[0\] = -1"):
        rap.cde(l1, l1, targets=[-1, 0])
    with pytest.raises(rap.RapInputError, match="integers"):
        rap.cde(l1, l1, targets=[0.5, 1.0])
    for few_or_many in ([0], [0, 1, 2]):
        with pytest.raises(rap.RapInputError, match=r"targets: expected int64 \[2\]"):
            rap.cde(l1, l1, targets=few_or_many)


def test_same_bits_for_any_number_of_threads(rng):
    l1, l0 = (rng.normal(size=(37, 9001)).astype(np.float32) for _ in range(2))
    one = rap.cde(l1, l0, threads=1)
    for threads in (2, 5, 16):
        many = rap.cde(l1, l0, threads=threads)
        for name in ("kl", "rkl", "js", "tv", "hellinger2", "entropy1", "entropy0"):
            assert getattr(one, name).tobytes() == getattr(many, name).tobytes()


# --- from hidden states ---------------------------------------------------------------


@pytest.mark.parametrize("isa", ISAS, indirect=True)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("extra", ["plain", "bias", "softcap", "scale"])
def test_linear_error_is_at_most_four_times_the_naive_one(isa, dtype, extra, rng):
    options = {
        "plain": {},
        "bias": {"bias": True},
        "softcap": {"softcap": 5.0},
        "scale": {"scale": 0.25, "bias": True, "softcap": 30.0},
    }[extra]
    for rows, vocab, hidden in [(1, 1, 1), (64, 40, 7), (70, 1300, 96), (32, 513, 700)]:
        h1 = torch.from_numpy(rng.normal(size=(rows, hidden))).to(DTYPES[dtype])
        h0 = torch.from_numpy(rng.normal(size=(rows, hidden))).to(DTYPES[dtype])
        w = torch.from_numpy(rng.normal(size=(vocab, hidden)) * 3 / hidden**0.5)
        w = w.to(DTYPES[dtype])
        given = dict(options)
        if given.pop("bias", False):
            given["bias"] = torch.from_numpy(rng.normal(size=vocab)).to(DTYPES[dtype])
        targets = torch.from_numpy(rng.integers(0, vocab, rows))
        got = rap.linear_cde(h1, h0, w, targets=targets, **given)

        def plain_logits(h, w=w, given=given):
            x = h @ w.T
            x = x + given["bias"] if "bias" in given else x
            x = x * given.get("scale", 1.0)
            cap = given.get("softcap")
            return cap * torch.tanh(x / cap) if cap else x

        in_double = {k: v.double() if hasattr(v, "double") else v for k, v in given.items()}
        truth = reference.linear_cde(
            h1.double(), h0.double(), w.double(), targets=targets, **in_double
        )
        plain = naive(plain_logits(h1), plain_logits(h0), targets)
        unit = 2.0**-24 * max(1.0, float(plain_logits(h1).abs().max()))
        for name in ops.CDE_OUTPUTS:
            error = np.abs(getattr(got, name).numpy() - truth[name]).max()
            allowed = 4 * max(np.abs(plain[name] - truth[name]).max(), unit)
            assert error <= allowed, (name, rows, vocab, hidden, error, allowed)


def test_linear_equals_cde_of_the_logits_and_threads_and_memory_change_no_bit(rng):
    h1, h0 = (rng.normal(size=(130, 64)).astype(np.float32) for _ in range(2))
    w = rng.normal(size=(2000, 64)).astype(np.float32)
    one = rap.linear_cde(h1, h0, w, threads=1)
    np.testing.assert_allclose(one.kl, rap.cde(h1 @ w.T, h0 @ w.T).kl, rtol=1e-4)
    # all logits kept; products twice; blocks of 20 rows, the last of 10
    for memory in (1 << 30, 1, 4 * 480 * 64 + 20 * 8 * 2016):
        for threads in (1, 2, 7):
            other = rap.linear_cde(h1, h0, w, threads=threads, memory=memory)
            for name in ("kl", "js", "tv", "entropy0"):
                assert getattr(one, name).tobytes() == getattr(other, name).tobytes()


@pytest.mark.parametrize("isa", ISAS, indirect=True)
def test_what_reads_one_branch_multiplies_that_branch(isa, rng):
    """The other one may be anything; the bits are those of both branches' call."""
    h1, h0 = (rng.normal(size=(9, 64)).astype(np.float32) for _ in range(2))
    w, ids = rng.normal(size=(1300, 64)).astype(np.float32), np.arange(9)
    both = rap.linear_cde(h1, h1, w, targets=ids)
    bad = np.full_like(h0, np.nan)
    for want, pair in ((("logp1", "entropy1"), (h1, bad)), (("logp0",), (bad, h1))):
        got = rap.linear_cde(*pair, w, want=want, targets=ids, softcap=None)
        for name in want:
            assert getattr(got, name).tobytes() == getattr(both, name).tobytes(), name
    assert np.isnan(rap.linear_cde(h1, bad, w, want="kl").kl).all()


def test_linear_rejects_what_does_not_fit(rng):
    h, w = rng.normal(size=(3, 8)).astype(np.float32), np.zeros((5, 9), np.float32)
    with pytest.raises(rap.RapInputError, match="weight"):
        rap.linear_cde(h, h, w)
    with pytest.raises(rap.RapInputError, match="bias"):
        rap.linear_cde(h, h, w[:, :8], bias=np.zeros(4, np.float32))
    with pytest.raises(rap.RapConfigError, match="softcap"):
        rap.linear_cde(h, h, w[:, :8], softcap=-1.0)
    for bad in ({"softcap": 1e-60}, {"softcap": 1e60}, {"scale": 1e60}):
        with pytest.raises(rap.RapInputError, match="float32"):
            rap.linear_cde(h, h, w[:, :8], **bad)
    with pytest.raises(rap.RapConfigError, match="memory"):
        rap.linear_cde(h, h, w[:, :8], memory=-1)
    empty = rap.linear_cde(h[:0], h[:0], w[:, :8])
    assert empty.kl.shape == (0,)


@pytest.mark.parametrize("isa", ISAS, indirect=True)
def test_bfloat16_products_are_as_exact_as_those_of_float32(isa, rng):
    """Products of bfloat16 are exact in float32: what rounds is the sum, in either type."""
    for tokens, vocab, hidden in ((40, 700, 1026), (3, 33, 2), (13, 200, 515)):
        h1, h0 = (
            torch.from_numpy(rng.normal(size=(tokens, hidden))).bfloat16() for _ in range(2)
        )
        w = torch.from_numpy(rng.normal(size=(vocab, hidden)) * 3 / hidden**0.5).bfloat16()
        got = rap.linear_cde(h1, h0, w, threads=1)
        truth = reference.linear_cde(h1.double(), h0.double(), w.double())
        l1, l0 = (h.float() @ w.float().T for h in (h1, h0))
        plain = naive(l1, l0, torch.zeros(tokens, dtype=torch.int64))
        unit = 2.0**-24 * max(1.0, float(l1.abs().max()))
        for name in ("kl", "rkl", "js", "entropy1"):
            error = np.abs(getattr(got, name).numpy() - truth[name]).max()
            assert error <= 4 * max(np.abs(plain[name] - truth[name]).max(), unit), name
        many = rap.linear_cde(h1, h0, w, threads=3, memory=1)
        assert got.kl.numpy().tobytes() == many.kl.numpy().tobytes()
        # rows that are no whole pairs of bfloat16 take the way through float32
        odd = torch.empty(vocab, hidden + 1, dtype=torch.bfloat16)[:, 1:].copy_(w)
        np.testing.assert_allclose(
            rap.linear_cde(h1, h0, odd).kl, got.kl, rtol=1e-4, atol=4 * unit
        )
