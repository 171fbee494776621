"""``rap train``: TRL's trainers on a selection, from the shell."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from ..errors import require_extra
from ..model.loading import load_model
from .configfile import FILE
from .fields import Command, given, group, option
from .options import (
    DATA,
    DATA_OPTIONS,
    NETWORK,
    PATH,
    TRAIN_OPTIONS,
    json_option,
    train_arguments,
)
from .steps import load_reward, print_json, require_same
from .texts import to_columns


@click.command(cls=Command)
@click.argument("data", type=DATA)
@DATA_OPTIONS
@group(
    "Data",
    option("--selection", type=PATH, metavar="DIR", help="Of 'rap choose'; else all."),
)
@group(
    "Model",
    option("--model", required=True, metavar="PATH", help="Folder, hub name, or demo."),
)
@TRAIN_OPTIONS
@group(
    "Result",
    option("--out", type=PATH, required=True, metavar="DIR", help="Output folder."),
    json_option,
)
@click.pass_context
def train(
    ctx: click.Context,
    /,
    data: str | Path,
    model: str,
    out: Path,
    selection: Path | None,
    columns: Sequence[str],
    root: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Train a model on a selection of DATA, with TRL's GRPO or RLOO.

    Every field of TRL's configuration can be set, by --set or in the file of --config,
    which may hold this command's options too. The run leaves checkpoints, log.jsonl,
    rewards.jsonl (pass counts per sample) and model/ in --out. --resume goes on from the
    last checkpoint with the same order of prompts. TRL 1.16 has no PPO.

    \b
    Examples:
      rap train data.jsonl --model ./model --selection selection/ --out run/ \\
          --steps 200
      rap train data.jsonl --model ./model --selection selection/ --out run/ \\
          --reselect rewards --every 50 --lora 16 --config grpo.yaml
      rap train demo --model demo --out run/ --steps 5 --set num_generations=4
    """
    require_extra("rap train", "trl", "torch", "transformers", "trl")
    from ..trl.reselect import Reselect
    from ..trl.run import TrainConfig, open_training_data
    from ..trl.run import train as run

    samples = open_training_data(
        data,
        columns=to_columns(columns),
        root=root,
        allow_network=bool(ctx.meta.get(NETWORK)),
    )
    click.echo(samples.describe(), err=True)  # a wrong column shows before hours of work
    chosen = None
    if selection is not None:
        from ..selection.selection import load

        chosen = load(selection, samples)
        require_same(chosen.table, samples, chosen.settings.get("data"))
    config = TrainConfig(
        reselect=Reselect(chosen, **given(Reselect, options)),
        arguments=train_arguments(ctx.meta.get(FILE, {}), options),
        **given(TrainConfig, options),
    )
    loaded, processor = load_model(
        model,
        device="cpu",  # TRL moves it
        dtype=options["dtype"],
        revision=options["revision"],
        trust_remote_code=options["trust_remote_code"],
        allow_pickle=options["allow_pickle"],
    )
    summary = run(
        loaded,
        processor,
        samples,
        out,
        config,
        reward=load_reward(options["train_reward"]),
        resume=options["resume"],
        echo=lambda text: click.echo(text, err=True),
    )
    if as_json:
        print_json(summary)
        return
    click.echo(
        f"{summary['steps']} steps on {summary['prompts']} of {summary['pool']} prompts in "
        f"{summary['seconds']:.0f} s\nmodel: {summary['model']}"
    )
