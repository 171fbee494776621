"""When a run is given up: what is bad, whose fault it is, and what the model cannot say."""

from __future__ import annotations

import math

import pytest

from rap.config import Sampling, ScoreConfig
from rap.errors import RapInputError, RapModelError
from rap.scores.judge import FAINT, MIN_SEEN, Judge, require_varied


def bad(stage: str = "image") -> dict:
    row = {"id": "x", "status": "quarantined", "stage": stage}
    return row | {"code": "broken", "message": "is broken"}


def good(logp: float | None = None) -> dict:
    return {"id": "y", "status": "scored", "logp_mean1": logp}


def judge_of(n: int, rows: list[dict], limit: float = 0.05) -> Judge:
    judge = Judge(n, ScoreConfig(max_bad_fraction=limit), allow_degenerate=False)
    judge.count(rows)
    return judge


@pytest.mark.parametrize(
    ("n", "limit", "most"), [(100, 0.05, 5), (100, 0.29, 29), (10, 0, 1)]
)
def test_so_many_may_be_bad_and_no_more(n, limit, most):
    """The fraction is the decimal that it was written as; one bad sample never stops a
    run."""
    rows = [bad()] * most + [good()] * (n - most)
    for final in (False, True):
        judge_of(n, rows, limit).stop(final=final)
    rows = [bad()] * (most + 1) + [good()] * (n - most - 1)
    for final in (False, True):
        with pytest.raises(RapInputError, match=f"{most + 1} of {n} samples are bad"):
            judge_of(n, rows, limit).stop(final=final)


def test_all_bad_is_refused_at_the_end_whatever_may_be():
    judge_of(4, [bad()] * 3 + [good()], limit=1.0).stop(final=True)
    for n in (1, 4):
        with pytest.raises(RapInputError, match="none is left"):
            judge_of(n, [bad()] * n, limit=1.0).stop(final=True)


def test_nothing_is_said_of_the_first_few():
    """A run is given up when ``MIN_SEEN`` samples were seen, or at its end."""
    rows = [bad()] * (MIN_SEEN - 1)
    judge = judge_of(1000, rows, limit=0.001)
    judge.stop(final=False)
    judge.count([bad()])
    with pytest.raises(RapInputError, match=f"{MIN_SEEN} seen"):
        judge.stop(final=False)
    with pytest.raises(RapInputError, match="samples are bad"):
        judge_of(1000, rows, limit=0.001).stop(final=True)


@pytest.mark.parametrize(
    ("model", "image", "error"),
    [(3, 2, RapModelError), (2, 2, RapInputError), (1, 3, RapInputError)],
)
def test_it_is_the_model_s_fault_where_most_failed_there(model, image, error):
    rows = [bad("model")] * model + [bad()] * image
    with pytest.raises((RapInputError, RapModelError)) as caught:
        judge_of(5, rows).stop(final=True)
    assert type(caught.value) is error


def test_a_model_that_gives_the_answers_no_probability_is_told():
    faint, fair = math.log(FAINT) - 0.1, math.log(FAINT) + 0.1
    judge_of(MIN_SEEN, [good(fair)] * MIN_SEEN).stop(final=True)
    judge_of(MIN_SEEN, [good(faint)] * (MIN_SEEN - 1)).stop(final=True)
    for final in (False, True):
        with pytest.raises(RapInputError, match="median p"):
            judge_of(MIN_SEEN, [good(faint)] * MIN_SEEN).stop(final=final)
    allowed = Judge(MIN_SEEN, ScoreConfig(), allow_degenerate=True)
    allowed.count([good(faint)] * MIN_SEEN)
    allowed.stop(final=True)


def test_half_of_the_groups_alike_is_too_many():
    require_varied(8, 3, Sampling())
    for degenerate in (4, 5, 8):
        with pytest.raises(RapModelError, match=f"{degenerate} of 8 groups"):
            require_varied(8, degenerate, Sampling())
