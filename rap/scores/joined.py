"""A store that several workers fill: one of them writes the shards that it has claimed.

No lock is taken. What a worker finds is what lies in the folder: a shard whose scores are
there is whole, and is verified by whoever seals the store (``ScoreStore.open``).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..errors import RapStoreError
from .claims import Claims
from .shardplan import ShardPlan, has_plan
from .shards import Partial, read_header
from .writer import ShardWriter

log = logging.getLogger("rap")


class JoinedStore(ShardWriter):
    """The store at ``path``, to write what ``claims`` has claimed of ``plan``.

    Raises ``RapStoreError`` if there is no store."""

    def __init__(self, path: Path, plan: ShardPlan, claims: Claims) -> None:
        header = read_header(path / "store.json")
        if header is None:
            raise RapStoreError(f"{path}: no score store here (store.json is missing)")
        super().__init__(path, header)
        self.plan, self.claims = plan, claims

    def claim(self, k: int, *, over: bool = False) -> bool:
        """Claim shard ``k``, ``over`` a stale claim if need be; whether it is ours. False
        for one that is there. Raises ``RapStoreError`` if the plan is gone."""
        if self.is_whole(k):
            return False
        name = str(k)
        if not (self.claims.take_over(name) if over else self.claims.take(name)):
            return False
        if not has_plan(self.path):
            self.claims.release(name)
            raise RapStoreError(
                f"{self.path}: another run has taken this store for itself; the same "
                "command goes on once that is over"
            )
        if self.is_whole(k):  # since we looked
            self.claims.release(name)
            return False
        return True

    def write(
        self,
        k: int,
        scores: pa.Table,
        rollouts: pa.Table | None = None,
        *,
        tally: Mapping[str, int] | None = None,
        rows: Mapping[str, list[Any]] | None = None,
    ) -> None:
        """As ``ShardWriter.write``, and give the claim back. Nothing is written of a shard
        that another worker has taken over, as from one that was too slow."""
        if self._is_ours(k):
            super().write(k, scores, rollouts, tally=tally, rows=rows)
        self.claims.release(str(k))

    def write_partial(
        self,
        k: int,
        scores: pa.Table,
        rollouts: pa.Table | None = None,
        *,
        tally: Mapping[str, int] | None = None,
        rows: Mapping[str, list[Any]] | None = None,
    ) -> None:
        """As ``ShardWriter.write_partial``; nothing is written of a shard that another
        worker has taken over."""
        if self._is_ours(k):
            super().write_partial(k, scores, rollouts, tally=tally, rows=rows)

    def partial(self, k: int) -> Partial | None:
        """As ``Shards.partial``; what is damaged is set aside."""
        return self._good_part(k)

    def missing(self) -> list[int]:
        there = set(os.listdir(self.path))
        return [k for k in range(self.n_shards) if self._scores(k).name not in there]

    # -- inside

    def _is_ours(self, k: int) -> bool:
        if self.claims.holds(str(k)) and not self.is_whole(k):
            return True
        log.info("%s: shard %d was taken over by another worker", self.path, k)
        return False

    def _writable(self, k: int) -> range:
        return self.shard_range(k)
