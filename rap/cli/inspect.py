"""``rap inspect``: what rap reads in a data set, before any model runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from .fields import Command, group
from .options import CONFIG_OPTION, DATA, DATA_OPTIONS, LIMIT_OPTION, json_option
from .steps import open_data, print_json


@click.command(cls=Command)
@click.argument("data", type=DATA)
@DATA_OPTIONS
@LIMIT_OPTION
@group("Result", json_option)
@CONFIG_OPTION
def inspect(
    data: str | Path, columns: Sequence[str], root: Path | None, as_json: bool
) -> None:
    """Say how DATA is read: columns, form of the answers, two rows.

    No model is loaded and nothing is written. The same lines stand at the beginning of
    'rap score'; what was guessed is kept in its store. The images of 20 rows, spread over
    all of them, are opened.

    \b
    Examples:
      rap inspect data.jsonl
      rap inspect ScienceQA/train.parquet --json
      rap inspect data.csv --columns question=q,answer=gold --root images/
    """
    from ..samples.telling import text_of, told

    samples = open_data(data, columns, root)
    assert samples is not None  # DATA is required
    found = told(samples)
    if as_json:
        print_json(found)
    else:
        click.echo(text_of(found))
