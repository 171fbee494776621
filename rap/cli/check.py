"""``rap check``: whether a model can be scored with, and how it is read."""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from ..errors import RapModelError
from .fields import Command, group
from .options import LOADING_OPTIONS, json_option
from .steps import load, print_json, quiet_transformers


@click.command(cls=Command)
@click.argument("model")
@LOADING_OPTIONS
@group("Result", json_option)
def check(model: str, as_json: bool, **options: Any) -> None:
    """Say whether MODEL, a folder or hub name, can be scored with, and how it is read.

    One small sample goes through the model; the queries, keys and hidden states that rap
    captures have to give the model's own attention and logits. What was found is printed;
    if something does not agree, so is the reason, and the exit code is 1.

    \b
    Examples:
      rap check ./Qwen2.5-VL-3B-Instruct
      rap check ./my-model --device cpu --dtype float32 --json
    """
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
        print_json({"ok": True, **dataclasses.asdict(found)})
    else:
        click.echo(str(found))
