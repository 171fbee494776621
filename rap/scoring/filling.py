"""The loop of a run: batches into shards, until none is missing or too much is bad."""

from __future__ import annotations

import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import pyarrow as pa

from ..config import DEFAULT_BATCH, ScoreConfig
from ..errors import RapError
from ..samples.sample import Sample
from ..samples.sampleset import SampleSet
from ..scores.judge import COLUMNS, MIN_SEEN, Judge
from ..scores.previous import Kept
from ..scores.store import ScoreStore
from ..scores.table import ROLLOUT_SCHEMA, table_from_rows
from ..scores.writer import ShardWriter
from .evidence import EVIDENCE
from .jobs import Job, ahead
from .plan import Plan
from .processes import Preparation
from .profiling import count_asked
from .reuse import group_of, inputs_sha256
from .rounding import rounded
from .scorer import Scorer

if TYPE_CHECKING:
    from ..model.driver import ModelDriver

PARTIAL_SECONDS = 30.0
"""A shard that takes longer is kept so often while it is in progress."""


def score_batch(scorer: Scorer, jobs: list[Job]) -> None:
    """Fill in the rows of these jobs by the evidence that was chosen; a job that fails is
    quarantined in place."""
    started = time.perf_counter()
    EVIDENCE[scorer.config.evidence].score(scorer, jobs)
    share = (time.perf_counter() - started) / len(jobs)
    count_asked(scorer.watch, jobs)
    for job in jobs:
        job.row["seconds"] += share
        # A finished job waits for its shard: only its row may stay in memory.
        job.image = job.blind = job.answer = job.blind_answer = None
        job.asked = {}
        job.sample = None  # type: ignore[assignment]


@dataclass(slots=True)
class _Part:
    """A shard in progress. ``jobs[:whole]`` are whole batches, the rest may be half done;
    ``kept`` of them lie in the store; ``earlier`` is what other runs have tallied."""

    k: int
    size: int
    jobs: list[Job] = field(default_factory=list)
    whole: int = 0
    kept: int = 0
    earlier: Counter[str] = field(default_factory=Counter)

    def tables(self) -> tuple[pa.Table, pa.Table | None]:
        """(scores, rollouts or None) of the whole batches."""
        done = self.jobs[: self.whole]
        rollouts = [rollout for job in done for rollout in job.rollouts]
        return (
            table_from_rows([rounded(job.row) for job in done]),
            table_from_rows(rollouts, ROLLOUT_SCHEMA) if rollouts else None,
        )

    def tally(self) -> dict[str, int]:
        """Groups of completions sampled, and how many of them were degenerate."""
        done = self.jobs[: self.whole]
        return {
            "groups": self.earlier["groups"] + sum(j.groups for j in done),
            "degenerate": self.earlier["degenerate"]
            + sum(j.degenerate_groups for j in done),
        }

    def rows(self) -> dict[str, list[Any]]:
        """What ``ScoreStore.write`` is to note of each row, where there is something."""
        done = self.jobs[: self.whole]
        lists: dict[str, list[Any]] = {
            "inputs": [job.inputs for job in done],
            "groups": [[job.groups, job.degenerate_groups] for job in done],
        }
        if not any(lists["inputs"]):
            del lists["inputs"]
        if not any(groups for groups, _ in lists["groups"]):
            del lists["groups"]
        return lists


class Run:
    """One pass of `score`: its shards, and what was bad so far. ``more``: columns that a
    score may depend on besides what a sample is. ``plan``: of a cascade, what its round
    decides by. ``pool``: samples of all passes, where these are a part of them, which is
    not judged alone. ``least``: see `Judge`. ``verify``: is called with the number of a
    shard before its samples are read, and raises if they are not what they were."""

    def __init__(
        self,
        samples: SampleSet,
        driver: ModelDriver | None,
        config: ScoreConfig,
        scorer: Scorer,
        more: Collection[str] = (),
        plan: Plan | None = None,
        *,
        pool: int | None = None,
        least: int = MIN_SEEN,
        verify: Callable[[int], None] | None = None,
    ) -> None:
        self.samples = samples
        self.judged = pool is None
        self.more = more
        self.plan = plan
        self.driver = driver
        self.config = config
        self.prepared = Preparation(
            samples, driver, config, asked=not scorer.engine_is_local
        )
        self.scorer = scorer
        self.judge = Judge(pool or len(samples), config, scorer.allow_degenerate, least)
        if plan is not None:
            scorer.count_groups(*plan.groups)
        self.verify = verify
        self.written = time.monotonic()

    def fill(self, shards: ScoreStore, progress: bool | str) -> None:
        """Score what is missing, in order, and judge the whole."""
        for k in shards.finished():
            table = shards.read_shard(k).select(list(COLUMNS))
            self._count(table.to_pylist(), shards.tally(k))
        try:
            with Bar(len(self.samples), self.judge.seen, progress) as bar:
                self.run(shards, iter(shards.missing()), bar)
        finally:
            self.close()
        if self.judged:
            self.scorer.check_degenerate(final=True)
            self.judge.stop(final=True)

    def close(self) -> None:
        """End the processes that prepare samples, if there are any."""
        self.prepared.close()

    def run(self, shards: ShardWriter, numbers: Iterator[int], bar: Bar) -> None:
        """Score these shards, in order; each is written as soon as it is whole.

        A number is asked for when its first samples are to be prepared, which is before
        the shard ahead of it is written."""
        parts: deque[_Part] = deque()
        waiting: deque[int] = deque()

        def begin() -> bool:
            """The next shard, if there is one: its samples wait to be prepared."""
            k = next(numbers, None)
            if k is None:
                return False
            part = self._begin(shards, k)
            bar.advance(part.whole, self.judge.bad.total())
            parts.append(part)
            rest = shards.shard_range(k)[part.whole :]
            new = (i for i in rest if not shards.reusable(i) and not self._settled(i))
            waiting.extend(new)
            return True

        def indices() -> Iterator[int]:
            while waiting or begin():
                if waiting:
                    yield waiting.popleft()

        batch = self.config.batch_size or DEFAULT_BATCH
        jobs = ahead(
            self._prepare,
            indices(),
            workers=self.config.workers,
            depth=max(self.config.prefetch * batch, self.scorer.window),
        )
        try:
            while parts or begin():
                self._shard(shards, parts[0], jobs, bar)
                parts.popleft()
                self.judge.stop(final=False)
        except BaseException as error:
            if parts:
                self._keep_after(shards, parts[0], error)
            raise
        finally:
            jobs.close()

    def _prepare(self, i: int) -> Job:
        """Sample ``i`` as the model takes it, its pixels on their way; in whichever
        thread."""
        with self.scorer.watch.span("prepare"):
            job = self.prepared(i)
            for prepared in (job.image, job.blind):
                if self.driver is not None and prepared is not None:
                    self.driver.send_ahead(prepared)
            return job

    def _next(self, jobs: Iterator[Job]) -> Job:
        """The next prepared job, waited for, with what else it is scored from."""
        with self.scorer.watch.span("prepare"):
            job = next(jobs)
            if self.more and job.sample is not None:
                job.inputs = inputs_sha256(job.sample, self.more)
            job.asking = None if self.plan is None else self.plan.asking
            return job

    def _begin(self, shards: ShardWriter, k: int) -> _Part:
        """Shard k with what an earlier run has kept of it."""
        if self.verify is not None:
            self.verify(k)
        part = _Part(k, len(shards.shard_range(k)))
        kept = shards.partial(k)
        if kept is None:
            return part
        rollouts: dict[int, list[dict[str, Any]]] = {}
        if kept.rollouts is not None:
            for rollout in kept.rollouts.to_pylist():
                rollouts.setdefault(rollout["index"], []).append(rollout)
        rows = kept.scores.to_pylist()
        groups = kept.rows.get("groups") or [(0, 0)] * len(rows)
        part.earlier = Counter(kept.tally)
        for row, (drawn, degenerate) in zip(rows, groups, strict=True):
            job = Job(row, rollouts=rollouts.get(row["index"], []))
            item = self.samples[row["index"]]
            if isinstance(item, Sample):
                row["source"], job.inputs = item.source, inputs_sha256(item, self.more)
            job.groups, job.degenerate_groups = drawn, degenerate
            # the jobs have it
            part.earlier.subtract({"groups": drawn, "degenerate": degenerate})
            part.jobs.append(job)
        part.whole = part.kept = len(part.jobs)
        self._count((job.row for job in part.jobs), kept.tally)
        return part

    def _shard(
        self, shards: ShardWriter, part: _Part, jobs: Iterator[Job], bar: Bar
    ) -> None:
        """Score what a shard still lacks, batch by batch, and write it."""
        batch: list[Job] = []
        rest = shards.shard_range(part.k)[part.whole :]
        kept = shards.reused(i for i in rest if not self._settled(i))
        begun = {} if self.plan is None else self.plan.begun(rest)
        for i in rest:
            if self._settled(i):
                job = self._before(i, begun.pop(i))
            elif i in kept:
                job = self._again(i, kept.pop(i))
            else:
                job = self._next(jobs)
            part.jobs.append(job)
            if job.alive and not job.reused:
                batch.append(job)
            last = len(part.jobs) == part.size
            if batch and (self.scorer.is_full(batch) or last):
                score_batch(self.scorer, batch)
                batch = []
            if batch:
                continue
            new = part.jobs[part.whole :]
            part.whole = len(part.jobs)
            self._count(job.row for job in new)
            self.scorer.watch.count("samples", sum(not job.reused for job in new))
            bar.advance(len(new), self.judge.bad.total())
            if not last:
                self.judge.stop(final=False)
                if time.monotonic() - self.written >= PARTIAL_SECONDS:
                    self._keep(shards, part)
        with self.scorer.watch.span("store"):
            scores, rollouts = part.tables()
            shards.write(part.k, scores, rollouts, tally=part.tally(), rows=part.rows())
        self.written = time.monotonic()

    def _settled(self, i: int) -> bool:
        return self.plan is not None and self.plan.settled(i)

    def _before(self, i: int, row: dict[str, Any]) -> Job:
        """Sample ``i``, scored in a round before."""
        job = Job(row | {"source": group_of(self.samples, i)}, reused=True)
        job.rollouts = [] if self.plan is None else list(self.plan.rollouts(i))
        item = self.samples[i] if self.more else None
        if isinstance(item, Sample):
            job.inputs = inputs_sha256(item, self.more)
        return job

    def _again(self, i: int, kept: Kept) -> Job:
        """Sample ``i``, scored before for an older data set, at its place in this one."""
        row = kept.row | {"index": i, "source": group_of(self.samples, i)}
        rollouts = [rollout | {"index": i} for rollout in kept.rollouts]
        job = Job(row, rollouts=rollouts, inputs=kept.inputs, reused=True)
        job.groups, job.degenerate_groups = kept.groups
        self.scorer.count_groups(*kept.groups)
        return job

    def _keep(self, shards: ShardWriter, part: _Part) -> None:
        with self.scorer.watch.span("store"):
            scores, rollouts = part.tables()
            shards.write_partial(
                part.k, scores, rollouts, tally=part.tally(), rows=part.rows()
            )
        part.kept = part.whole
        self.written = time.monotonic()

    def _keep_after(self, shards: ShardWriter, part: _Part, error: BaseException) -> None:
        """The run ends with ``error``: what it has scored of its shard stays."""
        if part.whole == part.kept or shards.is_whole(part.k):
            return
        try:
            self._keep(shards, part)
        except RapError as failed:  # the disk may be what ends the run
            error.add_note(f"the shard in progress could not be kept: {failed}")

    def _count(
        self, rows: Iterable[Mapping[str, Any]], tally: Mapping[str, int] | None = None
    ) -> None:
        """Take note of rows; ``tally`` only if this run did not score them itself."""
        if tally:
            self.scorer.count_groups(tally["groups"], tally["degenerate"])
        self.judge.count(rows)


class Bar:
    """A tqdm bar over the samples, with rate, time left and the number quarantined.
    ``after``: is called after every batch."""

    def __init__(
        self,
        total: int,
        done: int,
        progress: bool | str,
        after: Callable[[], None] | None = None,
    ) -> None:
        from tqdm import tqdm

        self._after = after

        watched = sys.stderr.isatty() or "ipykernel" in sys.modules
        self._bar = tqdm(
            total=total,
            initial=done,
            disable=not (progress == "force" or (progress and watched)),
            desc="scoring",
            unit=" samples",
            dynamic_ncols=True,
        )

    def advance(self, n: int, bad: int) -> None:
        self._bar.update(n)
        if bad:
            self._bar.set_postfix_str(f"{bad} quarantined", refresh=False)
        if self._after is not None:
            self._after()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()
