"""benchmarks/selection_quality.py: its metrics on cases worked by hand, and a toy run."""

from __future__ import annotations

import dataclasses
import math
import os

import numpy as np
import pyarrow.parquet as pq
import pytest

from benchmarks import cascade, metrics, selection_quality
from benchmarks.quality import collect, tables


def test_auroc_counts_pairs_and_halves_ties(rng):
    assert metrics.auroc([3, 2, 1, 2], [True, True, False, False]) == 3.5 / 4
    assert math.isnan(metrics.auroc([1, 2], [True, True]))
    score, positive = rng.integers(0, 5, 60), rng.random(60) < 0.4
    pairs = [(a > b) + (a == b) / 2 for a in score[positive] for b in score[~positive]]
    assert metrics.auroc(score, positive) == pytest.approx(np.mean(pairs), abs=1e-12)


def test_a_score_that_is_not_known_is_counted_and_never_ranked():
    score, positive = np.array([3, math.nan, 1, 2]), np.array([True, True, False, False])
    with pytest.raises(ValueError, match="1 of 4 scores are NaN"):
        metrics.auroc(score, positive)
    assert metrics.rated(score, positive) == {"auroc": 1.0, "unknown": 1}


def test_ranks_and_spearman():
    assert metrics.ranks([10, 30, 20, 20]).tolist() == [1, 4, 2.5, 2.5]
    assert metrics.spearman([1, 2, 3, 4], [1, 8, 27, 64]) == pytest.approx(1)
    assert metrics.spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    # Ranks 1 2 3 4 and 2 1 4 3: 1 - 6 * 4 / (4 * 15).
    assert metrics.spearman([1, 2, 3, 4], [20, 10, 40, 30]) == pytest.approx(0.6)
    assert math.isnan(metrics.spearman([1, 1], [1, 2]))


def test_precision_recall_top_jaccard():
    flagged = np.array([True, True, False, False])
    positive = np.array([True, False, True, True])
    assert metrics.precision_recall(flagged, positive) == (1 / 2, 1 / 3)
    assert math.isnan(metrics.precision_recall(~flagged & flagged, positive)[0])
    assert metrics.top(np.array([1.0, 5, 5, 5]), 2).tolist() == [False, True, True, False]
    assert metrics.jaccard(flagged, positive) == 1 / 4
    assert metrics.jaccard(flagged & ~flagged, flagged & ~flagged) == 1


def test_intervals_against_published_ones():
    """Newcombe 1998, table II, method 10: 56/70 - 48/80 at 95 % is 0.0524 .. 0.3339;
    and Wilson's for 0 of 10: 0 .. 0.2775."""
    low, high = metrics.interval(56, 70, 48, 80, 0.95)
    assert (round(low, 4), round(high, 4)) == (0.0524, 0.3339)
    low, high = metrics.wilson(0, 10, 0.95)
    assert low == pytest.approx(0, abs=1e-12) and round(high, 4) == 0.2775


def test_keep_probability_is_near_the_truth():
    five, none = np.array([5, 0, 3]), np.array([0, 5, 3])
    full = np.full(3, 5)
    p = metrics.keep_probability(five, full, none, full, 0.0, 4000, 0)
    assert p[0] > 0.99 and p[1] < 0.01 and abs(p[2] - 0.5) < 0.05


def test_spread_leaves_out_what_is_not_known():
    found = metrics.spread([1.0, 3.0, math.nan])
    assert (found.mean, found.worlds) == (2.0, 2)
    assert found.sd == pytest.approx(math.sqrt(2))
    assert str(metrics.spread([math.nan])) == "n/a"


def test_adaptive_counts_stop_where_a_first_look_agrees():
    right = np.array([[1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 1, 1], [1, 0, 1, 1]], bool)
    settled = np.array([False, False, False, True])
    c, m = tables._adaptive(right, 2, settled)
    assert c.tolist() == [2, 0, 3, 1]
    assert m.tolist() == [2, 2, 4, 2]


def test_authors_rule():
    c1 = np.array([5, 4, 1, 1, 3])
    c0 = np.array([0, 0, 0, 0, 3])
    jitter = np.array([0.5, 0.5, 0.05, 0.5, 0.5])
    kept = tables.authors_rule(c1, c0, 5, jitter, 3)
    assert kept.tolist() == [False, True, True, False, False]


@pytest.mark.proof
def test_the_whole_at_a_toy_size(tmp_path, monkeypatch):
    """One world of 20, measured once, then read from disk; the tables hang together."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    args = ["--quick", "--n", "20", "--m", "16", "--seeds", "0"]
    args += ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")]
    assert selection_quality.main(args) == 0
    page = (tmp_path / "out" / "selection_quality.md").read_text()
    for title in selection_quality.KEYS:
        if title != "transfer":
            assert f"## {title.capitalize()}" in page
    rows = pq.read_table(tmp_path / "out" / "quality_selections.parquet").to_pylist()
    assert {r["seed"] for r in rows} == {0}
    for r in rows:
        assert r["kept"] <= 2 or r["selection"].startswith("rule paper")
        assert r["times"] == pytest.approx(r["share"] / r["pool"])
    assert selection_quality.shlex.join(args) in page
    chance = [r for r in rows if r["selection"] == "random" and r["pool"]]
    assert chance and all(abs(r["times"] - 1) < 0.5 for r in chance)
    drawn = pq.read_table(tmp_path / "out" / "quality_adaptive.parquet").to_pylist()
    whole = [r for r in drawn if r["look"] == "plain 16"]
    assert whole and all(r["same_reason"] == 1 and r["saved"] == 0 for r in whole)
    fresh = pq.read_table(tmp_path / "out" / "quality_confirm.parquet").to_pylist()
    assert [(r["seed"], r["evidence"]) for r in fresh] == [
        (10, name) for name in collect.FRESH_PLAN
    ]
    assert all(0 <= r["saved"] < 1 for r in drawn)
    assert os.path.getsize(tmp_path / "out" / "quality_selections.png") > 1000

    def refuse(folder):
        raise AssertionError("measured twice")

    monkeypatch.setattr(selection_quality, "load_demo_model", refuse)
    assert selection_quality.main(args) == 0
    assert (tmp_path / "out" / "selection_quality.md").read_text() == page


def test_reliability_by_hand():
    p1, p0 = np.array([0.5, 0.5, 1.0, 0.0, 0.25]), np.array([0.25, 0.5, 0.0, 0.0, 0.0])
    truth = metrics.teaches(p1, p0, 2)
    assert truth.tolist() == [0.5, 0.0, 0.0, 0.0, 0.375]
    said = np.array([0.5, 0.55, 0.0, 1.0, np.nan])
    whole, *rows = metrics.reliability(said, truth, 2)
    assert [(r["bin"], r["samples"]) for r in rows] == [("0.0", 1), ("0.5", 3)]
    assert whole["samples"] == 4 and whole["truth"] == 0.125
    # (0 + 0.55^2 + 0 + 1) / 4; a perfect forecast's part is 0.25 / 4
    assert whole["excess"] == pytest.approx(1.3025 / 4, abs=1e-4)
    assert whole["brier"] == pytest.approx(1.5525 / 4, abs=1e-4)
    assert rows[0]["excess"] == 0 and rows[1]["said"] == pytest.approx(2.05 / 3, abs=1e-4)
    # bins of 1 and 3 samples say 0 and 2.05 / 3 of 0 and 0.5 / 3; the truths vary by 3 / 64
    assert whole["miscalibration"] == pytest.approx(0.75 * (1.55 / 3) ** 2, abs=1e-4)
    parts = 0.25 * 0.125**2 + 0.75 * (0.5 / 3 - 0.125) ** 2
    assert whole["resolution"] == pytest.approx(parts, abs=1e-4)
    assert whole["constant"] == pytest.approx(3 / 64, abs=1e-4)
    assert "resolution" not in rows[0]


def decision(kept, share=0.19):
    """Rows of a cascade table: {(model, world): cognitive by rollouts, cascade, logits};
    the bill is ``share``, a mean that the first world exceeds by 0.02."""
    names, rows = ("rollouts", "cascade", "logits"), []
    for i, ((model, k), counts) in enumerate(kept.items()):
        for name, c in zip(names, counts, strict=True):
            bill = share + (0.02 if i == 0 else -0.02 / (len(kept) - 1))
            rows.append(
                {"model": model, "seed": cascade.SEEDS[k], "evidence": name}
                | {"cognitive": c, "kept": 55, "kept_cognitive": c / 55, "share": bill}
            )
    return rows


@pytest.mark.parametrize(
    ("changed", "share", "wanted"),
    [
        ({}, 0.179, (True, True, True, True, True, True)),
        ({}, 0.19, (True, True, True, False, True, True)),
        ({}, 0.1999, (True, True, True, False, True, True)),
        ({}, 0.2001, (True, True, True, False, False, True)),
        ({("a", 1): (50, 49, 40)}, 0.17, (True, True, True, True, True, False)),  # a tie
        ({("a", 1): (50, 48, 40)}, 0.17, (False, False, True, True, True, False)),
        (
            {("a", 0): (50, 49, 4), ("a", 1): (50, 50, 4)},
            0.17,
            (True, False, True, True, True, False),
        ),
        ({("b", 1): (40, 45, 45)}, 0.17, (True, True, False, True, True, True)),
    ],
)
def test_the_default_is_decided_as_planned(changed, share, wanted):
    kept = {("a", 0): (50, 51, 40), ("a", 1): (50, 53, 40), ("b", 1): (50, 50, 49)}
    rows = decision(kept | changed, share)
    found = cascade.verdict(rows)
    assert dataclasses.astuple(found) == wanted
    assert found.default == all((*wanted[:3], wanted[4]))
    page = " ".join(" ".join(cascade.decision_lines(rows)).split())
    assert ("the default is the cascade" in page) == found.default
    assert ("the default stays `logits`" in page) != found.default


def test_another_model_or_world_never_meets_old_scores(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text(name)
    size = collect.Size(n=2, m=2, m_other=1)
    a = collect.folder(tmp_path, tmp_path / "a", size, 0)
    other = [
        collect.folder(tmp_path, tmp_path / "b", size, 0),
        collect.folder(tmp_path, tmp_path / "a", size, 1),
        collect.folder(tmp_path, tmp_path / "a", collect.Size(3, 2, 1), 0),
    ]
    assert a not in other and len(set(other)) == 3


def test_authors_script():
    c1 = np.array([5, 4, 3, 3, 2, 4])
    c0 = np.array([0, 0, 1, 2, 0, 3])
    jitter = np.linspace(0.1, 0.6, 6)
    kept = tables.authors_script(c1, c0, 5, jitter, 10)
    assert kept.tolist() == [False, True, True, False, False, False]
    assert tables.authors_script(c1, c0, 5, jitter, 1).tolist()[2]
