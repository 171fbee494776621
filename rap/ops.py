"""The kernels for Python: rap.cde, rap.linear_cde, rap.ace, rap.drm.

Arrays come in as NumPy, torch or any other DLPack producer; float32, bfloat16 or float16
are read where they lie (a copy is made only when the last dimension is not contiguous).
Answers come back in the caller's framework and on its device: NumPy in, NumPy out; torch
in, torch out. Tensors are read detached: no gradient flows through an answer. A tensor
without memory of its own (DTensor, quantised weights, sparse, meta) is a RapInputError.
The GIL is released; Ctrl-C is obeyed inside long calls; the bits do not depend on
``threads``.

A call runs where its arrays are. On a CUDA device (torch, CuPy, any DLPack producer) it is
queued on the producer's current stream and does not synchronise, except ``drm`` (its length
depends on the data) and ``ace`` for offsets that are on the device: the host plans by them.
On a device ``threads`` is ignored. Non-torch arrays on a device: integers must be int64,
scores and weights contiguous float32 or float64. Targets, offsets and weights of cde that
are on the device are not checked: what is out of range makes NaN. In a build without device
code of a kernel, or with RAP_CUDA=off, a torch tensor elsewhere is copied to the host
(without device code a RuntimeWarning says so, once). While a CUDA graph is being captured,
arrays in host memory and calls that must wait for the device are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from . import _C, cuda
from .divergences import CDE_OUTPUTS, TARGETED, CdeResult
from .errors import RapConfigError, RapInputError
from .host import FLOAT64, INT64, Host, default_threads, host_of, integer, is_torch

if _C.CDE_OUTPUTS != len(CDE_OUTPUTS):
    raise ImportError("rap._C was built from other sources than these: build it again")

__all__ = [
    "CDE_OUTPUTS",
    "AceResult",
    "CdeResult",
    "ace",
    "cde",
    "default_threads",
    "drm",
    "linear_cde",
]

_HEADS = {"mean": 0, "max": 1, "each": 2}
_COLUMNS = {"response": 1, "prompt": 2, "all": 3}


class AceResult(NamedTuple):
    """Per sample [S] (``heads="each"``: [S, Hq]); float64."""

    log_psi: Any
    """ln of the confidence psi; -inf when no column has ``min_rows`` rows."""
    position: Any
    """int64: the winning column, counted inside the sample; -1 for none."""
    attention_entropy: Any
    """Mean entropy of the response's attention rows, nats."""
    attention_top: Any
    """Mean mass of the ``top`` largest weights of a row."""
    image_mass: Any
    """Mean mass on image tokens; NaN without ``image_mask``."""
    log_psi_columns: Any
    """ln psi_j for every column [L] ([Hq, L]); -inf where j is no candidate."""


def _place(kernel: str, like: Any, **arrays: Any) -> Host | cuda.Place:
    """Where a call runs: where its arrays are. Answers go where ``like`` is."""
    for x in arrays.values():
        if not (isinstance(x, np.ndarray) or x is None or (is_torch(x) and x.is_cpu)):
            return cuda.place_of(kernel, **arrays) or host_of(like)
    return host_of(like)


@lru_cache
def _plan(want: tuple[str, ...] | None, targeted: bool) -> tuple[tuple[int, ...], int]:
    """(rows of the answer that are wanted, the same as bits)."""
    if want is None:
        want = tuple(n for n in CDE_OUTPUTS if targeted or n not in TARGETED)
    for name in want:
        if name not in CDE_OUTPUTS:
            raise RapConfigError(f"want = {name!r}: expected some of {CDE_OUTPUTS}")
        if name in TARGETED and not targeted:
            raise RapConfigError(f"want = {name!r} needs targets")
    rows = tuple(sorted({CDE_OUTPUTS.index(name) for name in want}))
    return rows, sum(1 << row for row in rows)


def _wanted(want: Sequence[str] | None, targets: Any) -> tuple[tuple[int, ...], int]:
    if want is not None:
        want = (want,) if isinstance(want, str) else tuple(want)
    try:
        return _plan(want, targets is not None)
    except TypeError:  # a name that cannot be hashed is no name
        return _plan.__wrapped__(want, targets is not None)


def _cde_result(
    place: Host | cuda.Place,
    out: Any,
    wanted: tuple[tuple[int, ...], int],
    weights: Any,
    cu_seqlens: Any,
) -> CdeResult:
    if cu_seqlens is not None:
        out = place.means(out, wanted, weights, cu_seqlens)
    elif weights is not None:
        raise RapConfigError("weights need cu_seqlens: they weigh the means per sample")
    answer = place.answer
    fields: list[Any] = [None] * len(CDE_OUTPUTS)
    for row in wanted[0]:
        fields[row] = out[row] if answer is None else answer(out[row])
    return CdeResult._make(fields)


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


def cde(
    logits1: Any,
    logits0: Any,
    *,
    want: Sequence[str] | None = None,
    targets: Any = None,
    weights: Any = None,
    cu_seqlens: Any = None,
    threads: int | None = None,
) -> CdeResult:
    """Divergences between two next-token distributions, row by row.

    logits1, logits0: [T, V], float32, bfloat16 or float16: with the image, and without.
    want: names of ``CdeResult`` to compute; None is all that can be. Only what is asked
    for is computed; ``js`` and ``tv`` cost a second sweep.
    targets: int [T], the tokens that ``logp1`` and ``logp0`` are read for.
    cu_seqlens: int [S + 1]: rows of S samples packed; answers are then means per sample,
    weighted by ``weights`` [T] (>= 0) if given, NaN for a sample without weight.

    -inf logits are tokens outside the support; a NaN or +inf makes its row NaN. Inputs are
    read detached: no gradient flows through the result, ``requires_grad`` or not.
    Raises TypeError (not an array, dtype), RapInputError (shapes, target range, a tensor
    without memory of its own), RapConfigError (unknown ``want``).
    Source: RAP (arXiv 2506.04755) section 3.1; METHOD.md section 1; csrc/cde/cde.h.
    """
    wanted = _wanted(want, targets)
    place = _place("cde", logits1, logits1=logits1, logits0=logits0)
    out = place.empty((len(CDE_OUTPUTS), _rows(logits1)), FLOAT64)
    with place.held(logits1, logits0, targets, weights, cu_seqlens):
        _C.cde(
            place.array("logits1", logits1),
            place.array("logits0", logits0),
            place.integers("targets", targets),
            out,
            wanted[1],
            place.where(threads, _bytes(logits1)),
        )
        return _cde_result(place, out, wanted, weights, cu_seqlens)


def linear_cde(
    hidden1: Any,
    hidden0: Any,
    weight: Any,
    *,
    bias: Any = None,
    scale: float | None = None,
    softcap: float | None = None,
    want: Sequence[str] | None = None,
    targets: Any = None,
    weights: Any = None,
    cu_seqlens: Any = None,
    memory: int | None = None,
    threads: int | None = None,
) -> CdeResult:
    """``cde`` from hidden states and the language-model head; [T, V] is never held whole.

    hidden1, hidden0: [T, E]; weight: [V, E]; bias: [V]; any of float32, bfloat16, float16.
    logits = softcap * tanh(scale * (hidden @ weight.T + bias) / softcap); ``scale`` None
    is 1 (Granite: 1 / logits_scaling; Cohere: logit_scale), ``softcap`` None is none
    (Gemma: final_logit_softcapping). ``want`` that reads one branch only (``logp1``,
    ``entropy1``) multiplies that branch only. memory: bytes of scratch, about, mostly for
    float32 logits of some rows: 64 MiB by default on the host, where only ``js`` and ``tv``
    keep logits, 320 MiB on a device, where rows of both branches are multiplied at once.

    Other arguments, results and errors as ``cde``; inputs, ``weight`` too, are read
    detached: no gradient flows through the result. Source: METHOD.md section 1.
    """
    if softcap is not None and not softcap > 0:
        raise RapConfigError(f"softcap = {softcap!r}: expected None or a number > 0")
    wanted = _wanted(want, targets)
    memory = None if memory is None else integer("memory", memory, 0)
    arrays = {"hidden1": hidden1, "hidden0": hidden0, "weight": weight, "bias": bias}
    place = _place("cde", hidden1, **arrays)
    place.open_blas()
    out = place.empty((len(CDE_OUTPUTS), _rows(hidden1)), FLOAT64)
    with place.held(*arrays.values(), targets, weights, cu_seqlens):
        _C.linear_cde(
            place.array("hidden1", hidden1),
            place.array("hidden0", hidden0),
            place.array("weight", weight),
            place.array("bias", bias, contiguous=True),
            place.integers("targets", targets),
            out,
            1.0 if scale is None else float(scale),
            0.0 if softcap is None else float(softcap),
            place.scratch if memory is None else memory,
            wanted[1],
            place.where(threads, _bytes(weight) * _rows(hidden1)),
        )
        return _cde_result(place, out, wanted, weights, cu_seqlens)


def _choice(name: str, value: object, options: dict[str, int]) -> int:
    if value not in options:
        raise RapConfigError(f"{name} = {value!r}: expected one of {tuple(options)}")
    return options[value]


def _limit(name: str, value: int | None) -> int:
    """None is no limit: 0."""
    return 0 if value is None else integer(name, value)


def ace(
    q: Any,
    k: Any,
    *,
    response_start: Any,
    cu_seqlens: Any = None,
    scale: float | None = None,
    sigma: float = 2.0,
    heads: str = "mean",
    renormalise: bool = False,
    normalise: bool = True,
    min_rows: int = 8,
    window: int | None = None,
    key_window: int | None = None,
    columns: str = "response",
    column_mask: Any = None,
    image_mask: Any = None,
    lse: Any = None,
    top: int = 8,
    stats: bool = True,
    threads: int | None = None,
) -> AceResult:
    """How far one over-attended token dominates a response; never an [L, L] array.

    q: [Hq, L, D], k: [Hkv, L, D] of the last decoder layer after rotary embedding,
    float32, bfloat16 or float16; query head h reads key head h // (Hq / Hkv). One sample,
    or S samples packed along L by ``cu_seqlens`` int [S + 1].
    response_start: int or [S]: index of the first response token inside its sample.
    scale: of the scores, >= 0; None is D ** -0.5. sigma: scale of the weight in the
    logarithm.
    heads: "mean" or "max" over heads, or "each" head on its own.
    renormalise: divide each row by its sum after the head reduction (OPERA's form).
    normalise: mean of the logarithms over a column's rows; False: their sum (published).
    min_rows: columns seen by fewer response rows are no candidates (published: 1).
    window: at most this many rows of a column, the first ones; None is all.
    key_window: of a sliding-window layer: row i attends to keys j > i - key_window, and a
    column's rows are those that can see it; None is a full causal layer.
    columns: candidates among "response", "prompt" or "all"; column_mask: bool [L], False
    takes a column out (template and special tokens).
    image_mask: bool [L]: image tokens, for ``image_mass``.
    lse: float32 or float64 [Hq, L]: log-sum-exp of each row's scaled scores, if known;
    with heads="each" and stats=False the cost then falls from O(L^2 D) to O(L D).
    top: how many largest weights ``attention_top`` adds up, 1 to 64.
    stats: False leaves entropy, top and image mass out (NaN) and saves their cost.

    A response without a candidate column (shorter than min_rows) has log_psi = -inf; NaN
    in q or k gives NaN. Head-mean weights below 2^-126 count as 2^-126. Inputs are read
    detached: no gradient flows through the result.
    Raises TypeError (not an array, dtype), RapInputError (shapes, offsets, a tensor without
    memory of its own), RapConfigError (an option's value).
    Source: RAP (arXiv 2506.04755) section 3.2; METHOD.md section 2; csrc/ace/ace.h.
    """
    if len(getattr(q, "shape", ())) != 3 or len(getattr(k, "shape", ())) != 3:
        raise RapInputError("q and k: expected arrays [heads, L, D]")
    hq, total, dim = q.shape
    options = (
        float(dim**-0.5 if scale is None else scale),
        float(sigma),
        integer("min_rows", min_rows),
        _limit("window", window),
        _limit("key_window", key_window),
        _choice("heads", heads, _HEADS),
        _choice("columns", columns, _COLUMNS),
        integer("top", top),
        bool(renormalise),
        bool(normalise),
        bool(stats),
    )
    place = _place("ace", q, q=q, k=k, lse=lse)
    place.open_blas()
    cu, start, samples = _samples(place, cu_seqlens, response_start, total)
    fields = (hq,) if heads == "each" else ()
    summary = place.empty((4, samples, *fields), FLOAT64)
    position = place.empty((samples, *fields), INT64)
    psi = place.empty((*fields, total), FLOAT64)
    with place.held(q, k, column_mask, image_mask, lse):
        _C.ace(
            place.array("q", q),
            place.array("k", k),
            cu,
            start,
            place.mask("column_mask", column_mask),
            place.mask("image_mask", image_mask),
            place.array("lse", lse),
            summary,
            position,
            psi,
            options,
            place.where(threads, hq * total * total * dim),
        )
    log_psi, entropy, mass, image = (summary[i] for i in range(4))
    values = (log_psi, position, entropy, mass, image, psi)
    return AceResult(*(values if place.answer is None else map(place.answer, values)))


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


def drm(
    difficulty: Any,
    k: int,
    *,
    eligible: Any = None,
    gain: Any = None,
    threads: int | None = None,
) -> Any:
    """Indices of the k hardest samples that can still be solved.

    difficulty: [N] (1 - pass rate); candidates have 0 < difficulty < 1, are ``eligible``
    (bool [N]) and have a ``gain`` [N] that is not NaN. Order: difficulty down, gain (D of
    CDE) down, index up: total, hence deterministic. N up to 10^8 and beyond.

    Returns int64 [<= k], hardest first. Raises TypeError (dtype), RapInputError (shapes, a
    tensor without memory of its own), RapConfigError (k, threads).
    Source: RAP (arXiv 2506.04755) section 3.3; METHOD.md section 3.
    """
    k = integer("k", k, 0)
    place = _place("drm", difficulty, difficulty=difficulty, gain=gain)
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
    return out[:found] if place.answer is None else place.answer(out[:found])
