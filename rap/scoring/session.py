"""One process that scores: its data set, model, engine and checker, opened once.

``Recipe`` is what `rap.score` was asked for, and can be sent to another process where its
parts can be (paths, not loaded models); ``Recipe.open`` makes a ``Session`` of it there.
A run has one pass over the pool; the cascade has one for each of its rounds, each with a
store of its own (``Pass``).
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import ScoreConfig, require_judge
from ..engines import Engine, EngineConfig, require_engine
from ..errors import RapInputError, RapStoreError
from ..installed import version
from ..model.counterfactual import WITH_PARTNER
from ..model.loading import opened
from ..rewards.checker import Checker, Reward, make_checker, reward_functions
from ..samples.index import open_kept
from ..samples.part import Part
from ..samples.remote import is_url
from ..samples.sampleset import SampleSet, open_samples
from ..samples.telling import no_boxes
from ..scores.judge import MIN_SEEN
from ..scores.match import describe
from ..scores.previous import Reuse
from ..scores.shardplan import INDEX, forget_plan, has_plan, shard_size_for
from ..scores.shards import read_header
from ..scores.store import ScoreStore
from ..scores.table import SCHEMA_VERSION
from ..stopwatch import Stopwatch
from .again import redo_changed_images, redo_quarantined
from .engine import provenance, running
from .evidence import EVIDENCE
from .filling import Run
from .plan import Plan, Round, folder_of, make_plan, name_of, redo_changed, rounds_of
from .profiling import stopwatch
from .reuse import look_back, put_in_groups, reuse_of
from .scorer import MIN_GROUPS, Scorer

if TYPE_CHECKING:
    from ..model.driver import ModelDriver


@dataclass(frozen=True, slots=True)
class Recipe:
    """What to score, and how: `rap.score`'s arguments of the same names.

    ``engine``: its settings. ``loading``: `load_model`'s keyword arguments, for a model
    that is a path."""

    model: Any
    processor: Any
    dataset: Any
    config: ScoreConfig
    engine: EngineConfig
    reward: Reward | None = None
    reward_weights: Sequence[float] | None = None
    columns: Mapping[str, str] | None = None
    root: Any = None
    progress: bool | str = True
    allow_degenerate: bool = False
    verify_images: bool = True
    retry_quarantined: bool = False
    profile: bool = False
    loading: Mapping[str, Any] = field(default_factory=dict)
    report_to: tuple[str, ...] = ()

    def check(self) -> None:
        """What can be refused before anything is opened. Raises ``RapConfigError``."""
        require_judge(self.config.evidence, self.reward)
        reward_functions(self.reward, self.reward_weights)

    def samples(self) -> SampleSet:
        """The data set. Raises ``RapInputError`` if there is nothing to score."""
        if isinstance(self.dataset, SampleSet):
            samples = self.dataset
        else:
            samples = open_samples(self.dataset, columns=self.columns, root=self.root)
        if len(samples) == 0:
            raise RapInputError("the data set is empty: there is nothing to score")
        if self.reward is None and samples.answer_forms.are_boxes:
            raise RapInputError(no_boxes(samples))
        return samples

    @contextmanager
    def open(self, store: Path, *, shared: bool = False) -> Iterator[Session]:
        """Everything that scores into ``store`` in this process; the store itself is not
        opened. ``shared``: with others, so that the data set is as it was planned
        (``kept_samples``), its rows not looked at. Raises what `rap.score` does."""
        from ..model.driver import ModelDriver

        kept = (
            kept_samples(store, self.dataset, self.columns, self.root) if shared else None
        )
        samples = self.samples() if kept is None else kept
        require_engine(self.engine, self.config.evidence, self.model is not None)
        size = self.config.shard_size or _shard_size(store, len(samples))
        recipe = dataclasses.replace(
            self, config=dataclasses.replace(self.config, shard_size=size)
        )
        model, driver = self.model, None
        if model is not None:
            model, processor = opened(model, self.processor, **self.loading)
            driver = ModelDriver(model, processor, recipe.config)
        watch = stopwatch(driver, self.profile)
        with (
            _evaluating(model),
            _checker(recipe, watch) as checker,
            running(self.engine, driver, recipe.config) as engine,
        ):
            known = None if driver is None else driver.identity()
            staged = EVIDENCE[recipe.config.evidence].staged
            yield Session(
                *(recipe, store, samples, driver, engine, watch, checker, size),
                *(known, rounds_of(samples, recipe.config) if staged else ()),
            )


@dataclass(frozen=True, slots=True)
class Pass:
    """What one pass is scored by, its samples and the folder of its store. ``pool``: how
    many samples all passes have; ``last``: it fills the store itself; ``more``: as from
    ``_inputs``; ``made_by``: the engine of its completions, as from ``provenance``;
    ``plan``: what the passes before it have settled; ``name``: for people."""

    folder: Path
    samples: SampleSet
    config: ScoreConfig
    checker: Checker | None
    pool: int
    more: Collection[str] = ()
    made_by: Mapping[str, object] | None = None
    plan: Plan | None = None
    name: str = name_of(0, 1)

    @property
    def last(self) -> bool:
        return not isinstance(self.samples, Part)


@dataclass(frozen=True, slots=True)
class Session:
    """A process that scores; see the module's docstring. ``path``: of the store;
    ``identity``: of the model, which takes a while to work out; ``rounds``: the samples of
    each pass but the last."""

    recipe: Recipe
    path: Path
    samples: SampleSet
    driver: ModelDriver | None
    engine: Engine
    watch: Stopwatch
    checker: Checker | None
    shard_size: int
    identity: Mapping[str, object] | None
    rounds: tuple[Part, ...] = ()

    @property
    def n_passes(self) -> int:
        return len(self.rounds) + 1

    @property
    def config(self) -> ScoreConfig:
        return self.recipe.config

    def pass_of(self, number: int) -> Pass:
        """A pass by its number, from 0; the stores of those before it are finished."""
        if not self.rounds:
            return self.last_pass()
        done = [
            Round.of(part, ScoreStore.load(self.path / folder_of(k)))
            for k, part in enumerate(self.rounds[:number])
        ]
        plan = make_plan(done, len(self.samples), self.config)
        name = name_of(number, self.n_passes)
        last = dataclasses.replace(self.last_pass(), name=name)
        if number == len(self.rounds):
            return dataclasses.replace(last, plan=plan)
        return dataclasses.replace(
            last,
            folder=self.path / folder_of(number),
            samples=self.rounds[number],
            plan=dataclasses.replace(plan, done=()),
        )

    def forget_plans_after(self, by: Pass) -> None:
        """Where the first pass is planned anew, the others have to be, too: their plans are
        of the data set that was. What is to be tried again is looked for in their stores
        now: who plans them later was not asked to. Raises ``RapStoreError`` if workers are
        at work there."""
        if not self.rounds or by.folder != self.path / folder_of(0):
            return
        later = (self.path / folder_of(k) for k in range(1, len(self.rounds)))
        for folder in (*later, self.path):
            if has_plan(folder):
                forget_plan(folder)
            header = read_header(folder / "store.json")
            if self.recipe.retry_quarantined and header is not None:
                known = (
                    header[name] for name in ("fingerprint", "n_samples", "shard_size")
                )
                data = header.get("data")
                with ScoreStore.open(folder, *known, data=data, shared=True) as shards:
                    redo_quarantined(shards)

    def last_pass(self) -> Pass:
        """The pass that fills the store, as far as it can be known before the others."""
        more = _inputs(self.config, self.samples, self.recipe.reward is not None)
        return Pass(
            *(self.path, self.samples, self.config, self.checker, len(self.samples)),
            more=more,
            made_by=provenance(self.recipe.engine, self.engine, self.driver),
        )

    def fingerprint(self, by: Pass, dataset: str | None) -> dict[str, Any]:
        """All that a score of a pass depends on; a store refuses another one, naming the
        field, but for the data set's (``ScoreStore.open``). ``dataset``: its hash, where it
        is known."""
        made_by = {} if by.made_by is None else {"engine": by.made_by}
        return {
            "model": self.identity,
            "config": by.config.fingerprint(),
            "checker": None if by.checker is None else by.checker.name,
            "dataset": dataset or by.samples.content_hash(by.more),
            "rap_version": version("rap-select") or "not installed",
            "schema_version": SCHEMA_VERSION,
            **made_by,
        }

    def open(self, by: Pass, *, shared: bool = False) -> ScoreStore:
        """The store of a pass, to be written; ``shared`` as in ``ScoreStore.open``."""
        with self.watch.span("store"):
            return ScoreStore.open(
                by.folder,
                self.fingerprint(by, None),
                len(by.samples),
                self.shard_size,
                data=describe(by.samples),
                reuse=self.reuse(by),
                shared=shared,
            )

    def look_over(self, shards: ScoreStore, by: Pass) -> None:
        """Before a run goes on: what of its store has to be scored again, and what an older
        data set has left for this one."""
        with self.watch.span("store"):
            if self.recipe.retry_quarantined:
                redo_quarantined(shards)
            if self.recipe.verify_images:
                redo_changed_images(shards, by.samples, by.config)
            if by.plan is not None:
                redo_changed(shards, by.plan)
            put_in_groups(shards, by.samples)
            reuse = self.reuse(by)
            if reuse is not None:
                look_back(shards, reuse, None if by.plan is None else by.plan.settled)

    def make_run(
        self, by: Pass, *, of: int = 1, verify: Callable[[int], None] | None = None
    ) -> Run:
        """What scores shards of a pass; ``of``: how many processes do; ``verify``: as in
        `Run`."""
        scorer = Scorer(
            self.driver,
            by.config,
            by.checker,
            self.recipe.allow_degenerate,
            self.engine,
            local=by.made_by is None,
            watch=self.watch,
            least_groups=of * MIN_GROUPS,
        )
        return Run(
            *(by.samples, self.driver, by.config, scorer, by.more, by.plan),
            pool=None if by.last else by.pool,
            least=of * MIN_SEEN,
            verify=verify,
            name=by.name,
        )

    def reuse(self, by: Pass) -> Reuse | None:
        """How a store finds what it has of an older data set; None if nothing can be."""
        if by.config.counterfactual in WITH_PARTNER:
            return None
        return reuse_of(
            by.samples,
            by.more,
            files=self.recipe.verify_images,
            retry=self.recipe.retry_quarantined,
            workers=by.config.workers,
            accepts=None if by.plan is None else by.plan.accepts,
        )


def kept_samples(
    store: Path,
    dataset: object,
    columns: Mapping[str, str] | None = None,
    root: str | os.PathLike[str] | None = None,
) -> SampleSet | None:
    """The data set that was planned for ``store``, opened with what is kept of it there:
    no row is read, and a worker compares those that it scores. None where nothing is
    planned, or where this is another data set, or an object in memory."""
    if not (has_plan(store) or has_plan(store / folder_of(0))):
        return None
    if is_url(dataset):  # whether it may be fetched is for ``open_samples`` to say
        return None
    return open_kept(store / INDEX, dataset, root, columns)


def _shard_size(store: Path, n_samples: int) -> int:
    """Of a store that is there its own."""
    with contextlib.suppress(RapStoreError):  # said when the store is opened
        header = read_header(store / "store.json")
        if header is not None:
            return int(header["shard_size"])
    return shard_size_for(n_samples)


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
def _checker(recipe: Recipe, watch: Stopwatch) -> Iterator[Checker | None]:
    """The worker process that grades, if the evidence has any completion graded."""
    config = recipe.config
    if not EVIDENCE[config.evidence].reading.graded:
        yield None
        return
    with watch.span("checking"):
        made = make_checker(
            recipe.reward,
            weights=recipe.reward_weights,
            timeout=config.checker_timeout,
            max_pixels=config.max_image_pixels,
        )
    with made as checker:
        yield checker


def _inputs(config: ScoreConfig, samples: SampleSet, custom: bool) -> Collection[str]:
    """Columns that a score may depend on besides question, answer, choices and images: a
    user's reward function may read any."""
    return samples.column_names if custom else EVIDENCE[config.evidence].data_columns
