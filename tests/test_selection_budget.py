"""Whom a budget takes: how many, of which groups, in which order."""

from __future__ import annotations

import math

import numpy as np
import pytest
from selection_inputs import reasons, row, scores_of

from rap.errors import RapConfigError
from rap.selection.choosing import choose
from rap.selection.groups import budget_size


@pytest.mark.parametrize(
    ("budget", "n", "kept"), [(0.29, 100, 29), (0.07, 100, 7), (1, 9, 9)]
)
def test_budgets_are_decimals(budget: float, n: int, kept: int) -> None:
    """0.29 * 100 is 28.999... in floating point."""
    assert len(choose(scores_of([row(3, 5, 1, 5)] * n), budget=budget)) == kept


def test_every_share_of_a_small_table_keeps_its_samples() -> None:
    """1/7 of 7 rows is one, though the decimal of the float 1/7 is a little under."""
    scores = {n: scores_of([row(3, 5, 1, 5)] * n) for n in range(1, 9)}
    for n, table in scores.items():
        assert [len(choose(table, budget=k / n)) for k in range(1, n + 1)] == [
            *range(1, n + 1)
        ]
    for n in range(1, 120):
        assert [budget_size(k / n, n) for k in range(1, n + 1)] == [*range(1, n + 1)]
    # no share of n: the decimal, rounded down
    assert budget_size(0.142857, 7) == 0
    assert budget_size(math.nextafter(1 / 7, 0), 7) == 0
    assert budget_size(math.nextafter(1 / 7, 1), 7) == 1
    assert budget_size(0.29, 99) == 28
    assert budget_size(np.float32(0.29), 100) == 29


def test_found_threshold_says_what_was_taken() -> None:
    rows = [row(c, 8, 0, 8) for c in (7, 6, 6, 6, 5, 4)]
    selection = choose(scores_of(rows), budget=0.5, order="gain")  # 3 of 6
    found = selection.settings["found"]
    assert (found["lambda_c"], found["lambda_c_exact"]) == (0.75, "3/4")
    assert found["at_lambda_c"] == [2, 3]
    assert (
        "  D > 0.75 (3/4), and 2 of the 3 samples with exactly that D\n"
        in selection.summary()
    )
    selection = choose(scores_of(rows), budget=0.67, order="gain")  # 4 of 6: no tie cut
    found = selection.settings["found"]
    assert (found["lambda_c_exact"], found["at_lambda_c"]) == ("5/8", [0, 1])
    assert "exactly that D" not in selection.summary()
    found = choose(scores_of(rows), budget=1, lambda_c=0.5, order="gain").settings["found"]
    assert (found["lambda_c"], found["at_lambda_c"], found["kept"]) == (0.5, [0, 0], 5)
    plain = choose(scores_of(rows), budget=0.5).summary()
    assert "  D > 0\n" in plain  # no fraction beside a number that it repeats


def test_budget_per_group() -> None:
    rows = [row(1 + i % 4, 5, 0, 5, source="x") for i in range(10)]
    rows += [row(4, 5, 0, 5, source="y") for _ in range(5)] + [row(2, 5, 0, 5)] * 5
    selection = choose(scores_of(rows), budget=0.4, by="source")
    groups = {g["group"]: g["kept"] for g in selection.settings["groups"]}
    assert groups == {"x": 4, "y": 2, None: 2}
    assert len(selection) == 8
    assert "source = y: 2 of 5" in selection.summary()
    with pytest.raises(RapConfigError, match="^by = 'task': .* no such column"):
        choose(scores_of(rows), by="task")
    with pytest.raises(RapConfigError, match="^coverage_by = 'task': .* no such column"):
        choose(scores_of(rows), rule="learn", coverage_by="task")
    with pytest.raises(RapConfigError, match="a float column makes no groups"):
        choose(scores_of(rows), by="kl")
    with pytest.raises(RapConfigError, match="by = 'source'"):
        choose(scores_of(rows), rule="paper", by="source")


def test_what_a_budget_leaves_over_goes_to_the_largest_remainder() -> None:
    best, weak, none = row(2, 4, 0, 4), row(1, 4, 0, 4), row(2, 4, 2, 4)  # 1/4, 3/16, 0

    def kept(text: str, budget: float) -> list[str]:
        """``text``: a letter a group, then a digit: how good."""
        made = [(best, weak, none)[int(n)] | {"source": g} for g, n in text.split()]
        return choose(scores_of(made), budget=budget, by="source", replace=False).ids

    # 6 and 4 samples: 1.8 and 1.2, so a has the seat though b's next is better
    assert kept("a1 b0 a1 b0 a1 b0 a1 b0 a1 a1", 0.3) == ["s0", "s1", "s2"]
    assert kept("b0 a1 b0 a1 b0 a1 b0 a1 a1 a1", 0.3) == ["s0", "s1", "s3"]
    # a has no other candidate
    assert kept("b0 a1 b0 a2 b0 a2 b0 a2 a2 a2", 0.3) == ["s0", "s1", "s2"]
    # 1.5 and 1.5: to the one whose next is better, whichever comes first
    assert kept("a1 a1 a1 b0 b0 b0", 0.5) == ["s0", "s3", "s4"]
    assert kept("b0 b0 b0 a1 a1 a1", 0.5) == ["s0", "s1", "s3"]


def test_trivial_samples_take_no_seat_of_a_budget() -> None:
    rows = [row(5, 5, 0, 5)] * 4 + [row(2, 5, 1, 5)] * 6
    selection = choose(scores_of(rows), budget=0.3)
    assert reasons(selection)[:7] == ["dropped_trivial"] * 4 + ["kept_cognitive"] * 3
    assert choose(scores_of(rows), budget=0.3, replace=False).counts()["kept_cognitive"]


def test_every_kept_sample_a_replacement_is_said() -> None:
    rows = [row(5, 5, 0, 5)] * 4 + [row(2, 5, 2, 5)] * 6
    selection = choose(scores_of(rows), budget=0.3)
    assert selection.counts()["kept_replacement"] == 3
    assert any("every kept sample is a replacement" in w for w in selection.warnings)


def test_what_the_image_hurts_fills_a_budget_last() -> None:
    rows = [row(5, 5, 0, 5)] * 3 + [row(1, 5, 3, 5), row(4, 5, 4, 5), row(4, 5, 1, 5)]
    selection = choose(scores_of(rows), budget=0.5)
    kept = ["kept_replacement", "kept_replacement", "kept_cognitive"]
    assert reasons(selection) == ["dropped_trivial"] * 3 + kept
    assert choose(scores_of(rows), budget=1 / 3).ids == ["s4", "s5"]
    left = choose(scores_of(rows), budget=0.5, readmit_hurt=False)
    assert left.ids == ["s4", "s5"]


def test_a_budget_of_rollouts_goes_by_the_posterior() -> None:
    """The hardest teach less than those that are as often right as wrong."""
    rows = [row(c, 5, 0, 5) for c in (1, 2, 3, 4)] + [row(3, 5, 2, 5)]
    selection = choose(scores_of(rows), budget=0.4)
    assert selection.ids == ["s1", "s2"]
    assert selection.settings["found"]["order"] == "posterior"
    assert choose(scores_of(rows), budget=0.4, order="gain").ids == ["s2", "s3"]
