"""Writes the shards of a score store; ``store`` describes the files.

``ShardWriter`` knows how a shard is written, not who may: ``store.ScoreStore`` has the
store alone, ``joined.JoinedStore`` those shards that it has claimed.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ..errors import RapStoreError
from ..samples.tables import as_structs
from .drawn import Drawn
from .files import OtherVersionError, store_error, write_parquet
from .fingerprint import other_run
from .previous import DATA, Kept, Previous, Reuse
from .shards import PARTIAL_SCHEMA, Partial, Shards, is_some_of
from .table import ROLLOUT_SCHEMA, SCHEMA_VERSION, SCORE_SCHEMA

_NO_ROLLOUTS = pa.array([], pa.struct(list(ROLLOUT_SCHEMA)))


@dataclass(frozen=True, slots=True)
class Shard:
    """What a writer knows of a finished shard. ``rollouts``: their digest. ``table``: the
    scores, if they were read at ``open``."""

    table: pa.Table | None
    rollouts: str | None
    tally: dict[str, int]
    drawn: Drawn


class ShardWriter(Shards):
    """Attribute: ``warnings`` (what was set aside). Not for several threads at once."""

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        super().__init__(path, header)
        self.warnings: list[str] = []
        self._previous = Previous(path)

    def write(
        self,
        k: int,
        scores: pa.Table,
        rollouts: pa.Table | None = None,
        *,
        tally: Mapping[str, int] | None = None,
        rows: Mapping[str, list[Any]] | None = None,
    ) -> None:
        """Write shard ``k``, its rollouts first; when this returns it survives power
        loss. What was there of it before (whole, partial) is replaced.

        ``scores``: SCORE_SCHEMA, one row per index of ``shard_range(k)``, in order.
        ``rollouts``: ROLLOUT_SCHEMA with indices of that range, or None if none exist.
        ``tally``: counts that ``tally(k)`` gives back.
        ``rows``: what to know of each row where it is reused, lists of JSON values:
        ``inputs`` (a hash of what else it was scored from), ``groups`` (its part of tally).
        Raises ``RapStoreError``; what was there before is intact then. ``ValueError``
        for rows that are not this shard's.
        """
        wanted = self._writable(k)
        scores = scores.cast(SCORE_SCHEMA)
        if scores["index"].to_pylist() != list(wanted):
            raise ValueError(f"shard {k} needs the rows {wanted}, in order")
        note = self._note(k)
        digest, drawn = None, Drawn()
        if rollouts is not None:
            rollouts = rollouts.cast(ROLLOUT_SCHEMA)
            if not set(rollouts["index"].unique().to_pylist()) <= set(wanted):
                raise ValueError(f"shard {k} holds rollouts of {wanted} only")
            drawn = Drawn.of(rollouts)
            digest = write_parquet(
                self._rollouts(k), rollouts, note | {"kind": "rollout shard"}
            )
        note |= {"kind": "score shard", "rollouts": digest, "tally": dict(tally or {})}
        note |= {"rows": dict(rows)} if rows else {}
        write_parquet(self._scores(k), scores, note)
        self._remove(self._partial(k))
        self._remove(old(self._scores(k)))
        self._took(k, Shard(None, digest, note["tally"], drawn))

    def write_partial(
        self,
        k: int,
        scores: pa.Table,
        rollouts: pa.Table | None = None,
        *,
        tally: Mapping[str, int] | None = None,
        rows: Mapping[str, list[Any]] | None = None,
    ) -> None:
        """Keep some rows of shard ``k``, which is not whole yet; replaces what was kept of
        it before. Arguments and errors as for ``write``, but rows may be missing, and
        ``rollouts`` must be in the order of the rows."""
        wanted = self._writable(k)
        scores = scores.cast(SCORE_SCHEMA)
        index = scores["index"].to_pylist()
        if self.is_whole(k) or not index or not is_some_of(index, wanted):
            raise ValueError(f"shard {k}: not rows of a shard in progress")
        rollouts = ROLLOUT_SCHEMA.empty_table() if rollouts is None else rollouts
        rollouts = rollouts.cast(ROLLOUT_SCHEMA).combine_chunks()
        of = rollouts["index"].to_numpy()
        ends = np.searchsorted(of, [*index, index[-1] + 1])
        if (np.diff(of) < 0).any() or ends[0] != 0 or ends[-1] != len(of):
            raise ValueError(f"shard {k}: rollouts that are not of its rows, in order")
        flat = pa.concat_arrays(as_structs(rollouts).chunks or [_NO_ROLLOUTS])
        nested = pa.ListArray.from_arrays(pa.array(ends, pa.int32()), flat)
        table = scores.append_column(PARTIAL_SCHEMA.field("rollouts"), nested)
        note = self._note(k) | {"kind": "partial shard", "tally": dict(tally or {})}
        note |= {"rows": dict(rows)} if rows else {}
        write_parquet(self._partial(k), table, note)
        kept = rollouts if rollouts.num_rows else None
        part = Partial(scores, kept, note["tally"], note.get("rows") or {})
        self._took_part(k, part)

    def look_back(self, reuse: Reuse) -> int:
        """How many samples of unfinished shards were scored before, for an older data set,
        and are unchanged: ``reused`` has them."""
        if not self._previous.generations() or not self.missing():
            return 0
        self._previous.index(self.n_samples, reuse.find, self._same_but_data)
        return sum(
            self._previous.has(i) for k in self.missing() for i in self.shard_range(k)
        )

    def reusable(self, i: int) -> bool:
        """``reused`` has sample ``i`` (after ``look_back``)."""
        return self._previous.has(i)

    def reused(self, wanted: Iterable[int]) -> dict[int, Kept]:
        """{sample: its row and rollouts} of those that ``look_back`` found. ``index`` and
        group are those of the older data set. Raises ``RapStoreError``."""
        return self._previous.rows(wanted)

    def clear_previous(self) -> None:
        """Remove older shards that the store has taken over as a whole; it is whole now."""
        if not self.missing():
            self._previous.prune()

    # -- inside

    def _writable(self, k: int) -> range:
        """The rows of shard ``k``, which this process may write. Raises ``RapStoreError``
        if it may not."""
        raise NotImplementedError

    def _took(self, k: int, shard: Shard) -> None:
        """Shard ``k`` is written."""

    def _took_part(self, k: int, part: Partial) -> None:
        """What shard ``k`` is so far is written."""

    def _same_but_data(self, fingerprint: Mapping[str, Any]) -> bool:
        lines = other_run(self.fingerprint, fingerprint, "fingerprint")
        return {line.partition(":")[0] for line in lines} <= DATA

    def _note(self, k: int) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "shard": k,
            "fingerprint": self.fingerprint,
        }

    def _remove(self, path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise store_error(f"{path}: cannot be removed", error) from error

    def _set_aside(self, path: Path, why: str) -> None:
        """Rename to ``.corrupt``: nothing is deleted, someone may want to look."""
        target = path.with_name(path.name + ".corrupt")
        number = 2
        while os.path.lexists(target):
            target = path.with_name(f"{path.name}.{number}.corrupt")
            number += 1
        try:
            os.rename(path, target)
        except OSError as error:
            raise store_error(f"{path}: cannot be set aside", error) from error
        self._warn(f"{why}; set aside as {target.name}, its samples are scored again")

    def _warn(self, text: str) -> None:
        self.warnings.append(text)
        warnings.warn(text, UserWarning, stacklevel=5)

    def _good_part(self, k: int) -> Partial | None:
        """What is kept of shard ``k``, which is not whole; damage is set aside."""
        try:
            return Shards.partial(self, k)
        except OtherVersionError:
            raise
        except (RapStoreError, pa.ArrowException, ValueError) as error:
            self._set_aside(self._partial(k), str(error))
            return None


def old(path: Path) -> Path:
    return path.with_name(path.name + ".old")
