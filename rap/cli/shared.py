"""``rap plan | finish | merge``: stores that many processes fill."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from ..config import ScoreConfig
from ..errors import RapStoreError
from ..samples.text import counted
from .fields import Command, field_options, group, option
from .options import (
    CONFIG_OPTION,
    DATA,
    DATA_OPTIONS,
    PATH,
    SCORE_OPTIONS,
    json_option,
    model_options,
)
from .steps import open_data, print_json, recipe_of

LIMITS = group(
    "Limits",
    *field_options(ScoreConfig, only=("max_bad_fraction",)),
    option(
        "--allow-degenerate",
        is_flag=True,
        help="Accept the store although most groups of completions are identical, or the "
        "answers have no probability.",
    ),
)


@click.command(cls=Command)
@click.argument("data", type=DATA)
@DATA_OPTIONS
@model_options(store="The store that is to be filled.", needed=True, also=("--out",))
@SCORE_OPTIONS
@group("Result", json_option)
@CONFIG_OPTION
def plan(
    data: str | Path,
    model: str | None,
    store: Path,
    columns: Sequence[str],
    root: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Make the store that many processes will fill with scores of DATA.

    Works out once what every process needs: the rows, the shards and a hash of the samples
    of each, the fingerprint of model, settings and data. Takes the options of 'rap score';
    the first of its processes does the same where nobody has.

    \b
    Example, 8 GPUs of one machine, then a Slurm array on the same store:
      rap plan data.jsonl --model ./model --store scores/
      torchrun --nproc-per-node 8 --no-python rap score data.jsonl \\
          --model ./model --store scores/ --executor env
      sbatch --array 0-63 --wrap "rap score data.jsonl --model ./model \\
          --store scores/ --executor env"
    """
    if model is None and options["engine"] != "openai":
        raise click.UsageError("give --model, or --engine openai with a --base-url")
    samples = open_data(data, columns, root)
    assert samples is not None  # DATA is required
    from ..scoring.run import plan_by

    made = plan_by(recipe_of(samples, model, options), store)
    found = {
        "store": str(store),
        "samples": made.n_samples,
        "shard_size": made.shard_size,
        "shards": len(made.shards),
    }
    if as_json:
        print_json(found)
        return
    planned = f"{counted(made.n_samples, 'sample')} in {counted(len(made.shards), 'shard')}"
    click.echo(f"{planned} of up to {made.shard_size} planned in {store}")
    if made.n_samples < len(samples):
        click.echo(
            "the first round; each later one is planned when the one before is scored"
        )


@click.command(cls=Command)
@click.argument("store", type=PATH)
@LIMITS
@group("Result", json_option)
@CONFIG_OPTION
def finish(store: Path, as_json: bool, **limits: Any) -> None:
    """Verify and seal STORE, which many processes have filled.

    The last of them does this by itself: it is for a store whose last process died.

    \b
    Example:
      rap finish scores/
    """
    from ..scores.sealing import finish as seal
    from ..scores.store import ScoreStore

    whole = seal(store, **limits)
    shards = ScoreStore.load(store)
    if not whole:
        lacking = shards.missing()
        raise RapStoreError(
            f"{store}: {len(lacking)} of {shards.n_shards} shards are not scored yet "
            f"(first: {(lacking or [0])[0]}); any process of the run scores what is free, "
            "but with --no-steal only its own (--shard i/n): start those that are missing, "
            "or, where their shards lie in other stores, join them with rap merge"
        )
    if as_json:
        print_json({"store": str(store), "samples": shards.n_samples})
    else:
        click.echo(f"{shards.n_samples} samples in {store}")


@click.command(cls=Command)
@click.argument("stores", type=PATH, nargs=-1, required=True)
@LIMITS
@group(
    "Result",
    option("--out", type=PATH, required=True, metavar="DIR", help="The new store."),
    json_option,
)
@CONFIG_OPTION
def merge(stores: Sequence[Path], out: Path, as_json: bool, **limits: Any) -> None:
    """Join STORES that hold parts of one run, scored apart, into one.

    They are of the same data set, model and settings; every shard is in exactly one of
    them. The new store is that of one run, byte for byte.

    \b
    Example, two machines that share nothing:
      rap score data.jsonl --model ./model --store a/ --executor env \\
          --shard 0/2 --no-steal
      rap score data.jsonl --model ./model --store b/ --executor env \\
          --shard 1/2 --no-steal
      rap merge a/ b/ --out scores/
    """
    from ..scores.merge import merge as join

    merged = join(stores, out, **limits)
    if as_json:
        print_json({"store": str(out), "samples": merged.n_samples})
    else:
        click.echo(f"{merged.n_samples} samples in {out}")
