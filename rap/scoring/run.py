"""Samples -> score table: runs the model, quarantines bad samples, resumes.

    samples --> workers: decode, hash, preprocess --> batches --> evidence --> shards
                (threads, bounded, in order)          (model)    (kernels)    (store)

A sample that cannot be scored becomes a quarantined row with a stage, a code and a
message, and the run goes on; only a share above ``max_bad_fraction`` stops it.

What is durable. A shard is written when it is whole. Of the shard in progress the batches
so far are kept whenever the run ends in order (Ctrl-C, an error, too many bad samples) and
every `filling.PARTIAL_SECONDS` besides, so that kill -9 loses half a minute at most.

What is guaranteed. Shards are fixed ranges of rows and batches never span them, so an
interrupted run redoes the same batches: on one machine, with one batch size, the table
comes out byte for byte (`table.VOLATILE_COLUMNS` aside) whatever the number of workers,
kills and restarts. Another batch size pads a sample differently, and a matrix product of
another shape rounds differently; scores are therefore stored with 12 significant bits
(`scoring.rounding.significant`), far coarser than that noise in float32 and far finer than
the scores' own uncertainty. What remains is a value within the noise of a rounding border
(one in some thousand: measured 1 of 12,000): it moves by one step, at most 4.9e-4 of
itself, and the selection moves only if the sample at the cut is among them. In bfloat16
and float16 the noise is as large as the rounding step: compare runs of one batch size
there. A batch halved for lack of memory counts as one of another size.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from ..config import (
    ChooseConfig,
    ChooseOptions,
    ScoreConfig,
    ScoreOptions,
    require_judge,
)
from ..engines import Engine, EngineConfig, EngineOptions, require_engine
from ..environment import version
from ..errors import RapInputError
from ..model.counterfactual import WITH_PARTNER
from ..model.loading import opened
from ..rewards.checker import Checker, make_checker
from ..samples.sampleset import SampleSet, open_samples
from ..scores.completions import Completions, HeldCompletions
from ..scores.match import describe
from ..scores.profile import read_profile
from ..scores.scores import Scores
from ..scores.store import Reuse, ScoreStore
from ..scores.table import SCHEMA_VERSION
from ..selection.choosing import choose as choose_from
from ..selection.rules import check as check_rule
from ..selection.selection import Selection
from ..settings import require_known, resolve
from ..stopwatch import Stopwatch
from .again import redo_changed_images, redo_quarantined
from .engine import provenance, resolve_both, running
from .evidence import EVIDENCE
from .filling import Run
from .ledger import count_rows, ledger
from .plan import FOLDER, Plan, make_plan, redo_changed
from .profiling import profiled, stopwatch
from .reuse import look_back, put_in_groups, reuse_of
from .scorer import Scorer

if TYPE_CHECKING:
    from ..model.driver import ModelDriver


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
    profile: bool


class ScoringOptions(ScoreOptions, EngineOptions, total=False):
    """`score`'s fields of settings: `ScoreConfig`'s and `EngineConfig`'s."""


class SelectOptions(ChooseOptions, ScoringOptions, RunOptions, total=False):
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
    profile: bool = False,
    **overrides: Unpack[ScoringOptions],
) -> Scores:
    """Score every sample of a data set with one model: the slow step, resumable.

    Parameters
    ----------
    model, processor
        A Hugging Face ``AutoModelForImageTextToText`` and its processor; or a folder or
        hub name, with ``processor=None`` for the one that lies there. ``None, None``
        scores evidence ``rollouts`` with a server alone: prompts are then not compared
        with a local processor's, and ACE is skipped, which needs a local forward.
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
        ``help(rap.ScoreConfig)``. Besides those of `rap.engines.EngineConfig`: what
        samples completions, e.g. ``engine="openai", base_url="http://node7:8000/v1",
        concurrency=64``. A server is probed before the first sample (one line on stderr),
        and has to see the local processor's prompts; it goes into the fingerprint.
    reward
        None checks answers with the built-in checker, else a callable with TRL's
        signature. For evidence ``rollouts`` and ``cascade`` only: the others grade no
        completion.
    progress
        True shows a bar where someone watches (a terminal, a notebook), ``"force"``
        always.
    allow_degenerate
        Go on although most groups of completions are identical, or the model gives the
        reference answers no probability.
    verify_images
        When a run goes on, read the images of what is scored once more and compare their
        hashes: the shard of an image that changed is scored again, with a warning.
    retry_quarantined
        Score again the shards that hold a quarantined sample, but for those whose row
        itself is bad (stage ``data``). Whole shards, so that the bytes are those of a
        fresh run.
    profile
        Measure where the time goes (a CUDA device is waited for at every stage) and count
        the work: ``meta["profile"]``, a `scores.profile.Profile` as plain values. It is
        kept in the store as the sum of its profiled runs, and the report shows it. No
        score depends on it.

    Returns
    -------
    Scores
        ``table`` in data-set order; ``meta["cost"]`` is the ledger (see `ledger.ledger`).

    Raises
    ------
    RapInputError
        The data set is empty or unusable, more than ``max_bad_fraction`` of it is bad, or
        the model gives the reference answers no probability (median a token below 1e-8);
        what was scored so far stays in the store.
    RapModelError
        The model is not supported, it caused most of the bad samples, or the
        completions of most samples are identical.
    RapConfigError
        An option that is none, a value that its field does not allow, a reward function
        that nothing would call.
    RapStoreError
        The store cannot be read or written, or is locked by another run.
    """
    from ..model.driver import ModelDriver

    wall = time.perf_counter()
    config, chosen = resolve_both(config, overrides, "rap.score")
    require_judge(config.evidence, reward)
    if isinstance(dataset, SampleSet):
        samples = dataset
    else:
        samples = open_samples(dataset, columns=columns, root=root)
    if len(samples) == 0:
        raise RapInputError("the data set is empty: there is nothing to score")
    require_engine(chosen, config.evidence, model is not None)
    driver = None
    if model is not None:
        model, processor = opened(model, processor)
        driver = ModelDriver(model, processor, config)
    watch = stopwatch(driver, profile)
    with (
        _evaluating(model),
        _checker(reward, config, watch) as checker,
        _folder(store) as path,
        running(chosen, driver, config) as engine,
    ):
        call = _Call(
            samples,
            driver,
            engine,
            watch,
            describe(samples),
            allow_degenerate=allow_degenerate,
            verify_images=verify_images,
            retry_quarantined=retry_quarantined,
            progress=progress,
        )
        made_by = provenance(chosen, engine, driver)
        more = _inputs(config, samples, reward is not None)
        last = _Pass(config, checker, more, made_by)
        with call.open(path, last) as shards:
            with profiled(driver, watch, shards.path):
                plan = _first_pass(call, Path(path), last)
                call.fill(shards, last, plan)
                with watch.span("store"):
                    table = shards.read()
                    drawn = shards.drawn()
                    rollouts: Completions | None = shards.completions()
                    if store is None and rollouts is not None:  # the folder goes now
                        rollouts = HeldCompletions(rollouts.read())
            fingerprint = shards.fingerprint
            measured = read_profile(shards.path)
    first = None if plan is None else plan.rows
    meta: dict[str, Any] = {
        "fingerprint": fingerprint,
        "data": call.data,
        "cost": ledger(table, drawn, time.perf_counter() - wall, first),
        "counts": count_rows(table),
    }
    if measured is not None:
        meta["profile"] = measured.as_json()
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
        see ``help(rap.ScoreConfig)``), of the engine (``engine``, ``base_url``, ...) or of
        ``choose`` (``budget``, ``rule``, ``by``, ...,
        see ``help(rap.ChooseConfig)``), and what `score` takes besides: ``store``,
        ``reward``, ``columns``, ``root``, ``progress``, ``allow_degenerate``,
        ``verify_images``, ``retry_quarantined``, ``profile``, see ``help(rap.score)``.

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
    scoring, choosing, _ = (
        {name: value for name, value in given.items() if name in fields[kind]}
        for kind in _SETTINGS
    )
    if isinstance(choose, Mapping):
        choose = ChooseConfig(**choose)
    chosen = resolve(ChooseConfig, "choose", choose, choosing, "rap.select")
    config = resolve(ScoreConfig, "config", config, scoring, "rap.select")
    check_rule(chosen, config.evidence)
    theirs = [*run_options, *fields[EngineConfig]]
    rest = {name: value for name, value in given.items() if name in theirs}
    return choose_from(score(model, processor, dataset, config, **rest), chosen)


_SETTINGS = (ScoreConfig, ChooseConfig, EngineConfig)


@dataclasses.dataclass(frozen=True, slots=True)
class _Pass:
    """What one pass over the pool is scored by. ``more``: as from ``_inputs``; ``made_by``:
    the engine of its completions, as from ``provenance``."""

    config: ScoreConfig
    checker: Checker | None
    more: Collection[str] = ()
    made_by: Mapping[str, object] | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class _Call:
    """What the passes of one call of `score` share; its arguments of the same names."""

    samples: SampleSet
    driver: ModelDriver | None
    engine: Engine
    watch: Stopwatch
    data: Mapping[str, Any]
    allow_degenerate: bool
    verify_images: bool
    retry_quarantined: bool
    progress: bool | str

    def open(self, path: str | os.PathLike[str], by: _Pass) -> ScoreStore:
        """The store of a pass, to be written."""
        with self.watch.span("store"):
            return ScoreStore.open(
                path,
                _fingerprint(self.driver, by, self.samples),
                len(self.samples),
                by.config.shard_size,
                data=self.data,
                reuse=self._reuse(by, None),
            )

    def fill(self, shards: ScoreStore, by: _Pass, plan: Plan | None) -> None:
        """Score what the store lacks."""
        with self.watch.span("store"):
            if self.retry_quarantined:
                redo_quarantined(shards)
            if self.verify_images:
                redo_changed_images(shards, self.samples, by.config)
            if plan is not None:
                redo_changed(shards, plan)
            put_in_groups(shards, self.samples)
            reuse = self._reuse(by, plan)
            if reuse is not None:
                look_back(shards, reuse, None if plan is None else plan.settled)
        scorer = Scorer(
            self.driver,
            by.config,
            by.checker,
            self.allow_degenerate,
            self.engine,
            local=by.made_by is None,
            watch=self.watch,
        )
        run = Run(self.samples, self.driver, by.config, scorer, by.more, plan)
        run.fill(shards, self.progress)
        with self.watch.span("store"):
            shards.clear_previous()

    def _reuse(self, by: _Pass, plan: Plan | None) -> Reuse | None:
        if by.config.counterfactual in WITH_PARTNER:
            return None
        return reuse_of(
            self.samples,
            by.more,
            files=self.verify_images,
            retry=self.retry_quarantined,
            workers=by.config.workers,
            accepts=None if plan is None else plan.accepts,
        )


def _first_pass(call: _Call, path: Path, last: _Pass) -> Plan | None:
    """Score the whole pool by the stage that comes first, if any does, into a store of its
    own; what follows from it."""
    if not EVIDENCE[last.config.evidence].staged:
        return None
    with call.open(path / FOLDER, last) as shards:
        call.fill(shards, last, None)
        call.watch.counts.pop("samples", None)  # the pass to come counts them
        rows, pilot = shards.read(), shards.completions()
        return make_plan(rows, None if pilot is None else pilot.read(), last.config)


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Dropout off while we score. Each module's mode, and what ``generate`` leaves on it
    (Qwen-VL's ``rope_deltas``), are put back."""
    if model is None:
        yield
        return
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


@contextmanager
def _checker(
    reward: Callable[..., Any] | None, config: ScoreConfig, watch: Stopwatch
) -> Iterator[Checker | None]:
    """The worker process that grades, if the evidence has any completion graded."""
    if not EVIDENCE[config.evidence].reading.graded:
        yield None
        return
    with watch.span("checking"):
        made = make_checker(reward, timeout=config.checker_timeout)
    with made as checker:
        yield checker


def _inputs(config: ScoreConfig, samples: SampleSet, custom: bool) -> Collection[str]:
    """Columns that a score may depend on besides question, answer, choices and images: a
    user's reward function may read any."""
    return samples.column_names if custom else EVIDENCE[config.evidence].data_columns


def _fingerprint(
    driver: ModelDriver | None, by: _Pass, samples: SampleSet
) -> dict[str, Any]:
    """All that a score depends on; a store refuses another one, naming the field, but for
    the data set's (``ScoreStore.open``)."""
    made_by = {} if by.made_by is None else {"engine": by.made_by}
    return {
        "model": None if driver is None else driver.identity(),
        "config": by.config.fingerprint(),
        "checker": None if by.checker is None else by.checker.name,
        "dataset": samples.content_hash(by.more),
        "rap_version": version("rap-select") or "not installed",
        "schema_version": SCHEMA_VERSION,
        **made_by,
    }
