"""What ``choose`` reads of each kind of evidence: probabilities, divergences, counts."""

from __future__ import annotations

import math

import pytest
from selection_inputs import answer, reasons, row, scores_of

from rap.errors import RapConfigError, RapInputError
from rap.selection.choosing import choose


def test_answer_evidence() -> None:
    rows = [
        answer(0.9, 0.1),
        answer(0.1, 0.9),
        answer(0.3, 0.3),
        answer(1.0, 0.1),  # trivial
        answer(0.05, 0.05),  # the hardest
        answer(0.0, 0.2),  # never
        answer(None, 0.2),
    ]
    selection = choose(scores_of(rows), rule="paper")
    assert reasons(selection) == [
        "kept_cognitive",
        "dropped_image_hurts",
        "dropped_language_prior",
        "dropped_trivial",
        "kept_replacement",
        "dropped_unsolved",
        "quarantined_nonfinite",
    ]
    assert selection.table["D"].to_pylist()[0] == 0.9 - 0.1
    assert selection.table["D"].to_pylist()[-1] is None


def test_unsolved_is_a_stated_threshold_for_probabilities() -> None:
    rows = [answer(p, 0.0) for p in (0.5, 0.002, 0.0005, 1e-12)]
    assert reasons(choose(scores_of(rows), budget=1.0))[2:] == ["kept_cognitive"] * 2
    chosen = choose(scores_of(rows), budget=1.0, unsolved=0.999)
    assert reasons(chosen) == ["kept_cognitive"] * 2 + ["dropped_unsolved"] * 2
    with pytest.raises(RapConfigError, match=r"unsolved = 0.*expected a number in \(0, 1"):
        choose(scores_of(rows), unsolved=0)


def test_case_28_long_references_are_compared_by_the_mean_over_their_tokens() -> None:
    """40 tokens of probability 1/2 against 1/4: the products are 1e-12 and 1e-24."""
    half, quarter = math.log(0.5), math.log(0.25)
    means = {"logp_mean1": half, "logp_mean0": quarter}
    products = {"logp_answer1": 40 * half, "logp_answer0": 40 * quarter}
    long = answer(0.5**40, 0.25**40, **means, **products)
    table = scores_of([long, answer(0.25, 0.125, logp_mean1=quarter, logp_mean0=3 * half)])
    by_mean = choose(table, budget=1.0, likelihood="mean", unsolved=0.999)
    assert by_mean.table["D"].to_pylist() == pytest.approx([0.25, 0.125], rel=1e-12)
    assert by_mean.settings["found"]["median_p_answer"] == pytest.approx(0.375)
    by_product = choose(table, budget=1.0, unsolved=0.999)
    assert reasons(by_product) == ["dropped_unsolved", "kept_cognitive"]


def test_case_28_a_median_probability_near_zero_is_said() -> None:
    rows = [answer(p, 0.0) for p in (0.5, 1e-7, 1e-9)]
    chosen = choose(scores_of(rows), budget=1.0)
    said = [w for w in chosen.settings["warnings"] if "almost no probability" in w]
    assert len(said) == 1 and said[0].startswith("median p(answer) with the image is 1e-07")
    none = [answer(p, 0.0) for p in (1e-18, 1e-20, 0.0)]
    with pytest.raises(RapInputError, match="all 3 samples .* are unsolved.*median p"):
        choose(scores_of(none), budget=1.0)
    sure = choose(scores_of([answer(0.5, 0.0)] * 3), budget=1.0)
    assert not any("almost no probability" in w for w in sure.settings["warnings"])


def test_answer_evidence_ranks_by_what_is_left_to_learn() -> None:
    """By D alone, probabilities near 1 fill the budget and none of them is trivial."""

    def answer(p1: float, p0: float) -> dict:
        rest = {"p_answer1": p1, "p_answer0": p0}
        return {"status": "scored", "evidence": "answer"} | rest

    rows = [answer(0.999, 0.0), answer(0.5, 0.125), answer(0.125, 0.0625)]
    rows += [answer(0.998, 0.0), answer(0.0, 0.75), answer(0.75, 0.5)]
    scores = scores_of(rows)
    chosen = choose(scores, budget=1 / 3)
    assert chosen.ids == ["s1", "s5"]  # D Diff: 3/16 and 1/16, before 7/128
    assert chosen.settings["found"]["lambda_c"] == 0
    assert "order='learnable'" in chosen.summary()
    assert choose(scores, budget=1 / 3, order="gain").ids == ["s0", "s3"]
    unsigned = [
        {"status": "scored", "evidence": "logits", "js": js, "p_answer1": p}
        for js, p in ((0.5, 0.01), (0.25, 0.5), (0.5, 0.999))
    ]
    assert choose(scores_of(unsigned), budget=1 / 3).ids == ["s1"]


def test_logits_evidence_has_no_sign_and_may_know_no_answer() -> None:
    def logits(js: float, p1: float | None = None) -> dict:
        rest = {"js": js, "kl": 1 - js, "p_answer1": p1}
        return {"status": "scored", "evidence": "logits"} | rest

    rows = [logits(0.5), logits(0.4), logits(0.0), logits(0.3)]
    selection = choose(scores_of(rows), budget=0.5)
    assert selection.ids == ["s0", "s1"]
    assert reasons(selection)[2:] == ["dropped_language_prior", "dropped_over_budget"]
    assert selection.table["difficulty"].null_count == 4
    assert choose(scores_of(rows), budget=0.5, divergence="kl").ids == ["s2", "s3"]
    with pytest.raises(RapConfigError, match="needs an explicit lambda_c"):
        choose(scores_of(rows), rule="paper")
    assert len(choose(scores_of(rows), rule="paper", lambda_c=0.35)) == 2
    known = [logits(0.5, 1.0), logits(0.4, 0.5), logits(0.1, 0.2), logits(0.6, 0.0)]
    assert reasons(choose(scores_of(known), budget=0.5, order="gain")) == [
        "dropped_trivial",
        "kept_cognitive",
        "kept_cognitive",
        "dropped_unsolved",
    ]


def test_an_unknown_difficulty_counts_as_a_half() -> None:
    """D Diff (1 - Diff): 0.29 / 4 where the answer is known, 0.3 / 4 where it is not."""
    rows = [
        {"status": "scored", "evidence": "logits", "js": js, "p_answer1": p}
        for js, p in ((0.29, 0.5), (0.3, None), (0.5, 0.9), (0.31, 0.5))
    ]
    assert choose(scores_of(rows), budget=0.5).ids == ["s1", "s3"]


def test_samples_never_tried_with_the_image() -> None:
    """Text arm first: 3 of 5 without the image already rule out D > 0.5."""
    rows = [row(0, 0, 3, 5), row(4, 5, 0, 5), row(3, 5, 0, 5)]
    selection = choose(scores_of(rows), rule="paper")
    assert reasons(selection)[0] == "dropped_language_prior"
    assert selection.warnings == []
    selection = choose(scores_of(rows), rule="paper", lambda_c=0.3)
    assert any("1 samples were never tried" in w for w in selection.warnings)
