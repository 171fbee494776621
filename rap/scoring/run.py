"""Samples -> score table: runs the model, quarantines bad samples, resumes.

    samples --> workers: decode, hash, preprocess --> batches --> evidence --> shards
                (threads, bounded, in order)          (model)    (kernels)    (store)

A sample that cannot be scored becomes a quarantined row with a stage, a code and a
message, and the run goes on; only a share above ``max_bad_fraction`` stops it.

What is durable. A shard is written when it is whole. Of the shard in progress the batches
so far are kept whenever the run ends in order (Ctrl-C, an error, too many bad samples) and
every `filling.PARTIAL_SECONDS` besides, so that kill -9 loses half a minute at most.

What is guaranteed. Shards are fixed ranges of rows and batches never span them; within one
the longest prompts come first (``scoring.ordering``), so that little is padded, and rows
are stored in data-set order. An interrupted run redoes the same batches: on one machine,
with one batch size, the table comes out byte for byte (`table.VOLATILE_COLUMNS` aside)
whatever the number of workers, kills and restarts. Another batch size pads a sample
differently, and a matrix product of another shape rounds differently; scores are
therefore stored with 12 significant bits (`scoring.rounding.significant`), far coarser
than that noise in float32 and far finer than the scores' own uncertainty. What remains is a
value within the noise of a rounding border (one in some thousand: measured 1 of 12,000): it
moves by one step, at most 4.9e-4 of itself, and the selection moves only if the sample at
the cut is among them. In bfloat16 and float16 the noise is as large as the rounding step:
compare runs of one batch size there. A batch halved for lack of memory counts as one of
another size.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypedDict, Unpack

from ..config import (
    ChooseConfig,
    ChooseOptions,
    ExecutorConfig,
    ExecutorOptions,
    PresetName,
    ScoreConfig,
    ScoreOptions,
    means,
    preset_of,
    require_whole,
)
from ..engines import EngineConfig, EngineOptions
from ..errors import RapConfigError
from ..misnamed import require_options
from ..model.loading import LoadingOptions
from ..rewards.checker import Reward
from ..samples.sampleset import SampleSet, open_samples
from ..scores.claims import PLAN, Claims, require_idle
from ..scores.completions import HeldCompletions
from ..scores.profile import read_profile
from ..scores.scores import Scores
from ..scores.shardplan import ShardPlan
from ..selection.choosing import choose as choose_from
from ..selection.groups import NAMED, require_columns
from ..selection.rules import check as check_rule
from ..selection.selection import Selection
from ..settings import resolve
from .arguments import require_config, split_loading, the_data
from .engine import resolve_all
from .executors import make_executor
from .ledger import count_rows, ledger
from .session import Recipe
from .tracking import tracked
from .worker import coordinate


class RunOptions(TypedDict, total=False):
    """`score`'s keyword arguments besides `ScoreConfig`'s fields, for type checkers."""

    store: str | os.PathLike[str] | None
    reward: Reward | None
    reward_weights: Sequence[float] | None
    columns: dict[str, str] | None
    root: str | os.PathLike[str] | None
    progress: bool | str
    allow_degenerate: bool
    verify_images: bool
    retry_quarantined: bool
    profile: bool
    report_to: str | Sequence[str] | None
    loading: Mapping[str, Any] | None


class ScoringOptions(
    ScoreOptions, EngineOptions, ExecutorOptions, LoadingOptions, total=False
):
    """`score`'s fields of settings: of `ScoreConfig`, `EngineConfig`, `ExecutorConfig`;
    and how a model that is named is loaded."""


class SelectOptions(ChooseOptions, ScoringOptions, RunOptions, total=False):
    """`select`'s keyword arguments: those of `score` and of `choose`."""


def score(
    model: Any,
    processor: Any = None,
    dataset: Any = None,
    config: ScoreConfig | None = None,
    *,
    data: Any = None,
    store: str | os.PathLike[str] | None = None,
    reward: Reward | None = None,
    reward_weights: Sequence[float] | None = None,
    columns: dict[str, str] | None = None,
    root: str | os.PathLike[str] | None = None,
    progress: bool | str = True,
    allow_degenerate: bool = False,
    verify_images: bool = True,
    retry_quarantined: bool = False,
    profile: bool = False,
    report_to: str | Sequence[str] | None = None,
    loading: Mapping[str, Any] | None = None,
    preset: PresetName | None = None,
    **overrides: Unpack[ScoringOptions],
) -> Scores:
    """Score every sample of a data set with one model: the slow step, resumable.

    Parameters
    ----------
    model, processor
        A Hugging Face ``AutoModelForImageTextToText`` and its processor; or a folder or
        hub name, with ``processor=None`` for the one that lies there:
        ``rap.score("Qwen/Qwen2.5-VL-3B-Instruct", data=...)``. ``None, None`` scores
        evidence ``rollouts`` with a server alone: prompts are then not compared with a
        local processor's, and ACE is skipped, which needs a local forward.
    dataset, data
        The data set, by either name: what `rap.samples.open_samples` takes (a
        ``datasets.Dataset``, a list of dicts, a path), or a ``SampleSet``; ``columns`` and
        ``root`` go there.
    store
        Folder of the score store. A run on a folder that holds a part of the same run
        goes on; one made with another model or setting is refused. Of an older data set
        (rows added, removed, corrected, in another order) what is unchanged keeps its
        scores, and a line says how much; a data set without any such row is refused. None
        keeps the shards in a temporary folder, gone when the call returns.
    config, **overrides
        A `ScoreConfig` (None is the defaults), and single fields that replace its own: see
        ``help(rap.ScoreConfig)``. Those of `rap.config.ExecutorConfig`: which processes
        score, e.g. ``executor="env"`` under torchrun or Slurm, which fill one store
        together; each gets the whole scores back. ``executor="ray", workers=8,
        gpus_per_worker=1`` has workers on a Ray cluster score. Those of
        `rap.engines.EngineConfig`: what samples completions, e.g. ``engine="openai",
        base_url="http://node7:8000/v1", concurrency=64``. A server is probed before the
        first sample (one line on stderr), and has to see the local processor's prompts; it
        goes into the fingerprint.
    reward
        None checks answers with the built-in checker, else a callable with TRL's
        signature, or a list of them: see `rap.rewards.make_checker`. It is called once for
        all completions that are sampled at once of a sample with its image, and once for
        those without. For evidence ``rollouts`` and ``cascade`` only: the others grade no
        completion.
    reward_weights
        Of a list of reward functions, whose weighted sum is the reward, as in TRL; None:
        1 each.
    progress
        True shows a bar where someone watches (a terminal, a notebook), else a line every
        half minute, for the log of a job; ``"force"`` is always the bar; False is neither.
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
    report_to
        "tensorboard", "wandb", "trackio" or what else transformers' ``report_to`` knows, or
        several: gets counts, rate and means after every shard, ``samples`` as the step.
        TensorBoard's files go to ``runs/`` in the store. Executor local only.
    loading
        Where ``model`` is a folder or hub name, how it is loaded: the keyword arguments of
        `rap.model.loading.load_model`, which may also be given by themselves: ``dtype``,
        ``device``, ``device_map``, ``quantize="4bit"`` (bitsandbytes), ``revision``,
        ``attn_implementation``, ``trust_remote_code``, ``allow_pickle``. Executor ray loads
        it in every worker, and so takes no other model.
    preset : "paper" or None
        The fields of a whole pipeline (``rap.config.PRESETS``); single fields replace those
        of it.

    Returns
    -------
    Scores
        ``table`` in data-set order; ``meta["cost"]`` is the ledger (see `ledger.ledger`).
        Of executor ``env`` the table stays in the store until it is asked for.

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
    wall = time.perf_counter()
    dataset = the_data(model, processor, dataset, data, "rap.score")
    require_config(config, "rap.score")
    loads, fields = split_loading(model, loading, overrides)
    given = preset_of(preset, "score") | fields
    config, engine, executor = resolve_all(config, given, "rap.score")
    recipe = Recipe(
        *(model, processor, dataset, config, engine),
        reward=reward,
        reward_weights=reward_weights,
        columns=columns,
        root=root,
        progress=progress,
        allow_degenerate=allow_degenerate,
        verify_images=verify_images,
        retry_quarantined=retry_quarantined,
        profile=profile,
        report_to=tracked(report_to, executor, store),
        loading=loads,
    )
    return score_by(recipe, store, executor, since=wall)


def score_by(
    recipe: Recipe,
    store: str | os.PathLike[str] | None,
    executor: ExecutorConfig,
    *,
    since: float | None = None,
) -> Scores:
    """As `score`; ``since``: ``time.perf_counter`` when the run began, None: now."""
    wall = time.perf_counter() if since is None else since
    recipe.check()
    if store is None and executor.executor != "local":
        raise RapConfigError(
            f"store = None: executor {executor.executor!r} needs a folder that all its "
            "processes share"
        )
    with _folder(store) as path:
        found = make_executor(executor).run(recipe, Path(path))
        completions = found.completions
        if store is None and completions is not None:  # the folder goes now
            completions = HeldCompletions(completions.read())
        measured = read_profile(Path(path))
    cost = ledger(found.billed, found.drawn, time.perf_counter() - wall, found.first)
    meta: dict[str, Any] = {
        "fingerprint": found.fingerprint,
        "data": found.data,
        "cost": cost,
        "counts": count_rows(found.billed),
    }
    if found.part is not None:
        meta["part"] = found.part
    if measured is not None:
        meta["profile"] = measured.as_json()
    return Scores(table=found.table, meta=meta, dataset=found.samples, rollouts=completions)


def plan(
    model: Any,
    processor: Any = None,
    dataset: Any = None,
    config: ScoreConfig | None = None,
    *,
    data: Any = None,
    store: str | os.PathLike[str],
    reward: Reward | None = None,
    reward_weights: Sequence[float] | None = None,
    columns: dict[str, str] | None = None,
    root: str | os.PathLike[str] | None = None,
    verify_images: bool = True,
    retry_quarantined: bool = False,
    loading: Mapping[str, Any] | None = None,
    **overrides: Unpack[ScoringOptions],
) -> ShardPlan:
    """Make the store that many processes will fill, and work out once what each of them
    needs: the rows, the shards, a hash of the samples of each, the fingerprint.

    Optional: the first process of executor ``env`` does it where nobody has. The arguments
    are those of `score`. A store that is there goes on, as `score` does it: changed images,
    a changed data set and quarantined samples are looked for here. Of a cascade the first
    round is planned.

    Returns
    -------
    ShardPlan
        ``n_samples``, ``shard_size``, ``fingerprint``, ``shards``: one hash each.

    Raises
    ------
    RapStoreError
        The store cannot be written, another run or worker is at work on it.
    RapConfigError, RapInputError, RapModelError
        As `score` does, before anything is scored.
    """
    dataset = the_data(model, processor, dataset, data, "rap.plan")
    require_config(config, "rap.plan")
    loads, fields = split_loading(model, loading, overrides)
    config, engine, _ = resolve_all(config, fields, "rap.plan")
    recipe = Recipe(
        *(model, processor, dataset, config, engine),
        reward=reward,
        reward_weights=reward_weights,
        columns=columns,
        root=root,
        verify_images=verify_images,
        retry_quarantined=retry_quarantined,
        loading=loads,
    )
    return plan_by(recipe, store)


def plan_by(recipe: Recipe, store: str | os.PathLike[str]) -> ShardPlan:
    """As `plan`."""
    recipe.check()
    with recipe.open(Path(store)) as session:
        by = session.pass_of(0)
        with Claims(by.folder) as claims:
            while not claims.take(PLAN):
                require_idle(by.folder, claims)
            return coordinate(session, by, claims)


def select(
    model: Any,
    processor: Any = None,
    dataset: Any = None,
    config: ScoreConfig | None = None,
    *,
    data: Any = None,
    choose: ChooseConfig | Mapping[str, Any] | None = None,
    preset: PresetName | None = None,
    **options: Unpack[SelectOptions],
) -> Selection:
    """`score`, then `choose`: from a data set to the samples worth training on.

        selection = rap.select(model, processor, dataset, budget=0.09, store="scores/")
        selection.dataset          # the chosen rows, all columns

        selection = rap.select("Qwen/Qwen2.5-VL-3B-Instruct", data="data.jsonl")

    With ``store`` a run that was stopped goes on, and a run with another ``budget`` scores
    nothing again.

    Parameters
    ----------
    model, processor
        A Hugging Face ``AutoModelForImageTextToText`` and its processor; or a folder or
        hub name alone.
    dataset, data
        By either name: a ``datasets.Dataset``, a list of dicts, a path (JSONL, Parquet, a
        saved data set) or a ``rap.samples.sampleset.SampleSet``.
    config : ScoreConfig or None
        How samples are scored; None is the defaults.
    choose : ChooseConfig, dict of its fields, or None
        How the selection is made of the scores; None is the defaults.
    preset : "paper" or None
        Evidence, form of psi and rule of a whole pipeline (``rap.config.PRESETS``); single
        fields replace those of it.
    **options
        Single fields that replace those of ``config`` (``evidence``, ``m1``, ``seed``, ...,
        see ``help(rap.ScoreConfig)``), of the engine (``engine``, ``base_url``, ...), of
        the executor (``executor``, ``shard``, ...) or of ``choose`` (``budget``, ``rule``,
        ``by``, ..., see ``help(rap.ChooseConfig)``), and what `score` takes besides:
        ``store``, ``reward``, ``reward_weights``, ``columns``, ``root``, ``progress``,
        ``allow_degenerate``, ``verify_images``, ``retry_quarantined``, ``profile``,
        ``report_to``, ``loading`` and its parts (``dtype``, ``device_map``, ``quantize``,
        ...), see ``help(rap.score)``.

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
    dataset = the_data(model, processor, dataset, data, "rap.select")
    require_config(config, "rap.select")
    given: dict[str, Any] = {**options}
    fields = {kind: set(means(kind, given.get("executor"))) for kind in _SETTINGS}
    run_options = [*RunOptions.__annotations__, *LoadingOptions.__annotations__]
    known = [*run_options, *sorted(set().union(*fields.values()))]
    require_options(given, known, "rap.select")
    scoring, choosing, *_ = (
        {name: value for name, value in given.items() if name in fields[kind]}
        for kind in _SETTINGS
    )
    if isinstance(choose, Mapping):
        choose = ChooseConfig(**choose)
    choosing = preset_of(preset, "choose", choosing) | choosing
    scoring = preset_of(preset, "score") | scoring
    chosen = resolve(ChooseConfig, "choose", choose, choosing, "rap.select")
    config = resolve(ScoreConfig, "config", config, scoring, "rap.select")
    check_rule(chosen, config.evidence)
    executing = {n: v for n, v in given.items() if n in fields[ExecutorConfig]}
    require_whole(ExecutorConfig(**executing), "rap.select")
    theirs = [*run_options, *fields[EngineConfig], *fields[ExecutorConfig]]
    rest = {name: value for name, value in given.items() if name in theirs}
    if any(getattr(chosen, name) is not None for name in NAMED):
        data = dataset
        if not isinstance(dataset, SampleSet):
            data = open_samples(dataset, columns=rest.get("columns"), root=rest.get("root"))
        require_columns(chosen, data.column_names)
    return choose_from(score(model, processor, dataset, config, **rest), chosen)


_SETTINGS = (ScoreConfig, ChooseConfig, EngineConfig, ExecutorConfig)


@contextmanager
def _folder(store: str | os.PathLike[str] | None) -> Iterator[str | os.PathLike[str]]:
    if store is not None:
        yield store
        return
    with tempfile.TemporaryDirectory(prefix="rap-") as path:
        yield path
