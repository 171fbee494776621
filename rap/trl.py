"""Training on a selection with TRL: data, reward, log, and trainers that re-select.

    from rap.trl import GRPOTrainer, Reselect, builtin_reward, prepare, watched

    trainer = GRPOTrainer(                       # TRL's own, with one option more
        model=model, processing_class=processor, args=GRPOConfig(...),
        reward_funcs=watched(builtin_reward(), "scores.rewards.jsonl"),
        train_dataset=prepare(sel, pool=True),   # the whole pool
        reselect=Reselect(sel, mode="rewards", every=50),
    )

Without re-selection TRL's own trainers do: ``train_dataset=prepare(sel)``, or
``sel.dataset`` itself where its columns are TRL's (``prompt`` as messages, ``images``).
GRPO and RLOO; TRL 1.16 has no PPO trainer.

Importing this module imports neither torch nor trl; ``GRPOTrainer`` and ``RLOOTrainer``
do (pip install 'rap-select[trl]').
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from .choices import prompt_text
from .config import ScoreConfig
from .errors import RapConfigError, RapInputError
from .reselection import ReselectConfig, decide, open_rows, pass_counts
from .rewardlog import Outcome, RewardLog, grouped
from .rewards import make_checker
from .samples import Bad, BadSample, Sample, SampleSet, load_images, open_samples
from .selection import choose
from .sources import datasets_library

if TYPE_CHECKING:
    import datasets

    from .scores import Scores
    from .selected import Selection
    from .trainers import GRPOTrainer, RLOOTrainer

__all__ = [
    "GRPOTrainer",
    "RLOOTrainer",
    "Reselect",
    "builtin_reward",
    "prepare",
    "watched",
]

MAX_PIXELS = 50_000_000
"""As ``ScoreConfig.max_image_pixels``."""


def __getattr__(name: str) -> Any:
    if name in ("GRPOTrainer", "RLOOTrainer"):
        try:
            from . import trainers
        except ImportError as error:
            raise RapConfigError(
                f"training needs TRL ({error}): pip install 'rap-select[trl]'"
            ) from error
        return getattr(trainers, name)
    if name == "PPOTrainer":
        raise AttributeError(NO_PPO)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


NO_PPO = (
    "TRL 1.16 has no PPO trainer (it was taken out, also of trl.experimental); use GRPO or "
    "RLOO"
)


# ---------------------------------------------------------------- data


def prepare(
    source: object,
    *,
    pool: bool = False,
    columns: Mapping[str, str] | None = None,
    root: str | os.PathLike[str] | None = None,
    prompt_template: str | None = None,
    max_pixels: int = MAX_PIXELS,
) -> datasets.Dataset:
    """The data as TRL's trainers take it, one row a usable sample.

    source: a ``Selection`` (its kept samples), a ``SampleSet``, or what ``open_samples``
        takes, with its ``columns`` and ``root``.
    pool: all samples that a ``Selection`` was chosen from, for re-selection.
    prompt_template: as ``ScoreConfig.prompt_template``; None is the one the selection was
        scored with, else the default.

    A row has ``id``, ``prompt`` (one user message), ``images`` (list of RGB pictures),
    ``solution`` (the reference answer), ``choices``, and the other columns under their own
    names, for reward functions. Pictures are read when a row is: through ``rap.images``,
    as they were for the scores. One that has vanished by then stops the training with a
    ``RapInputError`` that names the sample.

    Raises ``RapInputError`` if there is no usable sample, or the selection does not know
    its data; ``datasets`` must be installed.
    """
    ids: set[str] | None = None
    if hasattr(source, "settings") and hasattr(source, "indices"):
        ids = None if pool else set(source.ids)
        if prompt_template is None:
            prompt_template = _template_of(source.settings)
        if source.source is None:
            raise RapInputError(
                "the selection does not know its data set: rap.load(folder, dataset=...)"
            )
        source = source.source
    samples = (
        source
        if isinstance(source, SampleSet)
        else open_samples(source, columns=columns, root=root)
    )
    rows = [i for i in range(len(samples)) if isinstance(samples[i], Sample)]
    if ids is not None:
        rows = [i for i in rows if samples[i].id in ids]
        if len(rows) < len(ids):
            raise RapInputError(
                f"{len(ids) - len(rows)} of {len(ids)} selected samples are not in the "
                "data set, or not usable any more: it is not the one that was scored"
            )
    if not rows:
        raise RapInputError("nothing to train on: no sample is selected")
    hf = datasets_library()
    if hf is None:
        raise RapInputError("prepare: needs the datasets library: pip install datasets")
    names = samples.ids
    table = hf.Dataset.from_dict({"id": [names[i] for i in rows], "row": rows})
    template = prompt_template or "{question}{choices}"
    return table.with_transform(_Rows(samples, template, max_pixels))


def template_of_rows(data: Any) -> str | None:
    """The prompt template of what ``prepare`` made; None for other data."""
    options = (getattr(data, "format", None) or {}).get("format_kwargs") or {}
    return getattr(options.get("transform"), "template", None)


def _template_of(settings: Mapping[str, Any]) -> str | None:
    scores = settings.get("scores") or {}
    return (scores.get("config") or {}).get("prompt_template")


class _Rows:
    """Row numbers -> the rows a trainer sees (a transform of ``datasets``)."""

    OURS = ("id", "prompt", "images", "solution", "choices")
    TAKEN = ("image", "prompts", "completion", "completions", "completion_ids")
    TAKEN += ("environment", "environments", "tools")

    def __init__(self, samples: SampleSet, template: str, max_pixels: int) -> None:
        self.samples, self.template, self.max_pixels = samples, template, max_pixels
        named = samples.columns["images"]
        taken = {*self.OURS, *self.TAKEN, named}
        self.extra = [name for name in samples.column_names if name not in taken]

    def __deepcopy__(self, memo: object) -> _Rows:
        return self  # `datasets` copies a transform with the table; this one never changes

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        if "row" not in batch:  # one column was asked for
            return {name: list(values) for name, values in batch.items()}
        rows = [self._row(i) for i in batch["row"]]
        return {name: [row[name] for row in rows] for name in (*self.OURS, *self.extra)}

    def _row(self, index: int) -> dict[str, Any]:
        sample = self.samples[index]
        if isinstance(sample, Bad):
            raise RapInputError(_gone(sample.id, index, sample.code, sample.message))
        try:
            images, _ = load_images(sample, max_pixels=self.max_pixels)
        except BadSample as bad:
            raise RapInputError(_gone(sample.id, index, bad.code, bad.message)) from bad
        text = prompt_text(self.template, sample.question, sample.choices)
        ours = {
            "id": sample.id,
            "prompt": [{"role": "user", "content": text}],
            "images": images,
            "solution": sample.answer,
            "choices": list(sample.choices),
        }
        return {name: sample.extra.get(name) for name in self.extra} | ours


def _gone(name: str, index: int, code: str, message: str) -> str:
    return (
        f"sample {name[:80]!r} (row {index}) can no longer be read: {code}: {message}. "
        "Training stops here; put it back and resume from the last checkpoint"
    )


# ---------------------------------------------------------------- rewards


def builtin_reward(*, timeout: float = 5.0) -> Callable[..., list[float | None]]:
    """The built-in checker (``rap.make_checker``) as a reward function of TRL: 1.0 for a
    right answer, 0.0 for a wrong one, None where it cannot judge (TRL leaves such a
    completion out of its group).

    Reads the columns ``solution`` (or ``answer``) and ``choices`` as ``prepare`` makes
    them. One checking process is started at the first call and ends with this process;
    ``timeout``: seconds a check.
    """
    checker = make_checker(timeout=timeout)

    def rap_builtin(
        prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
    ) -> list[float | None]:
        answers = columns.get("solution", columns.get("answer"))
        if answers is None:
            raise RapInputError(
                "the built-in reward needs a column 'solution' or 'answer'; the data set "
                f"has {', '.join(sorted(columns)) or 'none'}"
            )
        choices = columns.get("choices") or [()] * len(completions)
        rewards: list[float | None] = []
        for answer, options, completion in zip(answers, choices, completions, strict=True):
            sample = Sample(0, "", "", str(answer), tuple(options or ()), (), None, {})
            verdict = checker.check(sample, completion_text(completion))
            rewards.append(None if verdict.correct is None else float(verdict.correct))
        return rewards

    return rap_builtin


def completion_text(completion: Any) -> str:
    """A completion's text: itself, or the contents of its messages."""
    if isinstance(completion, str):
        return completion
    contents = [message.get("content") or "" for message in completion]
    return "".join(
        part if isinstance(part, str) else "".join(p.get("text") or "" for p in part)
        for part in contents
    )


class Recorder:
    """What ``watched`` keeps: the log, and the outcomes that nobody has taken yet."""

    def __init__(self, log: RewardLog | None, id_column: str) -> None:
        self.log, self.id_column = log, id_column
        self.counting = True
        """False while the trainer evaluates."""
        self.fresh: dict[str, Outcome] = {}

    def record(self, columns: Mapping[str, Any], rewards: Sequence[float | None]) -> None:
        """Count one generation batch. Raises ``RapInputError`` if there is no id column,
        or if not one completion was judged: the reward function is out of order."""
        if not self.counting:
            return
        if self.id_column not in columns:
            raise RapInputError(
                f"the rewards log needs the column {self.id_column!r}, which names the "
                f"sample; the data set has {', '.join(sorted(columns))}"
            )
        outcomes = grouped([str(x) for x in columns[self.id_column]], rewards)
        unjudged = sum(o.unjudged for o in outcomes.values())
        if unjudged == len(rewards):
            raise RapInputError(
                f"the reward function returned None or NaN for all {unjudged} completions "
                f"of a batch (the first sample is {next(iter(outcomes), '')[:80]!r})"
            )
        state = columns.get("trainer_state")
        step = 0 if state is None else state.global_step
        if self.log is not None:
            process = int(os.environ.get("RANK", 0))
            self.log.append(step, outcomes, process)
        for name, outcome in outcomes.items():
            self.fresh[name] = self.fresh.get(name, Outcome()) + outcome
        self._tell(columns.get("log_metric"), outcomes, unjudged)

    def take(self) -> dict[str, Outcome]:
        """The outcomes since the last call."""
        fresh, self.fresh = self.fresh, {}
        return fresh

    @staticmethod
    def _tell(
        log_metric: Callable[[str, float], Any] | None,
        outcomes: Mapping[str, Outcome],
        unjudged: int,
    ) -> None:
        if log_metric is None:
            return
        log_metric("rap/unjudged", unjudged)
        log_metric("rap/no_variance", sum(not o.varies for o in outcomes.values()))


def watched(
    reward: Callable[..., Any],
    log: str | os.PathLike[str] | RewardLog | None = None,
    *,
    id_column: str = "id",
) -> Callable[..., Any]:
    """The same reward function, and pass counts per id in a log (``rap.rewardlog``).

    The rewards go to the trainer as they are, but for infinite ones: None stands for them,
    because one would make every advantage of its batch NaN. What is not a number or None a
    completion is refused with the function's name. Wrap the function that judges every
    completion (a reward from 0.5 up is a pass): a batch without one judged completion
    stops the training, named, instead of training on nothing.
    ``log``: the file, by custom beside the score store (``scores.rewards.jsonl``); None
    keeps the counts in memory only, for ``Reselect``. Coroutine functions stay ones.
    """
    if not callable(reward) or hasattr(reward, "state_dict"):
        raise RapConfigError(
            f"watched: reward is {type(reward).__name__}; expected a function as TRL's "
            "trainers take it"
        )
    writer = log if isinstance(log, RewardLog) or log is None else RewardLog(log)
    recorder = Recorder(writer, id_column)

    name = getattr(reward, "__name__", type(reward).__name__)

    def counted(rewards: Any, columns: Mapping[str, Any]) -> list[float | None]:
        values = _numbers(name, rewards, len(columns["completions"]))
        recorder.record(columns, values)
        return values

    if inspect.iscoroutinefunction(reward):

        @functools.wraps(reward)
        async def wrapper(**columns: Any) -> list[float | None]:
            return counted(await reward(**columns), columns)

    else:

        @functools.wraps(reward)
        def wrapper(**columns: Any) -> list[float | None]:
            return counted(reward(**columns), columns)

    wrapper.__name__ = name
    wrapper.rap_recorder = recorder  # type: ignore[attr-defined]
    return wrapper


def _numbers(name: str, rewards: Any, count: int) -> list[float | None]:
    """The rewards, checked; infinite ones are None."""
    try:
        values = [None if r is None else float(r) for r in rewards]
    except (TypeError, ValueError) as error:
        raise RapInputError(
            f"the reward function {name!r} returned {repr(rewards)[:80]}; expected a list "
            f"with a number or None a completion ({error})"
        ) from error
    if len(values) != count:
        raise RapInputError(
            f"the reward function {name!r} returned {len(values)} rewards for {count} "
            "completions; expected one each"
        )
    return [None if r is not None and math.isinf(r) else r for r in values]


# ---------------------------------------------------------------- re-selection

MODES = ("off", "rewards", "rescore")


@dataclass(frozen=True)
class Reselect:
    """Which prompts of the pool a trainer of ``rap.trl`` trains on, and how that changes.

    Raises ``RapConfigError`` for a setting that makes no sense.
    """

    selection: Selection | None = None
    """Where training starts; None: with every row of ``train_dataset``."""
    mode: str = "off"
    """``"off"``: the first selection stays. ``"rewards"``: every ``every`` steps the rules
    of ``rap.reselection`` run on the rewards that the trainer computed anyway.
    ``"rescore"``: then the pool is scored again too, by the policy as it is."""
    every: int = 50
    """Optimiser steps between re-selections."""
    refill: int = 0
    """Generations, at most, in which groups without variance are replaced by groups of
    other prompts before the optimiser sees the batch (DAPO's dynamic sampling); 0: never.
    What they cost and brought is counted in ``trainer.refilled``."""
    id_column: str = "id"
    """Column of ``train_dataset`` that names a sample."""
    rules: ReselectConfig = field(default_factory=ReselectConfig)
    """What leaves, what comes in and how much of the first selection stays."""
    config: ScoreConfig | None = None
    """How ``"rescore"`` scores; None: as the selection was scored. Evidence ``rollouts``
    is judged by the built-in checker."""

    def __post_init__(self) -> None:
        _require(self.mode in MODES, "mode", self.mode, f"one of {MODES}")
        for name, least in (("every", 1), ("refill", 0)):
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            _require(whole and value >= least, name, value, f"an integer >= {least}")
        if self.mode != "off" and self.selection is None:
            raise RapConfigError(
                f"mode = {self.mode!r}: re-selection needs the first selection, whose "
                "scores it goes on from"
            )
        if self.mode == "rescore" and self.selection.source is None:  # type: ignore[union-attr]
            raise RapConfigError(
                "mode = 'rescore': the selection does not know its data set: "
                "rap.load(folder, dataset=...)"
            )

    def first_ids(self, pool: Sequence[str]) -> list[str]:
        """Ids to start with."""
        return list(pool) if self.selection is None else self.selection.ids

    def visited(
        self, passes: Mapping[str, tuple[float, float]], outcomes: Mapping[str, Outcome]
    ) -> dict[str, tuple[float, float]]:
        """``passes`` (see ``rap.reselection.pass_counts``) after one more visit each."""
        visits = [(name, *passes[name]) for name in outcomes if name in passes]
        visits += [(name, o.passed, o.judged) for name, o in outcomes.items()]
        return {**passes, **pass_counts(visits, decay=self.rules.decay)}

    def next_ids(
        self,
        active: Sequence[str],
        passes: Mapping[str, tuple[float, float]],
        scores: Scores | None = None,
    ) -> tuple[list[str], dict[str, int]]:
        """(ids to train on from now on, {why: samples}), by ``rap.reselection.decide``.

        active: ids trained on now; passes: what their completions got; scores: the pool's,
        by the policy as it is (``"rescore"``).
        """
        assert self.selection is not None  # __post_init__ saw to it
        now = None
        if scores is not None:
            now = choose(scores, **self.selection.settings["choose"])
        current = _with_active(self.selection, active)
        known = set(current.table["id"].to_pylist())
        passes = {name: counts for name, counts in passes.items() if name in known}
        decision = decide(current, passes, self.rules, now=now)
        ids = current.table["id"].filter(pa.array(decision.active)).to_pylist()
        return ids, decision.counts

    def score_config(self) -> ScoreConfig:
        """How ``"rescore"`` scores."""
        if self.config is not None or self.selection is None:
            return self.config or ScoreConfig()
        return ScoreConfig(
            **((self.selection.settings["scores"] or {}).get("config") or {})
        )

    def fingerprint(self, pool: Sequence[str]) -> dict[str, Any]:
        """What a resumed run must share with the one that wrote the checkpoint."""
        settings = {"every": self.every, "refill": self.refill, "rules": asdict(self.rules)}
        return {
            "pool": _digest(pool),  # in its order: a checkpoint names rows by their number
            "selection": _digest(sorted(self.first_ids(pool))),
            "mode": self.mode,
            "settings": settings,
        }

    def candidates(self) -> list[str]:
        """Ids that a re-selection may bring in."""
        if self.selection is None or self.mode == "off":
            return []
        table = self.selection.table
        return table["id"].filter(pa.array(open_rows(table))).to_pylist()


def _with_active(first: Selection, active: Sequence[str]) -> Selection:
    """The first selection with ``active`` as what is kept, as ``reselect`` remembers it."""
    table = first.table
    now = pc.is_in(table["id"], value_set=pa.array(list(active), pa.string()))
    reason = pc.if_else(
        now,
        pc.if_else(pa.array(first.kept), table["reason"], "kept_replacement"),
        pc.if_else(pa.array(first.kept), "dropped_over_budget", table["reason"]),
    )
    base = table["reason"]
    table = table.drop_columns(["reason"]).append_column("reason", reason)
    if "first" not in table.column_names:
        table = table.append_column("first", pa.array(first.kept))
        table = table.append_column("first_reason", base)
    return type(first)(table, first.settings, first.source)


def _digest(names: Sequence[str]) -> str:
    text = json.dumps(list(names)).encode()
    return hashlib.sha256(text).hexdigest()[:16]


def _require(ok: bool, name: str, value: object, expected: str) -> None:
    if not ok:
        raise RapConfigError(f"{name} = {value!r}: expected {expected}")
