"""What is kept of the model's own hidden state of a prompt: a column of the score table.

The mean over the prompt's tokens of the state after the first decoder layer, image tokens
included, projected to ``WIDTH`` numbers by a fixed random matrix of signs (Achlioptas 2003:
distances stay what they were, within about 1 / sqrt(WIDTH)) and kept as float16:
``2 * WIDTH`` bytes a sample, 64 MB for a million. It says which samples ask for like
things; no score depends on it.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pyarrow as pa

WIDTH = 32
BITS = 8
COLUMN = "prompt_state"
TYPE = pa.binary(2 * WIDTH)
"""Of the column: ``WIDTH`` float16, little-endian. Bytes and not a list, so that the score
table stays flat."""


@cache
def signs(width: int) -> np.ndarray:
    """float32 [width, WIDTH]: the projection, +-1 / sqrt(WIDTH), the same everywhere."""
    drawn = np.random.default_rng(16).integers(0, 2, (width, WIDTH))
    return ((2 * drawn - 1) / np.sqrt(WIDTH)).astype(np.float32)


def packed(states: np.ndarray) -> list[bytes | None]:
    """The column's values of projected states [n, WIDTH]; None where a number is not
    finite as float16. They are multiples of the row's largest power of two over
    ``2**BITS``: far coarser than what another batch does to the last bits of float32, 2e-7
    of the largest."""
    with np.errstate(over="ignore", invalid="ignore"):
        _, exponent = np.frexp(np.abs(states).max(axis=1, keepdims=True, initial=0.0))
        step = np.ldexp(np.float64(1), exponent - BITS)
        small = (np.rint(states / step) * step + 0.0).astype("<f2")  # no -0.0
    finite = np.isfinite(small).all(axis=1).tolist()
    return [row.tobytes() if ok else None for row, ok in zip(small, finite, strict=True)]


def states_of(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """(int64 rows that have a state, float32 [rows, WIDTH])."""
    rows = np.flatnonzero(column.is_valid().to_numpy())
    size = 2 * WIDTH
    found = [np.empty(0, "<f2")]
    for chunk in column.chunks:
        there = chunk.drop_null()
        if len(there):
            data, at = there.buffers()[1], there.offset * size
            found.append(np.frombuffer(data, "<f2", len(there) * WIDTH, at))
    return rows, np.concatenate(found).reshape(-1, WIDTH).astype(np.float32)
