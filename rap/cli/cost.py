"""``rap cost``: the bill of a selection against epochs of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..scores.bill import EPOCHS, MOST, Prices, cost
from ..scores.scores import Scores
from .fields import Command, field_options, given, group, option
from .options import CONFIG_OPTION, PATH, json_option
from .steps import print_json


@click.command("cost", cls=Command)
@click.argument("selection", type=PATH)
@group(
    "Prices",
    *field_options(Prices),
    option(
        "--epochs",
        type=click.IntRange(1, MOST),
        multiple=True,
        metavar="INTEGER",
        help="Epochs of training to work it out for. Repeatable.  [default: "
        f"{', '.join(map(str, EPOCHS))}]",
    ),
)
@group("Result", json_option)
@CONFIG_OPTION
def cost_of(
    selection: Path, epochs: tuple[int, ...], as_json: bool, **options: Any
) -> None:
    """Say what SELECTION cost, and when it has paid for itself.

    SELECTION may be a score store, too. The counts are those of the run; the prices are
    stated, in sampled completions. A selection is compared with as many epochs of training
    on everything.

    \b
    Examples:
      rap cost selection/
      rap cost selection/ --group 5 --training-share 0.5665 --epochs 15
      rap cost scores/ --training-share 0.1 --gpu-hour 2.5
    """
    from ..selection.selection import load

    table = "selection.parquet"
    chosen = selection.name == table or (selection / table).exists()
    of = load(selection) if chosen else Scores.load(selection)
    bill = cost(of, epochs=epochs or EPOCHS, **given(Prices, options))
    if as_json:
        print_json(bill.as_json())
    else:
        click.echo(str(bill))
