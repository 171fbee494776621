# ruff: noqa: E501 -- texts of code stay whole
"""What chooses: evidence, thresholds, rules, picking, calibration, posteriors, budgets."""

from __future__ import annotations

from ..mutant import Mutant

EVIDENCE, KINDS, COLUMNS, GROUPS = (
    "rap/scores/evidence.py",
    "rap/scores/kinds.py",
    "rap/scores/columns.py",
    "rap/selection/groups.py",
)
CHOOSING, PICKING, ATTENTION = (
    f"rap/selection/{n}.py" for n in ("choosing", "picking", "attention")
)
BUDGET, PAPER, LEARN_RULE = (
    f"rap/selection/rules/{n}.py" for n in ("budget", "paper", "learn")
)
POSTERIOR, LEARNING = "rap/scores/posterior.py", "rap/scores/learning.py"
JUDGED = "rap/selection/judged.py"

S = "tests/test_selection.py::"
S_ORACLE, S_EXACT, S_ATTENTION, S_BUDGET, S_EVIDENCE = (
    f"tests/test_selection_{n}.py::"
    for n in ("oracle", "exact", "attention", "budget", "evidence")
)
ORACLE = (S_ORACLE + "test_fault_56_choose_equals_the_oracle",)
DECIMALS = (
    S_EXACT + "test_thresholds_are_decimals_and_counts_integers",
    S_EXACT + "test_a_half_is_a_half",
)
EXACT = (
    S_EXACT + "test_ranks_stay_exact_where_float64_does_not_tell_d_apart",
    S_EXACT + "test_learnable_order_is_exact_for_large_counts",
)
BROKEN = (S + "test_fault_21_nothing_broken_is_ever_kept",)
PSI = (S_ATTENTION + "test_psi_at_the_threshold_passes",)
FENCE = (
    S_ATTENTION + "test_attention_is_calibrated_by_thefence",
    S_ATTENTION + "test_captured_samples_are_dropped_however_many",
    S_ATTENTION + "test_a_skewed_tail_is_not_taken_for_captured_samples",
    S_ATTENTION + "test_two_close_modes_and_ties_are_not_taken_for_captured_samples",
)
FEW_PSI = (S_ATTENTION + "test_too_few_psi_calibrate_nothing",)
LEFT_OVER = (S_BUDGET + "test_what_a_budget_leaves_over_goes_to_the_largest_remainder",)
BUDGETS = (
    S_BUDGET + "test_budgets_are_decimals",
    S_BUDGET + "test_every_share_of_a_small_table_keeps_its_samples",
)
REPLACED = (
    S + "test_paper_rule_removes_trivial_and_brings_back_the_hardest",
    S + "test_a_replacement_is_never_a_sample_kept_already",
)
HURTS = (
    S + "test_what_the_image_hurts_replaces_only_where_asked",
    S_BUDGET + "test_what_the_image_hurts_fills_a_budget_last",
)
ANSWERS = (
    S_EVIDENCE + "test_answer_evidence",
    S_EVIDENCE + "test_unsolved_is_a_stated_threshold_for_probabilities",
    S_EVIDENCE + "test_answer_evidence_ranks_by_what_is_left_to_learn",
    S_EVIDENCE + "test_logits_evidence_has_no_sign_and_may_know_no_answer",
)
TEXT_ONLY = (S_EVIDENCE + "test_samples_never_tried_with_the_image",)
TIES = (S + "test_fault_43_equal_scores_go_by_index",)
INTEGRALS = (
    "tests/test_posterior.py::test_against_exact_integrals",
    "tests/test_posterior.py::test_known_values",
)
VALUES = (
    "tests/test_learn.py::test_the_value_is_what_quadrature_gives",
    "tests/test_learn.py::test_probabilities_are_worth_p_one_minus_p_where_the_image_is_read",
)
UNMEASURED = (S_ATTENTION + "test_unmeasured_attention",)

RULES = (
    # --- evidence
    Mutant(
        "rule-d-turned",
        KINDS,
        "number, scale = c1 * m0 - c0 * m1, m1 * m0",
        "number, scale = c0 * m1 - c1 * m0, m1 * m0",
        DECIMALS,
    ),
    Mutant(
        "rule-d-of-counts",
        KINDS,
        "number, scale = c1 * m0 - c0 * m1, m1 * m0",
        "number, scale = (c1 - c0) * m1, m1 * m0",
        (*DECIMALS, S + "test_fault_25_few_rollouts_are_counted_not_guessed", *ORACLE),
    ),
    Mutant(
        "rule-difficulty-is-ease",
        KINDS,
        "difficulty = _quotient(m1 - c1, m1, m1 > 0)",
        "difficulty = _quotient(c1, m1, m1 > 0)",
        DECIMALS + ORACLE,
    ),
    Mutant(
        "rule-text-only-is-enough-no-more",
        KINDS,
        "enough=both | text_only,",
        "enough=both,",
        TEXT_ONLY,
    ),
    Mutant(
        "rule-bound-of-text-only",
        KINDS,
        "d_bound=_quotient(m0 - c0, m0, text_only),",
        "d_bound=_quotient(c0, m0, text_only),",
        TEXT_ONLY,
    ),
    Mutant(
        "rule-answer-d-turned",
        KINDS,
        "        return p1 - p0\n",
        "        return p0 - p1\n",
        ANSWERS,
    ),
    Mutant(
        "rule-divergence-has-a-sign",
        KINDS,
        "learn = d * left * (1.0 if self.signed else 1.0 - left)",
        "learn = d * left",
        ANSWERS,
    ),
    Mutant(
        "rule-unknown-difficulty",
        KINDS,
        "left = np.nan_to_num(difficulty, nan=0.5)",
        "left = np.nan_to_num(difficulty, nan=0.0)",
        (S_EVIDENCE + "test_an_unknown_difficulty_counts_as_a_half",),
    ),
    Mutant(
        "rule-unsolved-above",
        EVIDENCE,
        "return self.difficulty >= float(self.unsolved_from)",
        "return self.difficulty > float(self.unsolved_from)",
        ANSWERS,
    ),
    Mutant(
        "rule-unsolved-counts",
        EVIDENCE,
        "~exceeds(c1, m1, 1 - self.unsolved_from)",
        "~exceeds(c1 + 1, m1, 1 - self.unsolved_from)",
        ORACLE,
    ),
    Mutant(
        "rule-trivial-below",
        EVIDENCE,
        "return self.difficulty <= float(threshold)",
        "return self.difficulty < float(threshold)",
        (*ANSWERS, S_EXACT + "test_a_number_at_its_threshold"),
    ),
    Mutant(
        "rule-trivial-counts",
        EVIDENCE,
        "return ~np.isnan(self.difficulty) & ~exceeds(m1 - c1, m1, threshold)",
        "return ~np.isnan(self.difficulty) & ~exceeds(m1 - c1 + 1, m1, threshold)",
        ORACLE,
    ),
    Mutant(
        "rule-d-at-threshold",
        EVIDENCE,
        "return self.d > float(threshold)",
        "return self.d >= float(threshold)",
        (*ANSWERS, S_EXACT + "test_a_number_at_its_threshold"),
    ),
    Mutant(
        "rule-zero-is-negative",
        EVIDENCE,
        "return self.d < 0\n",
        "return self.d <= 0\n",
        ORACLE,
    ),
    Mutant(
        "rule-nan-is-finite",
        EVIDENCE,
        "        ok = pc.is_finite(column)\n",
        "        ok = pc.is_valid(column)\n",
        BROKEN,
    ),
    Mutant(
        "rule-minus-inf-is-broken",
        EVIDENCE,
        "if name in _MAY_BE_MINUS_INF:",
        "if False:",
        (S + "test_fault_23_short_and_empty_responses", *ANSWERS),
    ),
    Mutant(
        "rule-mixed-kinds",
        EVIDENCE,
        "if len(kinds) > 1:",
        "if len(kinds) > 2:",
        (
            S + "test_tables_that_choose_cannot_compare",
            S + "test_impossible_tables_are_refused",
        ),
    ),
    Mutant(
        "rule-unknown-status",
        EVIDENCE,
        'if not np.all(scored | mask_of(pc.equal(table["status"], QUARANTINED))):',
        "if False:",
        (
            S + "test_tables_that_choose_cannot_compare",
            S + "test_impossible_tables_are_refused",
        ),
    ),
    Mutant(
        "rule-psi-times",
        KINDS,
        "times[pilot] += int(answer.sum()) // max(1, int(pilot.sum()))",
        "times[pilot] += 0",
        ("tests/test_cascade_choosing.py",),
    ),
    # --- exact numbers
    Mutant(
        "rule-exceeds-or-equals",
        COLUMNS,
        "return number * q > p * scale",
        "return number * q >= p * scale",
        DECIMALS,
    ),
    Mutant(
        "rule-exceeds-overflows",
        COLUMNS,
        "if max(abs(p), q) * largest < 2**62:",
        "if True:",
        (S_EXACT + "test_long_decimals_do_not_overflow",),
    ),
    Mutant(
        "rule-floor-of-large",
        COLUMNS,
        "floors = np.array([p * int(v) // q for v in values], dtype=np.int64)",
        "floors = np.array([-(-p * int(v) // q) for v in values], dtype=np.int64)",
        (
            S_EXACT + "test_long_decimals_do_not_overflow",
            S_EXACT + "test_exceeds_equals_fractions_however_large",
        ),
    ),
    Mutant(
        "rule-binary-decimals",
        COLUMNS,
        "return Fraction(str(float(number)))",
        "return Fraction(float(number))",
        DECIMALS + BUDGETS,
    ),
    Mutant(
        "rule-keys-not-exact",
        COLUMNS,
        "if int(scale.max(initial=0)) <= EXACT_BELOW:",
        "if True:",
        EXACT,
    ),
    Mutant(
        "rule-distinct-last-row",
        COLUMNS,
        "first[key[::-1]] = np.arange(len(key) - 1, -1, -1)  # the last that is put stays",
        "first[key] = np.arange(len(key))",
        ("tests/test_distinct.py",),
    ),
    Mutant(
        "rule-distinct-offset",
        COLUMNS,
        "key += column if low == 0 else column - low",
        "key += column",
        ("tests/test_distinct.py",),
    ),
    # --- budgets
    Mutant(
        "rule-budget-rounds-up",
        GROUPS,
        "else math.floor(share * n)",
        "else math.ceil(share * n)",
        BUDGETS,
    ),
    Mutant(
        "rule-budget-of-quotients",
        GROUPS,
        "return nearest if nearest / n == float(share) else math.floor(share * n)",
        "return math.floor(share * n)",
        BUDGETS,
    ),
    Mutant(
        "rule-remainder-turned",
        GROUPS,
        "open_groups.append((base[i] - share * sizes[i], best, i))",
        "open_groups.append((share * sizes[i] - base[i], best, i))",
        LEFT_OVER,
    ),
    Mutant(
        "rule-remainder-to-empty",
        GROUPS,
        "if i not in raised and base[i] < len(candidates):",
        "if i not in raised and len(candidates):",
        LEFT_OVER,
    ),
    Mutant(
        "rule-group-tie",
        GROUPS,
        "open_groups.append((base[i] - share * sizes[i], best, i))",
        "open_groups.append((base[i] - share * sizes[i], 0, i))",
        LEFT_OVER,
    ),
    Mutant(
        "rule-group-order",
        GROUPS,
        'order = np.argsort(codes, kind="stable")',
        'order = np.argsort(codes, kind="stable")[::-1]',
        LEFT_OVER,
    ),
    Mutant(
        "rule-negative-floor",
        BUDGET,
        'return max(Fraction(0), as_fraction("lambda_c", config.lambda_c))',
        'return as_fraction("lambda_c", config.lambda_c)',
        ORACLE,
    ),
    Mutant(
        "rule-paper-psi",
        PAPER,
        "PAPER_LAMBDA_A = 0.1",
        "PAPER_LAMBDA_A = 0.2",
        (S + "test_the_preset_is_the_whole_published_pipeline", *ORACLE),
    ),
    Mutant(
        "rule-paper-readmits",
        PAPER,
        "readmits_hurt = True",
        "readmits_hurt = False",
        HURTS + ORACLE,
    ),
    # --- who is kept
    Mutant(
        "rule-barred-replaces",
        CHOOSING,
        "rest, no_more = free | KNOWN, barred | EASY",
        "rest, no_more = free | KNOWN, EASY",
        ORACLE,
    ),
    Mutant(
        "rule-trivial-replaces",
        CHOOSING,
        "rest, no_more = free | KNOWN, barred | EASY",
        "rest, no_more = free | KNOWN, barred",
        REPLACED + ORACLE,
    ),
    Mutant(
        "rule-biased-is-free",
        CHOOSING,
        "free, barred = VALID | PASSES, UNSOLVED",
        "free, barred = VALID, UNSOLVED",
        PSI + ORACLE,
    ),
    Mutant(
        "rule-hurt-replaces",
        CHOOSING,
        "pool=all_of(rest, no_more | (0 if hurt else NEGATIVE)),",
        "pool=all_of(rest, no_more),",
        HURTS,
    ),
    Mutant(
        "rule-reason-order",
        CHOOSING,
        '"dropped_image_hurts": has[NEGATIVE] & ~above,\n',
        "",
        (*ORACLE,),
    ),
    Mutant(
        "rule-missing-psi-is-over-budget",
        CHOOSING,
        "missing = has[VALID] & ~passes & ~has[BIASED]",
        "missing = ~has[VALID]",
        UNMEASURED,
    ),
    Mutant(
        "rule-survivors-short",
        PICKING,
        "survivors = np.sort(np.concatenate([larger, tied[hard_first[:need]]]))",
        "survivors = np.sort(np.concatenate([larger, tied[hard_first[: need - 1]]]))",
        TIES + ORACLE,
    ),
    Mutant(
        "rule-ties-easy-first",
        PICKING,
        "hard_first = np.lexsort((-difficulty, -judged.order[tied]))",
        "hard_first = np.lexsort((difficulty, -judged.order[tied]))",
        TIES + ORACLE,
    ),
    Mutant(
        "rule-ties-unknown-first",
        PICKING,
        "    difficulty = np.nan_to_num(judged.difficulty[tied], nan=-1.0)",
        "    difficulty = np.nan_to_num(judged.difficulty[tied], nan=2.0)",
        ANSWERS + ORACLE,
    ),
    Mutant(
        "rule-replaces-the-kept", PICKING, "        eligible[here] = False\n", "", REPLACED
    ),
    Mutant(
        "rule-replaces-too-many",
        PICKING,
        "judged.difficulty[rows], k - len(found), eligible, judged.order[rows]",
        "judged.difficulty[rows], k, eligible, judged.order[rows]",
        HURTS + ORACLE,
    ),
    Mutant(
        "rule-trivial-seats",
        PICKING,
        "missing = min(removed, (target or 0) - len(survivors))",
        "missing = removed",
        (S_BUDGET + "test_trivial_samples_take_no_seat_of_a_budget", *ORACLE),
    ),
    Mutant(
        "rule-partition",
        PICKING,
        "border_d = -d[target - 1]",
        "border_d = -d[max(0, target - 2)]",
        ORACLE + TIES,
    ),
    Mutant(
        "rule-border",
        PICKING,
        "rest = d[d < border_d].max()  # there is one: target < len(candidates)",
        "rest = d[d < border_d].min()",
        (S_BUDGET + "test_found_threshold_says_what_was_taken",),
    ),
    # --- attention
    Mutant(
        "rule-psi-limit-itself",
        ATTENTION,
        "passes = log_psi <= _at_most(",
        "passes = log_psi < _at_most(",
        PSI,
    ),
    Mutant(
        "rule-psi-float32",
        ATTENTION,
        'return nearest if float(nearest) <= limit else np.nextafter(nearest, np.float32("-inf"))',
        "return nearest",
        (S_ATTENTION + "test_a_limit_between_two_float32_is_kept_below",),
    ),
    Mutant(
        "rule-psi-unread",
        ATTENTION,
        "passes |= unread & ~measured",
        "passes |= unread",
        ("tests/test_cascade_choosing.py", "tests/test_cascade_rounds.py"),
        equivalent="what is unread has no psi, so is not measured",
    ),
    Mutant(
        "rule-psi-calibrates-few",
        ATTENTION,
        "if log_psi.size < CALIBRATION_MIN:",
        "if log_psi.size < CALIBRATION_MIN - 1:",
        FEW_PSI,
    ),
    Mutant(
        "rule-psi-calibrates-more",
        ATTENTION,
        "if log_psi.size < CALIBRATION_MIN:",
        "if log_psi.size <= CALIBRATION_MIN:",
        FEW_PSI,
    ),
    Mutant(
        "rule-fence-lower",
        ATTENTION,
        "return float(q3 + 1.5 * (q3 - q1)), False",
        "return float(q3 + 1.0 * (q3 - q1)), False",
        FENCE,
    ),
    Mutant(
        "rule-fence-gap-anywhere",
        ATTENTION,
        "if 0 < (q3 - q1) / 2 < step:",
        "if 0 < step:",
        FENCE,
    ),
    Mutant(
        "rule-fence-ties",
        ATTENTION,
        "if 0 < (q3 - q1) / 2 < step:",
        "if (q3 - q1) / 2 < step:",
        FENCE,
    ),
    Mutant(
        "rule-fence-all",
        ATTENTION,
        "q1, q3 = _quartiles(ordered[: half + widest + 1])",
        "q1, q3 = _quartiles(ordered)",
        (S_ATTENTION + "test_a_gap_is_measured_by_what_is_below_it",),
    ),
    Mutant(
        "rule-quartile-between",
        ATTENTION,
        "found.append(a + (b - a) * t if t < 0.5 else b - (b - a) * (1 - t))",
        "found.append(a)",
        (S_ATTENTION + "test_quartiles_are_those_of_numpy",),
    ),
    Mutant(
        "rule-piece-border",
        ATTENTION,
        "ordered[start : start + _PIECE + 1]",
        "ordered[start : start + _PIECE]",
        (S_ATTENTION + "test_a_gap_is_found_at_the_border_of_two_pieces",),
    ),
    # --- flags
    Mutant(
        "rule-flag-valid",
        JUDGED,
        "return part.each(found) | part.valid.view(np.uint8) * np.uint8(VALID)",
        "return part.each(found) | np.uint8(VALID)",
        BROKEN + ORACLE,
    ),
    Mutant(
        "rule-known-by-d",
        JUDGED,
        "known = ~np.isnan(evidence.d) & ~np.isnan(evidence.difficulty)",
        "known = ~np.isnan(evidence.d)",
        ANSWERS,
        equivalent="KNOWN only opens the pool of replacements, of which drm takes none with Diff NaN",
    ),
    # --- what is left to learn
    Mutant(
        "rule-prior-uniform",
        POSTERIOR,
        "return 1.0 + self.c, 1.0 + (self.m - self.c)",
        "return 0.5 + self.c, 0.5 + (self.m - self.c)",
        INTEGRALS,
    ),
    Mutant(
        "rule-keep-all-right",
        POSTERIOR,
        "g: np.ndarray = 1.0 - np.exp(group * log_p) - np.exp(group * log_q)",
        "g: np.ndarray = 1.0 - np.exp(group * log_p)",
        INTEGRALS,
    ),
    Mutant(
        "rule-threshold-turned",
        POSTERIOR,
        "x = np.clip(np.sin(angle) ** 2 - threshold, 0.0, 1.0)",
        "x = np.clip(np.sin(angle) ** 2 + threshold, 0.0, 1.0)",
        INTEGRALS,
    ),
    Mutant(
        "rule-outer-cells",
        POSTERIOR,
        "log[:, cell] += (2.0 * x - 1.0) * math.log(2.0) - np.log(2.0 * x)",
        "log[:, cell] += 0.0 * x",
        ("tests/test_posterior.py::test_densities_without_a_bound_at_the_ends",),
    ),
    Mutant(
        "rule-distinct-arms",
        POSTERIOR,
        "key = (self.c << 40) + (self.m << 16)",
        "key = (self.c << 4) + self.m",
        ("tests/test_posterior.py::test_many_rows_equal_each_alone", *INTEGRALS),
    ),
    Mutant(
        "rule-variance",
        LEARNING,
        "return a * b / ((a + b) * (a + b + 1.0))",
        "return a * b / ((a + b) * (a + b))",
        VALUES,
    ),
    Mutant(
        "rule-hurt-value",
        LEARNING,
        "np.where(d[rows] < 0, 1.0 - above, above)",
        "above",
        VALUES,
    ),
    Mutant(
        "rule-settled",
        LEARNING,
        "settled = ~((one.c > 0) & (one.c < one.m))",
        "settled = ~(one.c > 0)",
        (
            *VALUES,
            "tests/test_learn.py::test_outcomes_that_are_all_alike_come_after_all_mixed_ones",
        ),
    ),
    Mutant(
        "rule-floor-of-divergence",
        LEARNING,
        "mixed = (value > 0) & ~(moved <= FLOOR)",
        "mixed = (value > 0) & ~(moved < FLOOR)",
        VALUES + ("tests/test_learn.py::test_the_floor_itself_does_not_move",),
    ),
    Mutant(
        "rule-learn-floor",
        LEARN_RULE,
        'return Fraction(0) if KINDS[evidence].signed else as_fraction("floor", FLOOR)',
        "return Fraction(0)",
        ("tests/test_learn.py::test_a_divergence_must_be_above_the_floor",),
    ),
    Mutant(
        "rule-guard-rest",
        "rap/selection/learn.py",
        "                found[i][name] += 1\n",
        "                found[i][name] += 0\n",
        (
            "tests/test_learn.py::test_small_groups_have_the_guard_of_the_whole_by_largest_remainder",
        ),
    ),
    Mutant(
        "rule-guard-order",
        "rap/selection/learn.py",
        "more.append((size - as_fraction(name, share) * target, best, i))",
        "more.append((0, 0, i))",
        (
            "tests/test_learn.py::test_small_groups_have_the_guard_of_the_whole_by_largest_remainder",
        ),
    ),
    Mutant(
        "rule-guards-beyond",
        "rap/selection/learn.py",
        "                if size < len(worth) and sum(found[i].values()) < target:",
        "                if size < len(worth) and size < target:",
        ("tests/test_learn.py",),
    ),
)
