"""Samples -> score table: drives the model, survives bad samples, resumes.

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
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from ..config import (
    ChooseConfig,
    ScoreConfig,
    require_judge,
)
from ..environment import version
from ..errors import RapConfigError, RapInputError
from ..rewards.checker import Checker, make_checker
from ..samples.sampleset import SampleSet, open_samples
from ..scores.scores import Scores
from ..scores.store import ScoreStore
from ..scores.table import (
    SCHEMA_VERSION,
)
from ..selection.choosing import choose
from ..selection.rules import check as check_rule
from ..selection.selection import Selection
from .again import redo_changed_images, redo_quarantined
from .filling import Run
from .jobs import SOLUTION_COLUMNS
from .ledger import count_rows, ledger
from .scorer import Scorer

if TYPE_CHECKING:
    import os

    from ..model.driver import ModelDriver


def score(
    model: Any,
    processor: Any,
    dataset: Any,
    *,
    store: str | os.PathLike[str] | None = None,
    config: ScoreConfig | None = None,
    reward: Callable[..., Sequence[float | None]] | None = None,
    columns: dict[str, str] | None = None,
    root: str | os.PathLike[str] | None = None,
    progress: bool | str = True,
    allow_degenerate: bool = False,
    verify_images: bool = True,
    retry_quarantined: bool = False,
    **overrides: Any,
) -> Scores:
    """Score every sample of a data set with one model: the heavy half.

    Parameters
    ----------
    model, processor
        A Hugging Face ``AutoModelForImageTextToText`` and its processor.
    dataset
        What `rap.samples.open_samples` takes (a ``datasets.Dataset``, a list of dicts, a
        path), or a ``SampleSet``; ``columns`` and ``root`` go there.
    store
        Folder of the score store. A run on a folder that holds a part of the same run
        goes on; one made with another model, setting or data set is refused. None keeps
        the shards in a temporary folder, gone when the call returns.
    config, **overrides
        A `ScoreConfig`, and single fields that replace its own.
    reward
        None checks answers with the built-in checker, else a callable with TRL's
        signature. For evidence ``rollouts`` only: the others judge no completion.
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
        The model cannot be driven, most of the bad samples are the model's doing, or the
        completions of most samples are identical.
    RapConfigError, RapStoreError
        See `ScoreConfig` and ``rap.scores.store``.
    """
    from ..model.driver import ModelDriver

    wall = time.perf_counter()
    config = _resolve(config, overrides)
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
        fingerprint = _fingerprint(driver, config, checker, samples, reward is not None)
        with ScoreStore.open(path, fingerprint, len(samples), config.shard_size) as shards:
            if retry_quarantined:
                redo_quarantined(shards)
            if verify_images:
                redo_changed_images(shards, samples, config)
            scorer = Scorer(driver, config, checker, allow_degenerate)
            run = Run(samples, driver, config, scorer)
            run.fill(shards, progress)
            table = shards.read()
            rollouts = shards.read_rollouts()
    meta: dict[str, Any] = {
        "fingerprint": fingerprint,
        "cost": ledger(table, rollouts, time.perf_counter() - wall),
        "counts": count_rows(table),
    }
    return Scores(table=table, meta=meta, dataset=samples, rollouts=rollouts)


def select(
    model: Any,
    processor: Any,
    dataset: Any,
    *,
    rule: str = "budget",
    budget: float | None = None,
    lambda_c: float | None = None,
    lambda_a: float | None = None,
    replace: bool = True,
    readmit_hurt: bool | None = None,
    order: str | None = None,
    by: str | None = None,
    trivial: float = 0.0,
    divergence: str = "js",
    **score_options: Any,
) -> Selection:
    """`score`, then `choose`: from a data set to the samples worth training on.

    The options named here are those of `choose`, all others those of `score`. A setting
    of `choose` that is nonsense is refused before the model runs.
    """
    chosen: dict[str, Any] = {
        "rule": rule,
        "budget": budget,
        "lambda_c": lambda_c,
        "lambda_a": lambda_a,
        "replace": replace,
        "readmit_hurt": readmit_hurt,
        "order": order,
        "by": by,
        "trivial": trivial,
        "divergence": divergence,
    }
    names = {f.name for f in dataclasses.fields(ScoreConfig)}
    overrides = {k: v for k, v in score_options.items() if k in names}
    config = _resolve(score_options.get("config"), overrides)
    check_rule(ChooseConfig(**chosen), config.evidence)
    return choose(score(model, processor, dataset, **score_options), **chosen)


def _resolve(config: ScoreConfig | None, overrides: dict[str, Any]) -> ScoreConfig:
    names = [f.name for f in dataclasses.fields(ScoreConfig)]
    for name in overrides:
        if name not in names:
            raise RapConfigError(f"unknown setting {name!r}: expected one of {names}")
    if not isinstance(config, (ScoreConfig, type(None))):
        raise RapConfigError(f"config = {config!r}: expected a rap.ScoreConfig or None")
    return dataclasses.replace(config or ScoreConfig(), **overrides)


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


def _fingerprint(
    driver: ModelDriver,
    config: ScoreConfig,
    checker: Checker | None,
    samples: SampleSet,
    custom_reward: bool,
) -> dict[str, Any]:
    """All that a score depends on; a store refuses another one, naming the field.

    A user's reward function may read any column; evidence ``logits`` reads a solution.
    """
    more: Iterable[str] = SOLUTION_COLUMNS if config.evidence == "logits" else ()
    if custom_reward:
        more = samples.column_names
    return {
        "model": driver.identity(),
        "config": config.fingerprint(),
        "checker": None if checker is None else checker.name,
        "dataset": samples.content_hash(more),
        "rap_version": version("rap-select") or "not installed",
        "schema_version": SCHEMA_VERSION,
    }
