"""What an executor is: it has every shard of a run scored, by one process or by many.

An executor gets a ``Recipe`` and the folder of the store, and hands back ``Scored``. Three
things it may build on: ``local`` has a store alone (``Session.open`` and ``Run.fill``);
processes that share a store are ``worker.Worker``s: ``run_shards`` of any of them scores
the shards it is told, and ``finish`` seals. ``through`` leads either through the passes.

    with recipe.open(store) as session:
        by = session.pass_of(0)                   # a cascade has several
        with Worker(session, by, rank=3) as worker:
            worker.run_shards([7, 12])            # what it can claim of these
            worker.finish()                       # False: others are still at work
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from ...samples.sampleset import SampleSet
from ...scores.claims import PROFILE, Claims
from ...scores.completions import Completions, StoredCompletions
from ...scores.drawn import Drawn
from ...scores.reader import Reader, ShardReader
from ...scores.shardplan import read_plan
from ...scores.store import ScoreStore
from ...scores.table import SCORE_SCHEMA
from ..ledger import BILLED
from ..plan import folder_of
from ..profiling import profiled
from ..session import Pass, Recipe, Session


@dataclass(frozen=True, slots=True)
class Scored:
    """What a run has left. ``table``: its scores, in data-set order. ``billed``: their
    columns ``ledger.BILLED``. ``first``: the table of a cascade's first round.
    ``part``: "i/n" where these are the shards of one process only."""

    samples: SampleSet
    table: pa.Table | Reader
    billed: pa.Table
    fingerprint: Mapping[str, Any]
    data: Mapping[str, Any] | None
    drawn: Drawn
    completions: Completions | None
    first: pa.Table | None = None
    part: str | None = None


class Executor(Protocol):
    """Made with its settings, an `ExecutorConfig`."""

    def run(self, recipe: Recipe, store: Path) -> Scored:
        """Have the whole data set scored into ``store``. When it returns the store is whole
        and was judged as a whole, unless ``Scored.part`` says otherwise.

        Raises what `rap.score` does; what was scored so far stays, and any executor goes
        on with it."""


def through(session: Session, fill: Callable[[Pass], None]) -> None:
    """Lead a process that shares its stores through the passes: ``fill`` returns when the
    store of a pass is sealed."""
    for number in range(session.n_passes):
        fill(session.pass_of(number))


def profiled_beside_others(
    session: Session, store: Path, rank: int, lease: float
) -> AbstractContextManager[None]:
    """As ``profiled``. A profile of several processes is their sum: one adds to it at a
    time."""

    @contextmanager
    def alone() -> Iterator[None]:
        with Claims(store, rank=rank, lease=lease) as claims, claims.holding(PROFILE):
            yield

    return profiled(session.driver, session.watch, store, alone)


def read_sealed(samples: SampleSet, store: Path, cascade: bool) -> Scored:
    """What lies in a sealed store."""
    shards = ScoreStore.load(store)
    plan = read_plan(store)
    reader = ShardReader(shards, SCORE_SCHEMA)
    billed = reader.read(BILLED)
    digests = reader.rollouts
    return Scored(
        samples,
        reader,
        billed,
        shards.fingerprint,
        shards.data,
        Drawn() if plan is None else plan.drawn,
        StoredCompletions(store, digests) if digests else None,
        read_pilot(store, cascade=cascade),
    )


def read_pilot(store: Path, *, cascade: bool) -> pa.Table | None:
    """The scores of a cascade's first round; None of other evidence."""
    return ScoreStore.load(store / folder_of(0)).read() if cascade else None
