"""Check, then time: what every benchmark shares.

A row is a ratio against a rival on the same data in the same process, ours and the
rival's runs taken in turn, medians of each. A result that disagrees with rap.reference is
an error, never a number.
"""

from __future__ import annotations

import csv
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from rap import _C


@dataclass(frozen=True, slots=True)
class Row:
    kernel: str
    work: str
    rival: str
    ours_ms: float
    rival_ms: float
    ratio: float
    floor: float | None  # what the project asks for; None: for information
    isa: str
    threads: int


class WrongResult(AssertionError):
    """A kernel disagreed with the reference: its time means nothing."""


def check(name: str, got: np.ndarray, truth: np.ndarray, tolerance: float) -> None:
    """Refuses to go on unless got and truth agree, relative to the size of truth."""
    got, truth = np.asarray(got, float), np.asarray(truth, float)
    same = np.isfinite(got) == np.isfinite(truth)
    known = np.isfinite(truth)
    error = np.abs(got[known] - truth[known]).max(initial=0.0)
    if not same.all() or error > tolerance * max(
        1.0, np.abs(truth[known]).max(initial=0.0)
    ):
        raise WrongResult(f"{name}: off by {error:g}, {int((~same).sum())} not finite")


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def compare(
    kernel: str,
    work: str,
    rival: str,
    ours: Callable[[], object],
    theirs: Callable[[], object],
    *,
    floor: float | None = None,
    repeats: int = 7,
) -> Row:
    """Medians of `repeats` runs of each, taken in turn after one warm-up of each."""
    ours(), theirs()
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(repeats)]
    a, b = (1e3 * statistics.median(x) for x in zip(*pairs, strict=True))
    row = Row(kernel, work, rival, a, b, b / a, floor, _C.isa(), torch.get_num_threads())
    print_row(row)
    return row


def print_row(row: Row) -> None:
    verdict = ""
    if row.floor is not None:
        verdict = f"  floor {row.floor:g}x " + (
            "met" if row.ratio >= row.floor else "MISSED"
        )
    print(
        f"{row.kernel:11} {row.work:44} {row.ours_ms:9.2f} ms  {row.rival:34} "
        f"{row.rival_ms:9.2f} ms  {row.ratio:6.2f}x{verdict}",
        flush=True,
    )


def save(rows: list[Row], path: Path) -> None:
    """One CSV row a measurement."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as f:
        writer = csv.DictWriter(f, list(asdict(rows[0])))
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
