"""Matches the samples of a score table to the rows of a data set, by id and content.

``match`` is used wherever a table is joined with its data: ``Selection.dataset``,
``rap.trl.prepare``, exports, reports, ``rap train``. It never relies on row positions:

- A sample with an id of its own is looked up by that id, in whatever row it stands now.
- Where ids are row numbers they identify nothing, so the content does: question, answer,
  choices and image bytes, by ``sample_sha256``.
- What was found is compared with the table's hashes: the texts always, without reading an
  image (the table knows the image hashes that went into ``sample_sha256``), images that lie
  in the row itself at once, image files when they are read (``Changed``).

``describe`` is what a selection keeps of its data set to open it again (``reopen``).
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import RapInputError
from ..samples.bare import open_bare
from ..samples.images import read_bytes
from ..samples.remote import is_hub_name, is_url
from ..samples.sample import Bad, BadSample, Sample, sample_sha256
from ..samples.sampleset import SampleSet, open_samples
from ..samples.telling import guessed
from ..samples.text import taken
from .columns import mask_of
from .reader import Reader, as_reader
from .table import SCORED

TEXT_COLUMN = "text_sha256"
"""Column of scores without a model (``Scores.from_rollouts``): ``text_sha256`` a sample."""

SHOWN = 3
"""Samples that a refusal names."""


def text_sha256(sample: Sample) -> str:
    """sha256 of a sample without its images: question, answer, choices."""
    return sample_sha256(sample, ())


# ---------------------------------------------------------------- what is kept of the data


def describe(samples: SampleSet) -> dict[str, Any]:
    """What a selection keeps of its data set, as JSON: path as given and absolute (None: in
    memory), kind, hash of the content, number of rows, which column plays which role, the
    folder of the images if one was given, and what was guessed (``telling``)."""
    return {
        "path": samples.path,
        "absolute": _absolute(samples.path),
        "kind": samples.kind,
        "content_sha256": samples.content_sha256,
        "rows": len(samples),
        "columns": dict(samples.columns),
        "root": None if samples.given_root is None else samples.root,
        "guessed": guessed(samples),
    }


def _absolute(path: str | None) -> str | None:
    elsewhere = path is None or is_url(path) or is_hub_name(path)
    return path if elsewhere else os.path.abspath(path)  # type: ignore[type-var]


def rows_of_all(
    table: pa.Table, samples: SampleSet, *, data: Mapping[str, Any] | None = None
) -> np.ndarray:
    """As ``match`` for every row of the table; -1 for those that could not be scored and
    are not there. Raises ``RapInputError`` if a scored one is not."""
    found = find(table, samples, data=data)
    scored = np.flatnonzero(pc.equal(table["status"], SCORED).to_numpy())
    if (found.rows[scored] < 0).any():
        match(table, samples, data=data, rows=scored)  # raises, and says which
    return found.rows


def described_again(
    table: pa.Table, samples: SampleSet, data: Mapping[str, Any] | None
) -> dict[str, Any]:
    """``describe`` of the data set that ``table`` is matched with from now on, of which
    ``data`` was said when it was scored: the hash of the content stays that of the rows in
    the table's order, None if that is not known.

    Raises ``RapInputError`` if a scored sample is not there."""
    rows = rows_of_all(table, samples, data=data)
    there = rows >= 0
    found = describe(samples)
    if (rows[there] != table["index"].to_numpy()[there]).any():
        known = data or {}
        found |= {name: known.get(name) for name in ("content_sha256", "rows")}
    return found


def reopen(data: Mapping[str, Any] | None) -> SampleSet | None:
    """The data set that ``describe`` described; None if it is not there any more, or never
    was a file. Raises ``RapInputError`` if it is there and cannot be read."""
    data = data or {}
    for path in (data.get("absolute"), data.get("path")):
        if path is not None and os.path.exists(path):
            columns = {k: v or "" for k, v in (data.get("columns") or {}).items()}
            root = data.get("root")
            if root is not None and not os.path.isdir(root):
                root = None
            return open_samples(path, columns=columns or None, root=root)
    return None


def as_samples(source: Any, data: Mapping[str, Any] | None) -> SampleSet:
    """``source`` (what ``open_samples`` takes) with the columns it was scored with, as far
    as it has them. Raises ``RapInputError``."""
    if isinstance(source, SampleSet):
        return source
    columns = (data or {}).get("columns")
    if columns:
        try:
            return open_samples(source, columns={k: v or "" for k, v in columns.items()})
        except RapInputError:
            pass  # other column names: they are found as for any data set
    return open_samples(source)


# ---------------------------------------------------------------- matching


@dataclass(frozen=True, slots=True)
class Found:
    """``rows``: int64, the data set's row of each sample asked for, -1 where there is none.
    ``why``: {position in ``rows``: why there is none}."""

    rows: np.ndarray
    why: dict[int, str]


def match(
    table: pa.Table | Reader,
    samples: SampleSet,
    *,
    data: Mapping[str, Any] | None = None,
    rows: Sequence[int] | np.ndarray | None = None,
) -> np.ndarray:
    """The rows of ``samples`` that the samples of a score table are: int64, in its order.

    table: with the columns ``id``, ``index`` and, as far as they are known,
        ``sample_sha256``, ``image_sha256``, ``text_sha256``.
    data: what ``describe`` said of the data set that was scored, if that is known.
    rows: rows of ``table`` to look for; None: all.

    Raises ``RapInputError`` if one is not there, or not as it was scored: how many, and the
    first of them by name.
    """
    found = find(table, samples, data=data, rows=rows)
    if found.why:
        some = [found.why[at] for at in sorted(found.why)[:SHOWN]]
        more = "; ..." if len(found.why) > SHOWN else ""
        raise RapInputError(
            f"{len(found.why)} of {len(found.rows)} selected samples are not in the data "
            "set, or not as they were scored: it is not the one that was scored: "
            f"{'; '.join(some)}{more}"
        )
    return found.rows


def find(
    table: pa.Table | Reader,
    samples: SampleSet,
    *,
    data: Mapping[str, Any] | None = None,
    rows: Sequence[int] | np.ndarray | None = None,
) -> Found:
    """As ``match``, but what is not there is told and not raised.

    No sample is parsed where the hash of the whole data set says that it is as it was, and
    where that hash counts the images, too, as far as they lie in the rows."""
    reader = as_reader(table)
    hashes = ("sample_sha256", "image_sha256", TEXT_COLUMN)
    names = ["id", "index", *(name for name in hashes if name in reader.schema.names)]
    if rows is None:
        wanted = reader.read(names)
    else:
        wanted = reader.take(np.asarray(rows, np.int64), names)
    content = (data or {}).get("content_sha256")
    same = content is not None and content == samples.content_sha256
    found = Found(np.full(wanted.num_rows, -1, np.int64), {})
    left = _unchanged(wanted, samples, found) if same else np.arange(wanted.num_rows)
    if not left.size:
        return found
    numbered = samples.columns["id"] is None or _numbered(reader, data)
    if numbered:
        unknown = content is None and len(samples) == reader.num_rows  # an old selection
        _by_content(wanted, left, samples, found, same=same, unknown=unknown)
    else:
        _by_id(wanted, left, samples, found)
    return found


def _unchanged(wanted: pa.Table, samples: SampleSet, found: Found) -> np.ndarray:
    """Fill in the rows of a data set that is as it was; positions that are still to be
    looked at. Samples that were never hashed could not be used."""
    hashes = [wanted[n] for n in ("sample_sha256", TEXT_COLUMN) if n in wanted.column_names]
    if not (samples.content_counts_images and hashes):
        return np.arange(wanted.num_rows)
    hashed = ~np.logical_and.reduce([h.is_null().to_numpy() for h in hashes])
    index = wanted["index"].to_numpy()
    at = np.flatnonzero(hashed & (index >= 0) & (index < len(samples)))
    if samples.columns["id"] is not None:
        known = taken(samples.id_column, index[at])
        at = at[pc.equal(known, taken(wanted["id"], at)).to_numpy()]
    found.rows[at] = index[at]
    return np.flatnonzero(found.rows < 0)


def _read(wanted: pa.Table, positions: np.ndarray) -> Iterator[tuple[int, _Judged]]:
    """(position, sample) of these rows; they are Python values for a moment only."""
    for start in range(0, len(positions), 1024):
        some = positions[start : start + 1024]
        rows = pa.table([taken(c, some) for c in wanted.columns], names=wanted.column_names)
        for at, row in zip(some.tolist(), rows.to_pylist(), strict=True):
            yield at, _Judged.of(row)


@dataclass(frozen=True, slots=True)
class _Judged:
    """One sample as a table knows it; hashes that it does not know are None."""

    id: str
    index: int
    sample: str | None
    images: tuple[str, ...] | None
    text: str | None

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> _Judged:
        joined = row.get("image_sha256")
        images = None if joined is None else tuple(h for h in joined.split(",") if h)
        sample = row.get("sample_sha256")
        return cls(row["id"], row["index"], sample, images, row.get(TEXT_COLUMN))

    @property
    def hashed(self) -> bool:
        return self.sample is not None or self.text is not None

    def differs(self, item: Sample | Bad, *, files: bool) -> str | None:
        """Why ``item`` is not this sample; None if it is, as far as the hashes tell.
        ``files``: read image files, too."""
        name = f"{self.id[:80]!r} (row {item.index})"
        if isinstance(item, Bad):
            return f"{name} cannot be used: {item.code}: {item.message}"
        changed = f"{name} changed: its question, answer or choices are others"
        if self.sample is not None and self.images is not None:
            if sample_sha256(item, self.images) != self.sample:
                return changed
        elif self.text is not None and text_sha256(item) != self.text:
            return changed
        return None if self.images is None else self._other_images(item, name, files)

    def _other_images(self, item: Sample, name: str, files: bool) -> str | None:
        assert self.images is not None
        if len(item.images) != len(self.images):
            return f"{name} has {len(item.images)} images, scored were {len(self.images)}"
        for ref, want in zip(item.images, self.images, strict=True):
            if ref.data is None and not files:
                continue
            try:
                data = read_bytes(ref)
            except BadSample as bad:
                return f"{name} cannot be used: {bad.code}: {bad.message}"
            if hashlib.sha256(data).hexdigest() != want:
                return f"{name} changed: its image is another"
        return None


def is_sample(row: Mapping[str, Any], item: Sample | Bad, *, files: bool) -> bool:
    """``item`` is the sample that this row of a score table is of, by all its hashes, of
    which it must have some. ``files``: read image files, too."""
    one = _Judged.of(row)
    return one.hashed and one.differs(item, files=files) is None


def _numbered(table: Reader, data: Mapping[str, Any] | None) -> bool:
    """The table's ids are row numbers: they say where a sample stood, not which it is."""
    if data is not None and data.get("columns"):
        return data["columns"].get("id") is None
    return all(
        pc.all(pc.equal(batch["id"], batch["index"].cast(pa.string()))).as_py()
        for batch in table.batches(["id", "index"])
    )


def _by_id(
    wanted: pa.Table, positions: np.ndarray, samples: SampleSet, found: Found
) -> None:
    places = samples.rows_of(taken(wanted["id"], positions)).tolist()
    for (at, one), row in zip(_read(wanted, positions), places, strict=True):
        if row < 0:
            found.why[at] = _not_there(one, samples)
        elif (reason := one.differs(samples[row], files=False)) is not None:
            found.why[at] = reason
        else:
            found.rows[at] = row


def _not_there(one: _Judged, samples: SampleSet) -> str:
    known = 0 <= one.index < len(samples)
    there = repr(samples.id_of(one.index)[:80]) if known else "not there"
    return f"row {one.index} was {one.id[:80]!r} and is {there}"


def _by_content(
    wanted: pa.Table,
    positions: np.ndarray,
    samples: SampleSet,
    found: Found,
    *,
    same: bool,
    unknown: bool,
) -> None:
    """Where a sample stood is the first guess. It is right if the whole data set is the
    ``same``, or if the sample's hash with its image bytes says so. Else all are searched.
    ``unknown``: nothing tells whether it is the same."""
    lost: dict[int, _Judged] = {}
    for at, one in _read(wanted, positions):
        if not 0 <= one.index < len(samples):
            found.why[at] = _not_there(one, samples)
        elif not (one.hashed or same or unknown):
            found.why[at] = (
                f"row {one.index} has no id, and nothing else tells which it was"
            )
        elif (reason := one.differs(samples[one.index], files=not same)) is not None:
            found.why[at] = reason
        elif one.sample is None and not (same or unknown):
            found.why[at] = f"row {one.index} has no id: its text alone is not unique"
        else:
            found.rows[at] = one.index
        if at in found.why and one.hashed:
            lost[at] = one
    if lost:
        _search(lost, samples, found)


def _search(lost: Mapping[int, _Judged], samples: SampleSet, found: Found) -> None:
    """Look for ``lost`` in all rows that nobody else is. A text that stands for several
    samples is no evidence, equal samples are the same."""
    free = np.ones(len(samples), bool)
    free[found.rows[found.rows >= 0]] = False
    by_sample = any(one.sample is not None for one in lost.values())
    asked = Counter(one.text or "" for one in lost.values())
    wanted = {one.sample or one.text or "" for one in lost.values()}
    there: dict[str, list[int]] = {}
    for i in np.flatnonzero(free):
        for key in wanted.intersection(_keys(samples[int(i)], by_sample)):
            there.setdefault(key, []).append(int(i))
    for at, one in lost.items():
        places = there.get(one.sample or one.text or "", [])
        unique = one.sample is not None or (len(places) == 1 and asked[one.text or ""] == 1)
        if places and unique:
            found.rows[at] = places.pop(0)
            del found.why[at]


def _keys(item: Sample | Bad, by_sample: bool) -> set[str]:
    if isinstance(item, Bad):
        return set()
    full = hashes_of(item) if by_sample else None
    return {text_sha256(item)} if full is None else {text_sha256(item), full[0]}


def hashes_of(sample: Sample) -> tuple[str, str] | None:
    """(``sample_sha256``, ``image_sha256``) of a sample, its images read; None if one
    cannot be."""
    try:
        hashes = [hashlib.sha256(read_bytes(ref)).hexdigest() for ref in sample.images]
    except BadSample:
        return None
    return sample_sha256(sample, hashes), ",".join(hashes)


def bare_rows(table: pa.Table, source: Any, rows: np.ndarray) -> Any | None:
    """``rows`` of the table in a data set whose rows are no samples (no question, say):
    found by its column ``id``, or by their place where it has none. None if nothing tells
    whether that is right: another number of rows, or scores that have hashes to compare
    with."""
    names = ("sample_sha256", TEXT_COLUMN)
    hashed = any(
        name in table.column_names and table[name].null_count < table.num_rows
        for name in names
    )
    if hashed:
        return None
    wanted = table.select(["id", "index"]).take(pa.array(rows, pa.int64()))
    data = _to_take(source)
    if isinstance(data, SampleSet) and data.columns["id"] is not None:
        rows = data.rows_of(wanted["id"])
        return None if (rows < 0).any() else data.take(rows)
    if data is None or len(data) != table.num_rows:
        return None
    return data.take(wanted["index"].to_numpy())


def _to_take(source: Any) -> Any | None:
    """The rows, with the ids of a column ``id``; else an object that gives rows itself."""
    try:
        data = open_bare(source)
        return open_bare(source, "id") if "id" in data.column_names else data
    except RapInputError:
        numbered = hasattr(source, "take") and hasattr(source, "__len__")
        return source if numbered else None  # a stream is taken from its start only


# ---------------------------------------------------------------- other uses of the hashes


def identities(samples: SampleSet) -> dict[str, pa.ChunkedArray]:
    """Columns that tell samples apart where no model hashed them: ``text_sha256``, and
    ``sample_sha256`` and ``image_sha256`` where the images lie in the rows, or where a row
    has no id of its own and nothing else would tell it apart (one pass over the images)."""
    names = (TEXT_COLUMN, "sample_sha256", "image_sha256")
    read_files = samples.columns["id"] is None
    parts: dict[str, list[pa.Array]] = {name: [] for name in names}
    for start in range(0, len(samples), 1024):
        stop = min(start + 1024, len(samples))
        found = [_identity(samples[i], read_files) for i in range(start, stop)]
        for name, values in zip(names, zip(*found, strict=True), strict=True):
            parts[name].append(pa.array(values, pa.string()))
    return {name: pa.chunked_array(arrays, pa.string()) for name, arrays in parts.items()}


def _identity(
    item: Sample | Bad, read_files: bool
) -> tuple[str | None, str | None, str | None]:
    if isinstance(item, Bad):
        return None, None, None
    full = None
    if read_files or all(ref.data is not None for ref in item.images):
        full = hashes_of(item)
    return text_sha256(item), *(full or (None, None))


def require_equal(here: pa.Table, there: pa.Table) -> None:
    """Refuse two score tables, row beside row of the same ids, of different samples.

    Raises ``RapInputError`` with the count and the first, where both know their hashes."""
    for name in ("sample_sha256", TEXT_COLUMN):
        if name not in here.column_names or name not in there.column_names:
            continue
        a, b = here[name], there[name]
        known = pc.and_(pc.not_equal(a, ""), pc.not_equal(b, ""))
        other = np.flatnonzero(mask_of(pc.and_(known, pc.not_equal(a, b))))
        if other.size:
            first = here["id"][int(other[0])].as_py()
            raise RapInputError(
                f"{len(other)} of {here.num_rows} samples are others in the new scores "
                f"(question, answer, choices or images), {first[:80]!r} among them"
            )
