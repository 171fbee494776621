"""The options that several commands share, in groups, one heading of --help each.

Those that are settings come from the settings' fields (``rap.cli.fields``): a new field of
``ChooseConfig`` is an option of every command that chooses.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from ..config import (
    PRESETS,
    ChooseConfig,
    ExecutorConfig,
    Sampling,
    ScoreConfig,
    means,
    preset_of,
)
from ..engines import EngineConfig
from ..errors import RapConfigError
from ..samples.remote import is_url
from ..scores.kinds import describe as describe_evidence
from ..selection.reselection import ReselectConfig
from ..selection.rules import describe as describe_rules
from ..settings import field_types, is_settings, near
from ..trl.reselect import Reselect
from ..trl.run import TrainConfig
from .configfile import SETTINGS, config_option, with_file
from .fields import field_options, given, group, option
from .texts import json_value, pair

PATH = click.Path(path_type=Path)
NETWORK = "rap.allow_network"
"""Of a command's context: whether ``--allow-network`` was given."""
LIMIT = "rap.limit"
"""Of a command's context: ``--limit``, if it was given."""


class DataPath(click.ParamType):  # type: ignore[type-arg]  # as FieldType
    """A path, or an URL, which stays text."""

    name = "path"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> str | Path:
        return value if is_url(value) else Path(value)


DATA = DataPath()


def _note_network(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    ctx.meta[NETWORK] = value


def _note_limit(ctx: click.Context, param: click.Parameter, value: int | None) -> None:
    ctx.meta[LIMIT] = value


LIMIT_OPTION = group(
    "Data",
    option(
        "--limit",
        type=click.IntRange(min=1),
        metavar="N",
        expose_value=False,
        callback=_note_limit,
        help="The first N rows only, to try it; scores of them are kept when the same "
        "command runs without it.",
    ),
)
report_to_option = option(
    "--report-to",
    multiple=True,
    metavar="NAME",
    help="tensorboard, wandb, trackio, or what else transformers' report_to knows: gets "
    "numbers while the run goes on. Repeatable.",
)
json_option = option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
report_option = option("--report", type=PATH, metavar="FILE", help="Write an HTML page.")
COLUMNS = (
    option(
        "--columns",
        multiple=True,
        metavar="ROLE=NAME,...",
        callback=with_file,
        help="Columns, where detection is wrong: roles are id, question, answer, choices, "
        "images, source, system; 'a.b' is field b of column a.",
    ),
    option(
        "--root",
        type=PATH,
        metavar="DIR",
        help="Folder that image paths are relative to and must stay in.  [default: the "
        "folder of DATA]",
    ),
    option(
        "--allow-network",
        is_flag=True,
        expose_value=False,
        callback=_note_network,
        help="Fetch a data set that is not on this machine: an URL that fsspec knows "
        "(s3://, hf://datasets/ORG/NAME/FILE), or ORG/NAME[:SPLIT] of the hub.",
    ),
)
DATA_OPTIONS = group("Data", *COLUMNS)
SHOWN_DATA_OPTIONS = group(
    "Data",
    option("--data", type=DATA, help="The data set: images and questions to show."),
    *COLUMNS,
)

ROLLOUT_OPTIONS = group(
    "Completions made elsewhere",
    option(
        "--rollouts",
        type=PATH,
        metavar="FILE",
        help="Completions made elsewhere, instead of a model: JSONL or Parquet with the "
        "columns id, with_image and correct, one row a completion.",
    ),
    option(
        "--rollout-columns",
        multiple=True,
        metavar="ROLE=NAME,...",
        help="Their columns: id, with_image, correct, source.",
    ),
    option(
        "--where",
        multiple=True,
        metavar="NAME=VALUE",
        help="Use only rollouts with this value. Repeatable; a name given twice takes "
        "either.",
    ),
    option(
        "--drop",
        multiple=True,
        metavar="NAME=VALUE",
        help="Leave out rollouts with this value. Repeatable.",
    ),
)


# ---------------------------------------------------------------- models

_dtype = option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default="auto",
    help="Data type of the weights; auto is the model's own.",
)
_trust = (
    option(
        "--trust-remote-code",
        is_flag=True,
        help="Run Python code that comes with the model. Read it first.",
    ),
    option(
        "--allow-pickle",
        is_flag=True,
        help="Load weights that are not safetensors; a pickle can run code.",
    ),
)
_revision = option(
    "--revision", metavar="NAME", help="Of a hub name: branch, tag or commit."
)
_loading = (
    option("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1, ..."),
    _dtype,
    option("--attn-implementation", metavar="NAME", help="As in transformers, e.g. eager."),
    option(
        "--device-map",
        metavar="NAME",
        help="Split the model by its layers over the GPUs, as in transformers, e.g. auto "
        "(needs accelerate).",
    ),
    option(
        "--quantize",
        type=click.Choice(["4bit", "8bit"]),
        help="Weights in 4 or 8 bits while they are loaded (needs bitsandbytes).",
    ),
    _revision,
    *_trust,
)
LOADING_OPTIONS = group("Model", *_loading)


def model_options(
    *, store: str, needed: bool, also: Sequence[str] = ()
) -> Callable[..., Any]:
    """``--model``, ``--store`` (its help; needed: must be given; also: its other names) and
    how to load."""
    model = option(
        "--model",
        metavar="PATH",
        help="Model folder, hub name, or demo, the small model that comes along. With "
        "--engine openai it reads the attention of what the server sampled; without it ACE "
        "is skipped (evidence rollouts only).",
    )
    names = ("--store", *also, "store")
    kept = option(*names, type=PATH, required=needed, metavar="DIR", help=store)
    return group("Model", model, kept, *_loading)


# ---------------------------------------------------------------- scoring


def _both(*decorators: Callable[..., Any]) -> Callable[..., Any]:
    def apply(function: Callable[..., Any]) -> Callable[..., Any]:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


_RAY_WORKERS = "With --executor ray: processes that score, at most, one model each."

SCORE_OPTIONS = _both(
    group(
        "Engine",
        *field_options(
            EngineConfig, only=[f for f in field_types(EngineConfig) if f != "vllm_options"]
        ),
    ),
    group(
        "Scoring",
        *field_options(ScoreConfig, speed=False, texts={"evidence": describe_evidence()}),
        option(
            "--reward",
            metavar="MODULE:FUNCTION",
            multiple=True,
            help="Your own reward function, with TRL's signature, for evidence rollouts or "
            "cascade. Repeatable: their weighted sum is the reward.  "
            "[default: the built-in checker]",
        ),
        option(
            "--reward-weights",
            type=float,
            metavar="NUMBER",
            multiple=True,
            help="Weight of a reward function, one each, in their order. Repeatable.  "
            "[default: 1]",
        ),
        option(
            "--set",
            SETTINGS,
            multiple=True,
            metavar="NAME=VALUE",
            callback=with_file,
            help="Any field of rap.ScoreConfig; ace.NAME and sampling.NAME are those of "
            "its parts, e.g. ace.heads=max. Repeatable.",
        ),
        option(
            "--retry",
            is_flag=True,
            help="Score quarantined samples of the store again (with their whole shards).",
        ),
        option(
            "--verify-images/--trust-images",
            default=True,
            help="Before resuming, check whether images changed and score those again.",
        ),
    ),
    group("Sampling of completions", *field_options(Sampling)),
    group(
        "Processes",
        *field_options(
            ExecutorConfig, only=[f for f in field_types(ExecutorConfig) if f != "workers"]
        ),
    ),
    group(
        "Speed and limits",
        *field_options(ScoreConfig, speed=True, texts={"workers": _RAY_WORKERS}),
        option(
            "--progress/--no-progress",
            default=None,
            help="Progress: a bar on a terminal, else a line every half minute.  "
            "[default: on; --progress: the bar anywhere]",
        ),
        report_to_option,
        option(
            "--profile",
            is_flag=True,
            help="Measure where the time goes and count the work; kept in the store, shown "
            "in the report.",
        ),
    ),
)

CHOOSE_OPTIONS = group(
    "Choosing", *field_options(ChooseConfig, texts={"rule": describe_rules()})
)

PRESET_OPTION = group(
    "Preset",
    option(
        "--preset",
        type=click.Choice(list(PRESETS)),
        help="; ".join(f"{name}: {preset.text}" for name, preset in PRESETS.items())
        + ". Other options replace its parts.",
    ),
)

OUTPUT_OPTIONS = group(
    "Result",
    option("--out", type=PATH, metavar="DIR", help="Save the selection here."),
    option("--force", is_flag=True, help="Replace another selection in --out."),
    report_option,
    option(
        "--compare", type=PATH, metavar="DIR", help="Show differences from that selection."
    ),
    json_option,
)

CONFIG_OPTION = group("Other", config_option())

RESELECT_OPTIONS = group("Choosing again", *field_options(ReselectConfig))


# ---------------------------------------------------------------- training

TRAIN_OPTIONS = _both(
    group("Model", _dtype, _revision, *_trust),
    group(
        "Training",
        *field_options(TrainConfig, only=("algorithm", "lora")),
        option("--steps", type=int, help="Optimiser steps.  [default: TRL's 3 epochs]"),
        option(
            "--learning-rate",
            type=float,
            metavar="NUMBER",
            help="Peak learning rate.  [default: TRL's]",
        ),
        option(
            "--seed",
            "train_seed",
            type=int,
            help="Seed of the prompts' order and of sampling.  [default: 42]",
        ),
        option(
            "--reward",
            "train_reward",
            metavar="MODULE:FUNCTION",
            help="Reward function with TRL's signature.  [default: the built-in checker]",
        ),
        report_to_option,
        option("--resume", is_flag=True, help="Resume from the last checkpoint in --out."),
        option(
            "--set",
            "train_settings",
            multiple=True,
            metavar="NAME=VALUE",
            callback=with_file,
            help="Any field of trl.GRPOConfig or RLOOConfig, e.g. num_generations=8, "
            "max_completion_length=512. Repeatable.",
        ),
    ),
    group(
        "Which prompts",
        *field_options(
            Reselect, only=("mode", "every", "refill"), names={"mode": "reselect"}
        ),
    ),
    group("Other", config_option(" and fields of TRL's configuration", takes_rest=True)),
)


# ---------------------------------------------------------------- what was given


def score_config(options: Mapping[str, Any]) -> ScoreConfig:
    """The options given on the command line as a ``ScoreConfig``; the rest is default."""
    found = preset_of(options.get("preset"), "score")
    parts: dict[str, Any] = {
        name: dict(found.pop(name, {}))
        for name, kind in field_types(ScoreConfig).items()
        if is_settings(kind)
    }
    found |= _meant(ScoreConfig, options)
    parts["sampling"] |= given(Sampling, options)
    for name, text in (pair(text, "--set") for text in options[SETTINGS]):
        part, dot, field = name.partition(".")
        _require_field(name, parts)
        target, key = (parts[part], field) if dot else (found, name)
        target[key] = json_value(text)
    return ScoreConfig(**found, **parts)


def choose_config(options: Mapping[str, Any]) -> ChooseConfig:
    """The options given on the command line as a ``ChooseConfig``; the rest is default."""
    own = given(ChooseConfig, options)
    return ChooseConfig(**(preset_of(options.get("preset"), "choose", own) | own))


def engine_config(options: Mapping[str, Any]) -> EngineConfig:
    """The engine given on the command line. A usage error for evidence or a missing
    --model with which it cannot be used is the caller's."""
    return EngineConfig(**given(EngineConfig, options))


def executor_config(options: Mapping[str, Any]) -> ExecutorConfig:
    """Who scores, as given on the command line."""
    return ExecutorConfig(**_meant(ExecutorConfig, options))


def _meant(kind: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """As ``given``, of a scoring command: see ``means``."""
    names = means(kind, options.get("executor"))
    return {name: value for name, value in given(kind, options).items() if name in names}


def _require_field(name: str, parts: Iterable[str]) -> None:
    """Raises ``RapConfigError`` for what --set cannot set."""
    kinds = field_types(ScoreConfig)
    known = [n for n in kinds if n not in parts]
    for own in parts:
        known += [f"{own}.{f.name}" for f in dataclasses.fields(kinds[own])]
    if name not in known:
        inside = [n for n in known if n.endswith(f".{name}")]
        meant = f"; did you mean {inside[0]!r}?" if inside else near(name, known)
        raise RapConfigError(f"--set {name}: rap.ScoreConfig has no such field{meant}")


def refuse_given(names: Iterable[str], why: str, way: str = "") -> None:
    """A usage error that names those of these parameters that the user gave. ``way``: what
    to do instead."""
    context = click.get_current_context()
    sources = (ParameterSource.COMMANDLINE, ParameterSource.DEFAULT_MAP)
    wanted = set(names)
    found = [
        max(param.opts, key=len)
        for param in context.command.params
        if param.name in wanted and context.get_parameter_source(param.name) in sources
    ]
    if found:
        raise click.UsageError(f"no effect {why}: {', '.join(found)}{way and '; '}{way}")


def train_arguments(
    from_file: Mapping[str, Any], options: Mapping[str, Any]
) -> dict[str, Any]:
    """TRL's fields: those of the file, then --set, then the options of their own."""
    named = {"steps": "max_steps", "learning_rate": "learning_rate", "train_seed": "seed"}
    pairs = [pair(text, "--set") for text in options["train_settings"]]
    set_by_name = {name: json_value(text) for name, text in pairs}
    own = {to: options[name] for name, to in named.items() if options[name] is not None}
    if options["report_to"]:
        own["report_to"] = list(options["report_to"])
    return {**from_file, **set_by_name, **own}
