"""Rows of Python values as a ``datasets.Dataset``, some at a time."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from .sources import datasets_library, union_of_keys

if TYPE_CHECKING:
    import datasets

ROWS = 2**12
_NO_TYPE = (pa.ArrowException, TypeError, ValueError, OverflowError, UnicodeError)
Row = Mapping[str, Any]


def build_dataset(rows: Sequence[Row], columns: Sequence[str]) -> datasets.Dataset:
    """Rows in memory as a data set. A column whose values have no one Arrow type is written
    as JSON text, with a warning, because Arrow cannot hold it as it is."""
    hf = datasets_library()
    out: dict[str, Any] = {}
    for name in dict.fromkeys([*columns, *union_of_keys(rows)]):
        values = [row.get(name) for row in rows]
        try:
            hf.Dataset.from_dict({name: values})
        except _NO_TYPE:
            _warn(name, stacklevel=4)
            values = _as_json(values)
        out[name] = values
    return hf.Dataset.from_dict(out)


def stream_dataset(
    read: Callable[[], Iterable[Row]], columns: Sequence[str]
) -> datasets.Dataset:
    """As ``build_dataset``, of rows of JSON values that ``read`` gives one by one: they are
    Python values for a moment only. ``columns``: every key."""
    hf = datasets_library()
    found: dict[str, list[pa.ChunkedArray] | None] = {name: [] for name in columns}
    for part in _cut(read()):
        for name, arrays in found.items():
            if arrays is None:
                continue
            array = _array(name, [row.get(name) for row in part])
            if array is None:
                found[name] = None
            else:
                arrays.append(array)
    joined = {n: None if a is None else _join(a) for n, a in found.items()}
    mixed = [name for name, column in joined.items() if column is None]
    for name in mixed:
        _warn(name, stacklevel=4)
    joined |= _texts(read, mixed)
    return hf.Dataset(hf.table.InMemoryTable(pa.table(joined)))


def _array(name: str, values: Sequence[Any]) -> pa.ChunkedArray | None:
    """In the type that `datasets` finds for them; None if there is none."""
    try:
        made = datasets_library().Dataset.from_dict({name: values})
    except _NO_TYPE:
        return None
    return made.data.column(0)


def _join(arrays: Sequence[pa.ChunkedArray]) -> pa.ChunkedArray | None:
    """In one type that holds all; None if there is none."""
    try:
        schemas = [pa.schema([("", array.type)]) for array in arrays]
        kind = pa.unify_schemas(schemas, promote_options="permissive").field(0).type
        return pa.chunked_array([c for a in arrays for c in a.cast(kind).chunks], kind)
    except _NO_TYPE:
        return None


def _texts(
    read: Callable[[], Iterable[Row]], names: Sequence[str]
) -> dict[str, pa.ChunkedArray]:
    """These columns as JSON text."""
    found: dict[str, list[pa.Array]] = {name: [] for name in names}
    for part in _cut(read()) if names else ():
        for name, arrays in found.items():
            arrays.append(pa.array(_as_json([row.get(name) for row in part]), pa.string()))
    return {name: pa.chunked_array(arrays) for name, arrays in found.items()}


def _as_json(values: Sequence[Any]) -> list[str | None]:
    return [None if v is None else json.dumps(v, default=repr) for v in values]


def _warn(name: str, stacklevel: int) -> None:
    warnings.warn(
        f"column {name!r} mixes types and becomes JSON text",
        UserWarning,
        stacklevel=stacklevel,
    )


def _cut(rows: Iterable[Row]) -> Iterator[list[Row]]:
    rest = iter(rows)
    while part := list(islice(rest, ROWS)):
        yield part
