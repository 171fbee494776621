"""Columns of the score table as NumPy arrays, and exact comparisons with decimals."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from fractions import Fraction
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..config import is_number
from ..errors import RapConfigError
from ..settings import to_python

BATCH = 2**17
"""Rows of a batch unless asked otherwise."""
EXACT_BELOW = 2**26
"""Denominators up to which two different quotients differ as float64."""


def integers(column: pa.ChunkedArray) -> np.ndarray:
    """int64, null as 0."""
    return pc.fill_null(column, 0).to_numpy().astype(np.int64)


def floats(column: pa.ChunkedArray) -> np.ndarray:
    """float64, null as NaN."""
    return column.to_numpy().astype(np.float64)


def mask_of(column: pa.ChunkedArray) -> np.ndarray:
    """bool, null as False."""
    return pc.fill_null(column, False).to_numpy()


def nullable(values: np.ndarray) -> pa.Array:
    """float64, NaN as null."""
    return pa.array(values, pa.float64(), mask=np.isnan(values))


def counts(column: pa.ChunkedArray) -> np.ndarray:
    """The integers in their own type, null as 0; no copy where there is no null and one
    chunk."""
    return (pc.fill_null(column, 0) if column.null_count else column).to_numpy()


def look_up(table: np.ndarray, places: np.ndarray) -> np.ndarray:
    """``table[places]``, whose places NumPy would widen to int64 all at once."""
    found = np.empty(len(places), table.dtype)
    by_byte = len(table) == 256 and table.itemsize == 1 and places.dtype == np.uint8
    bytes_ = table.tobytes() if by_byte else b""
    for at in range(0, len(places), 2**16):
        part = places[at : at + 2**16]
        if by_byte:
            text = part.tobytes().translate(bytes_)
            found[at : at + 2**16] = np.frombuffer(text, table.dtype)
        else:
            found[at : at + 2**16] = table[part]
    return found


def distinct_rows(
    columns: Sequence[np.ndarray], limit: int = 2**20
) -> tuple[np.ndarray, np.ndarray] | None:
    """(a row of each distinct one, which of those each row is equal to), int64; None where
    the columns, integers >= 0, have too large values to count all that could be there."""
    key, size = np.zeros(len(columns[0]), np.int32), 1
    for column in columns:
        if not len(column):
            continue
        low, high = int(column.min()), int(column.max())
        if low < 0:
            return None
        size *= high - low + 1
        if size > limit:
            return None
        if high > low:
            key *= high - low + 1
            key += column if low == 0 else column - low
    first = np.full(size, -1)
    first[key[::-1]] = np.arange(len(key) - 1, -1, -1)  # the last that is put stays
    there = np.flatnonzero(first >= 0)
    place = np.empty(size, np.int64)
    place[there] = np.arange(len(there))
    return first[there], place[key]


def as_fraction(name: str, value: float) -> Fraction:
    """The decimal the user wrote: 0.1 is 1/10, not the nearest binary number."""
    number = to_python(value)
    if not is_number(number):
        raise RapConfigError(f"{name} = {value!r}: expected a finite number")
    return Fraction(str(float(number)))  # type: ignore[arg-type]


def exceeds(number: np.ndarray, scale: np.ndarray, threshold: Fraction) -> np.ndarray:
    """number > threshold * scale, exactly, for int64 number and int64 scale >= 0.

    In int64 where the products fit; else through floor(threshold * scale), since an
    integer exceeds x if and only if it exceeds floor(x).
    """
    p, q = threshold.numerator, threshold.denominator
    largest = max(int(scale.max(initial=1)), int(np.abs(number).max(initial=1)))
    if max(abs(p), q) * largest < 2**62:
        return number * q > p * scale
    values, inverse = np.unique(scale, return_inverse=True)
    floors = np.array([p * int(v) // q for v in values], dtype=np.int64)
    return number > floors[inverse]


def quotient_key(x: np.ndarray, number: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """A float64 key with the order and equality of number / scale, which ``x`` (NaN:
    unknown) is close to.

    Two quotients with denominators up to 2**26 differ by at least 2**-52, so their
    correctly rounded values differ; only larger ones need exact ranks.
    """
    if int(scale.max(initial=0)) <= EXACT_BELOW:
        return np.divide(number, scale, out=np.full(len(x), np.nan), where=~np.isnan(x))
    divisor = np.maximum(np.gcd(number, scale), 1)
    pairs = np.stack([number // divisor, scale // divisor], axis=1)
    unique, inverse = np.unique(pairs, axis=0, return_inverse=True)
    exact = [Fraction(int(a), int(b)) if b else Fraction(-2) for a, b in unique]
    rank = np.empty(len(unique))
    rank[sorted(range(len(exact)), key=exact.__getitem__)] = np.arange(len(exact))
    return np.where(np.isnan(x), np.nan, rank[inverse.reshape(-1)])


# ---------------------------------------------------------------- one value throughout


class Null(Enum):
    """No value, where None means that it is not known."""

    NULL = "null"


NULL = Null.NULL
Constant = int | str | Null


def nulls(n: int, kind: pa.DataType) -> pa.Array:
    """``n`` nulls; those of one type share their memory."""
    return repeated(NULL, kind, n)


def repeated(value: Constant, kind: pa.DataType, n: int) -> pa.Array:
    """``n`` times the same; equal ones share their memory."""
    return _repeated(value, kind, n) if n > BATCH else _batch_of(value, kind).slice(0, n)


def _repeated(value: Constant, kind: pa.DataType, n: int) -> pa.Array:
    return pa.nulls(n, kind) if value is NULL else pa.repeat(pa.scalar(value, kind), n)


@lru_cache(maxsize=256)
def _batch_of(value: Constant, kind: pa.DataType) -> pa.Array:
    return _repeated(value, kind, BATCH)
