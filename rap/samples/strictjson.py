"""``json.loads`` without its leniency."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import numpy as np

MAX_DIGITS = 4300  # CPython's own limit for int(text), whatever the process set
MAX_DEPTH = 500  # nesting; the interpreter's own limit can be lifted into a crash
BOM = b"\xef\xbb\xbf"


def strict_json(text: bytes) -> Any:
    """``json.loads`` without its leniency; every failure is a ``ValueError``.

    Refused: what is not UTF-8, NaN and Infinity (also as 1e999), integers of more than
    4,300 digits, nesting deeper than 500.
    """
    try:
        decoded = text.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: {error.reason} at byte {error.start}") from None
    if text.count(b"[") + text.count(b"{") > MAX_DEPTH and _depth(decoded) > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH}")
    try:
        return _DECODER.decode(decoded)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _depth(text: str) -> int:
    """Deepest nesting of brackets outside of strings."""
    brackets = re.sub(r'"(?:[^"\\]|\\.)*+"|[^\[\]{}]', "", text)
    steps = np.frombuffer(brackets.encode("ascii", "replace"), np.uint8)
    opens = (steps == ord("[")) | (steps == ord("{"))
    return int(np.cumsum(np.where(opens, 1, -1)).max(initial=0))


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _int(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"number {text[:40]} is too large")
    return value


_DECODER = json.JSONDecoder(parse_constant=_no_constant, parse_int=_int, parse_float=_float)
