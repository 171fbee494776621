"""What every process that works on one data set has to know of it, found once and kept.

``build`` reads the rows: a hash a shard, by which a worker checks the rows that it is
about to score, and the content hash of all. ``save`` keeps that in a folder beside a score
store, with the ids and where lines begin; ``open_kept`` opens the data set with it and
reads no row if the files are as they were (where they are, size, time of the last change).

    index.json     the hashes, which column plays which role, the files
    ids.arrow      the ids (none where they are row numbers)
    lines.npy, numbers.npy     JSON Lines: where lines begin, and their numbers

Time and size of a file prove nothing: whoever opens a data set so compares the rows that it
uses with the hash of their shard (``SampleSet.has_rows``).
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ..errors import RapInputError
from .column import Column
from .detecting import leave_images
from .forms import Forms
from .ids import Ids
from .jsonlines import JsonlRows, LineIndex
from .opening import open_rows
from .parquet import ParquetRows
from .sample import BadSample
from .sampleset import Known, SampleSet
from .sources import Rows
from .stated import Stated

VERSION = 3
"""Of the files, and of what the hash of a shard is taken of."""


@dataclass(frozen=True, slots=True)
class Index:
    """``content_sha256``: {columns that count beside the roles': ``content_hash`` with
    them}. ``shards``: sha256 of ids and rows of each shard of ``shard_size`` rows, with the
    columns ``more``."""

    rows: int
    shard_size: int
    more: tuple[str, ...]
    content_sha256: Mapping[tuple[str, ...], str]
    shards: tuple[str, ...]

    def shard_range(self, k: int) -> range:
        """The rows of shard ``k``."""
        start = k * self.shard_size
        return range(start, min(start + self.shard_size, self.rows))


def build(samples: SampleSet, shard_size: int, more: Iterable[str] = ()) -> Index:
    """Read all rows, once (twice with ``more``: columns that a score depends on besides
    what a sample is). From then on ``SampleSet.content_hash`` says what was found."""
    n, more = len(samples), tuple(sorted(set(more)))
    ranges = [range(at, min(at + shard_size, n)) for at in range(0, n, shard_size)]
    whole, shards = samples.read_hashes(ranges, more)
    hashes: dict[tuple[str, ...], str] = {more: whole}
    if more:
        hashes[()], _ = samples.read_hashes([])
    return Index(n, shard_size, more, hashes, tuple(shards))


# ------------------------------------------------------------------------ files


def save(samples: SampleSet, index: Index, folder: Path) -> bool:
    """Keep it in ``folder``. False for data that is in memory or is read at once: there is
    nothing to save. Raises ``OSError``."""
    files = _files_of(samples.rows)
    if files is None or samples.path is None:
        return False
    folder.mkdir(parents=True, exist_ok=True)
    ids, rows = samples.all_ids, samples.rows
    if samples.columns["id"] is not None:
        _put(folder / "ids.arrow", lambda path: _write_ids(path, ids))
    if isinstance(rows, JsonlRows):
        kept = rows.index
        _put(folder / "lines.npy", lambda path: _write_array(path, kept.start))
        _put(folder / "numbers.npy", lambda path: _write_array(path, kept.number))
    found = {
        "version": VERSION,
        "path": samples.path,
        "given_root": samples.given_root,
        "given_columns": samples.given_columns,
        "root": samples.root,
        "files": files,
        "lines": isinstance(rows, JsonlRows),
        "kind": samples.kind,
        "names": samples.column_names,
        "columns": dict(samples.columns),
        "counted": samples.content().counted,
        "forms": dict(samples.answer_forms.counts),
        "stated": samples.stated_options.as_list(),
        "column": samples.answer_column.as_list(),
        "bad_ids": [[i, b.stage, b.code, b.message] for i, b in ids.bad.items()],
        "rows": index.rows,
        "shard_size": index.shard_size,
        "more": index.more,
        "content_sha256": [[list(k), v] for k, v in index.content_sha256.items()],
        "shards": index.shards,
    }
    text = json.dumps(found)
    _put(folder / "index.json", lambda path: path.write_text(text))  # the last
    return True


def _put(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file whole; one that was there stays as it was for whoever has it mapped.
    What a killed writer left of it goes: who writes has the store's plan for itself."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        write(partial)
        partial.replace(path)
        for left in path.parent.glob(f".{path.name}.????????.tmp"):
            left.unlink(missing_ok=True)
    finally:
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()


def _write_ids(path: Path, ids: Ids) -> None:
    schema = pa.schema([("id", pa.string())])
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        for chunk in ids.chunks():
            writer.write_batch(pa.record_batch([chunk], schema=schema))


def _write_array(path: Path, values: np.ndarray) -> None:
    with path.open("wb") as file:
        np.save(file, values)


def load(folder: Path) -> Index | None:
    """What ``save`` kept; None if nothing readable is there."""
    found = _read(folder)
    return None if found is None else _index_of(found)


def open_kept(
    folder: Path,
    source: object,
    root: str | os.PathLike[str] | None = None,
    columns: Mapping[str, str] | None = None,
) -> SampleSet | None:
    """The data set at ``source``, opened with what ``save`` kept; None where that is of
    another one, or was opened with another ``root`` or ``columns``, or the files are
    others: it is opened as any then (``open_samples``)."""
    found = _read(folder)
    if found is None or not isinstance(source, (str, os.PathLike)):
        return None
    given = (
        os.fspath(source),
        None if root is None else os.fspath(root),
        None if columns is None else dict(columns),
    )
    if (found["path"], found["given_root"], found["given_columns"]) != given:
        return None
    try:
        rows = _rows_of(found, folder)
        if rows is None or _files_of(rows) != found["files"]:
            return None
        ids = _ids_of(found, folder)
    except (OSError, ValueError, pa.ArrowException, RapInputError):
        return None
    index = _index_of(found)
    bare = SampleSet(rows, found["columns"], found["root"], found["counted"], Known(ids))
    hashes = {bare.content(more): text for more, text in index.content_sha256.items()}
    samples = SampleSet(
        rows, found["columns"], found["root"], found["counted"], Known(ids, hashes)
    )
    samples.path, samples.given_root = found["path"], found["given_root"]
    samples.given_columns = found["given_columns"]
    if "forms" in found:
        samples.answer_forms = Forms(found["forms"])
    if "stated" in found:
        samples.stated_options = Stated(*found["stated"])
        samples.answer_column = Column(*found["column"])
    return samples


def _read(folder: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((folder / "index.json").read_bytes())
        return found if found["version"] == VERSION else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _index_of(found: Mapping[str, Any]) -> Index:
    return Index(
        found["rows"],
        found["shard_size"],
        tuple(found["more"]),
        {tuple(more): text for more, text in found["content_sha256"]},
        tuple(found["shards"]),
    )


def _files_of(rows: Rows) -> list[list[Any]] | None:
    """Path, size and time of the last change of the files that rows come from."""
    paths: list[Path] = []
    if isinstance(rows, JsonlRows):
        paths = [rows.path]
    elif isinstance(rows, ParquetRows):
        paths = rows.paths
    unpacked = (not path.exists() or path.parts[:2] == ("/", "dev") for path in paths)
    if not paths or any(unpacked):
        return None
    stats = [(path, os.stat(path)) for path in paths]
    return [[os.path.abspath(path), s.st_size, s.st_mtime_ns] for path, s in stats]


def _rows_of(found: Mapping[str, Any], folder: Path) -> Rows | None:
    path = Path(found["path"])
    if found["lines"]:
        start = np.load(folder / "lines.npy", mmap_mode="r")
        number = np.load(folder / "numbers.npy", mmap_mode="r")
        file = Path(found["files"][0][0])
        return JsonlRows(
            file, found["kind"], index=LineIndex(start, number, found["names"])
        )
    rows = open_rows(path)[0]
    leave_images(rows, found["columns"]["images"])
    return rows


def _ids_of(found: Mapping[str, Any], folder: Path) -> Ids:
    if found["columns"]["id"] is None:
        return Ids(found["rows"], None)
    column = pa.ipc.open_file(pa.memory_map(str(folder / "ids.arrow"))).read_all()["id"]
    bad = {i: BadSample(*why) for i, *why in found["bad_ids"]}
    return Ids(found["rows"], column, bad)
