"""Arrays on the fake device, for tests: a producer that rap knows nothing of."""

from __future__ import annotations

import ctypes
import os

import numpy as np

from rap import _C

FAKE = ctypes.CDLL(os.environ["RAP_LIBCUDA"])
FAKE.rap_fake_alloc.restype = ctypes.c_uint64
FAKE.rap_fake_alloc.argtypes = [ctypes.c_int, ctypes.c_size_t]
FAKE.rap_fake_release.argtypes = [ctypes.c_uint64, ctypes.c_void_p]
FAKE.rap_fake_write.argtypes = [ctypes.c_uint64, ctypes.c_void_p, ctypes.c_size_t]
FAKE.rap_fake_read.argtypes = [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_size_t]
FAKE.rap_fake_stream.restype = ctypes.c_void_p
FAKE.rap_fake_lose_stream.argtypes = FAKE.rap_fake_capture.argtypes = [ctypes.c_void_p]
FAKE.rap_fake_pin.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
FAKE.rap_fake_count.restype = ctypes.c_long
FAKE.rap_fake_problem.restype = ctypes.c_char_p
KINDS = {"f4": (2, 32), "f2": (2, 16), "f8": (2, 64), "bf": (4, 16), "i8": (0, 64),
         "b1": (6, 8)}  # fmt: skip
LEGACY = 1


def count(what: str) -> int:
    return FAKE.rap_fake_count(what.encode())


def problem() -> str:
    return FAKE.rap_fake_problem().decode()


def fail(name: str, nth: int, code: int) -> None:
    FAKE.rap_fake_fail(name.encode(), nth, code)


class FakeArray:
    """A copy of a NumPy array in device memory, strides kept. ``kind``: "bf" when the array
    holds the bits of bfloat16 as uint16."""

    def __init__(
        self,
        array: np.ndarray,
        kind: str | None = None,
        device: int = 0,
        stream: int | None = LEGACY,
    ) -> None:
        low, high = np.lib.array_utils.byte_bounds(array)
        if array.size == 0:
            low = high = array.ctypes.data
        self.kind = kind or array.dtype.str[1:]
        self.shape, self.dtype, self.device = array.shape, array.dtype, device
        self.strides = tuple(s // array.itemsize for s in array.strides)
        self.nbytes = array.nbytes
        self.base = FAKE.rap_fake_alloc(device, high - low)
        self.pointer = self.base + (array.ctypes.data - low)
        self.freed_on = stream or LEGACY
        self.asked: list[object] = []
        if high > low:
            FAKE.rap_fake_write(self.base, low, high - low)

    def __del__(self) -> None:
        FAKE.rap_fake_release(self.base, self.freed_on)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self.device

    def __dlpack__(self, *, stream=None, max_version=None, dl_device=None, copy=None):
        self.asked.append(stream)
        return _C.cuda_dlpack(
            self, self.pointer, self.shape, self.strides, *KINDS[self.kind], self.device
        )


class InterfaceArray:
    """The same, exporting nothing but ``__cuda_array_interface__``."""

    def __init__(self, array: np.ndarray, stream: int | None = None) -> None:
        self.inner = FakeArray(array, stream=stream)
        self.shape, self.stream = array.shape, stream

    @property
    def __cuda_array_interface__(self):
        size = self.inner.dtype.itemsize
        return {
            "shape": self.shape,
            "typestr": self.inner.dtype.str,
            "data": (self.inner.pointer, True),
            "strides": tuple(s * size for s in self.inner.strides),
            "stream": self.stream,
            "version": 3,
        }
