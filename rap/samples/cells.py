"""The value of a cell: by a column's name, and as text."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from .choices import letter


def cell(row: Mapping[str, Any], name: str | None) -> Any:
    if name is None:
        return None
    if name in row:
        return row[name]
    if "," in name:  # choices or images spread over columns
        return {letter(k): row.get(part) for k, part in enumerate(name.split(","))}
    outer, _, inner = name.partition(".")
    value = row.get(outer)
    return value.get(inner) if isinstance(value, Mapping) else None


def image_cell(row: Mapping[str, Any], name: str | None) -> Any:
    """As ``cell``, for images: of several columns a list."""
    value = cell(row, name)
    spread = name is not None and name not in row and "," in name
    return list(value.values()) if spread else value


def scalar_text(value: Any) -> str | None:
    """Text of a string, number or yes/no; None for anything else. Numbers in full."""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, (bool, int, float)):
        try:
            return str(value)
        except ValueError:  # more digits than int -> text allows
            return None
    return None


def kind_of(value: Any) -> str:
    return "missing" if value is None else type(value).__name__


def whole(value: Any) -> int | None:
    """The integer that a cell holds, as a number or as text."""
    if isinstance(value, (list, tuple)) and len(value) == 1:
        value = value[0]
    if isinstance(value, str) and re.fullmatch(r"\s*[-+]?\d{1,4}(?:\.0)?\s*", value):
        return int(float(value))
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return (
        int(value)
        if value == value and abs(value) < 10**4 and value == int(value)
        else None
    )
