"""``rap inspect``: what rap reads in a data set, before any model runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..config import MAX_IMAGE_PIXELS
from .fields import Command, group
from .options import CONFIG_OPTION, DATA, DATA_OPTIONS, LIMIT_OPTION, json_option
from .steps import open_data, print_json

if TYPE_CHECKING:
    from ..samples.sampleset import SampleSet

ROWS = 20
"""Rows whose images are opened."""


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
    looked_at, unreadable = opened(samples)
    if as_json:
        print_json(found | {"images": {"rows": looked_at, "unreadable": unreadable}})
        return
    click.echo(text_of(found))
    if not unreadable:
        click.echo(f"  images of {looked_at} rows, spread over all: each can be read")
    for code, (count, message) in unreadable.items():
        click.echo(f"  images of {count} of {looked_at} rows: {code}: {message}")
    if "image_missing" in unreadable:
        click.echo("  image paths are relative to the data's folder, or to --root")


def opened(samples: SampleSet) -> tuple[int, dict[str, tuple[int, str]]]:
    """The images of `ROWS` rows, spread over all, opened as for scoring: how many rows
    were usable, {code: how many of them failed, and how the first one did}."""
    from ..samples.sample import BadSample, Sample
    from ..samples.sampleset import load_images

    n = len(samples)
    rows = [samples[i] for i in sorted({k * n // ROWS for k in range(ROWS)})]
    usable = [row for row in rows if isinstance(row, Sample)]
    failed: dict[str, tuple[int, str]] = {}
    for row in usable:
        try:
            load_images(row, max_pixels=MAX_IMAGE_PIXELS)
        except BadSample as bad:
            count, first = failed.get(bad.code, (0, bad.message))
            failed[bad.code] = count + 1, first
    return len(usable), failed
