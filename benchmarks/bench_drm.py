"""drm against np.argpartition and torch.topk, neither of which orders or breaks ties."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

import rap
from benchmarks.common import Row, WrongResult, compare, row, shape_of
from rap import reference


def check_drm(difficulty: np.ndarray, gain: np.ndarray | None, name: str) -> None:
    d = difficulty[:2_300_000]  # more than two of the kernel's chunks
    g = None if gain is None else gain[: len(d)]
    k = len(d) * 9 // 100
    if not np.array_equal(rap.drm(d, k, gain=g), reference.drm(d, k, gain=g)):
        raise WrongResult(f"drm {name}")


def ours(x: np.ndarray, k: int, gain: np.ndarray | None = None) -> Callable[[], np.ndarray]:
    return lambda: rap.drm(x, k, gain=gain, threads=1)


def partition(x: np.ndarray, k: int) -> Callable[[], np.ndarray]:
    return lambda: np.argpartition(x, len(x) - k)[-k:]


def top(x: np.ndarray, k: int) -> Callable[[], object]:
    tensor = torch.from_numpy(x)
    return lambda: torch.topk(tensor, k, sorted=False)


def run_large(n: int) -> list[Row]:
    """The table's rows: 9 % of N float32."""
    x = np.random.default_rng(0).random(n, dtype=np.float32)
    check_drm(x, None, "float32")
    k = n * 9 // 100
    what, shape = "drm top 9 %", shape_of(N=n) + " float32"
    first = compare(
        "drm",
        what,
        shape,
        "np.argpartition",
        ours(x, k),
        partition(x, k),
        asked=5,
        budget=25,
    )
    second = compare(
        "drm", what, shape, "torch.topk", ours(x, k), top(x, k), asked=15, budget=25
    )
    memory = row(
        "drm",
        "drm memory beyond the scores",
        shape,
        "the scores themselves",
        "MB",
        first.ours_mb,
        x.nbytes / 2**20,
        asked=1.5,
        at_most=True,
    )
    return [first, second, memory]


def run_kinds(n: int, counts: tuple[int, ...]) -> list[Row]:
    """Even scores, and the few values that pass rates have; one key and two."""
    rng = np.random.default_rng(0)
    gain = rng.integers(-5, 6, n) / 5
    out = []
    for name, x in (("even", rng.random(n)), ("pass rates", rng.integers(0, 6, n) / 5)):
        check_drm(x, gain, name)
        for k in counts:
            for keys in (1, 2):
                out.append(
                    compare(
                        "drm",
                        f"drm {name}, {keys} key{'s' * (keys > 1)}",
                        shape_of(N=n, k=k) + " float64",
                        "np.argpartition (one key)",
                        ours(x, k, gain if keys == 2 else None),
                        partition(x, k),
                        budget=3,
                        memory=False,
                    )
                )
    return out


def run_growth(most: int) -> list[Row]:
    out, n = [], 10_000
    while n <= most:
        x = np.random.default_rng(1).random(n, dtype=np.float32)
        k = n * 9 // 100
        for rival, call in (("np.argpartition", partition), ("torch.topk", top)):
            out.append(
                compare(
                    "drm",
                    "drm top 9 %, growth",
                    shape_of(N=n) + " float32",
                    rival,
                    ours(x, k),
                    call(x, k),
                    budget=2,
                    axis="N",
                    x=n,
                )
            )
        n *= 10
    return out


def run(quick: bool) -> list[Row]:
    if quick:
        n, counts = 1_000_000, (10_000,)
    else:
        n, counts = 10_000_000, (1_000, 100_000, 930_000)
    out = run_large(10_000_000 if quick else 100_000_000)
    return out + run_kinds(n, counts) + run_growth(n)
