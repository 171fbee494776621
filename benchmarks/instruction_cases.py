"""The fixed small inputs whose instructions are counted; run by benchmarks.instructions.

Run as a script under callgrind, so it imports NumPy and the kernels and nothing else:
rap/__init__.py (pyarrow and more) is left out, Python's start-up alone takes seconds there.
The inputs are made of integers: the same bits from every NumPy.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np


def kernels() -> types.ModuleType:
    """rap.ops without rap/__init__.py."""
    package = types.ModuleType("rap")
    package.__path__ = [str(Path(__file__).resolve().parent.parent / "rap")]
    sys.modules["rap"] = package
    from rap import ops

    return ops


def numbers(*shape: int, spread: float = 4.0, dtype: str = "float32") -> np.ndarray:
    """Evenly spread in [-spread, spread), from a fixed seed."""
    integers = np.random.default_rng(len(shape) + sum(shape)).integers(-999, 1000, shape)
    values = (integers * (spread / 1000)).astype(np.float32)
    if dtype == "bfloat16":
        import ml_dtypes

        return values.astype(ml_dtypes.bfloat16)
    return values


def cases(ops: types.ModuleType) -> dict[str, Callable[[], object]]:
    """Name -> one kernel call on one thread."""
    both, every = ("kl", "rkl"), None
    l1, l0 = numbers(2, 20_011), numbers(2, 20_011, spread=3.0)
    h1, h0, w = numbers(8, 96), numbers(8, 96, spread=3.0), numbers(1500, 96, spread=0.3)
    half = [numbers(*x.shape, dtype="bfloat16") for x in (l1, l0, h1, h0, w)]
    q, k = numbers(4, 97, 64, spread=2.0), numbers(2, 97, 64, spread=2.0)
    lse = numbers(4, 97) + 8
    steps = numbers(50_000, spread=1.0)
    difficulty, gain = np.abs(np.round(steps * 8) / 8), steps[::-1].copy()
    nothing = np.empty((0, 7), np.float32)
    ace = {"response_start": 33, "threads": 1}
    return {
        "cde kl float32": lambda: ops.cde(l1, l0, want=both, threads=1),
        "cde kl bfloat16": lambda: ops.cde(half[0], half[1], want=both, threads=1),
        "cde all": lambda: ops.cde(l1, l0, want=every, targets=[7, 9], threads=1),
        "linear_cde float32": lambda: ops.linear_cde(h1, h0, w, want=both, threads=1),
        "linear_cde bfloat16": lambda: ops.linear_cde(*half[2:], want=both, threads=1),
        "ace mean": lambda: ops.ace(q, k, **ace),
        "ace max": lambda: ops.ace(q, k, heads="max", **ace),
        "ace each": lambda: ops.ace(q, k, heads="each", **ace),
        "ace each lse": lambda: ops.ace(q, k, heads="each", lse=lse, stats=False, **ace),
        "drm": lambda: ops.drm(difficulty, 2000, gain=gain, threads=1),
        "cde empty": lambda: ops.cde(nothing, nothing, threads=1),
        "ace empty": lambda: ops.ace(
            np.empty((2, 0, 4), np.float32),
            np.empty((1, 0, 4), np.float32),
            response_start=0,
            threads=1,
        ),
        "drm empty": lambda: ops.drm(nothing[:, 0], 0, threads=1),
    }


if __name__ == "__main__":
    for call in cases(kernels()).values():
        call()
