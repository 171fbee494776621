"""No call leaves anything behind: a few thousand of each kind, and that a leak is seen.

The loops of 10^5 are `make leaks` (tests/leaks); what came out is tests/leaks.md.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="reads /proc/self"
)
if sys.platform.startswith("linux"):
    from leaks import __main__, host
    from leaks.measure import ROUNDS, given, measured

    from rap import _C, ops

CALLS = 500


@pytest.fixture
def quietly():
    """What other tests have left stays out of the garbage collector's way."""
    import gc

    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def test_no_call_leaks(quietly) -> None:
    found = [measured(name, call, CALLS) for name, call in host.calls().items()]
    assert len(found) > 100
    assert {r.name: (r.leaks, r.grown) for r in found if r.leaks} == {}


@pytest.mark.proof
def test_no_call_leaks_on_a_device() -> None:
    found = list(__main__.on_device(200, []))
    if not found:
        pytest.skip("no CUDA kernels in this build, or no tools to build the fake with")
    assert len(found) > 35
    assert {r.name: (r.leaks, r.grown) for r in found if r.leaks} == {}


def test_every_entry_point_is_called() -> None:
    """Of rap._C and rap.ops, and that each is also refused."""
    names = {n for n in dir(_C) if callable(getattr(_C, n)) and not n.startswith("__")}
    names |= {n for n in ops.__all__ if callable(getattr(ops, n))}
    names -= {n for n in names if isinstance(getattr(ops, n, None), type)}
    assert {"ace", "cde", "cde_means", "cuda_dlpack", "default_threads"} <= names
    said = [name.removeprefix("_C: ") for name in host.calls()]
    answered = {n.split(":")[0].split(" refused")[0] for n in said}
    answered |= set(host.ON_DEVICE)
    assert names <= answered, names - answered
    refused = " ".join(n for n in said if "refused" in n)
    never = {"isa_names", "cuda_info", "default_threads", "cublaslt"}
    assert {n for n in names - never if f"{n} refused" not in refused
            and f"{n}: refused" not in refused} == set()  # fmt: skip


KEPT: list[Any] = []


def _seeds() -> dict[str, Callable[[], object]]:
    """What grows, and a call that makes it grow."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    array, more = np.zeros(3), ctypes.pythonapi.Py_IncRef
    more.argtypes = [ctypes.py_object]

    def mapped() -> None:
        KEPT.append(mmap.mmap(-1, 1 << 16))
        KEPT[-1][:] = bytes(1 << 16)

    def waiting() -> None:
        end = threading.Event()
        KEPT.append(end)
        threading.Thread(target=end.wait, daemon=True).start()

    def file() -> None:
        KEPT.append(os.dup(0))

    return {
        "blocks": lambda: more([]),
        "bytes": lambda: libc.malloc(100),
        "references": lambda: more(array),
        "files": file,
        "threads": waiting,
        "resident": mapped,
    }


@pytest.mark.parametrize(
    "what", ["blocks", "bytes", "references", "files", "threads", "resident"]
)
def test_a_leak_is_seen(what: str, quietly) -> None:
    """Of each kind; a reference that C does not give back, on what it was given."""
    count = {"threads": 5, "files": 100, "resident": 100}.get(what, CALLS)
    try:
        found = measured(what, _seeds()[what], count)
    finally:
        for kept in KEPT:
            if isinstance(kept, threading.Event):
                kept.set()
            elif isinstance(kept, int):
                os.close(kept)
            else:
                kept.close()
        KEPT.clear()
    assert what in found.leaks, found


@pytest.mark.parametrize("shared", [None, True, TypeError], ids=repr)
def test_a_reference_to_what_all_share_is_seen(shared: object, quietly) -> None:
    """None returned without a reference of its own, or one too many to an exception."""
    if sys.version_info >= (3, 12) and shared is not TypeError:
        pytest.skip("immortal from Python 3.12 on: no reference can be lost")
    more = ctypes.pythonapi.Py_IncRef
    more.argtypes = [ctypes.py_object]
    assert "references" in measured("", lambda: more(shared), 500).leaks


def test_a_reference_given_back_once_too_often_is_seen(quietly) -> None:
    """A few calls do not free what many hold, and so do not end the process."""
    less, array = ctypes.pythonapi.Py_DecRef, np.zeros(3)
    less.argtypes = [ctypes.py_object]
    many = [array] * 2 * ROUNDS * CALLS
    found = measured("", lambda: less(array), CALLS)
    for _ in range(len(many)):  # enough of them, and more
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(array))
    assert "references" in found.leaks, found


def test_what_a_call_was_given_is_watched() -> None:
    x, rows = np.zeros(3), [[1.0]]
    inner = host.refused(TypeError, "", lambda: x)
    found = given(lambda: (inner(), rows))
    assert {id(x), id(rows), id(rows[0])} <= set(found)
