"""What the kernels read by strides: the same bits as from a copy without gaps.

Python passes on rows that are contiguous as they lie, wherever heads and rows begin; for
vectors the kernels take any stride, which only a caller of ``rap._C`` uses today.
"""

from __future__ import annotations

import numpy as np
import pytest

import rap
from rap import _C

HEADS = {"mean": 0, "max": 1, "each": 2}
THREADS = 2


def spread(x: np.ndarray, step: int = 3) -> np.ndarray:
    """The same numbers, ``step`` apart, with others between them."""
    other = ~x if x.dtype == bool else x + 1
    room = np.repeat(other, step, axis=-1)
    room[..., ::step] = x
    return room[..., ::step]


def inside(x: np.ndarray) -> np.ndarray:
    """The same numbers as a part of a larger array: rows and heads lie further apart."""
    room = np.full((x.shape[0] + 1, *(n + 5 for n in x.shape[1:])), 7, x.dtype)
    part = room[(slice(1, None), *(slice(2, 2 + n) for n in x.shape[1:]))]
    part[...] = x
    return part


def attention(rng, dtype=np.float32):
    q = rng.normal(size=(4, 90, 16)).astype(dtype)
    k = rng.normal(size=(2, 90, 16)).astype(dtype)
    return q, k


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("heads", HEADS)
def test_queries_keys_and_log_sum_exps_with_gaps(heads, dtype, rng):
    q, k = attention(rng, dtype)
    lse = rng.normal(size=(4, 90)) + 5
    by_row = (np.ascontiguousarray(x.swapaxes(0, 1)).swapaxes(0, 1) for x in (q, k))
    for far_q, far_k in ((inside(q), inside(k)), tuple(by_row)):
        assert far_q.strides[1] != q.strides[1] and far_k.strides[1] != k.strides[1]
        for given, stats in ((None, True), (lse, True), (lse, False)):
            options = dict(response_start=31, heads=heads, columns="all", stats=stats)
            want = rap.ace(q, k, lse=given, **options)
            far = None if given is None else inside(given)
            got = rap.ace(far_q, far_k, lse=far, **options)
            for a, b in zip(got, want, strict=True):
                assert a.tobytes() == b.tobytes()


def direct_ace(q, k, cu, start, column_mask, image_mask, lse=None, heads="mean"):
    """(summary, position, psi) of the compiled kernel itself."""
    fields = q.shape[0] if heads == "each" else 1
    samples = len(start)
    out = (
        np.empty((4, samples, fields)),
        np.empty((samples, fields), np.int64),
        np.empty((fields, q.shape[1])),
    )
    options = (0.25, 2.0, 2, 0, 0, HEADS[heads], 3, 8, False, True, True)
    _C.ace(q, k, cu, start, column_mask, image_mask, lse, *out, options, THREADS)
    return out


@pytest.mark.parametrize("heads", HEADS)
def test_offsets_masks_and_log_sum_exps_of_any_stride(heads, rng):
    q, k = attention(rng)
    cu, start = np.array([0, 40, 90]), np.array([10, 20])
    masks = rng.random(90) < 0.6, rng.random(90) < 0.4
    for lse in (None, rng.normal(size=(4, 90)) + 5):
        want = direct_ace(q, k, cu, start, *masks, lse, heads)
        far = [spread(x) for x in (cu, start, *masks)]
        far_lse = None if lse is None else np.asfortranarray(spread(lse))
        got = direct_ace(q, k, *far, far_lse, heads)
        for a, b in zip(got, want, strict=True):
            assert a.tobytes() == b.tobytes()


def test_targets_and_biases_of_any_stride(rng):
    rows, vocab = 7, 300
    l1, l0 = (rng.normal(size=(rows, vocab)).astype(np.float32) for _ in range(2))
    targets = rng.integers(0, vocab, rows)
    h1, h0 = (rng.normal(size=(rows, 24)).astype(np.float32) for _ in range(2))
    w, bias = rng.normal(size=(vocab, 24)).astype(np.float32), rng.normal(size=vocab)
    every = (1 << len(rap.CdeResult._fields)) - 1

    def cde(l1, l0, targets):
        out = np.empty((_C.CDE_OUTPUTS, rows))
        _C.cde(l1, l0, targets, out, every, THREADS)
        return out.tobytes()

    def linear(h1, h0, w, bias, targets):
        out = np.empty((_C.CDE_OUTPUTS, rows))
        _C.linear_cde(h1, h0, w, bias, targets, out, 1.0, 0.0, 1 << 20, every, THREADS)
        return out.tobytes()

    assert cde(inside(l1), inside(l0), spread(targets)) == cde(l1, l0, targets)
    for dtype in (np.float32, np.float16):
        near = (h1.astype(dtype), h0.astype(dtype), w.astype(dtype), bias.astype(dtype))
        far = (*map(inside, near[:3]), spread(near[3]))
        assert linear(*far, spread(targets)) == linear(*near, targets)


def test_masks_of_drm_must_be_dense(rng):
    """drm reads its scores in whole lines: what has gaps is refused."""
    d, out = rng.random(20), np.empty(9, np.int64)
    mask = rng.random(20) < 0.5
    for bad in ((spread(d), d, mask), (d, spread(d), mask), (d, d, spread(mask))):
        with pytest.raises(rap.RapInputError, match="contiguous"):
            _C.drm(*bad, out, THREADS)
