"""Columns of the tables that ``Rows.parts`` gives, by the names that roles have."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from .choices import letter


def column_of(table: pa.Table, name: str | None) -> pa.ChunkedArray | None:
    """The values that ``parsing.cell`` finds under ``name``: a column, a field of one
    ("a.b"), or several as an object of them by letters ("a,b"), null where nothing is.
    None where the column's type does not tell."""
    nothing = pa.chunked_array([pa.nulls(table.num_rows)])
    if name is None:
        return nothing
    if name in table.column_names:
        return table[name]
    if "," in name:
        parts = [_own(table, part) for part in name.split(",")]
        names = [letter(k) for k in range(len(parts))]
        together = pa.table(parts, names=names).to_struct_array()
        return together if isinstance(together, pa.ChunkedArray) else pa.chunked_array([])
    outer, _, inner = name.partition(".")
    found = _own(table, outer)
    kind = found.type
    if pa.types.is_dictionary(kind) or isinstance(kind, pa.BaseExtensionType):
        return None
    if pa.types.is_map(kind):
        return None
    if not pa.types.is_struct(kind) or kind.get_field_index(inner) < 0:
        return nothing
    return pc.struct_field(found, [kind.get_field_index(inner)])


def _own(table: pa.Table, name: str) -> pa.ChunkedArray:
    if name in table.column_names:
        return table[name]
    return pa.chunked_array([pa.nulls(table.num_rows)])
