"""TRL's trainers plus a ``reselect`` argument: which prompts they train on.

Use them through ``rap.trl``. This module imports torch, transformers and trl.

Three hooks, no copy of TRL's code: ``_get_train_sampler`` hands TRL a sampler whose order
can change while it runs (TRL builds its data loader once, so that another
``train_dataset`` would change nothing); a callback changes it between optimiser steps, and
its state goes into the checkpoint's ``trainer_state.json``, written with the checkpoint or
not at all; ``_generate_and_score_completions`` is called again for groups that taught
nothing (``Reselect.refill``).

The data loader looks one batch ahead, more with ``dataloader_num_workers``: a re-selection
takes effect one generation batch later.
"""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import trl
from accelerate.utils import gather_object
from torch.utils.data import Sampler
from transformers import PreTrainedModel, TrainerCallback

from ..errors import RapConfigError, RapInputError
from ..model.prompt import placeholder_texts, require_processor
from ..selection.reselection import NothingLeft
from .data import require_selected, system_of_rows, template_of_rows
from .groups import exchange, totals, without_variance
from .order import PromptOrder
from .reselect import Reselect
from .rewardlog import Outcome
from .rewards import Recorder, completion_text, tell_end_tokens, watched
from .saving import as_loaded, saving

if TYPE_CHECKING:

    class _Base:
        """What the mixin uses of TRL's trainers, of GRPO's and RLOO's alike."""

        model: Any
        args: Any
        accelerator: Any
        state: Any
        control: Any
        processing_class: Any
        train_dataset: Any
        is_fsdp_enabled: bool
        is_deepspeed_enabled: bool
        num_generations: Any
        num_iterations: Any
        reward_weights: torch.Tensor
        _name: str
        _metrics: Any
        _tokenizer: Any

        def __init__(
            self, model: Any, reward_funcs: Any, *args: Any, **options: Any
        ) -> None: ...
        def add_callback(self, callback: Any) -> None: ...
        def is_world_process_zero(self) -> bool: ...
        def save_model(
            self, output_dir: str | None = None, _internal_call: bool = False
        ) -> None: ...
        def _save_checkpoint(self, model: Any, trial: Any) -> None: ...
        def _run_epoch(self, *args: Any, **options: Any) -> None: ...
        def _load_from_checkpoint(
            self, resume_from_checkpoint: str, model: Any = None
        ) -> None: ...
        def _calculate_rewards(self, *args: Any, **options: Any) -> Any: ...
        def _generate_and_score_completions(
            self, inputs: list[dict[str, Any]]
        ) -> dict[str, Any]: ...

else:
    _Base = object  # the trainer that the mixin stands before

STATE = "RapReselection"
"""Name in ``trainer_state.json``."""


class OrderSampler(Sampler[int]):
    """A ``PromptOrder`` in the order of TRL's ``RepeatSampler``: every row of a batch
    ``repeats`` times in a row, every batch ``rounds`` times."""

    def __init__(self, order: PromptOrder, *, repeats: int, rounds: int) -> None:
        self.order, self.repeats, self.rounds = order, repeats, rounds
        self.batches = len(order.active) // order.batch
        """Batches an epoch; fixed, as the trainer reads the length once."""
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return self.batches * self.order.batch * self.repeats * self.rounds

    def __iter__(self) -> Iterator[int]:
        first = self._epoch * self.batches
        for number in range(first, first + self.batches):
            rows = self.order.batch_at(number)
            for _ in range(self.rounds):
                for row in rows:
                    yield from [row] * self.repeats


class _Between(TrainerCallback):
    """Calls the trainer back: when it starts, and between optimiser steps."""

    def __init__(self, trainer: SelectionMixin) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer.selection_begins(state)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer.selection_step(state.global_step)


class SelectionMixin(_Base):
    """Before a trainer of TRL: ``class Mine(SelectionMixin, trl.GRPOTrainer)``.

    reselect: ``rap.trl.Reselect``; None is ``Reselect()``: all rows of ``train_dataset``,
    none ever exchanged. ``train_dataset`` is the pool, with an id column, each id once.
    Passes are counted by the watched reward function, or by the only one there is.
    Raises ``RapConfigError``: fewer prompts than a generation batch, ids that are not in
    the pool, an ``IterableDataset``, a checkpoint of another selection.
    """

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        *args: Any,
        reselect: Reselect | None = None,
        **options: Any,
    ) -> None:
        self.reselect = Reselect() if reselect is None else reselect
        functions = list(reward_funcs) if _is_list(reward_funcs) else [reward_funcs]
        recorder = _recorder(functions)
        if recorder is None and len(functions) == 1:
            functions[0] = watched(functions[0], id_column=self.reselect.id_column)
            recorder = functions[0].rap_recorder
        elif recorder is None and self.reselect.mode != "off":
            raise RapConfigError(
                f"mode = {self.reselect.mode!r} with {len(functions)} reward functions: "
                "wrap the one that says whether an answer is right in rap.trl.watched"
            )
        self._recorder = recorder or Recorder(None, self.reselect.id_column)
        processor = options.get("processing_class")
        if processor is not None and _has_images(options.get("train_dataset")):
            require_processor(processor)
        _pad_left(processor)
        super().__init__(model, functions, *args, **options)
        tell_end_tokens(functions, self.model, self.processing_class)
        self._placeholders = _placeholders(self.model, self.processing_class)
        if self.accelerator.num_processes > 1:
            _one_process(self.reselect)
        self.order = self._new_order()
        self.passes: dict[str, tuple[float, float]] = {}
        """{id: (passed, tried)}, older visits weighing less (``ReselectConfig.decay``)."""
        self.reselections: list[dict[str, Any]] = []
        """One entry a re-selection: step, how many came in, went, are active, and why;
        ``too_few``: the rules found less than a batch, and nothing was changed."""
        self.refilled = {"groups": 0, "no_variance": 0, "replaced": 0, "kept_anyway": 0}
        """What ``refill`` did, counted over the run."""
        self.rescoring_seconds = 0.0
        self._before, self._begin = 0.0, time.perf_counter()
        self.add_callback(_Between(self))

    # ------------------------------------------------ the order

    def _new_order(self) -> PromptOrder:
        data = self.train_dataset
        if data is None or not hasattr(data, "select"):
            raise RapConfigError(
                f"train_dataset is {type(data).__name__}: selecting needs a datasets."
                "Dataset, whose rows can be read in any order"
            )
        column = self.reselect.id_column
        plain = data.with_format(None)
        if column not in plain.column_names:
            raise RapConfigError(
                f"train_dataset has no id column {column!r}, it has "
                f"{', '.join(plain.column_names)}: rap.trl.prepare makes one"
            )
        self.pool_ids = [str(name) for name in plain[column][:]]
        twice = len(self.pool_ids) - len(set(self.pool_ids))
        if twice:
            name = next(x for x, n in Counter(self.pool_ids).items() if n > 1)
            raise RapConfigError(
                f"{twice} ids of train_dataset stand more than once, the first is "
                f"{name[:80]!r}: each names one sample"
            )
        self._rows_of(self.reselect.candidates())  # refused now, not in mid-training
        require_selected(data, self.reselect.selection)
        args = self.args
        if not getattr(args, "shuffle_dataset", True):
            raise RapConfigError(
                "shuffle_dataset = False: this trainer always shuffles its prompts; "
                "TRL's own trainer keeps the order of prepare(selection)"
            )
        return PromptOrder(
            len(self.pool_ids),
            self._rows_of(self.reselect.first_ids(self.pool_ids)),
            batch=args.generation_batch_size // self.num_generations,
            seed=args.seed,
        )

    def _rows_of(self, ids: Sequence[str]) -> list[int]:
        place = {name: row for row, name in enumerate(self.pool_ids)}
        missing = [name for name in ids if name not in place]
        if missing:
            raise RapConfigError(
                f"{len(missing)} of {len(ids)} selected ids are not in train_dataset, the "
                f"first is {missing[0][:80]!r}: with re-selection it is the whole pool, "
                "prepare(selection, pool=True), and every sample that may come in is usable"
            )
        return [place[name] for name in ids]

    def _get_train_sampler(self, dataset: Any = None) -> OrderSampler:
        args = self.args
        return OrderSampler(
            self.order,
            repeats=self.num_generations,
            rounds=self.num_iterations * args.steps_per_generation,
        )

    # ------------------------------------------------ checkpoints

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.state.stateful_callbacks[STATE] = self.selection_state()
        with saving(self.args.output_dir):
            super()._save_checkpoint(model, trial)

    def save_model(
        self, output_dir: str | None = None, _internal_call: bool = False
    ) -> None:
        as_loaded(self._tokenizer)
        first = self.is_world_process_zero()
        with saving(output_dir or self.args.output_dir, clears=first):
            super().save_model(output_dir, _internal_call)

    def _run_epoch(self, *args: Any, **options: Any) -> None:
        """transformers 5.23 looks after a step only whether it was the last: resumed from
        the last checkpoint of a run that ends within an epoch, it would do one more."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **options)

    def selection_state(self) -> dict[str, Any]:
        """What a checkpoint keeps; JSON."""
        return {
            "selection": self._fingerprint(),
            "order": self.order.state(),
            "passes": {name: list(counts) for name, counts in self.passes.items()},
            "reselections": list(self.reselections),
            "refilled": dict(self.refilled),
            "rescoring_seconds": self.rescoring_seconds,
            "seconds": self.seconds(),
        }

    def seconds(self) -> float:
        """Wall time of the training, with what a resumed run's checkpoint had."""
        return self._before + time.perf_counter() - self._begin

    def _fingerprint(self) -> dict[str, Any]:
        return {
            "algorithm": self._name,
            "num_generations": self.num_generations,
            "prompt_template": template_of_rows(self.train_dataset),
            "system_prompt": system_of_rows(self.train_dataset),
            **self.reselect.fingerprint(self.pool_ids),
        }

    def selection_begins(self, state: Any) -> None:
        """A run starts, or goes on from the checkpoint that ``state`` was read from."""
        self._begin = time.perf_counter()
        if state.global_step:
            saved = state.stateful_callbacks.get(STATE)
            if saved is None:
                raise RapConfigError(
                    "the checkpoint was made without rap's sampler: the order of its "
                    "prompts is not known, so it cannot be gone on with"
                )
            self._restore(saved)
        if self._recorder.log is not None and self.is_world_process_zero():
            self._recorder.log.start(state.global_step)
        self.accelerator.wait_for_everyone()  # no process logs before the start does

    def _restore(self, saved: Mapping[str, Any]) -> None:
        for name, value in self._fingerprint().items():
            if saved["selection"].get(name) != value:
                raise RapConfigError(
                    f"the checkpoint was made with another {name} "
                    f"({saved['selection'].get(name)}, here {value}): resume with the same "
                    "selection, or start anew"
                )
        self.order.load(saved["order"])
        self.passes = {n: (p[0], p[1]) for n, p in saved["passes"].items()}
        self.reselections = list(saved["reselections"])
        self.refilled = dict(saved["refilled"])
        self.rescoring_seconds = saved["rescoring_seconds"]
        self._before = saved["seconds"]

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """The checkpoint's weights, all of them.

        transformers 5.23 reads a checkpoint by the names in the file; ``save_pretrained``
        writes some classes (Qwen2.5-VL) under older names, so that a resumed run would go
        on with the weights it was started with, and only a warning would say so.
        """
        target = self.model if model is None else model
        whole = (
            isinstance(target, PreTrainedModel)
            and (Path(resume_from_checkpoint) / "config.json").is_file()
            and not (self.is_fsdp_enabled or self.is_deepspeed_enabled)
        )
        if not whole:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        saved = type(target).from_pretrained(resume_from_checkpoint, dtype=target.dtype)
        target.load_state_dict(saved.state_dict())

    # ------------------------------------------------ between steps

    def selection_step(self, step: int) -> None:
        """After optimiser step ``step``: count, and re-select when it is time."""
        outcomes = self._recorder.take()
        if self.accelerator.num_processes > 1:
            parts, outcomes = gather_object(list(outcomes.items())), {}
            for name, outcome in parts:  # a group may lie in two processes
                outcomes[name] = outcomes.get(name, Outcome()) + outcome
        self.passes = self.reselect.visited(self.passes, outcomes)
        if self.reselect.mode == "off" or step % self.reselect.every:
            return
        scores = self._rescored() if self.reselect.mode == "rescore" else None
        active = [self.pool_ids[row] for row in self.order.active]
        try:
            ids, counts = self.reselect.next_ids(active, self.passes, scores)
        except NothingLeft:
            ids, counts = [], {}
        came = gone = 0
        enough = len(ids) >= self.order.batch
        if enough:
            came, gone = self.order.replace(self._rows_of(ids))
        else:
            warnings.warn(
                f"re-selection at step {step} leaves {len(ids)} prompts, a generation "
                f"batch takes {self.order.batch}: the selection stays as it was",
                RuntimeWarning,
                stacklevel=2,
            )
        changed = {"came": came, "gone": gone, "active": len(self.order.active)}
        self.reselections.append(
            {"step": step, **changed, "too_few": not enough, "counts": counts}
        )
        self._tell(changed)

    def _tell(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._metrics["train"][f"rap/{name}"].append(float(value))

    def _rescored(self) -> Any:
        """Scores of the pool by the model as it is now (``Reselect.mode == "rescore"``).

        The random state and the training mode are left as they were.
        """
        from ..scoring.run import score

        begin = time.perf_counter()
        model = self.accelerator.unwrap_model(self.model)
        training, side = model.training, self._tokenizer.padding_side
        with torch.random.fork_rng():
            scores = score(
                model.eval(),
                self.processing_class,
                self.reselect.selection.samples,  # type: ignore[union-attr]
                config=self.reselect.score_config(),
                progress=False,
            )
        model.train(training)
        self._tokenizer.padding_side = side
        self.rescoring_seconds += time.perf_counter() - begin
        return scores

    def _calculate_rewards(self, *args: Any, **options: Any) -> Any:
        self._recorder.counting = self.model.training
        rewards = super()._calculate_rewards(*args, **options)
        self._totals = totals(rewards, self.reward_weights)
        return rewards

    # ------------------------------------------------ groups that teach nothing

    def _generate_and_score_completions(
        self, inputs: list[dict[str, Any]]
    ) -> dict[str, Any]:
        self._refuse_placeholders(inputs)
        batch = super()._generate_and_score_completions(inputs)
        if not (self.reselect.refill and self.model.training):
            return batch
        return self._refill(batch, {str(row[self.reselect.id_column]) for row in inputs})

    def _refuse_placeholders(self, inputs: Sequence[Mapping[str, Any]]) -> None:
        """Refuses image placeholders in a message, which would fail later without the
        sample's name. A prompt that is one string may hold them."""
        for row in inputs:
            text = "" if isinstance(row["prompt"], str) else completion_text(row["prompt"])
            for token in self._placeholders:
                if token in text:
                    raise RapInputError(
                        f"sample {str(row[self.reselect.id_column])[:80]!r}: its text "
                        f"holds {token!r}, which the processor takes for an image"
                    )

    def _refill(self, batch: dict[str, Any], used: set[str]) -> dict[str, Any]:
        """Groups whose rewards are all the same give way to groups of other prompts (as
        DAPO's dynamic sampling does), in ``refill`` more generations at most."""
        size = self.num_generations
        empty = without_variance(self._totals, size)
        self.refilled["groups"] += len(batch["advantages"]) // size
        self.refilled["no_variance"] += len(empty)
        avoid = set(self._rows_of(sorted(used)))
        for _ in range(self.reselect.refill):
            rows = self.order.spare(len(empty), avoid=avoid) if empty else []
            if not rows:
                break
            avoid.update(rows)
            data = self.train_dataset
            inputs = [row for i in rows for row in [data[i]] * size]
            self._refuse_placeholders(inputs)
            more = super()._generate_and_score_completions(inputs)
            barren = without_variance(self._totals, size)
            good = [g for g in range(len(rows)) if g not in barren]
            taken = list(zip(empty, good, strict=False))
            if taken:
                batch = exchange(batch, more, taken, size, self._tokenizer.pad_token_id)
            self.refilled["groups"] += len(rows)
            self.refilled["no_variance"] += len(barren)
            self.refilled["replaced"] += len(taken)
            empty = empty[len(taken) :]
        self.refilled["kept_anyway"] += len(empty)
        self._tell({"refill_missing": len(empty)})
        return batch


def _placeholders(model: Any, processor: Any) -> tuple[str, ...]:
    """Texts of the image placeholder token; empty for a model without images."""
    token = getattr(model.config, "image_token_id", None)
    return () if token is None else placeholder_texts(processor, token)


def _one_process(reselect: Reselect) -> None:
    if reselect.mode == "rescore" or reselect.refill:
        raise RapConfigError(
            "mode = 'rescore' and refill run in one process; mode = 'rewards' and 'off' in "
            "several"
        )


def _is_list(value: object) -> bool:
    return isinstance(value, (list, tuple))


def _recorder(functions: Sequence[Any]) -> Recorder | None:
    found = [f.rap_recorder for f in functions if hasattr(f, "rap_recorder")]
    if len(found) > 1:
        raise RapConfigError(
            f"{len(found)} reward functions are watched: watch the one that says whether "
            "an answer is right"
        )
    return found[0] if found else None


def _has_images(data: Any) -> bool:
    names = set(getattr(data, "column_names", None) or ())
    return template_of_rows(data) is not None or bool(names & {"image", "images"})


def _pad_left(processor: Any) -> None:
    """TRL generates from prompts padded on the left and pads token types as the processor
    does: a processor that pads on the right makes a model's own shape error of it."""
    tokenizer = getattr(processor, "tokenizer", processor)
    if tokenizer is not None:
        tokenizer.padding_side = "left"


class GRPOTrainer(SelectionMixin, trl.GRPOTrainer):
    """``trl.GRPOTrainer`` with the option ``reselect``; see ``SelectionMixin``."""


class RLOOTrainer(SelectionMixin, trl.RLOOTrainer):
    """``trl.RLOOTrainer`` with the option ``reselect``; see ``SelectionMixin``."""
