"""Every kernel with every option against ``rap.reference``, on drawn shapes and values.

The bounds are derived. cde: four times the error of the plain computation in float32, as
in ``test_cde.py``, or what the longest sum of a lane can lose, where few rows flatter the
plain one. ace: the error of a sum of D products in float32, through the logarithm, and what
float32 counts as 0. drm: none, it is exact.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from fuzzing import fuzz, seconds
from hypothesis import strategies as st
from test_cde import naive

import rap
from rap import _C, ops, reference

TESTS = 4  # in this file and the other share the time with those of test_fuzz_inputs
ISAS = _C.isa_names()
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
UNIT = 2.0**-24
LN_V = 8.0  # of the largest vocabulary that is drawn
RUN = 64 + 8  # terms that a lane of the CPU adds in sequence, and what rounds one of them
SHARE = seconds(2 * TESTS)


def with_isa(name: str, call: Any, **options: Any) -> Any:
    before = _C.isa(name)
    try:
        return call(**options)
    finally:
        _C.isa(before)


def strided(x: torch.Tensor, layout: str) -> torch.Tensor:
    """The same numbers, laid out otherwise in memory."""
    if layout == "gaps":
        wide = torch.full((*x.shape[:-1], x.shape[-1] + 5), float("nan"), dtype=x.dtype)
        wide[..., : x.shape[-1]] = x
        return wide[..., : x.shape[-1]]
    if layout == "every other":
        wide = torch.full((2 * x.shape[0], *x.shape[1:]), float("nan"), dtype=x.dtype)
        wide[::2] = x
        return wide[::2]
    if layout == "transposed":
        return x.transpose(-1, -2).contiguous().transpose(-1, -2)
    return x


LAYOUTS = st.sampled_from(["dense", "dense", "gaps", "every other", "transposed"])
SIZES = st.one_of(st.integers(1, 40), st.sampled_from([255, 256, 257, 2047, 2048, 2049]))


def offsets(rng: np.random.Generator, total: int) -> np.ndarray:
    """int64 from 0 to ``total``; samples may be empty."""
    cuts = np.sort(rng.integers(0, total + 1, rng.integers(0, 4)))
    return np.array([0, *cuts, total])


# ---------------------------------------------------------------------------- cde


def drawn_logits(rng: np.random.Generator, rows: int, vocab: int, kind: str) -> tuple:
    """Two float64 [rows, vocab]."""
    base = rng.normal(size=(rows, vocab)) * 3
    other = rng.normal(size=(rows, vocab)) * 3
    if kind == "near":
        other = base + 0.05 * rng.normal(size=base.shape)
    elif kind == "equal":
        other = base.copy()
    elif kind == "peaked":
        base[np.arange(rows), rng.integers(0, vocab, rows)] += 25.0
    elif kind == "large":
        base, other = base * 100 + 9000, other * 100 - 9000
    elif kind == "ties":
        base, other = np.round(base), np.round(other)
    elif kind == "masked":  # in both, and never all of a row
        gone = rng.random((rows, vocab)) < 0.4
        gone[:, rng.integers(0, vocab)] = False
        base[gone] = other[gone] = -np.inf
    return base, other


KINDS = st.sampled_from(["apart", "near", "equal", "peaked", "large", "ties", "masked"])


def close(got: Any, truth: Any, plain: Any, largest: float, name: str) -> None:
    """Up to four times the plain error, or that of a lane's sum; see the module's text."""
    truth, got = np.asarray(truth), np.asarray(got)
    assert np.isnan(got).tolist() == np.isnan(truth).tolist(), name
    known = np.isfinite(truth)
    np.testing.assert_array_equal(got[~known], truth[~known], name)
    error = np.abs(got[known] - truth[known]).max(initial=0)
    usual = np.abs(np.asarray(plain)[known] - truth[known])
    usual = usual[np.isfinite(usual)].max(initial=0)
    # the terms of a sum are p |l1 - l0| from the maxima: the answer and some ln V
    terms = min(max(1.0, largest), float(np.abs(truth[known]).max(initial=0)) + 3 * LN_V)
    allowed = max(4 * usual, 4 * UNIT * max(1.0, largest), RUN * UNIT * terms)
    assert error <= allowed, (name, error, usual, allowed)


def compare_cde(got: Any, truth: dict, plain: dict, largest: float, want: Any) -> None:
    for name in ops.CDE_OUTPUTS:
        value = getattr(got, name)
        if value is None or (want is not None and name not in want):
            assert value is None and (want is not None or name.startswith("logp")), name
            continue
        sums = 2 if name == "jeffreys" else 1
        close(value, truth[name], plain[name], sums * largest, name)


def wanted(draw: Any, targeted: bool) -> list[str] | None:
    names = [n for n in ops.CDE_OUTPUTS if targeted or not n.startswith("logp")]
    some = st.lists(st.sampled_from(names), min_size=1, unique=True)
    return draw(st.one_of(st.none(), some))


def test_fault_57_any_cde() -> None:
    def check(data: st.DataObject) -> None:
        draw = data.draw
        rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        rows, vocab, kind = draw(st.integers(0, 9)), draw(SIZES), draw(KINDS)
        types = draw(st.sampled_from(DTYPES)), draw(st.sampled_from(DTYPES))
        l1, l0 = (
            strided(torch.from_numpy(x).to(t), draw(LAYOUTS))
            for x, t in zip(drawn_logits(rng, rows, vocab, kind), types, strict=True)
        )
        targets = rng.integers(0, vocab, rows) if draw(st.booleans()) else None
        want = wanted(draw, targets is not None)
        packed = draw(st.booleans())
        cu = offsets(rng, rows) if packed else None
        weights = rng.integers(0, 3, rows) / 2 if packed and draw(st.booleans()) else None
        options = {"targets": targets, "cu_seqlens": cu, "weights": weights}
        got = with_isa(
            draw(st.sampled_from(ISAS)),
            rap.cde,
            logits1=l1,
            logits0=l0,
            want=want,
            threads=draw(st.sampled_from([None, 1, 3])),
            **options,
        )
        truth = reference.cde(l1.double(), l0.double(), **options)
        plain = plain_cde(l1.float(), l0.float(), targets, weights, cu)
        finite = [x[torch.isfinite(x)].abs() for x in (l1.float(), l0.float())]
        # what is rounded on the way is a difference of the branches
        largest = sum(float(x.max()) for x in finite if x.numel())
        compare_cde(got, truth, plain, largest, want)

    fuzz(check, share=SHARE, data=st.data())


def plain_cde(l1: Any, l0: Any, targets: Any, weights: Any, cu: Any) -> dict:
    """What float32 gives, with 0 * anything = 0."""
    there = torch.zeros(len(l1), dtype=torch.int64)
    if targets is not None:
        there = torch.from_numpy(targets)
    low = torch.where(torch.isneginf(l1) & torch.isneginf(l0), -1e4, 0.0)
    found = naive(
        l1.clamp_min(-1e6) + low if len(l1) else l1,
        l0.clamp_min(-1e6) + low if len(l0) else l0,
        there,
    )
    if cu is None:
        return found
    return {n: reference.sample_means(x, weights, cu) for n, x in found.items()}


def test_fault_57_any_linear_cde() -> None:
    def check(data: st.DataObject) -> None:
        draw = data.draw
        rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        rows, vocab, wide = draw(st.integers(0, 9)), draw(SIZES), draw(SIZES)
        kind = draw(st.sampled_from(DTYPES))

        def made(*shape: int, size: float = 1.0) -> torch.Tensor:
            x = torch.from_numpy(rng.normal(size=shape) * size).to(kind)
            return strided(x, draw(LAYOUTS)) if len(shape) == 2 else x

        h1, h0 = made(rows, wide), made(rows, wide)
        w = made(vocab, wide, size=3 / wide**0.5)
        bias = made(vocab) if draw(st.booleans()) else None
        scale = draw(st.sampled_from([None, 1.0, 0.25, -0.5, 8.0, 0.0]))
        softcap = draw(st.sampled_from([None, 30.0, 2.0]))
        targets = rng.integers(0, vocab, rows) if draw(st.booleans()) else None
        want = wanted(draw, targets is not None)
        cu = offsets(rng, rows) if draw(st.booleans()) else None
        options = {"scale": scale, "softcap": softcap, "targets": targets, "cu_seqlens": cu}
        got = with_isa(
            draw(st.sampled_from(ISAS)),
            rap.linear_cde,
            hidden1=h1,
            hidden0=h0,
            weight=w,
            bias=bias,
            want=want,
            memory=draw(st.sampled_from([None, 0, 10_000])),
            threads=draw(st.sampled_from([None, 1, 3])),
            **options,
        )
        double = None if bias is None else bias.double()
        truth = reference.linear_cde(
            h1.double(), h0.double(), w.double(), bias=double, **options
        )
        l1, l0 = (
            plain_logits(h.float(), w.float(), bias, scale, softcap) for h in (h1, h0)
        )
        plain = plain_cde(l1, l0, targets, None, cu)
        # a sum of E products: its error is that of the largest sum of their sizes
        sizes = [(h.double().abs() @ w.double().abs().T) for h in (h1, h0)]
        most = sum(float(x.max()) for x in sizes if x.numel())
        most = (most + float(0 if bias is None else bias.abs().max())) * abs(
            1.0 if scale is None else scale
        )
        compare_cde(got, truth, plain, most * (1 + wide / 256), want)

    fuzz(check, share=SHARE, data=st.data())


def plain_logits(h: Any, w: Any, bias: Any, scale: Any, softcap: Any) -> torch.Tensor:
    x = h @ w.T
    x = x if bias is None else x + bias.float()
    x = x if scale is None else x * scale
    return x if softcap is None else softcap * torch.tanh(x / softcap)


# ---------------------------------------------------------------------------- ace


def between(got: Any, least: Any, most: Any, allowed: float, name: str) -> None:
    """``least`` <= ``got`` <= ``most`` up to ``allowed``; NaN, -inf in the same places."""
    got, least, most = (np.asarray(x, float) for x in (got, least, most))
    assert got.shape == most.shape, name
    assert (np.isneginf(got) == np.isneginf(most)).all(), name
    assert (np.isnan(got) == np.isnan(most)).all(), name
    known = np.isfinite(most)
    least, got, most = least[known], got[known], most[known]
    error = float(np.maximum(least - got, got - most).max(initial=0.0))
    assert error <= allowed, (name, error, allowed)


def flushed(q: Any, k: Any, options: dict[str, Any]) -> np.ndarray:
    """float64 [L]: what log psi_j of a head mean loses, at most, by the terms below 2^-126
    that float32 counts as 0: less than that of each weight, which is 2^-126 or more then.
    A mean over rows loses no more than its worst row, a sum all of them."""
    lost = np.zeros(q.shape[1])
    if options["heads"] != "mean":
        return lost
    cu, starts = options["cu_seqlens"], np.atleast_1d(options["response_start"])
    ends = [0, q.shape[1]] if cu is None else cu
    least = reference.ACE_FLOOR
    for begin, end, start in zip(ends[:-1], ends[1:], starts, strict=True):
        if begin == end:
            continue
        part = slice(int(begin), int(end))
        q1, k1 = q[:, part].double(), k[:, part].double()
        a = reference.attention(q1, k1, options["scale"], options["key_window"])
        w = a.mean(0)[int(start) :]
        loss = np.log(np.maximum(w, least) / np.maximum(w - least, least))
        lost[part] = loss.max(0, initial=0) if options["normalise"] else loss.sum(0)
    return lost


def best_of(columns: np.ndarray, cu: Any) -> np.ndarray:
    """[heads, L] to [S, heads]: the largest of each sample; -inf where it has none."""
    ends = [0, columns.shape[1]] if cu is None else cu
    return np.array(
        [
            columns[:, a:b].max(1, initial=-np.inf)
            for a, b in zip(ends[:-1], ends[1:], strict=True)
        ]
    )


def drawn_ace(draw: Any) -> tuple[Any, Any, dict[str, Any]]:
    """q, k and every option of ``rap.ace`` that the reference has."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    hkv, group = draw(st.sampled_from([(1, 1), (1, 3), (2, 1), (2, 2)]))
    length = draw(st.one_of(st.integers(0, 30), st.sampled_from([63, 64, 65, 129, 200])))
    dim = draw(st.sampled_from([1, 2, 7, 16, 24, 64, 255, 256, 257, 300]))
    kind = draw(st.sampled_from(DTYPES))
    spread = draw(st.sampled_from([0.0, 0.5, 1.5, 6.0]))
    q = torch.from_numpy(rng.normal(size=(hkv * group, length, dim)) * spread).to(kind)
    k = torch.from_numpy(rng.normal(size=(hkv, length, dim))).to(kind)
    packed = draw(st.booleans())
    cu = offsets(rng, length) if packed else None
    sizes = np.diff(cu) if packed else np.array([length])
    starts = np.array([rng.integers(0, n + 1) for n in sizes])

    def mask() -> np.ndarray | None:
        return rng.random(length) < 0.6 if draw(st.booleans()) else None

    limits = st.sampled_from([None, None, 1, 3, 17, 1000])
    return (
        strided(q, draw(LAYOUTS)),
        strided(k, draw(LAYOUTS)),
        {
            "response_start": starts if packed else int(starts[0]),
            "cu_seqlens": cu,
            "scale": draw(st.sampled_from([None, 0.0, 0.3, 1.0])),
            "sigma": draw(st.sampled_from([2.0, 1.0, 0.5])),
            "heads": draw(st.sampled_from(["mean", "max", "each"])),
            "renormalise": draw(st.booleans()),
            "normalise": draw(st.booleans()),
            "min_rows": draw(st.sampled_from([1, 2, 8])),
            "window": draw(limits),
            "key_window": draw(limits),
            "columns": draw(st.sampled_from(["response", "prompt", "all"])),
            "column_mask": mask(),
            "image_mask": mask(),
            "top": draw(st.sampled_from([1, 5, 8, 64])),
        },
    )


def ace_bound(q: Any, k: Any, scale: float | None) -> float:
    """What D products and their sum in float32 can move a logarithm of a weight by."""
    if not q.numel():
        return UNIT
    dim, group = q.shape[-1], q.shape[0] // k.shape[0]
    factor = dim**-0.5 if scale is None else scale
    keys = k.double().abs().repeat_interleave(group, 0)
    sums = float((q.double().abs() @ keys.transpose(1, 2)).max())
    return UNIT * (2 * (dim + 8) * factor * sums + 64)


def test_fault_57_any_ace() -> None:
    def check(data: st.DataObject) -> None:
        q, k, options = drawn_ace(data.draw)
        isa = data.draw(st.sampled_from(ISAS))
        threads = data.draw(st.sampled_from([None, 1, 3]))
        got = with_isa(isa, rap.ace, q=q, k=k, threads=threads, **options)
        truth = reference.ace(q.double(), k.double(), **options)
        length = q.shape[1]
        bound = ace_bound(q, k, options["scale"])
        rows = 1 if options["normalise"] else max(1, length)
        wide = np.log(length + 2.0)
        most = np.asarray(truth["log_psi_columns"])
        least = most - flushed(q, k, options)
        psi = np.asarray(truth["log_psi"])
        lowest = best_of(np.atleast_2d(least), options["cu_seqlens"]).reshape(psi.shape)
        between(got.log_psi_columns, least, most, bound * rows, "log_psi_columns")
        between(got.log_psi, lowest, psi, bound * rows, "log_psi")
        for name, allowed in (
            ("attention_entropy", 4 * bound * (1 + wide)),
            ("attention_top", 4 * bound),
            ("image_mass", 4 * bound),
        ):
            between(getattr(got, name), truth[name], truth[name], allowed, name)
        positions_agree(got, most, lowest, options, bound * rows)
        bare = with_isa(isa, rap.ace, q=q, k=k, threads=1, stats=False, **options)
        np.testing.assert_array_equal(bare.log_psi_columns, got.log_psi_columns)

    # with 25 a kernel that ignores window or renormalise was not seen
    fuzz(check, share=SHARE, examples=100, data=st.data())


def positions_agree(
    got: Any, most: np.ndarray, lowest: np.ndarray, options: dict, allowed: float
) -> None:
    """The same column, or one that is as good within the bound."""
    cu = options["cu_seqlens"]
    columns = np.atleast_2d(most)
    begins = [0] if cu is None else cu[:-1]
    ends = [columns.shape[1]] if cu is None else cu[1:]
    found = np.asarray(got.position).reshape(len(begins), -1)
    best = lowest.reshape(found.shape)
    for s, begin in enumerate(begins):
        for head, at in enumerate(found[s]):
            if at < 0:
                assert np.isneginf(best[s, head])
            else:
                assert at < ends[s] - begin  # a column of its own sample
                assert columns[head, begin + at] >= best[s, head] - 2 * allowed


# ---------------------------------------------------------------------------- drm

VALUES = [0.0, -0.0, 1.0, 0.2, 0.4, 0.6, 5e-324, 1 - 2**-53, np.nan, np.inf, -np.inf, 2.0]


def test_fault_57_any_drm() -> None:
    def check(data: st.DataObject) -> None:
        draw = data.draw
        rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        n = draw(st.one_of(st.integers(0, 70), st.sampled_from([4095, 4097, 70_000])))
        kind = draw(st.sampled_from([np.float64, np.float32, np.float16]))

        def scores() -> np.ndarray:
            how = draw(st.sampled_from(["few", "uniform", "odd", "close"]))
            x = {
                "few": lambda: rng.integers(0, 6, n) / 5,
                "uniform": lambda: rng.random(n),
                "odd": lambda: rng.choice(VALUES, n),
                "close": lambda: 0.5 + rng.integers(-3, 4, n) * 2.0**-53,
            }[how]()
            step = draw(st.sampled_from([1, 1, 2, -1]))
            with np.errstate(over="ignore"):
                x = x.astype(kind)
            wide = np.full(2 * n, np.nan, kind)
            wide[::2] = x
            return {1: x, 2: wide[::2], -1: x[::-1].copy()[::-1]}[step]

        d = scores()
        g = scores() if draw(st.booleans()) else None
        e = rng.random(n) < 0.7 if draw(st.booleans()) else None
        k = draw(st.sampled_from([0, 1, n // 3, max(0, n - 1), n, n + 2]))
        isa, threads = draw(st.sampled_from(ISAS)), draw(st.sampled_from([None, 1, 3]))

        def found() -> np.ndarray:
            call = lambda **options: rap.drm(d, k, **options)  # noqa: E731
            return with_isa(isa, call, gain=g, eligible=e, threads=threads)

        if ((d > 1) & np.isfinite(d)).any() and not ((d > 0) & (d < 1)).any() and k:
            with pytest.raises(rap.RapInputError, match="percentages"):
                found()
            return
        np.testing.assert_array_equal(found(), reference.drm(d, k, eligible=e, gain=g))

    fuzz(check, share=SHARE, data=st.data())
