"""Arrays in host memory: arguments and results of the kernels.

``Host`` and ``cuda.Place`` have the same methods, one for each kind of argument, so
that ops.py spells every argument once. A method takes the argument's name, for errors, and
the caller's array (None stays None), and returns what ``rap._C`` can view.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import numpy as np

from . import _C
from .errors import RapConfigError, RapInputError

FLOAT64, INT64 = np.dtype(np.float64), np.dtype(np.int64)
_CUDA = (2, 13)  # DLPack's kDLCUDA, kDLCUDAManaged
_NOTHING = nullcontext()


OTHER, TORCH, WRAPPER = range(3)
_kinds: dict[type, int] = {}


def kind_of(x: object) -> int:
    """TORCH: a tensor; WRAPPER: one that dispatches to others; else OTHER."""
    kind = _kinds.get(type(x))
    if kind is None:
        kind = _kinds[type(x)] = _kind(type(x))
    return kind


def _kind(cls: Any) -> int:
    torch = sys.modules.get("torch")
    if torch is None or not issubclass(cls, torch.Tensor):
        return OTHER
    plain_ = cls.__torch_dispatch__ is torch.Tensor.__torch_dispatch__
    return TORCH if plain_ else WRAPPER


def is_torch(x: object) -> bool:
    return kind_of(x) != OTHER


def is_jax(x: object) -> bool:
    """An array of JAX, traced ones too."""
    jax = sys.modules.get("jax")
    return jax is not None and isinstance(x, getattr(jax, "Array", ()))


def host_view(x: Any) -> Any:
    """An array of JAX in host memory as NumPy sees it, without a copy; others as they are.

    Raises RapInputError for one that is being traced (``jax.jit``, ``jax.grad``).
    """
    if isinstance(x, np.ndarray) or x is None or is_torch(x) or not is_jax(x):
        return x
    if isinstance(x, sys.modules["jax"].core.Tracer):
        raise RapInputError(
            "an array that JAX is tracing (jit, grad, vmap) has no values yet: call rap "
            "outside of it, or through jax.pure_callback"
        )
    if x.is_deleted():
        raise RapInputError("an array of JAX that was deleted (donated) has no values")
    return x if device_of(x) is not None else np.asarray(x)


_UNEQUAL = "lists of unequal lengths, or of something else than numbers"


def numbers(name: str, x: Any) -> Any:
    """Lists and tuples of numbers, or of arrays in host memory, as NumPy makes an array of
    them, integers as float64; anything else as it is.

    Raises TypeError for lists of anything but numbers, RapInputError for unequal lengths.
    """
    if not isinstance(x, (list, tuple)):
        return x if x is None or _has_shape(x) else _shaped(x)
    try:
        array = np.asarray(x)
    except (ValueError, TypeError, RuntimeError) as error:
        if any(map(is_torch, x)):
            raise TypeError(
                f"{name}: a {type(x).__name__} of tensors that NumPy cannot read; pass "
                "torch.stack(x)"
            ) from error
        raise RapInputError(f"{name}: {_UNEQUAL}") from error
    if array.dtype.kind in "OSUmMb":
        raise TypeError(
            f"{name}: expected an array (NumPy, torch, JAX or DLPack) or lists of numbers, "
            f"got a {type(x).__name__} that NumPy reads as {array.dtype}"
        )
    return array.astype(np.float64) if array.dtype.kind in "iu" else array


def _has_shape(x: Any) -> bool:
    try:
        x.shape  # noqa: B018 -- hasattr passes what torch raises for a lazy parameter
    except AttributeError:
        return False
    except RuntimeError:
        pass
    return True


def _shaped(x: Any) -> Any:
    """A producer of DLPack or a buffer in host memory that does not say its shape, as NumPy
    views it; what NumPy cannot view stays, and _C says what is wrong with it."""
    try:
        return np.from_dlpack(x) if hasattr(x, "__dlpack__") else np.asarray(memoryview(x))
    except (TypeError, ValueError, RuntimeError, BufferError):
        return x


def device_of(x: Any) -> int | None:
    """Ordinal of the CUDA device that an array is on; None for any other memory."""
    if x is None or isinstance(x, np.ndarray):
        return None
    if is_torch(x):
        return x.device.index if x.is_cuda else None
    if hasattr(x, "__dlpack_device__"):
        kind, device = x.__dlpack_device__()
        return int(device) if int(kind) in _CUDA else None
    if hasattr(x, "__cuda_array_interface__"):
        pointer = x.__cuda_array_interface__["data"][0]
        device = _C.cuda_device_of(pointer) if pointer else 0
        if device < 0:
            raise RapInputError("__cuda_array_interface__: not memory of a CUDA device")
        return device
    return None


def plain(name: str, x: Any, host: bool = False) -> Any:
    """A torch tensor, detached, that has memory of its own; in host memory if asked.

    Raises RapInputError for one that has none: a wrapper of other tensors (DTensor,
    quantised weights, a masked or fake tensor), a sparse or meta tensor, one whose storage
    was freed (FSDP) or that vmap or grad passed in. torch itself may crash on some of them.
    """
    if kind_of(x) == WRAPPER or not _has_memory(x):
        if x.is_meta:
            raise RapInputError(
                f"{name}: a meta tensor has a shape, and no memory with values. Pass one "
                "that has; for shapes alone rap.cde, linear_cde and ace take meta tensors "
                "for all of their logits, hidden states and weight, or queries and keys"
            )
        raise RapInputError(
            f"{name}: this {type(x).__name__} has no memory of its own that could be read; "
            "pass an ordinary tensor (DTensor: x.full_tensor(), quantised: x.dequantize(), "
            "sparse: x.to_dense())"
        )
    x = x.detach() if x.requires_grad else x
    x = x.cpu() if host and not x.is_cpu else x
    return x.resolve_neg() if x.is_neg() else x  # a minus sign that is not in the memory


def _has_memory(x: Any) -> bool:
    try:
        if x.data_ptr():  # torch before 2.10 says of these two only what its DLPack says
            return not (x.is_quantized or x.is_nested) and _holds(x)
        if not x.numel():
            return True
    except RuntimeError:  # no storage at all
        pass
    except ValueError:  # a parameter that has no shape yet
        return False
    return not (x.is_cpu or x.is_cuda or x.is_meta)  # other devices keep it to themselves


def _holds(x: Any) -> bool:
    """Whether the storage reaches to the tensor's last element: it may have been cut."""
    room = x.untyped_storage().nbytes()
    if x.is_contiguous():
        return x.storage_offset() * x.itemsize + x.nbytes <= room
    steps = zip(x.shape, x.stride(), strict=True)
    last = x.storage_offset() + sum((n - 1) * step for n, step in steps)
    return not x.numel() or (last + 1) * x.itemsize <= room


def dense(x: Any, contiguous: bool = False) -> Any:
    """A torch tensor whose last dimension is contiguous (all of them if asked); a copy
    only if it has to be."""
    if x.is_contiguous() or (not contiguous and (x.shape[-1] == 1 or x.stride(-1) == 1)):
        return x
    return x.contiguous()


def narrowed(x: Any) -> Any:
    """float64 of NumPy or torch as float32, rounded; others as they are."""
    if is_torch(x):
        return x.float() if x.dtype == sys.modules["torch"].float64 else x
    return x.astype(np.float32) if x.dtype.char == "d" and x.dtype.isnative else x


def shifted(x: Any) -> Any:
    """Logits in float64 as float32: each row less its maximum, which changes no
    probability, and then rounded. Blocks of rows, to hold little at a time."""
    last = x.shape[-1] if x.ndim else 0
    if not last:
        return narrowed(x)
    rows = x.reshape(-1, last)
    if is_torch(x):
        torch = sys.modules["torch"]
        out = torch.empty(rows.shape, dtype=torch.float32, device=x.device)
        for i in range(0, len(rows), _SHIFTED):
            part = rows[i : i + _SHIFTED]
            out[i : i + _SHIFTED] = part - part.amax(-1, keepdim=True)
        return out.reshape(x.shape)
    out = np.empty(rows.shape, np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        for i in range(0, len(rows), _SHIFTED):
            part = rows[i : i + _SHIFTED]
            out[i : i + _SHIFTED] = part - part.max(-1, keepdims=True)
    return out.reshape(x.shape)


_SHIFTED = 64
"""Rows of float64 logits shifted at once."""


def floats(name: str, x: Any) -> Any:
    """A torch tensor of float32 or float64 as it is, anything else as float64."""
    torch = sys.modules["torch"]
    if x.dtype in (torch.float32, torch.float64):
        return x
    if x.is_complex() or x.is_quantized or x.is_nested:
        raise TypeError(f"{name}: expected plain real numbers, got {x.dtype}")
    return x.double()


def is_real(dtype: np.dtype) -> bool:
    """Whether float64 holds such numbers: bfloat16 of ml_dtypes too, no dates, no complex
    numbers."""
    return dtype.kind in "biuf" or (dtype.kind == "V" and np.can_cast(dtype, FLOAT64))


def unmasked(name: str, x: np.ndarray) -> np.ndarray:
    """An array of NumPy without a mask. Raises RapInputError where something is masked: its
    values would be read as if it were not."""
    if isinstance(x, np.ma.MaskedArray):
        if np.ma.is_masked(x):
            raise RapInputError(
                f"{name}: {np.ma.count_masked(x)} elements of this array are masked; fill "
                "them (x.filled(...))"
            )
        return x.data
    return x


def asarray(name: str, x: Any) -> np.ndarray:
    """As NumPy reads it. Raises RapInputError for lists of unequal length and for masked
    elements."""
    if isinstance(x, np.ndarray):
        return unmasked(name, x)
    if hasattr(x, "__dlpack__") and not hasattr(x, "__array__"):
        x = _shaped(x)
    try:
        return np.asarray(x)
    except ValueError as error:
        raise RapInputError(f"{name}: {_UNEQUAL}") from error


def small(name: str, x: Any, dtype: type) -> np.ndarray:
    """A small array (offsets, masks, targets, weights) as contiguous NumPy, from wherever
    it is."""
    if is_torch(x):
        x = plain(name, x, host=True)
        if x.is_complex() or x.is_quantized or x.is_nested:
            raise TypeError(f"{name}: expected plain real numbers, got {x.dtype}")
        try:
            x = (x.double() if dtype is np.float64 else x).numpy()  # NumPy has no bfloat16
        except NotImplementedError as error:  # bits, without a type
            raise TypeError(f"{name}: a tensor of {x.dtype} holds no numbers") from error
    elif device_of(x) is not None:
        fetch = getattr(x, "numpy", None) or getattr(x, "get", None)  # ours, or CuPy's
        if fetch is None:
            raise RapInputError(f"{name} is on a CUDA device: move it to the host")
        x = fetch()
    array = asarray(name, x)
    if dtype is np.int64 and array.size and array.dtype.kind not in "iu":
        raise RapInputError(f"{name}: expected integers, got {array.dtype}")
    if dtype is np.int64 and array.dtype == np.uint64 and (array >> 63).any():
        raise RapInputError(f"{name}: {array.max()} is no int64")
    if dtype is np.float64 and array.size and not is_real(array.dtype):
        raise RapInputError(f"{name}: expected numbers, got {array.dtype}")
    if dtype is np.bool_ and array.dtype != np.bool_:
        raise RapInputError(f"{name}: expected booleans, got {array.dtype}")
    return np.ascontiguousarray(array, dtype=dtype)


def offsets(cu_seqlens: Any, total: int) -> np.ndarray:
    """int64 [S + 1], rising from 0 to ``total``."""
    cu = small("cu_seqlens", cu_seqlens, np.int64)
    if (
        cu.ndim != 1
        or len(cu) < 1
        or cu[0] != 0
        or cu[-1] != total
        or (np.diff(cu) < 0).any()
    ):
        raise RapInputError(f"cu_seqlens: expected rising integers from 0 to {total}")
    return cu


def weights(x: Any, total: int) -> np.ndarray:
    """float64 [total], finite, >= 0."""
    w = small("weights", x, np.float64)
    if w.shape != (total,):
        raise RapInputError(f"weights: expected numbers [{total}], got {list(w.shape)}")
    if not np.isfinite(w).all() or (w < 0).any():
        bad = int(np.flatnonzero(~(np.isfinite(w) & (w >= 0)))[0])
        raise RapInputError(f"weights[{bad}] = {w[bad]}: expected finite numbers >= 0")
    return w


def integer(name: str, value: object, least: int = 1) -> int:
    """A whole number that C can hold."""
    if type(value) is int and least <= value < 2**63:
        return value
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        if least <= value < 2**63:
            return int(value)
    raise RapConfigError(f"{name} = {value!r}: expected an integer >= {least}")


def number(name: str, value: object, expected: str) -> float:
    """A float. Raises RapConfigError, which says what was expected, for what is none."""
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise RapConfigError(f"{name} = {value!r}: expected {expected}") from None


def default_threads() -> int:
    """RAP_NUM_THREADS, else torch's own number if torch is loaded, else the processors
    this process may use."""
    text = os.environ.get("RAP_NUM_THREADS")
    if text:
        try:
            return max(1, int(text))
        except ValueError:
            raise RapConfigError(
                f"RAP_NUM_THREADS = {text!r}: expected an integer"
            ) from None
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "get_num_threads"):
        return max(1, torch.get_num_threads())
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


class Host:
    """Host memory. ``answer`` brings an array into the caller's framework and to its
    device; None: it is NumPy's already."""

    __slots__ = ("answer",)
    scratch: ClassVar[int] = 64 << 20
    """Bytes that linear_cde takes unless told."""
    empty: ClassVar[Any] = staticmethod(np.empty)

    def __init__(self, answer: Callable[[np.ndarray], Any] | None = None) -> None:
        self.answer = answer

    def array(self, name: str, x: Any, contiguous: bool = False, wide: bool = False) -> Any:
        """Of floats, float64 rounded to float32 unless ``wide``; copied only if its last
        dimension (or all, if asked) is not contiguous."""
        if isinstance(x, np.ndarray):
            x = x if type(x) is np.ndarray else unmasked(name, x)
            flags = x.flags
            if x.itemsize == 8 and not wide:
                x = narrowed(x)
            elif flags.carray:
                return x
            dense_ = flags.c_contiguous
            bad = not dense_ and x.shape[-1] > 1 and x.strides[-1] != x.itemsize
            if bad or (contiguous and not dense_) or not flags.aligned:
                x = x.copy()  # ascontiguousarray keeps an array that is only unaligned
            return x
        if is_torch(x):
            x = plain(name, x, host=True)
            return dense(x if wide or x.itemsize < 8 else narrowed(x), contiguous)
        return x

    def logits(self, name: str, x: Any) -> Any:
        """As `array`; float64 shifted by the rows' maxima before it is rounded."""
        if isinstance(x, np.ndarray):
            x = x if type(x) is np.ndarray else unmasked(name, x)
            wide = x.dtype.char == "d" and x.dtype.isnative
        elif is_torch(x):
            x = plain(name, x, host=True)
            wide = x.dtype is sys.modules["torch"].float64
        else:
            wide = False
        return shifted(x) if wide else self.array(name, x)

    def scores(self, name: str, x: Any) -> Any:
        """[N], contiguous: float32 and float64 as they are, anything else as float64."""
        if x is None:
            return None
        if is_torch(x):
            return dense(floats(name, plain(name, x, host=True)), contiguous=True)
        x = asarray(name, x)
        if x.dtype is not FLOAT64 and x.dtype != np.float32:
            if x.dtype.kind == "O":
                raise TypeError(f"{name}: expected numbers, got an array of objects")
            if not is_real(x.dtype):
                raise TypeError(f"{name}: expected numbers, got {x.dtype}")
            x = x.astype(np.float64)
        return self.array(name, x, contiguous=True, wide=True)

    def integers(self, name: str, x: Any) -> np.ndarray | None:
        return None if x is None else small(name, x, np.int64)

    plan = integers
    """What the host itself computes with during the call."""

    def ignoring(self, ids: np.ndarray, ignore: int) -> tuple[np.ndarray, Any]:
        """(ids that can be read, which of them are ``ignore``; None if none is)."""
        ignored = ids == ignore
        return (np.where(ignored, 0, ids), ignored) if ignored.any() else (ids, None)

    def blank(self, out: np.ndarray, rows: list[int], ignored: np.ndarray) -> None:
        """NaN in these rows of ``out`` [OUTPUTS, T], where ``ignored`` [T]."""
        for row in rows:
            out[row, ignored] = np.nan

    def counted(self, weights_: Any, ignored: Any, total: int) -> Any:
        """Weights [T] with 0 where ``ignored``, as `means` takes them."""
        if ignored is None:
            return weights_
        w = 1.0 if weights_ is None else weights(weights_, total)
        return np.where(ignored, 0.0, w)

    def joined(self, outs: list[np.ndarray]) -> np.ndarray:
        """Answers [OUTPUTS, T] of several calls behind each other."""
        return np.concatenate(outs, axis=1)

    def mask(self, name: str, x: Any) -> np.ndarray | None:
        return None if x is None else small(name, x, np.bool_)

    def means(self, rows: Any, wanted: Any, weights_: Any, cu_seqlens: Any) -> np.ndarray:
        """Of answers [OUTPUTS, T] over each sample [OUTPUTS, S]; ``wanted``: as `plan_of`
        of ops.py. NaN where weights sum to 0; a row of weight 0 does not count, whatever it
        holds."""
        cu = offsets(cu_seqlens, rows.shape[1])
        w = np.ones(rows.shape[1]) if weights_ is None else weights(weights_, rows.shape[1])
        out = np.full((len(rows), len(cu) - 1), np.nan)
        total = _segments(w, cu)
        for row in wanted[0]:
            weighted = rows[row]
            if weights_ is not None:
                weighted = np.where(w > 0, weighted, 0) * w
            np.divide(_segments(weighted, cu), total, out=out[row], where=total > 0)
        return out

    def open_blas(self) -> None:
        """Kernels multiply themselves here."""

    def held(self, *arrays: Any) -> AbstractContextManager[None]:
        """Nothing is read after a call has returned."""
        return _NOTHING

    def where(self, threads: int | None, work: int) -> int:
        """The last argument of a kernel: how many threads, for so many bytes of work."""
        if threads is None:
            # _C stays on one thread below GIL_BYTES: asking the environment costs 2 us
            return default_threads() if work >= _C.GIL_BYTES else 1
        return min(integer("threads", threads), 256)


def _segments(x: np.ndarray, cu: np.ndarray) -> np.ndarray:
    """The sum of each segment, on its own: reduceat would let one sample's inf reach the
    next."""
    return np.array([x[a:b].sum() for a, b in zip(cu[:-1], cu[1:], strict=True)])


IN_NUMPY = Host()
_in_torch: list[Host] = []


def host_of(like: Any) -> Host:
    """Host memory for a call whose answers go where ``like`` is."""
    if isinstance(like, np.ndarray) or not (is_torch(like) or is_jax(like)):
        return IN_NUMPY
    if not is_torch(like):
        return Host(sys.modules["jax"].numpy.asarray)
    from_numpy = sys.modules["torch"].from_numpy
    if not like.is_cpu:
        return Host(lambda x: from_numpy(x).to(like.device))
    if not _in_torch:
        _in_torch.append(Host(from_numpy))
    return _in_torch[0]
