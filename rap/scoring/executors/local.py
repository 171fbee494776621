"""One process that has the store for itself."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ...config import ExecutorConfig
from ...scores.judge import verdict_kept
from ...scores.store import ScoreStore
from ..ledger import BILLED
from ..plan import Plan
from ..profiling import profiled
from ..session import Pass, Recipe, Session
from .contract import Scored


class LocalExecutor:
    def __init__(self, config: ExecutorConfig) -> None:
        pass

    def run(self, recipe: Recipe, store: Path) -> Scored:
        """See ``Executor.run``."""
        with recipe.open(store) as session:
            last = session.last_pass()
            with session.open(last) as shards:
                with profiled(session.driver, session.watch, shards.path):
                    plan = _first_pass(session)
                    _fill(session, shards, dataclasses.replace(last, plan=plan))
                    with session.watch.span("store"):
                        table = shards.read()
                        drawn = shards.drawn()
                        completions = shards.completions()
                return Scored(
                    session.samples,
                    table,
                    table.select(BILLED),
                    shards.fingerprint,
                    shards.data,
                    drawn,
                    completions,
                    None if plan is None else plan.rows,
                )


def _first_pass(session: Session) -> Plan | None:
    """Score the whole pool by the evidence that comes first, if any does, into a store of
    its own; what follows from it."""
    first = session.first_pass()
    if first is None:
        return None
    with session.open(first) as shards:
        _fill(session, shards, first)
        session.watch.counts.pop("samples", None)  # the pass to come counts them
        return session.settled(shards)


def _fill(session: Session, shards: ScoreStore, by: Pass) -> None:
    """Score what the store lacks."""
    session.look_over(shards, by)
    with verdict_kept(shards.path):
        session.make_run(by).fill(shards, session.recipe.progress)
    with session.watch.span("store"):
        shards.clear_previous()
