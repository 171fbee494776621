"""Rows that come one after the other, and the first rows of any data set."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from ..errors import RapInputError, first_line
from .sources import Part, Rows, datasets_library

if TYPE_CHECKING:
    import datasets

    from .sample import BadSample


def is_stream(source: object) -> bool:
    """Whether rows can be had one after the other only: an ``IterableDataset`` of
    `datasets` or torch, a generator."""
    by_number = hasattr(source, "__getitem__") and hasattr(source, "__len__")
    other = isinstance(source, (str, pa.RecordBatchReader, Mapping))
    return hasattr(source, "__iter__") and not by_number and not other


def first_of_stream(source: Any, limit: int) -> Any:
    """The first ``limit`` rows of a stream: a ``datasets.Dataset`` with its columns' types
    where they are known, else a list. Images of `datasets` are not decoded.

    Raises ``RapInputError`` if the stream fails."""
    if hasattr(source, "batch_size") and hasattr(source, "dataset"):
        raise RapInputError(
            f"{type(source).__name__} gives batches, not rows; pass its data set: .dataset"
        )
    features = getattr(source, "features", None)
    if hasattr(source, "decode"):
        source = source.decode(False)
    try:
        rows = list(islice(iter(source), limit))
    except Exception as error:  # whatever a stream raises: of the network, of a file
        name = type(source).__name__
        raise RapInputError(
            f"{name}: its rows cannot be read: {first_line(error)}"
        ) from error
    library = datasets_library()
    if features is None or library is None or not rows:
        return rows
    return library.Dataset.from_list(rows, features=features)


class FirstRows:
    """The first ``limit`` rows of others. What only they can do (``line``, ``arrow``) is
    theirs."""

    def __init__(self, rows: Rows, limit: int) -> None:
        self._rows, self._n = rows, min(limit, len(rows))
        self.kind = f"the first {self._n:,} rows of {rows.kind}"
        self.columns = rows.columns
        self.image_columns, self.bytes_columns = rows.image_columns, rows.bytes_columns

    def __getattr__(self, name: str) -> Any:
        if name in ("take", "_rows"):  # of all rows; or not made yet
            raise AttributeError(name)
        return getattr(self._rows, name)

    def __len__(self) -> int:
        return self._n

    def row(self, index: int) -> Mapping[str, Any]:
        return self._rows.row(index)

    def each(self, columns: Sequence[str]) -> Iterator[Mapping[str, Any] | BadSample]:
        return islice(self._rows.each(columns), self._n)

    def parts(
        self, names: Sequence[str], start: int = 0, stop: int | None = None
    ) -> Iterator[Part]:
        stop = self._n if stop is None else min(stop, self._n)
        return self._rows.parts(names, start, stop)

    def leave_out(self, columns: Collection[str]) -> None:
        self._rows.leave_out(columns)

    def holds_text(self, columns: Sequence[str]) -> bool:
        return self._rows.holds_text(columns)

    def where(self, index: int) -> str:
        return self._rows.where(index)

    def dataset(self) -> datasets.Dataset | None:
        whole = self._rows.dataset()
        return None if whole is None else whole.select(range(self._n))
