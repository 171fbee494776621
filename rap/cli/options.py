"""The options of the commands: what they are called, and what their texts mean.

``DATA_OPTIONS`` and the like are the groups that several commands share; below them is
how a text becomes a column map, a filter or a ``ScoreConfig``. ``rap.cli`` has the
commands.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from ..config import COUNTERFACTUALS, EVIDENCE, ORDERS, RULES, ScoreConfig
from ..errors import RapConfigError
from ..scores.evidence import describe as describe_evidence
from ..selection.rules import describe as describe_rules

MODES = ("off", "rewards", "rescore")
"""Of re-selection, as ``rap.trl.MODES``: the shell does not load that for a help text."""

# Headings of a long --help, and the options under them; the others come last.
SECTIONS = {
    "Data": "data columns root selection",
    "Completions made elsewhere": "rollouts rollout_columns where drop",
    "Model": "model store device dtype attn_implementation trust_remote_code allow_pickle",
    "Scoring": "evidence counterfactual m1 m0 max_new_tokens temperature seed batch_size "
    "reward settings progress retry verify_images",
    "Choosing": "rule budget lambda_c lambda_a replace readmit_hurt order by trivial "
    "divergence",
    "Choosing again": "rewards reward_columns now keep decay unsolved enough size",
    "Trainer": "to max_images prompt_template media_root data_source",
    "Training": "algorithm steps learning_rate train_seed train_reward lora train_settings "
    "config resume",
    "Which prompts": "reselect every refill",
    "Result": "out force report compare as_json title per_reason",
}


class Sectioned(click.Command):
    """A command whose --help groups its options."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        params = [
            (p.name, p.get_help_record(ctx))
            for p in self.get_params(ctx)
            if isinstance(p, click.Option)
        ]
        rows = {name: record for name, record in params if name and record}
        for title, names in SECTIONS.items():
            records = [rows.pop(name) for name in names.split() if name in rows]
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)
        with formatter.section("Other"):
            formatter.write_dl(list(rows.values()))


# ---------------------------------------------------------------- groups


def _compose(*decorators: Callable[..., Any]) -> Callable[..., Any]:
    def apply(function: Callable[..., Any]) -> Callable[..., Any]:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


PATH = click.Path(path_type=Path)

DATA_OPTIONS = _compose(
    click.option(
        "--columns",
        multiple=True,
        metavar="ROLE=NAME,...",
        help="Columns, where detection is wrong: roles are id, question, answer, choices, "
        "images, source; 'a.b' is field b of column a.",
    ),
    click.option(
        "--root",
        type=PATH,
        metavar="DIR",
        help="Folder that image paths are relative to and must stay in.  [default: the "
        "folder of DATA]",
    ),
)

MODEL_OPTIONS = _compose(
    click.option(
        "--evidence",
        type=click.Choice(EVIDENCE),
        help=f"{describe_evidence()}  [default: logits]",
    ),
    click.option(
        "--counterfactual",
        type=click.Choice(COUNTERFACTUALS),
        help="What 'without the image' means.  [default: drop]",
    ),
    click.option("--m1", type=int, help="Completions with the image.  [default: 5]"),
    click.option("--m0", type=int, help="Completions without it.  [default: 5]"),
    click.option("--max-new-tokens", type=int, help="Length of a completion, at most."),
    click.option("--temperature", type=float, help="Of the sampling.  [default: 1.0]"),
    click.option("--seed", type=int, help="[default: 0]"),
    click.option("--batch-size", type=int, help="Samples a forward.  [default: 8]"),
    click.option(
        "--reward",
        metavar="MODULE:FUNCTION",
        help="Your own answer checker, with TRL's signature, for evidence rollouts.",
    ),
    click.option(
        "--set",
        "settings",
        multiple=True,
        metavar="NAME=VALUE",
        help="Any other field of rap.ScoreConfig, e.g. workers=4, ace.heads=max, "
        "sampling.top_p=0.95. Repeatable.",
    ),
    click.option(
        "--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1, ..."
    ),
    click.option(
        "--dtype",
        type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
        default="auto",
        help="auto is the model's own.",
    ),
    click.option(
        "--attn-implementation", metavar="NAME", help="As in transformers, e.g. eager."
    ),
    click.option(
        "--trust-remote-code",
        is_flag=True,
        help="Run Python code that comes with the model. Read it first.",
    ),
    click.option(
        "--allow-pickle",
        is_flag=True,
        help="Load weights that are not safetensors; a pickle can run code.",
    ),
    click.option(
        "--retry",
        is_flag=True,
        help="Score quarantined samples of the store again (with their whole shards).",
    ),
    click.option(
        "--verify-images/--trust-images",
        default=True,
        help="Before going on, look whether images changed and score those again.",
    ),
    click.option(
        "--progress/--no-progress",
        default=None,
        help="Progress bar.  [default: when stderr is a terminal]",
    ),
)

CHOOSE_OPTIONS = _compose(
    click.option(
        "--rule",
        type=click.Choice(RULES),
        default="budget",
        show_default=True,
        help=describe_rules(),
    ),
    click.option("--budget", type=float, help="Share to keep.  [default: 0.09]"),
    click.option("--lambda-c", type=float, help="Keep only if D is above this."),
    click.option("--lambda-a", type=float, help="Drop if psi is above this."),
    click.option(
        "--replace/--no-replace",
        default=True,
        help="Replace always-solved samples by the hardest that can be solved.",
    ),
    click.option(
        "--readmit-hurt/--no-readmit-hurt",
        default=None,
        help="Samples that the image hurts may replace, too.  [default: rule paper only]",
    ),
    click.option(
        "--order",
        type=click.Choice(ORDERS),
        help="Rank by D, or by D times what is left to learn.  [default: gain for "
        "rollouts, else learnable]",
    ),
    click.option("--by", metavar="COLUMN", help="A budget for each value, e.g. source."),
    click.option("--trivial", type=float, default=0.0, help="Difficulty that is trivial."),
    click.option(
        "--divergence", default="js", help="D for evidence logits: js, kl, tv, ..."
    ),
)

OUTPUT_OPTIONS = _compose(
    click.option("--out", type=PATH, metavar="DIR", help="Save the selection here."),
    click.option("--report", type=PATH, metavar="FILE", help="Write an HTML page."),
    click.option(
        "--compare", type=PATH, metavar="DIR", help="Show what moved from that selection."
    ),
    click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text."),
)

FROM_FILE = "rap.train.arguments"
"""Where ``--config`` leaves what is no option of the command: TRL's own fields."""


def _read_config(ctx: click.Context, param: click.Parameter, path: Path | None) -> None:
    """A file's settings become defaults of the options that they name."""
    if path is None:
        return
    from ..trl.run import read_arguments

    found = read_arguments(path)
    options = [p for p in ctx.command.params if isinstance(p, click.Option)]
    names = {opt.lstrip("-").replace("-", "_"): p.name for p in options for opt in p.opts}
    ctx.default_map = {names[k]: v for k, v in found.items() if k in names}
    ctx.meta[FROM_FILE] = {k: v for k, v in found.items() if k not in names}


TRAIN_OPTIONS = _compose(
    click.option(
        "--config",
        type=PATH,
        metavar="FILE",
        is_eager=True,
        expose_value=False,
        callback=_read_config,
        help="YAML or TOML: options of this command and fields of TRL's configuration.",
    ),
    click.option(
        "--algorithm",
        metavar="NAME",
        default="grpo",
        show_default=True,
        help="grpo or rloo (TRL 1.16 has no PPO).",
    ),
    click.option("--steps", type=int, help="Optimiser steps.  [default: TRL's 3 epochs]"),
    click.option("--learning-rate", type=float, help="[default: TRL's]"),
    click.option(
        "--seed",
        "train_seed",
        type=int,
        help="Of the order and the sampling.  [default: 42]",
    ),
    click.option(
        "--reward",
        "train_reward",
        metavar="MODULE:FUNCTION",
        help="Reward function with TRL's signature.  [default: the built-in checker]",
    ),
    click.option("--lora", type=int, metavar="RANK", help="Train LoRA adapters (peft)."),
    click.option(
        "--reselect",
        type=click.Choice(MODES),
        default="off",
        show_default=True,
        help="Change the selection while training: by the rewards that training gives "
        "anyway, or by scoring the data again with the model as it is.",
    ),
    click.option(
        "--every",
        type=int,
        default=50,
        show_default=True,
        help="Steps between re-selections.",
    ),
    click.option(
        "--refill",
        type=int,
        default=0,
        show_default=True,
        metavar="TIMES",
        help="Replace groups without variance by other prompts, in at most so many more "
        "generations a batch (DAPO).",
    ),
    click.option("--resume", is_flag=True, help="Go on from the last checkpoint in --out."),
    click.option(
        "--set",
        "train_settings",
        multiple=True,
        metavar="NAME=VALUE",
        help="Any field of trl.GRPOConfig or RLOOConfig, e.g. num_generations=8, "
        "max_completion_length=512. Repeatable.",
    ),
    click.option(
        "--dtype",
        type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
        default="auto",
        help="auto is the model's own.",
    ),
    click.option(
        "--trust-remote-code",
        is_flag=True,
        help="Run Python code that comes with the model. Read it first.",
    ),
    click.option(
        "--allow-pickle",
        is_flag=True,
        help="Load weights that are not safetensors; a pickle can run code.",
    ),
)


def train_arguments(
    from_file: Mapping[str, Any], options: Mapping[str, Any]
) -> dict[str, Any]:
    """TRL's fields: those of the file, then --set, then the options of their own."""
    named = {"steps": "max_steps", "learning_rate": "learning_rate", "train_seed": "seed"}
    pairs = [_pair(text, "--set") for text in options["train_settings"]]
    given = {name: _json_value(text) for name, text in pairs}
    own = {to: options[name] for name, to in named.items() if options[name] is not None}
    return {**from_file, **given, **own}


CHOOSE_NAMES = (
    "rule",
    "budget",
    "lambda_c",
    "lambda_a",
    "replace",
    "readmit_hurt",
    "order",
    "by",
    "trivial",
    "divergence",
)


# ---------------------------------------------------------------- their texts


def _pair(text: str, option: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise click.UsageError(f"{option} {text!r}: expected NAME=VALUE")
    return name.strip(), value


def to_columns(values: Sequence[str]) -> dict[str, str] | None:
    parts = [part for value in values for part in value.split(",") if part]
    return dict(_pair(part, "--columns") for part in parts) or None


def _json_value(text: str) -> Any:
    """A JSON value where it is one, else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def filters(values: Sequence[str], option: str) -> dict[str, list[Any]] | None:
    """``augment=none`` several times -> {"augment": ["none", ...]}; ``null`` is null."""
    found: dict[str, list[Any]] = {}
    for value in values:
        name, text = _pair(value, option)
        found.setdefault(name, []).append(text)
    return found or None


def typed(
    filters: Mapping[str, list[Any]] | None, types: Mapping[str, Any]
) -> dict[str, list[Any]] | None:
    """Filter texts as the column's own type: 5 is a number only in a number column."""
    import pyarrow as pa

    def value(name: str, text: str) -> Any:
        if text == "null":
            return None
        kind = types.get(name)
        textual = kind is None or pa.types.is_string(kind) or pa.types.is_large_string(kind)
        return text if textual else _json_value(text)

    if filters is None:
        return None
    return {name: [value(name, t) for t in texts] for name, texts in filters.items()}


def score_config(options: Mapping[str, Any]) -> ScoreConfig:
    """The options given on the command line as a ``ScoreConfig``; the rest is default."""
    direct = ("evidence", "counterfactual", "m1", "m0", "seed", "batch_size")
    given = [(name, options[name]) for name in direct]
    given += [(f"sampling.{n}", options[n]) for n in ("max_new_tokens", "temperature")]
    config = ScoreConfig()
    fields: dict[str, dict[str, Any]] = {"": {}, "sampling": {}, "ace": {}}
    named = {k: _json_value(v) for k, v in (_pair(s, "--set") for s in options["settings"])}
    for name, value in [*given, *named.items()]:
        if value is None and name not in named:
            continue
        part, _, field = name.rpartition(".")
        target: Any = config if not part else getattr(config, part, None)
        known = part in fields and field in {f.name for f in dataclasses.fields(target)}
        if not known or (not part and field in fields):
            raise RapConfigError(f"--set {name}: rap.ScoreConfig has no such field")
        fields[part][field] = value
    return dataclasses.replace(
        config,
        sampling=dataclasses.replace(config.sampling, **fields["sampling"]),
        ace=dataclasses.replace(config.ace, **fields["ace"]),
        **fields[""],
    )
