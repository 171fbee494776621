"""The ids of a data set's rows: as Arrow text, each once.

A row without an id is called by its place; a data set without a column of ids keeps none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import RapInputError
from .cells import cell, kind_of, scalar_text
from .sample import BadSample
from .sources import Part, Rows, all_to_python
from .tables import column_of
from .text import flat, hash64, taken

CHUNK = 2**16


class Ids:
    """Ids by row. ``column``: their texts; None: the row numbers. ``bad``: rows whose id
    cannot be used."""

    def __init__(
        self,
        n: int,
        column: pa.ChunkedArray | None,
        bad: Mapping[int, BadSample] | None = None,
    ) -> None:
        self._n, self._column, self.bad = n, column, bad or {}

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, index: int) -> str:
        if self._column is None:
            return str(index)
        return self._column[index].as_py()

    def chunks(self, start: int = 0, stop: int | None = None) -> Iterator[pa.Array]:
        """The texts of rows ``start`` to ``stop``, some rows at a time."""
        stop = self._n if stop is None else stop
        if self._column is not None:
            yield from self._column.slice(start, stop - start).chunks
            return
        for at in range(start, stop, CHUNK):
            numbers = pa.array(np.arange(at, min(at + CHUNK, stop)))
            yield numbers.cast(pa.string())

    @property
    def column(self) -> pa.ChunkedArray:
        """All of them."""
        return pa.chunked_array(list(self.chunks()), pa.string())

    def rows_of(self, names: pa.ChunkedArray | pa.Array) -> np.ndarray:
        """int64: the row that each of ``names`` is the id of, -1 where there is none."""
        if isinstance(names, pa.Array):
            names = pa.chunked_array([names])
        known, (hashes, order) = self.column, self._ordered
        asked = hash64(names)
        at = np.searchsorted(hashes, asked)
        found = np.full(len(asked), -1, np.int64)
        left = np.arange(len(asked))
        while left.size:  # more than once where different ids have one hash
            left = left[at[left] < len(hashes)]
            left = left[hashes[at[left]] == asked[left]]
            rows = order[at[left]]
            texts = taken(known, rows).cast(names.type)
            same = pc.fill_null(pc.equal(texts, taken(names, left)), False).to_numpy()
            found[left[same]] = rows[same]
            left = left[~same]
            at[left] += 1
        return found

    @cached_property
    def _ordered(self) -> tuple[np.ndarray, np.ndarray]:
        """(hashes of the ids in order, their rows): 16 bytes a row."""
        hashes = hash64(self.column)
        order = np.argsort(hashes)
        return hashes[order], order


@dataclass(slots=True)
class _Read:
    """What was read so far. ``lost``: rows without an id."""

    chunks: list[pa.Array] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)
    bad: dict[int, BadSample] = field(default_factory=dict)
    at: int = 0

    def add(self, texts: pa.Array) -> None:
        if texts.null_count:
            missing = np.flatnonzero(texts.is_null().to_numpy(zero_copy_only=False))
            self.lost += (missing + self.at).tolist()
        self.chunks.append(texts)
        self.at += len(texts)


def read_ids(rows: Rows, column: str | None) -> Ids:
    """Every row's id. Raises ``RapInputError`` on a duplicate, naming both rows."""
    if column is None:
        return Ids(len(rows), None)
    read = _Read()
    for part in rows.parts([column]):
        _add(read, part, column)
    found = pa.chunked_array(read.chunks, pa.string())
    _require_once(found, rows)
    if read.lost:
        found = _named(found, read.lost, rows.where)
    return Ids(len(rows), found, read.bad)


def same_ids(rows: Rows, column: str | None, ids: Ids, wanted: range) -> bool:
    """Whether these rows still have the ids that were found in them once."""
    if column is None:
        return True
    read = _Read(at=wanted.start)
    for part in rows.parts([column], wanted.start, wanted.stop):
        _add(read, part, column)
    now = pa.chunked_array(read.chunks, pa.string())
    then = pa.chunked_array(list(ids.chunks(wanted.start, wanted.stop)), pa.string())
    if not pc.all(pc.fill_null(pc.equal(now, then), True)).as_py():
        return False
    named = (ids[i].startswith(rows.where(i).replace(" ", ":")) for i in read.lost)
    return all(named)


def _add(read: _Read, part: Part, column: str) -> None:
    if isinstance(part, pa.Table):
        texts = _texts_of(part, column)
        if texts is not None:
            for text in texts:
                read.add(text)
            return
        part = all_to_python(part)
    names: list[str | None] = []
    for i, row in enumerate(part, read.at):
        try:
            names.append(_id_of(row, column))
        except BadSample as error:
            read.bad[i] = error
            names.append(None)
    read.add(pa.array(names, pa.string()))


def _texts_of(table: pa.Table, column: str) -> list[pa.Array] | None:
    """The ids as ``_id_of`` reads them; None where their type does not tell."""
    found = column_of(table, column)
    if found is None:
        return None
    kind, texts = found.type, []
    for chunk in found.chunks:
        if pa.types.is_boolean(kind):
            chunk = pc.if_else(chunk, "True", "False")
        elif not (pa.types.is_integer(kind) or pa.types.is_null(kind)):
            if not pa.types.is_string(kind):
                return None
            try:  # Arrow does not check UTF-8 on reading
                chunk.validate(full=True)
            except pa.ArrowInvalid:
                return None
        texts.append(chunk.cast(pa.string()))
    return texts


def _id_of(row: Mapping[str, Any] | BadSample, column: str) -> str | None:
    if isinstance(row, BadSample):
        return None
    value = cell(row, column)
    if value is None:
        return None
    text = scalar_text(value)
    if text is None:
        raise BadSample("data", "bad_text", f"id is {kind_of(value)}, not text")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadSample("data", "bad_text", "id holds a lone surrogate") from None
    return text


def _require_once(ids: pa.ChunkedArray, rows: Rows) -> None:
    hashes = hash64(ids)
    ordered = np.sort(hashes)
    suspects = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if not suspects.size:
        return
    seen: dict[str, int] = {}
    for start in range(0, len(ids), CHUNK):  # equal hashes are looked at exactly
        # NumPy 2.0 overflows where it does not sort: the hashes are uint64
        alike = np.isin(hashes[start : start + CHUNK], suspects, kind="sort").nonzero()[0]
        names = ids.slice(start, CHUNK).take(pa.array(alike)).to_pylist()
        for i, name in zip((alike + start).tolist(), names, strict=True):
            if name is not None and (first := seen.setdefault(name, i)) != i:
                raise RapInputError(
                    f"id {name[:80]!r} is there twice: {rows.where(first)} and "
                    f"{rows.where(i)}. Name another column with "
                    'columns={"id": "..."} (--columns id=...), or none with '
                    '{"id": ""}: the row numbers are used'
                )


def _named(
    ids: pa.ChunkedArray, lost: Sequence[int], where: Callable[[int], str]
) -> pa.ChunkedArray:
    """``ids`` with a name for each row that has none: where it is, and as many "'" as no
    id has."""
    names = [where(i).replace(" ", ":") for i in lost]
    known = flat(ids)
    taken = pc.is_in(pa.array(names, known.type), value_set=known)
    for at in np.flatnonzero(taken.to_numpy(zero_copy_only=False)).tolist():
        while pc.is_in(pa.scalar(names[at], known.type), value_set=known).as_py():
            names[at] += "'"
    chunks, start = [], 0
    for chunk in ids.chunks:
        if count := chunk.null_count:
            fill = pa.array(names[start : start + count], pa.string())
            chunk = pc.replace_with_mask(chunk, chunk.is_null(), fill)
            start += count
        chunks.append(chunk)
    return pa.chunked_array(chunks, pa.string())
