"""ace on the emulated tensor cores: what csrc/ace/ace_tensor_cuda.c does, in Python."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .ace import COLUMNS, HEADS, LOG2E, AceParams
from .emulator import Device, Params, Pointer, dtype_code

_i64, _i32 = ctypes.c_int64, ctypes.c_int32
ROWS, WIDTH, THREADS, BLOCKS = 64, 128, 128, 1536


class AceTensorParams(Params):
    _fields_ = [
        ("a", AceParams), ("q", Pointer), ("k", Pointer), ("part_max", Pointer),
        ("part_sum", Pointer), ("column_sums", Pointer), ("row_sums", Pointer),
        ("largest", Pointer), ("totals", Pointer), ("ticket", Pointer),
        ("q_stride", _i64 * 2), ("k_stride", _i64 * 2), ("first_column", _i64),
        ("row_tiles", _i32), ("chunks", _i32), ("group", _i32), ("dim", _i32),
        ("q_wide", _i32), ("k_wide", _i32),
    ]  # fmt: skip

    def pointers(self) -> list[tuple[int, int]]:
        """Those of the struct inside come first, at the same offsets."""
        return [*self.a.pointers(), *super().pointers()]


def chunks_of(rows: int, length: int, blocks: int = BLOCKS) -> int:
    """rap_ace_tensor_chunks."""
    return max(1, min(-(-length // WIDTH), -(-blocks // max(1, -(-rows // ROWS)))))


@dataclass(frozen=True)
class Layout:
    """How queries and keys lie: ``pad`` numbers after each row, ``offset`` before the
    first; 16-byte rows are ``wide``."""

    pad: int = 0
    offset: int = 0

    def put(self, device: Device, x: torch.Tensor) -> tuple[int, list[int], bool]:
        """(address, strides, wide) of [heads, L, D]; what lies between is NaN."""
        heads, length, dim = x.shape
        width = dim + self.pad
        flat = torch.full((self.offset + heads * length * width,), float("nan"))
        flat = flat.to(x.dtype)
        rows = flat[self.offset :].view(heads, length, width)
        rows[:, :, :dim] = x
        # nothing behind the last row: a sanitizer sees one number too far
        used = flat[: len(flat) - self.pad] if heads * length > 0 else flat
        wide = width % 8 == 0 and self.offset % 8 == 0
        address = device.put(used) + 2 * self.offset
        return address, [length * width, width], wide


WIDE, ODD = Layout(), Layout(pad=3, offset=1)


def _params(device: Device, hq: int, length: int, samples: int, lse: Any, o: dict) -> Any:
    """What all samples share, and the answers' addresses."""
    scale2 = np.float32(o["scale"] * LOG2E)
    p = AceTensorParams()
    p.a = AceParams(
        lse=device.put(lse), column_mask=device.put(o["column_mask"]),
        image_mask=device.put(o["image_mask"]),
        summary=device.empty((4, samples, 1), np.float64),
        position=device.empty((samples, 1), np.int64),
        psi=device.empty((1, length), np.float64),
        sums=device.empty((1, length), np.float64),
        stats=device.empty((3, 1, length), np.float64),
        unit=o["scale"] / float(scale2) if scale2 != 0 else 1 / LOG2E,
        ln_sigma=math.log(o["sigma"]), total_length=length, samples=samples,
        min_rows=o["min_rows"], window=o["window"] or 0, key_window=o["key_window"] or 0,
        hq=hq, fields=1, heads=HEADS[o["heads"]], columns=COLUMNS[o["columns"]],
        top=o["top"], lse_dtype=0 if lse is None else dtype_code(lse),
        renormalise=o["renormalise"], normalise=o["normalise"], want_stats=o["stats"],
        scale2=scale2, scale=o["scale"], sigma=o["sigma"],
    )  # fmt: skip
    p.a.lse_stride[:] = (length, 1)
    p.a.unit32 = p.a.unit
    return p


def _parts(device: Device, p: AceTensorParams, blocks: int) -> None:
    """The workspace of one sample."""
    a = p.a
    a.row, a.rows, a.block_rows = a.start, a.length - a.start, a.length - a.start
    p.row_tiles = -(-a.rows // ROWS)
    p.chunks = chunks_of(a.rows, a.length, blocks)
    p.first_column = 0 if a.columns & COLUMNS["prompt"] else a.start

    def empty(*shape: int, dtype: Any = np.float32) -> Pointer:
        return Pointer(device.empty(shape, dtype))

    a.reference = empty(2, a.hq, a.rows)
    if not a.lse.value:
        p.part_max = empty(2 * p.chunks, a.hq, a.rows)
        p.part_sum = empty(2 * p.chunks, a.hq, a.rows)
    p.column_sums = empty(p.row_tiles, a.length - p.first_column, dtype=np.float64)
    p.row_sums = empty(3, p.chunks, a.rows, dtype=np.float64)
    p.largest = empty(p.chunks if a.want_stats else 0, a.top, a.rows, dtype=np.uint32)
    p.totals = empty(a.rows + 1, dtype=np.float64)
    p.ticket = empty(1, dtype=np.uint32)


def launches(p: AceTensorParams, bf16: bool) -> Iterator[tuple[str, int]]:
    """(kernel, threads), in order, of one sample."""
    kind = "bf16" if bf16 else "f16"
    if p.a.rows > 0 and not p.a.lse.value:
        yield f"rap_fused_lse_{kind}", THREADS
    yield "rap_fused_reference", 64
    if p.a.rows > 0:
        yield f"rap_fused_fold_{kind}", THREADS
    yield "rap_fused_finish", 64


DEFAULTS: dict[str, Any] = dict(
    scale=None, sigma=2.0, heads="mean", renormalise=False, normalise=True, min_rows=8,
    window=None, key_window=None, columns="response", column_mask=None, image_mask=None,
    top=8, stats=True,
)  # fmt: skip


def ace(
    q: torch.Tensor,
    k: torch.Tensor,
    *,
    response_start: Any,
    cu_seqlens: Any = None,
    lse: Any = None,
    grid: int = 3,
    blocks: int = BLOCKS,
    layout: Layout = WIDE,
    key_layout: Layout | None = None,
    run: dict[str, Any] | None = None,
    **options: Any,
) -> dict[str, np.ndarray]:
    """As ``rap.ace``; grid: blocks of each launch; blocks: how many the launcher wants,
    which decides the shares of the columns."""
    o = {**DEFAULTS, **options}
    assert set(o) == set(DEFAULTS), set(o) - set(DEFAULTS)
    hq, length, dim = q.shape
    o["scale"] = dim**-0.5 if o["scale"] is None else o["scale"]
    cu = np.array([0, length] if cu_seqlens is None else cu_seqlens)
    starts = np.broadcast_to(np.asarray(response_start), (len(cu) - 1,))
    device = Device()
    p = _params(device, hq, length, len(cu) - 1, lse, o)
    q_at, p.q_stride[:], p.q_wide = layout.put(device, q)
    k_at, p.k_stride[:], p.k_wide = (key_layout or layout).put(device, k)
    p.group, p.dim = hq // len(k), dim
    for sample in range(len(cu) - 1):
        p.a.sample, p.a.begin = sample, int(cu[sample])
        p.a.length, p.a.start = int(cu[sample + 1]) - p.a.begin, int(starts[sample])
        p.q = Pointer(q_at + 2 * p.a.begin * p.q_stride[1])
        p.k = Pointer(k_at + 2 * p.a.begin * p.k_stride[1])
        _parts(device, p, blocks)
        for name, threads in launches(p, q.dtype == torch.bfloat16):
            device.launch(name, p, grid, threads)
    device.run(**(run or {}))
    values = device.get(p.a.summary.value)[:, :, 0]
    return {
        "log_psi": values[0], "position": device.get(p.a.position.value)[:, 0],
        "attention_entropy": values[1], "attention_top": values[2],
        "image_mass": values[3], "log_psi_columns": device.get(p.a.psi.value)[0],
    }  # fmt: skip
