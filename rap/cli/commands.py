"""The shell: ``rap score | choose | select | report | export | reselect | train | info
| demo``.

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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from ..config import EVIDENCE, ChooseConfig, require_threshold
from ..errors import RapConfigError, RapInputError
from ..export.formats import TARGETS
from .options import (
    CHOOSE_NAMES,
    CHOOSE_OPTIONS,
    DATA_OPTIONS,
    FROM_FILE,
    MODEL_OPTIONS,
    OUTPUT_OPTIONS,
    PATH,
    SECTIONS,
    TRAIN_OPTIONS,
    Sectioned,
    score_config,
    to_columns,
    train_arguments,
)
from .shell import Shell, on_sigterm, show_warning
from .steps import (
    choose_and_tell,
    from_rollouts,
    load_reward,
    open_data,
    plain_meta,
    print_json,
    quiet_transformers,
    refuse_another,
    refuse_given,
    require_same,
    score_data,
)


@click.group(
    cls=Shell,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 96},
)
@click.version_option(package_name="rap-select", prog_name="rap")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(debug: bool) -> None:
    """Choose the few per cent of multimodal samples worth training on, and say why.

    For each sample a model is asked twice, with the image and without it. Kept are
    samples whose outcome depends on the image, whose answer does not hang on one
    over-attended token, and that are neither always nor never solved.

    \b
    A first look, with data that comes along:
      rap demo
    One step, with your own data and model:
      rap select data.jsonl --model ./Qwen2.5-VL-3B-Instruct --budget 0.09 \\
          --out selection/ --report report.html
    The same in two: scoring is slow, resumable and done once; choosing is instant:
      rap score data.jsonl --model ./Qwen2.5-VL-3B-Instruct --store scores/
      rap choose scores/ --budget 0.05 --out selection/
    From completions you already have:
      rap select data.jsonl --rollouts rollouts.parquet --out selection/

    \b
    DATA is JSONL beside its images, Parquet (TRL's, verl's or EasyR1's columns), or a
    folder of datasets.save_to_disk. Columns are found by name; --columns overrides.
    Exit codes: 0 done, 1 data, model or store unusable, 2 wrong command line or
    setting, 130 Ctrl-C, 143 SIGTERM.
    """
    signal.signal(signal.SIGTERM, on_sigterm)
    if not debug:
        warnings.showwarning = show_warning


@main.command(cls=Sectioned)
@click.argument("data", type=PATH)
@click.option("--model", required=True, metavar="PATH", help="Model folder, or hub name.")
@click.option("--store", type=PATH, required=True, metavar="DIR", help="Scores go here.")
@DATA_OPTIONS
@MODEL_OPTIONS
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def score(
    data: Path,
    model: str,
    store: Path,
    columns: Sequence[str],
    root: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Score every sample of DATA with a model (slow, resumable).

    The scores go to a store, one file a shard. Whatever stops a run, the same command
    goes on where it stopped; another model, data set or setting on the same store is
    refused. A sample that cannot be scored is set aside with a code and a reason.

    \b
    Examples:
      rap score data.jsonl --model ./Qwen2.5-VL-3B-Instruct --store scores/
      rap score train.parquet --model ./model --store scores/ \\
          --evidence rollouts --m1 5 --m0 5 --max-new-tokens 512
      rap score data.jsonl --model ./model --store scores/ \\
          --columns question=problem,answer=solution --counterfactual blank
    """
    samples = open_data(data, columns, root)
    assert samples is not None  # DATA is required
    scores = score_data(samples, model, store, options)
    found = {"store": str(store), "samples": len(scores), **plain_meta(scores)}
    if as_json:
        print_json(found)
        return
    click.echo(f"{len(scores)} samples in {store}")
    for name, count in found.get("counts", {}).items():
        click.echo(f"  {count:>9}  {name}")
    for name, value in found.get("cost", {}).items():
        if isinstance(value, (int, float)) and name != "samples":
            click.echo(f"  {value:>9,.0f}  {name}")
    click.echo(f"next: rap choose {store} --budget 0.09 --out selection/")


@main.command(cls=Sectioned)
@click.argument("scores", type=PATH)
@click.option("--data", type=PATH, help="The data set: images and questions to show.")
@DATA_OPTIONS
@CHOOSE_OPTIONS
@OUTPUT_OPTIONS
def choose(
    scores: Path,
    data: Path | None,
    columns: Sequence[str],
    root: Path | None,
    **options: Any,
) -> None:
    """Choose from SCORES, a store that 'rap score' filled (instant).

    \b
    Examples:
      rap choose scores/                            # 9 % are kept
      rap choose scores/ --budget 0.05 --out five/ --report five.html --data data.jsonl
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
    choose_and_tell(found, options)


@main.command(cls=Sectioned)
@click.argument("data", type=PATH, required=False)
@click.option("--model", metavar="PATH", help="Model folder, or hub name.")
@click.option(
    "--store", type=PATH, metavar="DIR", help="Scores go here.  [default: OUT/scores]"
)
@click.option(
    "--rollouts",
    type=PATH,
    metavar="FILE",
    help="Completions made elsewhere, instead of a model: JSONL or Parquet with the "
    "columns id, with_image and correct, one row a completion.",
)
@click.option(
    "--rollout-columns",
    multiple=True,
    metavar="ROLE=NAME,...",
    help="Their columns: id, with_image, correct, source.",
)
@click.option(
    "--where",
    multiple=True,
    metavar="NAME=VALUE",
    help="Use only rollouts with this value. Repeatable; a name given twice takes either.",
)
@click.option(
    "--drop",
    multiple=True,
    metavar="NAME=VALUE",
    help="Leave out rollouts with this value. Repeatable.",
)
@DATA_OPTIONS
@CHOOSE_OPTIONS
@OUTPUT_OPTIONS
@MODEL_OPTIONS
def select(
    data: Path | None,
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
      rap select --rollouts records.parquet --where augment=none --drop model=random \\
          --rule paper --json
      rap select data.jsonl --rollouts mine.jsonl \\
          --rollout-columns id=qid,correct=acc --out selection/
    """
    chosen = {k: options.pop(k) for k in (*CHOOSE_NAMES, "out", "report", "compare")}
    chosen["as_json"] = options.pop("as_json")
    if rollouts is not None:
        refuse_given(
            f"{SECTIONS['Model']} {SECTIONS['Scoring']}",
            "with --rollouts, which stands in for a model",
        )
    else:
        refuse_given("rollout_columns where drop", "without --rollouts")
    samples = open_data(data, columns, root)
    if rollouts is not None:
        scores = from_rollouts(rollouts, rollout_columns, where, drop, samples)
    else:
        if samples is None or model is None:
            raise click.UsageError("give DATA and --model, or --rollouts FILE")
        if store is None:
            if chosen["out"] is None:
                raise click.UsageError("give --out DIR or --store DIR: scores must live on")
            store = chosen["out"] / "scores"
        rules = ChooseConfig(**{name: chosen[name] for name in CHOOSE_NAMES})
        require_threshold(rules, score_config(options).evidence)
        scores = score_data(samples, model, store, options)
    choose_and_tell(scores, chosen)


@main.command(cls=Sectioned)
@click.argument("selection", type=PATH)
@click.option("--data", type=PATH, help="The data set: images and questions to show.")
@click.option(
    "--out", "-o", type=PATH, default=Path("report.html"), show_default=True, metavar="FILE"
)
@click.option("--title", help="Heading of the page.")
@click.option(
    "--per-reason", type=int, default=12, show_default=True, help="Samples shown a reason."
)
@DATA_OPTIONS
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def report(
    selection: Path,
    data: Path | None,
    out: Path,
    title: str | None,
    per_reason: int,
    columns: Sequence[str],
    root: Path | None,
    as_json: bool,
) -> None:
    """Write SELECTION (a folder of '--out') as one HTML page.

    The page holds counts per reason, histograms with the thresholds, what the selection
    cost, and samples with their images. It loads nothing from outside.

    \b
    Example:
      rap report selection/ --data data.jsonl --out report.html
    """
    from ..report.page import write_report
    from ..selection.selection import load

    samples = open_data(data, columns, root)
    found = load(selection)
    if samples is not None:
        require_same(found.table, samples, found.settings.get("data"))
    path = write_report(found, out, dataset=samples, title=title, per_reason=per_reason)
    if as_json:
        print_json({"report": str(path), "bytes": path.stat().st_size})
    else:
        click.echo(f"report: {path} ({path.stat().st_size:,} bytes)")


@main.command(cls=Sectioned)
@click.argument("selection", type=PATH)
@click.option("--to", type=click.Choice(list(TARGETS)), required=True, help="The trainer.")
@click.option("--out", type=PATH, required=True, metavar="DIR", help="Files go here.")
@click.option("--force", is_flag=True, help="Replace an older export in DIR.")
@click.option(
    "--data", type=PATH, help="The data set that was scored.  [default: where it was]"
)
@DATA_OPTIONS
@click.option(
    "--max-images", type=int, metavar="N", help="Refuse samples with more pictures."
)
@click.option(
    "--prompt-template",
    metavar="TEXT",
    help="With {question} and {choices}.  [default: as scored]",
)
@click.option(
    "--media-root",
    metavar="DIR",
    help="openrlhf, ms-swift: where the trainer will find --out, if elsewhere.",
)
@click.option("--data-source", metavar="NAME", help="verl: what it picks its reward by.")
@click.option(
    "--store",
    type=PATH,
    metavar="DIR",
    help="llamafactory: DPO pairs of the completions in this score store.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def export(
    selection: Path,
    to: str,
    out: Path,
    force: bool,
    data: Path,
    columns: Sequence[str],
    root: Path | None,
    store: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Write the kept samples of SELECTION as files that a trainer reads.

    For trl, verl, easyr1, openrlhf and ms-swift these are GRPO's inputs. LLaMA-Factory
    has no GRPO: it gets SFT on the reference answers or, with --store, DPO pairs.

    \b
    Examples:
      rap export selection/ --data data.jsonl --to trl --out trl/
      rap export selection/ --data data.jsonl --to verl --out phase1/
      rap export selection/ --data data.jsonl --to llamafactory --store scores/ --out dpo/
    """
    from ..export.write import export as write
    from ..scores.store import ScoreStore
    from ..selection.selection import load

    completions = None
    if store is not None:
        with ScoreStore.load(store) as opened:
            completions = opened.read_rollouts()
        if completions is None:
            raise RapInputError(f"--store {store}: holds no completions")
    found = write(
        load(selection),
        to,
        out,
        data=open_data(data, columns, root),
        overwrite=force,
        completions=completions,
        **options,
    )
    if as_json:
        print_json(dataclasses.asdict(found))
    else:
        click.echo(str(found))


@main.command(cls=Sectioned)
@click.argument("selection", type=PATH)
@click.option(
    "--rewards",
    type=PATH,
    multiple=True,
    required=True,
    metavar="FILE",
    help="What the trainer logged, JSONL or Parquet. Repeatable, the oldest first.",
)
@click.option(
    "--reward-columns",
    multiple=True,
    metavar="ROLE=NAME,...",
    help="Its columns, where they have other names: id, reward, step.",
)
@click.option(
    "--now", type=PATH, metavar="DIR", help="A selection by the current model's scores."
)
@click.option("--keep", type=float, help="Share of the first that stays.  [default: 0.25]")
@click.option("--decay", type=float, help="Weight of an older visit.  [default: 0.5]")
@click.option(
    "--trivial",
    type=float,
    help="A sample of at most this difficulty in training leaves.  [default: 0.05]",
)
@click.option(
    "--unsolved",
    type=float,
    help="A sample of at least this difficulty in training leaves.  [default: 0.95]",
)
@click.option(
    "--enough",
    type=float,
    help="Completions from which on training says how hard a sample is.  [default: 4]",
)
@click.option("--size", type=int, help="Samples to have.  [default: as many as now]")
@click.option("--out", type=PATH, required=True, metavar="DIR", help="The next selection.")
@click.option("--force", is_flag=True, help="Replace another selection in DIR.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
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

    What has become trivial or is never solved leaves, the hardest that can be solved
    come in, a share of the first selection stays. For trainers that cannot do so
    themselves: train some steps, reselect, export, go on from the checkpoint.

    \b
    Examples:
      rap reselect selection/ --rewards rewards1.jsonl --out selection2/
      rap reselect selection2/ --rewards rewards1.jsonl --rewards rewards2.jsonl \\
          --out selection3/
      rap reselect selection/ --rewards log.parquet --reward-columns id=uid,reward=acc \\
          --out selection2/
    """
    from ..selection.reselection import ReselectConfig, pass_counts
    from ..selection.reselection import reselect as again
    from ..selection.selection import load
    from ..trl.rewardfile import read_visits

    given = {name: value for name, value in options.items() if value is not None}
    config = ReselectConfig(**given)
    before = load(selection)
    if out.exists() and out.samefile(selection):
        raise RapConfigError(f"--out {out}: is SELECTION itself, which must stay")
    visits = read_visits(rewards, to_columns(reward_columns))
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


@main.command(cls=Sectioned)
@click.argument("data", type=PATH)
@click.option("--model", required=True, metavar="PATH", help="Folder, hub name, or demo.")
@click.option("--out", type=PATH, required=True, metavar="DIR", help="The run goes here.")
@click.option("--selection", type=PATH, metavar="DIR", help="Of 'rap choose'; else all.")
@DATA_OPTIONS
@TRAIN_OPTIONS
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
@click.pass_context
def train(
    ctx: click.Context,
    data: Path,
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
      rap train data.jsonl --model ./model --selection selection/ --out run/ --steps 200
      rap train data.jsonl --model ./model --selection selection/ --out run/ \\
          --reselect rewards --every 50 --lora 16 --config grpo.yaml
      rap train demo --model demo --out run/ --steps 5 --set num_generations=4
    """
    from ..trl.reselect import Reselect
    from ..trl.run import TrainConfig, load_training_model, open_training_data
    from ..trl.run import train as run

    samples = open_training_data(data, columns=to_columns(columns), root=root)
    chosen = None
    if selection is not None:
        from ..selection.selection import load

        chosen = load(selection, samples)
        require_same(chosen.table, samples, chosen.settings.get("data"))
    config = TrainConfig(
        algorithm=options["algorithm"],
        reselect=Reselect(
            chosen,
            mode=options["reselect"],
            every=options["every"],
            refill=options["refill"],
        ),
        lora=options["lora"],
        arguments=train_arguments(ctx.meta.get(FROM_FILE, {}), options),
    )
    loaded, processor = load_training_model(
        model,
        device="cpu",  # TRL moves it
        dtype=options["dtype"],
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


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def info(as_json: bool) -> None:
    """Say what rap computes with on this machine, and why."""
    from ..environment import info as collect

    found = collect()
    if as_json:
        print_json(found)
        return
    width = max(map(len, found))
    for name, value in found.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{k} {v}" for k, v in value.items())
        elif isinstance(value, (list, tuple)):
            value = ", ".join(map(str, value))
        click.echo(f"{name:<{width}}  {value}")


@main.command()
@click.option(
    "--out", type=PATH, default=Path("demo-out"), show_default=True, metavar="DIR"
)
@click.option(
    "--count",
    type=click.IntRange(10, 20_000),
    default=240,
    show_default=True,
    help="Samples of the world.",
)
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the world."
)
@click.option(
    "--evidence",
    type=click.Choice(EVIDENCE),
    default="rollouts",
    show_default=True,
    help="What the samples are judged by.",
)
@click.option(
    "--records", is_flag=True, help="Published completions of MATH-V instead of a world."
)
def demo(out: Path, count: int, seed: int, evidence: str, records: bool) -> None:
    """Run the whole way on data that comes along: a selection and a report.

    A world of drawn pictures, where it is known what each sample is worth, is scored by a
    small model that was taught to read them; found is shown beside planted. With --records,
    published completions of 105 MATH-V questions become a selection instead.
    """
    if records:
        from ..demo import run

        refuse_given("count seed evidence", "with --records")
        run(out, echo=click.echo)
        return
    from ..demo.run_world import run as run_world

    quiet_transformers()
    run_world(out, n=count, seed=seed, evidence=evidence, echo=click.echo)
