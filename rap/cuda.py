"""Arrays on a CUDA device: their device, their stream and the allocator of results.

``Place`` has the methods of ``host.Host``. For torch and CuPy it uses the framework's
current stream and its allocator, which is ordered by that stream. Any other producer
(DLPack, or ``__cuda_array_interface__``) is read on the legacy default stream or the one it
names, with memory from the driver's pool (``DeviceArray``). DLPack does not say in which
order such a producer frees memory, so its arrays are kept alive here until their call is
known to be done (``held``).
"""

from __future__ import annotations

import glob
import math
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, ClassVar

import numpy as np

from . import _C
from .errors import RapInputError, install
from .host import (
    FLOAT64,
    INT64,
    dense,
    device_of,
    floats,
    integer,
    is_torch,
    narrowed,
    offsets,
    plain,
    shifted,
    small,
    weights,
)

LEGACY_STREAM = 1
MOST_HELD = 2
"""Calls whose arrays are held at a time, on one stream."""

_held: dict[tuple[int, int], list[Any]] = {}
_lock = threading.Lock()
_DLPACK_KINDS = {"i": 0, "u": 1, "f": 2, "b": 6}


def kernels() -> tuple[str, ...]:
    """Kernel modules of which this build has device code; none with RAP_CUDA=off."""
    return () if os.environ.get("RAP_CUDA") == "off" else _C.CUDA_KERNELS


INSTALL = (
    "install a wheel of rap-select that has them, or CUDA's nvcc 12.4 or newer and then: "
    + install(options="--force-reinstall --no-binary rap-select", before="RAP_CUDA=on")
)
"""What to do about a build without device code."""


@lru_cache(maxsize=1)
def _warn_of_host() -> None:
    """Once a process: device arrays meet a build without device code."""
    warnings.warn(
        "rap computes on the CPU what lies on a CUDA device, after a copy: this build has "
        f"no CUDA kernels ({_C.cuda_info()['made']}); {INSTALL}. RAP_CUDA=off says that "
        "this is meant",
        RuntimeWarning,
        stacklevel=4,
    )


def _dense(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """Strides in bytes of a contiguous array."""
    strides = [itemsize]
    for n in reversed(shape[1:]):
        strides.append(strides[-1] * max(n, 1))
    return tuple(reversed(strides[: len(shape)]))


class DeviceArray:
    """Memory of a CUDA device, for frameworks whose allocator rap does not know.

    Exports DLPack and ``__cuda_array_interface__``: ``cupy.asarray(x)``,
    ``torch.as_tensor(x)``, ``jax.dlpack.from_dlpack(x)``; ``x.numpy()`` copies to the host
    and waits. Ordered by the stream it was made on.
    """

    __slots__ = ("shape", "strides", "dtype", "device", "stream", "_owner", "_pointer")

    def __init__(
        self,
        owner: object,
        pointer: int,
        shape: tuple[int, ...],
        dtype: Any,
        device: int,
        stream: int,
        strides: tuple[int, ...] | None = None,
    ) -> None:
        self._owner, self._pointer = owner, pointer
        self.shape, self.dtype = shape, np.dtype(dtype)
        self.device, self.stream = device, stream or LEGACY_STREAM
        dense = [
            math.prod(map(lambda n: max(n, 1), shape[i + 1 :])) for i in range(len(shape))
        ]
        self.strides = strides or tuple(n * self.dtype.itemsize for n in dense)

    @classmethod
    def empty(
        cls, shape: tuple[int, ...], dtype: Any, device: int, stream: int
    ) -> DeviceArray:
        """Uninitialised; MemoryError when the device has no more."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if size >= 1 << 62:  # no address space holds it
            raise MemoryError(f"{size} bytes on CUDA device {device}")
        owner, pointer = _C.cuda_alloc(size, device, stream)
        return cls(owner, pointer, shape, dtype, device, stream)

    @property
    def is_dense(self) -> bool:
        return 0 in self.shape or self.strides == _dense(self.shape, self.dtype.itemsize)

    @property
    def __cuda_array_interface__(self) -> dict[str, object]:
        return {
            "shape": self.shape,
            "strides": self.strides,
            "typestr": self.dtype.str,
            "data": (self._pointer, False),
            "stream": self.stream,
            "version": 3,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self.device

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> object:
        if max_version is None or max_version[0] < 1:
            raise BufferError("only DLPack 1.0 and later is exported")
        if copy or dl_device not in (None, (2, self.device)):
            raise BufferError("only a view on the same device is exported")
        if stream not in (-1, self.stream):  # None is the legacy stream
            _C.cuda_wait(self.device, self.stream)
        size = self.dtype.itemsize
        strides = tuple(s // size for s in self.strides)
        kind = _DLPACK_KINDS[self.dtype.kind]
        return _C.cuda_dlpack(
            self, self._pointer, self.shape, strides, kind, 8 * size, self.device
        )

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, at: int | slice) -> DeviceArray:
        """Along the first dimension: a row, or rows [a:b]; a view."""
        n, step = self.shape[0], self.strides[0]
        if isinstance(at, slice):
            first, last, by = at.indices(n)
            if by != 1:
                raise IndexError("only steps of 1")
            shape, strides = (max(0, last - first), *self.shape[1:]), self.strides
        else:
            first, shape, strides = range(n)[at], self.shape[1:], self.strides[1:]
        pointer = self._pointer + first * step
        return DeviceArray(
            self, pointer, shape, self.dtype, self.device, self.stream, strides
        )

    def reshape(self, *shape: int) -> DeviceArray:
        """A view of another shape; of a contiguous array only."""
        if not self.is_dense or math.prod(shape) != math.prod(self.shape):
            raise ValueError(f"cannot view {self.shape} as {shape}")
        return DeviceArray(self, self._pointer, shape, self.dtype, self.device, self.stream)

    def numpy(self) -> np.ndarray:
        """A copy in host memory; waits for the stream."""
        if not self.is_dense:
            raise RapInputError("only a contiguous array is copied to the host")
        flat = np.empty(math.prod(self.shape), self.dtype)
        if flat.size:
            key = self.device, self.stream
            _let_go(key, lambda: _C.cuda_read(flat, self._pointer, *key))
        return flat.reshape(self.shape)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.numpy() if dtype is None else self.numpy().astype(dtype)


@dataclass(frozen=True, slots=True)
class Place:
    """Arrays on a CUDA device; the same methods as ``host.Host``. ``empty(shape, dtype)``
    allocates on the device in ``stream``'s order; results stay on the device."""

    device: int
    stream: int
    empty: Callable[[tuple[int, ...], np.dtype], Any]
    answer: ClassVar[None] = None
    scratch: ClassVar[int] = 320 << 20
    """Bytes that linear_cde takes unless told: 256 rows of both branches, V = 152,064."""

    def array(self, name: str, x: Any, contiguous: bool = False, wide: bool = False) -> Any:
        """Of floats; a torch tensor is copied only if its last dimension (or all, if
        asked) is not contiguous, or to round float64 unless ``wide``."""
        if not is_torch(x):
            return view(x, self)
        x = plain(name, x)
        return dense(x if wide or x.itemsize < 8 else narrowed(x), contiguous)

    def logits(self, name: str, x: Any) -> Any:
        """As `array`; float64 shifted by the rows' maxima before it is rounded."""
        if not is_torch(x) or x.dtype != sys.modules["torch"].float64:
            return self.array(name, x)
        return shifted(plain(name, x))

    def scores(self, name: str, x: Any) -> Any:
        """[N], contiguous; what is not torch must be float32 or float64 already."""
        self._here(name, x)
        if not is_torch(x):
            return view(x, self)
        return dense(floats(name, plain(name, x)), contiguous=True)

    def integers(self, name: str, x: Any) -> Any:
        """On the device as they are; from the host as int64, checked and uploaded."""
        if device_of(x) is None:
            return self.plan(name, x)
        self._here(name, x)
        if not is_torch(x):
            return view(x, self)
        kind = sys.modules["torch"]
        if x.is_floating_point() or x.is_complex() or x.dtype == kind.bool:
            raise RapInputError(f"{name}: expected integers, got {x.dtype}")
        return plain(name, x).long()

    def ignoring(self, ids: Any, ignore: int) -> tuple[Any, Any]:
        """(ids that can be read, which of them are ``ignore``); None where that is not
        known: of arrays that are not torch's."""
        if is_torch(ids):
            ignored = ids == ignore
            return (ids.masked_fill(ignored, 0) if ignore >= 0 else ids), ignored
        if not isinstance(ids, np.ndarray) or not (ids == ignore).any():
            return ids, None
        return np.where(ids == ignore, 0, ids), ids == ignore

    def blank(self, out: Any, rows: list[int], ignored: Any) -> None:
        """NaN in these rows of ``out`` [OUTPUTS, T], where ``ignored`` [T]."""
        if not is_torch(out):
            raise RapInputError(
                "targets: ignore_index is known for NumPy and torch only; here, give such "
                "rows another target and weight 0"
            )
        ignored = sys.modules["torch"].as_tensor(ignored, device=out.device)
        for row in rows:
            out[row].masked_fill_(ignored, math.nan)

    def counted(self, weights_: Any, ignored: Any, total: int) -> Any:
        """Weights [T] with 0 where ``ignored``, as `means` takes them."""
        if ignored is None:
            return weights_
        torch = sys.modules["torch"]
        if weights_ is None:
            w = torch.ones(total, dtype=torch.float64)
        elif device_of(weights_) is None:
            w = torch.from_numpy(weights(weights_, total))
        elif is_torch(weights_):
            w = self.scores("weights", weights_)
        else:
            w = torch.from_dlpack(weights_)
        device = torch.device("cuda", self.device)
        ignored = torch.as_tensor(ignored, device=device)
        return w.to(device).masked_fill(ignored, 0.0)

    def joined(self, outs: list[Any]) -> Any:
        """Answers [OUTPUTS, T] of several calls behind each other."""
        if is_torch(outs[0]):
            return sys.modules["torch"].cat(outs, 1)
        raise RapInputError("logits: of this framework, [B, T, V] must be contiguous")

    def plan(self, name: str, x: Any) -> np.ndarray | None:
        """Integers that the host itself computes with, more than once."""
        return None if x is None else own(small(name, x, np.int64))

    def mask(self, name: str, x: Any) -> Any:
        """bool [N] on the device as it is; from the host to be uploaded."""
        if device_of(x) is None:
            return None if x is None else own(small(name, x, np.bool_))
        self._here(name, x)
        if str(getattr(x, "dtype", "bool")).removeprefix("torch.") != "bool":
            raise RapInputError(f"{name}: expected booleans, got {x.dtype}")
        return self.array(name, x, contiguous=True)

    def means(self, rows: Any, wanted: Any, weights_: Any, cu_seqlens: Any) -> Any:
        """Of answers [OUTPUTS, T] over each sample [OUTPUTS, S]; ``wanted``: as `plan_of`
        of ops.py. Offsets and weights in host memory are
        checked, those on the device are not."""
        total = int(rows.shape[1])
        if device_of(cu_seqlens) is None:
            cu = own(offsets(cu_seqlens, total))
        elif len(cu_seqlens.shape) != 1 or cu_seqlens.shape[0] < 1:
            raise RapInputError(f"cu_seqlens: expected rising integers from 0 to {total}")
        else:
            cu = self.integers("cu_seqlens", cu_seqlens)
        if weights_ is None or device_of(weights_) is not None:
            w = self.scores("weights", weights_)
        else:
            w = own(weights(weights_, total))
        out = self.empty((int(rows.shape[0]), int(cu.shape[0]) - 1), FLOAT64)
        _C.cde_means(rows, w, cu, out, wanted[1], self.where(None, 0))
        return out

    def open_blas(self) -> None:
        """Before a kernel that multiplies."""
        open_cublaslt()

    def held(self, *arrays: Any) -> AbstractContextManager[None]:
        """Around a call that queues work: keeps foreign arrays alive until that work is
        known to be done."""
        return held(self, *arrays)

    def where(self, threads: int | None, work: int) -> tuple[int, Callable[[int], Any]]:
        """The last argument of a kernel. ``threads`` is ignored, but validated."""
        if threads is not None:
            integer("threads", threads)
        return self.stream, self.words

    def words(self, n: int) -> Any:
        """Workspace: n int64."""
        return self.empty((n,), INT64)

    def _here(self, name: str, x: Any) -> None:
        if x is not None and device_of(x) != self.device:
            raise RapInputError(f"{name} is on another device than the rest")


def own(x: np.ndarray) -> np.ndarray:
    """In memory that is ours. From pinned memory, which the caller may change or free as
    soon as the call returns, the device would copy when it gets to it."""
    return x.copy()


def place_of(kernel: str, **arrays: Any) -> Place | None:
    """Where a kernel module (cde, ace or drm) runs for these arrays: None is the host.

    Raises RapInputError if they are on different devices. Where this build has no device
    code of the module, torch tensors are copied to the host (None): a RuntimeWarning says
    so once, unless RAP_CUDA=off.
    """
    given = [(name, x) for name, x in arrays.items() if x is not None]
    devices = [device_of(x) for _, x in given]
    if all(device is None for device in devices):
        return None
    if kernel not in kernels():
        if os.environ.get("RAP_CUDA") != "off":
            _warn_of_host()
        return None
    for (name, _), device in zip(given, devices, strict=True):
        if device != devices[0]:
            raise RapInputError(
                f"{given[0][0]} is on {_name(devices[0])} and {name} on {_name(device)}: "
                "all arrays of a call must be on one device"
            )
    return _place(given[0][1], devices[0] or 0)


def _name(device: int | None) -> str:
    return "the CPU" if device is None else f"CUDA device {device}"


def _place(x: Any, device: int) -> Place:
    if is_torch(x):
        return _torch_place(x)
    cupy = sys.modules.get("cupy")
    if cupy is not None and isinstance(x, cupy.ndarray):
        return _cupy_place(cupy, device)
    stream = LEGACY_STREAM
    if not hasattr(x, "__dlpack__"):
        stream = x.__cuda_array_interface__.get("stream") or LEGACY_STREAM

    def empty(shape: tuple[int, ...], dtype: np.dtype) -> DeviceArray:
        return DeviceArray.empty(shape, dtype, device, stream)

    return Place(device, stream, empty)


def _torch_place(x: Any) -> Place:
    torch = sys.modules["torch"]
    dtypes = {FLOAT64: torch.float64, INT64: torch.int64}

    def empty(shape: tuple[int, ...], dtype: np.dtype) -> Any:
        try:
            return torch.empty(shape, dtype=dtypes[dtype], device=x.device)
        except torch.OutOfMemoryError as error:
            raise MemoryError(str(error)) from error

    stream = torch.cuda.current_stream(x.device).cuda_stream
    return Place(x.device.index, stream, empty)


def _cupy_place(cupy: Any, device: int) -> Place:
    def empty(shape: tuple[int, ...], dtype: np.dtype) -> Any:
        with cupy.cuda.Device(device):
            return cupy.empty(shape, dtype)

    with cupy.cuda.Device(device):
        stream = cupy.cuda.get_current_stream().ptr
    return Place(device, stream, empty)


def view(x: Any, place: Place) -> Any:
    """What _C can read on ``place``: DLPack as it is; ``__cuda_array_interface__`` wrapped,
    after a wait if its data is being made on another stream."""
    if x is None or isinstance(x, np.ndarray) or hasattr(x, "__dlpack__"):
        return x
    said = x.__cuda_array_interface__
    dtype, strides = np.dtype(said["typestr"]), said.get("strides")
    if not dtype.isnative or dtype.kind not in _DLPACK_KINDS:
        raise TypeError(f"__cuda_array_interface__: cannot read {said['typestr']!r}")
    if strides is not None and any(s % dtype.itemsize for s in strides):
        raise RapInputError(
            f"__cuda_array_interface__: strides {strides} are no multiples of "
            f"{dtype.itemsize} bytes"
        )
    pointer, _ = said["data"]
    made_on = said.get("stream")
    return DeviceArray(
        x,
        pointer,
        tuple(said["shape"]),
        dtype,
        place.device,
        place.stream if made_on is None else made_on,
        strides,
    )


@contextmanager
def held(place: Place, *arrays: Any) -> Iterator[None]:
    """Around a call that queues work on ``place``: keeps foreign arrays alive until that
    work is known to be done. Synchronises when MOST_HELD calls are pending already."""
    foreign = [x for x in arrays if _is_foreign(x, place)]
    if not foreign:
        yield
        return
    key = place.device, place.stream
    if len(_held.get(key, ())) >= MOST_HELD:
        _let_go(key, lambda: _C.cuda_wait(*key))
    try:
        yield
    finally:  # also after an error: something may have been queued
        with _lock:
            _held.setdefault(key, []).append(foreign)


def release() -> None:
    """Wait for the calls whose arrays are held, and free these."""
    for key in list(_held):
        _let_go(key, partial(_C.cuda_wait, *key))


def _is_foreign(x: Any, place: Place) -> bool:
    """On a device, and its memory may go back in another order than the stream's: torch's
    and CuPy's allocators follow theirs, of others DLPack does not say."""
    if x is None or isinstance(x, np.ndarray) or is_torch(x):
        return False
    cupy = sys.modules.get("cupy")
    known = cupy is not None and isinstance(x, cupy.ndarray)
    return not known and device_of(x) is not None and _order_of(x) != place.stream


def _order_of(x: Any) -> int | None:
    """The stream that an array says it belongs to; None: it does not say."""
    if isinstance(x, DeviceArray):
        return x.stream
    if hasattr(x, "__dlpack__"):
        return None
    return x.__cuda_array_interface__.get("stream") or LEGACY_STREAM


def _let_go(key: tuple[int, int], wait: Callable[[], None]) -> None:
    """Free what was held before ``wait``, which synchronises with the stream."""
    with _lock:
        before = _held.pop(key, [])
    try:
        wait()
    except BaseException:
        with _lock:
            _held.setdefault(key, []).extend(before)
        raise


@lru_cache(maxsize=1)
def open_cublaslt() -> int:
    """Version of cuBLASLt, found where torch or NVIDIA's wheels have it, or the system.

    Raises RapConfigError if there is none.
    """
    major = 13 if _C.cuda_info()["driver"] >= 13000 else 12
    names = [f"libcublasLt.so.{n}" for n in range(major, 11, -1)]
    found = [
        path
        for name in names
        for folder in sys.path
        for path in sorted(glob.glob(os.path.join(folder, "nvidia", "*", "lib", name)))
    ]
    return _C.cublaslt(found[0] if found else None)
