"""ace on the emulated device: what csrc/ace/ace_cuda.c does, in Python."""

from __future__ import annotations

import ctypes
import math
from typing import Any

import numpy as np
import torch

from .emulator import Device, Params, Pointer, dtype_code

_i64, _i32, _f64 = ctypes.c_int64, ctypes.c_int32, ctypes.c_double
HEADS = {"mean": 0, "max": 1, "each": 2}
COLUMNS = {"response": 1, "prompt": 2, "all": 3}
LOG2E = float(np.float32(1.44269504))


class AceOptions(ctypes.Structure):
    _fields_ = [
        ("scale", _f64), ("sigma", _f64), ("min_rows", _i64), ("window", _i64),
        ("key_window", _i64), ("heads", _i32), ("columns", _i32), ("top", _i32),
        ("renormalise", _i32), ("normalise", _i32), ("want_stats", _i32),
    ]  # fmt: skip


class AceParams(Params):
    _anonymous_ = ("o",)
    _fields_ = [
        ("lse", Pointer), ("column_mask", Pointer), ("image_mask", Pointer),
        ("scores", Pointer), ("weights", Pointer), ("reference", Pointer),
        ("total", Pointer), ("sums", Pointer), ("stats", Pointer), ("summary", Pointer),
        ("position", Pointer), ("psi", Pointer), ("unit", _f64), ("ln_sigma", _f64),
        ("o", AceOptions), ("lse_stride", _i64 * 2), ("total_length", _i64),
        ("samples", _i64),
        ("sample", _i64), ("begin", _i64), ("length", _i64), ("start", _i64),
        ("row", _i64), ("key", _i64), ("ld", _i64), ("rows", _i32), ("block_rows", _i32),
        ("hq", _i32), ("fields", _i32), ("lse_dtype", _i32), ("scale2", ctypes.c_float),
        ("unit32", ctypes.c_float), ("unused", _i32),
    ]  # fmt: skip

    @property
    def needs_all(self) -> bool:
        return not self.lse.value or bool(self.want_stats) or bool(self.renormalise)


class AceLinearParams(Params):
    _fields_ = [
        ("q", Pointer), ("k", Pointer), ("lse", Pointer), ("tiles", Pointer),
        ("sums", Pointer), ("scale", _f64), ("q_stride", _i64 * 2),
        ("k_stride", _i64 * 2), ("lse_stride", _i64 * 2), ("total_length", _i64),
        ("length", _i64), ("start", _i64), ("window", _i64), ("tiles_count", _i64),
        ("dim", _i64), ("hq", _i32), ("group", _i32), ("columns", _i32),
        ("q_dtype", _i32), ("k_dtype", _i32), ("lse_dtype", _i32), ("q_wide", _i32),
        ("k_wide", _i32),
    ]  # fmt: skip


TILE = 32


def first_key(p: AceParams, row: int) -> int:
    """What ace_cuda.c makes of rap_ace_first_key."""
    key = max(0, row - p.key_window + 1) if p.key_window > 0 else 0
    window = min(p.window, p.length) if p.window > 0 else p.length
    if not p.needs_all and not p.columns & COLUMNS["prompt"]:
        key = max(key, p.start, row - window + 1)
    return key // 4 * 4


def _scores(q: torch.Tensor, k: torch.Tensor, p: AceParams) -> np.ndarray:
    """[Hq, block_rows, ld] as the workspace is after cuBLASLt: NaN where none wrote."""
    a, b = p.begin + p.row, p.begin + p.row + p.rows
    keys = k[:, p.begin + p.key : b].float().repeat_interleave(len(q) // len(k), 0)
    out = np.full((p.hq, p.block_rows, p.ld), np.nan, np.float32)
    out[:, : p.rows, : keys.shape[1]] = q[:, a:b].float() @ keys.transpose(1, 2)
    return out


def _block(device: Device, q: Any, k: Any, p: AceParams, grid: int, block: int) -> None:
    p.scores = Pointer(device.put(_scores(q, k, p)))
    if p.heads == HEADS["each"]:
        p.weights = p.scores
    names = ["rap_ace_lse", "rap_ace_fold"]
    names += ["rap_ace_stats"] if p.want_stats or p.renormalise else []
    for name in [*names, "rap_ace_columns"]:
        device.launch(name, p, grid, block)


def _sample(
    device: Device, q: Any, k: Any, p: AceParams, most: int, grid: int, block: int
) -> None:
    p.ld = -(-max(p.length, 1) // 32) * 32
    p.block_rows = most
    if p.heads != HEADS["each"]:
        p.weights = Pointer(device.empty((p.fields, most, p.ld), np.float32))
    for row in range(p.start, p.length, most):
        p.row, p.rows = row, min(most, p.length - row)
        p.key = first_key(p, row)
        _block(device, q, k, p, grid, block)
    device.launch("rap_ace_finish", p, grid, block)


def _strided(device: Device, x: torch.Tensor, wide: bool) -> tuple[int, list[int]]:
    """Address and strides of [heads, L, D]; wide: each row at a 16-byte boundary."""
    heads, length, dim = x.shape
    width = -(-dim // 8) * 8 if wide else dim
    padded = torch.full((heads, length, width), float("nan"), dtype=x.dtype)
    padded[:, :, :dim] = x
    return device.put(padded), [length * width, width]


def _linear(
    device: Device, q: Any, k: Any, lse: Any, p: AceParams, scale: float, wide: bool,
    grid: int, block: int,
) -> None:  # fmt: skip
    """The launches of the linear form for one sample."""
    begin, end = p.begin, p.begin + p.length
    tiles = -(-(p.length - p.start) // TILE)
    window = min(x for x in (p.window, p.key_window, p.length) if x > 0)
    space = device.empty((p.hq, tiles + 1, q.shape[2] + 1), np.float64)
    x = AceLinearParams(
        tiles=space, sums=p.sums.value + 8 * begin, scale=scale,
        total_length=p.total_length, length=p.length, start=p.start, window=window,
        tiles_count=tiles, dim=q.shape[2], hq=p.hq, group=len(q) // len(k),
        columns=p.columns, q_dtype=dtype_code(q), k_dtype=dtype_code(k),
        lse_dtype=dtype_code(lse), q_wide=wide, k_wide=wide,
    )  # fmt: skip
    address, strides = _strided(device, q[:, begin:end], wide)
    x.q, x.q_stride[:] = Pointer(address), strides
    address, strides = _strided(device, k[:, begin:end], wide)
    x.k, x.k_stride[:] = Pointer(address), strides
    x.lse, x.lse_stride[:] = Pointer(device.put(lse[:, begin:end])), (p.length, 1)
    for name in ("rap_ace_tiles", "rap_ace_suffix", "rap_ace_linear"):
        device.launch(name, x, grid, block)


def is_linear(p: AceParams) -> bool:
    """Single heads whose log-sum-exps are given, without anything that needs scores."""
    response = p.columns == COLUMNS["response"]
    each = p.heads == HEADS["each"]
    return each and not p.needs_all and (p.key_window == 0 or response)


def ace(
    q: torch.Tensor,
    k: torch.Tensor,
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
    block_rows: int = 24,
    grid: int = 4,
    block: int = 64,
    wide: bool = True,
    **run: Any,
) -> dict[str, np.ndarray]:
    """As ``rap.ace``; block_rows: rows of a block of scores; wide: see ``_strided``."""
    hq, length, dim = q.shape
    cu = np.array([0, length] if cu_seqlens is None else cu_seqlens)
    samples = len(cu) - 1
    starts = np.broadcast_to(np.asarray(response_start), (samples,))
    fields = hq if heads == "each" else 1
    scale = dim**-0.5 if scale is None else scale
    scale2 = np.float32(scale * LOG2E)
    device = Device()
    summary = device.empty((4, samples, fields), np.float64)
    position = device.empty((samples, fields), np.int64)
    psi = device.empty((fields, length), np.float64)
    p = AceParams(
        lse=device.put(lse), column_mask=device.put(column_mask),
        image_mask=device.put(image_mask), summary=summary, position=position, psi=psi,
        reference=device.empty((2, hq, block_rows), np.float32),
        total=device.empty((2, fields, block_rows), np.float32),
        sums=device.empty((fields, length), np.float64),
        stats=device.empty((3, fields, length), np.float64),
        unit=scale / float(scale2) if scale2 != 0 else 1 / LOG2E, ln_sigma=math.log(sigma),
        total_length=length, samples=samples, min_rows=min_rows, window=window or 0,
        key_window=key_window or 0, hq=hq, fields=fields, heads=HEADS[heads],
        columns=COLUMNS[columns], top=top, lse_dtype=0 if lse is None else dtype_code(lse),
        renormalise=renormalise, normalise=normalise, want_stats=stats, scale2=scale2,
    )  # fmt: skip
    p.lse_stride[:] = (length, 1)
    p.unit32 = p.unit
    device.launch("rap_ace_start", p, grid, block)
    for sample in range(samples):
        p.sample, p.begin = sample, int(cu[sample])
        p.length, p.start = int(cu[sample + 1]) - p.begin, int(starts[sample])
        if is_linear(p):
            if p.start < p.length:
                _linear(device, q, k, lse, p, scale, wide, grid, block)
            device.launch("rap_ace_finish", p, grid, block)
        else:
            _sample(device, q, k, p, block_rows, grid, block)
    device.run(**run)
    values = device.get(summary)
    out = {
        "log_psi": values[0], "position": device.get(position),
        "attention_entropy": values[1], "attention_top": values[2],
        "image_mass": values[3], "log_psi_columns": device.get(psi),
    }  # fmt: skip
    if heads != "each":
        out = {n: x[0] if n == "log_psi_columns" else x[:, 0] for n, x in out.items()}
    return out
