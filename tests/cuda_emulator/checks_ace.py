"""What must hold for the ace kernels: each check raises where it does not."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch

from rap import reference

from .ace import ace
from .build import Mutation

FIELDS = ("log_psi", "attention_entropy", "attention_top", "image_mass", "log_psi_columns")


def attention_input(
    hq: int, hkv: int, length: int, dim: int, seed: int = 7, spread: float = 1.5
) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    q = torch.from_numpy(rng.normal(size=(hq, length, dim)) * spread).float()
    return q, torch.from_numpy(rng.normal(size=(hkv, length, dim))).float()


def difference(got: Any, want: Any) -> float:
    a, b = np.asarray(got, float), np.asarray(want, float)
    assert a.shape == b.shape
    assert (np.isneginf(a) == np.isneginf(b)).all() and (np.isnan(a) == np.isnan(b)).all()
    known = np.isfinite(b)
    return float(np.abs(a[known] - b[known]).max(initial=0.0))


def compare(got: dict, truth: dict, bound: float, label: Any = None) -> None:
    for name in FIELDS:
        off = difference(got[name], truth[name])
        assert off < bound, (name, off, label)
    np.testing.assert_array_equal(got["position"], truth["position"])


def log_sum_exps(q: torch.Tensor, k: torch.Tensor, scale: float) -> torch.Tensor:
    keys = k.double().repeat_interleave(len(q) // len(k), 0)
    scores = scale * (q.double() @ keys.transpose(1, 2))
    hidden = torch.ones(q.shape[1], q.shape[1], dtype=torch.bool).triu(1)
    return scores.masked_fill(hidden, float("-inf")).logsumexp(-1)


def values(mutation: Mutation | None = None) -> None:
    """Each way of taking heads together, several blocks of rows, masks, both columns."""
    q, k = attention_input(6, 2, 75, 16)
    rng = np.random.default_rng(3)
    masks = dict(column_mask=rng.random(75) < 0.8, image_mask=rng.random(75) < 0.3)
    for heads in ("mean", "max", "each"):
        options = dict(
            response_start=20, heads=heads, columns="all", min_rows=2, top=5, **masks
        )
        got = ace(q, k, **options, block=256, grid=2, mutation=mutation)
        compare(got, reference.ace(q, k, **options), 4e-6, heads)


def windows(mutation: Mutation | None = None) -> None:
    """Windows of rows and of keys, alone and together, renormalised."""
    q, k = attention_input(4, 2, 60, 8)
    image = np.random.default_rng(1).random(60) < 0.4
    for window, key_window, heads in itertools.product((None, 5), (3, 33), ("max", "mean")):
        options = dict(
            response_start=10, heads=heads, columns="all", min_rows=1, window=window,
            key_window=key_window, renormalise=True, image_mask=image,
        )  # fmt: skip
        got = ace(q, k, **options, mutation=mutation)
        compare(got, reference.ace(q, k, **options), 4e-6, options)


def large_scores(mutation: Mutation | None = None) -> None:
    """Scores of several hundred, with and without given log-sum-exps."""
    q, k = attention_input(2, 2, 60, 8, spread=60)
    lse = log_sum_exps(q, k, 1.0)
    for heads, given in itertools.product(("mean", "max", "each"), (None, lse)):
        options = dict(response_start=10, heads=heads, scale=1.0)
        got = ace(q, k, lse=given, **options, mutation=mutation)
        truth = reference.ace(q, k, **options)
        # one rounding of a score of 600 is 3e-5
        assert difference(got["log_psi_columns"], truth["log_psi_columns"]) < 2e-4
        assert difference(got["attention_entropy"], truth["attention_entropy"]) < 2e-4


def sums_of_logarithms(mutation: Mutation | None = None) -> None:
    """As published: sums over rows, not means; they grow, and must not drift."""
    q, k = attention_input(2, 1, 300, 4)
    options = dict(response_start=0, heads="each", normalise=False, min_rows=1)
    got = ace(q, k, **options, block_rows=128, mutation=mutation)
    truth = reference.ace(q, k, **options)
    off = difference(got["log_psi_columns"], truth["log_psi_columns"])
    assert off < 1e-4, off


def packed(mutation: Mutation | None = None) -> None:
    """Samples of several lengths, one empty, one without a response: each on its own."""
    lengths, starts = [20, 1, 0, 41, 13], [8, 0, 0, 40, 13]
    cu = np.concatenate([[0], np.cumsum(lengths)])
    q, k = attention_input(4, 2, int(cu[-1]), 16)
    image = np.random.default_rng(9).random(cu[-1]) < 0.4
    for heads in ("mean", "each"):
        options = dict(
            response_start=starts, cu_seqlens=cu, heads=heads, image_mask=image, min_rows=1
        )
        got = ace(q, k, **options, mutation=mutation)
        compare(got, reference.ace(q, k, **options), 4e-6, heads)


def bounds(mutation: Mutation | None = None) -> None:
    """AddressSanitizer and UBSan watch every array."""
    q, k = attention_input(2, 1, 37, 4)
    mask = np.random.default_rng(1).random(37) < 0.5
    for heads in ("mean", "each"):
        options = dict(
            response_start=5, heads=heads, columns="all", key_window=11, column_mask=mask,
            image_mask=mask,
        )  # fmt: skip
        got = ace(
            q, k, **options, variant="asan", block=64, grid=2, block_rows=16,
            mutation=mutation,
        )  # fmt: skip
        compare(got, reference.ace(q, k, **options), 4e-6, heads)


def schedules(mutation: Mutation | None = None, count: int = 20) -> None:
    """Any order of threads and blocks: the same bits."""
    q, k = attention_input(2, 1, 40, 4)
    mask = np.random.default_rng(1).random(40) < 0.5
    want = None
    for seed in range(count):
        got = ace(
            q, k, response_start=20, heads="max", renormalise=True, image_mask=mask,
            block=64, seed=seed, mutation=mutation,
        )  # fmt: skip
        want = want or got
        for name, value in want.items():
            assert got[name].tobytes() == value.tobytes(), name
        assert np.isfinite(got["attention_top"]).all()


def races(mutation: Mutation | None = None) -> None:
    """ThreadSanitizer, within blocks and between them."""
    q, k = attention_input(2, 1, 24, 4)
    mask = np.random.default_rng(1).random(24) < 0.5
    ace(
        q, k, response_start=14, heads="max", renormalise=True, image_mask=mask, block=64,
        grid=2, variant="tsan", mutation=mutation,
    )  # fmt: skip
