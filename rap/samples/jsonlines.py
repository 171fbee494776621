"""A JSON Lines file as rows: where each line begins is held, 8 bytes a row.

One row is read when it is asked for. What is read of all rows goes through Arrow, a block
of lines at a time (``jsonblocks``), and through Python where Arrow would read it otherwise.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from .jsonblocks import (
    BLOCK_BYTES,
    BLOCK_ROWS,
    MAX_KEYS,
    Block,
    Patience,
    count_keys,
    pieces,
    pins_of,
    read_block,
    without_bom,
)
from .sample import BadSample
from .sources import Part, Plain, row_or_bad, union_of_keys
from .strictjson import BOM, strict_json

MAX_LINE_BYTES = 256 << 20  # a line longer than this is no row
LOOKED_AT = 100
"""Rows that are read in Python to see which columns hold texts."""
_PROBES = 32  # lines of a block whose keys are counted


@dataclass(frozen=True, slots=True)
class LineIndex:
    """``start``, ``number``: as from ``line_index``. ``columns``: every key."""

    start: np.ndarray
    number: np.ndarray
    columns: Sequence[str]


class JsonlRows(Plain):
    """A JSONL file, one strict JSON object a line. ``keep``: columns that are wanted again
    soon; they are held until ``parts`` was asked for them. ``index``: what was found in the
    file before; it is not read then."""

    def __init__(
        self,
        path: Path,
        kind: str | None = None,
        keep: Sequence[str] = (),
        index: LineIndex | None = None,
    ) -> None:
        self.kind, self.path = kind or f"JSONL {path}", path
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._fd)
        if index is None:
            self._start, self._number = line_index(self._fd)
        else:
            self._start, self._number = index.start, index.number
        first = [r for r in self._in_python(0, LOOKED_AT) if isinstance(r, Mapping)]
        self._pins = pins_of(first)
        self._kept: dict[str, list[tuple[int, pa.ChunkedArray | None]]] = {}
        if index is None:
            wanted = [name for name in keep if any(name in row for row in first)]
            self.columns = self._read_columns(first, wanted)
        else:
            self.columns = list(index.columns)

    def __len__(self) -> int:
        return len(self._start) - 1

    @property
    def index(self) -> LineIndex:
        """What is known of the file."""
        return LineIndex(self._start, self._number, tuple(self.columns))

    def row(self, index: int) -> Mapping[str, Any]:
        start, end = self._start[index : index + 2].tolist()
        try:
            if end - start > MAX_LINE_BYTES:
                raise ValueError(f"longer than {MAX_LINE_BYTES} bytes")
            row = strict_json(self._line(index))
            if not isinstance(row, dict):
                raise ValueError(f"a JSON {type(row).__name__}, not an object")
        except ValueError as error:
            message = f"{self.where(index)}: {error}"
            raise BadSample("data", "bad_json", message) from None
        return row

    def line(self, index: int) -> bytes:
        """The line as it stands in the file, without its end. Raises ``BadSample``."""
        self.row(index)  # a line that is no row is not handed on
        return self._line(index).rstrip(b"\r\n \t")

    def _line(self, index: int) -> bytes:
        start, end = self._start[index : index + 2].tolist()
        line = self._bytes(start, end)
        return line.removeprefix(BOM) if start == 0 else line

    def _bytes(self, start: int, end: int) -> bytes:
        # pread: no seek position that two threads would share
        return os.pread(self._fd, end - start, start)

    def where(self, index: int) -> str:
        number = self._number[index] if len(self._number) else index + 1
        return f"line {number}"

    def holds_text(self, columns: Sequence[str]) -> bool:
        return True  # JSON has no bytes

    def each(self, columns: Sequence[str]) -> Iterator[Mapping[str, Any] | BadSample]:
        return (row_or_bad(self, index) for index in range(len(self)))

    def parts(
        self, names: Sequence[str], start: int = 0, stop: int | None = None
    ) -> Iterator[Part]:
        stop = len(self) if stop is None else stop
        if (start, stop) == (0, len(self)) and len(names) == 1 and names[0] in self._kept:
            yield from self._kept_parts(names[0])
            return
        patience = Patience()
        for block_start, block_stop in self._blocks(start, stop):
            yield from self._read(block_start, block_stop, names, patience)

    # -- inside

    def _kept_parts(self, name: str) -> Iterator[Part]:
        at = 0
        for n, column in self._kept.pop(name):
            if column is None:
                yield self._in_python(at, at + n)
            else:
                yield pa.table({name: column})
            at += n

    def _read_columns(
        self, first: Sequence[Mapping[str, Any]], keep: Sequence[str]
    ) -> list[str]:
        """Every key of the file, in order of first appearance; a key may come late."""
        names = dict.fromkeys(union_of_keys(first))
        kept: dict[str, list[tuple[int, pa.ChunkedArray | None]]] = {n: [] for n in keep}
        for part in self.parts(keep):
            if isinstance(part, pa.Table):
                found: Sequence[str] = part.column_names
                new = [name for name in found if name not in names]
            else:
                new = union_of_keys(row for row in part if isinstance(row, Mapping))
            names.update(dict.fromkeys(new))
            for name, columns in kept.items():
                column: pa.ChunkedArray | None = None
                if isinstance(part, pa.Table):
                    there = name in part.column_names
                    empty = pa.chunked_array([pa.nulls(len(part), pa.string())])
                    column = part[name] if there else empty
                columns.append((len(part), column))
        self._kept = kept
        return list(names)

    def _blocks(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Rows whose lines are read together: of ``BLOCK_BYTES`` or one line."""
        while start < stop:
            limit = int(self._start[start]) + BLOCK_BYTES
            end = int(np.searchsorted(self._start, limit, side="right")) - 1
            end = min(max(end, start + 1), start + BLOCK_ROWS, stop)
            yield start, end
            start = end

    def _read(
        self, start: int, stop: int, exact: Sequence[str], patience: Patience
    ) -> Iterator[Part]:
        if self._start[stop] - self._start[start] > MAX_LINE_BYTES or self._is_wide(
            start, stop
        ):
            yield from self._lists(start, stop)
            return
        low, high = self._start[[start, stop]].tolist()
        data = self._bytes(low, high)
        starts = self._start[start : stop + 1] - low
        block = without_bom(data, starts) if low == 0 else Block(data, starts)
        for piece in pieces(block, patience, lambda b: read_block(b, self._pins, exact)):
            if isinstance(piece, pa.Table):
                yield piece
            else:
                yield from self._lists(start + piece[0], start + piece[1])

    def _lists(self, start: int, stop: int) -> Iterator[Part]:
        for at in range(start, stop, 1024):
            yield self._in_python(at, min(at + 1024, stop))

    def _in_python(self, start: int, stop: int) -> list[Mapping[str, Any] | BadSample]:
        return [row_or_bad(self, i) for i in range(start, min(stop, len(self)))]

    def _is_wide(self, start: int, stop: int) -> bool:
        """Rows of so many different keys that a column each would be too many."""
        seen: set[tuple[str, ...]] = set()
        for index in np.linspace(start, stop - 1, min(_PROBES, stop - start)).astype(int):
            row = row_or_bad(self, int(index))
            count_keys(None if isinstance(row, BadSample) else row, seen)
        return len(seen) > MAX_KEYS


def line_index(fd: int) -> tuple[np.ndarray, np.ndarray]:
    """Byte offset of every line that is not blank, and of the end (int64); number of every
    such line, from 1 (empty: 1, 2, 3, ...). Blank lines then follow their row's JSON, where
    white space means nothing."""
    found: list[np.ndarray] = []
    odd: list[np.ndarray] = []  # lines that do not begin with "{"
    offset, begins = 0, True
    while data := os.pread(fd, BLOCK_BYTES, offset):
        bytes_ = np.frombuffer(data, np.uint8)
        starts = np.flatnonzero(bytes_ == ord("\n")) + 1
        if begins:
            starts = np.concatenate([[0], starts])
        begins = len(starts) > 0 and bool(starts[-1] == len(data))
        starts = starts[: len(starts) - begins]
        found.append(starts + offset)
        odd.append(starts[bytes_[starts] != ord("{")] + offset)
        offset += len(data)
    start = np.concatenate([*found, [offset]]).astype(np.int64)
    suspects = np.concatenate([*odd, np.empty(0, np.int64)]).astype(np.int64)
    places = np.searchsorted(start, suspects)
    blank = [k for k in places.tolist() if _is_blank(fd, int(start[k]), int(start[k + 1]))]
    if not blank:
        return start, np.empty(0, np.int64)
    number = np.delete(np.arange(1, len(start)), blank)
    return np.delete(start, blank), number


def _is_blank(fd: int, start: int, end: int) -> bool:
    """A line of white space, after a byte order mark if it begins with one."""
    begin = True
    while start < end:
        part = os.pread(fd, min(end - start, 1 << 16), start)
        start += len(part)
        part = part.removeprefix(BOM) if begin else part
        begin = False
        if not part or part.strip(b" \t\r\n"):
            return not part and start >= end
    return True
