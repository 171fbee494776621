"""The score table as an object: ``Scores`` is what ``score`` returns and ``choose`` takes.

A checked ``SCORE_SCHEMA`` table in data-set order. What its rows say is read by
``scores.evidence``. NumPy and Arrow, no torch, no model.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import RapConfigError, RapInputError, RapStoreError
from ..samples.sampleset import SampleSet, open_samples
from .columns import as_fraction, integers
from .evidence import read_evidence
from .files import read_parquet, write_parquet
from .match import describe, identities, reopen, rows_of_all
from .records import count_rollouts, keep_rows, read_rollouts
from .table import SCHEMA_VERSION, SCORE_SCHEMA, filled

PAPER_LAMBDA_C = 0.5
"""The paper's threshold on D, for accuracies."""


@dataclass(frozen=True, eq=False)
class Scores:
    """The score table of a data set, in data-set order.

    ``table``: the columns of ``rap.scores.table.SCORE_SCHEMA`` (others may follow).
    ``meta``: where the scores come from; ``meta["fingerprint"]`` is the store's.
    ``dataset``: the ``SampleSet`` (or datasets.Dataset) they were made from, if known.
    ``rollouts``: one row a completion, if known, with every column it came with.

    Raises ``RapInputError`` if a column is missing or of another type, an id or index
    is null or appears twice, or counts are impossible (c > m, negative). Columns that a
    later schema brought (``table.SINCE``) are filled with nulls.
    """

    table: pa.Table
    meta: Mapping[str, Any] = field(default_factory=dict)
    dataset: Any = None
    rollouts: pa.Table | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "table", _checked(self.table))

    def __len__(self) -> int:
        return self.table.num_rows

    @classmethod
    def from_rollouts(
        cls,
        table_or_path: object,
        *,
        id: str = "id",
        with_image: str = "with_image",
        correct: str = "correct",
        source: str | None = None,
        where: Mapping[str, object] | None = None,
        drop: Mapping[str, object] | None = None,
        dataset: Any = None,
    ) -> Scores:
        """Scores from completions sampled and graded elsewhere (evidence ``rollouts``).

        ``table_or_path``: one row a completion: a pyarrow.Table, pandas or another
        ``__arrow_c_stream__``, a datasets.Dataset, a dict of columns, a list of dicts,
        or the path of a JSONL or Parquet file.
        ``id``: column of the sample's id, text or integers (integers become text).
        ``with_image``: column that says whether the image was there: true/false, 1/0,
        or this project's own "image"/"counterfactual".
        ``correct``: column that says whether the answer was accepted: true/false or
        1/0; null or NaN is "not graded" and counts neither as right nor as wrong.
        ``source``: column with each sample's group for ``choose(by="source")``; by
        default a column of that name if there is one.
        ``where``: keep only rows with these values, ``{"augment": "none"}`` or
        ``{"prompt": ["cot", "direct"]}``; ``drop``: leave out rows with any of these,
        ``{"model": ["random"]}``. ``None`` stands for null.
        ``dataset``: a ``SampleSet``, or a datasets.Dataset with the column ``id``:
        rows are matched by id, stand in its order, and ``Selection.dataset`` works. Of a
        ``SampleSet`` the samples' hashes are kept, so that they are known again.
        Its samples without a completion are quarantined like the others.

        Without ``dataset`` samples stand in the order of their first appearance (after
        the filters). The number of completions may differ between samples, and with and
        without the image. A sample needs a graded completion of each, or it is quarantined
        as ``few_rollouts``. All columns of the rows used stay in ``scores.rollouts``.
        Attention is not measured: ``log_psi`` is null.

        Raises ``RapInputError``: unreadable, no rows left, a column missing or of the
        wrong kind, a sample that ``dataset`` does not have, more than 32,767
        completions of a sample with, or without, its image.
        """
        table = keep_rows(read_rollouts(table_or_path), where, drop)
        if source is None and "source" in table.column_names:
            source = "source"
        samples = None if dataset is None else _samples_of(dataset, id)
        scores, ignored = count_rollouts(
            table,
            id=id,
            with_image=with_image,
            correct=correct,
            source=source,
            order=None if dataset is None else _dataset_ids(dataset, id),
        )
        if samples is not None:
            scores = _with_identities(scores, samples)
        meta = {
            "schema_version": SCHEMA_VERSION,
            "fingerprint": {
                "rollouts": {
                    "id": id,
                    "with_image": with_image,
                    "correct": correct,
                    "where": _plain(where),
                    "drop": _plain(drop),
                }
            },
            "rows": table.num_rows,
            "ignored": ignored,
            "data": None if samples is None else describe(samples),
        }
        return cls(scores, meta, dataset if samples is None else samples, table)

    @classmethod
    def load(cls, path_or_store: object) -> Scores:
        """Scores from a store's folder, an open ``ScoreStore``, or a file of ``save``.

        Raises ``RapStoreError`` if nothing readable is there or shards are missing.
        """
        from .store import ScoreStore

        if isinstance(path_or_store, ScoreStore):
            store = path_or_store
            return cls(store.read(), store.meta, None, store.read_rollouts())
        path = Path(os.fspath(path_or_store))  # type: ignore[call-overload]
        if path.is_dir():
            with ScoreStore.load(path) as store:
                return cls(store.read(), store.meta, None, store.read_rollouts())
        table, meta = read_saved(path, "scores")
        return cls(table, meta)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the table and ``meta`` as one Parquet file, whole or not at all.

        Raises ``RapStoreError`` if it cannot be written.
        """
        write_saved(Path(path), self.table, dict(self.meta), "scores")

    def column(self, name: str) -> pa.Array:
        """A column by its name, one value a row: of the score table, else of the data set
        ("a.b" is field b of column a), else of the rollouts (a sample's first row).

        ``"source"`` without a value in the table is the data set's column of that role.
        Raises ``RapConfigError`` if none of them has it, naming those that are there.
        """
        table = self.table
        here = name in table.column_names
        if here and not (name == "source" and table[name].null_count == table.num_rows):
            return _flat(table[name])
        for place in (_of_dataset, _of_rollouts):
            found = place(self, name)
            if found is not None:
                return found
        if here:
            return _flat(table[name])
        known = [*table.column_names, *getattr(self.dataset, "column_names", ())]
        where = "" if self.dataset is not None else "; the data set is not known"
        raise RapConfigError(
            f"by = {name!r}: the score table has no such column, nor has the data set"
            f"{where}. There are: {', '.join(dict.fromkeys(known))}"
        )

    def diagnostics(self, lambda_c: float = PAPER_LAMBDA_C) -> dict[str, int]:
        """Counts that need no selection, each over all samples, so they overlap:

        samples, judged (those with a D), quarantined, above (D > lambda_c, exact),
        image_hurts (D < 0), never_solved (Diff == 1), always_solved (Diff == 0).
        """
        return diagnose(self.table, as_fraction("lambda_c", lambda_c))


def _samples_of(dataset: Any, id: str) -> SampleSet | None:
    """The data set as samples; None if its rows are none (no question, no image)."""
    if isinstance(dataset, SampleSet):
        return dataset
    try:
        return open_samples(dataset, columns={"id": id})
    except RapInputError:
        return None


def _with_identities(table: pa.Table, samples: SampleSet) -> pa.Table:
    """The table with what tells its samples apart (``match.identities``)."""
    for name, values in identities(samples).items():
        at = table.schema.get_field_index(name)
        column = pa.array(values, pa.string())
        if at < 0:
            table = table.append_column(name, column)
        else:
            table = table.set_column(at, name, column)
    return table


def diagnose(table: pa.Table, threshold: Fraction, **reading: Any) -> dict[str, int]:
    """See ``Scores.diagnostics``; ``reading``: options of ``read_evidence``."""
    evidence = read_evidence(table, **reading)
    judged = evidence.valid & ~np.isnan(evidence.d)
    return {
        "samples": table.num_rows,
        "judged": int(judged.sum()),
        "quarantined": int((~evidence.valid).sum()),
        "above": int((judged & evidence.above(threshold)).sum()),
        "image_hurts": int((judged & evidence.negative).sum()),
        "never_solved": int((judged & evidence.unsolved).sum()),
        "always_solved": int((judged & evidence.trivial(Fraction(0))).sum()),
    }


def _dataset_ids(dataset: Any, id: str) -> list[str]:
    """The ids of a SampleSet or of a datasets.Dataset, as text."""
    if hasattr(dataset, "ids"):
        return list(dataset.ids)
    if id not in dataset.column_names:
        raise RapInputError(
            f"the data set has no column {id!r} to match the rollouts by; it has "
            f"{', '.join(dataset.column_names)}"
        )
    return [str(value) for value in dataset[id]]


def _plain(conditions: Mapping[str, object] | None) -> dict[str, object]:
    """Filters as JSON can hold them; sets in sorted order."""
    out: dict[str, object] = {}
    for name, value in (conditions or {}).items():
        if isinstance(value, (list, tuple, set, frozenset)):
            out[name] = sorted((_json_value(v) for v in value), key=repr)
        else:
            out[name] = _json_value(value)
    return out


def _json_value(value: object) -> object:
    plain = value is None or isinstance(value, (str, bool, int, float))
    return value if plain else str(value)


def _checked(table: pa.Table) -> pa.Table:
    """``table`` with SCORE_SCHEMA's columns first, sorted by ``index``, or an error."""
    try:
        table = filled(table, SCORE_SCHEMA)
    except KeyError as error:
        raise RapInputError(
            f"score table: columns missing or twice: {error.args[0]}"
        ) from error
    except pa.ArrowException as error:
        raise RapInputError(f"score table: {error}") from error
    for name in ("id", "index", "status"):
        if table[name].null_count:
            raise RapInputError(f"score table: {name} is null in a row")
    index = table["index"].to_numpy()
    if np.any(index[1:] <= index[:-1]):
        order = np.argsort(index, kind="stable")
        table, index = table.take(order), index[order]
        if np.any(index[1:] == index[:-1]):
            raise RapInputError("score table: an index appears twice")
    if table.num_rows and pc.count_distinct(table["id"]).as_py() != table.num_rows:
        counted = table["id"].value_counts()
        twice = counted.filter(pc.greater(counted.field("counts"), 1))[0]["values"]
        raise RapInputError(f"score table: the id {twice.as_py()!r} appears twice")
    for accepted, judged in (("c1", "m1"), ("c0", "m0")):
        c, m = integers(table[accepted]), integers(table[judged])
        bad = np.flatnonzero((c < 0) | (c > m))
        if bad.size:
            row = table["id"][int(bad[0])].as_py()
            raise RapInputError(
                f"score table: sample {row!r} has {accepted} = {c[bad[0]]} of "
                f"{judged} = {m[bad[0]]}"
            )
    return table


# ---------------------------------------------------------------- other columns


def _flat(column: pa.ChunkedArray) -> pa.Array:
    found = column.combine_chunks()
    return pa.concat_arrays(found.chunks) if isinstance(found, pa.ChunkedArray) else found


def _of_dataset(scores: Scores, name: str) -> pa.Array | None:
    """The column of the data set, in the table's order; None if it has none."""
    data, rows = scores.dataset, scores.table["index"].to_pylist()
    about = scores.meta.get("data")
    if data is None:
        data = reopen(about)
    if data is None:
        return None
    if isinstance(data, SampleSet):
        rows = rows_of_all(scores.table, data, data=about).tolist()
    known = set(data.column_names)
    if name == "source" and hasattr(data, "columns"):
        name = data.columns.get("source") or name
    if name not in known and name.partition(".")[0] not in known:
        return None
    if hasattr(data, "row"):
        from ..samples.parsing import cell

        values = [None if i < 0 else cell(data.row(i), name) for i in rows]
    elif name in known:
        values = data.select_columns([name])[rows][name]
    else:
        return None
    try:
        return pa.array(values)
    except pa.ArrowException as error:
        raise RapConfigError(f"by = {name!r}: the column mixes types: {error}") from error


def _of_rollouts(scores: Scores, name: str) -> pa.Array | None:
    """The column of the completions: a sample's first row; None if there is none."""
    key = (scores.meta.get("fingerprint") or {}).get("rollouts", {}).get("id", "id")
    rollouts = scores.rollouts
    if rollouts is None or not {name, key} <= set(rollouts.column_names):
        return None
    ids = rollouts[key].cast(pa.string()).combine_chunks()
    at = pc.index_in(scores.table["id"], value_set=ids).combine_chunks()
    return _flat(rollouts[name].take(at))


# ---------------------------------------------------------------- files


def write_saved(path: Path, table: pa.Table, meta: dict[str, Any], kind: str) -> None:
    note = {"kind": kind, "schema_version": SCHEMA_VERSION, "meta": meta}
    write_parquet(path, table, note)


def read_saved(path: Path, kind: str) -> tuple[pa.Table, dict[str, Any]]:
    table, note = read_parquet(path)
    if note.get("kind") != kind:
        raise RapStoreError(f"{path}: holds {note.get('kind')!r}, not {kind}")
    return table, note["meta"]
