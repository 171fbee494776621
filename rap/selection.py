"""Scores -> selection: which samples to train on, and why not the others.

Pure: NumPy and Arrow, no torch, no model, no clock, no random numbers; only ``save``,
``load`` and the readers of ``Scores`` touch files. The same scores and settings give
the same bytes. Source of the rules: method.md sections 1 to 4 (the paper is arXiv
2506.04755). ``choose`` documents the exact meaning of every rule.
"""

from __future__ import annotations

import dataclasses
import html
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .config import ChooseConfig
from .errors import RapConfigError, RapInputError, RapStoreError
from .records import count_rollouts, keep_rows, read_rollouts
from .table import (
    EVIDENCE,
    QUARANTINED,
    SCHEMA_VERSION,
    SCORE_SCHEMA,
    SCORED,
    VOLATILE_COLUMNS,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KEPT = ("kept_cognitive", "kept_replacement")
DROPPED = (
    "dropped_unsolved",
    "dropped_attention_biased",
    "dropped_image_hurts",
    "dropped_language_prior",
    "dropped_trivial",
    "dropped_over_budget",
)
REASONS = KEPT + DROPPED
"""All reason codes but the open family ``quarantined_<why>``. The order of the dropped
ones is their precedence: a sample carries the first that holds."""

PAPER_LAMBDA_C = 0.5
PAPER_LAMBDA_A = 0.1
DEFAULT_BUDGET = 0.09
CALIBRATION_MIN = 20
"""Fewer measured psi than this say nothing about what is usual."""

# -inf is a value here: probability 0, or a response too short to judge.
_MAY_BE_MINUS_INF = ("log_psi", "logp_answer1", "logp_answer0", "logp_mean1", "logp_mean0")


# ---------------------------------------------------------------- scores


@dataclass(frozen=True, eq=False)
class Scores:
    """The score table of a data set, in data-set order.

    ``table``: the columns of ``rap.table.SCORE_SCHEMA`` (others may follow).
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
        rows are matched by id, stand in its order, and ``Selection.dataset`` works.
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
        scores, ignored = count_rollouts(
            table,
            id=id,
            with_image=with_image,
            correct=correct,
            source=source,
            order=None if dataset is None else _dataset_ids(dataset, id),
        )
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
        }
        return cls(scores, meta, dataset, table)

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
        table, meta = _read_saved(path, "scores")
        return cls(table, meta)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the table and ``meta`` as one Parquet file, whole or not at all.

        Raises ``RapStoreError`` if it cannot be written.
        """
        _write_saved(Path(path), self.table, dict(self.meta), "scores")

    def diagnostics(self, lambda_c: float = PAPER_LAMBDA_C) -> dict[str, int]:
        """Counts that need no selection, each over all samples, so they overlap:

        samples, judged (have D), quarantined, above (D > lambda_c, exact), image_hurts
        (D < 0), never_solved (Diff == 1), always_solved (Diff == 0).
        """
        threshold = _fraction("lambda_c", lambda_c)
        evidence = _evidence(self.table, "js")
        judged = evidence.valid & ~np.isnan(evidence.d)
        return {
            "samples": len(self),
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
        c, m = _integers(table[accepted]), _integers(table[judged])
        bad = np.flatnonzero((c < 0) | (c > m))
        if bad.size:
            row = table["id"][int(bad[0])].as_py()
            raise RapInputError(
                f"score table: sample {row!r} has {accepted} = {c[bad[0]]} of "
                f"{judged} = {m[bad[0]]}"
            )
    return table


# ---------------------------------------------------------------- evidence


def _integers(column: pa.ChunkedArray) -> np.ndarray:
    """int64, null as 0."""
    return pc.fill_null(column, 0).to_numpy().astype(np.int64)


def _floats(column: pa.ChunkedArray) -> np.ndarray:
    """float64, null as NaN."""
    return column.to_numpy().astype(np.float64)


def _mask(column: pa.ChunkedArray) -> np.ndarray:
    return pc.fill_null(column, False).to_numpy()


def _fraction(name: str, value: float) -> Fraction:
    """The decimal the user wrote: 0.1 is 1/10, not the nearest binary number."""
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        raise RapConfigError(f"{name} = {value!r}: expected a finite number")
    return Fraction(str(float(value)))


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
class _Evidence:
    """What the rules ask of each sample, whatever the evidence. All arrays are [n].

    ``valid``: scored, with every score finite. ``d``: D as float64 (NaN: unknown),
    correctly rounded from the exact quotient for rollouts. ``order``: D as a float64
    key whose order and equality are those of the exact D. ``d_bound``: D is at most
    this where the text arm alone was run (m1 = 0), else NaN. ``difficulty``: Diff as
    float64 (NaN: unknown). ``code``: quarantine code of the rows that are not valid.
    ``counts``: c1, m1, c0, m0 as int64 for rollouts, else None.
    """

    kind: str
    valid: np.ndarray
    code: pa.ChunkedArray
    d: np.ndarray
    order: np.ndarray
    d_bound: np.ndarray
    difficulty: np.ndarray
    counts: tuple[np.ndarray, ...] | None

    @property
    def negative(self) -> np.ndarray:
        return self.d < 0

    @property
    def unsolved(self) -> np.ndarray:
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


def _evidence(table: pa.Table, divergence: str) -> _Evidence:
    status = table["status"]
    scored = _mask(pc.equal(status, SCORED))
    if not np.all(scored | _mask(pc.equal(status, QUARANTINED))):
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
        counts = tuple(_integers(table[name]) for name in ("c1", "m1", "c0", "m0"))
        c1, m1, c0, m0 = counts
        both = (m1 > 0) & (m0 > 0)
        text_only = (m1 == 0) & (m0 > 0)
        # Quotients of integers below 2**53: correctly rounded, so equal D are equal.
        d = np.divide(c1 * m0 - c0 * m1, m1 * m0, out=unknown.copy(), where=both)
        difficulty = np.divide(m1 - c1, m1, out=unknown.copy(), where=m1 > 0)
        d_bound = np.divide(m0 - c0, m0, out=unknown.copy(), where=text_only)
        enough, order = both | text_only, _order(d, counts)
    else:
        p1, p0 = _floats(table["p_answer1"]), _floats(table["p_answer0"])
        difficulty = 1.0 - p1
        d = p1 - p0 if kind == "answer" else _floats(table[divergence])
        enough, order = ~np.isnan(d), d
    valid = scored & finite & enough
    few = "few_rollouts" if kind == "rollouts" else "nonfinite"
    own = pc.if_else(pa.array(finite), few, "nonfinite")
    code = pc.if_else(pa.array(scored), own, pc.fill_null(table["code"], "unknown"))
    return _Evidence(kind, valid, code, d, order, d_bound, difficulty, counts)


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


def _order(d: np.ndarray, counts: tuple[np.ndarray, ...]) -> np.ndarray:
    """``d`` itself while float64 tells any two different D apart, else their ranks.

    Two quotients with denominators up to 2**26 differ by at least 2**-52, so correct
    rounding keeps them apart; only m1 * m0 > 2**26 needs exact ranks.
    """
    c1, m1, c0, m0 = counts
    if int((m1 * m0).max(initial=0)) <= 2**26:
        return d
    number, scale = c1 * m0 - c0 * m1, m1 * m0
    divisor = np.maximum(np.gcd(number, scale), 1)
    pairs = np.stack([number // divisor, scale // divisor], axis=1)
    unique, inverse = np.unique(pairs, axis=0, return_inverse=True)
    exact = [Fraction(int(a), int(b)) if b else Fraction(-2) for a, b in unique]
    rank = np.empty(len(unique))
    rank[sorted(range(len(exact)), key=exact.__getitem__)] = np.arange(len(exact))
    return np.where(np.isnan(d), np.nan, rank[inverse.reshape(-1)])


@dataclass(frozen=True, slots=True)
class _Attention:
    """What ACE says. ``passes``: psi <= lambda_a, or too short to judge, or ACE is
    skipped. ``biased``: psi > lambda_a. ``missing``: not measured though others were."""

    passes: np.ndarray
    biased: np.ndarray
    missing: np.ndarray
    found: dict[str, Any]
    warnings: list[str]


def _attention(
    table: pa.Table, valid: np.ndarray, config: ChooseConfig, meta: Mapping[str, Any]
) -> _Attention:
    column = table["log_psi"]
    measured = ~column.is_null().to_numpy() & valid
    found: dict[str, Any] = {
        "lambda_a": None,
        "log_lambda_a": None,
        "lambda_a_origin": "attention not measured",
        "psi_measured": int(measured.sum()),
        "psi_too_short": 0,
    }
    none = np.zeros(len(valid), dtype=bool)
    if not measured.any():
        notes = ["lambda_a was given, but no attention was measured"]
        return _Attention(~none, none, none, found, notes if config.lambda_a else [])
    log_psi = np.where(measured, _floats(column), np.nan)
    found["psi_too_short"] = int(np.isneginf(log_psi).sum())
    limit, origin, notes = _log_lambda_a(log_psi[np.isfinite(log_psi)], config, meta)
    found["lambda_a_origin"] = origin
    if limit is not None:
        found |= {"log_lambda_a": limit, "lambda_a": math.exp(limit)}
    passes = measured & (log_psi <= (math.inf if limit is None else limit))
    return _Attention(passes, measured & ~passes, valid & ~measured, found, notes)


def _log_lambda_a(
    finite: np.ndarray, config: ChooseConfig, meta: Mapping[str, Any]
) -> tuple[float | None, str, list[str]]:
    """(log of the threshold or None for no limit, where it comes from, warnings)."""
    if config.lambda_a is not None:
        return math.log(config.lambda_a), "given", []
    if config.rule == "paper":
        ace = _lookup(meta, "fingerprint", "config", "ace")
        notes = []
        if isinstance(ace, Mapping) and (ace.get("normalise") or ace.get("min_rows") != 1):
            notes.append(
                "lambda_a = 0.1 was published for the unnormalised psi; these scores hold "
                "the normalised one (pass lambda_a, or use rule='budget')"
            )
        return math.log(PAPER_LAMBDA_A), "published", notes
    if finite.size < CALIBRATION_MIN:
        note = (
            f"lambda_a not calibrated: {finite.size} samples have a psi, "
            f"{CALIBRATION_MIN} are needed; no sample is dropped for its attention"
        )
        return None, "too few to calibrate", [note]
    q1, q3 = np.percentile(finite, [25, 75])
    return float(q3 + 1.5 * (q3 - q1)), "calibrated: upper Tukey fence of log psi", []


def _lookup(tree: object, *path: str) -> object:
    for name in path:
        tree = tree.get(name) if isinstance(tree, Mapping) else None
    return tree


# ---------------------------------------------------------------- choose


def choose(
    scores: Scores,
    *,
    rule: str = "budget",
    budget: float | None = None,
    lambda_c: float | None = None,
    lambda_a: float | None = None,
    replace: bool = True,
    by: str | None = None,
    trivial: float = 0.0,
    divergence: str = "js",
) -> Selection:
    """Choose the samples worth training on; every other one gets the reason why not.

    **D** (CDE, method.md section 1): what the image changes.
    rollouts: c1/m1 - c0/m0, compared as integers, ``c1*m0 - c0*m1 > lambda_c*m1*m0``,
    with ``lambda_c`` taken as the decimal it was written as (0.1 is 1/10).
    answer: ``p_answer1 - p_answer0``, in float64.
    logits: the mean divergence over the response named by ``divergence`` (``js``: in
    [0, ln 2] nats). It has no sign: it cannot tell that the image hurts.

    **Diff** (DRM, section 3): ``1 - c1/m1``, or ``1 - p_answer1`` for answer and
    logits. With logits and no reference answer Diff is unknown: no sample is then
    trivial or unsolved, and there is no replacement.

    **psi** (ACE, section 2): keep only if psi <= lambda_a, compared as logarithms.
    ``log_psi`` -inf is a response too short to judge: it passes, and is counted in
    ``found["psi_too_short"]``. Null in all rows: attention was not measured and ACE is
    skipped (said in ``found["lambda_a_origin"]``). Null in some rows only: those cannot
    be shown to pass, so they are not kept (``quarantined_psi_missing`` if all else
    passes).

    **Barred** from both ways in (directly and as a replacement) are quarantined
    samples, never-solved ones (Diff == 1) and those with psi > lambda_a. A scored row
    with a NaN or infinite score anywhere is ``quarantined_nonfinite``.

    ``rule="paper"``: survivors have D > lambda_c (0.5) and psi <= lambda_a (0.1).
    Trivial survivors (Diff <= ``trivial``, by default 0: always solved) are removed;
    k of them are replaced by the k hardest samples of {trivial < Diff < 1, not barred,
    not kept}, order: Diff down, D down, index up (``rap.drm``). Samples that CDE dropped
    can come back this way, whatever their D. ``replace=False`` keeps the trivial ones
    and replaces none. logits evidence needs an explicit ``lambda_c``: 0.5 was published
    for accuracies.

    ``rule="budget"`` (default): floor(budget * n) samples, n = all rows of the table,
    quarantined ones included; ``budget`` as the decimal it was written as (0.29 of 100
    is 29); None is 0.09. Candidates have D > max(0, lambda_c) and psi <= lambda_a and
    are ranked by D down, Diff down, index up; the first floor(budget * n) are the
    survivors, of which the trivial ones are replaced as above, so the total stays.
    ``found["lambda_c"]`` is the threshold that this amounts to: the largest D of a
    candidate that is not a survivor (the floor if all are). All candidates with a larger
    D are survivors, and ``found["at_lambda_c"]`` of those with exactly this D. If
    candidates or replacements run out, the result is shorter and ``warnings`` says so:
    samples with D <= 0 never fill a budget except as replacements.
    ``lambda_a=None`` is calibrated: the upper Tukey fence Q3 + 1.5 (Q3 - Q1) of all
    finite log psi of valid samples (at least 20, else no limit and a warning). A fence
    flags what is unusual for this model and these response lengths; a fixed quantile
    would drop its share even when nothing is wrong.
    ``by="source"``: every value of that column (null too) gets its own budget
    floor(budget * its rows), its own ranking and replacements; lambda_a stays global.

    **Reasons**: ``kept_cognitive`` (survivor), ``kept_replacement``, else the first that
    holds of: ``quarantined_<code>``, ``dropped_unsolved``, ``dropped_attention_biased``,
    ``dropped_image_hurts`` (D < 0), ``dropped_language_prior`` (D <= lambda_c; budget:
    D <= max(0, lambda_c)), ``dropped_trivial``, ``quarantined_psi_missing``,
    ``dropped_over_budget``. What bars a sample for good comes first, what another
    threshold would change comes last.

    A row with m1 = 0 but a text arm (``ScoreConfig.screen_lambda_c``) has an unknown D
    of at most 1 - c0/m0: ``dropped_language_prior``, with a warning if the threshold
    is lower than that bound for some.

    Raises ``RapConfigError`` for a setting that makes no sense and ``RapInputError``
    for an empty table, one without a single valid sample, or mixed evidence.
    """
    config = ChooseConfig(
        rule=rule,
        budget=budget,
        lambda_c=lambda_c,
        lambda_a=lambda_a,
        replace=replace,
        by=by,
        trivial=trivial,
        divergence=divergence,
    )
    table, n = scores.table, len(scores)
    if n == 0:
        raise RapInputError("nothing to choose from: the score table has no rows")
    evidence = _evidence(table, config.divergence)
    if not evidence.valid.any():
        raise RapInputError(f"nothing to choose from: {_why_none(evidence)}")
    threshold = _threshold(config, evidence.kind)
    attention = _attention(table, evidence.valid, config, scores.meta)

    free = evidence.valid & attention.passes & ~evidence.unsolved
    easy = evidence.trivial(_fraction("trivial", config.trivial))
    passes = free & evidence.above(threshold)
    pool = free & ~easy & ~np.isnan(evidence.difficulty) & ~np.isnan(evidence.d)
    easy_out = easy if config.replace else np.zeros(n, dtype=bool)

    cognitive = np.zeros(n, dtype=bool)
    replacement = np.zeros(n, dtype=bool)
    groups = []
    for name, rows in _groups(table, config.by):
        target = None
        if config.rule == "budget":
            share = _fraction("budget", _budget(config))
            target = math.floor(share * len(rows))
        picked = _pick(evidence, rows, passes, easy_out, pool, target)
        cognitive[picked.cognitive] = True
        replacement[picked.replacement] = True
        groups.append({"group": name, **_found(evidence, picked, threshold, len(rows))})

    reason = _reasons(
        evidence, attention, cognitive, replacement, passes, easy_out, threshold
    )
    found = _total(groups, config) | attention.found
    notes = attention.warnings + _notes(evidence, config, found, groups, threshold)
    settings = {
        "schema_version": SCHEMA_VERSION,
        "choose": dataclasses.asdict(config),
        "evidence": evidence.kind,
        "found": found,
        "groups": groups if config.by is not None else None,
        "scores": _lookup(scores.meta, "fingerprint"),
        "warnings": notes,
    }
    columns = {
        "D": pa.array(evidence.d, mask=np.isnan(evidence.d)),
        "difficulty": pa.array(evidence.difficulty, mask=np.isnan(evidence.difficulty)),
        "reason": reason,
    }
    for name, column in columns.items():
        if name in table.column_names:
            table = table.drop_columns([name])
        table = table.append_column(name, column)
    return Selection(table, settings, scores.dataset)


def _budget(config: ChooseConfig) -> float:
    return DEFAULT_BUDGET if config.budget is None else config.budget


def _threshold(config: ChooseConfig, kind: str) -> Fraction:
    """What D must exceed before any budget is looked at."""
    given = None if config.lambda_c is None else _fraction("lambda_c", config.lambda_c)
    if config.rule == "budget":
        return max(Fraction(0), given or Fraction(0))
    if given is None and kind == "logits":
        raise RapConfigError(
            "lambda_c = None: rule='paper' publishes 0.5 for a difference of accuracies; "
            "evidence 'logits' is a divergence and needs an explicit lambda_c"
        )
    return _fraction("lambda_c", PAPER_LAMBDA_C) if given is None else given


def _why_none(evidence: _Evidence) -> str:
    counted = pc.value_counts(evidence.code.combine_chunks()).to_pylist()
    text = ", ".join(f"{c['counts']} {c['values']}" for c in counted)
    return f"all {len(evidence.valid)} samples are quarantined ({text})"


def _groups(table: pa.Table, by: str | None) -> list[tuple[object, np.ndarray]]:
    """(value, rows ascending) per value of ``by``, in the order of first appearance."""
    if by is None:
        return [(None, np.arange(table.num_rows))]
    if by not in table.column_names:
        raise RapConfigError(
            f"by = {by!r}: the score table has no such column; it has "
            f"{', '.join(table.column_names)}"
        )
    column = table[by].combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_integer)
    if not any(kind(column.type) for kind in (*kinds, pa.types.is_boolean)):
        raise RapConfigError(f"by = {by!r}: a {column.type} column makes no groups")
    encoded = column.dictionary_encode(null_encoding="encode")
    codes = encoded.indices.to_numpy(zero_copy_only=False)
    order = np.argsort(codes, kind="stable")
    bounds = np.cumsum(np.bincount(codes, minlength=len(encoded.dictionary)))[:-1]
    names = encoded.dictionary.to_pylist()
    return list(zip(names, np.split(order, bounds), strict=True))


@dataclass(frozen=True, slots=True)
class _Picked:
    """Rows chosen in one group. ``border``: the best candidate that is no survivor."""

    target: int | None
    candidates: int
    survivors: int
    border: int | None
    at_border: tuple[int, int]
    removed: int
    cognitive: np.ndarray
    replacement: np.ndarray


def _pick(
    evidence: _Evidence,
    rows: np.ndarray,
    passes: np.ndarray,
    easy: np.ndarray,
    pool: np.ndarray,
    target: int | None,
) -> _Picked:
    """CDE and ACE survivors of one group, then DRM. ``rows`` ascend."""
    candidates = rows[passes[rows]]
    survivors, border, at_border = candidates, None, (0, 0)
    if target is not None and target < len(candidates):
        survivors, border, at_border = _best(evidence, candidates, target)
    cognitive = survivors[~easy[survivors]]
    removed = len(survivors) - len(cognitive)
    replacement = np.empty(0, dtype=np.int64)
    if removed:
        eligible = pool[rows]
        eligible[np.searchsorted(rows, cognitive)] = False
        hardest = _hardest(
            evidence.difficulty[rows], removed, eligible, evidence.order[rows]
        )
        replacement = rows[hardest]
    return _Picked(
        target,
        len(candidates),
        len(survivors),
        border,
        at_border,
        removed,
        cognitive,
        replacement,
    )


def _best(
    evidence: _Evidence, candidates: np.ndarray, target: int
) -> tuple[np.ndarray, int, tuple[int, int]]:
    """(the first ``target`` by D down, Diff down, index up; border row; ties there).

    Partition, then sort only the ties at the border: candidates may be millions.
    """
    d = evidence.order[candidates]
    if target == 0:
        border_d = d.max()
    else:
        border_d = -np.partition(-d, target - 1)[target - 1]
    larger, tied = candidates[d > border_d], candidates[d == border_d]
    need = target - len(larger)
    difficulty = evidence.difficulty[tied]
    hard_first = np.argsort(
        -np.where(np.isnan(difficulty), -1.0, difficulty), kind="stable"
    )
    survivors = np.sort(np.concatenate([larger, tied[hard_first[:need]]]))
    if need < len(tied):
        return survivors, int(tied[0]), (need, len(tied))
    rest = d[d < border_d].max()  # there is one: target < len(candidates)
    tied = candidates[d == rest]
    return survivors, int(tied[0]), (0, len(tied))


def _hardest(
    difficulty: np.ndarray, k: int, eligible: np.ndarray, gain: np.ndarray
) -> np.ndarray:
    from .ops import drm  # lazily: reading a selection needs no compiled kernel

    return np.asarray(drm(difficulty, k, eligible=eligible, gain=gain), dtype=np.int64)


def _found(
    evidence: _Evidence, picked: _Picked, threshold: Fraction, rows: int
) -> dict[str, Any]:
    """What was found in one group, as JSON holds it."""
    value: float = float(threshold)
    exact: Fraction | None = threshold if evidence.counts is not None else None
    if picked.border is not None:
        value, exact = float(evidence.d[picked.border]), evidence.exact(picked.border)
    return {
        "samples": rows,
        "target": picked.target,
        "candidates": picked.candidates,
        "survivors": picked.survivors,
        "lambda_c": value,
        "lambda_c_exact": None if exact is None else str(exact),
        "at_lambda_c": list(picked.at_border),
        "trivial_removed": picked.removed,
        "replaced": len(picked.replacement),
        "kept": len(picked.cognitive) + len(picked.replacement),
    }


def _total(groups: list[dict[str, Any]], config: ChooseConfig) -> dict[str, Any]:
    if config.by is None:
        return {k: v for k, v in groups[0].items() if k != "group"}
    names = ("samples", "target", "candidates", "survivors", "trivial_removed", "replaced")
    total = {name: sum(g[name] for g in groups) for name in (*names, "kept")}
    return total | {"lambda_c": None, "lambda_c_exact": None, "at_lambda_c": None}


def _reasons(
    evidence: _Evidence,
    attention: _Attention,
    cognitive: np.ndarray,
    replacement: np.ndarray,
    passes: np.ndarray,
    easy: np.ndarray,
    threshold: Fraction,
) -> pa.ChunkedArray:
    """One reason a row, the first of REASONS' order that holds (see ``choose``)."""
    below = ~evidence.above(threshold)
    tests = [
        (cognitive, "kept_cognitive"),
        (replacement, "kept_replacement"),
        (~evidence.valid, "quarantined_"),
        (evidence.unsolved, "dropped_unsolved"),
        (attention.biased, "dropped_attention_biased"),
        (evidence.negative & below, "dropped_image_hurts"),
        (below, "dropped_language_prior"),
        (easy, "dropped_trivial"),
        (attention.missing, "quarantined_psi_missing"),
        (passes, "dropped_over_budget"),
    ]
    code = np.select(
        [mask for mask, _ in tests], [np.int8(i) for i in range(len(tests))], np.int8(-1)
    )
    if code.min() < 0:
        raise AssertionError("a sample has no reason: the rules do not cover it")
    names = pa.array([name for _, name in tests])
    reason = pa.DictionaryArray.from_arrays(pa.array(code), names).dictionary_decode()
    quarantined = pa.array(code == 2)
    if pc.any(quarantined).as_py():
        full = pc.binary_join_element_wise("quarantined_", evidence.code, "")
        reason = pc.if_else(quarantined, full, reason)
    return reason if isinstance(reason, pa.ChunkedArray) else pa.chunked_array([reason])


def _notes(
    evidence: _Evidence,
    config: ChooseConfig,
    found: dict[str, Any],
    groups: list[dict[str, Any]],
    threshold: Fraction,
) -> list[str]:
    notes = []
    target, kept = found["target"], found["kept"]
    if target == 0:
        notes.append(f"the budget allows no sample: floor(budget * {found['samples']}) = 0")
    elif target is not None and kept < target:
        notes.append(
            f"short result: {kept} of {target} kept; {found['candidates']} samples have "
            f"D > {float(threshold):g} and pass ACE"
        )
    elif kept == 0:
        notes.append(f"no sample is kept: none has D > {float(threshold):g} and passes ACE")
    removed, replaced = found["trivial_removed"], found["replaced"]
    if replaced < removed:
        notes.append(
            f"{replaced} of {removed} trivial samples replaced: no more candidates"
        )
    if replaced and replaced == kept:
        notes.append(
            "every kept sample is a replacement: all survivors of CDE and ACE are trivial"
        )
    lowest = min((g["lambda_c"] for g in groups), default=float(threshold))
    screened = int((evidence.valid & (evidence.d_bound > lowest)).sum())
    if screened:
        notes.append(
            f"{screened} samples were never tried with the image (screen_lambda_c) though "
            f"their D may exceed {lowest:g}; score again with a lower screen_lambda_c"
        )
    return notes


# ---------------------------------------------------------------- selection


@dataclass(frozen=True)
class Comparison:
    """Two selections side by side; samples are matched by id.

    ``kept``, ``kept_other``: how many each keeps; ``overlap``: both; ``jaccard``:
    overlap / union (1.0 if both are empty). ``gained``: ids kept here only, in this
    selection's order; ``lost``: ids kept there only, in the other's order. ``moved``:
    {(reason there, reason here): count} over samples that both know and whose reason
    differs. ``unknown``: samples of one that the other has no row for (here, there).
    """

    kept: int
    kept_other: int
    overlap: int
    jaccard: float
    gained: tuple[str, ...]
    lost: tuple[str, ...]
    moved: Mapping[tuple[str, str], int]
    unknown: tuple[int, int]

    def __str__(self) -> str:
        lines = [
            f"kept {self.kept} here, {self.kept_other} there, {self.overlap} in both "
            f"(Jaccard {self.jaccard:.3f})"
        ]
        for (there, here), count in self.moved.items():
            lines.append(f"  {count:>8}  {there} -> {here}")
        if any(self.unknown):
            lines.append(
                f"  samples only here: {self.unknown[0]}, there: {self.unknown[1]}"
            )
        return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class Selection:
    """What ``choose`` returns. ``table``: the score table plus ``D`` (float64),
    ``difficulty`` (float64) and ``reason``, one row an input sample, in data-set order;
    an unknown D or difficulty is null. ``settings``: the settings given, the thresholds
    found, the fingerprint of the scores, warnings. ``source``: the data set if known.
    """

    table: pa.Table
    settings: Mapping[str, Any]
    source: Any = None

    def __len__(self) -> int:
        """Number of samples kept."""
        return len(self.indices)

    def __repr__(self) -> str:
        rule = self.settings["choose"]["rule"]
        return f"<rap.Selection: {len(self)} of {self.table.num_rows}, rule {rule!r}>"

    @cached_property
    def kept(self) -> np.ndarray:
        """bool [n]: which rows of ``table`` are kept."""
        return _mask(pc.is_in(self.table["reason"], value_set=pa.array(KEPT)))

    @cached_property
    def indices(self) -> np.ndarray:
        """int64, the kept rows' ``index`` in the data set, ascending."""
        return self.table["index"].to_numpy()[self.kept]

    @property
    def ids(self) -> list[str]:
        """Ids of the kept samples, in data-set order."""
        return self.table["id"].filter(pa.array(self.kept)).to_pylist()

    @property
    def warnings(self) -> list[str]:
        """What the user should know: short results, an uncalibrated threshold, ..."""
        return list(self.settings["warnings"])

    @property
    def dataset(self) -> Any:
        """The chosen rows of the data set, original columns untouched; None if the
        scores do not know their data set."""
        if self.source is None:
            return None
        if hasattr(self.source, "take") and not hasattr(self.source, "select"):
            return self.source.take(self.indices)
        return self.source.select(self.indices)

    def counts(self) -> dict[str, int]:
        """{reason: samples}: all of ``REASONS`` in order, then the quarantine reasons
        that occur, by name. They add up to the number of rows."""
        counted = {
            c["values"]: c["counts"]
            for c in pc.value_counts(self.table["reason"]).to_pylist()
        }
        quarantined = sorted(set(counted) - set(REASONS))
        return {r: counted.get(r, 0) for r in (*REASONS, *quarantined)}

    def diagnostics(self) -> dict[str, int]:
        """``Scores.diagnostics`` at this selection's lambda_c (the one found)."""
        found = self.settings["found"]["lambda_c"]
        return Scores(self.table).diagnostics(PAPER_LAMBDA_C if found is None else found)

    def summary(self) -> str:
        """A page of text: what was kept, why the rest was not, thresholds, warnings."""
        n, found = self.table.num_rows, self.settings["found"]
        choice = self.settings["choose"]
        lines = [
            f"{len(self)} of {n} samples kept ({len(self) / n:.2%}); rule "
            f"{choice['rule']}, evidence {self.settings['evidence']}"
        ]
        lines += [
            f"  {count:>9}  {count / n:>7.2%}  {reason}"
            for reason, count in self.counts().items()
            if count or reason in KEPT
        ]
        lines += [f"  {line}" for line in _threshold_lines(choice, found)]
        for group in self.settings["groups"] or ():
            lines.append(
                f"  {choice['by']} = {group['group']}: {group['kept']} of "
                f"{group['samples']}, D > {group['lambda_c']:.4g}"
            )
        lines += [f"  warning: {text}" for text in self.warnings]
        return "\n".join(lines)

    def compare(self, other: Selection) -> Comparison:
        """Overlap, Jaccard and what moved from ``other`` to this selection."""
        here, there = self.table["id"], other.table["id"]
        position = pc.index_in(here, value_set=there.combine_chunks())
        shared = position.is_valid().to_numpy()
        rows = np.flatnonzero(shared)
        partner = pc.drop_null(position).to_numpy()
        reason_here = self.table["reason"].take(rows)
        reason_there = other.table["reason"].take(partner)
        both = self.kept[rows] & other.kept[partner]
        overlap = int(both.sum())
        union = int(self.kept.sum()) + int(other.kept.sum()) - overlap
        moved = pa.table({"there": reason_there, "here": reason_here})
        moved = moved.filter(pc.not_equal(moved["there"], moved["here"]))
        pairs = moved.group_by(["there", "here"]).aggregate([([], "count_all")]).to_pylist()
        pairs.sort(key=lambda p: (-p["count_all"], p["there"], p["here"]))
        gained, lost = self.kept.copy(), other.kept.copy()
        gained[rows[both]] = False
        lost[partner[both]] = False
        return Comparison(
            kept=int(self.kept.sum()),
            kept_other=int(other.kept.sum()),
            overlap=overlap,
            jaccard=overlap / union if union else 1.0,
            gained=tuple(here.filter(pa.array(gained)).to_pylist()),
            lost=tuple(there.filter(pa.array(lost)).to_pylist()),
            moved={(p["there"], p["here"]): p["count_all"] for p in pairs},
            unknown=(len(here) - len(rows), len(there) - len(rows)),
        )

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write ``selection.parquet`` (the table), ``indices.npy`` (int64) and
        ``settings.json`` into ``folder``, each whole or not at all.

        Byte-same for the same scores and settings: clock readings
        (``table.VOLATILE_COLUMNS``) are saved as null. Raises ``RapStoreError``.
        """
        from .store import write_atomic

        folder = Path(folder)
        table = self.table
        for name in VOLATILE_COLUMNS:
            position = table.schema.get_field_index(name)
            nulls = pa.nulls(table.num_rows, table.schema.field(name).type)
            table = table.set_column(position, table.schema.field(name), nulls)
        text = json.dumps(self.settings, indent=1, sort_keys=True, allow_nan=False)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RapStoreError(f"{folder}: cannot be made: {error}") from error
        _write_saved(folder / "selection.parquet", table, dict(self.settings), "selection")
        write_atomic(folder / "indices.npy", lambda file: np.save(file, self.indices))
        write_atomic(
            folder / "settings.json", lambda file: file.write(text.encode() + b"\n")
        )

    def report(self, path: str | os.PathLike[str], **options: Any) -> Any:
        """Write one self-contained HTML page; see ``rap.report.write_report``."""
        from .report import write_report

        return write_report(self, path, **options)

    def plot(self) -> Figure:
        """A matplotlib figure: histograms of D, difficulty and log psi, kept samples
        over all, thresholds as lines. Needs the extra ``report`` (matplotlib)."""
        from matplotlib.figure import Figure

        found = self.settings["found"]
        panels = [
            ("D", "D: what the image changes", found["lambda_c"]),
            ("difficulty", "difficulty", None),
            ("log_psi", "log psi: attention on one token", found["log_lambda_a"]),
        ]
        figure = Figure(figsize=(11, 3), layout="constrained")
        for axes, (name, title, line) in zip(
            figure.subplots(1, len(panels)), panels, strict=True
        ):
            values = _floats(self.table[name])
            usable = np.isfinite(values)
            axes.set(title=title, ylabel="samples")
            if not usable.any():
                axes.text(0.5, 0.5, "not measured", ha="center", transform=axes.transAxes)
                continue
            bins = np.histogram_bin_edges(values[usable], bins=40)
            axes.hist(values[usable], bins=bins, color="0.8", label="all")
            axes.hist(values[usable & self.kept], bins=bins, color="C0", label="kept")
            axes.set_yscale("symlog")
            if line is not None:
                axes.axvline(line, color="C3", linestyle="--", label="threshold")
            axes.legend()
        return figure

    def _repr_html_(self) -> str:
        """Counts per reason and, where images are at hand, a few thumbnails."""
        n = self.table.num_rows
        rows = "".join(
            f"<tr><td style='text-align:left'>{html.escape(reason)}</td>"
            f"<td>{count}</td><td>{count / n:.2%}</td></tr>"
            for reason, count in self.counts().items()
            if count
        )
        notes = "".join(f"<p><b>warning:</b> {html.escape(w)}</p>" for w in self.warnings)
        head = f"<p><b>{len(self)} of {n} samples kept</b> ({len(self) / n:.2%})</p>"
        return f"<div>{head}<table>{rows}</table>{notes}{self._thumbnails()}</div>"

    def _thumbnails(self) -> str:
        if self.source is None:
            return ""
        try:
            from .report import thumbnails
        except ImportError:  # the extra "report" is not installed: counts only
            return ""
        return thumbnails(self, limit=6)


def _threshold_lines(choice: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    lines = []
    if found["lambda_c"] is not None:
        exact = found["lambda_c_exact"]
        text = f"D > {found['lambda_c']:.6g}" + (f" ({exact})" if exact else "")
        taken, tied = found["at_lambda_c"]
        if tied:
            text += f", and {taken} of the {tied} samples with exactly that D"
        lines.append(text)
    if found["lambda_a"] is None:
        lines.append(f"psi: no limit ({found['lambda_a_origin']})")
    else:
        lines.append(f"psi <= {found['lambda_a']:.6g} ({found['lambda_a_origin']})")
    if found["psi_too_short"]:
        lines.append(f"{found['psi_too_short']} responses are too short to judge attention")
    if choice["replace"]:
        lines.append(
            f"{found['replaced']} of {found['trivial_removed']} trivial samples replaced"
        )
    return lines


# ---------------------------------------------------------------- files


def _write_saved(path: Path, table: pa.Table, meta: dict[str, Any], kind: str) -> None:
    from .store import write_parquet

    note = {"kind": kind, "schema_version": SCHEMA_VERSION, "meta": meta}
    write_parquet(path, table, note)


def _read_saved(path: Path, kind: str) -> tuple[pa.Table, dict[str, Any]]:
    from .store import read_parquet

    table, note = read_parquet(path)
    if note.get("kind") != kind:
        raise RapStoreError(f"{path}: holds {note.get('kind')!r}, not {kind}")
    return table, note["meta"]


def load(folder: str | os.PathLike[str], dataset: Any = None) -> Selection:
    """The selection that ``Selection.save`` wrote; ``dataset`` gives it its data again.

    Raises ``RapStoreError`` if it is not there, damaged, or of a newer schema.
    """
    table, settings = _read_saved(Path(folder) / "selection.parquet", "selection")
    return Selection(table, settings, dataset)
