"""Rows are cheap: seconds and peak memory of what is done to them, by their number.

    python -m benchmarks.bench_scale                     rows to 10^6, choosing to 10^7
    python -m benchmarks.bench_scale --rows --choose 100000000     (1 GB of disk)
    python -m benchmarks.bench_scale --python P          P has duckdb and polars, if this
                                                         one has not

A data set of ``scale_rows.line`` is opened (JSON Lines, Parquet), its content hashed, 9 %
of it exported and reported; a saved score table is chosen from. Where another library does
the same, or less, it is beside ours: pyarrow reads the file into memory and counts the ids,
DuckDB counts rows and ids, DuckDB and Polars make the same selection (quartiles of log psi,
the fence of them, the 9 % with the largest D, ties by difficulty, then by row). Each
measurement is a process of its own; its peak is ``VmHWM``, imports and all. What they
find is compared: something else than ours is an error, not a number.
Writes ``benchmarks/results/scale.md`` and ``scale.png``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":  # a child is run by its path, by another Python perhaps
    sys.path.insert(0, str(ROOT))

from benchmarks.scale_rows import (  # noqa: E402
    STEPS,
    make_rows,
    make_scores,
    make_selection,
)

ROWS = (10**4, 10**5, 10**6)
CHOSEN_FROM = (10**4, 10**5, 10**6, 10**7)
CHOOSE = "choose"
OTHERS = ("duckdb", "polars")


@dataclass(frozen=True, slots=True)
class Point:
    """One step by one library on ``rows`` rows: medians of its runs, the largest peak."""

    step: str
    by: str
    rows: int
    seconds: float
    cpu: float
    peak_mib: float

    @property
    def line(self) -> str:
        return (
            f"| {self.step} | {self.rows:.0e} | {self.by} | {self.seconds:.2f} | "
            f"{self.cpu:.2f} | {self.rows / self.cpu:,.0f} | {self.peak_mib:,.0f} | "
            f"{self.peak_mib * 2**20 / self.rows:,.0f} |"
        )


# ---------------------------------------------------------------- one process each


def child(step: str, by: str, path: Path) -> None:
    cpu, wall = time.process_time(), time.perf_counter()
    found = STEPS[step][1][by](path)
    took = time.perf_counter() - wall, time.process_time() - cpu
    # Not ru_maxrss, which a process takes over from the one that started it.
    status = Path("/proc/self/status").read_text()
    peak = int(status.partition("VmHWM:")[2].split()[0]) / 1024
    print(json.dumps({"took": took, "peak_mib": peak, "found": repr(found)}))


def measure(python: str, step: str, by: str, path: Path) -> dict[str, Any]:
    command = [python, __file__, "--child", step, by, str(path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{step}, {by}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


# ---------------------------------------------------------------- all of them


def compare(step: str, folder: Path, n: int, pythons: dict[str, str], repeats: int) -> Any:
    """A ``Point`` for each library that is there, measured in turn. Raises if two do not
    find the same."""
    name, by_whom = STEPS[step]
    there = [by for by in by_whom if by in pythons]
    found: dict[str, list[dict[str, Any]]] = {by: [] for by in there}
    for _ in range(repeats):
        for by in there:
            found[by].append(measure(pythons[by], step, by, folder / name))
            clear(folder)
    answers = {one["found"] for runs in found.values() for one in runs}
    if len(answers) != 1:
        raise RuntimeError(f"{step}, {n} rows: they find other things: {answers}")
    for by, runs in found.items():
        seconds, cpu = (statistics.median(one["took"][k] for one in runs) for k in (0, 1))
        yield Point(step, by, n, seconds, cpu, max(one["peak_mib"] for one in runs))


def clear(folder: Path) -> None:
    """Remove what a step has written."""
    import shutil

    shutil.rmtree(folder / "out", ignore_errors=True)


def points(
    rows: Sequence[int],
    chosen_from: Sequence[int],
    pythons: dict[str, str],
    repeats: int,
    disk: Path | None,
) -> Iterator[Point]:
    for n in sorted({*rows, *chosen_from}):
        with tempfile.TemporaryDirectory(dir=disk) as name:
            folder = Path(name)
            if n in rows:
                make_rows(folder, n)
                make_selection(folder, n)
                for step in STEPS:
                    if step != CHOOSE:
                        yield from compare(step, folder, n, pythons, repeats)
            if n in chosen_from:
                if n not in rows:
                    make_scores(folder / STEPS[CHOOSE][0], n)
                yield from compare(CHOOSE, folder, n, pythons, repeats)


def draw(found: Sequence[Point], path: Path) -> None:
    """CPU seconds and peak memory over the number of rows, both logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    colours = {"rap": "C0", "pyarrow": "C1", "duckdb": "C2", "polars": "C3"}
    steps = [step for step in STEPS if any(p.step == step for p in found)]
    figure, axes = plt.subplots(
        2, len(steps), figsize=(2.6 * len(steps), 5.2), sharex="col", squeeze=False
    )
    for at, step in enumerate(steps):
        for by, colour in colours.items():
            own = [p for p in found if (p.step, p.by) == (step, by)]
            if not own:
                continue
            x = [p.rows for p in own]
            axes[0][at].loglog(x, [p.cpu for p in own], "o-", color=colour, label=by)
            axes[1][at].loglog(x, [p.peak_mib for p in own], "o-", color=colour)
        axes[0][at].set_title(step, fontsize=9)
        axes[0][at].legend(fontsize=7)
        axes[1][at].set_xlabel("rows")
    axes[0][0].set_ylabel("CPU seconds")
    axes[1][0].set_ylabel("peak MiB")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


HEAD = """# What is done to rows, by their number

Written by `python -m benchmarks.bench_scale`; what is measured is in its docstring. All
find the same. Medians of {repeats}, taken in turn; **the machine ({cores} cores) was shared
with other work**, so that seconds say little: compare CPU seconds, of all threads, imports
included. Rows a second are a CPU second's. Peak memory is that of the whole process,
imports included. Choosing of ours includes SHA-256 over the file; ids were looked through
for doubles when the file was saved. Growth: `scale.png`.

| step | rows | by | s | CPU s | rows a CPU second | peak MiB | bytes a row |
|---|---|---|---|---|---|---|---|
"""


def write(found: Sequence[Point], path: Path, repeats: int, notes: Sequence[str]) -> None:
    order = list(STEPS)
    head = HEAD.format(repeats=repeats, cores=os.cpu_count())
    lines = [p.line for p in sorted(found, key=lambda p: order.index(p.step))]
    path.write_text(head + "\n".join([*lines, "", *notes]).rstrip("\n") + "\n")


def has(python: str, name: str) -> bool:
    command = [python, "-c", f"import {name}"]
    return not subprocess.run(command, capture_output=True, check=False).returncode


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="*", default=list(ROWS))
    parser.add_argument("--choose", type=int, nargs="*", default=list(CHOSEN_FROM))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--folder", type=Path, help="for the files; default: temporary")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/scale.md")
    parser.add_argument("--child", nargs=3, metavar=("STEP", "BY", "PATH"))
    args = parser.parse_args()
    if args.child:
        step, by, path = args.child
        child(step, by, Path(path))
        return
    there = [name for name in OTHERS if has(args.python, name)]
    missing = [f"{n} is not there: not measured" for n in OTHERS if n not in there]
    pythons = dict.fromkeys(("rap", "pyarrow"), sys.executable)
    pythons |= dict.fromkeys(there, args.python)
    found = []
    for point in points(args.rows, args.choose, pythons, args.repeats, args.folder):
        print(point.line, flush=True)
        found.append(point)
        write(found, args.out, args.repeats, missing)  # what there is, if it is stopped
    draw(found, args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
