"""Columns of the tables that ``Rows.parts`` gives, by the names that roles have."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from .choices import letter


def as_structs(table: pa.Table) -> pa.ChunkedArray:
    """Its rows as structs. pyarrow 17's own fails for a table without a chunk."""
    parts = [batch.to_struct_array() for batch in table.to_batches()]
    return pa.chunked_array(parts, pa.struct(list(table.schema)))


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
        return as_structs(pa.table(parts, names=names))
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
