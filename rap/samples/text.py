"""Columns of text of any length: Arrow's ``string`` ends at 2 GiB an array.

A column that may be longer is cut into arrays that are not, joined as ``large_string``, or
told apart by 64-bit hashes, of which equal ones are looked at exactly.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

TEXT_LIMIT = 2**31 - 1
"""Bytes of text that one Arrow ``string`` array can hold."""
_PIECE = 2**16
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_SHIFT = np.uint64(29)
_STEPS = 64
"""Of eight bytes, taken of all texts at once; what is longer goes on text by text."""


def flat(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """One array; ``large_string`` where ``string`` is too short."""
    if isinstance(column, pa.Array):
        return column
    if pa.types.is_string(column.type) and text_bytes(column) > TEXT_LIMIT:
        column = column.cast(pa.large_string())
    if column.num_chunks == 1:
        return column.chunk(0)
    return pa.concat_arrays(column.chunks or [pa.array([], column.type)])


def text_bytes(column: pa.ChunkedArray | pa.Array) -> int:
    """How many bytes of text a column holds."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    return sum(int(ends[-1] - ends[0]) for ends, _ in map(text_and_ends, chunks))


def as_strings(column: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray:
    """The same text as ``string``, in arrays of at most ``TEXT_LIMIT`` bytes (one that
    holds a single longer text raises ``pa.ArrowInvalid``)."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    found: list[pa.Array] = []
    for chunk in chunks:
        if pa.types.is_string(chunk.type):
            found.append(chunk)
            continue
        ends, _ = text_and_ends(chunk)
        start = 0
        while start < len(chunk):
            stop = int(np.searchsorted(ends, ends[start] + TEXT_LIMIT, side="right")) - 1
            stop = max(stop, start + 1)
            # joined with nothing: a copy whose offsets start at 0, as the cast needs them
            part = pa.concat_arrays([chunk.slice(start, stop - start), chunk.slice(0, 0)])
            found.append(part.cast(pa.string()))
            start = stop
    return pa.chunked_array(found, pa.string())


def taken(column: pa.ChunkedArray, rows: np.ndarray) -> pa.ChunkedArray:
    """``column`` at these rows; Arrow's own ``take`` joins the chunks of a ``string`` first
    and fails where they are too long for one."""
    at = pa.array(rows)
    if not pa.types.is_string(column.type) or text_bytes(column) <= TEXT_LIMIT:
        return column.take(at)
    return as_strings(column.cast(pa.large_string()).take(at))


def hash64(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """uint64 [n]: a hash of each text (null: as the empty one). Equal texts have equal
    hashes; different ones may, which is looked at where it matters (``repeated``)."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    found = np.empty(len(column), np.uint64)
    at = 0
    for chunk in chunks:
        for start in range(0, len(chunk), _PIECE):
            piece = chunk.slice(start, _PIECE)
            found[at : at + len(piece)] = _hash(*text_and_ends(piece))
            at += len(piece)
    return found


def repeated(
    hashes: np.ndarray, columns: Callable[[], Iterator[pa.ChunkedArray]]
) -> str | None:
    """The first text that stands twice; None if all differ. ``hashes``: their ``hash64``,
    sorted in place. ``columns``: reads the texts again, in order, if hashes are equal."""
    hashes.sort()
    suspects = np.unique(hashes[1:][hashes[1:] == hashes[:-1]])
    if not suspects.size:
        return None
    found = []
    for column in columns():
        mask = np.isin(hash64(column), suspects, kind="sort")
        if mask.any():
            found.append(flat(column.filter(pa.array(mask))).cast(pa.large_string()))
    counted = pc.value_counts(pa.chunked_array(found, pa.large_string()))
    twice = counted.filter(pc.greater(counted.field("counts"), 1))
    return twice[0]["values"].as_py() if len(twice) else None


def text_and_ends(array: pa.Array) -> tuple[np.ndarray, pa.Buffer | None]:
    """(int [n + 1], where each text starts and the last one ends; the bytes)"""
    _, offsets, data = array.buffers()
    wide = pa.types.is_large_string(array.type) or pa.types.is_large_binary(array.type)
    kind = np.dtype(np.int64 if wide else np.int32)
    if offsets is None or not len(array):
        return np.zeros(len(array) + 1, np.int64), data
    start = array.offset * kind.itemsize
    return np.frombuffer(offsets, kind, len(array) + 1, start), data


def _hash(ends: np.ndarray, data: pa.Buffer | None) -> np.ndarray:
    """A multiplicative hash, eight bytes at a time, over all texts at once; of what is
    left after `_STEPS` of them a digest each."""
    first, size = int(ends[0]), int(ends[-1] - ends[0])
    padded = np.zeros(size + 8, np.uint8)
    if data is not None:
        padded[:size] = np.frombuffer(data, np.uint8, size, first)
    words = np.ndarray((size + 1,), np.dtype("<u8"), padded.data, strides=(1,))
    at = ends[:-1].astype(np.int64) - first
    left = np.diff(ends).astype(np.int64)
    found = left.astype(np.uint64) * _FACTOR
    rows: np.ndarray | slice = slice(None)
    for _ in range(_STEPS):
        if not left.all():
            still = np.flatnonzero(left)
            rows = still if isinstance(rows, slice) else rows[still]
            at, left = at[still], left[still]
        if not len(left):
            return found
        unused = (8 * (8 - np.minimum(left, 8))).astype(np.uint64)
        word = words[at] << unused >> unused
        mixed = (found[rows] ^ word) * _FACTOR
        found[rows] = mixed ^ (mixed >> _SHIFT)
        at = at + 8
        left = np.maximum(left - 8, 0)
    rest = (padded[a : a + n].data for a, n in zip(at, left, strict=True))
    digests = b"".join(hashlib.blake2b(part, digest_size=8).digest() for part in rest)
    found[rows] = (found[rows] ^ np.frombuffer(digests, "<u8")) * _FACTOR
    return found


def counted(n: float, what: str, many: str | None = None) -> str:
    """ "1 epoch", "2 epochs", "1,024 samples": ``what`` is one of them, ``many`` several
    (None: with an s)."""
    return f"{n:,} {what if n == 1 else many or what + 's'}"


def clean(text: str, limit: int = 500) -> str:
    """A text that any file can hold: no lone surrogates, no NUL, not too long."""
    text = text.encode("utf-8", "replace").decode().replace("\0", "\ufffd")
    return text if len(text) <= limit else text[: limit - 1] + "\u2026"
