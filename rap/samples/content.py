"""What a data set holds, as hashes: of all of it, and of each shard of its rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from json.encoder import encode_basestring_ascii as quoted

import numpy as np
import pyarrow as pa

from .canonical import Inexact, bytes_of, canonical, odd_rows, row_texts
from .cells import cell
from .ids import Ids
from .sample import BadSample
from .sources import Part, Rows, all_to_python
from .tables import column_of


@dataclass(frozen=True, slots=True)
class Content:
    """What counts of each row: the columns that ``roles`` are read from (``named``: their
    names; None: none) and those in ``more``."""

    roles: tuple[str, ...]
    named: tuple[str | None, ...]
    more: tuple[str, ...]
    counted: int | None

    @property
    def names(self) -> list[str]:
        return list(dict.fromkeys(n for n in (*self.named, *self.more) if n is not None))

    def sha256(self, rows: Rows, ids: Ids) -> str:
        """Of ids and rows, in order."""
        return self.sha256_with_shards(rows, ids, [])[0]

    def sha256_of_shards(self, rows: Rows, ids: Ids, shards: Sequence[range]) -> list[str]:
        """Of ids and rows of each of these ranges of rows, which follow one another."""
        digests = [_shard_begun(ids, shard) for shard in shards]
        for number, part in self._of_shards(rows, shards):
            for text in self.lines(part):
                digests[number].update(text)
        return [digest.hexdigest() for digest in digests]

    def sha256_with_shards(
        self, rows: Rows, ids: Ids, shards: Sequence[range]
    ) -> tuple[str, list[str]]:
        """(``sha256``, ``sha256_of_shards`` of shards that hold all rows, or of none): the
        rows are read once."""
        whole = self._begun(ids)
        digests = [_shard_begun(ids, shard) for shard in shards]
        all_rows = shards or [range(len(rows))]
        for number, part in self._of_shards(rows, all_rows):
            for text in self.lines(part):
                whole.update(text)
                if digests:
                    digests[number].update(text)
        return whole.hexdigest(), [digest.hexdigest() for digest in digests]

    def _begun(self, ids: Ids) -> hashlib._Hash:
        """With what stands before the rows: ids, roles and names."""
        digest = hashlib.sha256(b"[[")
        for text in _joined_ids(ids.chunks()):
            digest.update(text)
        counted = [] if self.counted is None else [self.counted]
        rest = json.dumps([list(self.roles), list(self.more), *counted])
        digest.update(f"], {rest[1:]}".encode())
        return digest

    def _of_shards(self, rows: Rows, shards: Sequence[range]) -> Iterator[tuple[int, Part]]:
        """(number of a shard, some rows of it), in order."""
        if not shards:
            return
        start, number = shards[0].start, 0
        for part in rows.parts(self.names, start, shards[-1].stop):
            low, n = 0, len(part)
            while low < n:
                stop = min(n, low + shards[number].stop - start)
                if isinstance(part, pa.Table):
                    yield number, part.slice(low, stop - low)
                else:
                    yield number, part[low:stop]
                start += stop - low
                low = stop
                number += start == shards[number].stop

    def lines(self, part: Part) -> Iterator[bytes | memoryview]:
        """The rows' values as JSON, a line each."""
        if isinstance(part, pa.Table):
            try:
                yield bytes_of(self._texts(part))
                return
            except Inexact:
                part = all_to_python(part)
        for row in part:
            if isinstance(row, BadSample):
                yield row.message.encode("utf-8", "replace")
            else:
                values = [cell(row, name) for name in self.named]
                yield canonical([*values, *(cell(row, name) for name in self.more)])
            yield b"\n"

    def _texts(self, table: pa.Table) -> pa.Array:
        columns = []
        for name in (*self.named, *self.more):
            column = column_of(table, name)
            if column is None:
                raise Inexact(name)
            columns.append(pa.concat_arrays(column.chunks or [pa.array([], column.type)]))
        return row_texts(columns, table.num_rows)


def _shard_begun(ids: Ids, shard: range) -> hashlib._Hash:
    """With what stands before the rows of a shard: their ids."""
    digest = hashlib.sha256(b"[")
    for text in _joined_ids(ids.chunks(shard.start, shard.stop)):
        digest.update(text)
    digest.update(b"]\n")
    return digest


def _joined_ids(chunks: Iterable[pa.Array]) -> Iterator[bytes | memoryview]:
    """``json.dumps`` of ids, without its brackets."""
    first = True
    for chunk in chunks:
        if not len(chunk):
            continue
        if not first:
            yield b", "
        first = False
        if not odd_rows(chunk).size:
            ends = pa.array(np.array([0, len(chunk)], np.int64))
            lists = pa.LargeListArray.from_arrays(ends, chunk)
            yield from (b'"', bytes_of(pa.compute.binary_join(lists, '", "')), b'"')
        else:
            yield ", ".join(map(quoted, chunk.to_pylist())).encode()
