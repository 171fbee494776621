"""What must hold for ace on tensor cores: each check raises where it does not."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch

from rap import reference

from .ace_tensor import ODD, WIDE, Layout, ace
from .build import Mutation
from .checks_ace import FIELDS, attention_input, compare, difference, log_sum_exps

BOUND = 4e-6
"""As for the kernels of ace_cuda.cu: some roundings of a logarithm of up to 16."""


def half_input(
    hq: int, hkv: int, length: int, dim: int, dtype: Any = torch.bfloat16, **more: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and keys that are exact in 16 bits, so that float64 sees the same."""
    q, k = attention_input(hq, hkv, length, dim, **more)
    return q.to(dtype), k.to(dtype)


def _true(q: torch.Tensor, k: torch.Tensor, **options: Any) -> dict:
    return reference.ace(q.double(), k.double(), **options)


def values(mutation: Mutation | None = None) -> None:
    """Mean and maximum, both dtypes, grouped heads, two tiles of rows and of columns that
    end inside, masks, both kinds of columns."""
    rng = np.random.default_rng(3)
    masks = dict(column_mask=rng.random(150) < 0.8, image_mask=rng.random(150) < 0.3)
    for heads, dtype, dim in (("mean", torch.bfloat16, 24), ("max", torch.float16, 16)):
        q, k = half_input(4, 2, 150, dim, dtype)
        options = dict(
            response_start=60, heads=heads, columns="all", min_rows=2, top=5, **masks
        )
        got = ace(q, k, **options, run=dict(mutation=mutation))
        compare(got, _true(q, k, **options), BOUND, heads)


def windows(mutation: Mutation | None = None) -> None:
    """Windows of rows and of keys, renormalised: tiles that begin at any key."""
    q, k = half_input(2, 1, 170, 8)
    image = np.random.default_rng(1).random(170) < 0.4
    for window, key_window, heads in (
        (5, None, "max"),
        (None, 33, "mean"),
        (90, 70, "max"),
    ):
        options = dict(
            response_start=10, heads=heads, columns="all", min_rows=1, window=window,
            key_window=key_window, renormalise=True, image_mask=image,
        )  # fmt: skip
        got = ace(q, k, **options, run=dict(mutation=mutation))
        compare(got, _true(q, k, **options), BOUND, options)


def deep(mutation: Mutation | None = None) -> None:
    """More dimensions than a step, than two (the keys do not stay), and ends of each; rows
    that are 16-byte aligned and that are not."""
    for dim, layout, keys in (
        (72, WIDE, WIDE), (100, ODD, Layout(pad=4)), (130, ODD, WIDE), (200, WIDE, ODD),
    ):  # fmt: skip
        q, k = half_input(3, 1, 70, dim)
        options = dict(response_start=8, heads="mean", columns="all")
        got = ace(
            q, k, **options, layout=layout, key_layout=keys, run=dict(mutation=mutation)
        )
        compare(got, _true(q, k, **options), BOUND, dim)


def large_scores(mutation: Mutation | None = None) -> None:
    """Scores of several hundred, with and without given log-sum-exps."""
    q, k = half_input(2, 2, 60, 8, spread=60)
    lse = log_sum_exps(q, k, 1.0)
    for heads, given in itertools.product(("mean", "max"), (None, lse)):
        options = dict(response_start=10, heads=heads, scale=1.0)
        got = ace(q, k, lse=given, **options, run=dict(mutation=mutation))
        truth = _true(q, k, **options)
        # one rounding of a score of 600 is 3e-5
        assert difference(got["log_psi_columns"], truth["log_psi_columns"]) < 2e-4
        assert difference(got["attention_entropy"], truth["attention_entropy"]) < 2e-4


def shares(mutation: Mutation | None = None) -> None:
    """However the columns are shared out: one share of all tiles, with a maximum that rises
    from tile to tile, and more shares than the first rows have tiles."""
    q, k = half_input(2, 1, 330, 16)
    k[:, 128:] *= 3
    k[:, 256:] *= 2
    options = dict(response_start=40, heads="max", columns="all", top=20)
    truth = _true(q, k, **options)
    for blocks in (1, 1000):
        got = ace(q, k, **options, blocks=blocks, run=dict(mutation=mutation))
        compare(got, truth, 2e-5, blocks)  # scores of up to 60: a rounding is 2e-6


def packed(mutation: Mutation | None = None) -> None:
    """Samples of several lengths, one empty, one without a response: each on its own."""
    lengths, starts = [20, 1, 0, 80, 13], [8, 0, 0, 60, 13]
    cu = np.concatenate([[0], np.cumsum(lengths)])
    q, k = half_input(2, 1, int(cu[-1]), 16)
    image = np.random.default_rng(9).random(cu[-1]) < 0.4
    options = dict(response_start=starts, cu_seqlens=cu, image_mask=image, min_rows=1)
    got = ace(q, k, **options, run=dict(mutation=mutation))
    compare(got, _true(q, k, **options), BOUND)


def given(mutation: Mutation | None = None) -> None:
    """Given log-sum-exps, with statistics and without: then only the columns that count
    are multiplied."""
    cu, starts = [0, 30, 180], [10, 100]
    q, k = half_input(2, 1, 180, 16)
    parts = [log_sum_exps(q[:, a:b], k[:, a:b], 0.25) for a, b in itertools.pairwise(cu)]
    lse = torch.cat(parts, 1)
    for columns, window, stats, rows in (
        ("all", None, True, lse), ("response", 7, False, lse.float()),
        ("prompt", None, False, lse),
    ):  # fmt: skip
        options = dict(
            response_start=starts, cu_seqlens=cu, columns=columns, window=window,
            min_rows=2, scale=0.25,
        )  # fmt: skip
        got = ace(q, k, lse=rows, stats=stats, **options, run=dict(mutation=mutation))
        truth = _true(q, k, **options)
        off = difference(got["log_psi_columns"], truth["log_psi_columns"])
        assert off < (BOUND if rows is lse else 2e-5), (columns, off)
        np.testing.assert_array_equal(got["position"], truth["position"])


def bounds(mutation: Mutation | None = None) -> None:
    """AddressSanitizer and UBSan watch every array: rows that end where the memory does,
    16-byte aligned and not."""
    q, k = half_input(2, 1, 77, 12)
    mask = np.random.default_rng(1).random(77) < 0.5
    for layout, key_window in ((Layout(pad=4), 40), (ODD, None)):
        options = dict(
            response_start=5, columns="all", key_window=key_window, column_mask=mask,
            image_mask=mask, heads="max", renormalise=True,
        )  # fmt: skip
        run = dict(variant="asan", mutation=mutation)
        got = ace(q, k, **options, layout=layout, grid=2, run=run)
        compare(got, _true(q, k, **options), BOUND, layout)


def schedules(mutation: Mutation | None = None, count: int = 6) -> None:
    """Any order of threads and blocks, and any number of blocks: the same bits."""
    q, k = half_input(2, 1, 150, 16)
    mask = np.random.default_rng(1).random(150) < 0.5
    options = dict(response_start=70, heads="max", renormalise=True, image_mask=mask)
    first = None
    for seed in range(count):
        got = ace(q, k, **options, grid=1 + seed, run=dict(seed=seed, mutation=mutation))
        first = first or got
        for name in FIELDS:
            assert got[name].tobytes() == first[name].tobytes(), (name, seed)
            assert np.isfinite(first[name]).any()


def races(mutation: Mutation | None = None) -> None:
    """ThreadSanitizer, within blocks and between them; two tiles to a share."""
    q, k = half_input(2, 1, 140, 16)
    ace(
        q, k, response_start=110, blocks=1, grid=2,
        run=dict(variant="tsan", mutation=mutation, timeout=1200),
    )  # fmt: skip
