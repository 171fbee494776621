"""Choosing from the rows of a cascade, and how they are shown."""

from __future__ import annotations

import numpy as np
import pytest
from cascade_inputs import KNOWN

import rap
from rap.scores.evidence import read_evidence
from rap.scores.scores import Scores
from rap.scores.table import table_from_rows
from rap.selection.choosing import choose


def table_of(rows: list[dict]) -> Scores:
    base = {"status": "scored", "evidence": "cascade"}
    made = [base | {"id": f"s{i}", "index": i} | row for i, row in enumerate(rows)]
    return Scores(table_from_rows(made), {}, None, None)


def by_answer(p1: float, p0: float) -> dict:
    return {"p_answer1": p1, "p_answer0": p0, "decided_by": "answer"} | KNOWN


def by_text(c1: int, m1: int, c0: int, m0: int, p1: float = 0.5, p0: float = 0.1) -> dict:
    counts = {"c1": c1, "m1": m1, "c0": c0, "m0": m0, "log_psi": -3.0}
    return {"p_answer1": p1, "p_answer0": p0, "decided_by": "text"} | counts | KNOWN


def test_one_order_for_all_stages():
    rows = [
        by_answer(0.5, 0.1),
        by_text(2, 4, 0, 2),
        by_text(4, 4, 0, 0) | {"log_psi": None, "decided_by": "image"},
        by_text(1, 4, 3, 3),  # the image hurts
        by_answer(0.9, 0.1),
        by_answer(0.1, 0.9),  # hurts, by p(answer)
        by_text(1, 5, 0, 1),
        by_text(0, 4, 0, 0) | {"log_psi": None, "decided_by": "image"},
    ]
    scores = table_of(rows)
    measured = read_evidence(scores.table).measured
    assert np.array_equal(measured.learnable, measured.posterior.keep)
    order = np.argsort(-measured.learnable).tolist()
    assert order[0] == 1 and order.index(6) < order.index(7)
    assert set(order[:3]) <= {0, 1, 2, 4, 6} and set(order[-2:]) <= {3, 5, 7}
    selection = choose(scores, budget=0.5)
    reasons = dict(zip(range(8), selection.table["reason"].to_pylist(), strict=True))
    assert reasons[3] == reasons[5] == "dropped_image_hurts"
    assert reasons[7] == "dropped_unsolved"
    kept = selection.indices.tolist()
    assert 1 in kept and len(kept) == 4 and set(kept) <= {0, 1, 4, 6}
    for name in ("posterior1", "posterior0", "keep_probability"):
        values = selection.table[name].to_pylist()
        assert all(0 < v < 1 for v in values), name
    d = selection.table["D"].to_pylist()
    means = [selection.table[n].to_pylist() for n in ("posterior1", "posterior0")]
    assert d == [a - b for a, b in zip(*means, strict=True)]


def test_what_p_answer_says_is_learned_from_the_completions():
    """Two kinds that p(answer) cannot tell apart, the divergence can: one is always right
    after reasoning, with the image and without, the other sometimes, with it."""
    rows = []
    for i in range(60):
        always, asked = i % 2 == 0, i < 40
        row = by_answer(0.15, 0.15) | {"js": 0.001 if always else 0.1}
        if asked:
            counts = (2, 2, 1, 1) if always else (i // 2 % 2, 2, 0, 1)
            row |= by_text(*counts, 0.15, 0.15) | {"js": row["js"]}
        rows.append(row)
    measured = read_evidence(table_of(rows).table).measured
    keep = measured.posterior.keep[40:]
    assert keep[1::2].min() > 2 * keep[0::2].max()
    assert measured.posterior.mean1[40:][0::2].min() > 0.8


def test_the_pilot_stands_for_the_pool_where_psi_is_calibrated():
    """Most of what is read is attention-biased, most of the pool is not."""
    biased = [by_text(2, 4, 0, 2) | {"log_psi": -0.2 + 0.001 * i} for i in range(40)]
    usual = [by_text(2, 4, 0, 2) | {"log_psi": -2.0 + 0.02 * i} for i in range(20)]
    pilot = [
        by_text(2, 2, 1, 1) | {"decided_by": "pilot", "log_psi": -2.0 + 0.02 * i}
        for i in range(20)
    ]
    rest = [by_answer(0.99, 0.99)] * 200
    selection = choose(table_of(biased + usual + pilot + rest), budget=1.0, biased="drop")
    reasons = selection.table["reason"].to_pylist()
    assert reasons[:40] == ["dropped_attention_biased"] * 40
    assert "dropped_attention_biased" not in reasons[40:]
    plain = choose(table_of(biased + usual + rest), budget=1.0, biased="drop")
    plain = plain.table["reason"].to_pylist()
    assert "dropped_attention_biased" not in plain  # nothing says that they are unusual


def test_more_evidence_of_a_mix_ranks_higher():
    scores = table_of([by_text(1, 2, 0, 0), by_text(2, 4, 0, 4), by_text(2, 4, 2, 4)])
    keep = choose(scores, budget=1.0).table["keep_probability"].to_pylist()
    assert keep[1] > keep[0] > keep[2]


def test_the_threshold_is_in_the_keep_probability():
    scores = table_of([by_text(3, 4, 0, 4)])
    keep = [
        choose(scores, budget=1.0, lambda_c=x).table["keep_probability"][0].as_py()
        for x in (0.0, 0.25, 0.5)
    ]
    assert keep[0] > keep[1] > keep[2] > 0


def test_rollouts_have_a_keep_probability_too():
    rows = [{"c1": 3, "m1": 5, "c0": 0, "m0": 5, "evidence": "rollouts"}]
    table = choose(table_of(rows), budget=1.0).table
    assert table["posterior1"].to_pylist() == pytest.approx([4 / 7])
    assert table["posterior0"].to_pylist() == pytest.approx([1 / 7])
    assert 0.8 < table["keep_probability"][0].as_py() < 1


def test_samples_that_no_attention_was_read_of_are_not_missing_a_psi():
    rows = [by_text(2, 4, 0, 2)] * 3 + [by_answer(0.6, 0.1), by_text(2, 4, 0, 1)]
    rows[4] = rows[4] | {"log_psi": None}  # mixed, and yet not read
    barred = choose(table_of(rows), budget=1.0, biased="drop").table["reason"].to_pylist()
    assert barred == ["kept_cognitive"] * 4 + ["quarantined_psi_missing"]
    reported = choose(table_of(rows), budget=1.0).table["reason"].to_pylist()
    assert reported == ["kept_cognitive"] * 5  # psi decides nothing


def test_a_small_pool_is_named():
    """64 samples hold their bill as a rule, fewer do not."""
    for n, said in ((3, True), (63, True), (64, False)):
        found = choose(table_of([by_text(2, 4, 0, 2)] * n), budget=0.5)
        assert any(f"cascade of {n} samples" in text for text in found.warnings) == said
    rows = [{"c1": 3, "m1": 5, "c0": 0, "m0": 5, "evidence": "rollouts"}]
    assert not any(
        "fewer than" in text for text in choose(table_of(rows), budget=1).warnings
    )


def test_summary_and_report_show_the_stages(tmp_path):
    rows = [by_answer(0.5, 0.1), by_text(2, 4, 0, 2), by_text(1, 4, 0, 1)]
    rows += [by_text(0, 4, 0, 0) | {"log_psi": None, "decided_by": "image"}]
    selection = choose(table_of(rows), budget=0.5)
    text = selection.summary()
    assert "decided by answer: 1 samples, 0 kept, 0 completions" in text
    assert "decided by image: 1 samples, 0 kept, 4 completions" in text
    assert "decided by text: 2 samples, 2 kept, 11 completions" in text
    mean = np.mean(selection.table["keep_probability"].to_numpy()[1:3])
    assert f"keep-probability of the kept samples: {mean:.2f} on average" in text
    page = selection.report(tmp_path / "page.html").read_text()
    assert "What each stage decided" in page and "as fitted to 3 samples" in page
    assert "<dt>decided by</dt><dd>text</dd>" in page
    selection.save(tmp_path / "selection")
    again = rap.load(tmp_path / "selection")
    assert again.table.equals(selection.table)
    plain = {"c1": 3, "m1": 5, "c0": 0, "m0": 5, "evidence": "rollouts"}
    page = choose(table_of([plain]), budget=1.0).report(tmp_path / "page.html").read_text()
    assert "What each stage decided" not in page
