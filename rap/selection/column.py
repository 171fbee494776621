"""A float64 a row, in two bytes where there are few different ones.

Pass counts make few different D: of five completions with and five without the image 36.
A column holds a number a row then, which of the values it is.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..scores.evidence import Measured

MANY = 2**16
"""Different values from which on a column is an array like any other."""


class Column:
    """``n`` values, put in a batch at a time and read like an array of NumPy."""

    def __init__(self, n: int) -> None:
        self._codes: np.ndarray | None = np.zeros(n, np.uint16)
        self._values: np.ndarray | None = None
        self._different: list[float] = []
        self._code_of: dict[bytes, int] = {}

    def __len__(self) -> int:
        held = self._codes if self._values is None else self._values
        assert held is not None
        return len(held)

    def put(self, rows: slice, values: np.ndarray, measured: Measured) -> None:
        """Put ``values``, float64, in these rows, which ``measured`` is of."""
        if self._values is None and not self._put_codes(rows, values, measured):
            self._values = self[:]
            self._codes = None
        if self._values is not None:
            self._values[rows] = values

    def _put_codes(self, rows: slice, values: np.ndarray, measured: Measured) -> bool:
        if measured.first is None or measured.back is None:
            return False
        few = values[measured.first]
        if not np.array_equal(few[measured.back], values, equal_nan=True):
            return False  # not of the counts alone
        codes = [self._code(value) for value in few]
        if len(self._different) > MANY:
            return False
        assert self._codes is not None
        self._codes[rows] = np.array(codes, np.uint16)[measured.back]
        return True

    def _code(self, value: np.float64) -> int:
        """The number of a value; its bytes tell it: 0.0 is not -0.0, NaN is itself."""
        found = self._code_of.setdefault(value.tobytes(), len(self._different))
        if found == len(self._different):
            self._different.append(float(value))
        return found

    def __getitem__(self, rows: Any) -> Any:
        if self._values is not None:
            return self._values[rows]
        assert self._codes is not None
        return np.array([*self._different, np.nan])[self._codes[rows]]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)

    def __neg__(self) -> np.ndarray:
        return -self[:]
