"""One call of each kernel: arguments placed and checked, run, means taken.

What ``rap.ops`` offers and ``rap.torchops`` registers with torch, without either: plain
values in the caller's framework come out, in the order of their names.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from . import _C, cuda
from .divergences import CDE_OUTPUTS, TARGETED
from .errors import RapConfigError, RapInputError
from .host import (
    FLOAT64,
    INT64,
    Host,
    asarray,
    host_of,
    host_view,
    integer,
    is_torch,
    number,
    numbers,
)

if _C.CDE_OUTPUTS != len(CDE_OUTPUTS):
    raise ImportError("rap._C was built from other sources than these: build it again")

HEADS = {"mean": 0, "max": 1, "each": 2}
COLUMNS = {"response": 1, "prompt": 2, "all": 3}

Wanted = tuple[tuple[int, ...], int]
"""Rows of the answer that are wanted, and the same as bits."""


class Means(NamedTuple):
    """How rows become one number a sample."""

    weights: Any = None
    cu_seqlens: Any = None
    """None: they stay rows."""
    ignore_index: int | None = None
    """Rows with this target do not count."""


def place_of(kernel: str, like: Any, **arrays: Any) -> Host | cuda.Place:
    """Where a call runs: where its arrays are. Answers go where ``like`` is."""
    for x in arrays.values():
        if not (isinstance(x, np.ndarray) or x is None or (is_torch(x) and x.is_cpu)):
            return cuda.place_of(kernel, **arrays) or host_of(like)
    return host_of(like)


# ---------------------------------------------------------------- cde


def plan(want: tuple[str, ...] | None, targeted: bool) -> Wanted:
    """Raises RapConfigError for a name that is none, or that needs targets."""
    if want is None:
        want = tuple(n for n in CDE_OUTPUTS if targeted or n not in TARGETED)
    for name in want:
        if name not in CDE_OUTPUTS:
            raise RapConfigError(f"want = {name!r}: expected some of {CDE_OUTPUTS}")
        if name in TARGETED and not targeted:
            raise RapConfigError(f"want = {name!r} needs targets")
    rows = tuple(sorted({CDE_OUTPUTS.index(name) for name in want}))
    return rows, sum(1 << row for row in rows)


_plan = lru_cache(plan)


def names(want: Sequence[str] | None) -> tuple[str, ...] | None:
    """``want`` as `plan` takes it."""
    if want is None:
        return None
    try:
        return (want,) if isinstance(want, str) else tuple(want)
    except TypeError:
        raise RapConfigError(f"want = {want!r}: expected some of {CDE_OUTPUTS}") from None


def wanted(want: Sequence[str] | None, targets: Any) -> Wanted:
    """As `plan`, remembered."""
    given = names(want)
    try:
        return _plan(given, targets is not None)
    except TypeError:  # a name that cannot be hashed is no name
        return plan(given, targets is not None)


def cde(
    logits1: Any,
    logits0: Any,
    targets: Any,
    means: Means,
    wanted: Wanted,
    threads: int | None,
) -> list[Any]:
    """The wanted rows of ``rap.cde``: [T] or [B, T] each, [S] with offsets."""
    like = logits1
    logits1 = host_view(numbers("logits1", logits1))
    logits0 = host_view(numbers("logits0", logits0))
    lead = _lead("logits", logits1, logits0)
    size = _bytes(logits1)
    place = place_of("cde", like, logits1=logits1, logits0=logits0)
    with place.held(logits1, logits0, targets, *means[:2]):
        pieces = _pieces(
            place, place.logits("logits1", logits1), place.logits("logits0", logits0)
        )
        ids, ignored = _targets(place, targets, lead, means.ignore_index)
        outs, first = [], 0
        for l1, l0 in pieces:
            rows = _rows(l1)
            part = ids if ids is None or len(pieces) == 1 else ids[first : first + rows]
            out = place.empty((len(CDE_OUTPUTS), rows), FLOAT64)
            _C.cde(l1, l0, part, out, wanted[1], place.where(threads, size))
            outs.append(out)
            first += rows
        out = outs[0] if len(outs) == 1 else place.joined(outs)
        return _results(place, out, wanted, means, ignored, lead)


def linear_cde(
    hidden1: Any,
    hidden0: Any,
    weight: Any,
    bias: Any,
    options: tuple[float | None, float | None, int | None],
    targets: Any,
    means: Means,
    wanted: Wanted,
    threads: int | None,
) -> list[Any]:
    """The wanted rows of ``rap.linear_cde``; options: scale, softcap, memory."""
    factor, cap, scratch = _linear_options(*options)
    given = {"hidden1": hidden1, "hidden0": hidden0, "weight": weight, "bias": bias}
    arrays = {name: host_view(numbers(name, x)) for name, x in given.items()}
    lead = _lead("hidden", arrays["hidden1"], arrays["hidden0"])
    size = _bytes(arrays["weight"]) * math.prod(lead)
    like = hidden1
    place = place_of("cde", like, **arrays)
    place.open_blas()
    with place.held(*arrays.values(), targets, *means[:2]):
        ids, ignored = _targets(place, targets, lead, means.ignore_index)
        h1 = _merged(place.array("hidden1", arrays["hidden1"]))
        h0 = _merged(place.array("hidden0", arrays["hidden0"]))
        out = place.empty((len(CDE_OUTPUTS), _rows(h1)), FLOAT64)
        _C.linear_cde(
            h1,
            h0,
            place.array("weight", arrays["weight"]),
            place.array("bias", arrays["bias"], contiguous=True),
            ids,
            out,
            factor,
            cap,
            place.scratch if scratch is None else scratch,
            wanted[1],
            place.where(threads, size),
        )
        return _results(place, out, wanted, means, ignored, lead)


def _linear_options(
    scale: float | None, softcap: float | None, memory: int | None
) -> tuple[float, float, int | None]:
    """As _C takes them. Raises RapConfigError."""
    factor = 1.0 if scale is None else number("scale", scale, "None or a number")
    cap = 0.0 if softcap is None else number("softcap", softcap, "None or a number > 0")
    if softcap is not None and not cap > 0:
        raise RapConfigError(f"softcap = {softcap!r}: expected None or a number > 0")
    return factor, cap, None if memory is None else integer("memory", memory, 0)


def _results(
    place: Host | cuda.Place,
    out: Any,
    wanted: Wanted,
    means: Means,
    ignored: Any,
    lead: tuple[int, ...],
) -> list[Any]:
    """The wanted rows of ``out`` [OUTPUTS, N]."""
    if ignored is not None:
        place.blank(out, [CDE_OUTPUTS.index(name) for name in TARGETED], ignored)
    total = _rows(out[0])
    if means.cu_seqlens is not None:
        weights = _flat("weights", means.weights, lead)
        w = place.counted(weights, ignored, total)
        out = place.means(out, wanted, w, means.cu_seqlens)
    elif means.weights is not None:
        raise RapConfigError("weights need cu_seqlens: they weigh the means per sample")
    values = [out[row] for row in wanted[0]]
    if means.cu_seqlens is None and len(lead) > 1:
        values = [x.reshape(*lead) for x in values]
    return values if place.answer is None else [place.answer(x) for x in values]


def _lead(name: str, a: Any, b: Any) -> tuple[int, ...]:
    """Shape of an array without its last dimension: (T,) or (B, T). What is neither is left
    to _C, which says what is wrong with it."""
    shape = _shape(a)
    if len(shape) != 3:
        return shape[:1]
    if _shape(b) != shape:
        raise RapInputError(
            f"{name}1 {list(shape)} and {name}0 {list(_shape(b))} must have the same shape"
        )
    return shape[:2]


def _shape(x: Any) -> tuple[int, ...]:
    try:
        return tuple(x.shape)
    except (AttributeError, TypeError, RuntimeError):  # _C says what is wrong with it
        return ()


def _pieces(place: Host | cuda.Place, a: Any, b: Any) -> list[tuple[Any, Any]]:
    """Logits as pairs of two dimensions: of [B, T, V] one pair if that needs no copy, else
    B of them (``logits[:, :-1]``)."""
    if len(_shape(a)) != 3 or not hasattr(a, "reshape"):
        return [(a, b)]
    flat = _flat_view(a), _flat_view(b)
    if flat[0] is not None and flat[1] is not None:
        return [flat]
    return [(a[i], b[i]) for i in range(len(a))]


def _flat_view(x: Any) -> Any:
    """[B, T, V] as [B T, V] where that is a view, else None."""
    b, t, v = x.shape
    if isinstance(x, cuda.DeviceArray):
        return x.reshape(b * t, v) if x.is_dense else None
    step = x.stride() if is_torch(x) else x.strides
    if 0 in (b, t, v) or step[0] == t * step[1]:
        return x.reshape(b * t, v)
    return x[:, 0] if t == 1 else None


def _merged(x: Any) -> Any:
    """[B, T, E] as [B T, E], copied if need be; others as they are."""
    shape = _shape(x)
    return x if len(shape) != 3 else x.reshape(shape[0] * shape[1], shape[2])


def _targets(
    place: Host | cuda.Place, targets: Any, lead: tuple[int, ...], ignore: int | None
) -> tuple[Any, Any]:
    """(ids [N], which of them are ``ignore`` or None)."""
    ids = place.integers("targets", _flat("targets", targets, lead))
    if ids is None or ignore is None:
        return ids, None
    if type(ignore) is not int and not isinstance(ignore, np.integer):
        raise RapConfigError(f"ignore_index = {ignore!r}: expected an integer or None")
    return place.ignoring(ids, int(ignore))


def _flat(name: str, x: Any, lead: tuple[int, ...]) -> Any:
    """What belongs to the rows of [B, T, V], [B, T] as [B T]; as it is for [T, V]."""
    if x is None or len(lead) < 2:
        return x
    x = x if hasattr(x, "reshape") else asarray(name, x)
    if tuple(x.shape) != lead:
        raise RapInputError(f"{name}: expected {list(lead)}, got {list(x.shape)}")
    return x.reshape(-1)


def _rows(x: Any) -> int:
    try:
        return x.shape[0]
    except (AttributeError, IndexError, RuntimeError):  # _C says what is wrong with it
        return 0


def _bytes(x: Any) -> int:
    """Of an array's elements; a producer that does not say has many."""
    try:
        return x.nbytes
    except (AttributeError, RuntimeError):
        return _C.GIL_BYTES


# ---------------------------------------------------------------- ace


class AceOptions(NamedTuple):
    """Checked arguments of ``rap.ace`` that are no arrays, as _C takes them."""

    scale: float
    sigma: float
    min_rows: int
    window: int
    key_window: int
    heads: int
    columns: int
    top: int
    renormalise: bool
    normalise: bool
    stats: bool


def ace_options(
    dim: int,
    scale: float | None,
    sigma: float,
    min_rows: int,
    windows: tuple[int | None, int | None],
    heads: str,
    columns: str,
    top: int,
    flags: tuple[bool, bool, bool],
) -> AceOptions:
    """Raises RapConfigError. windows: of rows and of keys; flags: renormalise, normalise,
    stats."""
    return AceOptions(
        max(dim, 1) ** -0.5 if scale is None else number("scale", scale, "a number >= 0"),
        number("sigma", sigma, "a number > 0"),
        integer("min_rows", min_rows),
        _limit("window", windows[0]),
        _limit("key_window", windows[1]),
        _choice("heads", heads, HEADS),
        _choice("columns", columns, COLUMNS),
        integer("top", top),
        *map(bool, flags),
    )


def _choice(name: str, value: object, options: dict[str, int]) -> int:
    if not isinstance(value, str) or value not in options:
        raise RapConfigError(f"{name} = {value!r}: expected one of {tuple(options)}")
    return options[value]


def _limit(name: str, value: int | None) -> int:
    """None is no limit: 0."""
    return 0 if value is None else integer(name, value)


def heads_of(name: str, x: Any) -> Any:
    """``x`` [heads, L, D], lists of numbers as an array. Raises RapInputError for another
    number of dimensions."""
    x = numbers(name, x)
    shape = getattr(x, "shape", None)
    if shape is None or len(shape) != 3:
        got = type(x).__name__ if shape is None else list(shape)
        hint = f"; of a batch of one pass {name}[0]" if len(shape or ()) == 4 else ""
        raise RapInputError(f"{name}: expected an array [heads, L, D], got {got}{hint}")
    return x


def ace(
    q: Any,
    k: Any,
    response_start: Any,
    cu_seqlens: Any,
    masks: tuple[Any, Any],
    lse: Any,
    options: AceOptions,
    threads: int | None,
) -> tuple[Any, Any, Any]:
    """(summary [4, S]: psi, entropy, top, image; position [S]; psi of columns [L]), with a
    dimension of heads each if ``heads`` is "each". masks: of columns, of image tokens."""
    hq, total, dim = q.shape
    like, q, k, lse = q, host_view(q), host_view(k), host_view(numbers("lse", lse))
    place = place_of("ace", like, q=q, k=k, lse=lse)
    place.open_blas()
    cu, start, samples = _samples(place, cu_seqlens, response_start, total)
    fields = (hq,) if options.heads == HEADS["each"] else ()
    summary = place.empty((4, samples, *fields), FLOAT64)
    position = place.empty((samples, *fields), INT64)
    psi = place.empty((*fields, total), FLOAT64)
    with place.held(q, k, *masks, lse):
        _C.ace(
            place.array("q", q),
            place.array("k", k),
            cu,
            start,
            place.mask("column_mask", masks[0]),
            place.mask("image_mask", masks[1]),
            place.array("lse", lse, wide=True),
            summary,
            position,
            psi,
            options,
            place.where(threads, hq * total * total * dim),
        )
    if place.answer is None:
        return summary, position, psi
    return place.answer(summary), place.answer(position), place.answer(psi)


def _samples(
    place: Host | cuda.Place, cu_seqlens: Any, response_start: Any, total: int
) -> tuple[Any, Any, int]:
    """(offsets, starts, number of samples). One sample: its length and, if it is an int,
    its start as they are, which spares two arrays."""
    if cu_seqlens is None and type(response_start) is int:
        return total, response_start, 1
    cu: Any = total
    samples = 1
    if cu_seqlens is not None:
        cu = place.plan("cu_seqlens", cu_seqlens)
        samples = max(0, cu.size - 1)
    start = place.plan("response_start", response_start)
    if start is not None and np.ndim(response_start) == 0:
        start = np.full(samples, start)
    return cu, start, samples


# ---------------------------------------------------------------- drm


def _require_shares(difficulty: Any) -> None:
    """Raises RapInputError for percentages, of which none is a candidate. Looked at only
    where there is none: a pass over [N]."""
    if not (isinstance(difficulty, np.ndarray) or is_torch(difficulty)):
        return
    above = difficulty[(difficulty > 1) & (difficulty < math.inf)]
    if len(above) and not ((difficulty > 0) & (difficulty < 1)).any():
        raise RapInputError(
            "difficulty: expected shares (1 - pass rate) between 0 and 1, got values up to "
            f"{float(above.max()):g} and none between; divide percentages by 100"
        )


def drm(difficulty: Any, k: int, eligible: Any, gain: Any, threads: int | None) -> Any:
    """int64 [<= k]."""
    k = integer("k", k, 0)
    if difficulty is None:
        raise TypeError("difficulty: expected an array, got None")
    like, difficulty, gain = difficulty, host_view(difficulty), host_view(gain)
    place = place_of("drm", like, difficulty=difficulty, gain=gain)
    scores = place.scores("difficulty", difficulty)
    if len(scores.shape) != 1:
        raise RapInputError(f"difficulty: expected [N], got {len(scores.shape)} dimensions")
    n = int(scores.shape[0])
    out = place.empty((min(k, n),), INT64)
    found = _C.drm(
        scores,
        place.scores("gain", gain),
        place.mask("eligible", eligible),
        out,
        place.where(threads, 8 * n),
    )
    if not found and out.shape[0]:
        _require_shares(scores)
    return out[:found] if place.answer is None else place.answer(out[:found])
