"""Kernels on the emulated device, from Python: memory, launches, one run.

    device = Device()
    out = device.empty((10, rows), np.float64)
    device.launch("rap_cde_rows", CdeParams(l1=device.put(l1), out=out, ...), grid, block)
    device.run(variant="tsan", seed=3)
    device.get(out)

A run is a process of its own (runner.c), so that a crash, a sanitizer's report or a
deadlock is an error with its text here: ``EmulatorError``.
"""

from __future__ import annotations

import ctypes
import math
import os
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from . import build

F32, F16, BF16, F64 = 0, 1, 2, 3  # rap_dtype
_BUFFER_BITS = 40  # a pointer here is (buffer + 1) << 40 | offset
_ENVIRONMENT = {
    "TSAN_OPTIONS": "halt_on_error=0:exitcode=66:second_deadlock_stack=1",
    "ASAN_OPTIONS": "detect_leaks=0",
    "UBSAN_OPTIONS": "print_stacktrace=1",
}


class EmulatorError(Exception):
    """What the run said on its way down; ``status`` is the process's."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"exit {status}: {text[:4000]}")
        self.status, self.text = status, text


class Pointer(ctypes.c_uint64):
    """Marks the fields of a parameter struct that hold addresses."""


class Params(ctypes.Structure):
    """A parameter struct: pointers are what ``Device.put`` answered, 0 is NULL."""

    def __init__(self, **fields: Any) -> None:
        super().__init__()
        for name, value in fields.items():
            field = getattr(self, name)
            setattr(self, name, Pointer(value) if isinstance(field, Pointer) else value)

    def pointers(self) -> list[tuple[int, int]]:
        """(offset of the field, address) of each that is not NULL."""
        found = []
        for name, *_ in self._fields_:
            value = getattr(self, name)
            if isinstance(value, Pointer) and value.value:
                found.append((getattr(type(self), name).offset, value.value))
        return found


def as_numpy(x: Any) -> np.ndarray:
    """Contiguous NumPy; torch's bfloat16 as the uint16 it lies in memory as."""
    if hasattr(x, "detach"):
        import torch

        x = x.detach().contiguous()
        x = (
            x.view(torch.int16).numpy().view(np.uint16)
            if x.element_size() == 2
            else x.numpy()
        )
    return np.ascontiguousarray(x)


def dtype_code(x: Any) -> int:
    """rap_dtype of a NumPy array or torch tensor."""
    names = {"float32": F32, "float16": F16, "bfloat16": BF16, "float64": F64}
    return names[str(x.dtype).removeprefix("torch.")]


def _run(command: list[Path], timeout: float) -> subprocess.CompletedProcess[str]:
    """ThreadSanitizer wants its addresses free; where the kernel spreads a process too
    wide for it, once more with addresses that are not random."""

    def once(*before: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*before, *map(str, command)],
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**os.environ, **_ENVIRONMENT},
        )

    done = once()
    if "unexpected memory mapping" in done.stderr and shutil.which("setarch"):
        done = once("setarch", "-R")
    return done


class Device:
    """Memory and a list of launches; nothing happens before ``run``."""

    def __init__(self) -> None:
        self._data: list[bytearray] = []
        self._arrays: dict[int, tuple[tuple[int, ...], np.dtype]] = {}
        self._launches: list[bytes] = []

    def put(self, x: Any) -> int:
        """Copies an array to the device; None is NULL."""
        if x is None:
            return 0
        array = as_numpy(x)
        self._data.append(bytearray(array.tobytes()))
        address = len(self._data) << _BUFFER_BITS
        self._arrays[address] = (array.shape, array.dtype)
        return address

    def empty(self, shape: Any, dtype: Any) -> int:
        """Memory nobody has written: every byte 0xFF, so floats are NaN."""
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        size = math.prod(shape) * np.dtype(dtype).itemsize
        return self.put(np.full(size, 0xFF, np.uint8).view(dtype).reshape(shape))

    def get(self, address: int) -> np.ndarray:
        shape, dtype = self._arrays[address]
        data = self._data[(address >> _BUFFER_BITS) - 1]
        return np.frombuffer(bytes(data), dtype).reshape(shape)

    def launch(self, name: str, params: Params, grid: int, block: int) -> None:
        pointers = params.pointers()
        head = struct.pack(
            "<64s4I", name.encode(), grid, block, ctypes.sizeof(params), len(pointers)
        )
        mask = (1 << _BUFFER_BITS) - 1
        moves = [
            struct.pack("<IIQ", at, (value >> _BUFFER_BITS) - 1, value & mask)
            for at, value in pointers
        ]
        self._launches.append(head + bytes(params) + b"".join(moves))

    def run(
        self,
        variant: str = "plain",
        mutation: build.Mutation | None = None,
        seed: int = 0,
        timeout: float = 1200,
    ) -> None:
        """Runs all launches in order; the launches are then forgotten, memory stays."""
        script = [struct.pack("<IIQ", len(self._data), len(self._launches), seed)]
        for data in self._data:
            script += [struct.pack("<Q", len(data)), bytes(data)]
        with tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder) / name for name in ("script", "answer")]
            paths[0].write_bytes(b"".join([*script, *self._launches]))
            done = _run([build.runner(variant, mutation), *paths], timeout)
            if done.returncode != 0:
                raise EmulatorError(done.returncode, done.stderr)
            answer = paths[1].read_bytes()
        self._launches.clear()
        at = 0
        for data in self._data:
            data[:] = answer[at : at + len(data)]
            at += len(data)
