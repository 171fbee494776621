"""The rules: scores + settings -> selection.

Pure: NumPy and Arrow, no torch, no model, no clock, no random numbers, no files. The
same scores and settings give the same bytes. Source of the rules: method.md sections 1
to 4 (the paper is arXiv 2506.04755). ``choose`` documents the exact meaning of every
rule. What goes in is in ``scores.scores``, what comes out in ``selection.selection``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..config import ChooseConfig, require_threshold
from ..errors import RapConfigError, RapInputError
from ..scores.scores import (
    PAPER_LAMBDA_C,
    Evidence,
    Scores,
    as_fraction,
    floats,
    read_evidence,
)
from ..scores.selected import DROPPED, KEPT, REASONS, Comparison
from ..scores.table import SCHEMA_VERSION
from .selection import Selection, load

__all__ = [
    "DROPPED",
    "KEPT",
    "REASONS",
    "Comparison",
    "Scores",
    "Selection",
    "choose",
    "load",
]

PAPER_LAMBDA_A = 0.1
DEFAULT_BUDGET = 0.09
CALIBRATION_MIN = 20
"""Fewer measured psi than this say nothing about what is usual."""


# ---------------------------------------------------------------- attention


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
    log_psi = np.where(measured, floats(column), np.nan)
    found["psi_too_short"] = int(np.isneginf(log_psi).sum())
    limit, origin, notes = _log_lambda_a(log_psi[np.isfinite(log_psi)], config, meta)
    found["lambda_a_origin"] = origin
    if limit is not None:
        found |= {"log_lambda_a": limit, "lambda_a": math.exp(limit)}
    passes = measured & (log_psi <= (math.inf if limit is None else limit))
    if 2 * found["psi_too_short"] > found["psi_measured"]:
        notes.append(
            f"{found['psi_too_short']} of {found['psi_measured']} responses are shorter "
            "than AceConfig.min_rows: attention decides little; evidence 'rollouts' or "
            "'logits' reads it off whole responses"
        )
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
    return _fence(finite), "calibrated: upper Tukey fence of log psi below a gap", []


def _fence(log_psi: np.ndarray) -> float:
    """Upper Tukey fence Q3 + 1.5 (Q3 - Q1) of what lies below a gap, if there is one.

    A gap is the widest step between neighbours above the median, wider than half of
    Q3 - Q1 of what is below it: captured samples stand apart. Tukey's fence over all lies
    beyond them as soon as they are a quarter, and then drops none. Without a gap it is
    Tukey's: a skewed tail or two close modes are no sign of captured samples.
    """
    ordered = np.sort(log_psi)
    steps = np.diff(ordered[ordered.size // 2 :])
    widest = int(steps.argmax())
    below = ordered[: ordered.size // 2 + widest + 1]
    q1, q3 = np.percentile(below, [25, 75])
    if not 0 < (q3 - q1) / 2 < steps[widest]:
        q1, q3 = np.percentile(ordered, [25, 75])
    return float(q3 + 1.5 * (q3 - q1))


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
    readmit_hurt: bool | None = None,
    order: str | None = None,
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
    can come back this way, whatever their D; ``readmit_hurt=False`` leaves out those
    with D < 0. ``replace=False`` keeps the trivial ones and replaces none. logits
    evidence needs an explicit ``lambda_c``: 0.5 was published for accuracies.

    ``rule="budget"`` (default): floor(budget * n) samples, n = all rows of the table,
    quarantined ones included; ``budget`` as the decimal it was written as (0.29 of 100
    is 29), but as k/n where it is the float of that quotient (1/7 of 7 is 1); None is
    0.09. Candidates have D > max(0, lambda_c) and psi <= lambda_a and are ranked by D
    down, Diff down, index up; the first floor(budget * n) are the survivors, of which
    the trivial ones are replaced as above, so the total stays. Only samples with D >= 0
    replace, unless ``readmit_hurt=True``: what the image hurts teaches not to look.
    ``order`` is that ranking: ``"gain"`` as said, the default for rollouts;
    ``"learnable"``, the default for answer and logits, ranks by D * Diff down (logits:
    D * (1 - Diff) * Diff, since a divergence has no sign), then as gain: a probability
    near 1 is never quite trivial, and by D alone such samples fill a budget.

    ``found["lambda_c"]`` is the threshold that ranking by gain amounts to (by learnable:
    the floor): the largest D of a candidate that is not a survivor (the floor if all
    are). All candidates with a larger D are survivors, and ``found["at_lambda_c"]`` of
    those with exactly this D. If candidates or replacements run out, the result is
    shorter and ``warnings`` says so: samples with D <= 0 never fill a budget except as
    replacements.
    ``lambda_a=None`` is calibrated: the upper Tukey fence Q3 + 1.5 (Q3 - Q1) of the
    finite log psi of valid samples (at least 20, else no limit and a warning), without
    those above a gap that lies above the median and is wider than half of Q3 - Q1: captured
    samples must not widen the fence that should stop them. A fence flags what is unusual
    for this model and these response lengths; a fixed quantile would drop its
    share even when nothing is wrong.
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
        readmit_hurt=readmit_hurt,
        order=order,
        by=by,
        trivial=trivial,
        divergence=divergence,
    )
    table = scores.table
    if table.num_rows == 0:
        raise RapInputError("nothing to choose from: the score table has no rows")
    evidence = read_evidence(table, config.divergence)
    if not evidence.valid.any():
        raise RapInputError(f"nothing to choose from: {_why_none(evidence)}")
    threshold = _threshold(config, evidence.kind)
    attention = _attention(table, evidence.valid, config, scores.meta)

    ruled = _rule(table, config, evidence, attention, threshold)
    found = _total(ruled.groups, config) | attention.found
    found["order"] = _order(config, evidence)
    notes = _notes(evidence, config, found, ruled.groups, threshold)
    settings = {
        "schema_version": SCHEMA_VERSION,
        "choose": dataclasses.asdict(config),
        "evidence": evidence.kind,
        "found": found,
        "groups": ruled.groups if config.by is not None else None,
        "scores": _lookup(scores.meta, "fingerprint"),
        "data": _lookup(scores.meta, "data"),
        "warnings": attention.warnings + notes,
    }
    return Selection(_judged(table, evidence, ruled.reason), settings, scores.dataset)


@dataclass(frozen=True, slots=True)
class _Ruled:
    """One reason a row, and what was found in each group."""

    reason: pa.ChunkedArray
    groups: list[dict[str, Any]]


def _rule(
    table: pa.Table,
    config: ChooseConfig,
    evidence: Evidence,
    attention: _Attention,
    threshold: Fraction,
) -> _Ruled:
    """The rules on all groups of a table; what they are says ``choose``."""
    n = table.num_rows
    free = evidence.valid & attention.passes & ~evidence.unsolved
    easy = evidence.trivial(as_fraction("trivial", config.trivial))
    passes = free & evidence.above(threshold)
    pool = free & ~easy & ~np.isnan(evidence.difficulty) & ~np.isnan(evidence.d)
    readmit = config.readmit_hurt
    if not (config.rule == "paper" if readmit is None else readmit):
        pool &= ~evidence.negative
    easy_out = easy if config.replace else np.zeros(n, dtype=bool)

    by_gain = _order(config, evidence) != "learnable"
    key = evidence.order if by_gain else evidence.learnable

    cognitive = np.zeros(n, dtype=bool)
    replacement = np.zeros(n, dtype=bool)
    groups = []
    for name, rows in _groups(table, config.by):
        target = None
        if config.rule == "budget":
            share = DEFAULT_BUDGET if config.budget is None else config.budget
            target = budget_size(share, len(rows))
        picked = _pick(evidence, rows, passes, easy_out, pool, target, key)
        cognitive[picked.cognitive] = True
        replacement[picked.replacement] = True
        groups.append({"group": name, **_found(evidence, picked, threshold, len(rows))})
    reason = _reasons(
        evidence, attention, cognitive, replacement, passes, easy_out, threshold
    )
    return _Ruled(reason, groups)


def _order(config: ChooseConfig, evidence: Evidence) -> str | None:
    """What a budget ranks by; None where there is no budget."""
    if config.rule == "paper" or config.order is not None:
        return config.order
    return "gain" if evidence.kind == "rollouts" else "learnable"


def _judged(table: pa.Table, evidence: Evidence, reason: pa.ChunkedArray) -> pa.Table:
    """The score table with ``D``, ``difficulty`` and ``reason`` as its last columns."""
    columns = {
        "D": pa.array(evidence.d, mask=np.isnan(evidence.d)),
        "difficulty": pa.array(evidence.difficulty, mask=np.isnan(evidence.difficulty)),
        "reason": reason,
    }
    for name, column in columns.items():
        if name in table.column_names:
            table = table.drop_columns([name])
        table = table.append_column(name, column)
    return table


def budget_size(budget: float, n: int) -> int:
    """How many of ``n`` samples a budget keeps: k if ``budget`` is the float k/n, else
    the budget as a decimal times n, rounded down (see ``choose``)."""
    share = as_fraction("budget", budget)
    nearest = round(share * n)
    return nearest if nearest / n == float(share) else math.floor(share * n)


def _threshold(config: ChooseConfig, kind: str) -> Fraction:
    """What D must exceed before any budget is looked at."""
    given = None if config.lambda_c is None else as_fraction("lambda_c", config.lambda_c)
    if config.rule == "budget":
        return max(Fraction(0), given or Fraction(0))
    require_threshold(config, kind)
    return as_fraction("lambda_c", PAPER_LAMBDA_C) if given is None else given


def _why_none(evidence: Evidence) -> str:
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
    evidence: Evidence,
    rows: np.ndarray,
    passes: np.ndarray,
    easy: np.ndarray,
    pool: np.ndarray,
    target: int | None,
    key: np.ndarray,
) -> _Picked:
    """CDE and ACE survivors of one group, then DRM. ``rows`` ascend; ``key`` ranks."""
    candidates = rows[passes[rows]]
    survivors, border, at_border = candidates, None, (0, 0)
    if target is not None and target < len(candidates):
        survivors, border, at_border = _best(evidence, candidates, target, key)
        if key is not evidence.order:
            border, at_border = None, (0, 0)  # no threshold on D
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
    evidence: Evidence, candidates: np.ndarray, target: int, key: np.ndarray
) -> tuple[np.ndarray, int, tuple[int, int]]:
    """(the first ``target`` by ``key`` down, then as below; border row; ties there).

    Ties: by D down if ``key`` is another, by Diff down, by index up.

    Partition, then sort only the ties at the border: candidates may be millions.
    """
    d = key[candidates]
    if target == 0:
        border_d = d.max()
    else:
        border_d = -np.partition(-d, target - 1)[target - 1]
    larger, tied = candidates[d > border_d], candidates[d == border_d]
    need = target - len(larger)
    difficulty = np.nan_to_num(evidence.difficulty[tied], nan=-1.0)
    hard_first = np.lexsort((-difficulty, -evidence.order[tied]))
    survivors = np.sort(np.concatenate([larger, tied[hard_first[:need]]]))
    if need < len(tied):
        return survivors, int(tied[0]), (need, len(tied))
    rest = d[d < border_d].max()  # there is one: target < len(candidates)
    tied = candidates[d == rest]
    return survivors, int(tied[0]), (0, len(tied))


def _hardest(
    difficulty: np.ndarray, k: int, eligible: np.ndarray, gain: np.ndarray
) -> np.ndarray:
    from ..ops import drm  # lazily: reading a selection needs no compiled kernel

    return np.asarray(drm(difficulty, k, eligible=eligible, gain=gain), dtype=np.int64)


def _found(
    evidence: Evidence, picked: _Picked, threshold: Fraction, rows: int
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
    evidence: Evidence,
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
    evidence: Evidence,
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
