"""The score table as an object, and D and difficulty read off its rows.

``Scores`` is what ``score`` returns and ``choose`` takes: a checked ``SCORE_SCHEMA``
table in data-set order. ``read_evidence`` says of each row what the image changed (D)
and how hard it is (Diff), whichever way they were measured (method.md sections 1 and
3). Pure but for the readers and writers of files: NumPy and Arrow, no torch, no model.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..config import EVIDENCE, is_number
from ..errors import RapConfigError, RapInputError, RapStoreError
from ..samples.sampleset import SampleSet, open_samples
from ..settings import to_python
from .files import read_parquet, write_parquet
from .match import describe, identities
from .records import count_rollouts, keep_rows, read_rollouts
from .table import QUARANTINED, SCHEMA_VERSION, SCORE_SCHEMA, SCORED, VOLATILE_COLUMNS

PAPER_LAMBDA_C = 0.5
"""The paper's threshold on D, for accuracies."""

# -inf is a value here: probability 0, or a response too short to judge.
_MAY_BE_MINUS_INF = ("log_psi", "logp_answer1", "logp_answer0", "logp_mean1", "logp_mean0")


@dataclass(frozen=True, eq=False)
class Scores:
    """The score table of a data set, in data-set order.

    ``table``: the columns of ``rap.scores.table.SCORE_SCHEMA`` (others may follow).
    ``meta``: where the scores come from; ``meta["fingerprint"]`` is the store's.
    ``dataset``: the ``SampleSet`` (or datasets.Dataset) they were made from, if known.
    ``rollouts``: one row a completion, if known, with every column it came with.

    Raises ``RapInputError`` if a column is missing or of another type, an id or index
    is null or appears twice, or counts are impossible (c > m, negative).
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
        """Scores from completions made and judged elsewhere (evidence ``rollouts``).

        ``table_or_path``: one row a completion: a pyarrow.Table, pandas or another
        ``__arrow_c_stream__``, a datasets.Dataset, a dict of columns, a list of dicts,
        or the path of a JSONL or Parquet file.
        ``id``: column of the sample's id, text or integers (integers become text).
        ``with_image``: column that says whether the image was there: true/false, 1/0,
        or this project's own arms "image"/"counterfactual".
        ``correct``: column that says whether the answer was accepted: true/false or
        1/0; null or NaN is "not judged" and counts neither as right nor as wrong.
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
        the filters). The number of completions may differ by sample and by arm. A sample
        without a judged completion in one arm is quarantined as ``few_rollouts``. All
        columns of the rows used stay in ``scores.rollouts``. Attention is not measured:
        ``log_psi`` is null.

        Raises ``RapInputError``: unreadable, no rows left, a column missing or of the
        wrong kind, a sample that ``dataset`` does not have, more than 32,767
        completions in one arm of a sample.
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

    def diagnostics(self, lambda_c: float = PAPER_LAMBDA_C) -> dict[str, int]:
        """Counts that need no selection, each over all samples, so they overlap:

        samples, judged (have D), quarantined, above (D > lambda_c, exact), image_hurts
        (D < 0), never_solved (Diff == 1), always_solved (Diff == 0).
        """
        return diagnose(self.table, as_fraction("lambda_c", lambda_c), "js")


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


def diagnose(table: pa.Table, threshold: Fraction, divergence: str) -> dict[str, int]:
    """See ``Scores.diagnostics``; ``divergence`` is D where the evidence is logits."""
    evidence = read_evidence(table, divergence)
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
    missing = [n for n in SCORE_SCHEMA.names if table.column_names.count(n) != 1]
    if missing:
        raise RapInputError(f"score table: columns missing or twice: {', '.join(missing)}")
    extra = [f for f in table.schema if f.name not in SCORE_SCHEMA.names]
    try:
        table = table.select(SCORE_SCHEMA.names + [f.name for f in extra])
        table = table.cast(pa.schema([*SCORE_SCHEMA, *extra]))
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


# ---------------------------------------------------------------- D and difficulty


def integers(column: pa.ChunkedArray) -> np.ndarray:
    """int64, null as 0."""
    return pc.fill_null(column, 0).to_numpy().astype(np.int64)


def floats(column: pa.ChunkedArray) -> np.ndarray:
    """float64, null as NaN."""
    return column.to_numpy().astype(np.float64)


def mask_of(column: pa.ChunkedArray) -> np.ndarray:
    """bool, null as False."""
    return pc.fill_null(column, False).to_numpy()


def as_fraction(name: str, value: float) -> Fraction:
    """The decimal the user wrote: 0.1 is 1/10, not the nearest binary number."""
    number = to_python(value)
    if not is_number(number):
        raise RapConfigError(f"{name} = {value!r}: expected a finite number")
    return Fraction(str(float(number)))  # type: ignore[arg-type]


def _exceeds(number: np.ndarray, scale: np.ndarray, threshold: Fraction) -> np.ndarray:
    """number > threshold * scale, exactly, for int64 number and int64 scale >= 0.

    In int64 where the products fit; else through floor(threshold * scale), since an
    integer exceeds x if and only if it exceeds floor(x).
    """
    p, q = threshold.numerator, threshold.denominator
    largest = max(int(scale.max(initial=1)), int(np.abs(number).max(initial=1)))
    if max(abs(p), q) * largest < 2**62:
        return number * q > p * scale
    values, inverse = np.unique(scale, return_inverse=True)
    floors = np.array([p * int(v) // q for v in values], dtype=np.int64)
    return number > floors[inverse]


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the rules ask of each sample, whatever the evidence. All arrays are [n].

    ``valid``: scored, with every score finite. ``d``: D as float64 (NaN: unknown),
    correctly rounded from the exact quotient for rollouts. ``order``: D as a float64
    key whose order and equality are those of the exact D. ``learnable``: such a key of D
    times Diff; for logits, whose D has no sign, of D (1 - Diff) Diff; a Diff that is not
    known counts as 1/2. ``d_bound``: D is at most
    this where the text arm alone was run (m1 = 0), else NaN. ``difficulty``: Diff as
    float64 (NaN: unknown). ``code``: quarantine code of the rows that are not valid.
    ``counts``: c1, m1, c0, m0 as int64 for rollouts, else None.
    """

    kind: str
    valid: np.ndarray
    code: pa.ChunkedArray
    d: np.ndarray
    order: np.ndarray
    learnable: np.ndarray
    d_bound: np.ndarray
    difficulty: np.ndarray
    counts: tuple[np.ndarray, ...] | None

    @property
    def negative(self) -> np.ndarray:
        """bool [n]: D < 0; False where D is unknown.

        For rollouts D is the quotient of the integers c1*m0 - c0*m1 and m1*m0, whose sign
        float64 keeps."""
        return self.d < 0

    @property
    def unsolved(self) -> np.ndarray:
        """bool [n]: Diff >= 1, never solved; False where Diff is unknown."""
        return self.difficulty >= 1

    def above(self, threshold: Fraction) -> np.ndarray:
        """D > threshold; False where D is unknown."""
        if self.counts is None:
            return self.d > float(threshold)
        c1, m1, c0, m0 = self.counts
        return ~np.isnan(self.d) & _exceeds(c1 * m0 - c0 * m1, m1 * m0, threshold)

    def trivial(self, threshold: Fraction) -> np.ndarray:
        """Diff <= threshold; False where Diff is unknown."""
        if self.counts is None:
            return self.difficulty <= float(threshold)
        c1, m1, _, _ = self.counts
        return ~np.isnan(self.difficulty) & ~_exceeds(m1 - c1, m1, threshold)

    def exact(self, row: int) -> Fraction | None:
        """D of one sample as a fraction (rollouts only)."""
        if self.counts is None:
            return None
        c1, m1, c0, m0 = (int(a[row]) for a in self.counts)
        return Fraction(c1 * m0 - c0 * m1, m1 * m0)


def read_evidence(table: pa.Table, divergence: str) -> Evidence:
    """What the rows of a score table say. ``divergence``: D where evidence is logits.

    Raises ``RapInputError`` for an unknown status or evidence, or two kinds of it.
    """
    status = table["status"]
    scored = mask_of(pc.equal(status, SCORED))
    if not np.all(scored | mask_of(pc.equal(status, QUARANTINED))):
        raise RapInputError(
            f"score table: status is neither {SCORED!r} nor {QUARANTINED!r}"
        )
    kinds = pc.unique(table["evidence"].filter(pa.array(scored))).to_pylist()
    if len(kinds) > 1:
        raise RapInputError(f"score table: mixes evidence {kinds}; their D do not compare")
    kind = kinds[0] if kinds else "rollouts"
    if kind not in EVIDENCE:
        raise RapInputError(f"score table: evidence {kind!r} is none of {EVIDENCE}")

    n = table.num_rows
    finite = _all_finite(table)
    unknown = np.full(n, np.nan)
    d_bound, counts = unknown, None
    if kind == "rollouts":
        counts = tuple(integers(table[name]) for name in ("c1", "m1", "c0", "m0"))
        c1, m1, c0, m0 = counts
        both = (m1 > 0) & (m0 > 0)
        text_only = (m1 == 0) & (m0 > 0)
        # Quotients of integers below 2**53: correctly rounded, so equal D are equal.
        d = np.divide(c1 * m0 - c0 * m1, m1 * m0, out=unknown.copy(), where=both)
        difficulty = np.divide(m1 - c1, m1, out=unknown.copy(), where=m1 > 0)
        d_bound = np.divide(m0 - c0, m0, out=unknown.copy(), where=text_only)
        number, scale = c1 * m0 - c0 * m1, m1 * m0
        enough, order = both | text_only, _order(d, number, scale)
        learn = d * difficulty
        learnable = _order(learn, number * (m1 - c1), scale * m1)
    else:
        p1, p0 = floats(table["p_answer1"]), floats(table["p_answer0"])
        difficulty = 1.0 - p1
        d = p1 - p0 if kind == "answer" else floats(table[divergence])
        enough, order = ~np.isnan(d), d
        diff = np.nan_to_num(difficulty, nan=0.5)
        learnable = d * diff * (1.0 - diff if kind == "logits" else 1.0)
    valid = scored & finite & enough
    few = "few_rollouts" if kind == "rollouts" else "nonfinite"
    own = pc.if_else(pa.array(finite), few, "nonfinite")
    code = pc.if_else(pa.array(scored), own, pc.fill_null(table["code"], "unknown"))
    return Evidence(kind, valid, code, d, order, learnable, d_bound, difficulty, counts)


def _all_finite(table: pa.Table) -> np.ndarray:
    """No score of the row is NaN or infinite (null is fine: not measured)."""
    good = np.ones(table.num_rows, dtype=bool)
    for column_field in SCORE_SCHEMA:
        name, column = column_field.name, table[column_field.name]
        if not pa.types.is_floating(column_field.type) or name in VOLATILE_COLUMNS:
            continue
        if column.null_count == len(column):
            continue
        ok = pc.is_finite(column)
        if name in _MAY_BE_MINUS_INF:
            ok = pc.or_(ok, pc.equal(column, pa.scalar(-math.inf, column_field.type)))
        good &= pc.fill_null(ok, True).to_numpy()
    return good


def _order(x: np.ndarray, number: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """A key with the order and equality of number / scale, which ``x`` is close to.

    Two quotients with denominators up to 2**26 differ by at least 2**-52, so their
    correctly rounded values differ; only larger ones need exact ranks.
    """
    if int(scale.max(initial=0)) <= 2**26:
        return np.divide(number, scale, out=np.full(len(x), np.nan), where=~np.isnan(x))
    divisor = np.maximum(np.gcd(number, scale), 1)
    pairs = np.stack([number // divisor, scale // divisor], axis=1)
    unique, inverse = np.unique(pairs, axis=0, return_inverse=True)
    exact = [Fraction(int(a), int(b)) if b else Fraction(-2) for a, b in unique]
    rank = np.empty(len(unique))
    rank[sorted(range(len(exact)), key=exact.__getitem__)] = np.arange(len(exact))
    return np.where(np.isnan(x), np.nan, rank[inverse.reshape(-1)])


# ---------------------------------------------------------------- files


def write_saved(path: Path, table: pa.Table, meta: dict[str, Any], kind: str) -> None:
    note = {"kind": kind, "schema_version": SCHEMA_VERSION, "meta": meta}
    write_parquet(path, table, note)


def read_saved(path: Path, kind: str) -> tuple[pa.Table, dict[str, Any]]:
    table, note = read_parquet(path)
    if note.get("kind") != kind:
        raise RapStoreError(f"{path}: holds {note.get('kind')!r}, not {kind}")
    return table, note["meta"]
