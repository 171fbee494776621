"""Reads the shards of a score store, and verifies their checksums.

``store`` describes the files and writes them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..errors import RapStoreError
from .columns import nulls
from .files import (
    check_version,
    decoded,
    decoded_columns,
    read_regular,
    store_error,
    verified,
)
from .fingerprint import other_run
from .profile import read_profile
from .table import ROLLOUT_SCHEMA, SCHEMA_VERSION, SCORE_SCHEMA, SINCE, filled

PARTIAL_SCHEMA = SCORE_SCHEMA.append(
    pa.field("rollouts", pa.list_(pa.struct(list(ROLLOUT_SCHEMA))))
)

REFUSED = "refused.json"


@dataclass(frozen=True, slots=True)
class Partial:
    """Some rows of a shard, as ``ScoreStore.write_partial`` was given them."""

    scores: pa.Table
    rollouts: pa.Table | None
    tally: dict[str, int]
    rows: dict[str, list[Any]] = field(default_factory=dict)


class Shards:
    """The shards of a store, to be read. Attributes: ``path``, ``n_samples``,
    ``shard_size``, ``fingerprint``, ``data`` (what is known of the data set, or None)."""

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self.path = path
        self.n_samples: int = header["n_samples"]
        self.shard_size: int = header["shard_size"]
        self.fingerprint: dict[str, Any] = header["fingerprint"]
        self.data: dict[str, Any] | None = header.get("data")

    @property
    def meta(self) -> dict[str, Any]:
        """What ``Scores.meta`` holds: schema version, fingerprint, sizes, data set; where
        a run was profiled, where its time went; where the last run was refused, why."""
        measured, refused = read_profile(self.path), read_refusal(self.path)
        return {
            "schema_version": SCHEMA_VERSION,
            "fingerprint": self.fingerprint,
            "n_samples": self.n_samples,
            "shard_size": self.shard_size,
            "data": self.data,
            **({} if measured is None else {"profile": measured.as_json()}),
            **({} if refused is None else {"refused": refused}),
        }

    @property
    def n_shards(self) -> int:
        return -(-self.n_samples // self.shard_size)

    def shard_range(self, k: int) -> range:
        """The sample indices of shard ``k``."""
        if not 0 <= k < self.n_shards:
            raise IndexError(f"shard {k} of {self.n_shards}")
        start = k * self.shard_size
        return range(start, min(start + self.shard_size, self.n_samples))

    def is_whole(self, k: int) -> bool:
        """Whether shard ``k`` is there."""
        return self._whole(k)

    def missing(self) -> list[int]:
        """Numbers of the shards that are not there (whole), ascending."""
        return [k for k in range(self.n_shards) if not self._whole(k)]

    def finished(self) -> list[int]:
        """Numbers of the shards that are there (whole), ascending."""
        missing = set(self.missing())
        return [k for k in range(self.n_shards) if k not in missing]

    def parts(self) -> list[int]:
        """Numbers of the shards of which ``partial`` has something, ascending."""
        return [k for k in self.missing() if self._partial(k).exists()]

    def n_kept(self) -> int:
        """Rows that a run which goes on need not score again."""
        kept = sum(len(self.shard_range(k)) for k in self.finished())
        for k in self.parts():
            part = self.partial(k)
            kept += 0 if part is None else part.scores.num_rows
        return kept

    def read(self) -> pa.Table:
        """All scores, in data-set order.

        Raises ``RapStoreError`` if shards are missing or damaged.
        """
        self.require_whole()
        return pa.concat_tables(self.read_shard(k) for k in range(self.n_shards))

    def require_whole(self) -> None:
        """Raises ``RapStoreError`` if shards are missing."""
        missing = self.missing()
        if missing:
            raise RapStoreError(
                f"{self.path}: {len(missing)} of {self.n_shards} shards are not scored yet "
                f"(first: {missing[0]}); run the same scoring command again to go on"
            )

    def read_shard(self, k: int) -> pa.Table:
        """Scores of shard ``k``. Raises ``RapStoreError`` if it is missing or damaged."""
        return self.read_columns(k, SCORE_SCHEMA.names)[0]

    def read_columns(
        self, k: int, names: Sequence[str]
    ) -> tuple[pa.Table, str, str | None]:
        """(these columns of shard ``k``, its digest, that of its rollouts, if it has any).
        Errors as for ``read_shard``."""
        path = self._scores(k)
        data, note, digest = self._verified_shard(path, k, "score shard")
        return columns_of(path, data, names), digest, note["rollouts"]

    def seen(self, k: int) -> tuple[int, ...]:
        """Size, time of the last change and place of the file of shard ``k``; other files
        have others. Raises ``RapStoreError``."""
        try:
            found = os.stat(self._scores(k))
        except OSError as error:
            raise store_error(f"{self._scores(k)}: cannot be read", error) from error
        return found.st_size, found.st_mtime_ns, found.st_ino

    def read_again(self, k: int, names: Sequence[str]) -> pa.Table:
        """These columns of shard ``k``, which was verified. Raises ``RapStoreError``."""
        path = self._scores(k)
        return columns_of(path, path, names)

    def files_of(self, k: int) -> dict[str, bytes]:
        """{name: bytes} of shard ``k``, rollouts first. Errors as for ``read_shard``."""
        data, note, _ = self._verified_shard(self._scores(k), k, "score shard")
        found = {}
        if note["rollouts"] is not None:
            path = self._rollouts(k)
            found[path.name] = self._verified_rollouts(k, note["rollouts"])
        return found | {self._scores(k).name: data}

    def read_rollouts(self) -> pa.Table | None:
        """All rollouts of the finished shards, in data-set order; None if none exist.

        Raises ``RapStoreError`` if one is missing or damaged.
        """
        tables = list(self.rollout_tables())
        return pa.concat_tables(tables) if tables else None

    def rollout_tables(self) -> Iterator[pa.Table]:
        """As ``read_rollouts``, a shard at a time."""
        for k in range(self.n_shards):
            if not self._scores(k).exists():
                continue
            digest = self.rollouts_digest(k)
            if digest is not None:
                yield self.rollouts_of(k, digest)

    def rollouts_digest(self, k: int) -> str | None:
        """Of the rollouts that shard ``k`` was made from; None: of none. Raises
        ``RapStoreError``."""
        return self._verified_shard(self._scores(k), k, "score shard")[1]["rollouts"]

    def rollouts_of(self, k: int, digest: str) -> pa.Table:
        """The rollouts of shard ``k``. Raises ``RapStoreError`` if they are missing,
        damaged or others than ``digest`` says."""
        data = self._verified_rollouts(k, digest)
        return decoded(self._rollouts(k), data).cast(ROLLOUT_SCHEMA)

    def partial(self, k: int) -> Partial | None:
        """What is kept of shard ``k`` while it is not whole; None if nothing is.

        Raises ``RapStoreError`` if it is damaged (``open`` has set such a file aside).
        """
        path = self._partial(k)
        if self._whole(k) or not path.exists():
            return None
        data, note, _ = self._verified_shard(path, k, "partial shard")
        table = _filled(path, decoded(path, data), PARTIAL_SCHEMA)
        if not is_some_of(table["index"].to_pylist(), self.shard_range(k)):
            raise RapStoreError(f"{path}: holds other rows than those of its shard")
        flat = pa.concat_arrays(table["rollouts"].chunks).flatten()
        rollouts = pa.Table.from_struct_array(flat).cast(ROLLOUT_SCHEMA)
        scores = table.drop_columns(["rollouts"])
        rollouts = rollouts if len(flat) else None
        return Partial(scores, rollouts, note.get("tally", {}), note.get("rows") or {})

    def tally(self, k: int) -> dict[str, int]:
        """The counts that ``write`` was given. Raises ``RapStoreError``."""
        _, note, _ = self._verified_shard(self._scores(k), k, "score shard")
        return note.get("tally", {})

    # -- inside

    def _whole(self, k: int) -> bool:
        return self._scores(k).exists()

    def _partial(self, k: int) -> Path:
        return self.path / f"partial-{k:05d}.parquet"

    def _scores(self, k: int) -> Path:
        return self.path / f"scores-{k:05d}.parquet"

    def _rollouts(self, k: int) -> Path:
        return self.path / f"rollouts-{k:05d}.parquet"

    def _verified_shard(
        self, path: Path, k: int, kind: str
    ) -> tuple[bytes, dict[str, Any], str]:
        """(bytes, note, digest) of a shard that is shard ``k`` of this very store."""
        data, note, digest = verified(path)
        if note.get("kind") != kind or note.get("shard") != k:
            raise RapStoreError(f"{path}: holds {note.get('kind')} {note.get('shard')}")
        other = other_run(self.fingerprint, note.get("fingerprint"), "fingerprint")
        if other:
            raise RapStoreError(f"{path}: is of another run ({other[0]})")
        return data, note, digest

    def _verified_rollouts(self, k: int, wanted: str) -> bytes:
        path = self._rollouts(k)
        data, _, digest = self._verified_shard(path, k, "rollout shard")
        if digest != wanted:
            raise RapStoreError(f"{path}: is not what {self._scores(k).name} was made from")
        return data


def _filled(path: Path, table: pa.Table, schema: pa.Schema) -> pa.Table:
    """``table`` in ``schema``, also where an older version wrote it."""
    try:
        return filled(table, schema).select(schema.names)
    except (KeyError, pa.ArrowException) as error:
        raise RapStoreError(f"{path}: has other columns than a score table: {error}") from (
            error
        )


def columns_of(path: Path, data: bytes | Path, names: Sequence[str]) -> pa.Table:
    """These columns of a score shard, null where an older version did not have them.
    ``data``: its bytes, or its path."""
    kinds = {name: SCORE_SCHEMA.field(name).type for name in names}
    read, there, n = decoded_columns(path, data, names)
    lost = [name for name in SCORE_SCHEMA.names if name not in there and name not in SINCE]
    try:
        if lost:
            raise KeyError(", ".join(lost))
        # most columns of most shards are null: these share their memory
        columns = [
            read[name].cast(kind)
            if name in there and read[name].null_count < n
            else nulls(n, kind)
            for name, kind in kinds.items()
        ]
    except (KeyError, pa.ArrowException) as error:
        raise RapStoreError(f"{path}: has other columns than a score table: {error}") from (
            error
        )
    return pa.table(columns, names=list(names))


def is_some_of(index: Sequence[int], wanted: range) -> bool:
    """Whether these are rows of a shard, ascending."""
    ascending = all(a < b for a, b in zip(index, index[1:], strict=False))
    return ascending and all(i in wanted for i in index)


def read_refusal(store: Path) -> str | None:
    """Why the run that filled a store did not end well (``judge.verdict_kept``); None if it
    did."""
    try:
        return str(json.loads(read_regular(store / REFUSED))["refused"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def read_header(path: Path) -> dict[str, Any] | None:
    """store.json; None if there is none. Raises ``RapStoreError`` if it is damaged."""
    try:
        text = read_regular(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise store_error(f"{path}: cannot be read", error) from error
    try:
        header = json.loads(text)
        version = header["schema_version"]
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise RapStoreError(f"{path}: is damaged: {error!r}") from error
    check_version(path, version)
    names = ("n_samples", "shard_size")
    ok = all(isinstance(header.get(n), int) and header[n] >= 1 for n in names)
    if not ok or not isinstance(header.get("fingerprint"), dict):
        raise RapStoreError(f"{path}: is damaged: not the header of a score store")
    return header
