"""drm on the emulated device: what csrc/drm/drm_cuda.c does, in Python."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

import numpy as np

from .emulator import F32, Device, Params, Pointer, dtype_code

_i64, _i32 = ctypes.c_int64, ctypes.c_int32
TILE, DIGITS, WIDTH, RANK_BITS = 1024, 2048, 11, 44
STATE_BYTES, ITEM_BYTES = 56 + 8 * DIGITS, 24


class DrmParams(Params):
    _fields_ = [
        ("difficulty", Pointer), ("gain", Pointer), ("eligible", Pointer),
        ("out", Pointer), ("state", Pointer), ("items", Pointer), ("other", Pointer),
        ("n", _i64), ("k", _i64), ("padded", _i64), ("span", _i64),
        ("difficulty_dtype", _i32),
        ("gain_dtype", _i32), ("field", _i32), ("shift", _i32), ("bits", _i32),
        ("unused", _i32),
    ]  # fmt: skip


def digits(p: DrmParams) -> Iterator[tuple[int, int, int]]:
    """(field, shift, bits), most significant first: rap_drm_cuda_digit."""
    for field, dtype in ((0, p.difficulty_dtype), (1, p.gain_dtype), (2, None)):
        if field == 1 and not p.gain.value:
            continue
        top, low = (RANK_BITS, 0) if field == 2 else (64, 32 if dtype == F32 else 0)
        while field == 2 and top > WIDTH and p.n >> (top - WIDTH) == 0:
            top -= WIDTH
        while top > low:
            bits = min(WIDTH, top)
            yield field, top - bits, bits
            top -= WIDTH


def _sort(device: Device, p: DrmParams, grid: int, block: int) -> None:
    device.launch("rap_drm_sort_tile", p, grid, block)
    p.span = TILE
    while p.span < p.padded:
        device.launch("rap_drm_merge", p, grid, block)
        p.items, p.other = Pointer(p.other.value), Pointer(p.items.value)
        p.span *= 2


def drm(
    difficulty: np.ndarray,
    k: int,
    *,
    gain: np.ndarray | None = None,
    eligible: np.ndarray | None = None,
    grid: int = 3,
    block: int = 256,
    **run: Any,
) -> np.ndarray:
    """As ``rap.drm``."""
    n = len(difficulty)
    k = min(k, n)
    if k == 0:
        return np.zeros(0, np.int64)
    padded = -(-k // TILE) * TILE
    device = Device()
    state = device.empty(STATE_BYTES, np.uint8)
    out = device.empty(k, np.int64)
    p = DrmParams(
        difficulty=device.put(difficulty), gain=device.put(gain),
        eligible=device.put(eligible), out=out, state=state,
        items=device.empty(padded * ITEM_BYTES, np.uint8),
        other=device.empty(padded * ITEM_BYTES, np.uint8), n=n, k=k, padded=padded,
        difficulty_dtype=dtype_code(difficulty),
        gain_dtype=0 if gain is None else dtype_code(gain),
    )  # fmt: skip
    device.launch("rap_drm_start", p, grid, block)
    for field, shift, bits in digits(p):
        p.field, p.shift, p.bits = field, shift, bits
        device.launch("rap_drm_digit", p, grid, block)
    device.launch("rap_drm_gather", p, grid, block)
    _sort(device, p, grid, block)
    device.launch("rap_drm_answer", p, grid, block)
    device.run(**run)
    found = int(device.get(state)[:8].view(np.int64)[0])
    return device.get(out)[:found]
