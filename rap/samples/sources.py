"""Sources of rows: one class per kind of source. `opening` tells which one a source is.

Every kind returns rows as dicts of Python values, by number, and never decodes an
image; what is read of all rows comes in parts, as Arrow where the source is Arrow's or can
be read so. Here: objects in memory, and data sets saved on disk, which are memory-mapped;
``jsonlines``, ``parquet``: the other files.

A row that cannot be read is a ``BadSample``; a source that cannot be read is a
``RapInputError``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
import pyarrow as pa

from ..errors import RapInputError
from .sample import BadSample
from .strictjson import strict_json

if TYPE_CHECKING:
    import datasets

IN_MEMORY_BYTES = 256 << 20
"""A file, or the columns of one, that are larger are not held."""
PART_ROWS = 2**14

Part: TypeAlias = "pa.Table | list[Mapping[str, Any] | BadSample]"
"""Some rows, one after the other."""


# --------------------------------------------------------------------------- rows


class Rows(Protocol):
    """Rows by number. Every method is safe to call from several threads."""

    kind: str
    columns: list[str]
    image_columns: frozenset[str]  # known by their type to hold images
    bytes_columns: frozenset[str]  # known by their type to hold bytes and nothing else

    def __len__(self) -> int: ...
    def row(self, index: int) -> Mapping[str, Any]:
        """One row; raises ``BadSample``."""

    def each(self, columns: Sequence[str]) -> Iterator[Mapping[str, Any] | BadSample]:
        """All rows in order, with at least these columns."""

    def parts(
        self, names: Sequence[str], start: int = 0, stop: int | None = None
    ) -> Iterator[Part]:
        """Rows ``start`` to ``stop`` in order, without a Python object a row where that can
        be: tables, whose values under ``names`` (as ``parsing.cell`` reads them) are those
        of ``row`` but that a missing key is null, or lists of rows."""

    def leave_out(self, columns: Collection[str]) -> None:
        """Never read these in ``row``: images nobody asked for stay on disk."""

    def holds_text(self, columns: Sequence[str]) -> bool:
        """Whether it is sure that there are no bytes in these columns."""

    def where(self, index: int) -> str:
        """How a user finds the row: "line 7", "row 6"."""

    def dataset(self) -> datasets.Dataset | None:
        """The source as a data set, if it can be had without reading every row."""


class Plain:
    """What sources without Arrow types have in common."""

    image_columns: frozenset[str] = frozenset()
    bytes_columns: frozenset[str] = frozenset()

    def each(self, columns: Sequence[str]) -> Iterator[Mapping[str, Any] | BadSample]:
        for index in range(len(self)):  # type: ignore[arg-type]
            yield row_or_bad(self, index)

    def parts(
        self, names: Sequence[str], start: int = 0, stop: int | None = None
    ) -> Iterator[Part]:
        n: int = len(self)  # type: ignore[arg-type]
        for at in range(start, n if stop is None else stop, 1024):
            end = min(at + 1024, n if stop is None else stop)
            yield [row_or_bad(self, i) for i in range(at, end)]

    def leave_out(self, columns: Collection[str]) -> None:
        """Nothing is known to be an image before it is read."""

    def holds_text(self, columns: Sequence[str]) -> bool:
        return False

    def dataset(self) -> datasets.Dataset | None:
        return None


def row_or_bad(rows: Any, index: int) -> Mapping[str, Any] | BadSample:
    try:
        return rows.row(index)
    except BadSample as bad:
        return bad


class ListRows(Plain):
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


class ArrowRows:
    """A ``pyarrow.Table``, in memory or memory-mapped."""

    def __init__(self, table: pa.Table, kind: str) -> None:
        self.kind, self._table = kind, table
        self.columns = list(table.column_names)
        require_names_once(kind, self.columns)
        self.image_columns = image_columns_of(table.schema)
        self.bytes_columns = bytes_columns_of(table.schema)
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
        return to_python(batch.slice(index - int(self._ends[k]) + batch.num_rows, 1))

    def each(self, columns: Sequence[str]) -> Iterator[Mapping[str, Any] | BadSample]:
        for batch in self._table.select(list(columns)).to_batches(max_chunksize=1024):
            yield from all_to_python(batch)

    def some(
        self, places: np.ndarray, columns: Sequence[str]
    ) -> Iterator[Mapping[str, Any] | BadSample]:
        """These columns of the rows ``places``, which ascend."""
        start = 0
        for batch in self._table.select(list(columns)).to_batches():
            low, high = np.searchsorted(places, [start, start + batch.num_rows])
            if high > low:
                yield from all_to_python(batch.take(pa.array(places[low:high] - start)))
            start += batch.num_rows

    def parts(
        self, names: Sequence[str], start: int = 0, stop: int | None = None
    ) -> Iterator[Part]:
        table = self._table.select(outer_columns(self.columns, names))
        table = table.slice(start, None if stop is None else stop - start)
        if not table.num_columns:
            yield table
            return
        for batch in table.to_batches(max_chunksize=PART_ROWS):
            yield pa.Table.from_batches([batch])

    def holds_text(self, columns: Sequence[str]) -> bool:
        return without_bytes(self._table.schema, columns)

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
        self.bytes_columns = bytes_columns_of(dataset.features.arrow_schema)
        self.leave_out(())

    def leave_out(self, columns: Collection[str]) -> None:
        """Never read these: images nobody asked for stay on disk."""
        keep = [c for c in self.columns if c not in columns]
        self._arrow = self._dataset.with_format("arrow", columns=keep)

    def __len__(self) -> int:
        return len(self._dataset)

    def row(self, index: int) -> Mapping[str, Any]:
        return to_python(self._arrow[index])

    def each(self, columns: Sequence[str]) -> Iterator[Mapping[str, Any] | BadSample]:
        arrow = self._dataset.with_format("arrow", columns=list(columns))
        for start in range(0, len(self), 1024):
            yield from all_to_python(arrow[start : start + 1024])

    def parts(
        self, names: Sequence[str], start: int = 0, stop: int | None = None
    ) -> Iterator[Part]:
        columns = outer_columns(self.columns, names)
        arrow = self._dataset.with_format("arrow", columns=columns)
        stop = len(self) if stop is None else stop
        for at in range(start, stop, PART_ROWS):
            yield arrow[at : min(at + PART_ROWS, stop)]

    def holds_text(self, columns: Sequence[str]) -> bool:
        return without_bytes(self._dataset.features.arrow_schema, columns)

    def arrow(self, indices: Sequence[int]) -> pa.Table:
        """These rows, as they are, with the features in the schema's metadata."""
        table = self._dataset.with_format("arrow").select(indices)[:]
        return table.replace_schema_metadata(self._dataset.features.arrow_schema.metadata)

    def where(self, index: int) -> str:
        return f"row {index}"

    def dataset(self) -> datasets.Dataset | None:
        return self._dataset


def outer_columns(there: Sequence[str], names: Iterable[str | None]) -> list[str]:
    """The columns that ``names`` are read from: of "a.b" a, of "A,B" both."""
    out: list[str] = []
    for name in names:
        if name is None:
            continue
        parts = [name] if name in there else name.split(",")
        out += [p if p in there else p.partition(".")[0] for p in parts]
    return list(dict.fromkeys(out))


def without_bytes(schema: pa.Schema, columns: Sequence[str]) -> bool:
    """Whether no value of these columns has bytes in it."""

    def clean(kind: pa.DataType) -> bool:
        if pa.types.is_list(kind) or pa.types.is_large_list(kind):
            return clean(kind.value_type)
        if pa.types.is_struct(kind):
            return all(clean(kind[at].type) for at in range(kind.num_fields))
        return pa.types.is_string(kind) or pa.types.is_large_string(kind)

    return all(clean(schema.field(name).type) for name in columns)


def require_names_once(kind: str, names: Sequence[str]) -> None:
    if len(set(names)) < len(names):
        raise RapInputError(f"{kind}: a column name is there twice: {[*names]}")


def union_of_keys(rows: Iterable[Mapping[Any, Any]]) -> list[str]:
    """Every text key, in order of first appearance."""
    names: dict[str, None] = {}
    for row in rows:
        names.update((key, None) for key in row if isinstance(key, str))
    return list(names)


def all_to_python(batch: pa.RecordBatch | pa.Table) -> list[Mapping[str, Any] | BadSample]:
    try:
        return batch.to_pylist()
    except (ValueError, pa.ArrowException):  # find the rows that cannot
        return [_one_to_python(batch, i) for i in range(batch.num_rows)]


def _one_to_python(
    batch: pa.RecordBatch | pa.Table, index: int
) -> Mapping[str, Any] | BadSample:
    try:
        return to_python(batch.slice(index, 1))
    except BadSample as bad:
        return bad


def to_python(record: pa.RecordBatch | pa.Table) -> Mapping[str, Any]:
    try:
        return record.to_pylist()[0]
    except UnicodeDecodeError as error:  # Arrow does not check UTF-8 on reading
        raise BadSample("data", "bad_text", f"not UTF-8: {error.reason}") from None
    except (ValueError, pa.ArrowException) as error:
        raise BadSample("data", "bad_text", f"row cannot be read: {error}") from None


def image_columns_of(schema: pa.Schema) -> frozenset[str]:
    """Columns that `datasets` has marked as images in the schema's metadata."""
    raw = (schema.metadata or {}).get(b"huggingface")
    try:
        return _image_features(strict_json(raw)["info"]["features"]) if raw else frozenset()
    except (ValueError, TypeError, KeyError):
        return frozenset()  # somebody else's metadata


def bytes_columns_of(schema: pa.Schema) -> frozenset[str]:
    kinds = (pa.types.is_binary, pa.types.is_large_binary)
    return frozenset(f.name for f in schema if any(is_kind(f.type) for is_kind in kinds))


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
    for name in names:  # opening a FIFO would wait
        if (path / name).exists() and not (path / name).is_file():
            raise RapInputError(f"data set {path}: {name} is not a regular file")
    maps = [pa.memory_map(str(path / name)) for name in names]
    table = pa.concat_tables([pa.ipc.open_stream(m).read_all() for m in maps])
    try:
        # Arrow believes the offsets that a file holds: what they point at would be read
        table.validate(full=True)
    except pa.ArrowException as error:
        raise RapInputError(f"data set {path}: is damaged: {error}") from None
    return table
