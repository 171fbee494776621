"""Steps that several commands of the shell share: open, score, choose, write, print."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..config import ChooseConfig, require_judge
from ..engines import require_engine
from ..errors import RapConfigError, RapError, RapStoreError
from ..model.loading import LoadingOptions, load_model
from ..rewards.checker import reward_functions
from .options import (
    LIMIT,
    NETWORK,
    engine_config,
    executor_config,
    refuse_given,
    score_config,
)
from .texts import filters, to_columns, typed

if TYPE_CHECKING:
    import pyarrow as pa

    from ..samples.sampleset import SampleSet
    from ..scores.scores import Scores
    from ..scoring.session import Recipe
    from ..selection.selection import Selection


def open_data(
    path: str | Path | None,
    columns: Sequence[str],
    root: Path | None,
    planned: Path | None = None,
) -> SampleSet | None:
    """The data set at ``path``, None without one. ``planned``: a store that this process
    fills with others; what is kept there of the data set spares a look through its rows.
    Raises ``RapInputError`` if it cannot be read, a usage error for its options without
    it."""
    from ..samples.sampleset import open_samples

    if path is None:
        refuse_given(("columns", "root"), "without a data set", _way_to_data(columns))
        return None
    roles = to_columns(columns)
    if planned is not None:
        from ..scoring.session import kept_samples

        kept = kept_samples(planned, path, roles, root)
        if kept is not None:
            return kept
    noted = click.get_current_context().meta
    return open_samples(
        path,
        columns=roles,
        root=root,
        allow_network=bool(noted.get(NETWORK)),
        limit=noted.get(LIMIT),
    )


def _way_to_data(columns: Sequence[str]) -> str:
    """How this command is given a data set; groups need none for a column by its name."""
    context = click.get_current_context()
    data = next(p for p in context.command.params if p.name == "data")
    way = f"give {'DATA' if isinstance(data, click.Argument) else '--data DATA'}"
    group = (to_columns(columns) or {}).get("source")
    if group and context.params.get("by") == "source":
        return f"{way}, or group by that column itself: --by {group}"
    return way


def score_data(
    samples: SampleSet, model: str | None, store: Path, options: Mapping[str, Any]
) -> Scores:
    """Load the model, None for none, and score into ``store``; Ctrl-C says what is kept.
    Raises what ``rap.score`` and ``load_model`` raise."""
    executor = executor_config(options)  # refused before the model is loaded
    recipe = recipe_of(samples, model, options)
    from ..scores.profile import Profile
    from ..scoring.run import score_by

    try:
        scores = score_by(recipe, store, executor)
    except KeyboardInterrupt:
        click.echo(f"rap: {kept_in(store)}", err=True)
        raise
    measured = Profile.of(scores.meta.get("profile"))
    if options["profile"] and measured is not None:
        click.echo(measured.text(), err=True)
    return scores


def recipe_of(samples: SampleSet, model: str | None, options: Mapping[str, Any]) -> Recipe:
    """What to score and how, with the model loaded, None for none. Raises what
    ``load_model`` raises, and before that whatever can be refused without it."""
    if options["executor"] not in (None, "local"):
        refuse_given(("limit",), f"with --executor {options['executor']}")
    config = score_config(options)
    engine = engine_config(options)
    named, weights = options["reward"], options["reward_weights"]
    require_judge(config.evidence, named or None)
    require_engine(engine, config.evidence, model is not None)
    from ..scoring.tracking import tracked

    reported = tracked(options["report_to"], executor_config(options), "a folder")
    reward = [f for name in named if (f := load_reward(name)) is not None] or None
    reward_functions(reward, weights or None)
    click.echo(samples.describe(), err=True)
    shown = options["progress"]
    if not (sys.stderr.isatty() if shown is None else shown):
        quiet_transformers()
    loaded: tuple[Any, Any] = (model, None)
    if model is not None and options["executor"] != "ray":  # there each worker loads it
        loaded = load(model, options)
    from ..scoring.session import Recipe

    return Recipe(
        *(*loaded, samples, config, engine),
        reward=reward,
        reward_weights=weights or None,
        progress=True if shown is None else "force" if shown else False,
        verify_images=options["verify_images"],
        retry_quarantined=options["retry"],
        profile=options["profile"],
        loading=loading(options),
        report_to=reported,
    )


def loading(options: Mapping[str, Any]) -> dict[str, Any]:
    """``load_model``'s keyword arguments, by ``LOADING_OPTIONS``."""
    given = {name: options[name] for name in LoadingOptions.__annotations__}
    return {name: value for name, value in given.items() if value is not None}


def load(model: str, options: Mapping[str, Any]) -> tuple[Any, Any]:
    """(model, processor) by ``LOADING_OPTIONS``; raises what ``load_model`` raises. Of many
    processes of a machine each takes a device of its own."""
    found = loading(options)
    if found["device"] == "auto" and options.get("executor") == "env":
        from ..scoring.executors.ranks import device_here

        found["device"] = device_here(options["shard"])
    return load_model(model, **found)


def kept_in(store: Any) -> str:
    """What an interrupted run leaves behind."""
    from ..scores.store import ScoreStore

    try:
        kept = ScoreStore.load(store).n_kept()
    except RapStoreError:  # interrupted before there was a store
        return "nothing was scored yet"
    return f"{kept} samples are kept in {store}; the same command goes on from there"


def quiet_transformers() -> None:
    """Its bar for loading weights belongs on a terminal, not in a log."""
    try:
        from transformers.utils import logging
    except ImportError:  # load_model says what to install
        return
    logging.disable_progress_bar()


def load_reward(name: str | None) -> Callable[..., Any] | None:
    """``MODULE:FUNCTION``, looked for in the working folder, too. Raises ``RapConfigError``
    if there is no such function."""
    if name is None:
        return None
    import importlib

    module, _, function = name.partition(":")
    if not function:
        raise RapConfigError(
            f"--reward {name}: expected MODULE:FUNCTION, as in rewards:boxes for the "
            "function boxes of rewards.py"
        )
    sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise RapConfigError(f"--reward {name}: {error}") from error
    finally:
        sys.path.remove(os.getcwd())
    if not callable(found):
        raise RapConfigError(f"--reward {name}: not a function")
    return found


def from_rollouts(
    path: Path,
    columns: Sequence[str],
    where: Sequence[str],
    drop: Sequence[str],
    samples: SampleSet | None,
) -> Scores:
    """Scores of completions that are there already (``Scores.from_rollouts``)."""
    from ..scores.records import read_rollouts
    from ..scores.scores import Scores

    roles = to_columns(columns, "--rollout-columns") or {}
    for role in roles:
        if role not in ("id", "with_image", "correct", "source"):
            raise click.UsageError(f"--rollout-columns {role}=...: no such role")
    table = read_rollouts(path)
    types = {field.name: field.type for field in table.schema}
    return Scores.from_rollouts(
        table,
        where=typed(filters(where, "--where"), types),
        drop=typed(filters(drop, "--drop"), types),
        dataset=samples,
        **roles,
    )


def require_same(
    table: pa.Table, samples: SampleSet, data: Mapping[str, Any] | None = None
) -> None:
    """Refuse a data set that is not the one ``table`` is of (``scores.match``). Rows that
    could not be scored need not be there."""
    from ..scores.match import rows_of_all

    rows_of_all(table, samples, data=data)


def choose_and_tell(
    scores: Scores, config: ChooseConfig, options: Mapping[str, Any]
) -> None:
    """Choose, write what was asked for, and print the summary, or all of it as JSON."""
    from ..selection.choosing import choose
    from ..selection.selection import load

    other = None if options["compare"] is None else load(options["compare"])
    selection = choose(scores, **dataclasses.asdict(config))
    if options["out"] is not None and not options["force"]:
        refuse_another(options["out"], selection, beside=True)
    written = write_selection(selection, options["out"], options["report"])
    compared = None if other is None else selection.compare(other)
    if not options["as_json"]:
        click.echo(selection.summary())
        if compared is not None:
            click.echo(f"compared with {options['compare']}: {compared}")
        for what, path in written.items():
            click.echo(f"{what}: {path}")
        return
    found = {
        "samples": selection.table.num_rows,
        "kept": len(selection),
        "counts": selection.counts(),
        "diagnostics": selection.diagnostics(),
        **{k: selection.settings[k] for k in ("choose", "found", "evidence", "groups")},
        "warnings": selection.warnings,
        **written,
    }
    if compared is not None:
        names = ("kept", "kept_other", "overlap", "jaccard", "gained", "lost")
        found["compare"] = {name: getattr(compared, name) for name in names}
    print_json(found)


def write_selection(
    selection: Selection, out: Path | None, report: Path | None
) -> dict[str, str]:
    """{what was written: its path}"""
    written = {}
    if out is not None:
        selection.save(out)
        written["selection"] = str(out)
    if report is not None:
        selection.report(report)
        written["report"] = str(report)
    return written


def refuse_another(folder: Path, selection: Selection, *, beside: bool = False) -> None:
    """Raises ``RapConfigError`` where ``folder`` holds anything but this very selection,
    which may be written again. beside: what is no selection may lie there, too."""
    there = _selection_in(folder)
    if there is not None:
        if there.ids == selection.ids and there.settings == selection.settings:
            return
    elif beside or not folder.is_dir() or _is_empty(folder):
        return  # what is no folder is refused when it is written
    what = "something else" if there is None else "another selection"
    raise RapConfigError(
        f"--out {folder}: holds {what}, which would be lost; --force replaces it"
    )


def _is_empty(folder: Path) -> bool:
    """Nothing lies there, or what a killed run began to write."""
    from ..scores.owner import tmps_of

    names = os.listdir(folder)
    return set(names) == set(tmps_of("selection.parquet", names))


def refuse_chosen(folder: Path | None, force: bool, config: ChooseConfig) -> None:
    """Raises ``RapConfigError``, before anything is scored, where ``folder`` holds a
    selection that was chosen by other settings."""
    there = None if folder is None or force else _selection_in(folder)
    if there is not None and there.settings.get("choose") != config.as_json():
        raise RapConfigError(
            f"--out {folder}: holds another selection, which would be lost; --force "
            "replaces it"
        )


def refuse_unwritable(out: Path | None, report: Path | None) -> None:
    """Raises ``RapStoreError``, before anything is scored, where the results could not be
    written afterwards. The folder ``out`` is made."""
    from ..scores.files import make_folder

    if out is not None:
        make_folder(out)
    if report is None:
        return
    if report.is_dir():
        raise RapStoreError(f"--report {report}: a folder; name a file in it")
    folder = report.parent
    within = out is not None and folder == out
    if not within and not folder.is_dir():
        raise RapStoreError(f"--report {report}: there is no folder {folder}")
    if not os.access(folder, os.W_OK):
        raise RapStoreError(f"--report {report}: nothing can be written in {folder}")


def _selection_in(folder: Path) -> Selection | None:
    from ..selection.selection import load

    with contextlib.suppress(RapError):
        return load(folder)
    return None


def plain_meta(scores: Scores) -> dict[str, Any]:
    """Counts, cost and profile of the scoring, where they are known."""
    names = ("counts", "cost", "profile")
    found = {k: dict(scores.meta[k]) for k in names if k in scores.meta}
    return found | {k: scores.meta[k] for k in ("part",) if k in scores.meta}


def print_json(found: Mapping[str, Any]) -> None:
    """What a script reads, on stdout."""
    click.echo(json.dumps(found, indent=2, default=str))
