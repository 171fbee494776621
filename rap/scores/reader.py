"""A table that is read when asked, its columns by name and a batch of rows at a time.

``TableReader``: in memory. ``FileReader``: a file of ``files.write_parquet``, of any size.
``ShardReader``: the score shards of a store. What a file or shard holds is compared
with what it held when the reader was made. A column that is null throughout costs nothing,
nor does one that is the same number or short text throughout a row group of a file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..errors import RapStoreError
from ..samples.text import taken
from .columns import BATCH, NULL, Constant, repeated
from .files import store_error, verified_in_place

if TYPE_CHECKING:
    from .shards import Shards

SHORT = 64
"""Letters of a text that is looked for as the only one of a row group."""


Shape = Callable[[pa.Table], pa.Table]
"""A table as a file has it -> as it is read: columns put in order, added and cast."""


class Reader:
    """Attributes: ``schema``, ``num_rows``."""

    schema: pa.Schema
    num_rows: int

    def batches(
        self, names: Sequence[str] | None = None, size: int = BATCH
    ) -> Iterator[pa.Table]:
        """The columns ``names`` (None: all), ``size`` rows at a time, the last fewer.

        Raises ``KeyError`` for a column that is not there, ``RapStoreError`` if a file
        cannot be read any more or is another."""
        names = self.schema.names if names is None else list(names)
        for name in names:
            if self.schema.get_field_index(name) < 0:
                raise KeyError(name)
        return self._batches(names, size)

    def _batches(self, names: list[str], size: int) -> Iterator[pa.Table]:
        raise NotImplementedError

    def different(self, names: Sequence[str]) -> Iterator[pa.Table]:
        """As ``batches``, but rows that are known to be the same may stand there once."""
        return self.batches(names)

    def read(self, names: Sequence[str] | None = None) -> pa.Table:
        """As ``batches``, at once."""
        return pa.concat_tables([self.none(names), *self.batches(names)])

    def none(self, names: Sequence[str] | None) -> pa.Table:
        """The columns, without a row."""
        names = self.schema.names if names is None else names
        return pa.schema([self.schema.field(name) for name in names]).empty_table()

    def mask(self, name: str, values: Sequence[str]) -> np.ndarray:
        """bool [n]: the column holds one of these texts."""
        wanted, found = pa.array(values), np.zeros(self.num_rows, bool)
        start = 0
        for batch in self.batches([name]):
            part = pc.is_in(batch[name], value_set=wanted)
            found[start : start + batch.num_rows] = part.to_numpy()
            start += batch.num_rows
        return found

    def take(self, rows: np.ndarray, names: Sequence[str] | None = None) -> pa.Table:
        """The columns at ``rows`` (int64), in their order."""
        order = np.argsort(rows, kind="stable")
        wanted, found = rows[order], []
        for start, batch in self._with(wanted, names):
            low, high = np.searchsorted(wanted, [start, start + batch.num_rows])
            if high > low:
                found.append(batch.take(pa.array(wanted[low:high] - start)))
        if not found:
            return self.none(names)
        back = np.empty(len(order), np.int64)
        back[order] = np.arange(len(order))
        return pa.concat_tables(found).take(pa.array(back))

    def _with(
        self, wanted: np.ndarray, names: Sequence[str] | None
    ) -> Iterator[tuple[int, pa.Table]]:
        """(place of its first row, batch), of those at least that have one of these rows,
        which ascend."""
        start = 0
        for batch in self.batches(names):
            yield start, batch
            start += batch.num_rows


class TableReader(Reader):
    """A table in memory."""

    def __init__(self, table: pa.Table) -> None:
        self.table, self.schema, self.num_rows = table, table.schema, table.num_rows

    def _batches(self, names: list[str], size: int) -> Iterator[pa.Table]:
        table = self.table.select(names)
        for at in range(0, self.num_rows, size):
            yield table.slice(at, size)

    def read(self, names: Sequence[str] | None = None) -> pa.Table:
        return self.table if names is None else self.table.select(list(names))

    def take(self, rows: np.ndarray, names: Sequence[str] | None = None) -> pa.Table:
        table = self.read(names)
        columns = [taken(column, rows) for column in table.columns]
        return pa.Table.from_arrays(columns, schema=table.schema)


class FileReader(Reader):
    """A file of ``files.write_parquet``, verified when the reader is made.

    ``note``: what was written with it. ``shape``: see ``Shape``. Raises ``RapStoreError``
    if it is missing, damaged, foreign or of a newer schema, and what ``shape`` raises.
    """

    def __init__(self, path: Path, shape: Shape) -> None:
        self.path = path
        self.note, _ = verified_in_place(path)
        self._seen = self._stat()
        with self._open() as file:
            self._there = file.schema_arrow.remove_metadata()
            self.num_rows = file.metadata.num_rows
        self.schema = shape(self._there.empty_table()).schema
        self._shape = shape

    def _stat(self) -> tuple[int, int]:
        try:
            found = os.stat(self.path)
        except OSError as error:
            raise store_error(f"{self.path}: cannot be read", error) from error
        return found.st_size, found.st_mtime_ns

    def _open(self) -> pq.ParquetFile:
        if self._stat() != self._seen:
            raise RapStoreError(f"{self.path}: changed since it was loaded")
        try:
            return pq.ParquetFile(self.path, page_checksum_verification=True)
        except (pa.ArrowException, OSError) as error:
            raise RapStoreError(f"{self.path}: is damaged: {error}") from error

    def _batches(self, names: list[str], size: int) -> Iterator[pa.Table]:
        return sized(self._pieces(names, size), size)

    def different(self, names: Sequence[str]) -> Iterator[pa.Table]:
        with self._open() as file:
            for group in range(file.num_row_groups):
                facts = file.metadata.row_group(group)
                all_same = all(self._throughout(facts, n) is not None for n in names)
                tables = self._group(file, group, list(names), 1 if all_same else BATCH)
                yield from islice(tables, 1) if all_same else tables

    def _pieces(self, names: list[str], size: int) -> Iterator[pa.Table]:
        with self._open() as file:
            for group in range(file.num_row_groups):
                yield from self._group(file, group, names, size)

    def _with(
        self, wanted: np.ndarray, names: Sequence[str] | None
    ) -> Iterator[tuple[int, pa.Table]]:
        """As in ``Reader``; other row groups are not read."""
        names = self.schema.names if names is None else list(names)
        start = 0
        with self._open() as file:
            for group in range(file.num_row_groups):
                end = start + file.metadata.row_group(group).num_rows
                low, high = np.searchsorted(wanted, [start, end])
                for table in self._group(file, group, names, BATCH) if high > low else ():
                    yield start, table
                    start += table.num_rows
                start = end

    def _group(
        self, file: pq.ParquetFile, group: int, names: list[str], size: int
    ) -> Iterator[pa.Table]:
        """A row group, ``size`` rows at a time."""
        kinds = {name: self.schema.field(name).type for name in names}
        facts = file.metadata.row_group(group)
        same = {
            name: value
            for name in names
            if (value := self._throughout(facts, name)) is not None
        }
        full = [name for name in names if name not in same]
        for read, n in self._batches_of(file, group, full, size):
            yield pa.table(
                {
                    name: repeated(same[name], kind, n)
                    if name in same
                    else read[name].cast(kind)
                    for name, kind in kinds.items()
                }
            )

    def _batches_of(
        self, file: pq.ParquetFile, group: int, names: list[str], size: int
    ) -> Iterator[tuple[Any, int]]:
        """(these columns, rows) of a row group."""
        rows = file.metadata.row_group(group).num_rows
        if not names:
            for at in range(0, rows, size):
                yield {}, min(size, rows - at)
            return
        try:
            for batch in file.iter_batches(size, [group], names):
                yield pa.Table.from_batches([batch]), batch.num_rows
        except (pa.ArrowException, OSError) as error:
            raise RapStoreError(f"{self.path}: is damaged: {error}") from error

    def _throughout(self, facts: Any, name: str) -> Constant | None:
        """What a column holds in every row of this row group, as the file's own statistics
        say; `NULL` where it is not in the file, None where rows differ, or may."""
        at = self._there.get_field_index(name)
        if at < 0:
            return NULL
        if facts.num_columns != len(self._there):  # nested: places are not columns
            return None
        found = facts.column(at).statistics
        if found is None or not found.has_null_count:
            return None
        if found.null_count == facts.num_rows:
            return NULL
        kind = self._there.field(at).type
        if found.null_count or not found.has_min_max or not _has_exact_limits(kind):
            return None
        value = found.min
        short = not isinstance(value, str) or len(value) <= SHORT
        return value if value == found.max and short else None


class ShardReader(Reader):
    """The scores of a store, of which all shards are there. ``rollouts``: {shard: digest of
    its rollouts}, of those that were read and have some.

    Raises ``RapStoreError`` if shards are missing."""

    def __init__(self, shards: Shards, schema: pa.Schema) -> None:
        shards.require_whole()
        self.shards, self.schema, self.num_rows = shards, schema, shards.n_samples
        self.rollouts: dict[int, str] = {}
        self._digests: dict[int, str] = {}
        self._seen: dict[int, tuple[int, ...]] = {}

    def _batches(self, names: list[str], size: int) -> Iterator[pa.Table]:
        return sized(self._pieces(names), size)

    def _pieces(self, names: list[str]) -> Iterator[pa.Table]:
        for k in range(self.shards.n_shards):
            yield self._shard(k, names)

    def _with(
        self, wanted: np.ndarray, names: Sequence[str] | None
    ) -> Iterator[tuple[int, pa.Table]]:
        """As in ``Reader``; other shards are not read."""
        names = self.schema.names if names is None else list(names)
        size = self.shards.shard_size
        for k in np.unique(wanted // size).tolist():
            yield k * size, self._shard(k, names)

    def _shard(self, k: int, names: list[str]) -> pa.Table:
        """Verified the first time; then a file of the same size and time is the same."""
        seen = self.shards.seen(k)
        if self._seen.get(k) == seen:
            return self.shards.read_again(k, names)
        table, digest, rollouts = self.shards.read_columns(k, names)
        if rollouts is not None:
            self.rollouts[k] = rollouts
        if self._digests.setdefault(k, digest) != digest:
            raise RapStoreError(
                f"{self.shards.path}: shard {k} changed since it was loaded"
            )
        self._seen[k] = seen
        return table


class Without(Reader):
    """``reader`` with nulls in the columns ``names``."""

    def __init__(self, reader: Reader, names: Sequence[str]) -> None:
        self.reader, self.names = reader, names
        self.schema, self.num_rows = reader.schema, reader.num_rows

    def _batches(self, names: list[str], size: int) -> Iterator[pa.Table]:
        for batch in self.reader.batches(names, size):
            for at, field in enumerate(batch.schema):
                if field.name in self.names:
                    empty = pa.nulls(batch.num_rows, field.type)
                    batch = batch.set_column(at, field, empty)
            yield batch


def as_reader(table: pa.Table | Reader) -> Reader:
    return table if isinstance(table, Reader) else TableReader(table)


def _has_exact_limits(kind: pa.DataType) -> bool:
    """Types whose smallest and largest value tell all there is where they are equal: not
    floats, of which NaN is none and 0.0 is -0.0."""
    return bool(pa.types.is_integer(kind) or pa.types.is_string(kind))


def sized(tables: Iterable[pa.Table], size: int) -> Iterator[pa.Table]:
    """The same rows in tables of ``size``, the last fewer."""
    held: list[pa.Table] = []
    n = 0
    for table in tables:
        held.append(table)
        n += table.num_rows
        while n >= size:
            joined = held[0] if len(held) == 1 else pa.concat_tables(held)
            yield joined.slice(0, size)
            rest = joined.slice(size)
            n = rest.num_rows
            held = [rest] if n else []
    if n:
        yield pa.concat_tables(held)


class Lazily:
    """An attribute that is given as a table or a reader, and is a table, read at first
    need. The reader is ``reader``."""

    def __get__(self, holder: Any, owner: type | None = None) -> pa.Table:
        if holder is None:
            raise AttributeError("no default")
        if "_table" not in vars(holder):
            vars(holder)["_table"] = vars(holder)["reader"].read()
        return vars(holder)["_table"]

    def __set__(self, holder: Any, value: pa.Table | Reader) -> None:
        vars(holder).pop("_table", None)
        vars(holder)["reader"] = as_reader(value)
