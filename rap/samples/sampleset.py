"""Data set -> samples: rows, columns, ids, images by reference.

``open_samples`` takes what people have (a ``datasets.Dataset``, a list of dicts, JSONL
beside an image folder, Parquet in TRL's, verl's or EasyR1's columns, a ``save_to_disk``
folder) and answers with a ``SampleSet``: a sequence whose item ``i`` is a ``Sample``, or a
``Bad`` that says what is wrong with row ``i``. A broken row is never an exception; a data
set that cannot be used at all is a ``RapInputError`` before any work.

``sources`` reads the files, ``parsing`` makes a row a ``Sample``. Nothing here decodes an
image (``images`` does) and nothing but numpy and pyarrow is needed.

Memory: what a source keeps (JSON Lines: 8 bytes a row, Parquet: a window), and the ids as
Arrow text. What is asked of all rows (ids, hashes, a column) passes in batches; no row
stays a Python object.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from ..errors import RapInputError
from .cells import cell
from .column import Column, column_of_answers
from .content import Content
from .detecting import (
    SPLIT_COLUMNS,
    leave_images,
    places_from,
    readable,
    roles_of,
    spread,
    tell_splits,
)
from .forms import Forms, forms_of
from .hfdata import build_dataset, stream_dataset
from .ids import Ids, read_ids, same_ids
from .jsonlines import JsonlRows
from .opening import open_rows
from .parsing import answer_of_row, parse_row, question_of_row
from .remote import fetched, is_hub_name, is_url
from .roles import CANDIDATES, PROMPT_CANDIDATES
from .sample import Bad, BadSample, Sample
from .sources import (
    Rows,
    all_to_python,
    datasets_library,
    outer_columns,
)
from .stated import Stated, stated_in
from .streams import FirstRows, first_of_stream, is_stream
from .tables import column_of
from .telling import text_of, told

if TYPE_CHECKING:
    import datasets
    from PIL.Image import Image


# --------------------------------------------------------------------- the sample set


@dataclass(frozen=True, slots=True)
class Known:
    """What was found when the same data set was opened before (``index``)."""

    ids: Ids
    hashes: Mapping[Content, str] = field(default_factory=dict)


class SampleSet(Sequence["Sample | Bad"]):
    """The rows of a data set, each a ``Sample`` or a ``Bad``, in data-set order.

    Reading an item parses one row; images are not touched. Safe to read from several
    threads at once.
    """

    def __init__(
        self,
        rows: Rows,
        columns: Mapping[str, str | None],
        root: str | None,
        counted: int | None = None,
        known: Known | None = None,
    ) -> None:
        self._rows, self._counted = rows, counted
        self._known = known is not None
        self._hashes = {} if known is None else dict(known.hashes)
        self.columns: Mapping[str, str | None] = MappingProxyType(dict(columns))
        """Role -> column that plays it, None if none does."""
        self.root = root
        """Folder that image paths must stay in, links resolved; None: no paths."""
        self.path: str | None = None
        """Where ``open_samples`` found the data, as it was given; None: in memory."""
        self.given_root: str | None = None
        """The ``root`` that ``open_samples`` was given."""
        self.given_columns: Mapping[str, str] | None = None
        """The ``columns`` that ``open_samples`` was given."""
        if known is not None:
            self._ids = known.ids
            return
        self._ids = read_ids(rows, self.columns["id"])
        tell_splits(rows)
        self._require_a_usable_row()

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample | Bad:  # type: ignore[override]
        if not isinstance(index, (int, np.integer)):
            raise TypeError(f"index is {type(index).__name__}, expected int")
        i = int(index) + (len(self) if index < 0 else 0)
        if not 0 <= i < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        try:
            row = self._rows.row(i)
            if i in self._ids.bad:
                raise self._ids.bad[i]
            return parse_row(
                row,
                self.columns,
                index=i,
                id=self._ids[i],
                root=self.root,
                image_columns=self._rows.image_columns,
                counted=self._counted,
                stated=bool(self.stated_options),
                column=self.answer_column,
            )
        except BadSample as bad:
            return Bad(i, self._ids[i], bad.stage, bad.code, bad.message)

    @property
    def ids(self) -> list[str]:
        """Every row's id, in data-set order; a row without one has its place instead."""
        return [name for chunk in self._ids.chunks() for name in chunk.to_pylist()]

    @property
    def id_column(self) -> pa.ChunkedArray:
        """``ids`` as Arrow text."""
        return self._ids.column

    def id_of(self, index: int) -> str:
        """``ids[index]``."""
        return self._ids[range(len(self))[index]]

    def rows_of(self, ids: pa.ChunkedArray | pa.Array) -> np.ndarray:
        """int64: the row of each of these ids (text), -1 where there is none."""
        return self._ids.rows_of(ids)

    @property
    def kind(self) -> str:
        """What was opened, in words."""
        return self._rows.kind

    @property
    def column_names(self) -> list[str]:
        """All columns of the data set."""
        return list(self._rows.columns)

    @property
    def rows(self) -> Rows:
        """Where the rows come from."""
        return self._rows

    @property
    def all_ids(self) -> Ids:
        """The ids as they are held."""
        return self._ids

    def row(self, index: int) -> Mapping[str, Any]:
        """The original columns of one row; empty if the row cannot be read."""
        try:
            return self._rows.row(index)
        except BadSample:
            return {}

    def describe(self) -> str:
        """What was opened, which column plays which role, the form of the answers, and two
        sample rows, in lines (``telling``)."""
        return text_of(told(self))

    @property
    def counted_from(self) -> int | None:
        """0 or 1 where the answers are places of choices, counted from it; else None."""
        return self._counted

    @cached_property
    def answer_forms(self) -> Forms:
        """In which form the answers are given, by up to ``forms.LOOKED_AT`` rows spread
        over all of them; what could be read in two ways as the column reads it."""
        column = self.answer_column
        return forms_of(
            ((a if c else column.settled(a), c) for a, c in self._spread_answers()),
            self._counted,
        )

    @cached_property
    def answer_column(self) -> Column:
        """How answers are read that could be read in two ways, by the same rows."""
        return column_of_answers(self._spread_answers(), self._spread_questions())

    def _spread_answers(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """(answer, choices) of rows spread over the data set."""
        names = [n for n in (self.columns["answer"], self.columns["choices"]) if n]

        def answer(row: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
            return answer_of_row(row, self.columns, self._counted)

        return readable(answer, spread(self._rows, names))

    def _spread_questions(self) -> Iterator[str]:
        """The questions of these rows; read only where somebody asks for one."""
        question = self.columns["question"]

        def asked(row: Mapping[str, Any]) -> str:
            return question_of_row(row, self.columns)

        yield from readable(asked, spread(self._rows, [question] if question else []))

    @cached_property
    def stated_options(self) -> Stated:
        """Whether the questions state their options, by the rows of ``answer_forms``; true
        or false for the data set as a whole. Never with a column of choices."""
        if self.columns["choices"] is not None:
            return Stated()
        names = [n for n in (self.columns["question"], self.columns["answer"]) if n]

        def asked(row: Mapping[str, Any]) -> tuple[str, str]:
            answer, _ = answer_of_row(row, self.columns, self._counted)
            return question_of_row(row, self.columns), answer

        return stated_in(readable(asked, spread(self._rows, names)))

    def _outer(self, *roles: str) -> list[str]:
        """The data set's columns that these roles are read from."""
        return outer_columns(self._rows.columns, [self.columns[role] for role in roles])

    def _require_a_usable_row(self) -> None:
        """Raises ``RapInputError`` with the counts if there is none; stops at the first."""
        reasons: dict[str, list[Any]] = {}
        for i in range(len(self)):
            item = self[i]
            if isinstance(item, Sample):
                return
            reasons.setdefault(item.code, [0, item.message])[0] += 1
        counts = "; ".join(f"{n} {code} (first: {m})" for code, (n, m) in reasons.items())
        raise RapInputError(
            f"{self._rows.kind}: 0 of {len(self)} rows can be used: {counts}"
        )

    def line(self, index: int) -> bytes | None:
        """The row's own line of a JSON Lines file, without its end; None for other kinds.
        Raises ``BadSample`` if it cannot be read."""
        reader = getattr(self._rows, "line", None)
        return None if reader is None else reader(index)

    def arrow(self, indices: Sequence[int] | np.ndarray) -> pa.Table | None:
        """The rows ``indices`` as they are: every column, type and piece of metadata (that
        of `datasets`, too); None where the rows are not Arrow's."""
        reader = getattr(self._rows, "arrow", None)
        return None if reader is None else reader([int(i) for i in indices])

    @cached_property
    def content_sha256(self) -> str:
        """``content_hash()``, read once."""
        return self.content_hash()

    def content_hash(self, more: Iterable[str] = (), *, source: bool = False) -> str:
        """sha256 over ids, questions, answers, choices and image paths as they stand in the
        rows, in order, and over the columns ``more`` as far as they are there.

        ``source``: the group column counts, too, as it did in stores of rap 0.1.

        One pass over the rows. The images' own bytes are not in it: they are hashed one by
        one when they are read (``sample_sha256``), so that an image that changed shows in
        its row and does not make the whole data set another one.
        """
        content = self.content(more, source=source)
        if content in self._hashes:
            return self._hashes[content]
        return content.sha256(self._rows, self._ids)

    def content(self, more: Iterable[str] = (), *, source: bool = False) -> Content:
        """What ``content_hash`` counts."""
        roles = ["question", "answer", "choices", *(["source"] if source else [])]
        roles += [role for role in PROMPT_CANDIDATES if self.columns.get(role)]
        if not self._rows.image_columns.issuperset(self._outer("images")):
            roles.append("images")
        names = [self.columns[role] for role in roles]
        unread = self._rows.bytes_columns  # image bytes do not count: never read here
        there = set(self._rows.columns) - set(self._rows.image_columns)
        return Content(
            tuple(roles),
            tuple(None if name in unread else name for name in names),
            tuple(sorted(there.intersection(more))),
            self._counted,
        )

    @property
    def content_counts_images(self) -> bool:
        """Whether ``content_hash`` tells images that lie in the rows apart: none are bytes
        (files are named by their paths)."""
        return "images" in self.content().roles and self._rows.holds_text(
            self._outer("images")
        )

    def shard_hashes(self, shards: Sequence[range], more: Iterable[str] = ()) -> list[str]:
        """sha256 of what ``content_hash`` counts of each of these ranges of rows, which
        follow one another."""
        return self.content(more).sha256_of_shards(self._rows, self._ids, shards)

    def read_hashes(
        self, shards: Sequence[range], more: Iterable[str] = ()
    ) -> tuple[str, list[str]]:
        """(``content_hash``, ``shard_hashes`` of shards that hold all rows, or of none), of
        one pass over the rows. The first is what ``content_hash`` says from then on."""
        content = self.content(more)
        whole, found = content.sha256_with_shards(self._rows, self._ids, shards)
        self._hashes[content] = whole
        return whole, found

    def has_rows(self, shard: range, wanted: str, more: Iterable[str] = ()) -> bool:
        """Whether ``shard_hashes`` of these rows is ``wanted``, their ids included."""
        return self.shard_hashes([shard], more) == [wanted] and self.has_ids(shard)

    def has_ids(self, rows: range) -> bool:
        """Whether these rows have the ids that were found in them."""
        column = self.columns["id"]
        return not self._known or same_ids(self._rows, column, self._ids, rows)

    @property
    def is_known(self) -> bool:
        """Whether it was opened with what was found before (``index``), so that its rows
        were not looked at."""
        return self._known

    @property
    def bare(self) -> bool:
        """Whether its rows are no samples: they have no question (``open_bare``)."""
        return self.columns["question"] is None

    def values(self, name: str) -> Iterator[pa.ChunkedArray | list[Any]]:
        """A column, or a field of one ("a.b"), in order: as Arrow has it, or as Python
        values where Arrow has no type for them; None for rows that cannot be read."""
        for part in self._rows.parts([name]):
            if isinstance(part, pa.Table):
                column = column_of(part, name)
                if column is not None:
                    yield column
                    continue
                part = all_to_python(part)
            yield [None if isinstance(r, BadSample) else cell(r, name) for r in part]

    def texts(self, name: str, rows: range) -> pa.ChunkedArray | None:
        """A column in these rows, where Arrow has it as text; else None."""
        found: list[pa.Array] = []
        for part in self._rows.parts([name], rows.start, rows.stop):
            column = column_of(part, name) if isinstance(part, pa.Table) else None
            if column is None or not pa.types.is_string(column.type):
                return None
            found += column.chunks
        return pa.chunked_array(found, pa.string())

    @cached_property
    def dataset(self) -> datasets.Dataset | None:
        """The rows as a ``datasets.Dataset``, original columns untouched; built on first
        use for JSONL and lists. None if the `datasets` library is not installed."""
        given = self._rows.dataset()
        if given is not None or datasets_library() is None:
            return given
        return self._built(range(len(self)))

    def take(self, indices: Sequence[int] | np.ndarray) -> datasets.Dataset:
        """The rows ``indices`` (any order) as a ``datasets.Dataset``, original columns
        untouched. Raises ``RapInputError`` if `datasets` is not installed."""
        wanted = [int(i) for i in indices]
        for i in wanted:
            if not 0 <= i < len(self):
                raise IndexError(f"sample {i} of {len(self)}")
        own = getattr(self._rows, "take", None)
        if own is not None and datasets_library() is not None:
            return own(wanted)
        given = self._rows.dataset()
        if given is not None:
            return given.select(wanted)
        if datasets_library() is None:
            raise RapInputError("take: needs the datasets library: pip install datasets")
        return self._built(wanted)

    def _built(self, indices: Sequence[int]) -> datasets.Dataset:
        """Rows that are not Arrow's, as a data set."""
        if isinstance(self._rows, JsonlRows):
            return stream_dataset(lambda: map(self.row, indices), self._rows.columns)
        return build_dataset([self.row(i) for i in indices], self._rows.columns)


def open_samples(
    source: object,
    *,
    columns: Mapping[str, str] | None = None,
    root: str | os.PathLike[str] | None = None,
    allow_network: bool = False,
    limit: int | None = None,
) -> SampleSet:
    """Open a data set.

    source: ``datasets.Dataset`` (one split), ``pyarrow.Table``, a table of pandas or
        Polars, a list of dicts, a dict of columns, a torch data set that gives dicts by
        number, or a path: JSONL (image paths relative to its folder), a JSON array, CSV or
        TSV, Parquet in TRL's, verl's or EasyR1's columns, any of these in gzip, a
        ``save_to_disk`` folder, a folder with one such file or with Parquet files, a
        pattern as in data/train-*.parquet. Files of several splits are refused. With
        ``allow_network`` also an URL that fsspec knows (s3://, hf://datasets/...) or the
        name of a data set on the hub, ORG/NAME or ORG/NAME:SPLIT (``remote``).
    columns: role -> column where detection is wrong, e.g. ``{"question": "q"}``; roles are
        id, question, answer, choices, images, source; ``"a.b"`` is field b of column a;
        ``"a,b"`` are several columns (choices, images); ``""`` says that there is none (id,
        choices, source).
    root: folder that image paths are relative to and must stay in. Default: the data
        file's folder; for objects in memory none, and then images must be bytes.
    allow_network: fetch what is not on this machine; a line says what.
    limit: take the first so many rows only; needed for a stream (an ``IterableDataset`` of
        `datasets` or torch, a generator), whose rows are read right away.

    Ids become text; without an id column they are the row numbers. Every row is read once
    here, to find duplicate ids.

    Raises ``RapInputError``: not such a source, unreadable, no column for question, answer
    or images, a wrong name in ``columns``, a duplicate id, no usable row at all.
    """
    if columns is not None and not isinstance(columns, Mapping):
        raise RapInputError(
            f"columns = {columns!r}: expected a dict of role and column, as in "
            '{"question": "problem"}'
        )
    ids = [columns["id"]] if columns and columns.get("id") else CANDIDATES["id"]
    found_at = source
    if is_url(source) or is_hub_name(source):
        found_at = fetched(os.fspath(source), allow_network=allow_network)  # type: ignore[call-overload]
    if limit is not None:
        _require_count(limit)
        if is_stream(found_at):
            found_at = first_of_stream(found_at, limit)
    _require_data(found_at)
    rows, default_root = open_rows(found_at, keep=[*ids, *SPLIT_COLUMNS])
    if limit is not None and limit < len(rows):
        rows = FirstRows(rows, limit)
    if not len(rows):
        raise RapInputError(f"{rows.kind}: the data set is empty: 0 rows")
    folder = default_root if root is None else Path(root)
    if folder is not None and not folder.is_dir():
        raise RapInputError(f"root {folder}: not a folder")
    if not rows.columns:
        bad = next((r for r in rows.each([]) if isinstance(r, BadSample)), None)
        first = f" (first: {bad.message})" if bad is not None else ""
        raise RapInputError(f"{rows.kind}: none of {len(rows)} rows can be read{first}")
    found = roles_of(rows, columns)
    leave_images(rows, found["images"])
    counted = places_from(rows, found, columns or {})
    real = None if folder is None else os.path.realpath(folder)
    samples = SampleSet(rows, found, real, counted)
    if isinstance(source, (str, os.PathLike)):
        samples.path = os.fspath(source)
    samples.given_root = None if root is None else os.fspath(root)
    samples.given_columns = None if columns is None else dict(columns)
    return samples


def _require_data(source: object) -> None:
    """Raises ``RapInputError`` for a folder of ours that holds scores or a selection."""
    if not isinstance(source, (str, os.PathLike)):
        return
    for name, what in (("store.json", "scores"), ("selection.parquet", "a selection")):
        if (Path(source) / name).is_file():
            raise RapInputError(
                f"{os.fspath(source)}: holds {what} that rap made; give the data set "
                "itself (JSONL, Parquet, CSV, or a folder of such files)"
            )


def _require_count(limit: object) -> None:
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise RapInputError(f"limit: {limit!r}: expected a whole number from 1")


def load_images(
    sample: Sample, *, max_pixels: int, min_side: int = 2
) -> tuple[list[Image], list[str]]:
    """``samples.images.load_images``: RGB images and the sha256 of their encoded bytes."""
    from .images import load_images as load

    return load(sample.images, max_pixels=max_pixels, min_side=min_side)
