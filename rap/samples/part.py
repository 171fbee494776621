"""Some rows of a data set, as a data set of their own."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from .canonical import canonical
from .sample import Bad, Sample, sample_sha256
from .sampleset import SampleSet


class Part(SampleSet):
    """The rows ``places`` (int64, ascending) of ``whole``, numbered from 0: items, ids and
    ``rows_of`` are of these; columns, rows and hashes are those of the whole."""

    def __init__(self, whole: SampleSet, places: np.ndarray) -> None:
        vars(self).update(vars(whole))
        self.whole, self.places = whole, places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Sample | Bad:  # type: ignore[override]
        i = range(len(self))[index]
        return dataclasses.replace(self.whole[int(self.places[i])], index=i)

    @property
    def ids(self) -> list[str]:
        return self.id_column.to_pylist()

    @property
    def id_column(self) -> pa.ChunkedArray:
        return self.whole.id_column.take(pa.array(self.places))

    def id_of(self, index: int) -> str:
        return self.whole.id_of(int(self.places[index]))

    def rows_of(self, ids: pa.ChunkedArray | pa.Array) -> np.ndarray:
        there = self.whole.rows_of(ids)
        if not len(self.places):
            return np.full(len(there), -1, np.int64)
        at = np.minimum(np.searchsorted(self.places, there), len(self.places) - 1)
        found: np.ndarray = np.where(self.places[at] == there, at, -1)
        return found

    def shard_hashes(self, shards: Sequence[range], more: Iterable[str] = ()) -> list[str]:
        """sha256 of the samples of each of these ranges of rows: ids, texts, where their
        images lie, and the columns ``more``; of a row that cannot be used, why."""
        return [self._hash_of(shard, sorted(set(more))) for shard in shards]

    def _hash_of(self, shard: range, more: Sequence[str]) -> str:
        digest = hashlib.sha256()
        for item in map(self.__getitem__, shard):
            found: list[Any] = [item.id]
            if isinstance(item, Bad):
                found.append(item.code)
            else:
                places = [self._inside(ref.path) for ref in item.images]
                found += [sample_sha256(item, ()), places]
                found += [canonical(item.extra.get(name)).hex() for name in more]
            digest.update(json.dumps(found).encode() + b"\n")
        return digest.hexdigest()

    def _inside(self, path: str | None) -> str:
        """An image's path inside the root, which may lie elsewhere on another machine."""
        root = self.root
        return "" if path is None else os.path.relpath(path, root) if root else path

    def has_ids(self, rows: range) -> bool:
        places = self.places[rows.start : rows.stop].tolist()
        return all(self.whole.has_ids(range(i, i + 1)) for i in places)

    def content_hash(self, more: Iterable[str] = (), *, source: bool = False) -> str:
        return self.whole.content_hash(more, source=source)


def in_whole(samples: Any, i: int) -> tuple[SampleSet, int]:
    """(the whole data set, its row) of row ``i``, of a `Part` or anything that has
    ``whole`` and ``places`` as one; else itself."""
    whole = getattr(samples, "whole", None)
    return (samples, i) if whole is None else (whole, int(samples.places[i]))
