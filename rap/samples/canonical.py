"""Rows as the JSON text that a data set's content hash is taken of.

A row is ``json.dumps`` of the list of its values, image bytes left out. Of Arrow columns
the same bytes are made without a Python object a row, as far as their types allow
(``Inexact``); of texts that are not plain ASCII each is escaped by the C function that
``json.dumps`` calls.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from json.encoder import encode_basestring_ascii as quoted  # as json.dumps has it

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .text import text_and_ends

_PLAIN = np.zeros(256, bool)
_PLAIN[0x20:0x7F] = True
_PLAIN[[ord('"'), ord("\\")]] = False


class Inexact(Exception):
    """A column whose values must be looked at in Python: their type, or text that is not
    UTF-8."""


def canonical(values: object) -> bytes:
    """Values as JSON bytes; image bytes left out, anything odd by its type's name."""

    def other(value: object) -> object:
        is_image = isinstance(value, (bytes, bytearray, memoryview))
        return None if is_image else type(value).__name__

    try:
        return json.dumps(values, default=other, skipkeys=True).encode()
    except (RecursionError, ValueError):  # nested without end
        return b"?"


def row_texts(columns: Sequence[pa.Array], n: int) -> pa.Array:
    """``canonical([a, b, ...])`` of each of ``n`` rows of these columns, a line each.
    Raises ``Inexact``."""
    parts: list[object] = []
    for column in columns:
        parts += [", ", value_texts(column)]
    first = parts[1:] or [pa.array([""] * n, pa.string())]
    return _joined(["[", *first, "]\n"])


def value_texts(array: pa.Array) -> pa.Array:
    """``json.dumps`` of each value of an Arrow array, as text. Raises ``Inexact``."""
    kind = array.type
    for is_kind, make in _MADE:
        if is_kind(kind):
            return make(array)
    raise Inexact(str(kind))


def bytes_of(texts: pa.Array) -> memoryview:
    """All texts of an array, one after the other."""
    ends, data = text_and_ends(texts)
    if data is None:
        return memoryview(b"")
    return memoryview(data)[int(ends[0]) : int(ends[-1])]


# ------------------------------------------------------------------------ by type


def _joined(parts: Sequence[object]) -> pa.Array:
    return pc.binary_join_element_wise(*parts, "")


def _or_null(array: pa.Array, texts: pa.Array) -> pa.Array:
    return texts if not array.null_count else pc.if_else(array.is_valid(), texts, "null")


def _nothing(array: pa.Array) -> pa.Array:
    return pa.array(["null"]).take(pa.array(np.zeros(len(array), np.int8)))


def _bools(array: pa.Array) -> pa.Array:
    return pc.fill_null(pc.if_else(array, "true", "false"), "null")


def _integers(array: pa.Array) -> pa.Array:
    return pc.fill_null(array.cast(pa.string()), "null")


def _floats(array: pa.Array) -> pa.Array:
    return pa.array([json.dumps(value) for value in array.to_pylist()], pa.string())


def _texts(array: pa.Array) -> pa.Array:
    """Texts in quotes; those with a character to escape one by one."""
    odd = odd_rows(array)
    plain = _joined(['"', array.cast(pa.string()), '"'])
    if odd.size:
        mask = np.zeros(len(array), bool)
        mask[odd] = True
        try:
            escaped = [quoted(text) for text in array.take(pa.array(odd)).to_pylist()]
        except UnicodeDecodeError as error:  # Arrow does not check UTF-8 on reading
            raise Inexact("not UTF-8") from error
        plain = pc.replace_with_mask(plain, pa.array(mask), pa.array(escaped, pa.string()))
    return pc.fill_null(plain, "null") if plain.null_count else plain


def odd_rows(array: pa.Array) -> np.ndarray:
    """int64: rows whose text is not as it stands in JSON: not ASCII, a control character,
    a quotation mark or a backslash."""
    ends, data = text_and_ends(array)
    start, stop = int(ends[0]), int(ends[-1])
    if data is None or start == stop:
        return np.empty(0, np.int64)
    there = np.flatnonzero(~_PLAIN[np.frombuffer(data, np.uint8, stop - start, start)])
    rows = np.unique(np.searchsorted(ends, there + start, side="right") - 1)
    if array.null_count:  # bytes of a null are nothing
        rows = rows[array.is_valid().to_numpy(zero_copy_only=False)[rows]]
    return rows


def _lists(array: pa.Array) -> pa.Array:
    items = value_texts(array.flatten())
    sizes = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
    ends = np.zeros(len(array) + 1, np.int32)
    np.cumsum(sizes, out=ends[1:])
    lists = pa.ListArray.from_arrays(pa.array(ends), items)
    return _or_null(array, _joined(["[", pc.binary_join(lists, ", "), "]"]))


def _structs(array: pa.Array) -> pa.Array:
    names = [field.name for field in array.type]
    if not names or len(set(names)) < len(names):
        raise Inexact("a struct without names, or with one twice")
    parts: list[object] = []
    for name, child in zip(names, array.flatten(), strict=True):
        parts += [", ", f"{quoted(name)}: ", value_texts(child)]
    return _or_null(array, _joined(["{", *parts[1:], "}"]))


def _decoded(array: pa.Array) -> pa.Array:
    return value_texts(array.dictionary_decode())


_Is = Callable[[pa.DataType], bool]
_MADE: tuple[tuple[_Is, Callable[[pa.Array], pa.Array]], ...] = (
    (lambda kind: pa.types.is_string(kind) or pa.types.is_large_string(kind), _texts),
    (pa.types.is_null, _nothing),
    (pa.types.is_boolean, _bools),
    (pa.types.is_integer, _integers),
    (pa.types.is_floating, _floats),
    (lambda kind: pa.types.is_binary(kind) or pa.types.is_large_binary(kind), _nothing),
    (lambda kind: pa.types.is_list(kind) or pa.types.is_large_list(kind), _lists),
    (pa.types.is_struct, _structs),
    (pa.types.is_dictionary, _decoded),
)
"""Each kind of type and how its values become text."""
