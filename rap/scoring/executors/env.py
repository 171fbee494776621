"""Every process that a launcher has started with the same command: torchrun, a Slurm array
or step, a loop over ``--shard i/n``. Each is told its number, none talks to another: they
meet at the store. There is no process group, which one dead process would take down.

Process r of n begins with the shards k of which k % n == r, in order; then it scores, from
the last to the first, what is free or whose process died, so that one that comes late or
never costs nothing. ``rap.score`` returns in each of them when the store is sealed.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pyarrow as pa

from ...config import ExecutorConfig
from ...errors import RapConfigError
from ...scores.drawn import Drawn
from ...scores.store import ScoreStore
from ...scores.table import SCORE_SCHEMA
from ..evidence import EVIDENCE
from ..ledger import BILLED
from ..session import Pass, Recipe, Session
from ..worker import Worker
from .contract import Scored, profiled_beside_others, read_sealed, through
from .ranks import Rank, device_here, find_rank

MOST = 10.0
"""Seconds, at most, between two looks whether another process has died."""


class EnvExecutor:
    def __init__(self, config: ExecutorConfig) -> None:
        self.config = config
        self.rank = find_rank(os.environ, config.shard)

    def run(self, recipe: Recipe, store: Path) -> Scored:
        """See ``Executor.run``; without ``steal`` the shards of this process alone, unless
        the others have done theirs."""
        cascade = EVIDENCE[recipe.config.evidence].staged
        if cascade and not self.config.steal:
            raise RapConfigError(
                f"steal = False: evidence {recipe.config.evidence!r} scores its rounds one "
                "after the other, all of them in one store"
            )
        if isinstance(recipe.model, (str, os.PathLike)):
            loading = {"device": device_here(self.config.shard), **recipe.loading}
            recipe = dataclasses.replace(recipe, loading=loading)
        rank, lease = self.rank.rank, self.config.lease
        with (
            recipe.open(store, shared=True) as session,
            profiled_beside_others(session, store, rank, lease),
        ):
            through(session, partial(self._fill, session))
            missing = set(ScoreStore.load(store).missing())
            if not missing:
                return read_sealed(session.samples, store, cascade)
            return self._part(session, store, missing)

    def _fill(self, session: Session, by: Pass) -> None:
        rank, config = self.rank, self.config
        shown = session.recipe.progress
        if rank.rank and shown is True:  # one bar on a terminal is enough
            shown = False
        with Worker(
            session, by, rank=rank.rank, of=rank.world, lease=config.lease
        ) as worker:
            n, wait, left = worker.store.n_shards, worker.wait, -1
            while True:
                worker.run_shards(order(n, rank, config.steal), shown)
                if worker.finish():
                    return
                missing = worker.store.missing()
                if not config.steal and set(own(n, rank)).isdisjoint(missing):
                    return
                wait = worker.wait if len(missing) != left else min(1.5 * wait, MOST)
                left = len(missing)
                time.sleep(wait)

    def _part(self, session: Session, store: Path, missing: set[int]) -> Scored:
        """The shards of this process, of a store that others have not filled yet."""
        shards = ScoreStore.load(store)
        mine = [k for k in own(shards.n_shards, self.rank) if k not in missing]
        none = SCORE_SCHEMA.empty_table()
        table = pa.concat_tables([none, *map(shards.read_shard, mine)])
        rank = self.rank
        return Scored(
            session.samples,
            table,
            table.select(BILLED),
            shards.fingerprint,
            shards.data,
            Drawn(),
            None,
            part=f"{rank.rank}/{rank.world}",
        )


def own(n: int, rank: Rank) -> range:
    """The shards of ``n`` that a process begins with."""
    return range(rank.rank, n, rank.world)


def order(n: int, rank: Rank, steal: bool) -> Iterator[int]:
    """Shards in the order in which a process asks for them: its own, then the others' from
    the end, where they come last themselves."""
    yield from own(n, rank)
    if steal:
        yield from (k for k in reversed(range(n)) if k % rank.world != rank.rank)
