"""One process that has the store for itself."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ...config import ExecutorConfig
from ...scores.judge import verdict_kept
from ...scores.store import ScoreStore
from ..ledger import BILLED
from ..profiling import profiled
from ..session import Pass, Recipe, Session
from ..tracking import reporting
from .contract import Scored, read_pilot


class LocalExecutor:
    def __init__(self, config: ExecutorConfig) -> None:
        pass

    def run(self, recipe: Recipe, store: Path) -> Scored:
        """See ``Executor.run``."""
        with recipe.open(store) as session:
            with session.open(session.last_pass()) as shards:
                with profiled(session.driver, session.watch, shards.path):
                    for number in range(session.n_passes - 1):
                        by = session.pass_of(number)
                        with session.open(by) as before:
                            _fill(session, before, by)
                    _fill(session, shards, session.pass_of(session.n_passes - 1))
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
                    read_pilot(store, cascade=session.n_passes > 1),
                )


def _fill(session: Session, shards: ScoreStore, by: Pass) -> None:
    """Score what the store lacks."""
    session.look_over(shards, by)
    recipe = session.recipe
    model = None if session.driver is None else session.driver.model
    about = dataclasses.asdict(by.config)
    run = session.make_run(by)
    with (
        verdict_kept(session.path),
        reporting(recipe.report_to, shards.path, model, about) as run.report,
    ):
        run.fill(shards, recipe.progress)
    with session.watch.span("store"):
        shards.clear_previous()
