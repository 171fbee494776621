"""Parquet files as rows of one data set: row groups are read when a row of them is.

What is held: the files' metadata, a row group of text, and of a group that is larger (one
with images) a window of the rows that were asked for last. A small set is read at once.
"""

from __future__ import annotations

import os
import tempfile
import threading
import weakref
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..errors import RapInputError
from .sample import BadSample
from .sources import (
    PART_ROWS,
    ArrowRows,
    Part,
    Rows,
    all_to_python,
    bytes_columns_of,
    datasets_library,
    image_columns_of,
    outer_columns,
    require_names_once,
    to_python,
    without_bytes,
)

if TYPE_CHECKING:
    import datasets

HELD_BYTES = 64 << 20
"""A set that is larger stays in its files."""
WINDOW_BYTES = 16 << 20
"""A row group of more is read in windows of so much."""
WINDOWS = 4  # held; workers ask for rows that are close together
_READ_ERRORS = (OSError, pa.ArrowException)


@dataclass(frozen=True, slots=True)
class _File:
    """A Parquet file as it was when its metadata was read."""

    path: Path
    seen: tuple[int, int]
    metadata: pq.FileMetaData
    schema: pa.Schema

    @classmethod
    def of(cls, path: Path) -> _File:
        with pq.ParquetFile(path) as file:
            return cls(path, _stat(path), file.metadata, file.schema_arrow)

    def open(self) -> pq.ParquetFile:
        if _stat(self.path) != self.seen:
            raise OSError("the file changed since it was opened")
        return pq.ParquetFile(
            self.path, metadata=self.metadata, page_checksum_verification=True
        )

    def group_bytes(self, group: int, names: Collection[str]) -> int:
        """Bytes of these columns in a row group, before compression."""
        facts = self.metadata.row_group(group)
        columns = map(facts.column, range(facts.num_columns))
        return sum(
            column.total_uncompressed_size
            for column in columns
            if column.path_in_schema in names
            or column.path_in_schema.partition(".")[0] in names
        )


def _stat(path: Path) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_size, found.st_mtime_ns


def leaves_without_bytes(file: _File, names: Collection[str]) -> list[str]:
    """The parts of these columns that must be read where bytes inside of objects are not
    wanted, as Parquet calls them."""
    leaves = [(f.name, skip) for f in file.schema for skip in _skipped(f.type)]
    if len(leaves) != file.metadata.num_columns:
        return list(names)
    paths = [file.metadata.schema.column(at).path for at in range(len(leaves))]
    return [
        path
        for path, (name, skip) in zip(paths, leaves, strict=True)
        if name in names and not skip
    ]


def _skipped(kind: pa.DataType) -> list[bool]:
    """For each leaf of a type whether it need not be read: bytes beside something else,
    which tells whether there is an object."""
    if pa.types.is_struct(kind):
        found = []
        for at in range(kind.num_fields):
            child = kind[at].type
            is_bytes = pa.types.is_binary(child) or pa.types.is_large_binary(child)
            found += [True] if is_bytes else _skipped(child)
        return [False, *found[1:]] if all(found) and found else found
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _skipped(kind.value_type)
    if pa.types.is_map(kind):
        return [False] * (len(_skipped(kind.key_type)) + len(_skipped(kind.item_type)))
    return [False]


def widened(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """``array`` with the fields that its objects lack, null."""
    if array.type.equals(kind):
        return array
    missing = array.is_null()
    if pa.types.is_struct(kind):
        names = [field.name for field in array.type]
        there = dict(zip(names, array.flatten(), strict=True))
        fields = [kind[at] for at in range(kind.num_fields)]
        children = [
            widened(there[f.name], f.type)
            if f.name in there
            else pa.nulls(len(array), f.type)
            for f in fields
        ]
        return pa.StructArray.from_arrays(children, fields=fields, mask=missing)
    sizes = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
    wide = pa.types.is_large_list(kind)
    ends = np.cumsum([0, *sizes], dtype=np.int64 if wide else np.int32)
    made = pa.LargeListArray if wide else pa.ListArray
    values = widened(array.flatten(), kind.value_type)
    return made.from_arrays(pa.array(ends), values, type=kind, mask=missing)


def open_parquet(paths: Sequence[Path], kind: str) -> Rows:
    """The files' rows in order. Raises ``OSError``, ``pa.ArrowException``,
    ``RapInputError``."""
    files = [_File.of(path) for path in paths]
    _require_one_type(files, kind)
    size = sum(file.group_bytes(g, file.schema.names) for file, g in _groups(files))
    if size > HELD_BYTES:
        return ParquetRows(files, kind)
    return ArrowRows(_read_all(files), kind)


def _require_one_type(files: Sequence[_File], kind: str) -> None:
    """Raises ``RapInputError`` that names the files where two have a column of types that
    are not one."""
    there: dict[str, tuple[pa.Field, Path]] = {}
    for file in files:
        for field in file.schema.remove_metadata():
            known, path = there.setdefault(field.name, (field, file.path))
            try:
                both = pa.unify_schemas([pa.schema([known]), pa.schema([field])])
            except (pa.ArrowException, TypeError):
                raise RapInputError(
                    f"{kind}: column {field.name!r} is {known.type} in {path.name} and "
                    f"{field.type} in {file.path.name}: write both with one type"
                ) from None
            if pa.types.is_null(known.type) or known.type != both.field(0).type:
                there[field.name] = both.field(0), file.path


def open_unlinked_parquet(path: Path, kind: str) -> Rows:
    """As ``open_parquet`` of a file whose name goes away."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    rows = open_parquet([Path(f"/dev/fd/{descriptor}")], kind)
    weakref.finalize(rows, os.close, descriptor)
    return rows


def _groups(files: Sequence[_File]) -> Iterator[tuple[_File, int]]:
    for file in files:
        for group in range(file.metadata.num_row_groups):
            yield file, group


def _read_all(files: Sequence[_File]) -> pa.Table:
    tables = []
    for one in files:
        with one.open() as file:
            tables.append(file.read())
    return pa.concat_tables(tables, promote_options="default")


class ParquetRows:
    """Parquet files too large to be held."""

    def __init__(self, files: Sequence[_File], kind: str) -> None:
        self.kind = kind
        self._files = [*_groups(files)]
        sizes = [f.metadata.row_group(g).num_rows for f, g in self._files]
        self._ends = np.cumsum([0, *sizes])
        schema = pa.unify_schemas([file.schema for file in files])
        self._schema = schema.with_metadata(files[0].schema.metadata)
        self.columns = list(self._schema.names)
        require_names_once(kind, self.columns)
        self.image_columns = image_columns_of(self._schema)
        self.bytes_columns = bytes_columns_of(self._schema)
        self._whole = _Windows(self, self.columns)
        self._read = self._whole

    @property
    def paths(self) -> list[Path]:
        return list(dict.fromkeys(file.path for file, _ in self._files))

    def leave_out(self, columns: Collection[str]) -> None:
        """Never read these: images nobody asked for stay on disk."""
        keep = [name for name in self.columns if name not in columns]
        self._read = _Windows(self, keep) if columns else self._whole

    def __len__(self) -> int:
        return int(self._ends[-1])

    def row(self, index: int) -> Mapping[str, Any]:
        try:
            return to_python(self._read.row(index))
        except _READ_ERRORS as error:
            message = f"row {index} cannot be read: {error}"
            raise BadSample("data", "bad_text", message) from None

    def each(self, columns: Sequence[str]) -> Iterator[Mapping[str, Any] | BadSample]:
        for table in self._tables(columns, 0, len(self), bytes_too=True):
            for at in range(0, len(table), 1024):
                yield from all_to_python(table.slice(at, 1024))

    def parts(
        self, names: Sequence[str], start: int = 0, stop: int | None = None
    ) -> Iterator[Part]:
        """See ``Rows``; bytes inside of objects ({bytes, path}) are null and not read."""
        columns = outer_columns(self.columns, names)
        stop = len(self) if stop is None else stop
        return self._tables(columns, start, stop, bytes_too=False)

    def _tables(
        self, columns: Sequence[str], start: int, stop: int, *, bytes_too: bool
    ) -> Iterator[pa.Table]:
        first = int(np.searchsorted(self._ends, start, side="right")) - 1
        for group in range(first, len(self._files)):
            at = int(self._ends[group])
            if at >= stop:
                return
            try:
                for table in self.batches(group, columns, PART_ROWS, bytes_too=bytes_too):
                    low, high = max(start - at, 0), min(stop - at, table.num_rows)
                    at += table.num_rows
                    if low < high:
                        yield table.slice(low, high - low)
            except _READ_ERRORS as error:
                raise RapInputError(f"{self.kind}: cannot be read: {error}") from error

    def holds_text(self, columns: Sequence[str]) -> bool:
        return without_bytes(self._schema, columns)

    def arrow(self, indices: Sequence[int]) -> pa.Table:
        """These rows, as they are."""
        try:
            rows = [self._whole.row(index) for index in indices]
        except _READ_ERRORS as error:
            raise RapInputError(f"{self.kind}: cannot be read: {error}") from error
        return pa.concat_tables([self._schema.empty_table(), *rows])

    def where(self, index: int) -> str:
        return f"row {index}"

    def take(self, indices: Sequence[int]) -> datasets.Dataset | None:
        """These rows as a data set of their own."""
        hf = datasets_library()
        return (
            None if hf is None else hf.Dataset(hf.table.InMemoryTable(self.arrow(indices)))
        )

    def dataset(self) -> datasets.Dataset | None:
        """All rows; they go through a memory-mapped temporary file."""
        hf = datasets_library()
        return None if hf is None else hf.Dataset(hf.table.InMemoryTable(self._spill()))

    # -- inside

    def batches(
        self, group: int, names: Sequence[str], size: int, *, bytes_too: bool = True
    ) -> Iterator[pa.Table]:
        """A row group's columns, ``size`` rows at a time, in the schema of all files."""
        file, number = self._files[group]
        there = [name for name in names if name in file.schema.names]
        leaves = there if bytes_too else leaves_without_bytes(file, there)
        own = pa.schema([file.schema.field(name) for name in there])
        wanted = pa.schema([self._schema.field(name) for name in names])
        with file.open() as opened:
            for batch in opened.iter_batches(size, [number], leaves):
                columns = [widened(batch[field.name], field.type) for field in own]
                table = pa.Table.from_arrays(columns, schema=own)
                if not table.schema.equals(wanted):
                    both = [wanted.empty_table(), table]
                    table = pa.concat_tables(both, promote_options="default").select(names)
                yield table.replace_schema_metadata(self._schema.metadata)

    def group_of(self, index: int) -> tuple[int, int]:
        """(row group of a row, its place in it)"""
        group = int(np.searchsorted(self._ends, index, side="right")) - 1
        return group, index - int(self._ends[group])

    def window_rows(self, group: int, names: Collection[str]) -> int:
        """How many of a group's rows are read at a time."""
        file, number = self._files[group]
        rows: int = file.metadata.row_group(number).num_rows
        size = file.group_bytes(number, names)
        return rows if size <= WINDOW_BYTES else max(1, rows * WINDOW_BYTES // size)

    def _spill(self) -> pa.Table:
        with tempfile.NamedTemporaryFile(prefix="rap-", suffix=".arrow") as spill:
            with pa.ipc.new_file(spill, self._schema) as writer:
                for group in range(len(self._files)):
                    for table in self.batches(group, self.columns, 256):
                        writer.write_table(table)
            spill.flush()
            # The mapping outlives the name: nothing is left behind, even after kill -9.
            return pa.ipc.open_file(pa.memory_map(spill.name)).read_all()


class _Windows:
    """The rows that were asked for last, with their neighbours. Safe to be asked from
    several threads."""

    def __init__(self, rows: ParquetRows, names: Sequence[str]) -> None:
        self._rows, self._names = weakref.proxy(rows), list(names)
        self._lock = threading.Lock()
        self._held: OrderedDict[tuple[int, int], pa.Table] = OrderedDict()
        self._reading: tuple[int, int, Iterator[pa.Table]] | None = None

    def row(self, index: int) -> pa.Table:
        """A table of this row."""
        group, place = self._rows.group_of(index)
        with self._lock:
            size = self._rows.window_rows(group, self._names)
            table = self._window(group, place // size, size)
        return table.slice(place % size, 1)

    def _window(self, group: int, number: int, size: int) -> pa.Table:
        """Window ``number`` of a group; those before it are passed, as Parquet is read from
        a group's beginning."""
        key = (group, number)
        if key in self._held:
            self._held.move_to_end(key)
            return self._held[key]
        if self._reading is None or self._reading[0] != group or self._reading[1] > number:
            batches = self._rows.batches(group, self._names, size)
            self._reading = (group, 0, batches)
        _, at, batches = self._reading
        self._reading = None  # whatever fails, it is begun again
        rows = int(self._rows._ends[group + 1] - self._rows._ends[group])
        for table in batches:
            if table.num_rows != min(size, rows - at * size):
                break
            self._held[group, at] = table
            while len(self._held) > WINDOWS:
                self._held.popitem(last=False)
            at += 1
            if at > number:
                self._reading = (group, at, batches)
                return table
        raise OSError("a row group has other rows than its file says")
