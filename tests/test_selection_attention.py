"""Where ``choose`` draws the limit of psi, and what it drops above it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from selection_inputs import INF, reasons, row, scores_of

from rap.selection import attention
from rap.selection.attention import Limit, fence, judge_attention
from rap.selection.choosing import choose


def test_a_limit_between_two_float32_is_kept_below() -> None:
    """log psi is stored as float32; a limit is compared as the float64 it is."""
    below = np.float32(math.log(0.3))
    near = [np.nextafter(below, np.float32(x)) for x in ("-inf", "inf")]
    psi = np.array([near[0], below, near[1]], np.float32)
    for exact in (float(below), float(below) + 1e-9, float(below) - 1e-9):
        found = judge_attention(psi, lambda _, exact=exact: Limit(exact, "given"), True)
        assert found.passes.tolist() == [float(x) <= exact for x in psi]


def test_a_gap_is_found_at_the_border_of_two_pieces(monkeypatch) -> None:
    """The steps are looked at in pieces; one lies between each two of them."""
    usual = np.linspace(-3.0, -2.0, 24)
    for size in range(2, 30):
        monkeypatch.setattr(attention, "_PIECE", size)
        for n in (24, 25, 26, 27):
            far = np.linspace(5.0, 5.1, 6)
            psi = np.concatenate([usual, np.full(n - 24, -2.0), far]).astype(np.float32)
            assert fence(psi) == pytest.approx(1.5), (size, n)


def test_psi_at_the_threshold_passes() -> None:
    rows = [row(3, 5, 0, 5, log_psi=v) for v in (0.0, 1e-6, -0.0)]
    assert choose(scores_of(rows), rule="paper", lambda_a=1.0).ids == ["s0", "s2"]


def test_attention_is_calibrated_by_thefence() -> None:
    usual = np.linspace(-3, -1, 98).astype(np.float32)
    rows = [row(3, 5, 1, 5, log_psi=float(v)) for v in usual]
    rows += [row(3, 5, 1, 5, log_psi=1.5), row(3, 5, 1, 5, log_psi=-INF)]
    selection = choose(scores_of(rows), budget=1, biased="drop")
    # 1.5 stands apart: the limit is in the middle between it and what is usual.
    found = selection.settings["found"]
    assert found["log_lambda_a"] == (1.5 - 1) / 2
    assert "the middle of the gap" in found["lambda_a_origin"]
    assert found["psi_too_short"] == 1
    assert selection.counts()["dropped_attention_biased"] == 1
    assert len(selection) == 99
    assert "too short to judge" in selection.summary()
    assert len(choose(scores_of(rows), budget=1, lambda_a=math.exp(-2))) == 50


@pytest.mark.parametrize("captured", [1, 10, 25, 40])
def test_captured_samples_are_dropped_however_many(captured: int) -> None:
    """A quarter of them is where Tukey's own fence would drop none."""
    usual = np.linspace(-3.3, -1.9, 60)
    psi = [*usual, *np.linspace(-0.4, 0.3, captured)]
    rows = [row(3, 5, 0, 5, log_psi=float(p)) for p in psi]
    told = reasons(choose(scores_of(rows), budget=1.0, biased="drop"))
    assert told == ["kept_cognitive"] * 60 + ["dropped_attention_biased"] * captured


@pytest.mark.parametrize("n", range(1, 12))
def test_quartiles_are_those_of_numpy(n: int) -> None:
    values = np.sort(np.random.default_rng(n).normal(size=n)).astype(np.float32)
    wanted = np.percentile(values.astype(np.float64), [25, 75])
    assert attention._quartiles(values) == tuple(wanted)


def test_a_gap_is_measured_by_what_is_below_it() -> None:
    """Of all 100, half of Q3 - Q1 is 1.05; of the lower 60 it is 0.35; the step is 1."""
    psi = np.concatenate([np.linspace(-3.3, -1.9, 60), np.linspace(-0.9, -0.2, 40)])
    assert fence(psi) == pytest.approx(-1.4)


@pytest.mark.parametrize(
    "name, most",
    [("exponential", 0.07), ("lognormal", 0.09), ("gumbel", 0.05), ("normal", 0.02)],
)
def test_a_skewed_tail_is_not_taken_for_captured_samples(name: str, most: float) -> None:
    """About what Tukey's fence flags of such a distribution: no gap, nothing is cut."""
    draw = getattr(np.random.default_rng(3), name)
    for n in (200, 4000):
        psi = draw(size=n)
        assert np.mean(psi > fence(psi)) <= most


def test_two_close_modes_and_ties_are_not_taken_for_captured_samples() -> None:
    rng = np.random.default_rng(4)
    modes = np.where(rng.random(4000) < 0.55, -3.0, -2.5) + 0.1 * rng.normal(size=4000)
    assert np.mean(modes > fence(modes)) < 0.01
    ties = np.concatenate([np.full(520, -2.0), rng.uniform(-2, -1, 480)])
    assert np.mean(ties > fence(ties)) < 0.01
    assert fence(np.full(50, -2.0)) == -2.0


def test_too_few_psi_calibrate_nothing() -> None:
    few = scores_of([row(3, 5, 1, 5, log_psi=-1.0 * i) for i in range(19)])
    selection = choose(few, biased="drop")
    assert selection.settings["found"]["lambda_a"] is None
    assert any("not calibrated" in w for w in selection.warnings)
    reported = choose(few)  # psi drops nothing anyway
    assert not reported.warnings
    assert "psi: no limit (too few to calibrate)" in reported.summary()
    selection = choose(scores_of([row(3, 5, 1, 5, log_psi=-1.0 * i) for i in range(20)]))
    # quartiles -14.25 and -4.75, and 1.5 times their difference above the upper one
    assert selection.settings["found"]["log_lambda_a"] == 9.5


def test_paper_threshold_on_the_normalised_psi_is_called_out() -> None:
    rows = [row(3, 5, 0, 5, log_psi=-3.0)]
    ace = {"normalise": True, "min_rows": 8}
    scores = scores_of(rows, fingerprint={"config": {"ace": ace}})
    assert any("unnormalised" in w for w in choose(scores, rule="paper").warnings)
    ace.update(normalise=False, min_rows=1)
    assert choose(scores, rule="paper").warnings == []


def test_unmeasured_attention() -> None:
    selection = choose(scores_of([row(3, 5, 0, 5)] * 20), budget=0.5, lambda_a=0.1)
    assert len(selection) == 10
    assert any("no attention was measured" in w for w in selection.warnings)
    rows = [row(3, 5, 0, 5, log_psi=-1.0), row(4, 5, 0, 5), row(1, 5, 1, 5)]
    assert reasons(choose(scores_of(rows), budget=1, biased="drop")) == [
        "kept_cognitive",
        "quarantined_psi_missing",
        "dropped_language_prior",
    ]


@pytest.mark.parametrize("rule", ["budget", "learn"])
def test_attention_is_reported_and_drops_nothing_unasked(rule: str) -> None:
    """No psi was shown to find bad samples of a real language model."""
    rows = [row(3, 5, 0, 5, log_psi=-2 + i / 100) for i in range(60)]
    rows += [row(3, 5, 0, 5, log_psi=2.0) for _ in range(4)] + [row(3, 5, 0, 5)]
    chosen = choose(scores_of(rows), rule=rule, budget=1.0)
    assert reasons(chosen) == ["kept_cognitive"] * 65
    found = chosen.settings["found"]
    assert (found["psi_above"], found["biased"]) == (4, "report")
    assert "in 4 samples" in chosen.summary() and "reported only" in chosen.summary()
    asked = choose(scores_of(rows), rule=rule, budget=0.9, biased="drop")
    assert asked.settings["found"]["biased"] == "drop" and "psi <= " in asked.summary()
    barred = [r for r in reasons(asked)[60:64] if r == "dropped_attention_biased"]
    # rule learn: its guard has room for floor(0.1 * 58) = 5 of them
    assert len(barred) == (4 if rule == "budget" else 0)
    given = choose(scores_of(rows), rule=rule, budget=0.9, lambda_a=1.0)
    assert reasons(given) == reasons(asked)
    one = {"lambda_a": 1.0, "biased": "report"}
    assert choose(scores_of(rows), rule=rule, budget=1.0, **one).indices.tolist() == [
        *range(65)
    ]
