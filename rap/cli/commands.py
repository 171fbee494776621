"""The shell: ``rap score | choose | select | report | cost | export | reselect | plan |
finish | merge | train | inspect | check | info | demo``.

Every command is a few calls of the Python interface; nothing is decided here. Exit
codes: 0 done; 1 the data, the model or the store cannot be used; 2 a wrong command line
or setting; 130 Ctrl-C; 143 SIGTERM. An error is one sentence on stderr (``--debug``
shows the traceback); what a script would read goes to stdout, as JSON with ``--json``.
The options and what their texts mean are in ``rap.cli.options``, the exit codes in
``rap.cli.shell``, the steps that commands share in ``rap.cli.steps``.
"""

from __future__ import annotations

import dataclasses
import signal
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from ..config import DEFAULT_BUDGET, require_whole
from ..installed import version
from ..selection.groups import require_columns
from ..selection.rules import check as check_rule
from .about import demo, info
from .check import check
from .cost import cost_of
from .fields import Command, group
from .inspect import inspect
from .options import (
    CHOOSE_OPTIONS,
    CONFIG_OPTION,
    DATA,
    DATA_OPTIONS,
    LIMIT_OPTION,
    OUTPUT_OPTIONS,
    PATH,
    PRESET_OPTION,
    ROLLOUT_OPTIONS,
    SCORE_OPTIONS,
    SHOWN_DATA_OPTIONS,
    choose_config,
    executor_config,
    json_option,
    model_options,
    refuse_given,
    score_config,
)
from .results import export, report, reselect
from .shared import finish, merge, plan
from .shell import Shell, on_sigterm, show_warning
from .steps import (
    choose_and_tell,
    from_rollouts,
    open_data,
    plain_meta,
    print_json,
    refuse_chosen,
    refuse_unwritable,
    score_data,
)
from .texts import to_columns
from .train import train


@click.group(
    cls=Shell,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 96},
)
@click.version_option(version("rap-select") or "0+unknown", prog_name="rap")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(debug: bool) -> None:
    """Choose the few per cent of multimodal samples worth training on, and say why.

    For each sample a model is asked twice, with the image and without it. Kept are
    samples whose outcome depends on the image and that are neither always nor never
    solved. Answers that hang on one over-attended token are reported, and dropped with
    --biased drop.

    \b
    A first look, with data that comes along:
      rap demo
    One step, with your own data and model:
      rap select data.jsonl --model ./Qwen2.5-VL-3B-Instruct --budget 0.09 \\
          --out selection/ --report report.html
    The same in two: scoring is slow and resumes; choosing is instant:
      rap score data.jsonl --model ./Qwen2.5-VL-3B-Instruct --store scores/
      rap choose scores/ --budget 0.05 --out selection/
    From completions you already have:
      rap select data.jsonl --rollouts rollouts.parquet --out selection/

    \b
    DATA is one JSONL, JSON, Parquet, CSV or TSV file (gzip too) beside its
    images, many Parquet files (a folder or quoted pattern, 'train-*.parquet'),
    or a folder of datasets.save_to_disk. Columns are found by name, chats as
    TRL, verl or LLaVA write them; --columns overrides.
    --model demo is the small model that comes along.
    Exit codes: 0 done, 1 data, model or store unusable, 2 wrong command line or
    setting, 130 Ctrl-C, 143 SIGTERM.
    """
    signal.signal(signal.SIGTERM, on_sigterm)
    if not debug:
        warnings.showwarning = show_warning


@main.command(cls=Command)
@click.argument("data", type=DATA)
@DATA_OPTIONS
@LIMIT_OPTION
@model_options(store="Scores go here.", needed=True)
@PRESET_OPTION
@SCORE_OPTIONS
@group("Result", json_option)
@CONFIG_OPTION
def score(
    data: str | Path,
    model: str | None,
    store: Path,
    columns: Sequence[str],
    root: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Score every sample of DATA with a model (slow, resumable).

    The scores go to a store, one file a shard. Whatever stops a run, the same command
    goes on where it stopped. Of a changed data set the samples that stayed keep their
    scores; another model, setting or data set without a common sample is refused. A
    sample that cannot be scored is set aside with a code and a reason.

    \b
    Examples:
      rap score data.jsonl --model ./Qwen2.5-VL-3B-Instruct --store scores/
      rap score train.parquet --model ./model --store scores/ \\
          --evidence rollouts --m1 5 --m0 5 --max-new-tokens 512
      rap score data.jsonl --model ./model --store scores/ \\
          --columns question=problem,answer=solution --counterfactual blank
      rap score data.jsonl --model ./model --store scores/ --evidence rollouts \\
          --engine openai --base-url http://127.0.0.1:8000/v1 --concurrency 64
      rap score data.jsonl --model ./model --store scores/ \\
          --executor ray --workers 8 --gpus-per-worker 1 --ray-address auto
    """
    if model is None and options["engine"] != "openai":
        raise click.UsageError("give --model, or --engine openai with a --base-url")
    shared = options["executor"] != "local"
    samples = open_data(data, columns, root, store if shared else None)
    assert samples is not None  # DATA is required
    scores = score_data(samples, model, store, options)
    found = {"store": str(store), "samples": len(scores), **plain_meta(scores)}
    part = scores.meta.get("part")
    if as_json:
        print_json(found)
        return
    click.echo(f"{len(scores)} samples in {store}")
    for name, count in found.get("counts", {}).items():
        click.echo(f"  {count:>9}  {name}")
    for name, value in found.get("cost", {}).items():
        if isinstance(value, (int, float)) and name != "samples":
            click.echo(f"  {value:>9,.0f}  {name}")
    if part is not None:
        click.echo(f"these are part {part} of {len(samples)}; next: rap merge, or the rest")
        return
    click.echo(f"next: rap choose {store} --budget {DEFAULT_BUDGET} --out selection/")


@main.command(cls=Command)
@click.argument("scores", type=PATH)
@SHOWN_DATA_OPTIONS
@PRESET_OPTION
@CHOOSE_OPTIONS
@OUTPUT_OPTIONS
@CONFIG_OPTION
def choose(
    scores: Path,
    data: str | Path | None,
    columns: Sequence[str],
    root: Path | None,
    **options: Any,
) -> None:
    """Choose from SCORES, a store that 'rap score' filled (instant).

    \b
    Examples:
      rap choose scores/                            # 9 % are kept
      rap choose scores/ --budget 0.05 --out five/ --report five.html \\
          --data data.jsonl
      rap choose scores/ --rule learn --coverage-by source
      rap choose scores/ --rule paper --lambda-c 0.3
      rap choose scores/ --budget 0.1 --by source --compare five/
    """
    from ..scores.match import described_again
    from ..scores.scores import Scores

    samples = open_data(data, columns, root)
    found = Scores.load(scores)
    if samples is not None:
        known = described_again(found.table, samples, found.meta.get("data"))
        meta = {**found.meta, "data": known}
        found = dataclasses.replace(found, dataset=samples, meta=meta)
    rules = choose_config(options)
    mapped = (to_columns(columns) or {}).get("source")
    if rules.by == "source" and mapped:  # the store may hold another column's values
        rules = dataclasses.replace(rules, by=mapped)
    choose_and_tell(found, rules, options)


@main.command(cls=Command)
@click.argument("data", type=DATA, required=False)
@DATA_OPTIONS
@LIMIT_OPTION
@ROLLOUT_OPTIONS
@model_options(store="Scores go here.  [default: OUT/scores]", needed=False)
@PRESET_OPTION
@SCORE_OPTIONS
@CHOOSE_OPTIONS
@OUTPUT_OPTIONS
@CONFIG_OPTION
def select(
    data: str | Path | None,
    model: str | None,
    store: Path | None,
    rollouts: Path | None,
    rollout_columns: Sequence[str],
    where: Sequence[str],
    drop: Sequence[str],
    columns: Sequence[str],
    root: Path | None,
    **options: Any,
) -> None:
    """Score and choose in one, or choose from completions you have.

    \b
    Examples:
      rap select data.jsonl --model ./Qwen2.5-VL-3B-Instruct --budget 0.09 \\
          --out selection/ --report report.html
      rap select --rollouts records.parquet --where augment=none \\
          --drop model=random --rule paper --json
      rap select data.jsonl --rollouts mine.jsonl \\
          --rollout-columns id=qid,correct=acc --out selection/
    """
    if rollouts is not None:
        params = click.get_current_context().command.params
        model_only = [p.name for p in params if getattr(p, "section", "") in MODEL_ONLY]
        refuse_given(model_only, "with --rollouts, which stands in for a model")
    else:
        refuse_given(("rollout_columns", "where", "drop"), "without --rollouts")
    samples = open_data(data, columns, root)
    rules = choose_config(options)
    refuse_chosen(options["out"], options["force"], rules)
    if rollouts is not None:
        scores = from_rollouts(rollouts, rollout_columns, where, drop, samples)
    else:
        if samples is None or (model is None and options["engine"] != "openai"):
            raise click.UsageError("give DATA and --model, or --rollouts FILE")
        if store is None:
            if options["out"] is None:
                raise click.UsageError("give --out DIR or --store DIR: scores must live on")
            store = options["out"] / "scores"
        check_rule(rules, score_config(options).evidence)
        require_columns(rules, samples.column_names)
        require_whole(executor_config(options), "rap select")
        refuse_unwritable(options["out"], options["report"])
        scores = score_data(samples, model, store, options)
    choose_and_tell(scores, rules, options)


MODEL_ONLY = (
    *("Model", "Engine", "Scoring", "Sampling of completions", "Processes"),
    "Speed and limits",
)
"""Headings whose options a selection from given completions does not use."""


_OTHERS = (report, export, reselect, cost_of, plan, finish, merge)

for command in (*_OTHERS, train, inspect, check, info, demo):
    main.add_command(command)
