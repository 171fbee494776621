"""The shim, from Python: see shim.c."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_name("shim.c")

PYTHON, INSIDE, MALLOC, THREAD = range(4)
NAMES = ("python", "inside", "malloc", "thread")


def build(folder: Path) -> Path:
    """The library that is to be preloaded."""
    made = folder / "shim.so"
    command = ["cc", "-O1", "-shared", "-fPIC", "-o", made, SOURCE, "-ldl"]
    subprocess.run(command, check=True, timeout=600)
    return made


class Shim:
    """Loaded, with every function of rap._C known to it."""

    def __init__(self, path: str) -> None:
        from rap import _C

        library = ctypes.CDLL(path)
        library.sweep_watch.argtypes = [ctypes.c_size_t, ctypes.c_size_t]
        library.sweep_enter.argtypes = [ctypes.c_int, ctypes.py_object]
        library.sweep_arm.argtypes = [ctypes.c_int, ctypes.c_long]
        library.sweep_arm.restype = library.sweep_disarm.restype = None
        library.sweep_live.restype = ctypes.c_long
        self.arm, self.disarm = library.sweep_arm, library.sweep_disarm
        self.met, self.live = library.sweep_met, library.sweep_live
        library.sweep_watch(*span(_C.__file__))
        for number, function in enumerate(entry_points(_C)):
            assert library.sweep_enter(number, function) == 0, "too many entry points"
        assert library.sweep_hook_python() == 0, "no PyMem_SetAllocator in this Python"


def span(path: str) -> tuple[int, int]:
    """Where a library lies in memory."""
    with open("/proc/self/maps") as file:
        spans = [line.split()[0].split("-") for line in file if path in line]
    ends = [int(end, 16) for one in spans for end in one]
    return min(ends), max(ends)


def entry_points(module: Any) -> list[Any]:
    names = [name for name in sorted(dir(module)) if not name.startswith("__")]
    return [f for name in names if callable(f := getattr(module, name))]
