"""drm against np.argpartition and torch.topk, neither of which orders or breaks ties."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

import rap
from benchmarks.common import Row, WrongResult, compare, peak_mb, row, shape_of
from rap import reference


def check_drm(d: np.ndarray, k: int, gain: np.ndarray | None, name: str) -> None:
    """Refuses to go on unless the whole answer is right: against the reference, or, where
    its sort would take minutes, by what makes the answer unique without a gain."""
    got = rap.drm(d, k, gain=gain, threads=1)
    if len(d) <= 10_000_000:
        right = np.array_equal(got, reference.drm(d, k, gain=gain))
    elif gain is not None:
        raise ValueError("a gain is checked up to 10,000,000 samples only")
    else:
        right = is_the_order(got, d, k)
    if not right:
        raise WrongResult(f"drm {name}")


def is_the_order(got: np.ndarray, d: np.ndarray, k: int) -> bool:
    """All of k candidates, each before the next by value or, equal, by index, and none left
    out that comes before the last."""
    values = d[got]
    falls, ties = values[:-1] > values[1:], values[:-1] == values[1:]
    in_order = np.all(falls | (ties & (got[:-1] < got[1:])))
    before = np.count_nonzero((d > values[-1]) & (d < 1))
    before += np.count_nonzero(d[: got[-1]] == values[-1])
    return len(got) == k and bool(in_order) and values[0] < 1 and before == k - 1


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
    k = n * 9 // 100
    check_drm(x, k, None, "float32")
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
    return [first, second, memory_row("", shape, first.ours_mb, x.nbytes)]


def memory_row(kind: str, shape: str, ours_mb: float | None, nbytes: int) -> Row:
    return row(
        "drm",
        f"drm memory beyond the scores{kind}",
        shape,
        "the scores themselves",
        "MB",
        ours_mb,
        nbytes / 2**20,
        asked=1.5,
        at_most=True,
    )


def run_ties(n: int) -> list[Row]:
    """Memory where most of the samples tie for the last place."""
    x = np.full(n, 0.5, np.float32)
    gain = np.random.default_rng(0).random(n, dtype=np.float32)
    k, shape, out = n * 9 // 100, shape_of(N=n) + " float32", []
    for name, g in ((", ties", None), (", ties with gain", gain)):
        check_drm(x, k, g, name)
        held = x.nbytes + (0 if g is None else g.nbytes)
        out.append(memory_row(name, shape, peak_mb(ours(x, k, g)), held))
    return out


def run_kinds(n: int, counts: tuple[int, ...]) -> list[Row]:
    """Even scores, and the few values that pass rates have; one key and two."""
    rng = np.random.default_rng(0)
    gain = rng.integers(-5, 6, n) / 5
    out = []
    for name, x in (("even", rng.random(n)), ("pass rates", rng.integers(0, 6, n) / 5)):
        for k in counts:
            for keys in (1, 2):
                check_drm(x, k, gain if keys == 2 else None, name)
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
        check_drm(x, k, None, "growth")
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
    return out + run_ties(n) + run_kinds(n, counts) + run_growth(n)
