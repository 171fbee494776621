"""``rap report | export | reselect``: what is done with a selection."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from ..errors import RapConfigError, RapInputError
from ..export.filter import PLAIN
from ..export.formats import TARGETS
from ..export.formats import describe as describe_targets
from .fields import Command, given, group, option
from .options import (
    CONFIG_OPTION,
    DATA,
    DATA_OPTIONS,
    PATH,
    RESELECT_OPTIONS,
    SHOWN_DATA_OPTIONS,
    json_option,
)
from .steps import open_data, print_json, refuse_another, require_same
from .texts import to_columns


@click.command(cls=Command)
@click.argument("selection", type=PATH)
@SHOWN_DATA_OPTIONS
@group(
    "Result",
    option(
        "--out",
        "-o",
        type=PATH,
        default=Path("report.html"),
        show_default=True,
        metavar="FILE",
        help="The page.",
    ),
    option(
        "--store",
        type=PATH,
        metavar="DIR",
        help="The score store: shows completions of the samples on the page.",
    ),
    option(
        "--compare",
        type=PATH,
        metavar="DIR",
        help="Another selection of the same data: says what moved.",
    ),
    option("--title", help="Heading of the page."),
    option(
        "--per-reason",
        type=int,
        default=12,
        show_default=True,
        help="Samples shown per reason.",
    ),
    option(
        "--browse",
        type=int,
        default=50_000,
        show_default=True,
        help="Samples to filter, sort and search; at most 30 MB for 50,000, 7 MB usually.",
    ),
    json_option,
)
@CONFIG_OPTION
def report(
    selection: Path,
    data: str | Path | None,
    out: Path,
    store: Path | None,
    compare: Path | None,
    title: str | None,
    per_reason: int,
    browse: int,
    columns: Sequence[str],
    root: Path | None,
    as_json: bool,
) -> None:
    """Write SELECTION (a folder of '--out') as one HTML page.

    The page holds counts per reason, histograms with the thresholds, what the selection
    cost, and the samples, to filter, sort and search, some with their images. It loads
    nothing from outside.

    \b
    Examples:
      rap report selection/ --data data.jsonl --store scores/ --out report.html
      rap report selection/ --compare older/ --out report.html
    """
    from ..report.page import write_report
    from ..selection.selection import load

    samples = open_data(data, columns, root)
    found = load(selection)
    if samples is not None:
        require_same(found.table, samples, found.settings.get("data"))
    path = write_report(
        found,
        out,
        dataset=samples,
        rollouts=store,
        title=title,
        per_reason=per_reason,
        compare=None if compare is None else load(compare),
        browse=browse,
    )
    if as_json:
        print_json({"report": str(path), "bytes": path.stat().st_size})
    else:
        click.echo(f"report: {path} ({path.stat().st_size:,} bytes)")


@click.command(cls=Command)
@click.argument("selection", type=PATH)
@group(
    "Data",
    option(
        "--data",
        type=DATA,
        help="The data set that was scored.  [default: where it was]",
    ),
)
@DATA_OPTIONS
@group(
    "Trainer",
    option(
        "--to",
        type=click.Choice([*TARGETS, *PLAIN]),
        required=True,
        help=f"The trainer. {describe_targets()}; parquet, jsonl: the rows as they are.",
    ),
    option(
        "--rewrite/--filter",
        "rewrite",
        default=None,
        help="Rewrite rows already in the trainer's form, or accept only such rows.  "
        "[default: they stay as they are]",
    ),
    option(
        "--add",
        multiple=True,
        metavar="NAME",
        help="Add this column of the selection (reason, D, difficulty, ...). Repeatable.",
    ),
    option("--max-images", type=int, metavar="N", help="Refuse samples with more images."),
    option(
        "--prompt-template",
        metavar="TEXT",
        help="With {question} and {choices}.  [default: as scored]",
    ),
    option(
        "--system-prompt",
        metavar="TEXT",
        help="The system turn before each prompt.  [default: as scored]",
    ),
    option(
        "--media-root",
        metavar="DIR",
        help="openrlhf, ms-swift: where the trainer will find --out, if elsewhere.",
    ),
    option("--data-source", metavar="NAME", help="verl: what it picks its reward by."),
    option(
        "--store",
        type=PATH,
        metavar="DIR",
        help="llamafactory: DPO pairs of the completions in this score store.",
    ),
)
@group(
    "Result",
    option("--out", type=PATH, required=True, metavar="DIR", help="Output folder."),
    option("--force", is_flag=True, help="Replace an older export in DIR."),
    json_option,
)
@CONFIG_OPTION
def export(
    selection: Path,
    to: str,
    out: Path,
    force: bool,
    data: str | Path | None,
    columns: Sequence[str],
    root: Path | None,
    store: Path | None,
    rewrite: bool | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Write the kept samples of SELECTION as files that a trainer reads.

    Rows that have the trainer's form already stay as they are: --rewrite writes them anew.

    \b
    Examples:
      rap export selection/ --to parquet --out chosen/
      rap export selection/ --data data.jsonl --to trl --out trl/
      rap export selection/ --data data.jsonl --to verl --out phase1/
      rap export selection/ --data data.jsonl --to llamafactory \\
          --store scores/ --out dpo/
    """
    from ..export.write import export as write
    from ..scores.store import ScoreStore
    from ..selection.selection import load

    completions = None
    if store is not None:
        with ScoreStore.load(store) as opened:
            completions = opened.completions()
        if completions is None:
            raise RapInputError(f"--store {store}: holds no completions")
    with warnings.catch_warnings():
        # said in the result, once
        warnings.filterwarnings("ignore", "columns of the data set that the export does")
        found = write(
            load(selection),
            to,
            out,
            data=open_data(data, columns, root),
            overwrite=force,
            completions=completions,
            filter=None if rewrite is None else not rewrite,
            **options,
        )
    if as_json:
        print_json(dataclasses.asdict(found))
    else:
        click.echo(str(found))


@click.command(cls=Command)
@click.argument("selection", type=PATH)
@group(
    "Choosing again",
    option(
        "--rewards",
        type=PATH,
        multiple=True,
        required=True,
        metavar="FILE",
        help="What the trainer logged, JSONL or Parquet. Repeatable, the oldest first.",
    ),
    option(
        "--reward-columns",
        multiple=True,
        metavar="ROLE=NAME,...",
        help="Its columns, where they have other names: id, reward, step.",
    ),
    option(
        "--now",
        type=PATH,
        metavar="DIR",
        help="A selection by the current model's scores.",
    ),
)
@RESELECT_OPTIONS
@group(
    "Result",
    option("--out", type=PATH, required=True, metavar="DIR", help="The next selection."),
    option("--force", is_flag=True, help="Replace another selection in DIR."),
    json_option,
)
@CONFIG_OPTION
def reselect(
    selection: Path,
    rewards: Sequence[Path],
    reward_columns: Sequence[str],
    now: Path | None,
    out: Path,
    force: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Choose again from SELECTION by the rewards of a training so far.

    Samples that became trivial or are never solved are removed, the hardest solvable
    ones are added, and a share of the first selection is kept. For trainers that cannot
    re-select themselves: train some steps, reselect, export, go on from the checkpoint.

    \b
    Examples:
      rap reselect selection/ --rewards rewards1.jsonl --out selection2/
      rap reselect selection2/ --rewards rewards1.jsonl --rewards rewards2.jsonl \\
          --out selection3/
      rap reselect selection/ --rewards log.parquet \\
          --reward-columns id=uid,reward=acc --out selection2/
    """
    from ..selection.reselection import ReselectConfig, pass_counts
    from ..selection.reselection import reselect as again
    from ..selection.selection import load
    from ..trl.rewardfile import read_visits

    config = ReselectConfig(**given(ReselectConfig, options))
    before = load(selection)
    if out.exists() and out.samefile(selection):
        raise RapConfigError(f"--out {out}: is SELECTION itself, which must stay")
    visits = read_visits(rewards, to_columns(reward_columns, "--reward-columns"))
    passes = pass_counts(visits, decay=config.decay)
    found = again(before, passes, config, now=None if now is None else load(now))
    if not force:
        refuse_another(out, found)
    found.save(out)
    if as_json:
        note = found.settings["reselect"]
        print_json({"selection": str(out), "kept": len(found), "tried": len(passes)} | note)
        return
    click.echo(f"{len(passes)} samples have rewards")
    click.echo(found.summary())
    click.echo(f"selection: {out}")
