"""Decides whether an export filters the rows of a data set or rewrites them.

A data set that already has the trainer's form is filtered: rewriting its columns
(``data_source``, ``extra_info``, weights) would change the reward and the training.
``rows`` writes the filtered rows.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..config import PROMPT_TEMPLATE
from ..errors import RapConfigError, RapInputError
from ..samples.cells import cell
from ..samples.sample import Sample
from ..samples.sampleset import SampleSet
from .formats import TARGETS, copy_reward, describe_llamafactory
from .rows import JSONL, PARQUET, Chosen, container_of, write_rows
from .target import Writing

if TYPE_CHECKING:
    from ..scores.selected import Selected

PLAIN = (PARQUET, JSONL)
"""Targets that are no trainer: the rows as they came in."""


def is_filter(
    to: str,
    selection: Selected,
    samples: SampleSet,
    filter: bool | None,
    asked: Sequence[str],
) -> bool:
    """Whether the rows stay as they are. ``asked``: options that only rewriting heeds."""
    if to in PLAIN:
        if filter is False or asked:
            name = "filter=False (--rewrite)" if filter is False else asked[0]
            raise RapConfigError(f"{name}: to {to} rows go as they are")
        return True
    if filter is False or (asked and filter is None):
        return False
    if filter and asked:
        raise RapConfigError(f"{asked[0]}: no effect on rows that stay as they are")
    found = selection.find(samples, np.flatnonzero(selection.kept)[:1])
    # Another data set: the message counts all samples, not this one alone.
    first = selection.match(samples)[:1] if found.why else found.rows
    table = samples.arrow(first)
    row = samples.row(int(first[0])) if table is None else table.to_pylist()[0]
    own = TARGETS[to].is_its_own(row)
    if filter and not own:
        raise RapInputError(f"filter: the data set does not have the form that {to} reads")
    if own and filter is None and (apart := prompt_apart(selection)):
        raise RapConfigError(
            f"the data set was scored with {' and '.join(apart)}, which its rows lack: "
            "--rewrite (filter=False) writes the prompts that were scored, --filter "
            "(filter=True) keeps the rows as they are"
        )
    return own


def scored_with(selection: Selected, name: str, default: Any = None) -> Any:
    """A field of the ``ScoreConfig`` that the selection was scored with."""
    scores = selection.settings.get("scores") or {}
    return (scores.get("config") or {}).get(name) or default


def prompt_apart(selection: Selected) -> list[str]:
    """What was said in the prompts that were scored and does not stand in the data."""
    system = scored_with(selection, "system_prompt")
    template = scored_with(selection, "prompt_template", PROMPT_TEMPLATE)
    found = [] if system is None else [f"system_prompt {system[:60]!r}"]
    if template != PROMPT_TEMPLATE:
        found.append(f"prompt_template {template[:60]!r}")
    return found


def require_columns(selection: Selected, add: Sequence[str]) -> None:
    """Raises ``RapConfigError`` for a name that is no column of the selection."""
    names = selection.reader.schema.names
    for name in add:
        if name not in names:
            raise RapConfigError(
                f"add: the selection has no column {name!r}; it has {', '.join(names)}"
            )


def added_columns(
    selection: Selected, add: Sequence[str], filtered: bool
) -> list[dict[str, Any]] | None:
    """The columns ``add`` of each kept sample under the names they get."""
    if not add:
        return None
    if not filtered:
        raise RapConfigError("add: rows that are written anew have their own columns")
    require_columns(selection, add)
    kept = selection.of_kept(add)
    return kept.rename_columns([f"rap_{name}" for name in add]).to_pylist()


def write_filtered(
    kept_samples: Iterable[tuple[Sample, str]],
    samples: SampleSet,
    to: str,
    writing: Writing,
    added: Sequence[Mapping[str, Any]] | None,
) -> list[str]:
    """Write the rows of these samples, with their ids, as they came in; returns notes."""
    replaced = {} if writing.data_source is None else {"data_source": writing.data_source}
    first: list[int] = []
    ids: list[object] = []  # what verl's reward would log samples by

    def chosen() -> Iterator[Chosen]:
        for at, (sample, name) in enumerate(kept_samples):
            put = {**(added[at] if added else {}), **replaced}
            ids.append(cell(samples.row(sample.index), "extra_info.index"))
            first.append(sample.index)
            yield Chosen(sample, name, put)

    container = container_of(samples, to)
    write_rows(chosen(), samples, writing, container)
    file = f"train.{container}"
    kept = [f"{file}: the rows of the data set as they came in"]
    if to in PLAIN:
        return [
            f'load_dataset("{to.replace("jsonl", "json")}", '
            f'data_files="{writing.seen_as / file}", split="train")',
            *kept,
        ]
    kept[0] += f"; --rewrite (filter=False) writes them anew for {to}"
    if to == "llamafactory":
        text = describe_llamafactory(samples.row(first[0]), file)
        (writing.folder / "dataset_info.json").write_text(text)
    if to == "verl" and [str(name) for name in ids] == writing.samples:
        copy_reward(writing.folder)
    elif to == "verl":
        kept.append("extra_info.index is not the id: rap reselect needs --rewrite")
    return kept


def dropped_columns(samples: SampleSet, to: str) -> tuple[str, ...]:
    """Columns that a form written anew has no place for; a warning names those that rap
    reads nothing from."""
    roles = [name for name in samples.columns.values() if name is not None]
    there = samples.column_names
    whole = {name for name in roles if name in there}
    parts = {name.partition(".")[0]: name for name in roles if name not in there}
    unread = [name for name in there if name not in whole and name not in parts]
    some = [f"{name} (all but {part})" for name, part in parts.items()]
    group = samples.columns["source"]
    if group is not None and not TARGETS[to].groups:
        some.append(group)
    if unread:
        warnings.warn(
            f"columns of the data set that the export does not have: {', '.join(unread)}; "
            "--to parquet (or jsonl) keeps all of them",
            UserWarning,
            stacklevel=4,
        )
    return tuple([*unread, *some])
