"""The loop of a run: batches into shards, until none is missing or too much is bad."""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import pyarrow as pa

from ..config import DEFAULT_BATCH, ScoreConfig
from ..errors import RapError, RapInputError, RapModelError
from ..samples.sample import Sample
from ..samples.sampleset import SampleSet
from ..scores.columns import as_fraction
from ..scores.previous import Kept
from ..scores.store import ScoreStore
from ..scores.table import QUARANTINED, ROLLOUT_SCHEMA, table_from_rows
from .evidence import EVIDENCE
from .jobs import COST, Job, ahead, clean
from .plan import Plan
from .prepare import prepare_job
from .profiling import count_asked
from .reuse import group_of, inputs_sha256
from .rounding import rounded
from .scorer import Scorer

if TYPE_CHECKING:
    from ..model.driver import ModelDriver

MIN_SEEN = 20
"""A run is not given up before this many samples were seen."""

FAINT = 1e-8
"""A median p(answer) a token, its geometric mean, below this stops a run: no model that
writes answers in the reference's form is so sure of another."""

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
    score may depend on besides what a sample is. ``plan``: of a second pass, what the first
    one settled."""

    def __init__(
        self,
        samples: SampleSet,
        driver: ModelDriver | None,
        config: ScoreConfig,
        scorer: Scorer,
        more: Collection[str] = (),
        plan: Plan | None = None,
    ) -> None:
        self.samples = samples
        self.more = more
        self.plan = plan
        self.driver = driver
        self.config = config
        self.scorer = scorer
        self.bad: Counter[str] = Counter()  # "stage/code"
        self.example = ""
        self.seen = 0
        self.logs: list[float] = []  # logp_mean1 of the samples scored so far
        self.next_look = MIN_SEEN
        self.written = time.monotonic()

    def fill(self, shards: ScoreStore, progress: bool | str) -> None:
        """Score what is missing, in order; a shard is written as soon as it is whole."""
        for k in shards.finished():
            table = shards.read_shard(k).select(
                ["id", "status", "stage", "code", "message", "logp_mean1"]
            )
            self._count(table.to_pylist(), shards.tally(k))
        parts = deque(self._begin(shards, k) for k in shards.missing())
        todo = [
            i
            for p in parts
            for i in shards.shard_range(p.k)[p.whole :]
            if not shards.reusable(i) and not self._settled(i)
        ]
        batch = self.config.batch_size or DEFAULT_BATCH
        jobs = ahead(
            self._prepare,
            todo,
            workers=self.config.workers,
            depth=max(self.config.prefetch * batch, self.scorer.window),
        )
        with _Bar(len(self.samples), self.seen, progress) as bar:
            try:
                while parts:
                    self._shard(shards, parts[0], jobs, bar)
                    parts.popleft()
                    self._stop_early(final=False)
            except BaseException as error:
                if parts:
                    self._keep_after(shards, parts[0], error)
                raise
            finally:
                jobs.close()
        self.scorer.check_degenerate(final=True)
        self._stop_early(final=True)

    def _prepare(self, i: int) -> Job:
        """``prepare_job`` of sample ``i``, in whichever thread."""
        with self.scorer.watch.span("prepare"):
            asked = not self.scorer.engine_is_local
            return prepare_job(self.samples, self.driver, self.config, i, asked=asked)

    def _next(self, jobs: Iterator[Job], begun: Mapping[str, Any]) -> Job:
        """The next prepared job, waited for."""
        with self.scorer.watch.span("prepare"):
            return self._new(next(jobs), begun)

    def _begin(self, shards: ScoreStore, k: int) -> _Part:
        """Shard k with what an earlier run has kept of it."""
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
        self, shards: ScoreStore, part: _Part, jobs: Iterator[Job], bar: _Bar
    ) -> None:
        """Score what a shard still lacks, batch by batch, and write it."""
        batch: list[Job] = []
        rest = shards.shard_range(part.k)[part.whole :]
        kept = shards.reused(i for i in rest if not self._settled(i))
        begun = {} if self.plan is None else self.plan.begun(rest)
        for i in rest:
            if self._settled(i):
                job = self._first(i, begun.pop(i))
            elif i in kept:
                job = self._again(i, kept.pop(i))
            else:
                job = self._next(jobs, begun.pop(i, {}))
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
            fresh = sum(not j.reused or self._settled(j.row["index"]) for j in new)
            self.scorer.watch.count("samples", fresh)
            bar.advance(len(new), self.bad.total())
            if not last:
                self._stop_early(final=False)
                if time.monotonic() - self.written >= PARTIAL_SECONDS:
                    self._keep(shards, part)
        with self.scorer.watch.span("store"):
            scores, rollouts = part.tables()
            shards.write(part.k, scores, rollouts, tally=part.tally(), rows=part.rows())
        self.written = time.monotonic()

    def _settled(self, i: int) -> bool:
        return self.plan is not None and self.plan.settled(i)

    def _new(self, job: Job, begun: Mapping[str, Any]) -> Job:
        """A job that is to be scored, with what else it is scored from, and what the first
        pass has found."""
        if self.more and job.sample is not None:
            job.inputs = inputs_sha256(job.sample, self.more)
        if job.alive:
            job.row = dict(begun) | job.row | {k: begun[k] for k in COST if k in begun}
            if self.plan is not None:
                job.outlook = self.plan.outlook(job.row["index"])
                job.rollouts = self.plan.rollouts(job.row["index"])
        else:
            job.row |= {k: begun[k] for k in COST if k in begun}
        return job

    def _first(self, i: int, row: dict[str, Any]) -> Job:
        """Sample ``i``, on which the first pass has the last word."""
        job = Job(row | {"source": group_of(self.samples, i)}, reused=True)
        job.rollouts = [] if self.plan is None else self.plan.rollouts(i)
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

    def _keep(self, shards: ScoreStore, part: _Part) -> None:
        with self.scorer.watch.span("store"):
            scores, rollouts = part.tables()
            shards.write_partial(
                part.k, scores, rollouts, tally=part.tally(), rows=part.rows()
            )
        part.kept = part.whole
        self.written = time.monotonic()

    def _keep_after(self, shards: ScoreStore, part: _Part, error: BaseException) -> None:
        """The run ends with ``error``: what it has scored of its shard stays."""
        if part.whole == part.kept or part.k in shards.finished():
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
        for row in rows:
            self.seen += 1
            if row["status"] == QUARANTINED:
                self.bad[f"{row['stage']}/{row['code']}"] += 1
                self.example = self.example or f"{row['id']!r}: {row['message']}"
            elif row.get("logp_mean1") is not None:
                self.logs.append(row["logp_mean1"])

    def _stop_early(self, *, final: bool) -> None:
        self._stop_if_bad(final=final)
        self._stop_if_faint(final=final)

    def _stop_if_faint(self, *, final: bool) -> None:
        """Give up where the model gives the reference answers no probability at all."""
        least = MIN_SEEN if final else self.next_look
        if self.scorer.allow_degenerate or len(self.logs) < least:
            return
        self.next_look = 2 * len(self.logs)  # a median of all is looked at seldom
        median = math.exp(statistics.median(self.logs))
        if median < FAINT:
            raise RapInputError(
                f"median p(answer) a token is {median:.2g} over {len(self.logs)} samples: "
                "the model gives the reference answers no probability. Is the reference "
                "the bare answer, in the form the model writes after answer_prefix? Pass "
                "allow_degenerate=True to go on"
            )

    def _stop_if_bad(self, *, final: bool) -> None:
        """Give up at the end, or as soon as the end can only be bad; always if all are.

        One bad sample never stops a run, however small the data set.
        """
        n, bad = len(self.samples), self.bad.total()
        limit = self.config.max_bad_fraction
        allowed_bad = max(1, math.floor(as_fraction("max_bad_fraction", limit) * n))
        if bad <= allowed_bad and not (final and bad == n):
            return
        if not final and self.seen < min(MIN_SEEN, n):
            return
        allowed = "none is left" if bad == n else f"more than max_bad_fraction = {limit:g}"
        counts = ", ".join(f"{code}: {c}" for code, c in self.bad.most_common())
        model = sum(c for code, c in self.bad.items() if code.startswith("model/"))
        error: type[RapError] = RapModelError if 2 * model > bad else RapInputError
        raise error(
            f"{bad} of {n} samples are bad, {allowed} ({counts}; {self.seen} seen). "
            f"First: {clean(self.example, 300)}"
        )


class _Bar:
    """A tqdm bar over the samples, with rate, time left and the number quarantined."""

    def __init__(self, total: int, done: int, progress: bool | str) -> None:
        from tqdm import tqdm

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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()
