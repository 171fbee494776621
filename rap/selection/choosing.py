"""Scores + settings -> selection: ``choose``.

Pure: NumPy and Arrow, no torch, no model, no clock, no random numbers, no files. The
same scores and settings give the same bytes. Source of the rules: arXiv 2506.04755.

What differs between the rules is in ``selection.rules``; here is what they share: which
samples are barred, how groups are filled (``groups``, ``picking``), one reason a sample.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Unpack

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..config import ChooseConfig, ChooseOptions
from ..errors import RapInputError
from ..scores.columns import as_fraction, nullable
from ..scores.evidence import Evidence, read_evidence
from ..scores.scores import Scores
from ..scores.table import SCHEMA_VERSION
from ..settings import resolve
from .attention import Attention, judge_attention
from .groups import budget_by_group, budget_size, groups_of
from .notes import Counted, cut_completions, median_probability, notes_of
from .picking import Candidates, found_in, pick, ranks
from .rules import RULES, Ranking, Rule
from .selection import Selection


def choose(
    scores: Scores, config: ChooseConfig | None = None, **overrides: Unpack[ChooseOptions]
) -> Selection:
    """Choose the samples worth training on; every other one gets the reason why not.

    ``config``: a `ChooseConfig`; ``overrides``: single fields of it, by name. The rules
    themselves are in ``rap.selection.rules``.

    **D** (CDE, METHOD.md section 1): what the image changes.
    rollouts: c1/m1 - c0/m0, compared as integers, ``c1*m0 - c0*m1 > lambda_c*m1*m0``,
    with ``lambda_c`` taken as the decimal it was written as (0.1 is 1/10).
    answer: ``p_answer1 - p_answer0``, in float64.
    logits: the mean divergence over the response named by ``divergence`` (``js``: in
    [0, ln 2] nats). It has no sign: it cannot tell that the image hurts.

    **Diff** (DRM, section 3): ``1 - c1/m1``, or ``1 - p_answer1`` for answer and
    logits. ``likelihood="mean"`` takes the geometric mean over the answer's tokens,
    ``exp(logp_mean)``, for p(answer), here and in D. With logits and no reference answer
    Diff is unknown: no sample is then trivial or unsolved, and there is no replacement.

    **psi** (ACE, section 2): keep only if psi <= lambda_a, compared as logarithms.
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
    near 1 is never quite trivial, and by D alone such samples fill a budget. What is
    ranked by is the column ``rank_key`` of the result.

    ``found["lambda_c"]`` is the threshold that ranking by gain amounts to (by learnable:
    the floor): the largest D of a candidate that is not a survivor (the floor if all
    are). All candidates with a larger D are survivors, and ``found["at_lambda_c"]`` of
    those with exactly this D. If candidates or replacements run out, the result is
    shorter and ``warnings`` says so: samples with D <= 0 never fill a budget except as
    replacements.
    ``lambda_a=None`` is calibrated: the upper Tukey fence Q3 + 1.5 (Q3 - Q1) of the
    finite log psi of valid samples (at least 20, else no limit and a warning), without
    those above a gap that lies above the median and is wider than half of Q3 - Q1:
    attention-biased samples must not widen the fence that excludes them. The fence flags
    what is unusual for this model and these response lengths; a fixed quantile would drop
    its share even without any outlier.
    ``by="source"``: every value of that column (null too) gets its own budget, ranking
    and replacements; lambda_a stays global. The column may be one of the score table, the
    data set or the rollouts. A group's budget is floor(budget * its rows); what is then
    missing to floor(budget * n) goes, one each, to the groups with the largest remainder
    that have another candidate, among equal ones to the best candidate.

    **Reasons**: ``kept_cognitive`` (survivor), ``kept_replacement``, else the first that
    holds of: ``quarantined_<code>``, ``dropped_unsolved``, ``dropped_attention_biased``,
    ``dropped_image_hurts`` (D < 0), ``dropped_language_prior`` (D <= lambda_c; budget:
    D <= max(0, lambda_c)), ``dropped_trivial``, ``quarantined_psi_missing``,
    ``dropped_over_budget``. What bars a sample for good comes first, what another
    threshold would change comes last.

    A row with m1 = 0 and m0 > 0 (``ScoreConfig.screen_lambda_c``) has an unknown D of at
    most 1 - c0/m0: ``dropped_language_prior``, with a warning if the threshold is lower
    than that bound for some.

    **Warnings** are about results shorter than asked, an uncalibrated lambda_a, completions
    cut at max_new_tokens, and answers that the model gives almost no probability.

    Raises ``RapConfigError`` for a setting that makes no sense and ``RapInputError``
    for an empty table, one without a single valid sample, mixed evidence, or (answer and
    logits) answers none of which the model gives any probability.
    """
    config = resolve(ChooseConfig, "config", config, overrides, "rap.choose")
    table, rule = scores.table, RULES[config.rule]
    if table.num_rows == 0:
        raise RapInputError("nothing to choose from: the score table has no rows")
    evidence = read_evidence(
        table,
        divergence=config.divergence,
        likelihood=config.likelihood,
        unsolved=as_fraction("unsolved", config.unsolved),
    )
    if not evidence.valid.any():
        raise RapInputError(f"nothing to choose from: {_why_none(evidence)}")
    rule.check(config, evidence.kind.name)
    attention = judge_attention(
        table,
        evidence.valid,
        lambda log_psi: rule.psi_limit(log_psi, config, scores.meta),
        asked=config.lambda_a is not None,
    )
    ruled = _apply(rule, scores, config, evidence, attention)
    counted = Counted(
        cut_completions(table), median_probability(evidence, config, table), scores.meta
    )
    found = _total(ruled, config, rule) | attention.found | counted.found
    found["order"] = None if ruled.ranking is None else ruled.ranking.name
    settings = {
        "schema_version": SCHEMA_VERSION,
        "choose": dataclasses.asdict(config),
        "evidence": evidence.kind.name,
        "found": found,
        "groups": ruled.groups if config.by is not None else None,
        "texts": _texts(rule, config, evidence, ruled.ranking),
        "scores": scores.meta.get("fingerprint"),
        "data": scores.meta.get("data"),
        "warnings": attention.warnings
        + notes_of(evidence, config, found, ruled.groups, ruled.threshold, counted),
    }
    chosen = _with_reasons(table, evidence, ruled)
    measured = scores.meta.get("profile")
    return Selection(chosen, settings, scores.dataset, scores.rollouts, measured)


@dataclass(frozen=True, slots=True)
class _Ruled:
    """One reason a row, what was found in each group, what was asked of D and what the
    rows were ranked by."""

    reason: pa.ChunkedArray
    groups: list[dict[str, Any]]
    threshold: Fraction | None
    ranking: Ranking | None


def _apply(
    rule: Rule,
    scores: Scores,
    config: ChooseConfig,
    evidence: Evidence,
    attention: Attention,
) -> _Ruled:
    """A rule on all groups of a table; what the rules are says ``choose``."""
    n = len(scores)
    threshold = rule.threshold(config, evidence.kind.name)
    ranking = rule.ranking(config, evidence)
    free = evidence.valid & attention.passes & ~evidence.unsolved
    easy = evidence.trivial(as_fraction("trivial", config.trivial))
    pool = free & ~easy & ~np.isnan(evidence.difficulty) & ~np.isnan(evidence.d)
    readmit = config.readmit_hurt
    if not (rule.readmits_hurt if readmit is None else readmit):
        pool &= ~evidence.negative
    easy_out = easy if config.replace else np.zeros(n, dtype=bool)
    of = Candidates(evidence, free & evidence.above(threshold), easy_out, pool)

    groups = groups_of(scores, config.by)
    share = rule.share(config)
    targets: list[int | None] = [None] * len(groups)
    if share is not None:
        one = len(groups) == 1
        rank = np.empty(0) if one else ranks(of, ranking)
        targets = [*budget_by_group(share, groups, of.passes, rank)]
    cognitive, replacement = np.zeros((2, n), dtype=bool)
    found = []
    for (name, rows), target in zip(groups, targets, strict=True):
        picked = pick(of, rows, target, ranking)
        cognitive[picked.cognitive] = True
        replacement[picked.replacement] = True
        found.append({"group": name, **found_in(evidence, picked, threshold, len(rows))})
    reason = _reasons(of, attention, cognitive, replacement, threshold)
    return _Ruled(reason, found, threshold, ranking)


def _with_reasons(table: pa.Table, evidence: Evidence, ruled: _Ruled) -> pa.Table:
    """The score table with ``D``, ``difficulty``, ``rank_key`` and ``reason`` as its last
    columns."""
    unranked = np.full(table.num_rows, np.nan)
    key = unranked if ruled.ranking is None else ruled.ranking.value
    columns = {
        "D": nullable(evidence.d),
        "difficulty": nullable(evidence.difficulty),
        "rank_key": nullable(key),
        "reason": ruled.reason,
    }
    for name, column in columns.items():
        if name in table.column_names:
            table = table.drop_columns([name])
        table = table.append_column(name, column)
    return table


def _texts(
    rule: Rule, config: ChooseConfig, evidence: Evidence, ranking: Ranking | None
) -> dict[str, str | None]:
    """What the settings mean, for summary and report."""
    return {
        "rule": rule.describe(config),
        "ranking": None if ranking is None else ranking.text,
        "D": evidence.kind.d_text(config.divergence),
        "difficulty": evidence.kind.difficulty_text,
    }


def _why_none(evidence: Evidence) -> str:
    counted = pc.value_counts(evidence.code.combine_chunks()).to_pylist()
    text = ", ".join(f"{c['counts']} {c['values']}" for c in counted)
    return f"all {len(evidence.valid)} samples are quarantined ({text})"


def _total(ruled: _Ruled, config: ChooseConfig, rule: Rule) -> dict[str, Any]:
    if config.by is None:
        return {k: v for k, v in ruled.groups[0].items() if k != "group"}
    names = ("samples", "candidates", "survivors", "trivial_removed", "replaced", "kept")
    total = {name: sum(g[name] for g in ruled.groups) for name in names}
    share = rule.share(config)
    target = None if share is None else budget_size(share, total["samples"])
    unknown = {"lambda_c": None, "lambda_c_exact": None, "at_lambda_c": None}
    return total | {"target": target} | unknown


def _reasons(
    of: Candidates,
    attention: Attention,
    cognitive: np.ndarray,
    replacement: np.ndarray,
    threshold: Fraction | None,
) -> pa.ChunkedArray:
    """One reason a row, the first of REASONS' order that holds (see ``choose``)."""
    evidence = of.evidence
    below = ~evidence.above(threshold)
    tests = [
        (cognitive, "kept_cognitive"),
        (replacement, "kept_replacement"),
        (~evidence.valid, "quarantined_"),
        (evidence.unsolved, "dropped_unsolved"),
        (attention.biased, "dropped_attention_biased"),
        (evidence.negative & below, "dropped_image_hurts"),
        (below, "dropped_language_prior"),
        (of.easy, "dropped_trivial"),
        (attention.missing, "quarantined_psi_missing"),
        (of.passes, "dropped_over_budget"),
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
