"""The score table as an object: ``Scores`` is what ``score`` returns and ``choose`` takes.

A checked ``SCORE_SCHEMA`` table in data-set order. What its rows say is read by
``scores.evidence``. NumPy and Arrow, no torch, no model.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import RapConfigError, RapInputError, RapStoreError
from ..samples.bare import open_bare
from ..samples.remote import is_hub_name, is_url
from ..samples.sampleset import SampleSet, open_samples
from ..samples.text import as_strings, flat, hash64, repeated
from .columns import as_fraction, integers
from .completions import Completions, ReadCompletions, StoredCompletions
from .display import bars, card, frame_of
from .files import ROW_GROUP, clear_leftovers, write_parts
from .match import TEXT_COLUMN, describe, identities, reopen, rows_of_all
from .reader import (
    FileReader,
    Lazily,
    Reader,
    Shape,
    ShardReader,
    TableReader,
    as_reader,
)
from .readings import evidence_of
from .records import count_rollouts, keep_rows, read_rollouts
from .store import ScoreStore
from .table import QUARANTINED, SCHEMA_VERSION, SCORE_SCHEMA, filled

if TYPE_CHECKING:
    import pandas

PAPER_LAMBDA_C = 0.5
"""The paper's threshold on D, for accuracies."""


@dataclass(frozen=True, eq=False)
class Scores:
    """The score table of a data set, in data-set order.

    ``table``: the columns of ``rap.scores.table.SCORE_SCHEMA`` (others may follow).
    ``meta``: where the scores come from; ``meta["fingerprint"]`` is the store's.
    ``dataset``: the ``SampleSet`` (or datasets.Dataset) they were made from, if known.
    ``rollouts``: one row a completion, if known, with every column it came with. Those of
    a store stay there: they are read whenever ``rollouts`` is asked for, all of them;
    ``completions.tables()`` gives them a shard at a time.

    A table that was loaded is read when ``table`` is asked for; ``reader`` gives its
    columns by name, in batches, and what needs no more (``choose``) asks for no more.

    Raises ``RapInputError`` if a column is missing or of another type, an id or index
    is null or appears twice, or counts are impossible (c > m, negative). Columns that a
    later schema brought (``table.SINCE``) are filled with nulls.
    """

    table: pa.Table
    meta: Mapping[str, Any] = field(default_factory=dict)
    dataset: Any = None
    rollouts: pa.Table | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "table", checked(self.reader))

    def __len__(self) -> int:
        return self.reader.num_rows

    if TYPE_CHECKING:  # set with ``table`` and ``rollouts``

        @property
        def reader(self) -> Reader:
            """The columns of ``table``, by name, in batches."""

        @property
        def completions(self) -> Completions | None:
            """``rollouts``, a shard at a time."""

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
        ``dataset``: a ``SampleSet``, or what ``open_samples`` takes (a datasets.Dataset,
        a list of dicts, a path, ...) with the column ``id``: rows are matched by id, stand
        in its order, and ``Selection.dataset`` works. The samples' hashes are kept, so
        that they are known again; rows that are no samples (no question, no image) have
        none. Its samples without a completion are quarantined like the others.

        Without ``dataset`` samples stand in the order of their first appearance (after
        the filters). The number of completions may differ between samples, and with and
        without the image. A sample needs a graded completion of each, or it is quarantined
        as ``few_rollouts``. All columns of the rows used stay in ``scores.rollouts``.
        Attention is not measured: ``log_psi`` is null.

        Raises ``RapInputError``: unreadable, no rows left, a column missing or of the
        wrong kind, a ``dataset`` that is none, a sample that it does not have, more than
        32,767 completions of a sample with, or without, its image.
        """
        table = keep_rows(read_rollouts(table_or_path), where, drop)
        if source is None and "source" in table.column_names:
            source = "source"
        data = None if dataset is None else _rows_of(dataset, id)
        scores, ignored = count_rollouts(
            table,
            id=id,
            with_image=with_image,
            correct=correct,
            source=source,
            order=None if data is None else data.ids,
        )
        samples = None if data is None or data.bare else data
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
    def load(cls, path_or_store: object, *, verify: bool = False) -> Scores:
        """Scores from a store's folder, an open ``ScoreStore``, or a file of ``save``.

        Every byte of the scores is verified; completions are when they are read, or now
        with ``verify``. Raises ``RapStoreError`` if nothing readable is there or shards are
        missing.
        """
        if isinstance(path_or_store, ScoreStore):
            return cls._of_store(path_or_store, verify)
        path = Path(os.fspath(path_or_store))  # type: ignore[call-overload]
        if (path / "selection.parquet").exists():
            raise RapStoreError(
                f"{path}: is a selection, chosen already, and no score store: "
                f"rap.load({str(path)!r}) reads it"
            )
        if path.is_dir():
            with ScoreStore.load(path) as store:
                return cls._of_store(store, verify)
        reader = read_saved(path, "scores", _shaped)
        return cls(reader, reader.note["meta"])

    @classmethod
    def _of_store(cls, store: ScoreStore, verify: bool) -> Scores:
        reader = ShardReader(store, SCORE_SCHEMA)
        scores = cls(reader, store.meta)
        if reader.rollouts:
            there = StoredCompletions(store.path, reader.rollouts)
            object.__setattr__(scores, "rollouts", there)
            for _ in there.tables() if verify else ():
                pass
        return scores

    def __repr__(self) -> str:
        return f"<rap.Scores: {len(self)} samples, {', '.join(self._evidence())}>"

    def _evidence(self) -> list[str]:
        kinds = pc.unique(self.reader.read(["evidence"])["evidence"]).to_pylist()
        return sorted(f"evidence {kind}" for kind in kinds if kind) or ["nothing scored"]

    def _repr_html_(self) -> str:
        """What was scored, what was set aside and why, the means, for a notebook."""
        n = len(self)
        table = self.reader.read(["status", "code"])
        codes = pc.value_counts(
            table["code"].filter(pc.equal(table["status"], QUARANTINED))
        )
        aside = [(f"quarantined_{c['values']}", c["counts"]) for c in codes.to_pylist()]
        scored = n - sum(k for _, k in aside)
        return card(
            f"{scored:,} of {n:,} samples scored",
            ", ".join(self._evidence()),
            bars([("scored", scored), *sorted(aside, key=lambda x: (-x[1], x[0]))], n),
            [],
            "<p>next: <code>rap.choose(scores, budget=0.09)</code></p>",
        )

    def to_pandas(self) -> pandas.DataFrame:
        """``table`` as a DataFrame, with the samples' ``index`` as its index. Raises
        ``RapConfigError`` without pandas."""
        return frame_of(self.table)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the table and ``meta`` as one Parquet file, whole or not at all.

        Raises ``RapStoreError`` if it cannot be written.
        """
        write_saved(Path(path), self.reader, dict(self.meta), "scores", checked=True)

    def column(self, name: str) -> pa.Array:
        """A column by its name, one value a row: of the score table, else of the data set
        ("a.b" is field b of column a), else of the rollouts (a sample's first row).

        ``"source"`` without a value in the table is the data set's column of that role.
        Raises ``RapConfigError`` if none of them has it, naming those that are there.
        """
        schema, n = self.reader.schema, len(self)
        here = name in schema.names
        own = None
        if here:
            own = flat(self.reader.read([name])[name])
            if name != "source" or own.null_count < n:
                return own
        for place in (_of_dataset, _of_rollouts):
            found = place(self, name)
            if found is not None:
                return found
        if own is not None:
            return own
        data = None if self.dataset is None else _known_rows(self)
        known = [*schema.names, *(() if data is None else data.column_names)]
        where = "" if self.dataset is not None else "; the data set is not known"
        raise RapConfigError(
            f"{name!r}: the score table has no such column, nor has the data set"
            f"{where}. There are: {', '.join(dict.fromkeys(known))}"
        )

    def diagnostics(self, lambda_c: float = PAPER_LAMBDA_C) -> dict[str, int]:
        """Counts that need no selection, each over all samples, so they overlap:

        samples, judged (those with a D), quarantined, above (D > lambda_c, exact),
        image_hurts (D < 0), never_solved (Diff == 1), always_solved (Diff == 0).
        """
        return diagnose(self.reader, as_fraction("lambda_c", lambda_c))


def as_scores(found: object) -> Scores:
    """Scores as they are, as a table, in a store or a file.

    Raises ``RapInputError`` for what is none, ``RapStoreError`` as ``Scores.load``."""
    if isinstance(found, Scores):
        return found
    if isinstance(found, (str, os.PathLike, ScoreStore)):
        return Scores.load(found)
    if isinstance(found, pa.Table):
        return Scores(found)
    known = "rap.Scores, or the folder of a score store"
    if hasattr(found, "kept"):
        known += "; this is a selection, chosen already"
    raise RapInputError(f"scores = {type(found).__name__}: expected {known}")


# Descriptors, for readers and Completions; type checkers see the fields as they are read.
Scores.table = Lazily()
Scores.rollouts = ReadCompletions()


def _rows_of(dataset: Any, id: str) -> SampleSet:
    """The data set as samples; its bare rows if they are none (no question, no image)."""
    if isinstance(dataset, SampleSet):
        return dataset
    try:
        return open_samples(dataset, columns={"id": id})
    except RapInputError:
        if is_url(dataset) or is_hub_name(dataset):
            raise
    return open_bare(dataset, id)


def _with_identities(table: pa.Table, samples: SampleSet) -> pa.Table:
    """The table with what tells its samples apart (``match.identities``)."""
    for name, values in identities(samples).items():
        at = table.schema.get_field_index(name)
        if at < 0:
            table = table.append_column(name, values)
        else:
            table = table.set_column(at, name, values)
    return table


def diagnose(reader: Reader, threshold: Fraction, **reading: Any) -> dict[str, int]:
    """See ``Scores.diagnostics``; ``reading``: options of ``read_evidence``."""
    total = dict.fromkeys(
        (
            "samples",
            "judged",
            "quarantined",
            "above",
            "image_hurts",
            "never_solved",
            "always_solved",
        ),
        0,
    )
    for evidence in evidence_of(reader, **reading):
        judged = evidence.valid & ~np.isnan(evidence.d)
        total["samples"] += len(judged)
        for name, mask in (
            ("judged", judged),
            ("quarantined", ~evidence.valid),
            ("above", judged & evidence.above(threshold)),
            ("image_hurts", judged & evidence.negative),
            ("never_solved", judged & evidence.unsolved),
            ("always_solved", judged & evidence.trivial(Fraction(0))),
        ):
            total[name] += int(mask.sum())
    return total


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


def _shaped(table: pa.Table) -> pa.Table:
    """``table`` with SCORE_SCHEMA's columns first, in its types, or an error."""
    try:
        for at, column in enumerate(table.columns):
            if pa.types.is_large_string(column.type):
                table = table.set_column(at, table.column_names[at], as_strings(column))
        return filled(table, SCORE_SCHEMA)
    except KeyError as error:
        raise RapInputError(
            f"score table: columns missing or twice: {error.args[0]}"
        ) from error
    except pa.ArrowException as error:
        raise RapInputError(f"score table: {error}") from error


def checked(reader: Reader) -> Reader:
    """``reader`` with SCORE_SCHEMA's columns first, sorted by ``index``, or an error. Not
    looked at again: a file of ``Scores.save``, whose bytes have their digest."""
    if isinstance(reader, FileReader) and reader.note.get(CHECKED) is True:
        return reader
    if isinstance(reader, TableReader):
        reader = TableReader(_shaped(reader.table))
    ascending, last, start = True, None, 0
    hashes = np.empty(reader.num_rows, np.uint64)
    wrong: dict[str, str] = {}
    names = ["id", "index", "status", *(name for pair in _COUNTS for name in pair)]
    for batch in reader.batches(names):
        for name in ("id", "index", "status"):
            if batch[name].null_count:
                raise RapInputError(f"score table: {name} is null in a row")
        index = batch["index"].to_numpy()
        ascending &= bool(np.all(index[1:] > index[:-1]))
        ascending &= last is None or bool(index[0] > last)
        last = index[-1]
        hashes[start : start + batch.num_rows] = hash64(batch["id"])
        start += batch.num_rows
        for accepted, judged in _COUNTS:
            if accepted not in wrong and (text := _bad_count(batch, accepted, judged)):
                wrong[accepted] = text
    if not ascending:
        reader = _in_order(reader)
    pa.default_memory_pool().release_unused()
    twice = repeated(hashes, lambda: (batch["id"] for batch in reader.batches(["id"])))
    if twice is not None:
        raise RapInputError(f"score table: the id {twice!r} appears twice")
    for accepted, _ in _COUNTS:
        if accepted in wrong:
            raise RapInputError(f"score table: {wrong[accepted]}")
    return reader


_COUNTS = (("c1", "m1"), ("c0", "m0"))


def _in_order(reader: Reader) -> Reader:
    index = reader.read(["index"])["index"].to_numpy()
    order = np.argsort(index, kind="stable")
    if np.any(np.diff(index[order]) == 0):
        raise RapInputError("score table: an index appears twice")
    return TableReader(reader.take(order))


def _bad_count(batch: pa.Table, accepted: str, judged: str) -> str | None:
    """What is wrong with the first row that has more accepted than judged."""
    c, m = integers(batch[accepted]), integers(batch[judged])
    bad = np.flatnonzero((c < 0) | (c > m))
    if not bad.size:
        return None
    row, at = batch["id"][int(bad[0])].as_py(), bad[0]
    return f"sample {row!r} has {accepted} = {c[at]} of {judged} = {m[at]}"


# ---------------------------------------------------------------- other columns


def _of_dataset(scores: Scores, name: str) -> pa.Array | None:
    """The column of the data set, in the table's order; None if it has none."""
    data = _known_rows(scores)
    if data is None:
        return None
    about = scores.meta.get("data")
    if name == "source":
        name = data.columns.get("source") or name
    if not {name, name.partition(".")[0]} & set(data.column_names):
        return None
    if data.bare:  # nothing tells which row is which but its place
        rows = scores.reader.read(["index"])["index"].to_numpy()
    else:
        names = [n for n in TO_MATCH if n in scores.reader.schema.names]
        rows = rows_of_all(scores.reader.read(names), data, data=about)
    return _of_samples(data, name, rows)


def _known_rows(scores: Scores) -> SampleSet | None:
    """The rows of the data set, as handed in, or opened again; None if it is not there."""
    data = scores.dataset
    if data is None:
        return reopen(scores.meta.get("data"))
    try:
        return open_bare(data)
    except RapInputError:  # an object of the caller's, which only ``take`` is asked of
        return None


def _of_samples(samples: SampleSet, name: str, rows: np.ndarray) -> pa.Array:
    """A column of the data set at ``rows``, -1 for none."""
    column = _one_type(name, samples.values(name))
    at = pa.array(rows, mask=rows < 0)
    if pa.types.is_string(column.type):
        column = column.cast(pa.large_string())  # take joins the chunks
    return flat(column.take(at))


def _one_type(name: str, parts: Iterable[Any]) -> pa.ChunkedArray:
    """Arrow arrays and Python values as one column. Raises ``RapConfigError``."""
    try:
        found = [p if isinstance(p, pa.ChunkedArray) else pa.array(p) for p in parts]
        tables = [pa.table({"": column}) for column in found]
        return pa.concat_tables(tables, promote_options="permissive")[""]
    except (pa.ArrowException, TypeError) as error:
        raise RapConfigError(f"{name!r}: the column mixes types: {error}") from error


TO_MATCH = ("id", "index", "status", "sample_sha256", "image_sha256", TEXT_COLUMN)
"""The columns that ``match`` reads."""


def _of_rollouts(scores: Scores, name: str) -> pa.Array | None:
    """The column of the completions: a sample's first row; None if there is none."""
    key = (scores.meta.get("fingerprint") or {}).get("rollouts", {}).get("id", "id")
    source = scores.completions
    if source is None or not {name, key} <= set(source.column_names):
        return None
    first = []
    for table in source.tables():
        ids = flat(table[key].cast(pa.large_string()))
        at = pc.index_in(pc.unique(ids), value_set=ids)
        found = flat(table[name]).take(at)
        first.append(pa.table({"id": pc.unique(ids), "value": found}))
    if not first:
        return None
    found = pa.concat_tables(first)
    wanted = scores.reader.read(["id"])["id"].cast(pa.large_string())
    at = pc.index_in(wanted, value_set=flat(found["id"])).combine_chunks()
    return flat(flat(found["value"]).take(at))


# ---------------------------------------------------------------- files


CHECKED = "checked"
"""In the note of a file: its rows went through ``checked`` before they were written."""


def write_saved(
    path: Path,
    table: pa.Table | Reader,
    meta: dict[str, Any],
    kind: str,
    *,
    checked: bool = False,
) -> None:
    note = {"kind": kind, "schema_version": SCHEMA_VERSION, "meta": meta}
    note |= {CHECKED: True} if checked else {}
    reader = as_reader(table)
    clear_leftovers(path)
    write_parts(path, reader.schema, reader.batches(size=ROW_GROUP), note)


def read_saved(path: Path, kind: str, shape: Shape) -> FileReader:
    """What ``write_saved`` wrote; ``note["meta"]`` is its ``meta``. ``shape``: see
    ``reader.Shape``. Raises ``RapStoreError``."""
    reader = FileReader(path, shape)
    if reader.note.get("kind") != kind:
        raise RapStoreError(f"{path}: holds {reader.note.get('kind')!r}, not {kind}")
    if not isinstance(reader.note.get("meta"), dict):
        raise RapStoreError(f"{path}: no {kind} of this project: it says nothing of itself")
    return reader
