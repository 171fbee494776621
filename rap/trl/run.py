"""``rap train``: a training run on a selection, in a folder of its own.

Thin: the trainers are TRL's (``rap.trl``), every field of their configuration can be set.
The folder holds ``checkpoint-N/``, ``rewards.jsonl`` (pass counts per sample,
``trl.rewardlog``), ``log.jsonl`` (what the trainer logs, a line each time) and in the end
``model/`` and ``summary.json``.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from ..errors import (
    RapConfigError,
    RapError,
    RapInputError,
    first_line,
    install,
)
from ..model.prompt import require_processor
from ..samples.remote import is_hub_name, is_url
from ..samples.sampleset import SampleSet, open_samples
from ..scores.files import make_folder, write_result
from ..scoring.tracking import trackers
from ..settings import Ge, near, setting, settings
from .data import prepare
from .reselect import Reselect
from .rewardlog import LineLog
from .rewards import NO_PPO, builtin_reward, watched

if TYPE_CHECKING:
    from ..selection.selection import Selection

AlgorithmName = Literal["grpo", "rloo"]
ALGORITHMS: tuple[str, ...] = get_args(AlgorithmName)
DEMO = "demo"
"""Stands for the demo's model, and for ``DEMO_SAMPLES`` samples of its synthetic data."""
DEMO_SAMPLES = 240


@settings
class TrainConfig:
    """What ``train`` does besides what TRL's configuration says."""

    algorithm: AlgorithmName = setting(
        "The trainer; TRL 1.16 has no PPO.",
        default="grpo",
        hint=lambda value: NO_PPO if value == "ppo" else "",
    )
    reselect: Reselect = setting(
        "The selection to train on and how it changes; by default all of the data.",
        default_factory=Reselect,
    )
    lora: Annotated[int, Ge(1)] | None = setting(
        "Rank of LoRA adapters on every linear layer (needs peft).",
        default=None,
        none="all weights are trained",
    )
    arguments: Mapping[str, Any] = setting(
        "Fields of trl.GRPOConfig or trl.RLOOConfig.", default_factory=dict
    )


def train(
    model: Any,
    processor: Any,
    samples: SampleSet,
    out: Path,
    config: TrainConfig,
    *,
    reward: Callable[..., Any] | None = None,
    resume: bool = False,
    echo: Callable[[str], Any] = print,
) -> dict[str, Any]:
    """Train, or go on from the last checkpoint in ``out``; returns the summary.

    A run that was stopped before its first checkpoint begins again.

    reward: a reward function of TRL; None: the built-in checker.
    Raises ``RapConfigError`` for settings that cannot be (fewer prompts than a batch,
    unknown arguments, another selection than the checkpoint's, a folder that holds a run
    already), ``RapInputError`` for data and rewards that cannot be used,
    ``RapModelError`` for a tokenizer as processor.
    """
    require_processor(processor)
    checkpoint = _checkpoint(out, resume, echo)
    if checkpoint is not None:
        _same_adapters(Path(checkpoint), config.lora)
    trl = _trl()
    arguments = _arguments(trl, config, out)
    trainer = getattr(trl, f"{config.algorithm.upper()}Trainer")
    if reward is None:
        judge = builtin_reward()
    else:
        judge = _named(reward)
    made = trainer(
        model,
        watched(judge, out / "rewards.jsonl"),
        args=arguments,
        train_dataset=_pool(samples, config.reselect.selection),
        processing_class=processor,
        peft_config=None if config.lora is None else _lora(config.lora),
        reselect=config.reselect,
    )
    _speak(made, out / "log.jsonl", echo)
    made.train(resume_from_checkpoint=checkpoint)
    seconds = made.seconds()
    made.save_model(str(out / "model"))
    summary = {
        "algorithm": config.algorithm,
        "steps": made.state.global_step,
        "prompts": len(made.order.active),
        "pool": made.order.pool,
        "seconds": round(seconds, 1),
        "reselections": made.reselections,
        "rescoring_seconds": round(made.rescoring_seconds, 1),
        "refilled": made.refilled,
        "model": str(out / "model"),
    }
    text = json.dumps(summary, indent=1).encode() + b"\n"
    write_result(out / "summary.json", lambda file: file.write(text))
    return summary


def open_training_data(data: str | Path, **options: Any) -> SampleSet:
    """The samples of ``data``; ``demo`` (if no such file exists) is the synthetic data."""
    if is_url(data) or is_hub_name(data) or Path(data).exists():
        return open_samples(data, **options)
    if str(data) != DEMO:
        raise RapInputError(f"{data}: no such file or folder")
    from ..demo import world

    return open_samples(world.to_dataset(world.draw(DEMO_SAMPLES)))


def _trl() -> Any:
    """TRL's trainers (ours) and configurations in one place."""
    try:
        import trl

        from . import trainer
    except ImportError as error:
        raise RapConfigError(f"training needs TRL ({error}): {install('trl')}") from error
    names = ("GRPOTrainer", "RLOOTrainer")
    found = {name: getattr(trainer, name) for name in names}
    found |= {name: getattr(trl, name) for name in ("GRPOConfig", "RLOOConfig")}
    return type("trl", (), found)


def _arguments(trl: Any, config: TrainConfig, out: Path) -> Any:
    import torch

    kind = getattr(trl, f"{config.algorithm.upper()}Config")
    known = {f.name for f in dataclasses.fields(kind)}
    unknown = sorted(set(config.arguments) - known)
    if unknown:
        raise RapConfigError(
            f"{kind.__name__} has no {', '.join(unknown)}: not an option of rap train and "
            f"not a field of TRL's configuration{near(unknown[0], known)}"
        )
    gpu = torch.cuda.is_available()
    ours: dict[str, Any] = {
        "use_cpu": not gpu,
        "bf16": gpu and torch.cuda.is_bf16_supported(),
        "report_to": [],
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": 50,
    }
    given = dict(config.arguments)
    if "report_to" in given:
        given["report_to"] = list(trackers(given["report_to"]))
    try:
        return kind(output_dir=str(out), **ours | given)
    except (ValueError, TypeError) as error:
        raise RapConfigError(f"{kind.__name__}: {first_line(error)}") from error


def _checkpoint(out: Path, resume: bool, echo: Callable[[str], Any]) -> str | None:
    """The last whole checkpoint in ``out``, to go on from; None: from the beginning."""
    found = sorted(
        (int(p.name.rpartition("-")[2]), p)
        for p in out.glob("checkpoint-*")
        if p.name.rpartition("-")[2].isdigit()
    )
    begun = bool(found) or (out / "rewards.jsonl").exists()
    if resume and not begun:
        raise RapConfigError(f"--resume: {out} holds no training run")
    if not resume and begun:
        raise RapConfigError(
            f"{out} holds a training run: --resume goes on with it; or name another folder"
        )
    make_folder(out)
    whole = [path for _, path in found if _is_whole(path)]
    if resume:
        torn = [path.name for _, path in found if path not in whole]
        if torn:
            echo(f"not whole, passed over: {', '.join(torn)}")
        echo(f"going on from {whole[-1].name if whole else 'the beginning'}")
    return str(whole[-1]) if whole else None


def _same_adapters(checkpoint: Path, rank: int | None) -> None:
    """Refuse to load all weights into adapters, or adapters of another rank."""
    try:
        saved = json.loads((checkpoint / "adapter_config.json").read_bytes())["r"]
    except FileNotFoundError:
        saved = None
    if saved != rank:
        raise RapConfigError(
            f"{checkpoint} was made with lora = {saved}, here {rank}: resume with the "
            "same, or start anew in another folder"
        )


def _is_whole(checkpoint: Path) -> bool:
    """transformers writes the trainer's state last."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_bytes())
    except (OSError, ValueError):
        return False
    return True


def _named(reward: Callable[..., Any]) -> Callable[..., Any]:
    """``reward``, whose errors say that they are its own."""
    if inspect.iscoroutinefunction(reward):
        return reward

    @functools.wraps(reward)
    def wrapper(**columns: Any) -> Any:
        try:
            return reward(**columns)
        except RapError:
            raise
        except Exception as error:
            name = getattr(reward, "__name__", type(reward).__name__)
            raise RapInputError(
                f"the reward function {name!r} raised {type(error).__name__}: "
                f"{first_line(error)}"
            ) from error

    return wrapper


def _pool(samples: SampleSet, selection: Selection | None) -> Any:
    """All samples as TRL takes them, under the ids that the selection knows them by."""
    if selection is None:
        return prepare(samples)
    return prepare(dataclasses.replace(selection, source=samples), pool=True)


def _lora(rank: int) -> Any:
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise RapConfigError(f"--lora needs peft ({error}): {install('lora')}") from error
    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")


def _speak(trainer: Any, log: Path, echo: Callable[[str], Any]) -> None:
    """A line for a person each time the trainer logs, and all of it as JSON in ``log``."""
    from transformers import PrinterCallback, ProgressCallback, TrainerCallback

    def write(line: Mapping[str, Any]) -> None:
        LineLog(log).write(json.dumps(line))

    class Speaker(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step or log.exists():  # later steps are done, and logged, again
                write({"resumed": state.global_step})

        def on_log(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            logs = more["logs"]
            write({"step": state.global_step, **logs})
            if "reward" in logs:
                echo(_line(state.global_step, state.max_steps, logs))

    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(Speaker())


def _line(step: int, last: int, logs: Mapping[str, Any]) -> str:
    parts = [f"step {step}/{last}", f"reward {logs['reward']:.3f}"]
    if "frac_reward_zero_std" in logs:
        parts.append(f"groups without variance {logs['frac_reward_zero_std']:.0%}")
    if "rap/active" in logs:
        came, gone = int(logs["rap/came"]), int(logs["rap/gone"])
        parts.append(f"re-selected {int(logs['rap/active'])} (+{came} -{gone})")
    if "step_time" in logs:
        parts.append(f"{logs['step_time']:.1f} s a step")
    return ", ".join(parts)
