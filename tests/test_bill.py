"""``rap.cost``: what a selection costs against epochs of training."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner
from selection_inputs import scores_of

import rap
from rap.cli.commands import main
from rap.errors import RapConfigError
from rap.scores.bill import Prices, _epochs, pays_after, saved_share

PAPER = {"group": 5, "training_share": 0.5665}
"""52.8 h against 93.2 h, 5 completions a prompt (arXiv 2506.04755)."""

BILL = {
    "both arms, M = 5": ((10, 0), (-48, 13, 37)),
    "text arm first": ((8.3, 0), (-32, 18, 38)),
    "answer first, top 40 %": ((1.6, 2), (25, 37, 42)),
    "logits": ((1, 3), (29, 39, 42)),
    "answer alone": ((0, 2), (40, 42, 43)),
}
"""{scheme: (completions, forwards) a sample, per cent saved for 1, 3 and 15 epochs}:
the project's table "Bill" (METHOD.md section 8)."""


@pytest.mark.parametrize("scheme", BILL)
def test_the_table_of_bills(scheme: str) -> None:
    (completions, forwards), wanted = BILL[scheme]
    prices = Prices(**PAPER)
    c = completions + prices.forward * forwards
    found = [saved_share(c, epochs, 0.5665, prices) for epochs in (1, 3, 15)]
    assert [round(100 * share) for share in found] == list(wanted)


COUNTS = {
    "both arms, M = 5": {"m1": 5, "m0": 5, "n_drawn": 10},
    "logits": {"n_drawn": 1, "forwards": 3},
    "answer alone": {"forwards": 2},
}
"""What a run of these schemes counts of every sample."""
CASCADE = [
    *[{"decided_by": "answer"}] * 6,
    *[{"decided_by": "text", "m1": 3, "m0": 1, "n_drawn": 4}] * 4,
]
"""Ten samples of "answer first, top 40 %": 16 completions, 20 forwards."""


@pytest.mark.parametrize("scheme", [*COUNTS, "answer first, top 40 %"])
def test_the_table_of_bills_comes_from_the_counts_of_a_run(scheme: str) -> None:
    rows = (
        [COUNTS[scheme]] * 10
        if scheme in COUNTS
        else [c | {"forwards": 2} for c in CASCADE]
    )
    counts, wanted = BILL[scheme]
    bill = rap.cost(scores_of([row(evidence="rollouts", **r) for r in rows]), **PAPER)
    assert (bill.completions / 10, bill.forwards / 10) == counts
    assert [round(100 * share) for share in bill.saved.values()] == list(wanted)


def row(**more: object) -> dict:
    cost = {"generated_tokens": 100, "seconds": 0.5}
    return {"status": "scored"} | cost | more


COUNTED = {"c1": 2, "m1": 5, "c0": 0, "m0": 5, "n_drawn": 10, "forwards": 1}


def test_counts_are_those_of_the_run() -> None:
    scores = scores_of([row(evidence="rollouts", **COUNTED)] * 100)
    bill = rap.cost(rap.choose(scores, budget=0.1), group=5, gpu_hour=36, million_tokens=2)
    assert [(s.name, s.completions, s.forwards) for s in bill.stages] == [
        *(("image", 500, 0), ("text", 500, 0), ("forwards", 0, 100)),
    ]
    assert bill.per_sample == 10.2
    assert (bill.kept, bill.training_share) == (10, 0.1)
    assert bill.saved[3] == pytest.approx(0.9 - 10.2 / 2.2 / 15)
    assert bill.pays_after == pytest.approx(10.2 / 2.2 / 4.5)
    assert bill.whole_epochs == 2
    assert bill.money == pytest.approx(36 * 50 / 3600 + 2 * 10_000 / 1e6)
    said = str(bill)
    assert "it pays after 1 epoch" in said and "1 epochs" not in said
    head, *stages = said.splitlines()[:4]
    assert head.split() == ["stage", "samples", "completions", "forwards"]
    assert all(len(line.split()) == 4 for line in stages)
    assert "all               100        1,000        100" in said
    assert "t = 10% of training on everything: 10 of 100 samples, as many epochs" in said
    assert "it pays after 1 epoch: from epoch 2 on less is spent than on everything" in said
    assert "(35.5% more is spent)" in str(rap.cost(scores, group=5, training_share=0.4282))
    assert "sampled 10,000 tokens" in said
    assert "    1 epoch:  " in str(rap.cost(scores, training_share=0.5, epochs=(1, 2)))
    json.dumps(bill.as_json(), allow_nan=False)


def test_the_bill_in_hours() -> None:
    scores = scores_of([row(evidence="rollouts", **COUNTED)] * 72)  # 36 s
    bill = rap.cost(scores, training_share=0.5, epoch_hours=0.01)
    assert bill.pays_after_hours == pytest.approx(0.01 / (0.5 * 0.01))
    assert "in hours it pays after 2 epochs" in str(bill)
    assert rap.cost(scores, training_share=0.5).pays_after_hours is None
    told = rap.cost(scores, training_share=0.5, epoch_hours=2, scoring_hours=3, gpu_hour=4)
    assert (told.pays_after_hours, told.money) == (3, 12)
    never = rap.cost(scores, training_share=1.0, epoch_hours=1)
    assert never.pays_after_hours is None and "in hours" not in str(never)


def test_a_cascade_is_billed_by_stage() -> None:
    p = {"evidence": "cascade", "p_answer1": 0.5, "p_answer0": 0.1}
    settled = row(**p, decided_by="answer", forwards=2)
    text = COUNTED | {"m1": 2, "c1": 1, "m0": 1, "n_drawn": 3, "forwards": 3}
    scores = scores_of([settled] * 6 + [row(**p, decided_by="text", **text)] * 4)
    bill = rap.cost(scores, training_share=0.5)
    assert [(s.name, s.samples, s.completions, s.forwards) for s in bill.stages] == [
        ("answer", 10, 0, 20),
        ("image", 4, 8, 0),
        ("text", 4, 4, 0),
        ("forwards", 4, 0, 4),
    ]
    assert bill.per_sample == pytest.approx((12 + 0.2 * 24) / 10)


def test_greedy_completions_are_billed() -> None:
    one = {"evidence": "logits", "js": 0.1, "n_drawn": 1, "forwards": 3}
    bill = rap.cost(scores_of([row(**one)] * 5), training_share=0.1)
    assert bill.per_sample == pytest.approx(1.6)


def test_training_on_everything_never_pays() -> None:
    assert pays_after(2.0, 1.0, Prices()) is None
    scores = scores_of([row(evidence="rollouts", **COUNTED)] * 4)
    assert "never pays" in str(rap.cost(scores, training_share=1.0))


@pytest.mark.parametrize(
    "prices",
    [
        {"forward": 1e308},
        {"gpu_hour": 1e308, "scoring_hours": 1e10},
        {"scoring_hours": 1e308},
        {"million_tokens": 1e308},
        {"epoch_hours": 1e-309},
        {"epoch_hours": 5e-324},
    ],
)
def test_a_bill_beyond_all_numbers_is_refused(prices: dict) -> None:
    """Not printed as Infinity, which is no JSON, nor a crash."""
    scores = scores_of([row(evidence="rollouts", **COUNTED | {"forwards": 10**6})] * 2000)
    with pytest.raises(RapConfigError, match="no finite number"):
        rap.cost(scores, training_share=0.5, **prices)


@pytest.mark.parametrize(
    "epochs", [3, (), [0], [1.5], "3", (1, True), None, [10**400], np.array(3), iter(())]
)
def test_epochs_that_are_none_are_one_sentence(epochs: object) -> None:
    scores = scores_of([row(evidence="rollouts", **COUNTED)])
    with pytest.raises(RapConfigError, match="expected integers from 1 to 1,000,000"):
        rap.cost(scores, training_share=0.5, epochs=epochs)


def test_epochs_may_be_numpys() -> None:
    scores = scores_of([row(evidence="rollouts", **COUNTED)])
    for epochs in (np.array([1, 3]), [np.int64(1), 3], iter([1, 3])):
        bill = rap.cost(scores, training_share=0.5, epochs=epochs)
        assert list(bill.saved) == [1, 3]
        json.dumps(bill.as_json(), allow_nan=False)


def test_large_numbers_are_written_out() -> None:
    many = COUNTED | {"c1": 1, "m1": 617, "m0": 617, "n_drawn": 1234, "forwards": 0}
    scores = scores_of([row(evidence="rollouts", **many)] * 3)
    said = str(rap.cost(scores, training_share=0.5, epochs=[200]))
    assert "scoring costs C = 1,234 completions a sample" in said
    assert "it pays after 140 epochs: from epoch 141 on" in said
    assert "e+" not in said


def test_an_epoch_is_not_rounded_up_to_the_one_it_pays_from() -> None:
    said = [_epochs(n) for n in (14.96, 0.999, 1.0, 0.034, 139.6, 57_999.7, 1234567.0)]
    whole = ["14.96 epochs", "0.999 epochs", "1 epoch", "0.034 epochs", "139.6 epochs"]
    assert said == [*whole, "57999.7 epochs", "1,234,567 epochs"]


def test_scores_that_count_nothing_are_said_to() -> None:
    """Of p(answer) from elsewhere nothing tells what it cost: not that it cost nothing."""
    from rap.report.page import render

    p = {"evidence": "answer", "p_answer1": 0.5, "p_answer0": 0.1, "js": 0.2}
    selection = rap.choose(scores_of([{"status": "scored"} | p] * 20), budget=0.5)
    assert "what the scores cost was not counted" in str(rap.cost(selection))
    assert "Epochs of training" not in render(selection)


@pytest.mark.parametrize(
    "options",
    [{}, {"training_share": 2}, {"group": 0}, {"training_share": 0.5, "epochs": (0,)}],
)
def test_nonsense_is_refused(options: dict) -> None:
    with pytest.raises(RapConfigError):
        rap.cost(scores_of([row(evidence="rollouts", **COUNTED)]), **options)


def test_the_command(tmp_path) -> None:
    scores = scores_of([row(evidence="rollouts", **COUNTED)] * 100)
    rap.choose(scores, budget=0.1).save(tmp_path)
    said = CliRunner().invoke(main, ["cost", str(tmp_path), "--epochs", "2", "--json"])
    found = json.loads(said.output)
    assert list(found["saved"]) == ["2"]
    assert found["samples"] == 100
    text = CliRunner().invoke(main, ["cost", str(tmp_path), "--group", "5"]).output
    table = str(tmp_path / "selection.parquet")
    assert CliRunner().invoke(main, ["cost", table, "--group", "5"]).output == text
    assert "15 epochs: +" in text and "scoring_hours" not in text
    dear = ["cost", str(tmp_path), "--gpu-hour", "3"]
    assert "a saved selection keeps none" in CliRunner().invoke(main, dear).output
    assert "at the prices told: 6.00" in (
        CliRunner().invoke(main, [*dear, "--scoring-hours", "2"]).output
    )


def test_an_empty_selection_saves_nothing_of_what_is_not_trained() -> None:
    from rap.report.page import render

    never = {"evidence": "rollouts", "c1": 0, "m1": 5, "c0": 0, "m0": 5}
    selection = rap.choose(scores_of([row(**never)] * 8), rule="learn", budget=0.25)
    assert len(selection) == 0
    with pytest.raises(RapConfigError, match="nothing is kept"):
        rap.cost(selection)
    assert rap.cost(selection, training_share=0.5).pays_after is not None
    assert "Epochs of training" not in render(selection)
