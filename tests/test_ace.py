"""ace against its float64 specification, for every instruction set this CPU has."""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch

import rap
from rap import _C, reference

ISAS = _C.isa_names()
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FIELDS = ("log_psi", "attention_entropy", "attention_top", "image_mass", "log_psi_columns")


def attention_input(rng, hq, hkv, length, dim, dtype=torch.float32, spread=1.5):
    q = torch.from_numpy(rng.normal(size=(hq, length, dim)) * spread).to(dtype)
    k = torch.from_numpy(rng.normal(size=(hkv, length, dim))).to(dtype)
    return q, k


def naive(q, k, start, heads, normalise, min_rows, sigma=2.0):
    """psi from the attention matrix in q's dtype, as a user would build it."""
    length, dim = q.shape[1:]
    k = k.repeat_interleave(q.shape[0] // k.shape[0], 0)
    scores = (q @ k.transpose(1, 2)) * dim**-0.5
    hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
    a = scores.masked_fill(hidden, float("-inf")).softmax(-1)
    w = {
        "mean": lambda: a.mean(0)[None],
        "max": lambda: a.max(0)[0][None],
        "each": lambda: a,
    }
    ln_w = torch.log(sigma * w[heads]()).masked_fill(hidden, 0)[:, start:]
    rows = torch.arange(length, 0, -1).clamp_max(length - start)
    psi = ln_w.sum(1) / (rows if normalise else 1)
    allowed = (torch.arange(length) >= start) & (rows >= min_rows)
    return psi.masked_fill(~allowed, float("-inf")).double().numpy()


def difference(a, b) -> float:
    a, b = np.asarray(a, float), np.asarray(b, float)
    assert a.shape == b.shape
    assert (np.isneginf(a) == np.isneginf(b)).all() and (np.isnan(a) == np.isnan(b)).all()
    known = np.isfinite(b)
    return float(np.abs(a[known] - b[known]).max(initial=0.0))


@pytest.mark.parametrize("isa", ISAS, indirect=True)
@pytest.mark.parametrize("heads", ["mean", "max", "each"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_error_is_at_most_four_times_the_naive_one(isa, dtype, heads, rng):
    for hq, hkv, length, dim in [
        (2, 1, 14, 8),
        (4, 2, 33, 16),
        (6, 3, 200, 40),
        (2, 2, 700, 64),
    ]:
        q, k = attention_input(rng, hq, hkv, length, dim, DTYPES[dtype])
        start = length // 3
        for normalise, min_rows in ((True, 8), (False, 1)):
            options = dict(
                response_start=start, heads=heads, normalise=normalise, min_rows=min_rows
            )
            got = rap.ace(q, k, **options).log_psi_columns.numpy()
            truth = reference.ace(q.double(), k.double(), **options)["log_psi_columns"]
            plain = naive(q, k, start, heads, normalise, min_rows)
            plain = plain if heads == "each" else plain[0]
            keep = np.isfinite(truth) & np.isfinite(plain)
            assert (np.isfinite(truth) == np.isfinite(got)).all()
            error = np.abs(got[keep] - truth[keep]).max()
            assert error <= 4 * np.abs(plain[keep] - truth[keep]).max(), (length, normalise)


@pytest.mark.parametrize("isa", ISAS, indirect=True)
@pytest.mark.parametrize("heads", ["mean", "max", "each"])
def test_heads_of_more_than_one_block_of_the_product(isa, heads, rng):
    """Products of more than RAP_GEMM_DEPTH = 256 dimensions are added up block by block."""
    q, k = attention_input(rng, 2, 1, 70, 600)
    got = rap.ace(q, k, response_start=20, heads=heads)
    truth = reference.ace(q.double(), k.double(), response_start=20, heads=heads)
    for name in FIELDS:
        assert difference(getattr(got, name), truth[name]) < 1e-5, name


@pytest.mark.parametrize("isa", ISAS, indirect=True)
@pytest.mark.parametrize("heads", ["mean", "max", "each"])
@pytest.mark.parametrize("scale", [0.0, 1e-60])
def test_a_scale_of_0_is_even_attention(isa, heads, scale, rng):
    """Also one that is 0 as a float32 only; A_ij is 1 / (i + 1) whatever the scores."""
    q, k = attention_input(rng, 2, 1, 50, 8)
    lse = torch.log(torch.arange(1, 51, dtype=torch.float64)).expand(2, 50)
    truth = reference.ace(q, k, response_start=20, heads=heads, scale=0.0)
    for given, stats in ((None, True), (lse, True), (lse, False)):
        options = dict(response_start=20, heads=heads, scale=scale, lse=given, stats=stats)
        got = rap.ace(q, k, **options)
        for name in FIELDS if stats else FIELDS[:1]:
            assert difference(getattr(got, name), truth[name]) < 2e-6, (name, given is None)
    # single heads read it off each row: ln(2 / (i + 1)), mean over rows 20 to 49
    rows = np.log(2.0) - np.log(np.arange(21, 51))
    assert float(got.log_psi.reshape(-1)[0]) == pytest.approx(rows.mean(), abs=1e-6)


@pytest.mark.parametrize("isa", ISAS, indirect=True)
@pytest.mark.parametrize("heads", ["mean", "max", "each"])
def test_every_option(isa, heads, rng):
    q, k = attention_input(rng, 6, 2, 150, 24)
    column_mask, image_mask = rng.random(150) < 0.8, rng.random(150) < 0.3
    choices = itertools.product(
        ("response", "prompt", "all"),
        (None, 5, 60),
        (None, 3, 45),
        (True, False),
        (True, False),
        (1, 9),
    )
    for columns, window, key_window, normalise, renormalise, min_rows in choices:
        options = dict(
            response_start=40,
            heads=heads,
            columns=columns,
            window=window,
            key_window=key_window,
            normalise=normalise,
            renormalise=renormalise,
            min_rows=min_rows,
            column_mask=column_mask,
            image_mask=image_mask,
            sigma=1.5,
            scale=0.3,
            top=5,
        )
        got, truth = rap.ace(q, k, **options), reference.ace(q, k, **options)
        for name in FIELDS:
            scale = 1.0 if normalise or "psi" not in name else 110.0
            assert difference(getattr(got, name), truth[name]) < 4e-6 * scale, (
                name,
                options,
            )
        np.testing.assert_array_equal(got.position, truth["position"])
        bare = rap.ace(q, k, **options, stats=False)
        # without statistics only candidate columns are computed: the same sums, bit for bit
        np.testing.assert_array_equal(bare.log_psi_columns, got.log_psi_columns)
        assert bare.attention_entropy.isnan().all()


@pytest.mark.parametrize("isa", ISAS, indirect=True)
@pytest.mark.parametrize("heads", ["mean", "max", "each"])
def test_given_log_sum_exps(isa, heads, rng):
    q, k = attention_input(rng, 4, 2, 120, 16)
    scores = 0.25 * (q.double() @ k.double().repeat_interleave(2, 0).transpose(1, 2))
    hidden = torch.ones(120, 120, dtype=torch.bool).triu(1)
    lse = scores.masked_fill(hidden, float("-inf")).logsumexp(-1)
    for window, columns, normalise in (
        (None, "all", True),
        (7, "all", True),
        (None, "response", False),
        (4, "response", True),
    ):
        options = dict(
            response_start=31,
            heads=heads,
            window=window,
            columns=columns,
            normalise=normalise,
            min_rows=3,
        )
        truth = reference.ace(q, k, **options)
        assert np.isfinite(np.asarray(truth["log_psi"])).all()
        for given in (lse, lse.float()):
            for stats in (True, False):
                got = rap.ace(q, k, lse=given, stats=stats, **options)
                bound = 2e-5 if normalise else 1e-3
                assert difference(got.log_psi_columns, truth["log_psi_columns"]) < bound
                assert got.position.tolist() == truth["position"].tolist()
    exact = rap.ace(q, k, lse=lse, stats=False, response_start=31, heads="each")
    truth = reference.ace(q, k, response_start=31, heads="each")
    assert (
        difference(exact.log_psi_columns, truth["log_psi_columns"]) < 1e-12
    )  # linear form


@pytest.mark.parametrize("heads", ["mean", "max"])
def test_given_log_sum_exps_and_a_window_over_several_blocks_of_rows(heads, rng):
    """Without statistics a block computes no key before the first that its rows need, which
    here is the last of the keys that a step of the product takes at once."""
    q, k = attention_input(rng, 2, 1, 400, 16)
    scores = 0.25 * (q.double() @ k.double().repeat_interleave(2, 0).transpose(1, 2))
    hidden = torch.ones(400, 400, dtype=torch.bool).triu(1)
    lse = scores.masked_fill(hidden, float("-inf")).logsumexp(-1)
    options = dict(response_start=34, heads=heads, window=4, min_rows=4)
    truth = reference.ace(q, k, columns="response", **options)
    got = rap.ace(q, k, lse=lse, stats=False, columns="response", **options)
    assert difference(got.log_psi_columns, truth["log_psi_columns"]) < 2e-5
    assert got.position.tolist() == truth["position"].tolist()


@pytest.mark.parametrize("heads", ["mean", "max", "each"])
@pytest.mark.parametrize("columns", ["response", "prompt", "all"])
def test_sliding_window_layers_with_given_log_sum_exps(heads, columns, rng):
    """The last layer of Gemma 3 may see its latest keys only."""
    q, k = attention_input(rng, 4, 2, 120, 16)
    scores = 0.25 * (q.double() @ k.double().repeat_interleave(2, 0).transpose(1, 2))
    seen = torch.ones(120, 120, dtype=torch.bool).tril().triu(-19)
    lse = scores.masked_fill(~seen, float("-inf")).logsumexp(-1)
    options = dict(
        response_start=31, heads=heads, columns=columns, key_window=20, min_rows=3
    )
    truth = reference.ace(q, k, **options)
    for stats in (True, False):
        got = rap.ace(q, k, lse=lse, stats=stats, **options)
        assert difference(got.log_psi_columns, truth["log_psi_columns"]) < 2e-5
    columns_of_the_linear_form = rap.ace(q, k, lse=lse, stats=False, **options)
    assert columns_of_the_linear_form.position.tolist() == truth["position"].tolist()


def test_reference_is_the_published_product(rng):
    """RAP section 3.2: psi_j is the product of sigma A_ij over rows i >= j."""
    q, k = attention_input(rng, 3, 3, 64, 32, torch.float64)
    a = reference.attention(q, k)
    direct = np.array([[np.prod(2 * a[h, j:, j]) for j in range(64)] for h in range(3)])
    got = reference.ace(q, k, response_start=0, heads="each", normalise=False, min_rows=1)
    np.testing.assert_allclose(np.exp(got["log_psi_columns"]), direct, rtol=1e-12)


def test_opera_is_a_point_of_this_function(rng):
    """OPERA: head maximum, rows renormalised over all keys, window = the response,
    sigma 50, phi_j = 1e-7 prod (50 W_ij): log phi + 7 ln 10 is our log psi; peers.md 5."""
    q, k = attention_input(rng, 4, 4, 40, 8)
    a = reference.attention(q, k).max(0)
    w = a / a.sum(-1, keepdims=True)
    phi = [np.log(50 * w[max(j, 12) :, j]).sum() for j in range(12, 40)]
    got = rap.ace(
        q,
        k,
        response_start=12,
        heads="max",
        renormalise=True,
        normalise=False,
        min_rows=1,
        sigma=50.0,
    )
    np.testing.assert_allclose(got.log_psi_columns[12:], phi, rtol=1e-5)
    assert float(got.log_psi[0]) == pytest.approx(max(phi), rel=1e-5)


@pytest.mark.parametrize("isa", ISAS, indirect=True)
def test_published_form_and_its_known_defect(isa, rng):
    """As published the last column is a single factor: psi_N = 2 A_NN (METHOD.md 2)."""
    q, k = attention_input(rng, 1, 1, 30, 8, spread=3)
    got = rap.ace(q, k, response_start=0, normalise=False, min_rows=1)
    a = reference.attention(q, k)[0]
    assert np.exp(float(got.log_psi_columns[-1])) == pytest.approx(2 * a[-1, -1], rel=1e-5)
    one = rap.ace(q[:, :1], k[:, :1], response_start=0, normalise=False, min_rows=1)
    assert float(one.log_psi[0]) == pytest.approx(np.log(2.0), abs=1e-6)  # L = 1: A = 1


def test_packed_samples_equal_single_ones(rng):
    lengths, starts = [50, 1, 0, 200, 33], [20, 0, 0, 199, 33]
    q, k = attention_input(rng, 4, 2, sum(lengths), 16)
    cu = np.concatenate([[0], np.cumsum(lengths)])
    image = rng.random(sum(lengths)) < 0.4
    for heads in ("mean", "max", "each"):
        packed = rap.ace(
            q,
            k,
            response_start=starts,
            cu_seqlens=cu,
            heads=heads,
            image_mask=image,
            min_rows=1,
        )
        for s, (a, b) in enumerate(itertools.pairwise(cu)):
            alone = rap.ace(
                q[:, a:b], k[:, a:b], response_start=starts[s], heads=heads,
                image_mask=image[a:b], min_rows=1,
            )  # fmt: skip
            for name in FIELDS[:4]:
                np.testing.assert_array_equal(
                    getattr(packed, name)[s], getattr(alone, name)[0]
                )
            np.testing.assert_array_equal(
                packed.log_psi_columns[..., a:b], alone.log_psi_columns
            )


@pytest.mark.parametrize("heads", ["mean", "max", "each"])
def test_packed_samples_with_masks_and_log_sum_exps(heads, rng):
    """Every per-token input is read at the sample's own place."""
    lengths, starts = [40, 70, 25], [10, 30, 5]
    cu = np.concatenate([[0], np.cumsum(lengths)])
    q, k = attention_input(rng, 4, 2, cu[-1], 16)
    mask, image = rng.random(cu[-1]) < 0.6, rng.random(cu[-1]) < 0.4
    lse = torch.zeros(4, int(cu[-1]), dtype=torch.float64)
    for a, b in itertools.pairwise(cu):
        scores = 0.25 * (
            q[:, a:b].double() @ k[:, a:b].double().repeat_interleave(2, 0).transpose(1, 2)
        )
        hidden = torch.ones(b - a, b - a, dtype=torch.bool).triu(1)
        lse[:, a:b] = scores.masked_fill(hidden, float("-inf")).logsumexp(-1)
    options = dict(
        response_start=starts,
        cu_seqlens=cu,
        heads=heads,
        columns="all",
        column_mask=mask,
        min_rows=2,
    )
    truth = reference.ace(q, k, image_mask=image, **options)
    for given in (None, lse):
        for stats in (True, False):
            got = rap.ace(q, k, lse=given, stats=stats, image_mask=image, **options)
            assert difference(got.log_psi_columns, truth["log_psi_columns"]) < 1e-5
            np.testing.assert_array_equal(got.position, truth["position"])
            if stats:
                assert difference(got.image_mass, truth["image_mass"]) < 1e-6


@pytest.mark.parametrize("isa", ISAS, indirect=True)
@pytest.mark.parametrize("heads", ["mean", "max", "each"])
def test_large_scores(isa, heads, rng):
    """Scores of several hundred overflow an exponential that is not shifted by its row's
    maximum; a log-sum-exp of that size does not fit in a float32 to the last digit."""
    q, k = attention_input(rng, 2, 2, 60, 8, spread=60)
    options = dict(response_start=10, heads=heads, scale=1.0)
    truth = reference.ace(q, k, **options)
    scores = q.double() @ k.double().transpose(1, 2)
    assert scores.abs().max() > 400
    hidden = torch.ones(60, 60, dtype=torch.bool).triu(1)
    lse = scores.masked_fill(hidden, float("-inf")).logsumexp(-1)
    for given in (None, lse):
        got = rap.ace(q, k, lse=given, **options)
        # one rounding of a score of 600 is 3e-5
        assert difference(got.log_psi_columns, truth["log_psi_columns"]) < 2e-4
        assert difference(got.attention_entropy, truth["attention_entropy"]) < 2e-4


@pytest.mark.parametrize("heads", ["mean", "max"])
def test_a_given_log_sum_exp_that_no_float32_holds(heads):
    """Even attention, scores of 80,000: float32 rounds their log-sum-exp by up to 0.004."""
    q = np.full((1, 60, 8), 100.0, np.float32)
    lse = 80_000 + np.log(np.arange(1, 61))[None]
    options = dict(response_start=10, heads=heads, scale=1.0)
    got, truth = rap.ace(q, q, lse=lse, **options), reference.ace(q, q, **options)
    for name in ("log_psi_columns", "attention_entropy"):
        assert difference(getattr(got, name), truth[name]) < 2e-5


def test_any_window_that_c_can_hold(rng):
    q, k = attention_input(rng, 2, 1, 40, 8)
    lse = torch.zeros(2, 40, dtype=torch.float64)
    for heads, stats in itertools.product(("mean", "each"), (True, False)):
        options = dict(response_start=5, heads=heads, stats=stats, columns="all", lse=lse)
        want = rap.ace(q, k, **options)
        for huge in (2**63 - 1, 2**63 - 6, 2**62):
            for name in ("window", "key_window"):
                got = rap.ace(q, k, **options, **{name: huge})
                assert difference(got.log_psi_columns, want.log_psi_columns) < 1e-6


def test_fault_23_short_and_empty_responses(rng):
    q, k = attention_input(rng, 2, 1, 12, 8)
    short = rap.ace(q, k, response_start=5)  # 7 rows < min_rows = 8
    assert short.log_psi[0].isneginf() and short.position[0] == -1
    assert short.attention_entropy[0].isfinite()
    empty = rap.ace(q, k, response_start=12)
    assert empty.log_psi[0].isneginf() and empty.attention_entropy[0].isnan()


def test_fault_24_long_sinks_and_vanishing_columns_stay_finite(rng):
    """A pure sink is 2^R, infinite in float32 at R = 128; a column nobody looks at has
    weights below the smallest float32."""
    length = 3000
    q = np.ones((1, length, 1), np.float32)
    k = np.full((1, length, 1), -200.0, np.float32)
    k[0, 0] = 0.0  # every row puts all its mass on column 0
    got = rap.ace(
        q, k, response_start=0, columns="all", normalise=False, min_rows=1, scale=1.0
    )
    assert float(got.log_psi[0]) == pytest.approx(length * np.log(2), rel=1e-6)
    assert got.position[0] == 0
    columns = np.asarray(got.log_psi_columns)
    assert np.isfinite(columns).all()
    floor = np.log(2.0) + np.log(reference.ACE_FLOOR)
    assert columns[1] == pytest.approx((length - 1) * floor, rel=1e-5)


@pytest.mark.parametrize("isa", ISAS, indirect=True)
@pytest.mark.parametrize("where", ["q", "k"])
def test_fault_21_nan_and_inf_surface(isa, where, rng):
    for heads, bad in itertools.product(("mean", "max", "each"), (np.nan, np.inf)):
        q, k = attention_input(rng, 2, 1, 40, 8)
        (q if where == "q" else k)[0, 30, 0] = bad
        got = rap.ace(q, k, response_start=10, heads=heads, min_rows=2)
        assert got.log_psi.isnan().any()
        assert (got.position[got.log_psi.isnan()] == -1).all()


def test_fault_22_padding_never_enters(rng):
    """Rows are cut before the kernel: what lies around a sample changes nothing."""
    q, k = attention_input(rng, 2, 1, 60, 8)
    alone = rap.ace(q[:, 20:50], k[:, 20:50], response_start=10)
    q2, k2 = q.clone(), k.clone()
    q2[:, :20], k2[:, 50:] = 1e30, float("nan")
    again = rap.ace(q2[:, 20:50], k2[:, 20:50], response_start=10)
    np.testing.assert_array_equal(alone.log_psi_columns, again.log_psi_columns)


def test_same_bits_for_any_number_of_threads(rng):
    q, k = attention_input(rng, 4, 2, 600, 32)
    for heads in ("mean", "max", "each"):
        one = rap.ace(q, k, response_start=3, heads=heads, columns="all", threads=1)
        for threads in (2, 7):
            many = rap.ace(
                q, k, response_start=3, heads=heads, columns="all", threads=threads
            )
            for name in FIELDS:
                assert (
                    np.asarray(getattr(one, name)).tobytes()
                    == np.asarray(getattr(many, name)).tobytes()
                )


def test_long_input_fits_in_200_mb():
    """L = 16,384 with 16 heads: peak memory above the inputs, read from the kernel."""
    code = """
import resource, numpy as np, rap
q = np.zeros((16, 16384, 128), np.float32); k = np.zeros_like(q)
q += 0.01; k += 0.01
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rap.ace(q, k, response_start=16384 - 400, threads=2)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert float(out.stdout) < 200, f"{out.stdout} MiB above the inputs"


def test_fault_32_one_long_block_of_rows_is_left_between_two_heads():
    """One task: a response of one block of rows. Counted in processor time."""
    code = """
import signal, time, numpy as np, rap
def stop(number, frame):
    raise KeyboardInterrupt
signal.signal(signal.SIGPROF, stop)
k = np.zeros((1, 40_000, 64), np.float32)
q = np.broadcast_to(k, (6_000, 40_000, 64))
signal.setitimer(signal.ITIMER_PROF, 0.4)
start = time.process_time()
try:
    rap.ace(q, k, response_start=39_999, min_rows=1, threads=1)
    print("finished")
except KeyboardInterrupt:
    print(time.process_time() - start)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() != "finished", "the call was too short to be interrupted"
    assert float(done.stdout) < 1.2


def test_a_response_lies_inside_its_own_sample(rng):
    """Not only inside the packed sequence; refused by the check, before any work."""
    q, k = attention_input(rng, 2, 1, 30, 8)
    for start in ([11, 0], [2, 21], [0, -1], [30, 0]):
        with pytest.raises(rap.RapInputError, match="response_start = .* of sample"):
            rap.ace(q, k, cu_seqlens=[0, 10, 30], response_start=start)
    ends = rap.ace(q, k, cu_seqlens=[0, 10, 30], response_start=[10, 20])
    assert ends.log_psi.isneginf().all()


def test_offsets_and_heads_that_do_not_fit(rng):
    q, k = attention_input(rng, 4, 2, 20, 8)
    for cu in ([1, 10, 20], [-1, 10, 20], [0, 10, 21]):
        with pytest.raises(rap.RapInputError, match="cu_seqlens"):
            rap.ace(q, k, cu_seqlens=cu, response_start=[0, 0])
    far = [0, 2**63 - 1, -2, 20]  # the difference of two of them is no int64
    with pytest.raises(rap.RapInputError, match="is below the one before it"):
        rap.ace(q, k, cu_seqlens=far, response_start=[0, 0, 0])
    for a, b in ((q[:, :19], k), (q, k[:, :19]), (q[..., :7], k), (q, k[..., :7])):
        with pytest.raises(rap.RapInputError, match="must agree in L and D"):
            rap.ace(a, b, response_start=0)
    for hq, hkv in ((3, 2), (1, 2), (4, 3)):
        with pytest.raises(rap.RapInputError, match="cannot share"):
            rap.ace(q[:hq], q[:hkv], response_start=0)


@pytest.mark.parametrize("heads", ["mean", "max", "each"])
def test_equal_columns_and_nan(heads):
    """Of equal columns the first is the position; NaN wins over every number."""
    q = np.zeros((1, 40, 8), np.float32)
    options = dict(response_start=25, heads=heads, columns="prompt")
    got = rap.ace(q, q, **options)
    assert len(np.unique(got.log_psi_columns[..., :25])) == 1
    assert got.position.reshape(-1).tolist() == [0]
    q[0, 39] = np.inf
    got = rap.ace(q, q, **options)
    assert np.isnan(got.log_psi).all() and got.position.reshape(-1).tolist() == [-1]


@pytest.mark.parametrize("top", [1, 3, 64])
@pytest.mark.parametrize("order", [1, -1, 0])
def test_the_largest_weights_of_long_rows(top, order, rng):
    """Rising weights, where each block of 64 holds larger ones, falling ones, and any."""
    scores = rng.permutation(300) if order == 0 else np.arange(300)[:: order or 1]
    k = (scores / 60).astype(np.float32)[None, :, None]
    q = np.ones((1, 300, 1), np.float32)
    options = dict(response_start=280, top=top, scale=1.0)
    got, truth = rap.ace(q, k, **options), reference.ace(q, k, **options)
    assert difference(got.attention_top, truth["attention_top"]) < 1e-6


def test_wrong_shapes_and_settings(rng):
    q, k = attention_input(rng, 4, 2, 20, 8)
    for bad in (
        dict(q=q[0]),
        dict(k=k[:, :19]),
        dict(k=k.repeat(2, 1, 1)[:3]),
        dict(response_start=21),
        dict(response_start=-1),
        dict(response_start=[1, 2]),
        dict(cu_seqlens=[0, 19]),
        dict(cu_seqlens=[0, 15, 10, 20], response_start=[0, 0, 0]),
        dict(column_mask=np.ones(19, bool)),
        dict(image_mask=np.ones(20)),
        dict(sigma=0.0),
        dict(top=65),
        dict(scale=float("nan")),
        dict(scale=-0.1),
        dict(lse=np.zeros((4, 19))),
    ):
        arguments = {"q": q, "k": k, "response_start": 4, **bad}
        with pytest.raises(rap.RapInputError):
            rap.ace(**arguments)
    for bad in (
        dict(heads="median"),
        dict(columns="image"),
        dict(window=0),
        dict(window=2.5),
        dict(window=True),
        dict(window=2**70),
        dict(key_window=0),
        dict(min_rows=0),
        dict(top=0),
        dict(threads=0),
    ):
        with pytest.raises(rap.RapConfigError):
            rap.ace(q, k, response_start=4, **bad)
