"""Scores made before the data set of a store changed: rows that are still valid are kept.

A folder ``previous`` in the store, one numbered folder a generation::

    previous/0/store.json               what the store was
    previous/0/scores-00000.parquet     as they were, with their rollouts
    previous/0/partial-00001.parquet

``put_by`` puts the shards of the old data set there: all of them are here, under one
rename, before the first leaves the store, so that a kill loses none. ``index`` finds out
which of their rows the data set still has, ``rows`` reads those of a shard that is being
filled, and ``prune`` removes, once the store is whole, the files of which every row has
been taken over. What the data set no longer has stays: it may come back.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import RapStoreError
from .files import (
    OtherVersionError,
    decoded,
    fsync_folder,
    store_error,
    verified,
    write_atomic,
)
from .prior import FEATURES
from .table import ROLLOUT_SCHEMA, SCORE_SCHEMA, filled

_GENERATION = re.compile(r"\d+")
_ROWS = re.compile(r"(?:scores|partial)-\d{5,}\.parquet")

Find = Callable[[Sequence[Mapping[str, Any]], Sequence[str] | None], Sequence[int]]
"""(rows of an older shard with id and hashes, what else each was scored from) -> the data
set's row that each still is, -1 where there is none."""


DATA = {"fingerprint.dataset", "n_samples"}
"""What may be another where rows are reused."""


@dataclass(frozen=True, slots=True)
class Reuse:
    """How a store finds out what another data set has in common with its own.

    ``find``: see ``Find``. ``same``: whether a data set's hash in an older store's header
    is that of this very data set."""

    find: Find
    same: Callable[[object], bool]


@dataclass(frozen=True, slots=True)
class Kept:
    """One sample as it was scored. ``inputs``, ``groups``: as ``ScoreStore.write`` has them
    a row, None and (0, 0) where an older version did not note them."""

    row: dict[str, Any]
    rollouts: list[dict[str, Any]]
    inputs: str
    groups: tuple[int, int]


@dataclass(frozen=True, slots=True)
class _Shard:
    scores: pa.Table
    rollouts: pa.Table | None
    rows: Mapping[str, Any]  # the note's lists, one entry a row
    fingerprint: Mapping[str, Any]


class Previous:
    """The older generations of the store at ``store``; see the module's docstring."""

    def __init__(self, store: Path) -> None:
        self.store, self.folder = store, store / "previous"
        self._paths: list[Path] = []
        self._shard = np.empty(0, np.int32)
        self._place = np.empty(0, np.int32)
        self._used_up: list[Path] = []
        self._last: tuple[Path, _Shard] | None = None

    def generations(self) -> list[Path]:
        """The newest first."""
        try:
            found = [p for p in self.folder.iterdir() if _GENERATION.fullmatch(p.name)]
        except FileNotFoundError:
            return []
        return sorted(found, key=lambda p: int(p.name), reverse=True)

    def put_by(self, names: Iterable[str], header: Mapping[str, Any]) -> None:
        """Move these files of the store, and what it was, into a new generation. Killed in
        between, the store is whole, or the generation is."""
        there = self.generations()
        number = 0 if not there else int(there[0].name) + 1
        folder, scratch = self.folder / str(number), self.folder / f".{number}.tmp"
        text = json.dumps(header, indent=1, sort_keys=True).encode() + b"\n"
        order = {"partial": 0, "scores": 1, "rollouts": 2}  # scores imply their rollouts
        moved = sorted(names, key=lambda name: (order[name.partition("-")[0]], name))
        try:
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir(parents=True)
            for name in moved:
                _link(self.store / name, scratch / name)
            write_atomic(scratch / "store.json", lambda file: file.write(text))
            os.rename(scratch, folder)
            fsync_folder(self.folder)
            for name in moved:
                (self.store / name).unlink()
            fsync_folder(self.store)
        except OSError as error:
            if isinstance(error, RapStoreError):
                raise
            raise store_error(f"{folder}: cannot take over the shards", error) from error

    def index(
        self, n: int, find: Find, same_run: Callable[[Mapping[str, Any]], bool]
    ) -> int:
        """Look for the rows of ``n`` samples; how many are here.

        ``same_run``: whether a shard with this fingerprint is of the same run but for its
        data set. Shards that are damaged or of another run are left alone."""
        self._paths, self._used_up = [], []
        self._shard = np.full(n, -1, np.int32)
        self._place = np.full(n, -1, np.int32)
        for path in self._shards():
            shard = self._read(path)
            if shard is None or not same_run(shard.fingerprint):
                continue
            number = len(self._paths)
            self._paths.append(path)
            found, asked = _look(shard, find)
            for place, i in enumerate(found):
                if i >= 0 and self._shard[i] < 0:
                    self._shard[i], self._place[i] = number, place
            if all(i >= 0 or not hashed for i, hashed in zip(found, asked, strict=True)):
                self._used_up.append(path)
        return int((self._shard >= 0).sum())

    def has(self, i: int) -> bool:
        """Sample ``i`` is here, unchanged."""
        return i < len(self._shard) and self._shard[i] >= 0

    def holds_any(self, folder: Path, names: Iterable[str], find: Find) -> bool:
        """Whether a shard of ``folder`` has a row that the data set still has."""
        for name in filter(_ROWS.fullmatch, names):
            shard = self._read(folder / name)
            if shard is not None and any(i >= 0 for i in _look(shard, find)[0]):
                return True
        return False

    def rows(self, wanted: Iterable[int]) -> dict[int, Kept]:
        """{sample: what is here of it}, of those of ``wanted`` that are. Each older shard
        is read once."""
        by_shard: dict[int, list[int]] = {}
        for i in wanted:
            if self.has(i):
                by_shard.setdefault(int(self._shard[i]), []).append(i)
        kept: dict[int, Kept] = {}
        for number, samples in by_shard.items():
            path = self._paths[number]
            if self._last is None or self._last[0] != path:
                shard = self._read(path)
                if shard is None:
                    raise RapStoreError(f"{path}: was damaged while it was in use")
                self._last = (path, shard)
            places = [int(self._place[i]) for i in samples]
            kept.update(zip(samples, _take(self._last[1], places), strict=True))
        return kept

    def prune(self) -> None:
        """Remove the files of which every row has been taken over."""
        self._last = None
        try:
            for path in self._used_up:
                path.unlink(missing_ok=True)
                _rollouts_of(path).unlink(missing_ok=True)
            for folder in self.generations():
                if not any(map(_ROWS.fullmatch, os.listdir(folder))):
                    (folder / "store.json").unlink(missing_ok=True)
                    if not os.listdir(folder):
                        folder.rmdir()
            if self.folder.is_dir() and not os.listdir(self.folder):
                self.folder.rmdir()
        except OSError as error:
            raise store_error(f"{self.folder}: cannot be cleared up", error) from error
        self._used_up = []

    def _shards(self) -> list[Path]:
        return [
            path
            for folder in self.generations()
            for path in sorted(folder.iterdir())
            if _ROWS.fullmatch(path.name)
        ]

    def _read(self, path: Path) -> _Shard | None:
        """A shard with its rollouts; None if it is damaged."""
        try:
            data, note, _ = verified(path)
            table = decoded(path, data)
            rollouts = None
            if "rollouts" in table.column_names:  # a partial shard holds its own
                flat = pa.concat_arrays(table["rollouts"].chunks).flatten()
                rollouts = pa.Table.from_struct_array(flat).cast(ROLLOUT_SCHEMA)
                table = table.drop_columns(["rollouts"])
            elif note.get("rollouts") is not None:
                beside = _rollouts_of(path)
                data, _, digest = verified(beside)
                if digest != note["rollouts"]:
                    return None
                rollouts = decoded(beside, data).cast(ROLLOUT_SCHEMA)
            table = filled(table, SCORE_SCHEMA).select(SCORE_SCHEMA.names)
        except OtherVersionError:
            return None
        except (RapStoreError, pa.ArrowException, ValueError, KeyError):
            return None
        return _Shard(
            table, rollouts, note.get("rows") or {}, note.get("fingerprint") or {}
        )


def _link(source: Path, target: Path) -> None:
    """A second name of a file, or a copy where the file system knows no such thing."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
            raise
        data = source.read_bytes()
        write_atomic(target, lambda file: file.write(data))


def _rollouts_of(path: Path) -> Path:
    return path.with_name(path.name.replace("scores-", "rollouts-"))


def _look(shard: _Shard, find: Find) -> tuple[Sequence[int], list[bool]]:
    """(the data set's row of each row, -1: none; whether the row can be known at all)"""
    names = [
        "id",
        "index",
        "sample_sha256",
        "image_sha256",
        "status",
        "stage",
        "code",
        *("c1", "m1", "c0", "m0", "n_drawn"),
        *FEATURES,
    ]
    rows = shard.scores.select(names).to_pylist()
    found = find(rows, shard.rows.get("inputs"))
    return found, [row["sample_sha256"] is not None for row in rows]


def _take(shard: _Shard, places: Sequence[int]) -> list[Kept]:
    rows = shard.scores.take(pa.array(places, pa.int64())).to_pylist()
    rollouts: dict[int, list[dict[str, Any]]] = {}
    if shard.rollouts is not None:
        wanted = pa.array([row["index"] for row in rows], pa.int64())
        mask = pc.is_in(shard.rollouts["index"], value_set=wanted)
        for rollout in shard.rollouts.filter(mask).to_pylist():
            rollouts.setdefault(rollout["index"], []).append(rollout)
    inputs = shard.rows.get("inputs") or [""] * shard.scores.num_rows
    groups = shard.rows.get("groups") or [(0, 0)] * shard.scores.num_rows
    return [
        Kept(row, rollouts.get(row["index"], []), inputs[at], tuple(groups[at]))
        for row, at in zip(rows, places, strict=True)
    ]
