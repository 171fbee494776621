"""The widening kernel on the emulated device: exact for every bit pattern."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
import torch
from cuda_emulator import build, checks_gemm
from cuda_emulator.emulator import Device, Params, Pointer, dtype_code

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="needs gcc")


class WidenParams(Params):
    _fields_ = [
        ("src", Pointer), ("dst", Pointer), ("stride", ctypes.c_int64),
        ("rows", ctypes.c_int64), ("columns", ctypes.c_int64), ("dtype", ctypes.c_int32),
        ("unused", ctypes.c_int32),
    ]  # fmt: skip


def widen(x: torch.Tensor, columns: int, **run) -> np.ndarray:
    """Of the first columns of each row of x."""
    device = Device()
    dst = device.empty((len(x), columns), np.float32)
    params = WidenParams(
        src=device.put(x), dst=dst, stride=x.shape[1], rows=len(x), columns=columns,
        dtype=dtype_code(x),
    )  # fmt: skip
    device.launch("rap_widen", params, 5, 64)
    device.run(**run)
    return device.get(dst)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_16_bit_number(dtype):
    bits = torch.arange(65536, dtype=torch.int32).to(torch.int16).reshape(256, 256)
    x = bits.view(dtype)
    np.testing.assert_array_equal(widen(x, 256), x.float().numpy())


@pytest.mark.parametrize("columns", [1, 7, 8, 13])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_that_start_anywhere(dtype, columns, rng):
    x = torch.from_numpy(rng.normal(size=(9, 13))).to(dtype)
    got = widen(x, columns, variant="asan")
    np.testing.assert_array_equal(got, x[:, :columns].float().numpy())


def test_rows_of_two_matrices_as_one():
    checks_gemm.stacked()
