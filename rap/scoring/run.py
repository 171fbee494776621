"""Samples -> score table: drives the model, survives bad samples, resumes.

    samples --> workers: decode, hash, preprocess --> batches --> evidence --> shards
                (threads, bounded, in order)          (model)    (kernels)    (store)

A sample that cannot be scored becomes a quarantined row with a stage, a code and a
message, and the run goes on; only a share above ``max_bad_fraction`` stops it.

What is durable. A shard is written when it is whole. Of the shard in progress the batches
so far are kept whenever the run ends in order (Ctrl-C, an error, too many bad samples) and
every `PARTIAL_SECONDS` besides, so that kill -9 loses half a minute at most.

What is guaranteed. Shards are fixed ranges of rows and batches never span them, so an
interrupted run redoes the same batches: on one machine, with one batch size, the table
comes out byte for byte (`table.VOLATILE_COLUMNS` aside) whatever the number of workers,
kills and restarts. Another batch size pads a sample differently, and a matrix product of
another shape rounds differently; scores are therefore stored with 12 significant bits
(`scoring.evidence.significant`), far coarser than that noise in float32 and far finer than
the scores' own uncertainty. What remains is a value within the noise of a rounding border
(one in some thousand: measured 1 of 12,000): it moves by one step, at most 4.9e-4 of
itself, and the selection moves only if the sample at the cut is among them. In bfloat16
and float16 the noise is as large as the rounding step: compare runs of one batch size
there. A batch halved for lack of memory counts as one of another size.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import math
import os
import sys
import tempfile
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self, TypedDict, Unpack

import pyarrow as pa
import pyarrow.compute as pc

from ..config import (
    TRAIN_GROUP,
    ChooseConfig,
    ChooseOptions,
    ScoreConfig,
    ScoreOptions,
    require_judge,
    require_threshold,
)
from ..environment import version
from ..errors import RapError, RapInputError, RapModelError
from ..model.rollouts import IMAGE_ARM
from ..rewards.checker import Checker, make_checker
from ..samples.images import read_bytes
from ..samples.sample import BadSample, Sample
from ..samples.sampleset import SampleSet, open_samples
from ..scores.match import describe
from ..scores.previous import Kept
from ..scores.scores import Scores, as_fraction
from ..scores.store import ScoreStore
from ..scores.table import (
    QUARANTINED,
    ROLLOUT_SCHEMA,
    SCHEMA_VERSION,
    SCORED,
    table_from_rows,
)
from ..selection.rules import choose as choose_from
from ..selection.selection import Selection
from ..settings import require_known, resolve
from .evidence import Scorer, rounded
from .jobs import SOLUTION_COLUMNS, Job, ahead, clean, prepare_job
from .reuse import inputs_sha256, reuse_of

if TYPE_CHECKING:
    from ..model.driver import ModelDriver

log = logging.getLogger("rap")

MIN_SEEN = 20
"""A run is not given up for its bad samples before this many were seen."""

PARTIAL_SECONDS = 30.0
"""A shard that takes longer is kept so often while it is in progress."""


class RunOptions(TypedDict, total=False):
    """`score`'s keyword arguments besides `ScoreConfig`'s fields, for type checkers."""

    store: str | os.PathLike[str] | None
    reward: Callable[..., Sequence[float | None]] | None
    columns: dict[str, str] | None
    root: str | os.PathLike[str] | None
    progress: bool | str
    allow_degenerate: bool
    verify_images: bool
    retry_quarantined: bool


class SelectOptions(ChooseOptions, ScoreOptions, RunOptions, total=False):
    """`select`'s keyword arguments: those of `score` and of `choose`."""


def score(
    model: Any,
    processor: Any,
    dataset: Any,
    config: ScoreConfig | None = None,
    *,
    store: str | os.PathLike[str] | None = None,
    reward: Callable[..., Sequence[float | None]] | None = None,
    columns: dict[str, str] | None = None,
    root: str | os.PathLike[str] | None = None,
    progress: bool | str = True,
    allow_degenerate: bool = False,
    verify_images: bool = True,
    retry_quarantined: bool = False,
    **overrides: Unpack[ScoreOptions],
) -> Scores:
    """Score every sample of a data set with one model: the slow step, resumable.

    Parameters
    ----------
    model, processor
        A Hugging Face ``AutoModelForImageTextToText`` and its processor.
    dataset
        What `rap.samples.open_samples` takes (a ``datasets.Dataset``, a list of dicts, a
        path), or a ``SampleSet``; ``columns`` and ``root`` go there.
    store
        Folder of the score store. A run on a folder that holds a part of the same run
        goes on; one made with another model or setting is refused. Of an older data set
        (rows added, removed, corrected, in another order) what is unchanged keeps its
        scores, and a line says how much; a data set without any such row is refused. None
        keeps the shards in a temporary folder, gone when the call returns.
    config, **overrides
        A `ScoreConfig` (None is the defaults), and single fields that replace its own: see
        ``help(rap.ScoreConfig)``.
    reward
        None checks answers with the built-in checker, else a callable with TRL's
        signature. For evidence ``rollouts`` only: the others judge no completion.
    progress
        True shows a bar where someone watches (a terminal, a notebook), ``"force"``
        always.
    allow_degenerate
        Go on although most groups of completions are identical.
    verify_images
        When a run goes on, read the images of what is scored once more and compare their
        hashes: the shard of an image that changed is scored again, with a warning.
    retry_quarantined
        Score again the shards that hold a quarantined sample, but for those whose row
        itself is bad (stage ``data``). Whole shards, so that the bytes are those of a
        fresh run.

    Returns
    -------
    Scores
        ``table`` in data-set order; ``meta["cost"]`` is the ledger (see `_ledger`).

    Raises
    ------
    RapInputError
        The data set is empty or unusable, or more than ``max_bad_fraction`` of it is bad
        (what was scored so far stays in the store).
    RapModelError
        The model cannot be driven, most of the bad samples are the model's doing, or the
        completions of most samples are identical.
    RapConfigError
        An option that is none, a value that its field does not allow, a reward function
        that nothing would call.
    RapStoreError
        The store cannot be read or written, or is locked by another run.
    """
    from ..model.driver import ModelDriver

    wall = time.perf_counter()
    config = resolve(ScoreConfig, "config", config, overrides, "rap.score")
    require_judge(config.evidence, reward)
    if isinstance(dataset, SampleSet):
        samples = dataset
    else:
        samples = open_samples(dataset, columns=columns, root=root)
    if len(samples) == 0:
        raise RapInputError("the data set is empty: there is nothing to score")
    driver = ModelDriver(model, processor, config)
    with (
        _evaluating(model),
        _checker(reward, config) as checker,
        _folder(store) as path,
    ):
        driver.check()
        more = _inputs(config, samples, reward is not None)
        fingerprint = _fingerprint(driver, config, checker, samples, more)
        data = describe(samples)
        reuse = None
        if (
            config.counterfactual != "shuffle"
        ):  # there a score depends on other samples, too
            reuse = reuse_of(
                samples,
                more,
                files=verify_images,
                retry=retry_quarantined,
                workers=config.workers,
            )
        with ScoreStore.open(
            path, fingerprint, len(samples), config.shard_size, data=data, reuse=reuse
        ) as shards:
            if retry_quarantined:
                _redo_quarantined(shards)
            if verify_images:
                _redo_changed_images(shards, samples, config)
            _put_in_groups(shards, samples)
            if reuse is not None:
                _say_what_is_reused(shards, shards.look_back(reuse))
            scorer = Scorer(driver, config, checker, allow_degenerate)
            run = _Run(samples, driver, config, scorer, more)
            run.fill(shards, progress)
            shards.clear_previous()
            table = shards.read()
            rollouts = shards.read_rollouts()
            fingerprint = shards.fingerprint
    meta: dict[str, Any] = {
        "fingerprint": fingerprint,
        "data": data,
        "cost": _ledger(table, rollouts, time.perf_counter() - wall),
        "counts": _counts(table),
    }
    return Scores(table=table, meta=meta, dataset=samples, rollouts=rollouts)


def select(
    model: Any,
    processor: Any,
    dataset: Any,
    config: ScoreConfig | None = None,
    *,
    choose: ChooseConfig | Mapping[str, Any] | None = None,
    **options: Unpack[SelectOptions],
) -> Selection:
    """`score`, then `choose`: from a data set to the samples worth training on.

        selection = rap.select(model, processor, dataset, budget=0.09, store="scores/")
        selection.dataset          # the chosen rows, all columns

    With ``store`` a run that was stopped goes on, and a run with another ``budget`` scores
    nothing again.

    Parameters
    ----------
    model, processor
        A Hugging Face ``AutoModelForImageTextToText`` and its processor.
    dataset
        A ``datasets.Dataset``, a list of dicts, a path (JSONL, Parquet, a saved data set)
        or a ``rap.samples.sampleset.SampleSet``.
    config : ScoreConfig or None
        How samples are scored; None is the defaults.
    choose : ChooseConfig, dict of its fields, or None
        How the selection is made of the scores; None is the defaults.
    **options
        Single fields that replace those of ``config`` (``evidence``, ``m1``, ``seed``, ...,
        see ``help(rap.ScoreConfig)``) or of ``choose`` (``budget``, ``rule``, ``by``, ...,
        see ``help(rap.ChooseConfig)``), and what `score` takes besides: ``store``,
        ``reward``, ``columns``, ``root``, ``progress``, ``allow_degenerate``,
        ``verify_images``, ``retry_quarantined``, see ``help(rap.score)``.

    Returns
    -------
    Selection
        ``indices``, ``table`` (all scores and a reason for each sample), ``dataset``,
        ``summary()``, ``report(path)``, ``save(folder)``, ``export(to, path)``.

    Raises
    ------
    RapConfigError
        An option that is none, or a value that its field does not allow, before the model
        runs.
    RapInputError, RapModelError, RapStoreError
        As `score` and `choose` do.
    """
    fields = {kind: {f.name for f in dataclasses.fields(kind)} for kind in _SETTINGS}
    given: dict[str, Any] = {**options}
    run_options = RunOptions.__annotations__
    known = [*run_options, *sorted(set().union(*fields.values()))]
    require_known(given, known, "rap.select has no such option")
    scoring, choosing = (
        {name: value for name, value in given.items() if name in fields[kind]}
        for kind in _SETTINGS
    )
    if isinstance(choose, Mapping):
        choose = ChooseConfig(**choose)
    chosen = resolve(ChooseConfig, "choose", choose, choosing, "rap.select")
    config = resolve(ScoreConfig, "config", config, scoring, "rap.select")
    require_threshold(chosen, config.evidence)
    rest = {name: value for name, value in given.items() if name in run_options}
    return choose_from(
        score(model, processor, dataset, config, **rest), **dataclasses.asdict(chosen)
    )


_SETTINGS = (ScoreConfig, ChooseConfig)


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Dropout off while we score. Each module's mode, and what ``generate`` leaves on it
    (Qwen-VL's ``rope_deltas``), are put back."""
    saved = [(module, dict(vars(module))) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, attributes in saved:
            for name in vars(module).keys() - attributes.keys():
                delattr(module, name)
            vars(module).update(attributes)


@contextmanager
def _folder(store: str | os.PathLike[str] | None) -> Iterator[str | os.PathLike[str]]:
    if store is not None:
        yield store
        return
    with tempfile.TemporaryDirectory(prefix="rap-") as path:
        yield path


def _checker(
    reward: Callable[..., Any] | None, config: ScoreConfig
) -> AbstractContextManager[Checker | None]:
    """Only evidence ``rollouts`` judges answers; the others need no worker process."""
    if config.evidence != "rollouts":
        return nullcontext()
    return make_checker(reward, timeout=config.checker_timeout)


def _inputs(config: ScoreConfig, samples: SampleSet, custom_reward: bool) -> Iterable[str]:
    """Columns that a score may depend on besides question, answer, choices and images: a
    user's reward function may read any, evidence ``logits`` reads a solution."""
    if custom_reward:
        return tuple(samples.column_names)
    return SOLUTION_COLUMNS if config.evidence == "logits" else ()


def _fingerprint(
    driver: ModelDriver,
    config: ScoreConfig,
    checker: Checker | None,
    samples: SampleSet,
    more: Iterable[str],
) -> dict[str, Any]:
    """All that a score depends on; a store refuses another one, naming the field, but for
    the data set's (``ScoreStore.open``). ``more``: as from ``_inputs``."""
    return {
        "model": driver.identity(),
        "config": config.fingerprint(),
        "checker": None if checker is None else checker.name,
        "dataset": samples.content_hash(more),
        "rap_version": version("rap-select") or "not installed",
        "schema_version": SCHEMA_VERSION,
    }


# ---- what is scored already ---------------------------------------------------


def _say_what_is_reused(shards: ScoreStore, count: int) -> None:
    """One line, where the store was made for an older data set."""
    if count:
        n, new = shards.n_samples, len(_to_score(shards))
        log.warning(
            "%s: the data set changed: %d of %d samples are as they were and keep their "
            "scores, %d are new or changed and are scored",
            *(shards.path, n - new, n, new),
        )


def _to_score(shards: ScoreStore) -> list[int]:
    rows = [i for k in shards.missing() for i in shards.shard_range(k)]
    kept = {}
    for k in shards.parts():
        part = shards.partial(k)
        kept[k] = 0 if part is None else part.scores.num_rows
    begun = {i for k, count in kept.items() for i in shards.shard_range(k)[:count]}
    return [i for i in rows if i not in begun and not shards.reusable(i)]


def _put_in_groups(shards: ScoreStore, samples: SampleSet) -> None:
    """The group decides no score: it follows the data set as it is now."""
    for k in shards.finished():
        table = shards.read_shard(k)
        groups = [_group(samples, i) for i in table["index"].to_pylist()]
        if groups != table["source"].to_pylist():
            at = table.schema.get_field_index("source")
            shards.replace(k, table.set_column(at, "source", pa.array(groups, pa.string())))


def _group(samples: SampleSet, i: int) -> str | None:
    item = samples[i]
    return item.source if isinstance(item, Sample) else None


# ---- what is scored again -----------------------------------------------------


def _redo_quarantined(shards: ScoreStore) -> None:
    for k in shards.finished():
        table = shards.read_shard(k).select(["status", "stage"]).to_pylist()
        if any(r["status"] == QUARANTINED and r["stage"] != "data" for r in table):
            shards.redo(k)


def _redo_changed_images(
    shards: ScoreStore, samples: SampleSet, config: ScoreConfig
) -> None:
    """Images may change between two runs: rows made from others are not kept.

    Under ``shuffle`` an image is also its partner's counterfactual, in whatever shard:
    there one that changed has everything scored again.
    """

    def changed(row: Mapping[str, Any]) -> str | None:
        sample = samples[row["index"]]
        if row["image_sha256"] is None:
            return None
        if not isinstance(sample, Sample):  # its path now leads out of the root, say
            return row["id"]
        try:
            hashes = [hashlib.sha256(read_bytes(ref)).hexdigest() for ref in sample.images]
        except BadSample:
            hashes = []
        return None if ",".join(hashes) == row["image_sha256"] else row["id"]

    names = ["id", "index", "image_sha256"]
    found: list[str] = []
    there = sorted({*shards.finished(), *shards.parts()})
    redone = set()
    for k in there:
        part = shards.partial(k)
        table = shards.read_shard(k) if part is None else part.scores
        rows = table.select(names).to_pylist()
        stale = [id for id in ahead(changed, rows, workers=config.workers, depth=64) if id]
        if stale:
            redone.add(k)
            found += stale
    for k in there if found and config.counterfactual == "shuffle" else sorted(redone):
        shards.redo(k)
    if found:
        warnings.warn(
            f"the images of {len(found)} samples changed since they were scored, "
            f"{found[0]!r} among them: what was made from them is scored again",
            stacklevel=3,
        )


# ---- the run ----------------------------------------------------------------


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
        """Groups of completions drawn, and how many of them were degenerate."""
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


class _Run:
    """One call of `score`: its shards, and what was bad so far."""

    def __init__(
        self,
        samples: SampleSet,
        driver: ModelDriver,
        config: ScoreConfig,
        scorer: Scorer,
        more: Iterable[str] = (),
    ) -> None:
        self.samples = samples
        self.more = tuple(more)
        self.driver = driver
        self.config = config
        self.scorer = scorer
        self.bad: Counter[str] = Counter()  # "stage/code"
        self.example = ""
        self.seen = 0
        self.written = time.monotonic()

    def fill(self, shards: ScoreStore, progress: bool | str) -> None:
        """Score what is missing, in order; a shard is written as soon as it is whole."""
        for k in shards.finished():
            table = shards.read_shard(k).select(
                ["id", "status", "stage", "code", "message"]
            )
            self._count(table.to_pylist(), shards.tally(k))
        parts = deque(self._begin(shards, k) for k in shards.missing())
        todo = [
            i
            for p in parts
            for i in shards.shard_range(p.k)[p.whole :]
            if not shards.reusable(i)
        ]
        jobs = ahead(
            lambda i: prepare_job(self.samples, self.driver, self.config, i),
            todo,
            workers=self.config.workers,
            depth=self.config.prefetch * self.config.batch_size,
        )
        with _Bar(len(self.samples), self.seen, progress) as bar:
            try:
                while parts:
                    self._shard(shards, parts[0], jobs, bar)
                    parts.popleft()
                    self._stop_if_bad(final=False)
            except BaseException as error:
                if parts:
                    self._keep_after(shards, parts[0], error)
                raise
            finally:
                jobs.close()
        self.scorer.check_degenerate(final=True)
        self._stop_if_bad(final=True)

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
            part.earlier.subtract(groups=drawn, degenerate=degenerate)  # the jobs have it
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
        kept = shards.reused(rest)
        for i in rest:
            job = self._again(i, kept.pop(i)) if i in kept else self._new(next(jobs))
            part.jobs.append(job)
            if job.alive and not job.reused:
                batch.append(job)
            last = len(part.jobs) == part.size
            if len(batch) == self.config.batch_size or (batch and last):
                self.scorer.score_batch(batch)
                batch = []
            if batch:
                continue
            new = part.jobs[part.whole :]
            part.whole = len(part.jobs)
            self._count(job.row for job in new)
            bar.advance(len(new), self.bad.total())
            if not last:
                self._stop_if_bad(final=False)
                if time.monotonic() - self.written >= PARTIAL_SECONDS:
                    self._keep(shards, part)
        scores, rollouts = part.tables()
        shards.write(part.k, scores, rollouts, tally=part.tally(), rows=part.rows())
        self.written = time.monotonic()

    def _new(self, job: Job) -> Job:
        """A job that is to be scored, with what else it is scored from."""
        if self.more and job.sample is not None:
            job.inputs = inputs_sha256(job.sample, self.more)
        return job

    def _again(self, i: int, kept: Kept) -> Job:
        """Sample ``i``, scored before for an older data set, at its place in this one."""
        row = kept.row | {"index": i, "source": _group(self.samples, i)}
        rollouts = [rollout | {"index": i} for rollout in kept.rollouts]
        job = Job(row, rollouts=rollouts, inputs=kept.inputs, reused=True)
        job.groups, job.degenerate_groups = kept.groups
        self.scorer.count_groups(*kept.groups)
        return job

    def _keep(self, shards: ScoreStore, part: _Part) -> None:
        scores, rollouts = part.tables()
        shards.write_partial(part.k, scores, rollouts, tally=part.tally(), rows=part.rows())
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


# ---- the ledger -------------------------------------------------------------


def _counts(table: pa.Table) -> dict[str, int]:
    """Rows by status, quarantined ones by code."""
    statuses, codes = table["status"].to_pylist(), table["code"].to_pylist()
    names = (
        status if status == SCORED else f"quarantined_{code}"
        for status, code in zip(statuses, codes, strict=True)
    )
    return dict(sorted(Counter(names).items()))


def _ledger(
    table: pa.Table, rollouts: pa.Table | None, wall_seconds: float
) -> dict[str, Any]:
    """What the scores cost, and what training on everything would draw.

    ``forwards``: teacher-forced forwards, one a sample and arm; ``rollouts`` and
    ``generated_tokens``: completions and sampled tokens, end tokens counted;
    ``seconds``: the samples' shares of their batches' time, over all runs of the store;
    ``wall_seconds``: this call, without loading the model. ``train_all``: the completions
    of one epoch with groups of `TRAIN_GROUP` over every sample, and their tokens if as long
    as this run's mean completion with the image (None if it drew none).
    """
    total = {
        name: pc.sum(table[name]).as_py() or 0
        for name in ("forwards", "generated_tokens", "seconds")
    }
    n = table.num_rows
    n_rollouts, mean = 0, None
    if rollouts is not None and rollouts.num_rows:
        n_rollouts = rollouts.num_rows
        with_image = rollouts.filter(pc.equal(rollouts["arm"], IMAGE_ARM))
        mean = pc.mean(pc.list_value_length(with_image["token_ids"])).as_py()
    everything = TRAIN_GROUP * n
    return {
        "samples": n,
        "rollouts": n_rollouts,
        **total,
        "wall_seconds": wall_seconds,
        "train_all": {
            "group": TRAIN_GROUP,
            "epochs": 1,
            "rollouts": everything,
            "tokens": None if mean is None else round(everything * mean),
        },
    }


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
