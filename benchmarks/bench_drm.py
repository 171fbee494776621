"""drm against np.argpartition and torch.topk, neither of which orders or breaks ties."""

from __future__ import annotations

import numpy as np
import torch

import rap
from benchmarks.common import Row, WrongResult, compare
from rap import reference


def run(quick: bool) -> list[Row]:
    rng = np.random.default_rng(0)
    n = 10_000_000
    kinds = {
        "uniform": rng.random(n),
        "counts of 5": rng.integers(0, 6, n) / 5,
    }
    gain = rng.integers(-5, 6, n) / 5
    out = []
    for name, difficulty in kinds.items():
        small = slice(0, 400_000)
        got = rap.drm(difficulty[small], 5000, gain=gain[small])
        if not np.array_equal(
            got, reference.drm(difficulty[small], 5000, gain=gain[small])
        ):
            raise WrongResult(f"drm {name}")
        for k in (100_000,) if quick else (1_000, 100_000, 930_000):

            def argpartition(x: np.ndarray = difficulty, k: int = k) -> np.ndarray:
                return np.argpartition(x, n - k)

            out.append(
                compare(
                    "drm",
                    f"{k:,} of 10^7 {name}",
                    "np.argpartition (one key)",
                    lambda d=difficulty, k=k: rap.drm(d, k, threads=1),
                    argpartition,
                    floor=1,
                    repeats=5,
                )
            )
            out.append(
                compare(
                    "drm",
                    f"{k:,} of 10^7 {name}, two keys",
                    "np.argpartition (one key)",
                    lambda d=difficulty, k=k: rap.drm(d, k, gain=gain, threads=1),
                    argpartition,
                    repeats=5,
                )
            )
    tensor = torch.from_numpy(kinds["uniform"])
    out.append(
        compare(
            "drm",
            "100,000 of 10^7 uniform",
            "torch.topk",
            lambda: rap.drm(tensor, 100_000, threads=1),
            lambda: torch.topk(tensor, 100_000, sorted=False),
            repeats=3,
        )
    )
    return out
