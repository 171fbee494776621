"""Scores + settings -> selection: ``choose``.

Pure: NumPy and Arrow, no torch, no model, no clock, no random numbers, no files. The
same scores and settings give the same bytes. Source of the rules: arXiv 2506.04755.

What differs between the rules is in ``selection.rules``; here is what they share: which
samples are barred, how groups are filled (``groups``, ``picking``), one reason a sample.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Unpack

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..config import ChooseConfig, ChooseOptions, PresetName, preset_of
from ..errors import RapInputError
from ..misnamed import require_options
from ..scores.columns import look_up
from ..scores.scores import Scores, as_scores
from ..scores.selected import REASONS
from ..scores.store import ScoreStore
from ..scores.table import SCHEMA_VERSION
from ..settings import resolve
from .attention import Attention, judge_attention
from .chosen import ChosenReader
from .groups import Group, budget_by_group, budget_size, groups_of, rows_in
from .judged import (
    ABOVE,
    BIASED,
    EASY,
    KNOWN,
    NEGATIVE,
    PASSES,
    UNSOLVED,
    VALID,
    Judged,
    judge,
    reading_of,
)
from .learn import Learner, groups_to_cover
from .notes import Counted, median_probability, notes_of
from .picking import Candidates, Picked, border_d, found_in, pick, ranks
from .rules import RULES, Rule
from .selection import Selection


def choose(
    scores: Scores | ScoreStore | pa.Table | str | os.PathLike[str],
    config: ChooseConfig | None = None,
    *,
    preset: PresetName | None = None,
    **overrides: Unpack[ChooseOptions],
) -> Selection:
    """Choose the samples worth training on; every other one gets the reason why not.

    ``scores``: what `score` returned, or the folder of its store, or a file of
    ``Scores.save``. ``config``: a `ChooseConfig`; ``overrides``: single fields of it, by
    name. ``preset``: ``"paper"``, the fields of a whole pipeline (``rap.config.PRESETS``),
    for `score` and here. The rules themselves are in ``rap.selection.rules``.

    **D** (CDE, METHOD.md section 1): what the image changes.
    rollouts: c1/m1 - c0/m0, compared as integers, ``c1*m0 - c0*m1 > lambda_c*m1*m0``,
    with ``lambda_c`` taken as the decimal it was written as (0.1 is 1/10).
    answer: ``p_answer1 - p_answer0``, in float64.
    logits: the mean divergence over the response named by ``divergence`` (``js``: in
    [0, ln 2] nats). It has no sign: it cannot tell that the image hurts.
    cascade: the difference of the posterior means of the pass rates where completions were
    sampled, else that of the probabilities (``rap.scores.posterior``, METHOD.md section 6).

    **Diff** (DRM, section 3): ``1 - c1/m1``, or ``1 - p_answer1`` for answer and
    logits. ``likelihood="mean"`` takes the geometric mean over the answer's tokens,
    ``exp(logp_mean)``, for p(answer), here and in D. With logits and no reference answer
    Diff is unknown: no sample is then trivial or unsolved, and there is no replacement.

    **psi** (ACE, section 2): its limit is lambda_a, compared as logarithms.
    ``biased="drop"`` keeps a sample only if psi <= lambda_a; ``"report"`` counts the
    others in ``found["psi_above"]``, and psi decides nothing. None is drop (rule paper, or
    where ``lambda_a`` or ``guard_attention`` is given) or else report: on a real model no
    form of psi, fixed on one half of the samples, told on the other which answers change
    when a sentence is taken out (benchmarks/results/natural_attention.md, AUROC 0.60, 95 %
    interval 0.46 to 0.73). What follows on psi is of ``"drop"``.
    ``log_psi`` -inf is a response too short for ACE: it passes, and is counted in
    ``found["psi_too_short"]``. Null in all rows: attention was not measured and ACE is
    skipped (said in ``found["lambda_a_origin"]``). Null in some rows only: those cannot
    be shown to pass, so they are not kept (``quarantined_psi_missing`` if all else
    passes).

    **Barred** from both ways in (directly and as a replacement) are quarantined
    samples, never-solved ones (Diff >= ``unsolved``, by default 1) and those with
    psi > lambda_a. A scored row
    with a NaN or infinite score anywhere is ``quarantined_nonfinite``.

    ``rule="paper"``: survivors have D > lambda_c (0.5) and psi <= lambda_a (0.1).
    Trivial survivors (Diff <= ``trivial``, by default 0: always solved) are removed;
    k of them are replaced by the k hardest samples of {trivial < Diff < 1, not barred,
    not kept}, order: Diff down, D down, index up (``rap.drm``). Samples that CDE dropped
    can come back this way, whatever their D; ``readmit_hurt=False`` leaves out those
    with D < 0. ``replace=False`` keeps the trivial ones and replaces none. logits
    evidence needs an explicit ``lambda_c``: 0.5 was published for accuracies.
    It departs from the paper where that does not say, and nowhere else: which column may be
    the maximum of psi (ours: response tokens without template tokens, `AceConfig.columns`),
    which response psi is of (the first right completion; a sample without one is unsolved),
    and whom DRM may readmit (whatever CDE dropped, whatever its D). ``preset="paper"``
    sets evidence and psi to the published form, too.

    ``rule="budget"`` (default): floor(budget * n) samples, n = all rows of the table,
    quarantined ones included; ``budget`` as the decimal it was written as (0.29 of 100
    is 29), but as k/n where it is the float of that quotient (1/7 of 7 is 1); None is
    0.09. Candidates have D > max(0, lambda_c) and psi <= lambda_a and are not trivial
    (``replace=False``: trivial ones, too). They are ranked, ties by D down, Diff down,
    index up, and the first floor(budget * n) are kept. If there are fewer, as many as there
    were trivial ones are added, the hardest first, as in rule paper: those with D >= 0,
    then those that the image hurts (``readmit_hurt=True``: both together, False: never).
    ``order`` is that ranking: ``"gain"`` is D; ``"learnable"``, the default for answer,
    logits and cascade, is D * Diff (logits: D * (1 - Diff) * Diff, since a divergence has
    no sign; cascade: the keep-probability, the probability that the image helps and a group
    of `TRAIN_GROUP` completions is mixed, and samples without completions after all mixed
    ones, by p (1 - p)); ``"posterior"``, the default for rollouts, is the value of rule
    learn: D ranks first what is hardly worth training on, and D * Diff the hardest, where
    p (1 - p) is least. What is ranked by is the column ``rank_key`` of the result;
    ``posterior1``, ``posterior0`` and ``keep_probability`` are there for rollouts, too.

    ``rule="learn"``: floor(budget * n) samples that training learns most of; METHOD.md
    section 7, ``rap.selection.learn``. A sample's value is E[p1 (1 - p1)] times V
    (``rap.scores.learning``): rollouts, and cascade where completions were sampled: of the
    posteriors, V = P(p1 > p0), or P(p1 < p0) where D < 0; else p_answer1 (1 - p_answer1),
    V = 1 where the image moves the prediction by more than 0.01 nats (answer, cascade:
    ``js``; logits: D), else 0. Candidates are mixed (rollouts, cascade: 0 < c1 < m1), with
    D > lambda_c (0; logits: 0.01) and psi not above lambda_a. Of what is kept,
    ``guard_hurt`` (0.3) are samples with D < 0, by p1 (1 - p1) (p0 - p1), and
    ``guard_attention`` (0.1; 0 where psi is only reported) mixed ones with psi above
    lambda_a: ``kept_guard``. ``coverage``: they are chosen for the sum over groups of
    log(1 + sum of values / 0.2), greedily: in the guards, with True or ``coverage_by`` in
    the main part, too, with False nowhere. Groups are the values of ``coverage_by``, or 8
    clusters of the hidden states that `score` kept (without any:
    by value alone). What is then missing is filled with the other mixed samples, and at
    last with those that are not known to be mixed, but never with unsolved ones:
    ``kept_replacement``. An unmeasured psi bars nothing here. ``found["learned"]`` and the
    summary say what each part holds, and which had no candidates.

    ``found["lambda_c"]`` is the threshold that ranking by gain amounts to (by another
    order: the floor): the largest D of a candidate that is not a survivor (the floor if all
    are). All candidates with a larger D are survivors, and ``found["at_lambda_c"]`` of
    those with exactly this D. If candidates and replacements run out, the result is
    shorter and ``warnings`` says so: rule learn fills a budget, rule budget keeps to D >= 0
    beyond the trivial samples that it replaces.
    ``lambda_a=None`` is calibrated on the finite log psi of valid samples (at least 20,
    else no limit and a warning): the middle of the gap, where the widest step above the
    median is wider than half of Q3 - Q1 below it; without such a gap the upper Tukey fence
    Q3 + 1.5 (Q3 - Q1). It flags what is unusual for this model and these response lengths;
    a fixed quantile would drop its share even without any outlier.
    ``by="source"``: every value of that column (null too) gets its own budget, ranking
    and replacements; lambda_a stays global. The column may be one of the score table, the
    data set or the rollouts. A group's budget is floor(budget * its rows); what is then
    missing to floor(budget * n) goes, one each, to the groups with the largest remainder
    that have another candidate, among equal ones to the best candidate (rule learn: then to
    those that have another sample to fill with).

    **Reasons**: ``kept_cognitive`` (survivor), ``kept_replacement``, ``kept_guard`` (rule
    learn), else the first that
    holds of: ``quarantined_<code>``, ``dropped_unsolved``, ``dropped_attention_biased``,
    ``dropped_image_hurts`` (D < 0), ``dropped_language_prior`` (D <= lambda_c; budget:
    D <= max(0, lambda_c)), ``dropped_trivial``, ``quarantined_psi_missing``,
    ``dropped_over_budget``. What bars a sample for good comes first, what another
    threshold would change comes last.

    A row with m1 = 0 and m0 > 0 (an earlier version's screen) has an unknown D of at
    most 1 - c0/m0: ``dropped_language_prior``, with a warning if the threshold is lower
    than that bound for some.

    **Warnings** are about results shorter than asked, an uncalibrated lambda_a, completions
    cut at max_new_tokens, and answers that the model gives almost no probability.

    Raises ``RapConfigError`` for a setting that makes no sense and ``RapInputError``
    for an empty table, one without a single valid sample, mixed evidence, or (answer and
    logits) answers none of which the model gives any probability.
    """
    given = preset_of(preset, "choose", overrides) | dict(overrides)
    names = [field.name for field in dataclasses.fields(ChooseConfig)]
    require_options(given, names, "rap.choose")
    config = resolve(ChooseConfig, "config", config, given, "rap.choose")
    scores = as_scores(scores)
    reader, rule = scores.reader, RULES[config.rule]
    if reader.num_rows == 0:
        raise RapInputError("nothing to choose from: the score table has no rows")
    reading = reading_of(reader, config, rule)
    judged = judge(reader, reading, rule)
    if not judged.has(VALID).any():
        raise RapInputError(f"nothing to choose from: {_why_none(judged)}")
    rule.check(config, reading.kind.name)
    attention = _attention(judged, rule, config, scores.meta)
    ruled = _apply(rule, scores, judged)
    counted = Counted(
        (judged.cut, judged.drawn) if judged.drawn else None,
        median_probability(reader, judged),
        scores.meta,
    )
    found = _total(ruled, config, rule) | attention.found | counted.found
    found["order"] = None if judged.ranking is None else judged.ranking.name
    settings = {
        "schema_version": SCHEMA_VERSION,
        "choose": config.as_json(),
        "evidence": reading.kind.name,
        "found": found,
        "groups": ruled.groups if config.by is not None else None,
        "texts": _texts(rule, judged),
        "scores": scores.meta.get("fingerprint"),
        "data": scores.meta.get("data"),
        "warnings": attention.warnings
        + notes_of(judged, found, ruled.groups, ruled.threshold, counted),
    }
    chosen = ChosenReader(reader, reading, rule, ruled.reason, ruled.reasons)
    measured = scores.meta.get("profile")
    return Selection(chosen, settings, scores.dataset, scores.completions, measured)


@dataclass(frozen=True, slots=True)
class _Ruled:
    """A reason for each row (int [n], places in ``reasons``), what was found in each group
    and what was asked of D."""

    reason: np.ndarray
    reasons: list[str]
    groups: list[dict[str, Any]]
    threshold: Fraction | None


def _attention(
    judged: Judged, rule: Rule, config: ChooseConfig, meta: Mapping[str, Any]
) -> Attention:
    """What ACE finds, put into the flags; psi is not needed any more then."""
    attention = judge_attention(
        judged.log_psi,
        lambda log_psi: rule.psi_limit(log_psi, config, meta),
        asked=config.lambda_a is not None,
        unread=judged.has(VALID) if rule.by_value else judged.unread,
        times=judged.psi_times,
    )
    if not config.drops_biased:
        attention = attention.reported(asked=config.lambda_a is not None)
    judged.log_psi = np.empty(0, np.float32)
    for flag, mask in ((PASSES, attention.passes), (BIASED, attention.biased)):
        judged.flags |= mask.view(np.uint8) * np.uint8(flag)
    return attention


def _candidates(judged: Judged, rule: Rule, config: ChooseConfig) -> Candidates:
    """What the groups are filled from; what the rules are says ``choose``."""
    readmit, first = config.readmit_hurt, rule.trivial_first
    hurt = rule.readmits_hurt if readmit is None else readmit
    free, barred = VALID | PASSES, UNSOLVED
    rest, no_more = free | KNOWN, barred | EASY

    def all_of(yes: int, no: int) -> np.ndarray:
        return judged.where(lambda f: (f & yes == yes) & (f & no == 0))

    none = np.zeros(len(judged), dtype=bool)
    leave = barred | (EASY if first and config.replace else 0)
    return Candidates(
        judged,
        passes=all_of(free | ABOVE, leave),
        easy=all_of(free | ABOVE | EASY, barred) if config.replace else none,
        pool=all_of(rest, no_more | (0 if hurt else NEGATIVE)),
        last=all_of(rest | NEGATIVE, no_more) if first and readmit is None else None,
        first=first,
    )


def _apply(rule: Rule, scores: Scores, judged: Judged) -> _Ruled:
    """A rule on all groups of a table."""
    n, config = len(judged), judged.reading.config
    threshold = rule.threshold(config, judged.reading.kind.name)
    of = _candidates(judged, rule, config)
    groups = groups_of(scores, config.by)
    share = rule.share(config)
    targets: list[int | None] = [None] * len(groups)
    if share is not None:
        one = len(groups) == 1
        rank = np.empty(0) if one else ranks(of)
        last = _fills(judged) if rule.by_value and not one else None
        targets = [*budget_by_group(share, groups, of.passes, rank, last)]
    picked = _picked(rule, scores, of, groups, targets)
    borders = border_d(scores.reader, judged, picked)
    found = [
        {"group": group[0]} | found_in(judged, one, threshold, rows_in(group, n), borders)
        for group, one in zip(groups, picked, strict=True)
    ]
    reason, reasons = _reasons(judged, picked)
    return _Ruled(reason, reasons, found, threshold)


def _fills(judged: Judged) -> np.ndarray:
    """bool [n]: what ``learn.Learner`` may keep at all."""
    assert judged.key is not None
    solved = judged.where(lambda f: f & (VALID | UNSOLVED) == VALID)
    return solved & ~np.isnan(judged.key[slice(None)])


def _picked(
    rule: Rule,
    scores: Scores,
    of: Candidates,
    groups: Sequence[Group],
    targets: Sequence[int | None],
) -> list[Picked]:
    """What is kept of each group."""
    if not rule.by_value:
        pairs = zip(groups, targets, strict=True)
        return [pick(of, rows, target) for (_, rows), target in pairs]
    learner = Learner(of.judged, groups_to_cover(scores, of.judged.reading.config))
    parts = [(rows, k or 0) for (_, rows), k in zip(groups, targets, strict=True)]
    guards = learner.guards(parts)
    return [learner(*part, sizes) for part, sizes in zip(parts, guards, strict=True)]


def _texts(rule: Rule, judged: Judged) -> dict[str, str | None]:
    """What the settings mean, for summary and report."""
    config, kind = judged.reading.config, judged.reading.kind
    return {
        "rule": rule.describe(config),
        "ranking": None if judged.ranking is None else judged.ranking.text,
        "D": kind.d_text(config.divergence),
        "difficulty": kind.difficulty_text,
        "prior": judged.prior,
    }


def _why_none(judged: Judged) -> str:
    counted = pc.value_counts(judged.bad.cast(pa.string())).to_pylist()
    text = ", ".join(f"{c['counts']} {c['values']}" for c in counted)
    return f"all {len(judged)} samples are quarantined ({text})"


def _total(ruled: _Ruled, config: ChooseConfig, rule: Rule) -> dict[str, Any]:
    if config.by is None:
        return {k: v for k, v in ruled.groups[0].items() if k != "group"}
    names = ("samples", "candidates", "survivors", "trivial_removed", "replaced", "kept")
    total = {name: sum(g[name] for g in ruled.groups) for name in names}
    share = rule.share(config)
    target = None if share is None else budget_size(share, total["samples"])
    unknown = {"lambda_c": None, "lambda_c_exact": None, "at_lambda_c": None}
    return total | {"target": target} | unknown


def _reasons(judged: Judged, picked: Sequence[Picked]) -> tuple[np.ndarray, list[str]]:
    """One reason a row, the first of REASONS' order that holds (see ``choose``): (place in
    the reasons, the reasons)."""
    replaces = judged.reading.config.replace

    def codes_of(flags: np.ndarray) -> np.ndarray:
        has = {flag: flags & flag != 0 for flag in (VALID, UNSOLVED, BIASED, NEGATIVE)}
        above, passes = flags & ABOVE != 0, flags & PASSES != 0
        easy = (flags & EASY != 0) & replaces
        missing = has[VALID] & ~passes & ~has[BIASED]
        tests = {
            "quarantined_": ~has[VALID],
            "dropped_unsolved": has[UNSOLVED],
            "dropped_attention_biased": has[BIASED],
            "dropped_image_hurts": has[NEGATIVE] & ~above,
            "dropped_language_prior": ~above,
            "dropped_trivial": easy,
            "quarantined_psi_missing": missing,
            "dropped_over_budget": has[VALID] & passes & above & ~has[UNSOLVED],
        }
        codes = [np.int8(_CODES.index(name)) for name in tests]
        return np.select(list(tests.values()), codes, np.int8(-1))

    code = look_up(codes_of(np.arange(256, dtype=np.uint8)), judged.flags)
    for one in picked:
        code[one.cognitive] = _CODES.index("kept_cognitive")
        code[one.replacement] = _CODES.index("kept_replacement")
        code[one.guard] = _CODES.index("kept_guard")
    if code.min() < 0:
        raise AssertionError("a sample has no reason: the rules do not cover it")
    if not len(judged.bad):
        return code, list(_CODES)
    bad = judged.bad.unify_dictionaries()
    names = bad.chunk(0).dictionary.to_pylist()
    places = np.concatenate([chunk.indices.to_numpy() for chunk in bad.chunks])
    kind = np.min_scalar_type(-len(_CODES) - len(names))
    found = code.astype(kind, copy=False)
    found[code == _CODES.index("quarantined_")] = places + len(_CODES)
    return found, [*_CODES, *(f"quarantined_{name}" for name in names)]


_CODES = (*REASONS, "quarantined_psi_missing", "quarantined_")
