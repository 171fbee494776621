"""The calls on the fake CUDA device: in a process that the fakes were named to.

    python -m tests.leaks.device 1000    # as tests.leaks starts it

What is looked at is the host side of CUDA: launchers, driver, allocations, answers. So
kernels and products are queued and not run, but for drm, which reads what they answer.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict

import numpy as np
from cuda_emulator.fake import device
from cuda_emulator.fake.device import FAKE, InterfaceArray, count, fail, problem

import rap
from rap import _C

from .host import ON_DEVICE, refused
from .measure import Call, measured, quiet


class FakeArray(device.FakeArray):
    """One that does not note what it was asked: the note would grow."""

    def __dlpack__(self, **asked: object) -> object:
        self.asked.clear()
        return super().__dlpack__(**asked)


KINDS = ("allocations", "retained", "queued", "bound")


def held_there() -> int:
    """What the device holds, when it has done all that was queued."""
    rap.cuda.release()
    FAKE.rap_fake_read(None, 0, 0)
    return sum(count(kind) for kind in KINDS)


def _kernels(rng: np.random.Generator) -> Iterator[tuple[str, Call]]:
    x, y = (FakeArray(v) for v in rng.normal(size=(2, 3, 40)).astype(np.float32))
    w, cu, ids = FakeArray(np.ones((20, 40), np.float32)), [0, 1, 3], [1, 2, 3]
    there = FakeArray(np.array(cu)), FakeArray(np.array([1.0, 2.0, 0.0]))
    q = FakeArray(rng.normal(size=(2, 12, 8)).astype(np.float32))
    half = FakeArray(rng.normal(size=(2, 12, 16)).astype(np.float16))
    lse = FakeArray(np.ones((2, 12), np.float32))
    d = FakeArray(rng.random(40))
    near = InterfaceArray(np.ones((3, 40), np.float32))
    yield "cde", lambda: rap.cde(x, y, targets=ids)
    yield "cde: of another interface", lambda: rap.cde(near, near, want="kl")
    yield "cde: read", lambda: rap.cde(x, y, want="kl").kl.numpy()
    yield "cde_means", lambda: rap.cde(x, y, want="kl", cu_seqlens=cu, weights=[1, 2, 0])
    yield (
        "cde_means: on the device",
        lambda: rap.cde(x, y, want="kl", cu_seqlens=there[0], weights=there[1]),
    )
    yield "linear_cde", lambda: rap.linear_cde(x, y, w, targets=ids, softcap=3.0)
    yield "linear_cde: in blocks", lambda: rap.linear_cde(x, y, w, memory=0, want="js")
    for heads in ("mean", "max", "each"):
        yield f"ace: {heads}", _of_heads(q, heads)
    yield "ace: packed", lambda: rap.ace(q, q, response_start=[1, 2], cu_seqlens=[0, 5, 12])
    yield (
        "ace: linear",
        lambda: rap.ace(q, q, response_start=3, heads="each", stats=False, lse=lse),
    )
    yield "ace: tensor cores", lambda: rap.ace(half, half, response_start=3)
    yield "drm", lambda: rap.drm(d, 5, gain=d)


def _of_heads(q: FakeArray, heads: str) -> Call:
    return lambda: rap.ace(q, q, response_start=3, heads=heads)


def _entries(rng: np.random.Generator) -> Iterator[tuple[str, Call]]:
    x, y = (FakeArray(v) for v in rng.normal(size=(2, 3, 40)).astype(np.float32))
    there, host = rap.cde(x, y, want="kl").kl, np.empty(3)
    stream, pointer = there.stream, there._pointer
    taken = {"max_version": (1, 0)}
    yield "cuda_alloc", lambda: _C.cuda_alloc(64, 0, stream)
    yield "cuda_read", lambda: _C.cuda_read(host, pointer, 0, stream)
    yield "cuda_wait", lambda: _C.cuda_wait(0, stream)
    yield "cuda_device_of", lambda: _C.cuda_device_of(pointer)
    yield "cuda_dlpack", lambda: there.__dlpack__(**taken)
    yield "cuda_dlpack: taken", lambda: rap.cde(x, y, targets=[1, 2, 3], want="logp1")
    yield "cuda_info", _C.cuda_info
    yield "cublaslt", _C.cublaslt


def _refusals(rng: np.random.Generator) -> Iterator[tuple[str, Call]]:
    """Of arguments, and of each call of the driver that fails."""
    x, y = (FakeArray(v) for v in rng.normal(size=(2, 3, 40)).astype(np.float32))
    w, q = FakeArray(np.ones((20, 40), np.float32)), FakeArray(np.ones((2, 12, 8), "f4"))
    far, gone = FakeArray(np.ones((3, 40), np.float32), device=1), FakeArray(np.ones(3))
    gone.pointer = np.ones(3).ctypes.data
    error, to = rap.RapInputError, np.empty(3)
    yield "refused: shapes", refused(error, "", lambda: rap.cde(x, w))
    yield "refused: two devices", refused(error, "device", lambda: rap.cde(x, far))
    yield "refused: host memory", refused(error, "not memory", lambda: rap.drm(gone, 1))
    yield "refused: targets", refused(error, "", lambda: rap.cde(x, y, targets=[1]))
    yield "refused: offsets", refused(error, "", lambda: rap.cde(x, y, cu_seqlens=[0, 9]))
    yield "refused: start", refused(error, "", lambda: rap.ace(q, q, response_start=99))
    yield "refused: no such device", refused(Exception, "", lambda: _C.cuda_wait(7, 0))
    yield (
        "refused: too much",
        refused(MemoryError, "", lambda: _C.cuda_alloc(1 << 50, 0, 0)),
    )
    calls = {
        "cde": lambda: rap.cde(x, y, targets=[1, 2, 3]),
        "linear_cde": lambda: rap.linear_cde(x, y, w, want="kl"),
        "ace": lambda: rap.ace(q, q, response_start=3, column_mask=[True] * 12),
        "drm": lambda: rap.drm(x_drm, 2),
        "read": lambda: _C.cuda_read(to, there, 0, 1),
    }
    x_drm = FakeArray(rng.random(9))
    there = x_drm.pointer
    for name, symbols in {
        "cde": ("cuLaunchKernel", "cuMemcpyHtoDAsync", "cuMemAllocAsync", "cuCtxGetId"),
        "linear_cde": ("cuLaunchKernel", "cuMemAllocAsync", "cuCtxSetCurrent"),
        "ace": ("cuLaunchKernel", "cuMemcpyHtoDAsync", "cuMemAllocAsync"),
        "drm": ("cuLaunchKernel", "cuMemAllocAsync", "cuStreamSynchronize"),
        "read": ("cuMemcpyDtoHAsync", "cuStreamSynchronize"),
    }.items():
        for symbol in symbols:
            yield f"{name} refused: {symbol}", _failing(symbol, calls[name])


def _failing(symbol: str, call: Call) -> Call:
    """The driver's ``symbol`` fails, at its first use; out of memory of it."""
    kinds = (MemoryError, rap.RapDeviceError, rap.RapConfigError)

    def tried() -> None:
        fail(symbol, 1, 2)
        try:
            call()
        except kinds:
            return
        finally:
            fail(symbol, 0, 0)
            FAKE.cuCtxSetCurrent(None)
        raise AssertionError(f"{symbol} failed, and nobody noticed")

    return tried


def calls() -> dict[str, Call]:
    """{"entry point: form": call}"""
    rng = np.random.default_rng(0)
    return dict([*_kernels(rng), *_entries(rng), *_refusals(rng)])


def main(times: int, names: list[str]) -> None:
    """A line of JSON for each."""
    found = calls()
    assert {name.split(":")[0].split(" ")[0] for name in found} >= set(ON_DEVICE)
    quiet()
    for name, call in found.items():
        if not names or name.startswith(tuple(names)):
            FAKE.rap_fake_idle(not name.startswith("drm"))
            result = measured(name, call, times, held_there)
            assert problem() == "", (name, problem())
            print(json.dumps(asdict(result)), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
