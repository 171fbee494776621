"""The kernels for Python: rap.cde, rap.linear_cde, rap.ace, rap.drm.

Arrays come in as NumPy, torch, JAX or any other DLPack producer, or as lists of numbers,
which NumPy makes an array of; float32, bfloat16 or float16 are read where they lie (a copy
is made only when the last dimension is not contiguous), float64 of NumPy, torch, JAX and
lists is rounded to float32. Answers come back in the
caller's framework and on its device: NumPy in, NumPy out; torch in, torch out; JAX in host
memory in, JAX out, in float32 unless jax_enable_x64 is set. A tensor without memory of its
own (DTensor, quantised weights, sparse) is a RapInputError; of meta tensors cde, linear_cde
and ace give meta tensors of the right shapes.

No kernel has a gradient: where torch would expect one of an answer (a tensor requires it,
no torch.no_grad), the answer raises RapInputError by name when a gradient reaches it.
Inside torch.compile and torch.export the calls are operators, ``torch.ops.rap``, that break
no graph: see ``rap.torchops``.
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

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from . import kernels
from .divergences import CDE_OUTPUTS, CdeResult
from .host import default_threads, is_torch
from .kernels import Means, Wanted
from .kernels import wanted as _wanted

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


class AceResult(NamedTuple):
    """Per sample [S] (``heads="each"``: [S, Hq]); float64."""

    log_psi: Any
    """ln of the confidence psi; -inf when no column has ``min_rows`` rows."""
    position: Any
    """int64: the winning column, counted inside the sample; -1 for none."""
    attention_entropy: Any
    """Mean entropy of the response's attention rows, nats; NaN, as the next two, for an
    empty response."""
    attention_top: Any
    """Mean mass of the ``top`` largest weights of a row."""
    image_mass: Any
    """Mean mass on image tokens; NaN without ``image_mask``."""
    log_psi_columns: Any
    """ln psi_j for every column [L] ([Hq, L]); -inf where j is no candidate."""

    def to_dict(self) -> dict[str, Any]:
        """{name: values}, in the caller's framework."""
        return self._asdict()


def _traced(*arrays: Any) -> bool:
    """Whether torch.compile or torch.export is tracing this call, or ``arrays`` are given
    and all meta tensors, so that nothing but shapes can be answered."""
    torch = sys.modules.get("torch")
    if torch is None:
        return False
    if torch.compiler.is_compiling():
        return True
    return bool(arrays) and all(is_torch(x) and x.is_meta for x in arrays)


def _graded(*arrays: Any) -> Any:
    """The first tensor whose gradient torch would look for through this call."""
    if isinstance(arrays[0], np.ndarray):
        return None
    torch = sys.modules.get("torch")
    if torch is None or not torch.is_grad_enabled():
        return None
    return next((x for x in arrays if is_torch(x) and x.requires_grad), None)


def _without_gradient(kernel: str, values: Sequence[Any], *arrays: Any) -> Sequence[Any]:
    """``values`` of ``arrays``; a gradient that reaches them is refused."""
    anchor = _graded(*arrays)
    if anchor is None:
        return values
    from . import torchops

    return torchops.ungraded(kernel, anchor, values)


def _cde_result(wanted: Wanted, values: Sequence[Any]) -> CdeResult:
    fields: list[Any] = [None] * len(CDE_OUTPUTS)
    for row, value in zip(wanted[0], values, strict=True):
        fields[row] = value
    return CdeResult(*fields)


def cde(
    logits1: Any,
    logits0: Any,
    *,
    want: Sequence[str] | None = None,
    targets: Any = None,
    weights: Any = None,
    cu_seqlens: Any = None,
    ignore_index: int | None = -100,
    threads: int | None = None,
) -> CdeResult:
    """Divergences between two next-token distributions, row by row.

    logits1, logits0: [T, V] or [B, T, V], float32, bfloat16, float16 or float64 (whose rows
    are shifted by their maximum, then rounded to float32): with the image, and without. Of
    [B, T, V] targets and weights are [B, T], and so are the answers without cu_seqlens.
    want: names of ``CdeResult`` to compute; None is all that can be. Only what is asked
    for is computed; ``js`` and ``tv`` cost a second sweep.
    targets: int [T], the tokens that ``logp1`` and ``logp0`` are read for.
    cu_seqlens: int [S + 1]: rows of S samples packed; answers are then means per sample,
    weighted by ``weights`` [T] (>= 0) if given, NaN for a sample without weight.
    ignore_index: rows with this target (prompt, padding) do not count in the means; their
    logp1 and logp0 are NaN. None: no target means that. Not known of targets on a device
    that are not torch's.

    -inf logits are tokens outside the support; a NaN or +inf makes its row NaN. A gradient
    that reaches the result is a RapInputError.
    Raises TypeError (not an array, dtype), RapInputError (shapes, target range, a tensor
    without memory of its own), RapConfigError (unknown ``want``).
    Source: RAP (arXiv 2506.04755) section 3.1; METHOD.md section 1; csrc/cde/cde.h.
    """
    means = Means(weights, cu_seqlens, ignore_index)
    if _traced(logits1, logits0):
        from . import torchops

        planned = kernels.plan(kernels.names(want), targets is not None)
        given = logits1, logits0, targets, means, planned[1], threads
        return _cde_result(planned, torchops.cde(*given))
    wanted = _wanted(want, targets)
    values = kernels.cde(logits1, logits0, targets, means, wanted, threads)
    return _cde_result(wanted, _without_gradient("cde", values, logits1, logits0))


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
    ignore_index: int | None = -100,
    memory: int | None = None,
    threads: int | None = None,
) -> CdeResult:
    """``cde`` from hidden states and the language-model head; [T, V] is never held whole.

    hidden1, hidden0: [T, E] or [B, T, E]; weight: [V, E]; bias: [V]; any of float32,
    bfloat16, float16, and float64, which is rounded to float32.
    logits = softcap * tanh(scale * (hidden @ weight.T + bias) / softcap); ``scale`` None
    is 1 (Granite: 1 / logits_scaling; Cohere: logit_scale), ``softcap`` None is none
    (Gemma: final_logit_softcapping). ``want`` that reads one branch only (``logp1``,
    ``entropy1``) multiplies that branch only. memory: bytes of scratch, about, mostly for
    float32 logits of some rows: 64 MiB by default on the host, where only ``js`` and ``tv``
    keep logits, 320 MiB on a device, where rows of both branches are multiplied at once.

    Other arguments, results and errors as ``cde``. Source: METHOD.md section 1.
    """
    means, options = Means(weights, cu_seqlens, ignore_index), (scale, softcap, memory)
    arrays = hidden1, hidden0, weight, bias
    if _traced(hidden1, hidden0, weight):
        from . import torchops

        planned = kernels.plan(kernels.names(want), targets is not None)
        found = torchops.linear_cde(*arrays, options, targets, means, planned[1], threads)
        return _cde_result(planned, found)
    wanted = _wanted(want, targets)
    values = kernels.linear_cde(*arrays, options, targets, means, wanted, threads)
    return _cde_result(wanted, _without_gradient("linear_cde", values, *arrays))


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
    float32, bfloat16, float16, or float64, which is rounded to float32; query head h reads
    key head h // (Hq / Hkv). One sample, or S samples packed along L by ``cu_seqlens`` int
    [S + 1].
    response_start: int or [S]: index of the first response token inside its sample, from 0
    to its length.
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

    A response without a candidate column (shorter than min_rows, or empty) has log_psi =
    -inf, the maximum of nothing, and position = -1; of an empty one (response_start is the
    sample's length) the means over its rows are NaN. NaN in q or k gives NaN. Head-mean
    weights below 2^-126 count as 2^-126. A gradient that reaches the result is a
    RapInputError.
    Raises TypeError (not an array, dtype), RapInputError (shapes, offsets, a tensor without
    memory of its own), RapConfigError (an option's value).
    Source: RAP (arXiv 2506.04755) section 3.2; METHOD.md section 2; csrc/ace/ace.h.
    """
    q, k = kernels.heads_of("q", q), kernels.heads_of("k", k)
    options = kernels.ace_options(
        *(q.shape[2], scale, sigma, min_rows, (window, key_window), heads, columns, top),
        (renormalise, normalise, stats),
    )
    given = response_start, cu_seqlens, (column_mask, image_mask), lse, options, threads
    if _traced(q, k):
        from . import torchops

        return _ace_result(*torchops.ace(q, k, *given))
    values = kernels.ace(q, k, *given)
    return _ace_result(*_without_gradient("ace", values, q, k, lse))


def _ace_result(summary: Any, position: Any, psi: Any) -> AceResult:
    log_psi, entropy, mass, image = (summary[i] for i in range(4))
    return AceResult(log_psi, position, entropy, mass, image, psi)


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
    tensor without memory of its own, values above 1 and none between 0 and 1: percentages),
    RapConfigError (k, threads).
    Source: RAP (arXiv 2506.04755) section 3.3; METHOD.md section 3.
    """
    if _traced():
        from . import torchops

        return torchops.drm(difficulty, k, eligible, gain, threads)
    return kernels.drm(difficulty, k, eligible, gain, threads)
