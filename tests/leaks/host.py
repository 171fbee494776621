"""The calls of every entry point, in host memory."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import torch

import rap
import rap.torchops
from rap import _C, ops

from .measure import Call

ON_DEVICE = ("cde", "linear_cde", "cde_means", "ace", "drm", "cuda_alloc", "cuda_read",
             "cuda_wait", "cuda_device_of", "cuda_dlpack", "cuda_info",
             "cublaslt")  # fmt: skip
"""Entry points that ``device`` has calls of."""

BIG = _C.GIL_BYTES
"""Bytes from which on the GIL is released and the pool is asked."""


def refused(kind: type[BaseException], says: str, call: Call) -> Call:
    """A call that must raise ``kind``, saying ``says``."""
    pattern = re.compile(says)

    def tried() -> None:
        try:
            call()
        except kind as error:
            if pattern.search(str(error)):
                return
            raise
        raise AssertionError("not refused")

    return tried


def found_or_not(call: Call) -> Call:
    """Of a library that this process may have loaded already."""

    def tried() -> None:
        try:
            call()
        except rap.RapConfigError:
            pass

    return tried


class Older:
    """A DLPack producer from before version 1.0."""

    def __init__(self, x: np.ndarray) -> None:
        self.x, self.shape = x, x.shape

    def __dlpack__(self, stream: object = None) -> object:
        return self.x.__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0


class Newer(Older):
    def __dlpack__(self, *, stream: object = None, max_version: Any = None) -> object:
        return self.x.__dlpack__(max_version=max_version)


class Broken(Older):
    def __dlpack__(self, **_: object) -> object:
        raise RuntimeError("device lost")


class Liar(Older):
    def __dlpack__(self, **_: object) -> object:
        return "no capsule"


def _ways(rng: np.random.Generator) -> Iterator[tuple[str, Call]]:
    """How an array comes in; the same for every kernel, shown on cde."""
    x = rng.normal(size=(4, 40)).astype(np.float32)
    x16, x64, wide = x.astype(np.float16), x.astype(np.float64), np.repeat(x, 2, 1)[:, ::2]
    t = torch.from_numpy(x)
    bf, neg, grad = t.bfloat16(), torch._neg_view(t), t.clone().requires_grad_()
    view, rows = memoryview(x), x.tolist()
    older, newer, broken, liar = (K(x) for K in (Older, Newer, Broken, Liar))
    # not of ops.py, which takes them by NumPy
    out = np.empty((_C.CDE_OUTPUTS, 4))
    table = np.zeros((4, 40), np.dtype([("a", np.float32), ("b", np.int16)], align=False))
    odd = memoryview(table["a"])
    ints, objects, empty = memoryview(x.view(np.uint32)), x.astype(object), x[:0]
    masked, xbf = np.ma.masked_less(x, 0), x.astype(ml_dtypes.bfloat16)
    sparse, meta = t.to_sparse(), t.to("meta")
    yield "float16", lambda: rap.cde(x16, x16)
    yield "float64", lambda: rap.cde(x64, x64)
    yield "strided", lambda: rap.cde(wide, x)
    yield "of torch", lambda: rap.cde(t, t)
    yield "bfloat16", lambda: rap.cde(xbf, xbf)
    yield "bfloat16 of torch", lambda: rap.cde(bf, t)
    yield "a minus sign of torch", lambda: rap.cde(neg, t)
    yield "that wants a gradient", lambda: rap.cde(grad, t)
    yield "lists", lambda: rap.cde(rows, rows)
    yield "a buffer", lambda: rap.cde(view, view)
    yield "a buffer, in C", lambda: _C.cde(view, view, None, out, 1, 1)
    yield "older DLPack", lambda: rap.cde(older, older)
    yield "older DLPack, in C", lambda: _C.cde(older, older, None, out, 1, 1)
    yield "newer DLPack, in C", lambda: _C.cde(newer, newer, None, out, 1, 1)
    yield "empty", lambda: rap.cde(empty, empty)

    error, kind = rap.RapInputError, TypeError
    for name, raised, says, array in (
        ("DLPack that raises", RuntimeError, "device lost", broken),
        ("DLPack that is none", kind, "capsule", liar),
        ("objects", kind, "object", objects),
        ("nothing", kind, "None", None),
        ("no array", kind, "expected an array", 7),
        ("lists of unequal lengths", error, "unequal", [[1.0], [1.0, 2.0]]),
        ("masked", error, "masked", masked),
        ("sparse", error, "no memory of its own", sparse),
        ("meta", Exception, "", meta),
        ("one dimension", error, "", x[0]),
    ):
        yield f"refused: {name}", _both(raised, says, array, x)
    yield (
        "refused: a buffer of integers",
        refused(kind, "format", lambda: _C.cde(ints, x, None, out, 1, 1)),
    )
    yield (
        "refused: odd steps",
        refused(error, "multiple", lambda: _C.cde(odd, x, None, out, 1, 1)),
    )
    yield (
        "refused: odd steps of NumPy",
        refused(error, "multiple", lambda: _C.cde(table["a"], x, None, out, 1, 1)),
    )


def _both(raised: type[BaseException], says: str, bad: Any, good: Any) -> Call:
    """Refused as the first array and as the second, when the first is held already."""
    first = refused(raised, says, lambda: rap.cde(bad, good))
    second = refused(raised, says, lambda: rap.cde(good, bad))
    return lambda: (first(), second())


def _cde(rng: np.random.Generator) -> Iterator[tuple[str, Call]]:
    x, y = rng.normal(size=(2, 4, 40)).astype(np.float32)
    ids, cu, w = [1, 2, -100, 3], np.array([0, 1, 1, 4]), np.array([1.0, 2, 0, 1])
    big, bad = rng.normal(size=(2, 20, 1500)).astype(np.float32), x.copy()
    bad[1, 3] = np.nan
    batch = np.stack([x, y])
    cut = np.concatenate([batch, batch], 1)[:, 1:6]  # no view of two dimensions
    out, narrow, locked = np.empty((_C.CDE_OUTPUTS, 4)), np.empty((3, 4)), np.empty((10, 4))
    locked.flags.writeable = False
    far = np.array([1, 2, 3, 40])
    assert big[0].nbytes >= BIG
    yield "", lambda: rap.cde(x, y)
    yield "kl alone", lambda: rap.cde(x, y, want="kl")
    yield "targets", lambda: rap.cde(x, y, targets=ids)
    yield "means", lambda: rap.cde(x, y, targets=ids, cu_seqlens=cu, weights=w)
    yield "a batch", lambda: rap.cde(batch, batch)
    yield "a batch with gaps", lambda: rap.cde(cut, cut)
    yield "NaN", lambda: rap.cde(bad, x)
    yield "in the pool", lambda: rap.cde(big[0], big[1], want="js", threads=2)

    error, config = rap.RapInputError, rap.RapConfigError
    for name, kind, says, options in (
        ("want", config, "want", {"want": "no"}),
        ("want without targets", config, "needs targets", {"want": "logp1"}),
        ("targets", error, "target", {"targets": far}),
        ("number of targets", error, "targets", {"targets": [1]}),
        ("offsets", error, "rising", {"cu_seqlens": [0, 9]}),
        ("weights", error, "weights", {"cu_seqlens": cu, "weights": -w}),
        ("weights alone", config, "need cu_seqlens", {"weights": w}),
        ("ignore_index", config, "ignore_index", {"targets": ids, "ignore_index": "x"}),
        ("threads", config, "threads", {"threads": 0}),
    ):
        yield f"refused: {name}", _option(kind, says, rap.cde, x, y, options)
    yield "refused: shapes", refused(error, "", lambda: rap.cde(x, y[:, :7]))
    for name, raised, says, arguments in (
        ("no arguments", TypeError, "argument", ()),
        ("out of another shape", error, "out", (x, y, None, narrow, 1, 1)),
        ("out that is read-only", TypeError, "writable", (x, y, None, locked, 1, 1)),
        ("a place that is none", TypeError, "", (x, y, None, out, 1, "two")),
        ("a place too far", OverflowError, "", (x, y, None, out, 1, 1 << 80)),
        ("targets that are floats", error, "targets", (x, y, w, out, 1, 1)),
    ):
        yield f"refused in C: {name}", _in_c(raised, says, _C.cde, *arguments)


def _option(kind: Any, says: str, function: Any, x: Any, y: Any, options: Any) -> Call:
    return refused(kind, says, lambda: function(x, y, **options))


def _in_c(kind: Any, says: str, function: Any, *arguments: Any) -> Call:
    return refused(kind, says, lambda: function(*arguments))


def _linear(rng: np.random.Generator) -> Iterator[tuple[str, Call]]:
    h1, h0 = rng.normal(size=(2, 4, 16)).astype(np.float32)
    w, b = rng.normal(size=(50, 16)).astype(np.float32), rng.normal(size=50)
    half, cu = w.astype(np.float16), [0, 1, 4]
    t, head = torch.from_numpy(h1), torch.from_numpy(w).bfloat16()
    batch = np.stack([h1, h0])
    big = rng.normal(size=(2000, 16)).astype(np.float32)
    out = np.zeros((_C.CDE_OUTPUTS, 4))
    rest = (None, None, out, 1.0, 0.0, 1 << 20, 1, 1)
    double, gaps = w.astype(np.float64), np.repeat(w, 2, 1)[:, ::2]
    yield "", lambda: rap.linear_cde(h1, h0, w)
    yield (
        "every option",
        lambda: rap.linear_cde(
            h1, h0, half, bias=b, scale=0.5, softcap=9.0, targets=[1, 2, -100, 3], memory=0
        ),
    )
    yield "one branch", lambda: rap.linear_cde(h1, h0, w, want="entropy0")
    yield "means", lambda: rap.linear_cde(h1, h0, w, cu_seqlens=cu, weights=[1, 2, 0, 1])
    yield "of torch", lambda: rap.linear_cde(t, t, head)
    yield "a batch", lambda: rap.linear_cde(batch, batch, w)
    yield "in the pool", lambda: rap.linear_cde(h1, h0, big, want="js", threads=2)
    config, error = rap.RapConfigError, rap.RapInputError
    for name, kind, says, options in (
        ("softcap", config, "softcap", {"softcap": -1.0}),
        ("scale", config, "scale", {"scale": "x"}),
        ("memory", config, "memory", {"memory": -1}),
        ("bias", error, "bias", {"bias": b[:7]}),
        ("targets", error, "target", {"targets": [1, 2, 3, 50]}),
    ):
        yield f"refused: {name}", _head(kind, says, h1, h0, w, options)
    yield "refused: widths", refused(error, "", lambda: rap.linear_cde(h1, h0, w[:, :9]))
    for name, raised, says, weight in (
        ("float64", TypeError, "float64", double),
        ("a head with gaps", error, "contiguous", gaps),
    ):
        yield (
            f"refused in C: {name}",
            _in_c(raised, says, _C.linear_cde, h1, h0, weight, *rest),
        )
    yield "refused in C: no arguments", _in_c(TypeError, "argument", _C.linear_cde)


def _head(kind: Any, says: str, h1: Any, h0: Any, w: Any, options: Any) -> Call:
    return refused(kind, says, lambda: rap.linear_cde(h1, h0, w, **options))


def _means() -> Iterator[tuple[str, Call]]:
    """On a device only; on the host it is refused at every step."""
    rows, w, cu = np.zeros((_C.CDE_OUTPUTS, 6)), np.ones(6), np.array([0, 6])
    out, few = np.zeros((_C.CDE_OUTPUTS, 1)), rows[:3]
    error = rap.RapInputError
    for name, kind, says, arguments in (
        ("no arguments", TypeError, "argument", ()),
        ("answers", error, "answers and out", (few, w, cu, out, 1, 1)),
        ("offsets", TypeError, "int64", (rows, w, cu > 1, out, 1, 1)),
        ("weights", error, ">= 0", (rows, w[:5], cu, out, 1, 1)),
        ("a host", error, "CUDA device only", (rows, None, cu, out, 1, 1)),
    ):
        yield f"refused in C: {name}", _in_c(kind, says, _C.cde_means, *arguments)


def _ace(rng: np.random.Generator) -> Iterator[tuple[str, Call]]:
    q, k = rng.normal(size=(4, 24, 8)).astype(np.float32), rng.normal(size=(2, 24, 8))
    cu, start = np.array([0, 10, 10, 24]), np.array([3, 0, 5])
    mask, lse = np.arange(24) < 9, rng.normal(size=(4, 24))
    t, grad = torch.from_numpy(q), torch.from_numpy(q).clone().requires_grad_()
    big = rng.normal(size=(2, 400, 32)).astype(np.float32)
    assert big.nbytes >= BIG
    for heads in ("mean", "max", "each"):
        yield heads, _of_heads(q, k, heads)
    yield "packed", lambda: rap.ace(q, k, response_start=start, cu_seqlens=cu)
    yield (
        "linear",
        lambda: rap.ace(q, k, response_start=9, heads="each", stats=False, lse=lse),
    )
    yield "every option", lambda: rap.ace(
        q, k, response_start=start, cu_seqlens=cu, scale=0.2, sigma=3.0, heads="max",
        renormalise=True, normalise=False, min_rows=2, window=7, key_window=9,
        columns="all", column_mask=mask, image_mask=~mask, lse=lse, top=3,
    )  # fmt: skip
    yield "an empty response", lambda: rap.ace(q, k, response_start=24)
    yield "of torch", lambda: rap.ace(t, t, response_start=9)
    yield "that wants a gradient", lambda: rap.ace(grad, t, response_start=9)
    yield "in the pool", lambda: rap.ace(big, big, response_start=100, threads=2)
    error, config = rap.RapInputError, rap.RapConfigError
    for name, kind, says, options in (
        ("start", error, "response_start", {"response_start": 99}),
        ("offsets", error, "cu_seqlens", {"response_start": 1, "cu_seqlens": [0, 9]}),
        ("heads", config, "heads", {"response_start": 1, "heads": "some"}),
        ("sigma", error, "sigma", {"response_start": 1, "sigma": -2.0}),
        ("scale", config, "scale", {"response_start": 1, "scale": "x"}),
        ("scale in C", error, "scale", {"response_start": 1, "scale": np.nan}),
        ("top", error, "top", {"response_start": 1, "top": 65}),
        ("window", config, "window", {"response_start": 1, "window": 0}),
        ("masks", error, "mask", {"response_start": 1, "image_mask": mask[:5]}),
        ("log-sum-exps", error, "lse", {"response_start": 1, "lse": lse[:1]}),
        ("threads", config, "threads", {"response_start": 1, "threads": -1}),
    ):
        yield f"refused: {name}", _option(kind, says, rap.ace, q, k, options)
    yield (
        "refused: heads that do not divide",
        refused(error, "heads", lambda: rap.ace(q[:3], k, response_start=1)),
    )
    yield from _ace_in_c(q, k.astype(np.float32))


def _of_heads(q: Any, k: Any, heads: str) -> Call:
    return lambda: rap.ace(q, k, response_start=9, heads=heads)


def _ace_in_c(q: np.ndarray, k: np.ndarray) -> Iterator[tuple[str, Call]]:
    cu, start = np.array([0, 24]), np.array([9])
    outs = np.empty((4, 1, 1)), np.empty((1, 1), np.int64), np.empty((1, 24))
    options = (1.0, 2.0, 1, 0, 0, 0, 1, 8, False, True, True)
    none, error = (None, None, None), rap.RapInputError
    for name, kind, says, arguments in (
        ("no arguments", TypeError, "argument", ()),
        ("two dimensions", error, "heads, L, D", (q[0], k, cu, start, *none, *outs,
                                                  options, 1)),
        ("options", TypeError, "", (q, k, cu, start, *none, *outs, options[:3], 1)),
        ("an option that is none", TypeError, "", (q, k, cu, start, *none, *outs,
                                                   (1.0, "x", *options[2:]), 1)),
        ("out", Exception, "", (q, k, cu, start, *none, outs[1], *outs[1:], options, 1)),
        ("the last array", Exception, "", (q, k, cu, start, *none, *outs[:2],
                                           outs[2][:, ::2], options, 1)),
    ):  # fmt: skip
        yield f"refused in C: {name}", _in_c(kind, says, _C.ace, *arguments)


def _drm(rng: np.random.Generator) -> Iterator[tuple[str, Call]]:
    d, d32 = rng.random(60), rng.random(60).astype(np.float32)
    may, t, rows = d > 0.2, torch.from_numpy(d), d.tolist()
    many, tied = rng.random(20_000), np.full(20_000, 0.5)
    out, ints = np.empty(60, np.int64), np.arange(60)
    yield "", lambda: rap.drm(d, 9)
    yield "with a gain", lambda: rap.drm(d32, 9, gain=d, eligible=may)
    yield "of torch", lambda: rap.drm(t, 9, gain=t)
    yield "a list", lambda: rap.drm(rows, 9)
    yield "more than there are", lambda: rap.drm(d, 99)
    yield "all alike", lambda: rap.drm(tied, 9, gain=many)
    yield "in the pool", lambda: rap.drm(many, 99, threads=2)
    error, config = rap.RapInputError, rap.RapConfigError
    for name, kind, says, arguments, options in (
        ("k", config, "k", (d, -1), {}),
        ("two dimensions", error, "", (d[None], 1), {}),
        ("objects", TypeError, "object", (d.astype(object), 1), {}),
        ("gain", error, "gain", (d, 1), {"gain": d[:5]}),
        ("eligible", error, "eligible", (d, 1), {"eligible": d}),
        ("threads", config, "threads", (d, 1), {"threads": 0}),
    ):
        yield f"refused: {name}", _drawn(kind, says, arguments, options)
    for name, raised, says, given in (
        ("no arguments", TypeError, "argument", ()),
        ("integers", TypeError, "float32 or float64", (ints, None, None, out, 1)),
        ("gaps", error, "contiguous", (d[::2], None, None, out, 1)),
        ("the last array", Exception, "", (d, d, d > 2, out[::2], 1)),
    ):
        yield f"refused in C: {name}", _in_c(raised, says, _C.drm, *given)


def _drawn(kind: Any, says: str, arguments: Any, options: Any) -> Call:
    return refused(kind, says, lambda: rap.drm(*arguments, **options))


def _module() -> Iterator[tuple[str, Call]]:
    """Entry points that are no kernels; without a driver, as here, most are refused."""
    before = _C.isa()
    shape, steps = (4,), (1,)
    owner = np.zeros(4)
    yield "isa", lambda: (_C.isa(before), _C.isa(None), _C.isa())
    yield "isa refused", refused(rap.RapInputError, "no kernels", lambda: _C.isa("z80"))
    yield "isa refused: a number", refused(TypeError, "", lambda: _C.isa(7))
    yield "isa_names", _C.isa_names
    yield "cublaslt", found_or_not(lambda: _C.cublaslt("/no/such/library.so"))
    yield "cublaslt refused: arguments", _in_c(TypeError, "", _C.cublaslt, 7)
    yield "cuda_info", _C.cuda_info
    yield "default_threads", ops.default_threads
    yield "cuda_dlpack", lambda: _C.cuda_dlpack(owner, 0, shape, steps, 2, 64, 0)
    for name, kind, arguments in (
        ("dimensions", rap.RapInputError, (owner, 0, (1,) * 9, (1,) * 9, 2, 64, 0)),
        ("a shape of text", TypeError, (owner, 0, ("x",), steps, 2, 64, 0)),
        ("steps too far", OverflowError, (owner, 0, shape, (1 << 80,), 2, 64, 0)),
        ("no arguments", TypeError, ()),
    ):
        yield f"cuda_dlpack refused: {name}", _in_c(kind, "", _C.cuda_dlpack, *arguments)


def without_driver() -> Iterator[tuple[str, Call]]:
    """What needs a device, where there is none."""
    config = rap.RapConfigError
    to = np.zeros(4)
    for name, arguments in {
        "cuda_alloc": (8, 0, 0), "cuda_read": (to, 0, 0, 0), "cuda_wait": (0, 0),
        "cuda_device_of": (0,),
    }.items():  # fmt: skip
        function = getattr(_C, name)
        yield f"{name} refused: no driver", _in_c(config, "", function, *arguments)
        yield f"{name} refused: arguments", _in_c(TypeError, "", function, *([1.5] * 9))


def _operators(rng: np.random.Generator) -> Iterator[tuple[str, Call]]:
    """What torch.compile calls."""
    x = torch.from_numpy(rng.normal(size=(4, 40)).astype(np.float32))
    q = torch.from_numpy(rng.normal(size=(2, 24, 8)).astype(np.float32))
    d, start = x[0].abs().double() / 9, torch.tensor([9])
    grad, flags = x.clone().requires_grad_(), [1, 0, 0, 0, 1, 8, 0, 1, 1]
    of = torch.ops.rap
    none = (None, None, None, None, 1, 1)
    yield "cde", lambda: of.cde(x, x, *none)
    yield "linear_cde", lambda: of.linear_cde(x, x, x, None, None, None, None, *none)
    yield "ace", lambda: of.ace(q, q, start, None, None, None, None, [0.3, 2.0], flags, 1)
    yield "drm", lambda: of.drm(d, 3, None, None, 1)
    yield "cde refused", refused(rap.RapInputError, "", lambda: of.cde(x, x[:, :3], *none))
    yield (
        "a gradient refused",
        refused(Exception, "gradient", lambda: rap.cde(grad, x).kl.sum().backward()),
    )


def calls() -> dict[str, Call]:
    """{"entry point: form": call}"""
    rng = np.random.default_rng(0)
    found: dict[str, Call] = {}
    for entry, forms in {
        "cde": _cde(rng), "arrays": _ways(rng), "linear_cde": _linear(rng),
        "cde_means": _means(), "ace": _ace(rng), "drm": _drm(rng), "_C": _module(),
        "torch.ops.rap": _operators(rng),
    }.items():  # fmt: skip
        found |= {f"{entry}: {form}".removesuffix(": "): call for form, call in forms}
    if _C.cuda_info()["driver"] == 0:
        found |= {f"_C: {name}": call for name, call in without_driver()}
    return found
