"""One of many processes that fill a store: plan, shards, seal.

    coordinate          makes the store of a pass and its plan; one process does
    Worker.run_shards   scores those of these shards that it can claim; every process does
    seal                verifies the whole store once, and judges it; one process does

Whoever is there first plans, whoever is through last seals: both are claimed like a shard,
so that a process that dies there is replaced, too. Every process checks that its model,
settings and data are those of the plan, its data a shard at a time, and is refused by name
where they are not.

What was scored before is looked over (``Session.look_over``: images that changed, what is
to be tried again, an older data set) where the plan is made, and nowhere else.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Self

from ..errors import RapConfigError, RapInputError, RapStoreError
from ..samples import index
from ..scores.claims import LEASE, PLAN, SEAL, Claims, require_idle
from ..scores.files import store_error
from ..scores.fingerprint import differences, in_words, other_run
from ..scores.joined import JoinedStore
from ..scores.previous import DATA
from ..scores.sealing import seal
from ..scores.shardplan import INDEX, ROWS, ShardPlan, make_plan, read_plan
from .filling import Bar
from .session import Pass, Session

log = logging.getLogger("rap")

WAIT = 0.5
"""Seconds between two looks at what others do."""


# ---------------------------------------------------------------- the plan


def coordinate(session: Session, by: Pass, claims: Claims) -> ShardPlan:
    """Make the store of a pass, or take it as it is, and its plan. ``claims`` holds `PLAN`.

    Raises ``RapStoreError`` if workers are at work on it, and what ``ScoreStore.open``
    does."""
    require_idle(by.folder, claims)
    session.forget_plans_after(by)
    made = _index(session, by)
    with session.open(by, shared=True) as shards:
        session.look_over(shards, by)
        hashes = made.shards
        if not by.last:
            ranges = map(shards.shard_range, range(shards.n_shards))
            hashes = tuple(by.samples.shard_hashes(list(ranges), by.more))
        plan = make_plan(
            {name: getattr(shards, name) for name in ("n_samples", "shard_size")}
            | {"fingerprint": shards.fingerprint},
            shards.data,
            hashes,
        )
        plan.write(by.folder)
    return plan


def _index(session: Session, by: Pass) -> index.Index:
    """What the rows are, found once, and kept beside the store for who opens the same data
    set (``Recipe.open``).

    Raises ``RapInputError`` where this process has the data set as it was kept before, and
    it is another one by now."""
    samples, folder = session.samples, session.path / INDEX
    made = index.build(samples, session.shard_size, by.more)
    if samples.is_known:
        there = index.load(folder)
        same = there is not None and there.content_sha256[()] == made.content_sha256[()]
        if not (same and samples.has_ids(range(len(samples)))):
            raise RapInputError(
                f"{samples.kind}: has changed, though size and time of its files have not, "
                f"since it was planned; remove {folder} and plan again"
            )
        return made
    try:
        index.save(samples, made, folder)
    except OSError as error:
        raise store_error(f"{folder}: cannot be written", error) from error
    return made


def require_agreement(plan: ShardPlan, session: Session, by: Pass, who: str) -> None:
    """Raises ``RapConfigError`` that names every field in which this process is not of the
    run that was planned. Rows that this process has looked through itself are compared a
    shard at a time."""
    theirs = str(plan.fingerprint.get("dataset"))
    lines = _disagreements(plan, session, by, None if session.samples.is_known else theirs)
    if lines:
        raise RapConfigError(
            f"{by.folder}: {who} is not of the run that was planned here: "
            f"{'; '.join(map(in_words, lines)).replace(' in the store', ' in the plan')}"
        )


def _disagreements(
    plan: ShardPlan, session: Session, by: Pass, dataset: str | None
) -> list[str]:
    ours = {
        "n_samples": len(by.samples),
        "shard_size": session.shard_size,
        "fingerprint": session.fingerprint(by, dataset),
    }
    ours = json.loads(json.dumps(ours))  # tuples are lists, as in the plan
    theirs = {name: getattr(plan, name) for name in ours}
    known = (plan.data or {}).get("columns")
    columns = dict(session.samples.columns)
    return other_run(ours, theirs) + differences(columns, known or columns, "data.columns")


# ---------------------------------------------------------------- the shards


class Worker:
    """One process at the store of a pass; a context manager that ends its claims.

    ``who``: what it is called where it is refused, "rank 3". ``rank``: written into its
    claims. ``of``: how many processes are there, about. ``lease``: see ``claims``.
    Making one waits for the plan, or makes it."""

    def __init__(
        self,
        session: Session,
        by: Pass,
        *,
        rank: int | None = None,
        of: int = 1,
        lease: float = LEASE,
        wait: float = WAIT,
    ) -> None:
        self.session, self.by, self.wait = session, by, wait
        self.who = "this process" if rank is None else f"rank {rank}"
        with ExitStack() as stack:
            self.claims = stack.enter_context(Claims(by.folder, rank=rank, lease=lease))
            self.plan = self._await_plan()
            self.store = JoinedStore(by.folder, self.plan, self.claims)
            if self.plan.sealed is None and not session.samples.is_known:
                for k in self.store.finished():  # scored by the rows of the plan: no others
                    self._verify(k)
            if self.plan.sealed is None and (reuse := session.reuse(by)) is not None:
                self.store.look_back(reuse)
            if self.plan.sealed is not None and session.recipe.retry_quarantined:
                log.warning(
                    "%s: is sealed, so nothing is tried again; rap plan --retry opens it",
                    by.folder,
                )
            stack.pop_all()
        self._run = session.make_run(by, of=of, verify=self._verify)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End its claims and the processes that prepare samples."""
        self._run.close()
        self.claims.close()

    @property
    def bad(self) -> int:
        """Samples that this process has quarantined, or found so."""
        return self._run.judge.bad.total()

    def run_shards(
        self,
        numbers: Iterable[int],
        progress: bool | str = False,
        *,
        after: Callable[[], None] | None = None,
    ) -> None:
        """Score those of these shards that are not there and can be claimed, in order.
        ``after`` is called after every batch; what it raises ends the run in order.

        Returns when none of them is free any more; ``store.missing()`` then holds what
        others are at. Raises what `rap.score` does; what was scored stays."""
        if self.plan.sealed is not None:
            return
        n, missing = len(self.by.samples), set(self.store.missing())
        done = n - sum(len(self.store.shard_range(k)) for k in missing)
        claimed = (k for k in numbers if k in missing and self.store.claim(k, over=True))
        with Bar(n, done, progress, after, name=self.by.name) as bar:
            self._run.run(self.store, claimed, bar)

    def finish(self) -> bool:
        """Seal the store, or wait until another has; False if shards are missing.

        Raises ``RapInputError``, ``RapModelError`` where the whole is judged bad, in every
        process."""
        while not self._is_sealed():
            if self.store.missing():
                return False
            if not self.claims.take_over(SEAL):
                time.sleep(self.wait)
                continue
            try:
                if self._is_sealed():
                    break
                degenerate = self.session.recipe.allow_degenerate
                by = self.by  # a part of the pool is not judged alone
                seal(by.folder, self.plan, by.config, degenerate, judged=by.last)
                self.store.clear_previous()
            finally:
                self.claims.release(SEAL)
        self.claims.clear_dead()  # of who died between its last write and its release
        return True

    # -- inside

    def _verify(self, k: int) -> None:
        """Raises ``RapConfigError`` if the samples of a shard are not those of the plan."""
        wanted, samples = self.store.shard_range(k), self.by.samples
        if not samples.has_rows(wanted, self.plan.shards[k], self.by.more):
            raise RapConfigError(
                f"{self.by.folder}: {self.who}: dataset: the samples {wanted.start} to "
                f"{wanted.stop - 1} (shard {k}) are not those that were planned: the data "
                "set has changed, or this process reads another one; rap plan makes a new "
                "plan, which keeps what is unchanged"
            )

    def _await_plan(self) -> ShardPlan:
        folder = self.by.folder
        while True:
            plan = read_plan(folder)
            if plan is not None and plan.hashed == ROWS and not self._outlived(plan):
                require_agreement(plan, self.session, self.by, self.who)
                return plan
            if self.claims.take_over(PLAN):
                try:
                    if read_plan(folder) == plan:
                        return coordinate(self.session, self.by, self.claims)
                finally:
                    self.claims.release(PLAN)
            time.sleep(self.wait)

    def _outlived(self, plan: ShardPlan) -> bool:
        """A store was sealed for a data set that is another by now, and nothing else is."""
        if plan.sealed is None:
            return False
        lines = _disagreements(plan, self.session, self.by, None)
        fields = {line.partition(":")[0] for line in lines}
        data = {f for f in fields if f in DATA or f.startswith("data.columns")}
        return bool(fields) and fields == data

    def _is_sealed(self) -> bool:
        plan = read_plan(self.by.folder)
        if plan is None or plan.token != self.plan.token:
            raise RapStoreError(
                f"{self.by.folder}: another run has taken this store for itself; the same "
                "command goes on once that is over"
            )
        return plan.sealed is not None
