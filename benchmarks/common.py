"""Check, then time: what every benchmark shares.

A row is one measurement: ours against a rival on the same data in the same process, the
two taken in turn, medians of each, peak memory beside. A result that disagrees with
rap.reference is an error, never a number.
"""

from __future__ import annotations

import csv
import ctypes
import gc
import importlib
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rap import _C


@dataclass(frozen=True, slots=True)
class Row:
    piece: str
    """cde, linear, ace, drm, scoring, call or limits."""
    what: str
    shape: str
    rival: str
    unit: str
    """ms, us, MB: less is better; GB/s, GFLOP/s, Gexp/s: a limit of the machine."""
    ours: float | None
    theirs: float | None
    ratio: float | None
    """theirs / ours: how many times better we are; ours / theirs where `at_most`."""
    asked: float | None = None
    """What issue 5 asks of the ratio; of `ours` itself in a row without a rival."""
    at_most: bool = False
    ours_mb: float | None = None
    """Peak memory of one call beyond what its inputs hold, MiB."""
    theirs_mb: float | None = None
    axis: str | None = None
    """The size that a plot shows: T, V, L or N."""
    x: float | None = None
    isa: str = ""
    """Of our kernels."""
    rival_isa: str = ""
    """What torch was allowed to use."""
    threads: int = 1
    torch: str = ""

    @property
    def reached(self) -> float | None:
        return self.ours if self.ratio is None else self.ratio

    @property
    def met(self) -> bool | None:
        """None where nothing is asked."""
        if self.asked is None or self.reached is None:
            return None
        if self.at_most:
            return self.reached <= self.asked
        return self.reached >= self.asked


class WrongResult(AssertionError):
    """A kernel disagreed with the reference: its time means nothing."""


def check(name: str, got: Any, truth: Any, tolerance: float) -> None:
    """Refuses to go on unless got and truth agree, relative to the size of truth."""
    got, truth = np.asarray(got, float), np.asarray(truth, float)
    same = np.isfinite(got) == np.isfinite(truth)
    known = same & np.isfinite(truth)
    error = np.abs(got[known] - truth[known]).max(initial=0.0)
    size = max(1.0, np.abs(truth[known]).max(initial=0.0))
    if not same.all() or not error <= tolerance * size:
        raise WrongResult(f"{name}: off by {error:g}, {int((~same).sum())} not finite")


def optional(module: str, name: str) -> Any:
    """module.name, or None with the reason printed: a rival that is not installed."""
    try:
        found = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
        return found
    except (ImportError, AttributeError, RuntimeError) as error:
        print(f"left out: {module}.{name}: {error}", flush=True)
        return None


# --- memory -----------------------------------------------------------------------------


def _status_mb(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise OSError(f"/proc/self/status has no {field}")


def _give_back() -> None:
    """Freed memory to the system, so that a peak counts what the call itself takes."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError):
        pass  # not glibc: peaks are lower bounds


def peak_mb(call: Callable[[], object]) -> float | None:
    """Peak resident memory of call() beyond what was resident before, its answer
    included, MiB. None where the system cannot say (not Linux)."""
    _give_back()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
        before = _status_mb("VmRSS")
        answer = call()
        peak = _status_mb("VmHWM")
    except OSError:
        return None
    del answer
    return max(0.0, peak - before)


# --- time -------------------------------------------------------------------------------


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    answer = call()
    took = time.perf_counter() - start
    del answer
    return took


def in_turn(
    ours: Callable[[], object], theirs: Callable[[], object], budget: float
) -> tuple[float, float]:
    """Medians, seconds: one warm-up each, then 3 to 15 runs in turn within `budget`
    seconds (a single run where one pair takes more than half of it)."""
    warm = seconds(ours) + seconds(theirs)
    repeats = 1 if warm > budget / 2 else int(min(15, max(3, budget / warm)))
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(repeats)]
    a, b = (statistics.median(x) for x in zip(*pairs, strict=True))
    return a, b


def rival_isa() -> str:
    """The instruction sets torch's own loops and oneDNN's products may use."""
    most = os.environ.get("ONEDNN_MAX_CPU_ISA", "any")
    return f"ATen {torch.backends.cpu.get_cpu_capability()}, oneDNN {most}"


def shape_of(**sizes: object) -> str:
    return " ".join(f"{name}={value}" for name, value in sizes.items())


def row(
    piece: str,
    what: str,
    shape: str,
    rival: str,
    unit: str,
    ours: float | None,
    theirs: float | None,
    *,
    at_most: bool = False,
    **more: Any,
) -> Row:
    """A row with its ratio, printed."""
    ratio = None
    if ours and theirs:
        ratio = ours / theirs if at_most else theirs / ours
    made = Row(
        piece,
        what,
        shape,
        rival,
        unit,
        ours,
        theirs,
        ratio,
        at_most=at_most,
        isa=_C.isa(),
        rival_isa=rival_isa(),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        **more,
    )
    print_row(made)
    return made


def compare(
    piece: str,
    what: str,
    shape: str,
    rival: str,
    ours: Callable[[], object],
    theirs: Callable[[], object],
    *,
    budget: float = 6.0,
    memory: bool = True,
    **more: Any,
) -> Row:
    """One row, milliseconds; `more` are fields of Row (asked, at_most, axis, x)."""
    a, b = in_turn(ours, theirs, budget)
    if memory:
        more |= {"ours_mb": peak_mb(ours), "theirs_mb": peak_mb(theirs)}
    return row(piece, what, shape, rival, "ms", 1e3 * a, 1e3 * b, **more)


# --- showing and keeping ----------------------------------------------------------------


def _number(value: float | None, unit: str = "") -> str:
    return "-" if value is None else f"{value:.4g} {unit}".strip()


def asked_text(r: Row) -> str:
    unit = "x" if r.ratio is not None else f" {r.unit}"
    return "-" if r.asked is None else f"{'<=' if r.at_most else '>='} {r.asked:g}{unit}"


def print_row(r: Row) -> None:
    memory = (
        f"  {_number(r.ours_mb)} / {_number(r.theirs_mb)} MB"
        if r.ours_mb is not None
        else ""
    )
    verdict = "" if r.met is None else f"  {asked_text(r)} {'met' if r.met else 'MISSED'}"
    ratio = "" if r.ratio is None else f"{r.ratio:7.2f}x"
    print(
        f"{r.piece:6} {r.what:30} {r.shape:34} {_number(r.ours, r.unit):>11}  "
        f"{r.rival:36} {_number(r.theirs, r.unit):>11} {ratio}{verdict}{memory}",
        flush=True,
    )


def table(rows: list[Row]) -> str:
    """What issue 5 asks, with what was reached: Markdown."""
    lines = ["| work | shape | against | reached | asked | |", "|---|---|---|---|---|---|"]
    for r in rows:
        if r.asked is not None:
            unit = "x" if r.ratio is not None else f" {r.unit}"
            reached = "-" if r.reached is None else f"{r.reached:.3g}{unit}"
            mark = {True: "met", False: "MISSED", None: "-"}[r.met]
            cells = (r.what, r.shape, r.rival or "-", reached, asked_text(r), mark)
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def save(rows: list[Row], path: Path) -> None:
    """One CSV row a measurement; the file is replaced whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    with partial.open("w", newline="") as f:
        writer = csv.DictWriter(f, [field.name for field in fields(Row)])
        writer.writeheader()
        writer.writerows(asdict(r) for r in rows)
    partial.replace(path)


def read(path: Path) -> list[Row]:
    """The rows that `save` wrote."""
    numbers = {"ours", "theirs", "ratio", "asked", "ours_mb", "theirs_mb", "x"}

    def value(name: str, text: str) -> Any:
        if name in numbers:
            return float(text) if text else None
        if name == "at_most":
            return text == "True"
        return int(text) if name == "threads" else text or (None if name == "axis" else "")

    with path.open(newline="") as f:
        return [
            Row(**{k: value(k, v) for k, v in line.items()}) for line in csv.DictReader(f)
        ]


def machine() -> str:
    """The processor's own name, where Linux tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return sys.platform
