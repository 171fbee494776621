"""What a call costs that has nothing to compute: NumPy and torch, empty inputs."""

from __future__ import annotations

import timeit
from collections.abc import Callable

import numpy as np
import torch

import rap
from benchmarks.common import Row, row
from rap import _C


def microseconds(call: Callable[[], object], windows: int) -> float:
    """The least over short windows: what else runs only adds, and longer windows than 1 ms
    are cut by the scheduler."""
    number = 100
    times = timeit.repeat(call, number=number, repeat=windows)
    return 1e6 * min(times) / number


def run(quick: bool) -> list[Row]:
    out = []
    windows = 200 if quick else 1000
    for framework, limit in (("NumPy", 3.0), ("torch", 5.0)):
        make = torch.empty if framework == "torch" else np.empty
        kind = torch.float32 if framework == "torch" else np.float32
        logits, scores = make((0, 7), dtype=kind), make((0,), dtype=kind)
        q, k = make((2, 0, 4), dtype=kind), make((1, 0, 4), dtype=kind)
        space = np.empty((_C.CDE_OUTPUTS, 0))
        calls: dict[str, tuple[Callable[[], object], float | None]] = {
            "cde": (lambda x=logits: rap.cde(x, x, want=("kl", "rkl")), limit),
            "cde, all answers": (lambda x=logits: rap.cde(x, x), limit),
            "ace": (lambda q=q, k=k: rap.ace(q, k, response_start=0), limit),
            "drm": (lambda x=scores: rap.drm(x, 0), limit),
            "_C.cde alone": (lambda x=logits, o=space: _C.cde(x, x, None, o, 3, 1), None),
        }
        for name, (call, asked) in calls.items():
            took = microseconds(call, windows)
            out.append(
                row(
                    "call",
                    f"empty call: {name}",
                    framework,
                    "",
                    "us",
                    took,
                    None,
                    asked=asked,
                    at_most=asked is not None,
                )
            )
    return out
