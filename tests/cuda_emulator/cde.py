"""cde and linear_cde on the emulated device: what csrc/cde/cde_cuda.c does, in Python."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np

from rap import ops

from .emulator import F32, Device, Params, Pointer, dtype_code

_i64, _i32, _u32, _f32 = ctypes.c_int64, ctypes.c_int32, ctypes.c_uint32, ctypes.c_float


class CdeParams(Params):
    _fields_ = [
        ("l1", Pointer), ("l0", Pointer), ("targets", Pointer), ("out", Pointer),
        ("stride1", _i64), ("stride0", _i64), ("target_stride", _i64),
        ("out_stride", _i64), ("rows", _i64), ("columns", _i64),
        ("dtype1", _i32), ("dtype0", _i32), ("want", _u32), ("unused", _u32),
    ]  # fmt: skip


class MapParams(Params):
    _fields_ = [
        ("products", Pointer), ("bias", Pointer), ("stride", _i64), ("bias_stride", _i64),
        ("rows", _i64), ("columns", _i64), ("scale", _f32), ("softcap", _f32),
        ("bias_dtype", _i32), ("unused", _i32),
    ]  # fmt: skip


class MeansParams(Params):
    _fields_ = [
        ("answers", Pointer), ("weights", Pointer), ("cu_seqlens", Pointer),
        ("out", Pointer), ("answers_stride", _i64), ("weight_stride", _i64),
        ("cu_stride", _i64), ("out_stride", _i64), ("rows", _i64), ("samples", _i64),
        ("weight_dtype", _i32), ("want", _u32),
    ]  # fmt: skip


def _answer(out: np.ndarray, wanted: tuple[int, ...]) -> dict[str, np.ndarray]:
    return {ops.CDE_OUTPUTS[row]: out[row] for row in wanted}


def cde(
    l1: Any,
    l0: Any,
    *,
    targets: Any = None,
    want: Sequence[str] | None = None,
    grid: int | None = None,
    block: int = 256,
    **run: Any,
) -> dict[str, np.ndarray]:
    """As ``rap.cde``; l1, l0 may be rows of a wider array (``stride`` from their shape)."""
    wanted, mask = ops._wanted(want, targets)
    device = Device()
    rows, vocab = l1.shape
    out = device.empty((len(ops.CDE_OUTPUTS), rows), np.float64)
    params = CdeParams(
        l1=device.put(l1), l0=device.put(l0), out=out, stride1=vocab, stride0=vocab,
        targets=device.put(None if targets is None else np.asarray(targets, np.int64)),
        target_stride=1, out_stride=rows, rows=rows, columns=vocab,
        dtype1=dtype_code(l1), dtype0=dtype_code(l0), want=mask,
    )  # fmt: skip
    device.launch("rap_cde_rows", params, grid or rows, block)
    device.run(**run)
    return _answer(device.get(out), wanted)


def linear_cde(
    products1: np.ndarray,
    products0: np.ndarray,
    *,
    bias: Any = None,
    scale: float = 1.0,
    softcap: float = 0.0,
    targets: Any = None,
    want: Sequence[str] | None = None,
    ld: int | None = None,
    block: int = 256,
    **run: Any,
) -> dict[str, np.ndarray]:
    """From hidden @ weight.T in float32 (what cuBLASLt leaves): one block of rows, both
    branches in one buffer of rows of ``ld`` floats."""
    wanted, mask = ops._wanted(want, targets)
    device = Device()
    rows, vocab = products1.shape
    ld = ld or -(-vocab // 64) * 64
    both = np.full((2 * rows, ld), np.nan, np.float32)  # workspace as it comes
    both[:rows, :vocab], both[rows:, :vocab] = products1, products0
    products = device.put(both)
    out = device.empty((len(ops.CDE_OUTPUTS), rows), np.float64)
    if bias is not None or scale != 1 or softcap:
        change = MapParams(
            products=products, bias=device.put(bias), stride=ld, bias_stride=1,
            rows=2 * rows, columns=vocab, scale=scale, softcap=softcap,
            bias_dtype=0 if bias is None else dtype_code(bias),
        )  # fmt: skip
        device.launch("rap_cde_map", change, 2, block)
    params = CdeParams(
        l1=products, l0=products + 4 * rows * ld, out=out, stride1=ld, stride0=ld,
        targets=device.put(None if targets is None else np.asarray(targets, np.int64)),
        target_stride=1, out_stride=rows, rows=rows, columns=vocab, dtype1=F32, dtype0=F32,
        want=mask,
    )  # fmt: skip
    device.launch("rap_cde_rows", params, rows, block)
    device.run(**run)
    return _answer(device.get(out), wanted)


def means(
    answers: np.ndarray,
    weights: np.ndarray | None,
    cu_seqlens: np.ndarray,
    *,
    want: int = (1 << len(ops.CDE_OUTPUTS)) - 1,
    grid: int | None = None,
    block: int = 256,
    **run: Any,
) -> np.ndarray:
    """Of rows [OUTPUTS, T] over each sample: [OUTPUTS, S]."""
    device = Device()
    rows, samples = answers.shape[1], len(cu_seqlens) - 1
    out = device.empty((len(ops.CDE_OUTPUTS), samples), np.float64)
    params = MeansParams(
        answers=device.put(answers), weights=device.put(weights), out=out,
        cu_seqlens=device.put(np.asarray(cu_seqlens, np.int64)), answers_stride=rows,
        weight_stride=1, cu_stride=1, out_stride=samples, rows=rows, samples=samples,
        weight_dtype=0 if weights is None else dtype_code(weights), want=want,
    )  # fmt: skip
    device.launch("rap_cde_means", params, grid or samples, block)
    device.run(**run)
    return device.get(out)
