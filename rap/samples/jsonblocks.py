"""Blocks of JSON lines as Arrow tables, where those hold what Python would read.

``pyarrow.json`` is fast and lenient in its own ways: it reads two objects of a line as two
rows, takes NaN, makes 1 of a column with 1.5 in it 1.0 and texts that look like dates
timestamps, and does not check UTF-8. ``read_block`` refuses (``Refused``) every block of
lines in which one of that may have happened, and ``pieces`` cuts it until the lines that
are to be read in Python (``strict_json``) stand alone. Texts of the columns that were seen
as texts are pinned to be texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj

from .strictjson import BOM, MAX_DEPTH

BLOCK_BYTES = 16 << 20
BLOCK_ROWS = 2**16
ALONE = 64
"""Lines that are read in Python together, if one of them must be."""
ATTEMPTS = 24
"""Refusals after which the rest of a block is read in Python; 1 after such a block."""
MAX_KEYS = 256
"""Distinct keys, nested ones too, of rows that become columns of Arrow: each is a value of
every row there."""


class Refused(Exception):
    """Lines that Arrow does not read as Python does, or not at all."""


@dataclass(frozen=True, slots=True)
class Block:
    """Lines in one buffer. ``starts``: int64 [n + 1], where each begins and the last ends,
    with its end of line and the blank lines after it."""

    data: bytes
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.starts) - 1

    def cut(self, start: int, stop: int) -> Block:
        """Lines ``start`` to ``stop``."""
        first, last = int(self.starts[start]), int(self.starts[stop])
        return Block(self.data[first:last], self.starts[start : stop + 1] - first)


# ------------------------------------------------------------------------ one block


def read_block(block: Block, pins: pa.Schema, exact: Sequence[str]) -> pa.Table:
    """The lines as a table, one row a line: all their columns, ``pins`` first. ``exact``:
    columns, or fields of them, whose values must be those that Python reads. Raises
    ``Refused``."""
    data = block.data
    if not data.isascii():
        _require_utf8(data)
    try:
        table = pj.read_json(
            pa.BufferReader(data),
            read_options=pj.ReadOptions(use_threads=False, block_size=len(data) + 1),
            parse_options=pj.ParseOptions(explicit_schema=pins),
        )
        table.column_names  # noqa: B018  decodes the names
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise Refused(str(error)) from None
    if table.num_rows != len(block):
        raise Refused("a line holds several rows")
    for column in table.columns:
        _require_finite(column.type, column.chunks)
    for name in exact:
        for kind in types_of(table.schema, name):
            if not is_exact(kind):
                raise Refused(f"{name} is {kind}")
    return table


def odd_lines(block: Block) -> np.ndarray:
    """bool [n]: lines that Arrow would not take for one object each, or should not be
    given: not ``{...}`` from the first byte to the last, or nested too deeply."""
    bytes_ = np.frombuffer(block.data, np.uint8)
    start, end = block.starts[:-1], block.starts[1:].copy()
    for byte in b"\n\r":
        inside = end > start
        end[inside] -= bytes_[end[inside] - 1] == byte
    odd = end - start < 2
    odd |= bytes_[start] != ord("{")
    odd |= bytes_[np.maximum(end - 1, 0)] != ord("}")
    if len(start) and int((end - start).max()) > MAX_DEPTH:
        opens = np.flatnonzero((bytes_ | 0x20) == ord("{"))  # and "["
        odd |= np.diff(np.searchsorted(opens, block.starts)) > MAX_DEPTH
    return odd


def types_of(schema: pa.Schema, name: str) -> list[pa.DataType]:
    """Of what ``parsing.cell`` finds under ``name``: a column, several ("a,b") or a field
    of one ("a.b"); [] where nothing is."""
    if schema.get_field_index(name) >= 0:
        return [schema.field(name).type]
    if "," in name:
        parts = [p for p in name.split(",") if schema.get_field_index(p) >= 0]
        return [schema.field(part).type for part in parts]
    outer, _, inner = name.partition(".")
    at = schema.get_field_index(outer)
    kind = pa.null() if at < 0 else schema.field(at).type
    if not pa.types.is_struct(kind) or kind.get_field_index(inner) < 0:
        return []
    return [kind.field(inner).type]


def is_exact(kind: pa.DataType) -> bool:
    """Values of this type are what Python reads of the same lines. A missing key and a
    null are the same to rap; a float may have been a whole number."""
    if pa.types.is_list(kind):
        return is_exact(kind.value_type)
    return (
        pa.types.is_string(kind)
        or pa.types.is_int64(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_null(kind)
    )


def _require_utf8(data: bytes) -> None:
    ends = pa.py_buffer(np.array([0, len(data)], np.int64))
    whole = pa.LargeStringArray.from_buffers(1, ends, pa.py_buffer(data))
    try:
        whole.validate(full=True)
    except pa.ArrowInvalid as error:
        raise Refused(str(error)) from None


def _require_finite(kind: pa.DataType, arrays: Sequence[pa.Array]) -> None:
    """Refuse NaN and infinity wherever they are."""
    if pa.types.is_floating(kind):
        for array in arrays:
            if pc.all(pc.is_finite(array)).as_py() is False:
                raise Refused("a number is not finite")
    elif pa.types.is_list(kind):
        _require_finite(kind.value_type, [array.values for array in arrays])
    elif pa.types.is_struct(kind):
        for at in range(kind.num_fields):
            _require_finite(kind[at].type, [array.field(at) for array in arrays])


# ------------------------------------------------------------------------ many blocks


class Patience:
    """How often lines are cut in halves before they are read in Python."""

    def __init__(self) -> None:
        self.left = ATTEMPTS

    def renew(self, in_python: int, lines: int) -> None:
        """After a block of so many lines, of which so many were read in Python."""
        self.left = 1 if 2 * in_python > lines else ATTEMPTS


def pieces(
    block: Block, patience: Patience, read: Callable[[Block], pa.Table]
) -> Iterator[pa.Table | tuple[int, int]]:
    """The lines in order: tables, and (start, stop) of lines to read in Python."""
    odd = odd_lines(block)
    in_python = 0
    todo = [(0, len(block))]
    while todo:
        start, stop = todo.pop()
        try:
            if patience.left <= 0 or odd[start:stop].all():
                raise Refused
            if odd[start:stop].any():
                table = None
            else:
                part = block if stop - start == len(block) else block.cut(start, stop)
                table = read(part)
        except Refused:
            patience.left -= 1
            table = None
        if table is not None:
            yield table
        elif stop - start <= ALONE or patience.left <= 0 or odd[start:stop].all():
            in_python += stop - start
            yield start, stop
        else:
            middle = (start + stop) // 2
            todo += [(middle, stop), (start, middle)]
    patience.renew(in_python, len(block))


def pins_of(rows: Sequence[Mapping[str, Any]]) -> pa.Schema:
    """The columns of these rows that hold texts, or lists or objects of texts, as such."""
    found = []
    for name in dict.fromkeys(key for row in rows for key in row):
        kind = _pin([row[name] for row in rows if row.get(name) is not None])
        if kind is not None:
            found.append(pa.field(name, kind))
    return pa.schema(found)


def _pin(values: Sequence[Any]) -> pa.DataType | None:
    kinds = set(map(type, values))
    if kinds == {str}:
        return pa.string()
    if kinds == {list}:
        inner = _pin([item for value in values for item in value if item is not None])
        return None if inner is None else pa.list_(inner)
    if kinds == {dict}:
        names = dict.fromkeys(key for value in values for key in value)
        fields = [
            (name, _pin([v[name] for v in values if v.get(name) is not None]))
            for name in names
        ]
        known = [pa.field(name, kind) for name, kind in fields if kind is not None]
        return pa.struct(known) if known else None
    return None


def count_keys(value: Any, seen: set[tuple[str, ...]], at: tuple[str, ...] = ()) -> None:
    """Put the path of every key in ``value`` into ``seen``, up to ``MAX_KEYS`` of them."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if len(seen) <= MAX_KEYS:
                seen.add((*at, key))
                count_keys(inner, seen, (*at, key))
    elif isinstance(value, list):
        for inner in value:
            count_keys(inner, seen, at)


def without_bom(data: bytes, starts: np.ndarray) -> Block:
    """A block whose first line may begin with a byte order mark."""
    if not data.startswith(BOM):
        return Block(data, starts)
    starts = starts - len(BOM)
    starts[0] = 0
    return Block(data[len(BOM) :], starts)
