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
from ..errors import RapError, missing
from ..samples.sample import Sample
from ..samples.sampleset import SampleSet
from ..scores.judge import COLUMNS, MIN_SEEN, Judge
from ..scores.previous import Kept
from ..scores.shards import Partial
from ..scores.store import ScoreStore
from ..scores.table import ROLLOUT_SCHEMA, table_from_rows
from ..scores.writer import ShardWriter
from .evidence import EVIDENCE
from .jobs import Batch, Job, ahead
from .ordering import longest_first
from .plan import Plan
from .processes import Preparation
from .profiling import count_asked
from .reuse import group_of, inputs_sha256
from .rounding import rounded
from .scorer import Scorer
from .tracking import Report

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
    """A shard in progress. ``done``: {sample: its job} of whole batches, ``kept`` of which
    lie in the store; ``todo``: the samples that are to be scored, in that order;
    ``earlier``: what other runs have tallied."""

    k: int
    done: dict[int, Job] = field(default_factory=dict)
    kept: int = 0
    todo: list[int] = field(default_factory=list)
    earlier: Counter[str] = field(default_factory=Counter)

    @property
    def jobs(self) -> list[Job]:
        """Those of ``done``, in data-set order."""
        return [self.done[i] for i in sorted(self.done)]

    def tables(self) -> tuple[pa.Table, pa.Table | None]:
        """(scores, rollouts or None) of the whole batches."""
        done = self.jobs
        rollouts = [rollout for job in done for rollout in job.rollouts]
        return (
            table_from_rows([rounded(job.row) for job in done]),
            table_from_rows(rollouts, ROLLOUT_SCHEMA) if rollouts else None,
        )

    def tally(self) -> dict[str, int]:
        """Groups of completions sampled, and how many of them were degenerate."""
        done = self.jobs
        return {
            "groups": self.earlier["groups"] + sum(j.groups for j in done),
            "degenerate": self.earlier["degenerate"]
            + sum(j.degenerate_groups for j in done),
        }

    def rows(self) -> dict[str, list[Any]]:
        """What ``ScoreStore.write`` is to note of each row, where there is something."""
        done = self.jobs
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
    shard before its samples are read, and raises if they are not what they were. ``name``:
    of the pass, in the bar and in the log."""

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
        name: str = "scoring",
    ) -> None:
        self.name = name
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
        self.report: Report | None = None
        self.written = time.monotonic()

    def fill(self, shards: ScoreStore, progress: bool | str) -> None:
        """Score what is missing, in order, and judge the whole."""
        for k in shards.finished():
            table = shards.read_shard(k).select(list(COLUMNS))
            self._count(table.to_pylist(), shards.tally(k))
        try:
            with Bar(len(self.samples), self.judge.seen, progress, name=self.name) as bar:
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
            bar.advance(len(part.done), self.judge.bad.total())
            parts.append(part)
            waiting.extend(part.todo)
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
        part, kept = _Part(k), shards.partial(k)
        if kept is not None:
            self._take(part, kept)
        rest = (i for i in shards.shard_range(k) if i not in part.done)
        new = [i for i in rest if not shards.reusable(i) and not self._settled(i)]
        part.todo = longest_first(self.samples, self.driver, new)
        return part

    def _take(self, part: _Part, kept: Partial) -> None:
        """What an earlier run has kept of a shard."""
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
            part.done[row["index"]] = job
        part.kept = len(part.done)
        self._count((job.row for job in part.jobs), kept.tally)

    def _shard(
        self, shards: ShardWriter, part: _Part, jobs: Iterator[Job], bar: Bar
    ) -> None:
        """Score what a shard still lacks, batch by batch, and write it."""
        self._add(part, self._known(shards, part), bar)
        new: list[Job] = []
        batch = Batch()
        for number, i in enumerate(part.todo, start=1):
            job = self._next(jobs)
            assert job.row["index"] == i  # they are prepared in this order
            new.append(job)
            if job.alive:
                batch.add(job)
            last = number == len(part.todo)
            if batch and (self.scorer.is_full(batch) or last):
                score_batch(self.scorer, batch.jobs)
                batch = Batch()
            if batch:
                continue
            self._add(part, new, bar)
            new = []
            if not last:
                self.judge.stop(final=False)
                if time.monotonic() - self.written >= PARTIAL_SECONDS:
                    self._keep(shards, part)
        with self.scorer.watch.span("store"):
            scores, rollouts = part.tables()
            shards.write(part.k, scores, rollouts, tally=part.tally(), rows=part.rows())
        if self.report is not None:
            self.report(scores, self.judge.seen, self.judge.bad.total())
        self.written = time.monotonic()

    def _known(self, shards: ShardWriter, part: _Part) -> list[Job]:
        """The samples of a shard that need no model: scored in a round before, or for an
        older data set."""
        wanted, todo = shards.shard_range(part.k), set(part.todo)
        rest = [i for i in wanted if i not in part.done and i not in todo]
        kept = shards.reused(i for i in rest if not self._settled(i))
        begun = {} if self.plan is None else self.plan.begun(wanted)
        return [
            self._again(i, kept[i]) if i in kept else self._before(i, begun[i])
            for i in rest
        ]

    def _add(self, part: _Part, new: list[Job], bar: Bar) -> None:
        """These are scored."""
        part.done |= {job.row["index"]: job for job in new}
        self._count(job.row for job in new)
        self.scorer.watch.count("samples", sum(not job.reused for job in new))
        bar.advance(len(new), self.judge.bad.total())

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
        part.kept = len(part.done)
        self.written = time.monotonic()

    def _keep_after(self, shards: ShardWriter, part: _Part, error: BaseException) -> None:
        """The run ends with ``error``: what it has scored of its shard stays."""
        if len(part.done) == part.kept or shards.is_whole(part.k):
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
    """How far scoring is, on stderr: a tqdm bar over the samples where someone watches (a
    terminal, a notebook), else a line every ``LOGGED`` seconds, for the log of a job; with
    rate, time left and the number quarantined. ``progress``: False is neither, ``"force"``
    the bar. ``after``: is called after every batch; ``name``: what goes on."""

    def __init__(
        self,
        total: int,
        done: int,
        progress: bool | str,
        after: Callable[[], None] | None = None,
        *,
        name: str = "scoring",
    ) -> None:
        self._after = after
        watched = sys.stderr.isatty() or "ipykernel" in sys.modules
        shown = progress == "force" or (progress and watched)
        self._bar = _tqdm()(
            total=total,
            initial=done,
            disable=not shown,
            desc=name,
            unit=" samples",
            dynamic_ncols=True,
        )
        self._log = _Log(name, total, done) if progress and not shown else None

    def advance(self, n: int, bad: int) -> None:
        self._bar.update(n)
        if bad:
            self._bar.set_postfix_str(f"{bad} quarantined", refresh=False)
        if self._log is not None:
            self._log.advance(n, bad)
        if self._after is not None:
            self._after()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()


def _tqdm() -> Any:
    """The notebook's widget where it can be shown, else the bar of text."""
    if "ipykernel" in sys.modules and not missing("ipywidgets"):
        from tqdm.notebook import tqdm as widget

        return widget
    from tqdm import tqdm

    return tqdm


LOGGED = 30.0
"""Seconds between two lines where nobody watches a bar."""


class _Log:
    """The line every ``LOGGED`` seconds."""

    def __init__(self, name: str, total: int, done: int) -> None:
        self.name = name
        self.total, self.first, self.done, self.bad = total, done, done, 0
        self.start = self.said = time.monotonic()

    def advance(self, n: int, bad: int) -> None:
        self.done, self.bad = self.done + n, bad
        now = time.monotonic()
        if now - self.said >= LOGGED:
            self.said = now
            print(self.line(now - self.start), file=sys.stderr, flush=True)

    def line(self, seconds: float) -> str:
        """After ``seconds`` of this run."""
        rate = (self.done - self.first) / max(seconds, 1e-9)
        text = f"{self.name}: {self.done:,} of {self.total:,} samples, {rate:.3g} a second"
        if rate and self.done < self.total:
            left = round((self.total - self.done) / rate)
            text += f", {left // 3600}:{left // 60 % 60:02}:{left % 60:02} left"
        return text + (f", {self.bad} quarantined" if self.bad else "")
