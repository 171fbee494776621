"""Rows are cheap: time and peak memory of ``choose`` by the number of rows.

    python -m benchmarks.bench_scale                     10^4 .. 10^7 rows
    python -m benchmarks.bench_scale --rows 100000000    another size (2 GB of disk)
    python -m benchmarks.bench_scale --python P          P has duckdb and polars, if this
                                                         one has not

A saved score table of evidence ``rollouts`` (5 completions with and 5 without the image,
one psi) is read from disk by ours and by DuckDB and Polars, which make the same selection:
quartiles of log psi, the fence of them, the 9 % with the largest D, ties by difficulty,
then by row. Each measurement is a process of its own; its peak is ``VmHWM``, imports
and all. The rows that each keeps are compared: others than ours are an error, not a number.
Writes ``benchmarks/results/scale.md``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
SIZES = (10**4, 10**5, 10**6, 10**7)
BUDGET = 0.09
RIVALS = ("duckdb", "polars")


# ---------------------------------------------------------------- the score table


def make(path: Path, n: int) -> None:
    """A score table of ``n`` rows, a row group at a time."""
    import pyarrow as pa

    from rap.scores.files import ROW_GROUP, write_parts
    from rap.scores.reader import nulls
    from rap.scores.table import SCHEMA_VERSION, SCORE_SCHEMA

    random = np.random.default_rng(0)

    def part(start: int, size: int) -> pa.Table:
        rows = np.arange(start, start + size)
        names = np.char.add("openimages/val2026/", np.char.zfill(rows.astype("U"), 9))
        c1 = random.binomial(5, random.random(size)).astype(np.int16)
        c0 = random.binomial(5, 0.6 * random.random(size)).astype(np.int16)
        five = pa.array(np.full(size, 5, np.int16))
        columns = {
            "id": pa.array(names),
            "index": pa.array(rows),
            "status": pa.array(["scored"]).take(pa.array(np.zeros(size, np.int8))),
            "evidence": pa.array(["rollouts"]).take(pa.array(np.zeros(size, np.int8))),
            "c1": pa.array(c1),
            "m1": five,
            "c0": pa.array(c0),
            "m0": five,
            "log_psi": pa.array(random.normal(-3, 1, size).astype(np.float32)),
        }
        full = [columns.get(f.name, nulls(size, f.type)) for f in SCORE_SCHEMA]
        return pa.table(full, schema=SCORE_SCHEMA)

    def parts() -> Iterator[pa.Table]:
        for start in range(0, n, ROW_GROUP):
            yield part(start, min(ROW_GROUP, n - start))

    note = {"kind": "scores", "schema_version": SCHEMA_VERSION, "meta": {}}
    write_parts(path, SCORE_SCHEMA, parts(), note)


# ---------------------------------------------------------------- one process each


def _ours(path: str) -> tuple[dict[str, float], np.ndarray]:
    import rap

    start = time.perf_counter()
    scores = rap.Scores.load(path)
    loaded = time.perf_counter()
    selection = rap.choose(scores, budget=BUDGET, order="gain", replace=False)
    rows = selection.indices
    done = time.perf_counter()
    return {"load": loaded - start, "choose": done - loaded}, rows


_D = "(c1 * m0 - c0 * m1)::DOUBLE / (m1 * m0)"


def _duckdb(path: str) -> tuple[dict[str, float], np.ndarray]:
    import duckdb

    start = time.perf_counter()
    with duckdb.connect() as connection:
        connection.execute("SET preserve_insertion_order = false")
        ask = "quantile_cont(log_psi::DOUBLE, [0.25, 0.75]), count(*)"
        (q1, q3), n = connection.execute(f"SELECT {ask} FROM '{path}'").fetchone()
        rows = connection.execute(
            f"SELECT \"index\" FROM '{path}' WHERE {_D} > 0 AND log_psi::DOUBLE <= "
            f"{q3 + 1.5 * (q3 - q1)!r} AND c1 > 0 ORDER BY {_D} DESC, "
            f'1 - c1::DOUBLE / m1 DESC, "index" LIMIT {int(n * 9 // 100)}'
        ).fetchnumpy()["index"]
    return {"choose": time.perf_counter() - start}, rows


def _polars(path: str) -> tuple[dict[str, float], np.ndarray]:
    import polars as pl

    start = time.perf_counter()
    table = pl.scan_parquet(path)
    psi = pl.col("log_psi").cast(pl.Float64)
    found = table.select(
        q1=psi.quantile(0.25, "linear"), q3=psi.quantile(0.75, "linear"), n=pl.len()
    ).collect(engine="streaming")
    q1, q3, n = found.row(0)
    c1, m1, c0, m0 = (pl.col(name).cast(pl.Int64) for name in ("c1", "m1", "c0", "m0"))
    rows = (
        table.select("index", d=(c1 * m0 - c0 * m1) / (m1 * m0), diff=1 - c1 / m1, p=psi)
        .filter(pl.col("d") > 0, pl.col("p") <= q3 + 1.5 * (q3 - q1), pl.col("diff") < 1)
        .top_k(n * 9 // 100, by=["d", "diff", "index"], reverse=[False, False, True])
        .select("index")
        .collect(engine="streaming")["index"]
        .to_numpy()
    )
    return {"choose": time.perf_counter() - start}, rows


CHILDREN: dict[str, Callable[[str], tuple[dict[str, float], np.ndarray]]] = {
    "rap": _ours,
    "duckdb": _duckdb,
    "polars": _polars,
}


def child(name: str, path: str) -> None:
    before = time.process_time()
    took, rows = CHILDREN[name](path)
    took["cpu"] = time.process_time() - before
    # Not ru_maxrss, which a process takes over from the one that started it.
    status = Path("/proc/self/status").read_text()
    peak = int(status.partition("VmHWM:")[2].split()[0]) / 1024
    digest = hashlib.sha256(np.sort(rows).astype(np.int64).tobytes()).hexdigest()
    print(json.dumps({"took": took, "peak_mb": peak, "rows": digest, "kept": len(rows)}))


# ---------------------------------------------------------------- all of them


def measure(python: str, name: str, path: Path) -> dict[str, Any]:
    command = [python, __file__, "--child", name, str(path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def has(python: str, name: str) -> bool:
    command = [python, "-c", f"import {name}"]
    return not subprocess.run(command, capture_output=True, check=False).returncode


def compare(path: Path, names: list[str], pythons: dict[str, str], repeats: int) -> Any:
    """{name: [measurement]}, taken in turn. Raises if two do not keep the same rows."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for _ in range(repeats):
        for name in names:
            found[name].append(measure(pythons[name], name, path))
    digests = {one["rows"] for runs in found.values() for one in runs}
    if len(digests) != 1:
        kept = {name: runs[0]["kept"] for name, runs in found.items()}
        raise RuntimeError(f"{path}: they keep other rows: {kept}")
    return found


def lines_of(n: int, found: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    for name, runs in found.items():
        steps = {
            step: statistics.median(one["took"][step] for one in runs)
            for step in runs[0]["took"]
        }
        cpu = steps.pop("cpu")
        took = sum(steps.values())
        peak = max(one["peak_mb"] for one in runs)
        load = f"{steps['load']:.2f}" if "load" in steps else "-"
        yield (
            f"| {n:.0e} | {name} | {load} | {steps['choose']:.2f} | {cpu:.2f} | "
            f"{n / took:,.0f} | {peak:,.0f} | {peak * 2**20 / n:,.0f} |"
        )


HEAD = """# `choose` by the number of rows

Written by `python -m benchmarks.bench_scale`; what is measured is in its docstring. All
keep the same rows. Seconds are medians of {repeats}, taken in turn; **the machine
({cores} cores) was shared with other work**, so compare within a size, not across.
`load` is ours alone: SHA-256 over the file, ids looked through for doubles, counts
checked. CPU seconds are of all threads, imports included. Peak memory is that of the whole
process, imports included.

| rows | by | load, s | choose, s | CPU s, both | rows a second | peak MiB | bytes a row |
|---|---|---|---|---|---|---|---|
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="*", default=list(SIZES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--folder", type=Path, help="for the tables; default: temporary")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/scale.md")
    parser.add_argument("--child", nargs=2, metavar=("NAME", "PATH"))
    args = parser.parse_args()
    if args.child:
        child(*args.child)
        return
    there = [name for name in RIVALS if has(args.python, name)]
    skipped = [f"{n} is not there: not measured" for n in RIVALS if n not in there]
    pythons = {"rap": sys.executable, **dict.fromkeys(there, args.python)}
    lines = []
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        for n in args.rows:
            path = Path(folder) / f"scores-{n}.parquet"
            make(path, n)
            for line in lines_of(n, compare(path, [*pythons], pythons, args.repeats)):
                print(line, flush=True)
                lines.append(line)
            path.unlink()
    head = HEAD.format(repeats=args.repeats, cores=os.cpu_count())
    args.out.write_text(head + "\n".join([*lines, "", *skipped]).rstrip("\n") + "\n")


if __name__ == "__main__":
    main()
