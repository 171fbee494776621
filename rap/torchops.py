"""The kernels as operators of torch: ``torch.ops.rap.cde``, ``linear_cde``, ``ace`` and
``drm``.

``rap.cde`` and its kin call them by themselves inside ``torch.compile`` and
``torch.export``, where they break no graph, and of meta tensors; ``import rap.torchops``
registers them for a call by name, with the defaults of ``rap.cde`` and its kin. Each has a
shape function, so that fake and meta tensors pass: nothing but the shape is known of them,
so that of what they hold nothing is checked.

No kernel has a gradient, and none is left out silently: what comes of tensors that require
one carries a node that raises RapInputError by name when a gradient reaches it. The length
of ``drm``'s answer depends on the data: in a compiled function it needs, as torch.nonzero
does, ``torch._dynamo.config.capture_dynamic_output_shape_ops = True``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import kernels
from .divergences import CDE_OUTPUTS
from .errors import RapConfigError, RapInputError
from .kernels import AceOptions, Means

if TYPE_CHECKING:
    from torch._library.custom_ops import CustomOpDef

DETACH = (
    "has no gradient: it measures and is no loss. Detach what it is given, or call it "
    "under torch.no_grad()"
)


class Ungraded(torch.autograd.Function):
    """Passes values on that stem from ``anchor``, which requires a gradient."""

    @staticmethod
    def forward(ctx: Any, kernel: str, anchor: Tensor, *values: Tensor) -> Any:
        ctx.kernel = kernel
        return tuple(x.view_as(x) for x in values)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise RapInputError(f"rap.{ctx.kernel} {DETACH}")


def ungraded(kernel: str, anchor: Tensor, values: Sequence[Any]) -> list[Any]:
    """``values`` that raise when a gradient reaches them; integers as they are."""
    floats = [i for i, x in enumerate(values) if x.is_floating_point()]
    out = list(values)
    passed = Ungraded.apply(kernel, anchor, *(values[i] for i in floats))
    for i, x in zip(floats, passed, strict=True):
        out[i] = x
    return out


# ---------------------------------------------------------------- operators


def _bits(want: int | None, targets: Tensor | None) -> kernels.Wanted:
    """None: all that can be. Raises RapConfigError for bits of no output, and of one that
    needs targets."""
    if want is None:
        return kernels.plan(None, targets is not None)
    if not 0 < want < 1 << len(CDE_OUTPUTS):
        raise RapConfigError(f"want = {want}: expected bits of {len(CDE_OUTPUTS)} outputs")
    names = tuple(name for i, name in enumerate(CDE_OUTPUTS) if want >> i & 1)
    return kernels.plan(names, targets is not None)


def _cde_shape(lead: Sequence[Any], cu_seqlens: Tensor | None) -> tuple[Any, ...]:
    return tuple(lead) if cu_seqlens is None else (cu_seqlens.shape[0] - 1,)


# Written out: what torch infers from annotations that are text depends on its version.
# The defaults are those of rap.cde and its kin; torch leaves out what equals one, so that
# the functions below have them, too.
_MEANS = (
    "Tensor? targets=None, Tensor? weights=None, Tensor? cu_seqlens=None, "
    "SymInt? ignore_index=-100, SymInt? want=None"
)


def _operator(
    name: str, arguments: str, result: str
) -> Callable[[Callable[..., object]], CustomOpDef]:
    """A decorator: `torch.library.custom_op`; threads comes last in every operator."""
    schema = f"({arguments}, SymInt? threads=None) -> {result}"
    return torch.library.custom_op(f"rap::{name}", mutates_args=(), schema=schema)


@_operator("cde", f"Tensor logits1, Tensor logits0, {_MEANS}", "Tensor")
def cde_op(
    logits1: Tensor,
    logits0: Tensor,
    targets: Tensor | None = None,
    weights: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    ignore_index: int | None = -100,
    want: int | None = None,
    threads: int | None = None,
) -> Tensor:
    """float64 [n, T], [n, B, T] or [n, S]: the n outputs whose bits are set in ``want``, in
    the order of ``rap.divergences.CDE_OUTPUTS``; None is all that can be. Arguments and
    defaults as ``rap.cde``."""
    means = Means(weights, cu_seqlens, ignore_index)
    with torch.no_grad():
        wanted = _bits(want, targets)
        rows = kernels.cde(logits1, logits0, targets, means, wanted, threads)
        return torch.stack(rows)


@cde_op.register_fake
def _(
    logits1: Tensor,
    logits0: Tensor,
    targets: Tensor | None = None,
    weights: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    ignore_index: int | None = -100,
    want: int | None = None,
    threads: int | None = None,
) -> Tensor:
    shape = _cde_shape(logits1.shape[:-1], cu_seqlens)
    n = len(_bits(want, targets)[0])
    return logits1.new_empty((n, *shape), dtype=torch.float64)


@_operator(
    "linear_cde",
    "Tensor hidden1, Tensor hidden0, Tensor weight, Tensor? bias=None, float? scale=None, "
    f"float? softcap=None, SymInt? memory=None, {_MEANS}",
    "Tensor",
)
def linear_cde_op(
    hidden1: Tensor,
    hidden0: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    memory: int | None = None,
    targets: Tensor | None = None,
    weights: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    ignore_index: int | None = -100,
    want: int | None = None,
    threads: int | None = None,
) -> Tensor:
    """As ``rap::cde``, of ``rap.linear_cde``."""
    means = Means(weights, cu_seqlens, ignore_index)
    options = scale, softcap, memory
    with torch.no_grad():
        rows = kernels.linear_cde(
            *(hidden1, hidden0, weight, bias, options),
            *(targets, means, _bits(want, targets), threads),
        )
        return torch.stack(rows)


@linear_cde_op.register_fake
def _(
    hidden1: Tensor,
    hidden0: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    memory: int | None = None,
    targets: Tensor | None = None,
    weights: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    ignore_index: int | None = -100,
    want: int | None = None,
    threads: int | None = None,
) -> Tensor:
    shape = _cde_shape(hidden1.shape[:-1], cu_seqlens)
    n = len(_bits(want, targets)[0])
    return hidden1.new_empty((n, *shape), dtype=torch.float64)


def _options(
    dim: int, numbers: Sequence[float] | None, flags: Sequence[int] | None
) -> AceOptions:
    """What is None is as in ``rap.ace``."""
    usual = kernels.ace_options(
        *(dim, None, 2.0, 8, (None, None), "mean", "response", 8), (False, True, True)
    )
    numbers = usual[:2] if numbers is None else numbers
    flags = [int(x) for x in usual[2:]] if flags is None else flags
    if len(numbers) != 2 or len(flags) != 9:
        raise RapConfigError(
            f"expected numbers [2] and flags [9], got {len(numbers)} and {len(flags)}: the "
            "fields of rap.kernels.AceOptions"
        )
    least, window, key_window, heads, columns, top, *switches = flags
    renormalise, normalise, stats = map(bool, switches)
    return AceOptions(
        *(numbers[0], numbers[1], least, window, key_window, heads, columns, top),
        *(renormalise, normalise, stats),
    )


@_operator(
    "ace",
    "Tensor q, Tensor k, Tensor response_start, Tensor? cu_seqlens=None, "
    "Tensor? column_mask=None, Tensor? image_mask=None, Tensor? lse=None, "
    "float[]? numbers=None, SymInt[]? flags=None",
    "(Tensor, Tensor, Tensor)",
)
def ace_op(
    q: Tensor,
    k: Tensor,
    response_start: Tensor,
    cu_seqlens: Tensor | None = None,
    column_mask: Tensor | None = None,
    image_mask: Tensor | None = None,
    lse: Tensor | None = None,
    numbers: Sequence[float] | None = None,
    flags: Sequence[int] | None = None,
    threads: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(summary [4, S]: log_psi, attention_entropy, attention_top, image_mass; position [S];
    log_psi_columns [L]). numbers, flags: the fields of ``kernels.AceOptions``, scale and
    sigma, and the rest; None is as in ``rap.ace``. response_start: int64 [S]."""
    q, k = kernels.heads_of("q", q), kernels.heads_of("k", k)
    masks = column_mask, image_mask
    options = _options(q.shape[2], numbers, flags)
    with torch.no_grad():
        return kernels.ace(q, k, response_start, cu_seqlens, masks, lse, options, threads)


@ace_op.register_fake
def _(
    q: Tensor,
    k: Tensor,
    response_start: Tensor,
    cu_seqlens: Tensor | None = None,
    column_mask: Tensor | None = None,
    image_mask: Tensor | None = None,
    lse: Tensor | None = None,
    numbers: Sequence[float] | None = None,
    flags: Sequence[int] | None = None,
    threads: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    samples = 1 if cu_seqlens is None else cu_seqlens.shape[0] - 1
    each = _options(q.shape[2], numbers, flags).heads == kernels.HEADS["each"]
    heads = (q.shape[0],) if each else ()
    return (
        q.new_empty((4, samples, *heads), dtype=torch.float64),
        q.new_empty((samples, *heads), dtype=torch.int64),
        q.new_empty((*heads, q.shape[1]), dtype=torch.float64),
    )


@_operator(
    "drm",
    "Tensor difficulty, SymInt k, Tensor? eligible=None, Tensor? gain=None",
    "Tensor",
)
def drm_op(
    difficulty: Tensor,
    k: int,
    eligible: Tensor | None = None,
    gain: Tensor | None = None,
    threads: int | None = None,
) -> Tensor:
    """int64 [<= k], as ``rap.drm``."""
    return kernels.drm(difficulty, k, eligible, gain, threads).clone()


@drm_op.register_fake
def _(
    difficulty: Tensor,
    k: int,
    eligible: Tensor | None = None,
    gain: Tensor | None = None,
    threads: int | None = None,
) -> Tensor:
    found = torch.library.get_ctx().new_dynamic_size()
    return difficulty.new_empty((found,), dtype=torch.int64)


@torch.library.custom_op(
    "rap::no_gradient",
    mutates_args=(),
    schema="(Tensor gradient, Tensor of, str kernel) -> Tensor",
)
def no_gradient(gradient: Tensor, of: Tensor, kernel: str) -> Tensor:
    """Raises RapInputError: part of a backward graph, which may be traced and never run.
    It takes the incoming gradient, so that it is no part of the forward graph."""
    raise RapInputError(f"rap.{kernel} {DETACH}")


@no_gradient.register_fake
def _(gradient: Tensor, of: Tensor, kernel: str) -> Tensor:
    return torch.empty_like(of)


def _refuse_gradients(op: Any, kernel: str) -> None:
    def remember(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        needed = [isinstance(x, Tensor) and x.requires_grad for x in inputs]
        ctx.needed = needed
        ctx.save_for_backward(*(x for x, n in zip(inputs, needed, strict=True) if n))

    def backward(ctx: Any, *gradients: Any) -> Any:
        gradient = next(g for g in gradients if g is not None)
        saved = iter(ctx.saved_tensors)
        return tuple(
            no_gradient(gradient, next(saved), kernel) if needed else None
            for needed in ctx.needed
        )

    op.register_autograd(backward, setup_context=remember)


for _op, _name in ((cde_op, "cde"), (linear_cde_op, "linear_cde"), (ace_op, "ace")):
    _refuse_gradients(_op, _name)


# ---------------------------------------------------------------- calls in compiled code


def _tensor(x: Any) -> Any:
    return x if x is None or isinstance(x, Tensor) else torch.as_tensor(x)


def _numbers(x: Any) -> Any:
    """As `_tensor`; lists of numbers in float64, as outside of compiled code."""
    if isinstance(x, (list, tuple)):
        return torch.as_tensor(x, dtype=torch.float64)
    return _tensor(x)


def cde(
    logits1: Any, logits0: Any, targets: Any, means: Means, want: int, threads: int | None
) -> Sequence[Tensor]:
    """`kernels.cde` as an operator."""
    found = cde_op(
        *(_numbers(logits1), _numbers(logits0), _tensor(targets), _numbers(means.weights)),
        *(_tensor(means.cu_seqlens), means.ignore_index, want, threads),
    )
    return found.unbind(0)


def linear_cde(
    hidden1: Any,
    hidden0: Any,
    weight: Any,
    bias: Any,
    options: tuple[float | None, float | None, int | None],
    targets: Any,
    means: Means,
    want: int,
    threads: int | None,
) -> Sequence[Tensor]:
    """`kernels.linear_cde` as an operator."""
    found = linear_cde_op(
        *(*map(_numbers, (hidden1, hidden0, weight, bias)), *options),
        *(_tensor(targets), _numbers(means.weights), _tensor(means.cu_seqlens)),
        *(means.ignore_index, want, threads),
    )
    return found.unbind(0)


def ace(
    q: Any,
    k: Any,
    response_start: Any,
    cu_seqlens: Any,
    masks: tuple[Any, Any],
    lse: Any,
    options: AceOptions,
    threads: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`kernels.ace` as an operator."""
    cu = _tensor(cu_seqlens)
    if isinstance(response_start, int):
        samples = 1 if cu is None else cu.shape[0] - 1
        place = "meta" if isinstance(q, Tensor) and q.is_meta else "cpu"
        response_start = torch.full(
            (samples,), response_start, dtype=torch.int64, device=place
        )
    response_start = _tensor(response_start)
    scale, sigma, *rest = options  # torch.compile of 2.6 cannot slice a NamedTuple
    flags = [int(x) for x in rest]
    return ace_op(
        *(
            _numbers(q),
            _numbers(k),
            response_start,
            cu,
            *map(_tensor, masks),
            _numbers(lse),
        ),
        *([scale, sigma], flags, threads),
    )


def drm(difficulty: Any, k: int, eligible: Any, gain: Any, threads: int | None) -> Tensor:
    """`kernels.drm` as an operator."""
    return drm_op(_numbers(difficulty), k, _tensor(eligible), _numbers(gain), threads)
