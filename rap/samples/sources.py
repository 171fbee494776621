"""Sources of rows: one class per kind of source. `opening` tells which one a source is.

Every kind returns rows as dicts of Python values, by number, and never decodes an
image. Memory: JSONL keeps 16 bytes a row (where the line starts, its number) and reads a
line when it is asked for; Parquet larger than 256 MB goes through a memory-mapped
temporary file; a data set saved on disk is memory-mapped.

JSON is parsed strictly (``strict_json``). A row that cannot be read is a ``BadSample``; a
source that cannot be read is a ``RapInputError``.
"""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
import weakref
from array import array
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import RapInputError
from .sample import BadSample

if TYPE_CHECKING:
    import datasets

MAX_LINE_BYTES = 256 << 20  # a JSONL line longer than this is no row
MAX_DIGITS = 4300  # CPython's own limit for int(text), whatever the process set
MAX_DEPTH = 500  # nesting; the interpreter's own limit can be lifted into a crash
IN_MEMORY_BYTES = 256 << 20  # larger Parquet is spilled to a memory-mapped file
BOM = b"\xef\xbb\xbf"


# --------------------------------------------------------------------------- rows


class Rows(Protocol):
    """Rows by number. Every method is safe to call from several threads."""

    kind: str
    columns: list[str]
    image_columns: frozenset[str]  # known by their type to hold images

    def __len__(self) -> int: ...
    def row(self, index: int) -> Mapping[str, Any]:
        """One row; raises ``BadSample``."""

    def each(self, columns: Sequence[str]) -> Iterator[Mapping[str, Any] | BadSample]:
        """All rows in order, with at least these columns: the cheap way to see many."""

    def where(self, index: int) -> str:
        """How a user finds the row: "line 7", "row 6"."""

    def dataset(self) -> datasets.Dataset | None:
        """The source as a data set, if it can be had without reading every row."""


class _Plain:
    """What sources without Arrow types have in common."""

    image_columns: frozenset[str] = frozenset()

    def each(self, columns: Sequence[str]) -> Iterator[Mapping[str, Any] | BadSample]:
        for index in range(len(self)):  # type: ignore[arg-type]
            yield _row_or_bad(self, index)

    def dataset(self) -> datasets.Dataset | None:
        return None


def _row_or_bad(rows: Any, index: int) -> Mapping[str, Any] | BadSample:
    try:
        return rows.row(index)
    except BadSample as bad:
        return bad


class ListRows(_Plain):
    """A list of dicts, as handed in, or anything that gives them by number."""

    def __init__(self, rows: Sequence[Any], kind: str = "list of dicts") -> None:
        self._rows, self.kind = rows, kind
        each = (rows[i] for i in range(len(rows)))  # not all of them end an iteration
        self.columns = union_of_keys(r for r in each if isinstance(r, Mapping))

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, index: int) -> Mapping[str, Any]:
        row = self._rows[index]
        if not isinstance(row, Mapping):
            raise BadSample("data", "bad_json", f"row is {type(row).__name__}, not a dict")
        return row

    def where(self, index: int) -> str:
        return f"row {index}"


class JsonlRows(_Plain):
    """A JSONL file, one strict JSON object a line, read when asked for."""

    def __init__(self, path: Path, kind: str | None = None) -> None:
        self.kind = kind or f"JSONL {path}"
        with path.open("rb") as file:
            self._start, self._number = _line_index(file)
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._fd)
        rows = (_row_or_bad(self, i) for i in range(len(self)))  # a key may come late
        self.columns = union_of_keys(r for r in rows if isinstance(r, Mapping))

    def __len__(self) -> int:
        return len(self._number)

    def row(self, index: int) -> Mapping[str, Any]:
        start, end = self._start[index], self._start[index + 1]
        try:
            if end - start > MAX_LINE_BYTES:
                raise ValueError(f"longer than {MAX_LINE_BYTES} bytes")
            row = strict_json(self._line(index))
            if not isinstance(row, dict):
                raise ValueError(f"a JSON {type(row).__name__}, not an object")
        except ValueError as error:
            message = f"line {self._number[index]}: {error}"
            raise BadSample("data", "bad_json", message) from None
        return row

    def line(self, index: int) -> bytes:
        """The line as it stands in the file, without its end. Raises ``BadSample``."""
        self.row(index)  # a line that is no row is not handed on
        return self._line(index).rstrip(b"\r\n \t")

    def _line(self, index: int) -> bytes:
        start, end = self._start[index], self._start[index + 1]
        # pread: no seek position that two threads would share
        line = os.pread(self._fd, end - start, start)
        return line.removeprefix(BOM) if start == 0 else line

    def where(self, index: int) -> str:
        return f"line {self._number[index]}"


class ArrowRows:
    """A ``pyarrow.Table``, in memory or memory-mapped."""

    def __init__(self, table: pa.Table, kind: str) -> None:
        self.kind, self._table = kind, table
        self.columns = list(table.column_names)
        if len(set(self.columns)) < len(self.columns):
            raise RapInputError(f"{kind}: a column name is there twice: {self.columns}")
        self.image_columns = _image_columns(table.schema)
        self.leave_out(())

    def leave_out(self, columns: Collection[str]) -> None:
        """Never read these: images nobody asked for stay on disk."""
        self._table_read = self._table.select([c for c in self.columns if c not in columns])
        self._batches = [b for b in self._table_read.to_batches() if b.num_rows]
        self._ends = np.cumsum([b.num_rows for b in self._batches])

    def __len__(self) -> int:
        return self._table.num_rows

    def row(self, index: int) -> Mapping[str, Any]:
        k = int(np.searchsorted(self._ends, index, side="right"))
        batch = self._batches[k]
        return _to_python(batch.slice(index - int(self._ends[k]) + batch.num_rows, 1))

    def each(self, columns: Sequence[str]) -> Iterator[Mapping[str, Any] | BadSample]:
        for batch in self._table.select(list(columns)).to_batches(max_chunksize=1024):
            yield from _all_to_python(batch)

    def arrow(self, indices: Sequence[int]) -> pa.Table:
        """These rows, as they are."""
        # slices, not take: take joins all chunks first, which overflows 32-bit offsets
        rows = [self._table.slice(index, 1) for index in indices]
        return pa.concat_tables(rows) if rows else self._table.schema.empty_table()

    def where(self, index: int) -> str:
        return f"row {index}"

    def dataset(self) -> datasets.Dataset | None:
        hf = datasets_library()
        if hf is None:
            return None
        return hf.Dataset(hf.table.InMemoryTable(self._table))


class DatasetRows:
    """A ``datasets.Dataset``: read as Arrow, so that its images are never decoded."""

    def __init__(self, dataset: datasets.Dataset) -> None:
        self.kind = "datasets.Dataset"
        self._dataset = dataset
        self.columns = list(dataset.column_names)
        self.image_columns = _image_features(dataset.features.to_dict())
        self.leave_out(())

    def leave_out(self, columns: Collection[str]) -> None:
        """Never read these: images nobody asked for stay on disk."""
        keep = [c for c in self.columns if c not in columns]
        self._arrow = self._dataset.with_format("arrow", columns=keep)

    def __len__(self) -> int:
        return len(self._dataset)

    def row(self, index: int) -> Mapping[str, Any]:
        return _to_python(self._arrow[index])

    def each(self, columns: Sequence[str]) -> Iterator[Mapping[str, Any] | BadSample]:
        arrow = self._dataset.with_format("arrow", columns=list(columns))
        for start in range(0, len(self), 1024):
            yield from _all_to_python(arrow[start : start + 1024])

    def arrow(self, indices: Sequence[int]) -> pa.Table:
        """These rows, as they are, with the features in the schema's metadata."""
        table = self._dataset.with_format("arrow").select(indices)[:]
        return table.replace_schema_metadata(self._dataset.features.arrow_schema.metadata)

    def where(self, index: int) -> str:
        return f"row {index}"

    def dataset(self) -> datasets.Dataset | None:
        return self._dataset


def strict_json(text: bytes) -> Any:
    """``json.loads`` without its leniency; every failure is a ``ValueError``.

    Refused: what is not UTF-8, NaN and Infinity (also as 1e999), integers of more than
    4,300 digits, nesting deeper than 500.
    """
    try:
        decoded = text.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: {error.reason} at byte {error.start}") from None
    if text.count(b"[") + text.count(b"{") > MAX_DEPTH and _depth(decoded) > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH}")
    try:
        return _DECODER.decode(decoded)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _depth(text: str) -> int:
    """Deepest nesting of brackets outside of strings."""
    brackets = re.sub(r'"(?:[^"\\]|\\.)*+"|[^\[\]{}]', "", text)
    steps = np.frombuffer(brackets.encode("ascii", "replace"), np.uint8)
    opens = (steps == ord("[")) | (steps == ord("{"))
    return int(np.cumsum(np.where(opens, 1, -1)).max(initial=0))


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _int(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"number {text[:40]} is too large")
    return value


_DECODER = json.JSONDecoder(parse_constant=_no_constant, parse_int=_int, parse_float=_float)


def _line_index(file: Any) -> tuple[array[int], array[int]]:
    """Byte offset of every line that is not blank, and of the end; number of every such
    line. Blank lines then follow their row's JSON, where white space means nothing."""
    start, number = array("q"), array("q")
    offset = count = 0
    while line := file.readline(MAX_LINE_BYTES):
        begin, blank = offset, True
        count += 1
        while line:
            blank = blank and not line.removeprefix(BOM).strip(b" \t\r\n")
            offset += len(line)
            line = b"" if line.endswith(b"\n") else file.readline(MAX_LINE_BYTES)
        if not blank:
            start.append(begin)
            number.append(count)
    start.append(offset)
    return start, number


def union_of_keys(rows: Iterable[Mapping[Any, Any]]) -> list[str]:
    """Every text key, in order of first appearance."""
    names: dict[str, None] = {}
    for row in rows:
        names.update((key, None) for key in row if isinstance(key, str))
    return list(names)


def _all_to_python(batch: pa.RecordBatch | pa.Table) -> list[Mapping[str, Any] | BadSample]:
    try:
        return batch.to_pylist()
    except (ValueError, pa.ArrowException):  # find the rows that cannot
        return [_one_to_python(batch, i) for i in range(batch.num_rows)]


def _one_to_python(
    batch: pa.RecordBatch | pa.Table, index: int
) -> Mapping[str, Any] | BadSample:
    try:
        return _to_python(batch.slice(index, 1))
    except BadSample as bad:
        return bad


def _to_python(record: pa.RecordBatch | pa.Table) -> Mapping[str, Any]:
    try:
        return record.to_pylist()[0]
    except UnicodeDecodeError as error:  # Arrow does not check UTF-8 on reading
        raise BadSample("data", "bad_text", f"not UTF-8: {error.reason}") from None
    except (ValueError, pa.ArrowException) as error:
        raise BadSample("data", "bad_text", f"row cannot be read: {error}") from None


def _image_columns(schema: pa.Schema) -> frozenset[str]:
    """Columns that `datasets` has marked as images in the schema's metadata."""
    raw = (schema.metadata or {}).get(b"huggingface")
    try:
        return _image_features(strict_json(raw)["info"]["features"]) if raw else frozenset()
    except (ValueError, TypeError, KeyError):
        return frozenset()  # somebody else's metadata


def _image_features(features: Mapping[str, Any]) -> frozenset[str]:
    def holds_image(feature: Any) -> bool:
        if isinstance(feature, list):
            return any(map(holds_image, feature))
        return isinstance(feature, Mapping) and (
            feature.get("_type") == "Image" or holds_image(feature.get("feature"))
        )

    return frozenset(name for name, feature in features.items() if holds_image(feature))


def datasets_library() -> Any:
    """The `datasets` library, or None."""
    try:
        import datasets
    except ImportError:
        return None
    return datasets


# --------------------------------------------------------------------------- tables


def read_saved(path: Path) -> pa.Table:
    """A `save_to_disk` folder: Arrow streams, memory-mapped, in the order of state.json."""
    try:
        files = strict_json((path / "state.json").read_bytes())["_data_files"]
        names = [str(file["filename"]) for file in files]
    except (ValueError, KeyError, TypeError) as error:
        raise RapInputError(f"data set {path}: state.json is broken: {error}") from None
    if not names or any(Path(name).name != name for name in names):
        raise RapInputError(f"data set {path}: state.json names no file of this folder")
    maps = [pa.memory_map(str(path / name)) for name in names]
    return pa.concat_tables([pa.ipc.open_stream(m).read_all() for m in maps])


def read_parquet(paths: Sequence[Path]) -> pa.Table:
    """The files' rows in order; large ones through a temporary memory-mapped file, because
    a row group of a Parquet file cannot be read in part."""
    files = [pq.ParquetFile(p, page_checksum_verification=True) for p in paths]
    try:
        size = sum(
            f.metadata.row_group(g).total_byte_size
            for f in files
            for g in range(f.metadata.num_row_groups)
        )
        if size <= IN_MEMORY_BYTES:
            return pa.concat_tables([f.read() for f in files], promote_options="default")
        return _spill(files)
    finally:
        for file in files:
            file.close()


def _spill(files: Sequence[pq.ParquetFile]) -> pa.Table:
    schema = pa.unify_schemas([file.schema_arrow for file in files])
    with tempfile.NamedTemporaryFile(prefix="rap-", suffix=".arrow") as spill:
        with pa.ipc.new_file(spill, schema) as writer:
            for file in files:
                for batch in file.iter_batches(batch_size=256):
                    writer.write_table(pa.Table.from_batches([batch]).cast(schema))
        spill.flush()
        # The mapping outlives the name: nothing is left behind, even after kill -9.
        return pa.ipc.open_file(pa.memory_map(spill.name)).read_all()
