"""What a process holds, before and after many calls of one kind."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from types import FunctionType
from typing import Any

import numpy as np

import rap

Call = Callable[[], object]


class _Malloc(ctypes.Structure):
    """struct mallinfo2 of glibc 2.33 and newer."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks "
        "keepcost".split()
    ]


_mallinfo = getattr(ctypes.CDLL(None), "mallinfo2", None)
if _mallinfo is not None:
    _mallinfo.restype = _Malloc


@dataclass(frozen=True)
class Held:
    """What is there at one moment."""

    blocks: int
    """Of Python's allocator."""
    bytes: int
    """Given out by malloc, of all threads; 0 where glibc does not say."""
    references: int
    """To what the calls are given, and to the objects that C returns or raises."""
    files: int
    threads: int
    resident: int
    """KiB"""
    device: int = 0
    """Blocks of device memory, contexts, work that is queued."""

    def __sub__(self, before: Held) -> Held:
        names = [field.name for field in fields(Held)]
        return Held(*(getattr(self, n) - getattr(before, n) for n in names))


SHARED: tuple[object, ...] = (
    None, True, False, (), "", 0, 1, TypeError, ValueError, OverflowError, MemoryError,
    RuntimeError, rap.RapInputError, rap.RapConfigError, rap.RapDeviceError, rap._C,
    np.ndarray, np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.int64),
)  # fmt: skip
"""What C may return, raise or ask, and must give back."""


def given(call: object, found: dict[int, object] | None = None) -> dict[int, object]:
    """What a call reads: the cells of its function, and of the functions in them."""
    found = {} if found is None else found
    for cell in getattr(call, "__closure__", None) or ():
        value = cell.cell_contents
        if id(value) not in found:
            found[id(value)] = value
            if isinstance(value, FunctionType):
                given(value, found)
            elif isinstance(value, (list, tuple)):
                found |= {id(x): x for x in value}
    return found


def held(objects: Iterable[object], device: Callable[[], int] | None = None) -> Held:
    there = 0 if device is None else device()
    gc.collect()
    references = sum(sys.getrefcount(x) for x in objects)
    blocks = sys.getallocatedblocks()
    info = _Malloc() if _mallinfo is None else _mallinfo()
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[1])
    return Held(
        blocks,
        info.uordblks + info.hblkhd,
        references,
        len(os.listdir("/proc/self/fd")),
        len(os.listdir("/proc/self/task")),
        pages * (os.sysconf("SC_PAGE_SIZE") >> 10),
        there,
    )


def limits(count: int) -> Held:
    """What ``count`` calls may leave: caches that grow once, less than one thing in three
    hundred calls."""
    few = max(90, count // 300)
    return Held(few, 8 * 1024 + 4 * count, few // 3, 0, 0, 2048, 0)


@dataclass(frozen=True)
class Result:
    """Of one kind of call."""

    name: str
    count: int
    grown: Held
    microseconds: float
    """CPU time of a call."""

    @property
    def leaks(self) -> list[str]:
        """Names of what grew more than it may. References may not become fewer either: one
        that C gives back without having it ends in memory that is freed too early."""
        most, grown = limits(self.count), self.grown
        grown = replace(grown, references=abs(grown.references))
        names = [field.name for field in fields(Held)]
        return [n for n in names if getattr(grown, n) > getattr(most, n)]


DEAR, SHARE = 200.0, 10
"""A call that takes more microseconds than that is done a tenth as often."""
ROUNDS = 8
"""Of ``count`` calls, before what grows is called a leak, which goes on in all of them. The
first kind on the device fills a cache for seven rounds of 100: 309 blocks, 118 .. 39, 0."""


def measured(
    name: str, call: Call, count: int, device: Callable[[], int] | None = None
) -> Result:
    """``count`` calls, after some that fill what is filled once. If they leave more than
    they may, as many again: a cache is full by then, a leak goes on."""
    objects: list[Any] = [*SHARED, *given(call).values()]
    few = max(50, count // 100)
    if _timed(call, few) > DEAR:
        count = min(count, max(count // SHARE, 100))
    held(objects, device)  # its own first time
    for _ in range(ROUNDS):
        before = held(objects, device)
        took = _timed(call, count)
        found = Result(name, count, held(objects, device) - before, took)
        if not found.leaks:
            break
    return found


def _timed(call: Call, count: int) -> float:
    """Microseconds of CPU time a call, of ``count``."""
    began = time.process_time()
    for _ in range(count):
        call()
    return 1e6 * (time.process_time() - began) / count


def quiet() -> None:
    """What is there stays out of the garbage collector's way: the modules of torch take it
    a tenth of a second each time."""
    gc.collect()
    gc.freeze()
