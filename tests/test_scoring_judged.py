"""Completions judged by rewards: of a checker that fails, hangs or says one value."""

from __future__ import annotations

import io
import re
import time

import pytest
from PIL import Image
from scoring_inputs import FEW, make_rows
from scoring_rewards import by_pixels, hangs, one_too_few, sometimes, zero

import rap
from rap.errors import RapInputError
from rap.scoring.run import score


def test_fault_25_26_what_the_checker_cannot_judge(tiny):
    rows = make_rows(4)
    scores = score(
        *tiny,
        rows,
        evidence="rollouts",
        m1=6,
        m0=6,
        sampling=FEW,
        reward=sometimes,
        max_bad_fraction=0.5,
    )
    table = scores.table.to_pylist()
    assert [r["code"] for r in table] == [None, "verifier_error", "verifier_error", None]
    assert [r["stage"] for r in table] == [None, "check", "check", None]
    assert "broken" in table[1]["message"]
    assert (table[0]["c1"], table[0]["m1"], table[0]["c0"], table[0]["m0"]) == (6, 6, 6, 6)
    kept = [r for r in scores.rollouts.to_pylist() if r["id"] == "s3"]
    judged = [r for r in kept if r["correct"] is not None]
    assert 0 < len(judged) < 12
    assert table[3]["m1"] + table[3]["m0"] == len(judged)
    assert all(r["code"] == "verifier_error" for r in kept if r["correct"] is None)


def test_rewards_of_a_list_see_whole_groups_and_images(tiny, caplog):
    rows = make_rows(8)
    scores = score(
        *tiny,
        rows,
        evidence="rollouts",
        m1=3,
        m0=2,
        sampling=FEW,
        reward=[zero, by_pixels],
        reward_weights=[2.0, 0.5],
    )
    for kept in scores.rollouts.to_pylist():
        image = Image.open(io.BytesIO(rows[kept["index"]]["image"]["bytes"]))
        value = (image.getpixel((0, 0))[0] + len(kept["text"])) % 2
        assert kept["correct"] is (value == 1)
    named = r"2\.0\*scoring_rewards:zero@\w+ \+ 0\.5\*scoring_rewards:by_pixels@\w+"
    assert re.fullmatch(named, scores.meta["fingerprint"]["checker"])
    assert not [r for r in caplog.records if "tells no sample" in r.getMessage()]


def test_a_reward_of_zero_for_all_is_said_in_the_log_and_the_selection(tiny, caplog):
    options = {"evidence": "rollouts", "m1": 2, "m0": 1, "sampling": FEW}
    scores = score(*tiny, make_rows(8), **options, reward=zero)
    said = [r.getMessage() for r in caplog.records if "tells no sample" in r.getMessage()]
    assert len(said) == 1 and "scoring_rewards:zero' gave 0 for all 24 " in said[0]
    chosen = rap.choose(scores, rule="paper")
    (line,) = [w for w in chosen.warnings if "tells no sample" in w]
    assert line.startswith(
        "reward 'scoring_rewards:zero' gave less than 0.5 for all 24 completions, with and "
        "without the image"
    )
    assert line in chosen.summary()
    few = rap.choose(rap.Scores(scores.table.slice(0, 7), meta=scores.meta), rule="paper")
    assert not [w for w in few.warnings if "tells no sample" in w]


def test_a_reward_of_one_value_too_few_is_refused_at_the_first_call(tiny):
    options = {"evidence": "rollouts", "m1": 2, "m0": 1, "sampling": FEW}
    short = r"one_too_few': it returned 0 rewards for 1 completion; expected one each"
    with pytest.raises(RapInputError, match=short):
        score(*tiny, make_rows(2), **options, reward=one_too_few)


def test_fault_26_a_checker_that_hangs(tiny):
    started = time.monotonic()
    with pytest.raises(RapInputError, match="check/verifier_timeout: 1"):
        score(
            *tiny,
            make_rows(1),
            evidence="rollouts",
            m1=1,
            m0=1,
            sampling=FEW,
            reward=hangs,
            checker_timeout=0.3,
        )
    assert time.monotonic() - started < 60
