"""``rap check``: whether a model can be scored with, and how it is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from ..errors import RapConfigError, RapModelError
from .fields import Command, group, option
from .options import LOADING_OPTIONS, PATH, SHOWN_DATA_OPTIONS, json_option, refuse_given
from .steps import load, open_data, print_json, quiet_transformers


@click.command(cls=Command)
@click.argument("model")
@LOADING_OPTIONS
@group(
    "Does the answer depend on the token that psi flags?",
    option(
        "--cut",
        type=PATH,
        metavar="STORE",
        help="Scores of this model over --data: the flagged tokens are cut out of the "
        "sight of all later ones in every layer, and others at random.",
    ),
    option("--samples", type=int, default=64, help="The largest psi first."),
    option("--others", type=int, default=4, help="Random tokens a sample."),
    option("--seed", type=int, default=0),
)
@SHOWN_DATA_OPTIONS
@group("Result", json_option)
def check(
    model: str,
    cut: Path | None,
    samples: int,
    others: int,
    seed: int,
    data: str | Path | None,
    columns: Sequence[str],
    root: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Say whether MODEL, a folder or hub name, can be scored with, and how it is read.

    One small sample goes through the model; the queries, keys and hidden states that rap
    captures have to give the model's own attention and logits. What was found is printed;
    if something does not agree, so is the reason, and the exit code is 1.

    \b
    Examples:
      rap check ./Qwen2.5-VL-3B-Instruct
      rap check ./my-model --device cpu --dtype float32 --json
      rap check ./my-model --cut scores/ --data data.jsonl
    """
    if cut is None:
        refuse_given(
            ("data", "columns", "root", "samples", "others", "seed"), "without --cut"
        )
    elif data is None:
        raise RapConfigError("--cut needs --data, the data set that was scored")
    quiet_transformers()
    loaded, processor = load(model, options)
    from ..model.driver import ModelDriver
    from ..model.probe import facts_text

    driver = ModelDriver(loaded, processor)
    try:
        found = driver.describe()
    except RapModelError as error:
        if as_json:
            print_json({"ok": False, "reason": str(error), **driver.facts()})
        else:
            click.echo(facts_text(driver.facts()))
        raise
    if as_json:
        result: dict[str, Any] = {"ok": True, **dataclasses.asdict(found)}
    else:
        click.echo(str(found))
    if cut is not None:
        from ..scores.scores import Scores
        from ..scoring.causal import cut as cut_tokens

        numbers = {"samples": samples, "others": others, "seed": seed}
        report = cut_tokens(
            loaded,
            processor,
            open_data(data, columns, root),
            Scores.load(cut),
            **numbers,
        )
        if as_json:
            result["cut"] = report.as_dict()
        else:
            click.echo(str(report))
    if as_json:
        print_json(result)
