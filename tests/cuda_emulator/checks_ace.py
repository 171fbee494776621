"""What must hold for the ace kernels: each check raises where it does not."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
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


def linear_form(mutation: Mutation | None = None) -> None:
    """Given log-sum-exps and single heads: sums of 48 bits, whatever the windows, tiles
    of 32 rows that begin and end anywhere, two packed samples."""
    cu, starts = [0, 75, 175], [10, 31]
    q, k = attention_input(4, 2, 175, 20)
    lse = torch.cat(
        [log_sum_exps(q[:, a:b], k[:, a:b], 0.25) for a, b in itertools.pairwise(cu)], 1
    )
    for window, columns, given, wide in (
        (None, "all", lse, True),
        (7, "all", lse, False),
        (40, "all", lse, True),
        (32, "response", lse, False),
        (64, "prompt", lse, True),
        (None, "response", lse.float(), True),
    ):
        options = dict(
            response_start=starts, cu_seqlens=cu, heads="each", window=window,
            columns=columns, min_rows=1, scale=0.25, normalise=False,
        )  # fmt: skip
        got = ace(q, k, lse=given, stats=False, wide=wide, **options, mutation=mutation)
        truth = reference.ace(q.double(), k.double(), **options)
        # 48 bits of sums of up to 900; float32 log-sum-exps round at 1e-6, 90 rows
        bound = 1e-11 if given is lse else 1e-4
        off = difference(got["log_psi_columns"], truth["log_psi_columns"])
        assert off < bound, (window, columns, off)
        np.testing.assert_array_equal(got["position"], truth["position"])


def bounds(mutation: Mutation | None = None) -> None:
    """AddressSanitizer and UBSan watch every array."""
    q, k = attention_input(2, 1, 37, 4)
    mask = np.random.default_rng(1).random(37) < 0.5
    run = dict(variant="asan", block=64, grid=2, block_rows=16, mutation=mutation)
    for heads in ("mean", "each"):
        options = dict(
            response_start=5, heads=heads, columns="all", key_window=11, column_mask=mask,
            image_mask=mask,
        )  # fmt: skip
        got = ace(q, k, **options, **run)
        compare(got, reference.ace(q, k, **options), 4e-6, heads)


def linear_bounds(mutation: Mutation | None = None) -> None:
    """The same of the linear form: rows that are and are not whole 128-bit loads."""
    q, k = attention_input(2, 1, 79, 12)
    options = dict(
        response_start=5, heads="each", columns="all", window=35, min_rows=1, scale=0.25
    )
    truth = reference.ace(q, k, **options)["log_psi_columns"]
    given = dict(lse=log_sum_exps(q, k, 0.25), stats=False)
    for wide in (True, False):
        got = ace(q, k, **options, **given, wide=wide, variant="asan", block=64, grid=2,
                  mutation=mutation)  # fmt: skip
        assert difference(got["log_psi_columns"], truth) < 1e-11


def _same_bits(results: Iterable[dict[str, np.ndarray]], names: Sequence[str]) -> None:
    first, *others = results
    for got in others:
        for name in names:
            assert got[name].tobytes() == first[name].tobytes(), name
    assert all(np.isfinite(first[name]).any() for name in names)


def schedules(mutation: Mutation | None = None, count: int = 20) -> None:
    """Any order of threads and blocks: the same bits."""
    q, k = attention_input(2, 1, 40, 4)
    mask = np.random.default_rng(1).random(40) < 0.5
    run = dict(response_start=20, block=64, mutation=mutation)
    _same_bits(
        (
            ace(q, k, heads="max", renormalise=True, image_mask=mask, seed=seed, **run)
            for seed in range(count)
        ),
        FIELDS,
    )
    given = dict(lse=log_sum_exps(q, k, 0.5), heads="each", stats=False)
    _same_bits(
        (ace(q, k, **given, seed=seed, **run) for seed in range(count)),
        ("log_psi", "log_psi_columns"),
    )


def races(mutation: Mutation | None = None) -> None:
    """ThreadSanitizer, within blocks and between them."""
    q, k = attention_input(2, 1, 24, 4)
    mask = np.random.default_rng(1).random(24) < 0.5
    run = dict(block=64, grid=2, variant="tsan", mutation=mutation)
    ace(q, k, response_start=14, heads="max", renormalise=True, image_mask=mask, **run)


def linear_races(mutation: Mutation | None = None) -> None:
    q, k = attention_input(2, 1, 70, 4)
    lse = log_sum_exps(q, k, 0.5)
    ace(
        q, k, response_start=2, heads="each", lse=lse, stats=False, block=64, grid=2,
        variant="tsan", mutation=mutation,
    )  # fmt: skip
