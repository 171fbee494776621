"""A float64 a row, in two bytes where there are few different ones.

Pass counts make few different D: of five completions with and five without the image 36.
A column holds a number a row then, which of the values it is.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..scores.kinds import Measured

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
        first, back = measured.first, measured.back
        if first is not None and back is not None:
            few = values[first]
            if np.array_equal(few[back], values, equal_nan=True):
                self.put_few(rows, few, back)
                return
        self._put_all(rows, values)  # not of the counts alone

    def put_few(self, rows: slice, few: np.ndarray, back: np.ndarray) -> None:
        """Put ``few[back]``, float64, in these rows."""
        if self._codes is not None:
            codes = [self._code(value) for value in few]
            if len(self._different) <= MANY:
                self._codes[rows] = np.array(codes, np.uint16)[back]
                return
        self._put_all(rows, few[back])

    def _put_all(self, rows: slice, values: np.ndarray) -> None:
        if self._values is None:
            self._values = self[:]
            self._codes = None
        self._values[rows] = values

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
