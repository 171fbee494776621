"""What ``bench_scale`` measures, one process each: files of rows, and what is done to them.

Our steps and, for each, what other libraries do of it. A step is given a file and answers
with what it found, which must be the same for all: the number of rows and of different
ids of a data set, the rows that are kept of a score table.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

BUDGET = 0.09
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000040000000408000000008c9ac1a2000000"
    "1049444154789c636c606060606240210009e4008852164e5f0000000049454e44ae426082"
)
"""A picture of 4 x 4 pixels, so that an image is read and little else."""


# ---------------------------------------------------------------- files


def make_scores(path: Path, n: int) -> None:
    """A score table of ``n`` rows, a row group at a time, as ``Scores.save`` writes it (it
    has looked for ids that are there twice): evidence ``rollouts``, five completions with
    and five without the image, one psi."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from rap.scores.columns import nulls
    from rap.scores.files import ROW_GROUP, write_parts
    from rap.scores.scores import CHECKED
    from rap.scores.table import SCHEMA_VERSION, SCORE_SCHEMA

    random = np.random.default_rng(0)

    def part(start: int, size: int) -> pa.Table:
        rows = np.arange(start, start + size)
        numbers = pc.utf8_lpad(pa.array(rows).cast(pa.string()), 9, "0")
        names = pc.binary_join_element_wise("openimages/val2026/", numbers, "")
        c1 = random.binomial(5, random.random(size)).astype(np.int16)
        c0 = random.binomial(5, 0.6 * random.random(size)).astype(np.int16)
        five = pa.array(np.full(size, 5, np.int16))
        columns = {
            "id": names,
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

    note = {"kind": "scores", "schema_version": SCHEMA_VERSION, "meta": {}, CHECKED: True}
    write_parts(path, SCORE_SCHEMA, parts(), note)


def line(k: int) -> str:
    """One row of the data set as JSON, of about 300 bytes."""
    a, b, c, d = (f'"{(7 * k + 3 * i) % 99} cm"' for i in range(4))
    return (
        f'{{"id": "openimages/val2026/{k:09d}", "question": "How long is side {k % 97} of '
        f'the figure?\\nAnswer with a choice.", "answer": {(a, b, c, d)[k % 4]}, '
        f'"choices": [{a}, {b}, {c}, {d}], "image": "pixel.png", '
        f'"source": "{"abc"[k % 3]}", "level": {k % 5}, "meta": {{"year": '
        f'{2000 + k % 20}, "licence": "CC BY 4.0"}}}}\n'
    )


def make_rows(folder: Path, n: int) -> None:
    """``rows.jsonl``, ``rows.parquet`` and the picture that all rows name."""
    import pyarrow as pa
    import pyarrow.json as pj
    import pyarrow.parquet as pq

    (folder / "pixel.png").write_bytes(PIXEL)
    size = 2**16
    writer = None
    with (folder / "rows.jsonl").open("wb") as file:
        for start in range(0, n, size):
            lines = "".join(map(line, range(start, min(start + size, n)))).encode()
            file.write(lines)
            table = pj.read_json(pa.BufferReader(lines))
            writer = writer or pq.ParquetWriter(folder / "rows.parquet", table.schema)
            writer.write_table(table)
    assert writer is not None
    writer.close()


def make_selection(folder: Path, n: int) -> None:
    """``selection/``: 9 % of these rows, by a score table of as many."""
    import rap

    make_scores(folder / "scores.parquet", n)
    rap.choose(rap.Scores.load(folder / "scores.parquet"), budget=BUDGET).save(
        folder / "selection"
    )


# ---------------------------------------------------------------- opening


def open_rap(path: Path) -> Any:
    from rap.samples.sampleset import open_samples

    samples = open_samples(path)
    return len(samples), len(samples)  # it refuses an id that is there twice


def hash_rap(path: Path) -> Any:
    """Opening, and the hash of the whole content."""
    from rap.samples.sampleset import open_samples

    samples = open_samples(path)
    assert samples.content_sha256
    return len(samples), len(samples)


def open_pyarrow(path: Path) -> Any:
    """Reads the file into memory, and looks at the ids."""
    import pyarrow.compute as pc
    import pyarrow.json as pj
    import pyarrow.parquet as pq

    table = pq.read_table(path) if path.suffix == ".parquet" else pj.read_json(path)
    return table.num_rows, pc.count_distinct(table["id"]).as_py()


def open_duckdb(path: Path) -> Any:
    """Counts rows and ids, and reads no other column of Parquet."""
    import duckdb

    with duckdb.connect() as connection:
        ask = f"SELECT count(*), count(DISTINCT id) FROM '{path}'"
        return connection.execute(ask).fetchone()


# ---------------------------------------------------------------- choosing


def choose_rap(path: Path) -> Any:
    import rap

    scores = rap.Scores.load(path)
    return _digest(rap.choose(scores, budget=BUDGET, replace=False, order="gain").indices)


_D = "(c1 * m0 - c0 * m1)::DOUBLE / (m1 * m0)"


def choose_duckdb(path: Path) -> Any:
    import duckdb

    with duckdb.connect() as connection:
        connection.execute("SET preserve_insertion_order = false")
        ask = "quantile_cont(log_psi::DOUBLE, [0.25, 0.75]), count(*)"
        (q1, q3), n = connection.execute(f"SELECT {ask} FROM '{path}'").fetchone()
        rows = connection.execute(
            f"SELECT \"index\" FROM '{path}' WHERE {_D} > 0 AND log_psi::DOUBLE <= "
            f"{q3 + 1.5 * (q3 - q1)!r} AND c1 > 0 ORDER BY {_D} DESC, "
            f'1 - c1::DOUBLE / m1 DESC, "index" LIMIT {int(n * 9 // 100)}'
        ).fetchnumpy()["index"]
    return _digest(rows)


def choose_polars(path: Path) -> Any:
    import polars as pl

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
    return _digest(rows)


def _digest(rows: np.ndarray) -> tuple[int, str]:
    return len(rows), hashlib.sha256(np.sort(rows).astype(np.int64).tobytes()).hexdigest()


# ---------------------------------------------------------------- what follows


def export_rap(path: Path) -> Any:
    """The chosen lines as they came in, every image read."""
    import rap
    from rap.export.write import export

    export(rap.load(path.parent / "selection"), "jsonl", path.parent / "out", data=path)
    with (path.parent / "out/train.jsonl").open("rb") as file:
        return sum(1 for _ in file)


def report_rap(path: Path) -> Any:
    import rap

    selection = rap.load(path.parent / "selection", dataset=str(path))
    selection.report(path.parent / "report.html")
    return len(selection)


Step = Callable[[Path], Any]
STEPS: dict[str, tuple[str, dict[str, Step]]] = {
    "open JSON Lines": (
        "rows.jsonl",
        {"rap": open_rap, "pyarrow": open_pyarrow, "duckdb": open_duckdb},
    ),
    "open and hash JSON Lines": ("rows.jsonl", {"rap": hash_rap}),
    "open Parquet": (
        "rows.parquet",
        {"rap": open_rap, "pyarrow": open_pyarrow, "duckdb": open_duckdb},
    ),
    "open and hash Parquet": ("rows.parquet", {"rap": hash_rap}),
    "export 9 %": ("rows.jsonl", {"rap": export_rap}),
    "report": ("rows.jsonl", {"rap": report_rap}),
    "choose": (
        "scores.parquet",
        {"rap": choose_rap, "duckdb": choose_duckdb, "polars": choose_polars},
    ),
}
"""{step: (its file, {by whom: the step})}"""
