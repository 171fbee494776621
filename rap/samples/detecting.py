"""What the rows of a data set say of it as a whole: which column plays which role, what the
places of choices are counted from, which splits stand in it.

A few rows are looked at, spread over all of them, and all where those do not tell.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import RapInputError
from .cells import cell
from .choicecells import counted_from
from .forms import LOOKED_AT
from .prompts import more_of_a_chat
from .roles import detect_columns
from .sample import BadSample
from .sources import ArrowRows, Rows, all_to_python, outer_columns, row_or_bad
from .splits import named_splits

SPLIT_COLUMNS = ("split", "data_split")
PIECES = 20  # of the data set, by which the form of its answers is decided
COUNTED = 10_000
"""Rows by which it is decided what the places of choices are counted from."""


def leave_images(rows: Rows, used: str | None) -> None:
    """Never read images that nobody asked for. ``used``: the column of the samples'."""
    unread = rows.image_columns - set(outer_columns(rows.columns, [used]))
    if unread:
        rows.leave_out(unread)


def places_from(
    rows: Rows, found: Mapping[str, str | None], given: Mapping[str, str]
) -> int | None:
    """What number the places in the answer column are counted from; None if it holds
    texts or letters."""
    if found["choices"] is None or given.get("answer_index") == "":
        return None
    if found.get("answer_number"):
        return 1
    if given.get("answer_index"):
        return 0
    names = [found["answer"], found["choices"]]
    column, is_index = found["answer"] or "", bool(found.get("answer_index"))
    try:
        place = counted_from(_cells(rows, names, COUNTED), column, is_index=is_index)
    except RapInputError:  # as many rows fit this and that: of all rows, too?
        place = counted_from(_cells(rows, names, len(rows)), column, is_index=is_index)
    return 0 if place is None and found.get("answer_index") else place


def _cells(rows: Rows, names: Sequence[str | None], most: int) -> Iterator[tuple[Any, Any]]:
    """The values of two columns in ``most`` rows, evenly spread, or in all."""
    columns = outer_columns(rows.columns, names)
    places = np.linspace(0, len(rows) - 1, most).astype(np.int64)
    each: Iterable[Any]
    if len(rows) <= most:
        each = rows.each(columns)
    elif isinstance(rows, ArrowRows):
        each = rows.some(places, columns)
    else:
        each = (row_or_bad(rows, i) for i in places.tolist())
    for row in each:
        if not isinstance(row, BadSample):
            yield cell(row, names[0]), cell(row, names[1])


def roles_of(rows: Rows, columns: Mapping[str, str] | None) -> dict[str, str | None]:
    """``detect_columns`` by the first rows, by all of them where these do not do."""
    for most in (100, None):
        try:
            first = _merged(rows, most)
            return detect_columns(rows.columns, first, rows.image_columns, columns)
        except RapInputError as error:
            refused = RapInputError(f"{rows.kind}: {error}")
    raise refused


def _merged(rows: Rows, most: int | None) -> Mapping[str, Any]:
    """Rows as one: all keys, nested ones too; of chats one that ends with an answer and
    has images, if those of the rows do."""
    merged: dict[str, Any] = {}
    unread = rows.image_columns | rows.bytes_columns
    names = [name for name in rows.columns if name not in unread]
    for row in islice(rows.each(names), most):
        if isinstance(row, BadSample):
            continue
        for key, value in row.items():
            before = merged.get(key)
            if isinstance(value, Mapping):
                merged[key] = {**(before if isinstance(before, dict) else {}), **value}
            elif before is None:
                merged[key] = value
            elif (chat := more_of_a_chat(before, value)) is not None:
                merged[key] = chat
    return merged


def tell_splits(rows: Rows) -> None:
    """Warn of a column by whose name rows of several splits stand here."""
    column = next((n for n in SPLIT_COLUMNS if n in rows.columns), None)
    if column is None:
        return
    said: Counter[str] = Counter()
    for part in rows.parts([column]):
        if isinstance(part, pa.Table):
            for found in pc.value_counts(part[column]).to_pylist():
                said[str(found["values"])] += found["counts"]
        else:
            there = (row for row in part if not isinstance(row, BadSample))
            said.update(str(row.get(column)) for row in there)
    if len(named_splits(list(said))) > 1:
        counts = ", ".join(f"{name} {count:,}" for name, count in said.most_common(5))
        warnings.warn(
            f"{rows.kind}: column {column!r} names several splits ({counts}), "
            "and all of them are used. Keep the rows to train on in a set of their own",
            UserWarning,
            stacklevel=4,
        )


def spread(rows: Rows, names: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    """Rows spread over the data set, as far as they can be read: these columns of them."""
    n = len(rows)
    size = min(n, LOOKED_AT // PIECES)
    starts = np.unique(np.linspace(0, n - size, PIECES).astype(np.int64))
    read = 0
    for start in starts.tolist():
        start, read = max(start, read), max(start, read) + size
        if start >= n:
            return
        for part in rows.parts(names, start, min(read, n)):
            each = all_to_python(part) if isinstance(part, pa.Table) else part
            yield from (row for row in each if not isinstance(row, BadSample))


Found = TypeVar("Found")


def readable(
    read: Callable[[Mapping[str, Any]], Found], rows: Iterable[Mapping[str, Any]]
) -> Iterator[Found]:
    """What ``read`` says of each row, those that it cannot read left out."""
    for row in rows:
        try:
            found = read(row)
        except BadSample:
            continue
        yield found
