"""The kernels beside the products on the emulated device."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import torch

from .emulator import Device, Params, Pointer, dtype_code

_i64, _i32 = ctypes.c_int64, ctypes.c_int32


class StackParams(Params):
    _fields_ = [
        ("first", Pointer), ("second", Pointer), ("dst", Pointer), ("stride1", _i64),
        ("stride0", _i64), ("ld", _i64), ("rows", _i64), ("columns", _i64),
        ("dtype1", _i32), ("dtype0", _i32),
    ]  # fmt: skip


def stack(
    first: torch.Tensor, second: torch.Tensor, columns: int, skip: int = 0, **run: Any
) -> torch.Tensor:
    """Columns [skip, skip + columns) of both, the second below the first."""
    device = Device()
    rows, ld = len(first), -(-columns // 64) * 64
    dtype = first.dtype if first.dtype == second.dtype else torch.float32
    kept = np.float32 if dtype == torch.float32 else np.uint16
    dst = device.empty((2 * rows, ld), kept)
    params = StackParams(
        first=device.put(first) + skip * first.itemsize,
        second=device.put(second) + skip * second.itemsize, dst=dst,
        stride1=first.shape[1], stride0=second.shape[1], ld=ld, rows=rows, columns=columns,
        dtype1=dtype_code(first), dtype0=dtype_code(second),
    )  # fmt: skip
    device.launch("rap_stack", params, 5, 64)
    device.run(**run)
    out = torch.from_numpy(device.get(dst)[:, :columns].copy())
    return out if dtype == torch.float32 else out.view(dtype)
