"""Scores are stored with 12 significant bits: see ``scoring.run``."""

from __future__ import annotations

import math
from typing import Any

import pyarrow as pa

from ..scores.table import SCORE_SCHEMA

EXACT = ("p_answer1", "p_answer0", "seconds")
"""Columns stored as they are: p(answer) is exp of its rounded logarithm."""
ROUNDED = tuple(
    field.name
    for field in SCORE_SCHEMA
    if pa.types.is_floating(field.type) and field.name not in EXACT
)


def significant(x: float, bits: int = 12) -> float:
    """x rounded to ``bits`` significant bits, half to even; 0, inf and NaN unchanged."""
    if x == 0 or not math.isfinite(x):
        return x
    mantissa, exponent = math.frexp(x)
    return math.ldexp(round(math.ldexp(mantissa, bits)), exponent - bits)


def rounded(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the score table as it is stored."""
    return row | {k: significant(row[k]) for k in ROUNDED if row.get(k) is not None}
