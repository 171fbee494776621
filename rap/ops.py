"""The kernels for Python: rap.cde, rap.linear_cde, rap.ace, rap.drm.

Arrays come in as NumPy, torch or any other DLPack producer; float32, bfloat16 or float16
are read where they lie (a copy is made only when the last dimension is not contiguous).
Answers come back in the caller's framework and on its device: NumPy in, NumPy out; torch
in, torch out. The GIL is released; Ctrl-C is obeyed inside long calls; the bits do not
depend on ``threads``.

A call runs where its arrays are. On a CUDA device (torch, CuPy, any DLPack producer) it is
queued on the producer's current stream and waits for nothing, except ``drm`` (its length
depends on the data) and ``ace`` for offsets that are on the device: the host plans by them.
``threads`` and ``memory`` say nothing there. Of others than torch, integers must be int64
there and scores and weights contiguous float32 or float64. Targets, offsets and weights of
cde that are on the device are not checked: what is out of range makes NaN. In a build
without CUDA kernels of a room, or with RAP_CUDA=off, a torch tensor elsewhere is copied to
the host.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from . import _C, cuda
from .cuda import is_torch as _is_torch
from .errors import RapConfigError, RapInputError

CDE_OUTPUTS = (
    "kl",
    "rkl",
    "jeffreys",
    "js",
    "tv",
    "hellinger2",
    "entropy1",
    "entropy0",
    "logp1",
    "logp0",
)
_TARGETED = ("logp1", "logp0")
_HEADS = {"mean": 0, "max": 1, "each": 2}
_FLOAT64 = np.dtype(np.float64)
_COLUMNS = {"response": 1, "prompt": 2, "all": 3}


# tuples, not dataclasses: a call on small arrays costs as much as making a frozen one
class CdeResult(NamedTuple):
    """Per row [T], or per sample [S] with ``cu_seqlens``; float64, nats. None: not asked
    for."""

    kl: Any = None
    """KL(p1 || p0), p1 from logits1: the distribution with the image."""
    rkl: Any = None
    """KL(p0 || p1)."""
    jeffreys: Any = None
    """kl + rkl."""
    js: Any = None
    """Jensen-Shannon divergence, at most ln 2."""
    tv: Any = None
    """Total variation, at most 1."""
    hellinger2: Any = None
    """Squared Hellinger distance 1 - sum sqrt(p1 p0), at most 1."""
    entropy1: Any = None
    entropy0: Any = None
    logp1: Any = None
    """Log-probability of the target token under p1."""
    logp0: Any = None


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


def default_threads() -> int:
    """RAP_NUM_THREADS, else torch's own number if torch is loaded, else the processors
    this process may use."""
    text = os.environ.get("RAP_NUM_THREADS")
    if text:
        try:
            return max(1, int(text))
        except ValueError:
            raise RapConfigError(
                f"RAP_NUM_THREADS = {text!r}: expected an integer"
            ) from None
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "get_num_threads"):
        return max(1, torch.get_num_threads())
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


def _threads(threads: int | None, work: int) -> int:
    if threads is None:
        # _C stays on one thread below GIL_BYTES: asking the environment costs 2 us
        return default_threads() if work >= _C.GIL_BYTES else 1
    return min(_integer("threads", threads), 256)


def _as_is(x: Any) -> bool:
    """Whether _C can view x where it lies: an array in host memory, NumPy's or torch's,
    contiguous. A quick way past `cuda.place_of` and `_input`, which cost a call on small
    arrays two microseconds."""
    if isinstance(x, np.ndarray):
        return x.flags.carray
    if not _is_torch(x) or x.requires_grad or x.is_neg():
        return False
    return x.is_cpu and x.is_contiguous()


def _input(x: Any, contiguous: bool = False) -> Any:
    """What _C can view: torch tensors detached, the last dimension contiguous (all of
    them if asked)."""
    if isinstance(x, np.ndarray):
        dense, aligned = x.flags.c_contiguous, x.flags.aligned
        bad = not dense and x.shape[-1] > 1 and x.strides[-1] != x.itemsize
        if bad or (contiguous and not dense) or not aligned:
            x = x.copy()  # ascontiguousarray keeps an array that is only unaligned
        return x
    if _is_torch(x):
        x = x.detach() if x.requires_grad else x
        x = x if x.is_cpu else x.cpu()
        x = x.resolve_neg() if x.is_neg() else x  # a lazy minus sign is not in the memory
        dense = x.is_contiguous()
        if not dense and (contiguous or (x.shape[-1] > 1 and x.stride(-1) != 1)):
            x = x.contiguous()
        return x
    if isinstance(x, (list, tuple)):
        raise TypeError("expected an array (NumPy, torch or DLPack), got a list")
    return x


def _device_input(x: Any, place: cuda.Place, contiguous: bool = False) -> Any:
    """What _C can view on the device; torch tensors as ``_input`` has them."""
    if not _is_torch(x):
        return cuda.view(x, place)
    x = x.detach().resolve_neg()
    dense = x.is_contiguous() or (not contiguous and x.shape[-1] == 1)
    return x if dense or (not contiguous and x.stride(-1) == 1) else x.contiguous()


def _own(x: np.ndarray) -> np.ndarray:
    """In memory that is ours. From pinned memory, which the caller may change or free as
    soon as the call returns, the device would copy when it gets to it."""
    return x.copy()


def _device_integers(name: str, x: Any, place: cuda.Place) -> Any:
    if cuda.device_of(x) != place.device:
        raise RapInputError(f"{name} are on another device than the rest")
    if not _is_torch(x):
        return cuda.view(x, place)
    if x.is_floating_point() or x.is_complex() or x.dtype == sys.modules["torch"].bool:
        raise RapInputError(f"{name}: expected integers, got {x.dtype}")
    return x.detach().long()


def _device_targets(targets: Any, place: cuda.Place) -> Any:
    """On the device as they are; from the host as int64, to be checked and uploaded."""
    if cuda.device_of(targets) is None:
        return None if targets is None else _own(_host(targets, np.int64, "targets"))
    return _device_integers("targets", targets, place)


def _device_mask(name: str, mask: Any, place: cuda.Place) -> Any:
    """bool [N] on the device as it is; from the host to be uploaded."""
    device = cuda.device_of(mask)
    if device is None:
        return None if mask is None else _own(_host(mask, np.bool_, name))
    if device != place.device:
        raise RapInputError(f"{name} is on another device than the rest")
    if str(getattr(mask, "dtype", "bool")).removeprefix("torch.") != "bool":
        raise RapInputError(f"{name}: expected booleans, got {mask.dtype}")
    return _device_input(mask, place, contiguous=True)


def _host(x: Any, dtype: type, name: str) -> np.ndarray:
    """A small array (offsets, masks, targets, weights) as contiguous NumPy."""
    if _is_torch(x):
        x = x.detach().cpu()
        x = (x.double() if dtype is np.float64 else x).numpy()  # NumPy has no bfloat16
    elif cuda.device_of(x) is not None:
        x = cuda.to_host(x, name)
    array = np.asarray(x)
    if dtype is np.int64 and array.size and array.dtype.kind not in "iu":
        raise RapInputError(f"{name}: expected integers, got {array.dtype}")
    if dtype is np.bool_ and array.dtype != np.bool_:
        raise RapInputError(f"{name}: expected booleans, got {array.dtype}")
    return np.ascontiguousarray(array, dtype=dtype)


def _integer(name: str, value: object, least: int = 1) -> int:
    """A whole number that C can hold."""
    if type(value) is int and least <= value < 2**63:
        return value
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        if least <= value < 2**63:
            return int(value)
    raise RapConfigError(f"{name} = {value!r}: expected an integer >= {least}")


def _answer(like: Any) -> Callable[[np.ndarray], Any] | None:
    """Brings an array into the framework that `like` came from, and on its device; None:
    that is NumPy."""
    if isinstance(like, np.ndarray) or not _is_torch(like):
        return None
    from_numpy = sys.modules["torch"].from_numpy
    return from_numpy if like.is_cpu else lambda x: from_numpy(x).to(like.device)


def _offsets(cu_seqlens: Any, total: int) -> np.ndarray:
    cu = _host(cu_seqlens, np.int64, "cu_seqlens")
    if (
        cu.ndim != 1
        or len(cu) < 1
        or cu[0] != 0
        or cu[-1] != total
        or (np.diff(cu) < 0).any()
    ):
        raise RapInputError(f"cu_seqlens: expected rising integers from 0 to {total}")
    return cu


@lru_cache
def _plan(want: tuple[str, ...] | None, targeted: bool) -> tuple[tuple[int, ...], int]:
    """(rows of the answer that are wanted, the same as bits)."""
    if want is None:
        want = tuple(n for n in CDE_OUTPUTS if targeted or n not in _TARGETED)
    for name in want:
        if name not in CDE_OUTPUTS:
            raise RapConfigError(f"want = {name!r}: expected some of {CDE_OUTPUTS}")
        if name in _TARGETED and not targeted:
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


def _weights(weights: Any, total: int) -> np.ndarray:
    w = _host(weights, np.float64, "weights")
    if w.shape != (total,) or not np.isfinite(w).all() or (w < 0).any():
        raise RapInputError(f"weights: expected finite numbers >= 0, [{total}]")
    return w


def _means(rows: np.ndarray, weights: Any, cu: np.ndarray) -> np.ndarray:
    """Weighted mean of rows [T] over each sample [S]; NaN where weights sum to 0. A row
    of weight 0 says nothing, whatever it holds."""
    if weights is None:
        weighted, w = rows, np.ones(len(rows))
    else:
        w = _weights(weights, len(rows))
        weighted = np.where(w > 0, rows, 0) * w
    # every segment on its own: reduceat would let one sample's inf reach the next
    total = np.array([w[a:b].sum() for a, b in zip(cu[:-1], cu[1:], strict=True)])
    sums = np.array([weighted[a:b].sum() for a, b in zip(cu[:-1], cu[1:], strict=True)])
    out = np.full(len(cu) - 1, np.nan)
    np.divide(sums, total, out=out, where=total > 0)
    return out


def _cde_result(
    out: np.ndarray, wanted: tuple[int, ...], weights: Any, cu_seqlens: Any, like: Any
) -> CdeResult:
    if cu_seqlens is not None:
        cu = _offsets(cu_seqlens, out.shape[1])
    elif weights is not None:
        raise RapConfigError("weights need cu_seqlens: they weigh the means per sample")
    answer = _answer(like)
    fields: list[Any] = [None] * len(CDE_OUTPUTS)
    for row in wanted:
        x = out[row] if cu_seqlens is None else _means(out[row], weights, cu)
        fields[row] = x if answer is None else answer(x)
    return CdeResult._make(fields)


def _device_offsets(cu_seqlens: Any, total: int, place: cuda.Place) -> Any:
    """Checked on the host; on the device as they are."""
    if cuda.device_of(cu_seqlens) is None:
        return _own(_offsets(cu_seqlens, total))
    if len(cu_seqlens.shape) != 1 or cu_seqlens.shape[0] < 1:
        raise RapInputError(f"cu_seqlens: expected rising integers from 0 to {total}")
    return _device_integers("cu_seqlens", cu_seqlens, place)


def _device_weights(weights: Any, total: int, place: cuda.Place) -> Any:
    device = cuda.device_of(weights)
    if device is None:
        return None if weights is None else _own(_weights(weights, total))
    if device != place.device:
        raise RapInputError("weights are on another device than the rest")
    return _device_scores(weights, place)


def _device_cde_result(
    out: Any,
    wanted: tuple[tuple[int, ...], int],
    weights: Any,
    cu_seqlens: Any,
    place: cuda.Place,
) -> CdeResult:
    rows, mask = wanted
    if cu_seqlens is not None:
        total = int(out.shape[1])
        cu = _device_offsets(cu_seqlens, total, place)
        means = place.empty((len(CDE_OUTPUTS), int(cu.shape[0]) - 1), "float64")
        w = _device_weights(weights, total, place)
        _C.cde_means_cuda(out, w, cu, means, mask, place.stream, place.words)
        out = means
    elif weights is not None:
        raise RapConfigError("weights need cu_seqlens: they weigh the means per sample")
    fields: list[Any] = [None] * len(CDE_OUTPUTS)
    for row in rows:
        fields[row] = out[row]
    return CdeResult(*fields)


def _rows(x: Any) -> int:
    try:
        return x.shape[0]
    except (AttributeError, IndexError):  # _C will say what is wrong with it
        return 0


def _bytes(x: Any) -> int:
    """Of an array's elements; a producer that does not say has many."""
    return getattr(x, "nbytes", _C.GIL_BYTES)


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

    -inf logits are tokens outside the support; a NaN or +inf makes its row NaN.
    Raises TypeError (not an array, dtype), RapInputError (shapes, target range),
    RapConfigError (unknown ``want``). Source: method.md section 1; csrc/cde/cde.h.
    """
    wanted, mask = _wanted(want, targets)
    first, second = logits1, logits0
    if not (_as_is(first) and _as_is(second)):
        place = cuda.place_of("cde", logits1=first, logits0=second)
        if place is not None:
            _threads(threads, 0)  # says nothing there, but nonsense is refused
            out = place.empty((len(CDE_OUTPUTS), _rows(first)), "float64")
            with cuda.held(place, first, second, targets, weights, cu_seqlens):
                _C.cde_cuda(
                    _device_input(first, place),
                    _device_input(second, place),
                    _device_targets(targets, place),
                    out,
                    mask,
                    place.stream,
                    place.words,
                )
                return _device_cde_result(out, (wanted, mask), weights, cu_seqlens, place)
        first, second = _input(first), _input(second)
    out = np.empty((len(CDE_OUTPUTS), _rows(first)))
    ids = None if targets is None else _host(targets, np.int64, "targets")
    _C.cde(first, second, ids, out, mask, _threads(threads, _bytes(first)))
    return _cde_result(out, wanted, weights, cu_seqlens, logits1)


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
    memory: int = 64 << 20,
    threads: int | None = None,
) -> CdeResult:
    """``cde`` from hidden states and the language-model head; [T, V] is never held.

    hidden1, hidden0: [T, E]; weight: [V, E]; bias: [V]; any of float32, bfloat16, float16.
    logits = softcap * tanh(scale * (hidden @ weight.T + bias) / softcap); ``scale`` None
    is 1 (Granite: 1 / logits_scaling; Cohere: logit_scale), ``softcap`` None is none
    (Gemma: final_logit_softcapping). memory: bytes of scratch, about.

    Other arguments, answers and errors as ``cde``. Source: method.md section 1.
    """
    if softcap is not None and not softcap > 0:
        raise RapConfigError(f"softcap = {softcap!r}: expected None or a number > 0")
    wanted, mask = _wanted(want, targets)
    memory = _integer("memory", memory, 0)
    scale = 1.0 if scale is None else float(scale)
    softcap = 0.0 if softcap is None else float(softcap)
    arrays = {"hidden1": hidden1, "hidden0": hidden0, "weight": weight, "bias": bias}
    place = cuda.place_of("cde", **arrays)
    if place is not None:
        _threads(threads, 0)  # says nothing there, but nonsense is refused
        cuda.open_cublaslt()
        out = place.empty((len(CDE_OUTPUTS), _rows(hidden1)), "float64")
        with cuda.held(place, *arrays.values(), targets, weights, cu_seqlens):
            _C.linear_cde_cuda(
                *(_device_input(x, place) for x in (hidden1, hidden0, weight)),
                None if bias is None else _device_input(bias, place, contiguous=True),
                _device_targets(targets, place),
                out,
                scale,
                softcap,
                mask,
                place.stream,
                place.words,
            )
            return _device_cde_result(out, (wanted, mask), weights, cu_seqlens, place)
    first, second = _input(hidden1), _input(hidden0)
    if bias is not None:
        bias = _input(bias, contiguous=True)
    out = np.empty((len(CDE_OUTPUTS), _rows(first)))
    ids = None if targets is None else _host(targets, np.int64, "targets")
    _C.linear_cde(
        first,
        second,
        _input(weight),
        bias,
        ids,
        out,
        scale,
        softcap,
        memory,
        mask,
        _threads(threads, _bytes(weight) * _rows(first)),
    )
    return _cde_result(out, wanted, weights, cu_seqlens, hidden1)


def _choice(name: str, value: object, options: dict[str, int]) -> int:
    if value not in options:
        raise RapConfigError(f"{name} = {value!r}: expected one of {tuple(options)}")
    return options[value]


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
    in q or k gives NaN. Head-mean weights below 2^-126 count as 2^-126.
    Raises TypeError, RapInputError, RapConfigError. Source: method.md section 2, RAP
    (arXiv 2506.04755) section 3.2; csrc/ace/ace.h.
    """
    if len(getattr(q, "shape", ())) != 3 or len(getattr(k, "shape", ())) != 3:
        raise RapInputError("q and k: expected arrays [heads, L, D]")
    hq, total, dim = q.shape
    if cu_seqlens is None:
        cu, samples = None, 1
    else:
        cu = _host(cu_seqlens, np.int64, "cu_seqlens")
        samples = max(0, cu.size - 1)
    start = response_start
    if cu is not None or type(start) is not int:
        start = _host(start, np.int64, "response_start")
        start = np.full(samples, start) if np.ndim(response_start) == 0 else start
    fields = (hq,) if heads == "each" else ()
    shape = (samples, *fields)
    options = (
        float(dim**-0.5 if scale is None else scale),
        float(sigma),
        _integer("min_rows", min_rows),
        0 if window is None else _integer("window", window),
        0 if key_window is None else _integer("key_window", key_window),
        _choice("heads", heads, _HEADS),
        _choice("columns", columns, _COLUMNS),
        _integer("top", top),
        bool(renormalise),
        bool(normalise),
        bool(stats),
    )
    first, second = q, k
    if not (_as_is(q) and _as_is(k) and (lse is None or _as_is(lse))):
        place = cuda.place_of("ace", q=q, k=k, lse=lse)
        if place is not None:
            _threads(threads, 0)  # says nothing there, but nonsense is refused
            masks = {"column_mask": column_mask, "image_mask": image_mask}
            # the host plans by the offsets more than once: from a copy nobody changes
            offsets = (_own(x) if isinstance(x, np.ndarray) else x for x in (cu, start))
            inputs = (_device_input(q, place), _device_input(k, place), *offsets)
            inputs += tuple(_device_mask(name, x, place) for name, x in masks.items())
            inputs += (None if lse is None else _device_input(lse, place),)
            with cuda.held(place, q, k, column_mask, image_mask, lse):
                return _ace_on_device(inputs, shape, (*fields, total), options, place)
        first, second = _input(q), _input(k)
        lse = None if lse is None else _input(lse)
    summary = np.empty((4, *shape))
    position = np.empty(shape, np.int64)
    psi = np.empty((*fields, total))
    _C.ace(
        first,
        second,
        cu,
        start,
        None if column_mask is None else _host(column_mask, np.bool_, "column_mask"),
        None if image_mask is None else _host(image_mask, np.bool_, "image_mask"),
        lse,
        summary,
        position,
        psi,
        *options,
        _threads(threads, hq * total * total * dim),
    )
    log_psi, entropy, mass, image = summary
    values = (log_psi, position, entropy, mass, image, psi)
    answer = _answer(q)
    return AceResult(*(values if answer is None else map(answer, values)))


def _ace_on_device(
    inputs: tuple[Any, ...],
    shape: tuple[int, ...],
    columns: tuple[int, ...],
    options: tuple[Any, ...],
    place: cuda.Place,
) -> AceResult:
    cuda.open_cublaslt()
    summary = place.empty((4, *shape), "float64")
    position = place.empty(shape, "int64")
    psi = place.empty(columns, "float64")
    _C.ace_cuda(*inputs, summary, position, psi, *options, place.stream, place.words)
    log_psi, entropy, mass, image = (summary[i] for i in range(4))
    return AceResult(log_psi, position, entropy, mass, image, psi)


def _scores(x: Any) -> Any:
    """float32 and float64 as they are, anything else as float64."""
    if _is_torch(x):
        torch = sys.modules["torch"]
        x = x if x.dtype in (torch.float32, torch.float64) else x.to(torch.float64)
        return _input(x, contiguous=True)
    x = np.asarray(x)
    if x.dtype is not _FLOAT64 and x.dtype != np.float32:
        if x.dtype.kind == "O":
            raise TypeError("expected numbers, got an array of objects")
        x = x.astype(np.float64)
    return _input(x, contiguous=True)


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

    Returns int64 [<= k], hardest first. Raises TypeError, RapInputError, RapConfigError.
    Source: method.md section 3, RAP (arXiv 2506.04755) section 3.3.
    """
    k = _integer("k", k, 0)
    place = None
    if not (_as_is(difficulty) and (gain is None or _as_is(gain))):
        place = cuda.place_of("drm", difficulty=difficulty, gain=gain)
    if place is not None:
        _threads(threads, 0)  # says nothing there, but nonsense is refused
        return _drm_on_device(difficulty, k, gain, eligible, place)
    scores = _scores(difficulty)
    if len(scores.shape) != 1:
        raise RapInputError(f"difficulty: expected [N], got {len(scores.shape)} dimensions")
    out = np.empty(min(k, int(scores.shape[0])), np.int64)
    found = _C.drm(
        scores,
        None if gain is None else _scores(gain),
        None if eligible is None else _host(eligible, np.bool_, "eligible"),
        out,
        _threads(threads, 8 * int(scores.shape[0])),
    )
    answer = _answer(difficulty)
    return out[:found] if answer is None else answer(out[:found])


def _device_scores(x: Any, place: cuda.Place) -> Any:
    """As ``_scores``; what is not torch must be float32 or float64 already."""
    if _is_torch(x) and str(x.dtype) not in ("torch.float32", "torch.float64"):
        x = x.double()
    return _device_input(x, place, contiguous=True)


def _drm_on_device(
    difficulty: Any, k: int, gain: Any, eligible: Any, place: cuda.Place
) -> Any:
    if len(difficulty.shape) != 1:
        n = len(difficulty.shape)
        raise RapInputError(f"difficulty: expected [N], got {n} dimensions")
    out = place.empty((min(k, int(difficulty.shape[0])),), "int64")
    found = _C.drm_cuda(
        _device_scores(difficulty, place),
        None if gain is None else _device_scores(gain, place),
        _device_mask("eligible", eligible, place),
        out,
        place.stream,
        place.words,
    )
    return out[:found]
