"""What ``choose`` keeps and refuses, and the selection that it gives."""

from __future__ import annotations

import html
import json
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from selection_inputs import BAD, INF, NAN, answer, reasons, row, scores_of

from rap.config import ChooseConfig, ScoreConfig, preset_of
from rap.errors import RapConfigError, RapInputError, RapStoreError
from rap.scores.scores import Scores
from rap.scores.table import SCORE_SCHEMA
from rap.selection.choosing import choose
from rap.selection.selection import load

# ---------------------------------------------------------------- rules


def test_paper_rule_removes_trivial_and_brings_back_the_hardest() -> None:
    rows = [
        row(5, 5, 0, 5),  # 0 trivial
        row(4, 5, 1, 5),  # 1 D = 0.6
        row(3, 5, 1, 5),  # 2 D = 0.4, Diff = 0.4
        row(1, 5, 4, 5),  # 3 Diff = 0.8, D = -0.6
        row(1, 5, 1, 5),  # 4 Diff = 0.8, D = 0: before 3
        row(0, 5, 0, 5),  # 5 never solved
        row(1, 5, 0, 5, log_psi=0.0),  # 6 the hardest, but biased
        row(5, 5, 0, 5),  # 7 trivial
        row(5, 5, 5, 5),  # 8 needs no image
    ]
    for r in rows:
        r.setdefault("log_psi", -3.0)
    selection = choose(scores_of(rows), rule="paper")
    assert reasons(selection) == [
        "dropped_trivial",
        "kept_cognitive",
        "dropped_language_prior",
        "kept_replacement",
        "kept_replacement",
        "dropped_unsolved",
        "dropped_attention_biased",
        "dropped_trivial",
        "dropped_language_prior",
    ]
    found = selection.settings["found"]
    assert (found["trivial_removed"], found["replaced"], found["lambda_c"]) == (2, 2, 0.5)
    kept = choose(scores_of(rows), rule="paper", replace=False)
    assert kept.ids == ["s0", "s1", "s7"]


def test_a_replacement_is_never_a_sample_kept_already() -> None:
    rows = [row(5, 5, 0, 5), row(3, 5, 0, 5), row(4, 5, 3, 5)]
    selection = choose(scores_of(rows), rule="paper")
    assert reasons(selection) == ["dropped_trivial", "kept_cognitive", "kept_replacement"]


def test_what_the_image_hurts_replaces_only_where_asked() -> None:
    rows = [
        row(5, 5, 0, 5),  # 0 trivial
        row(1, 5, 2, 7),  # 1 D = -3/35: the hardest, but hurt
        row(2, 5, 2, 5),  # 2 D = 0
        row(5, 5, 5, 5),  # 3
        row(5, 5, 5, 5),  # 4
    ]
    scores = scores_of(rows)
    default = choose(scores, budget=0.2)
    assert default.ids == ["s2"]
    assert reasons(default)[1] == "dropped_image_hurts"
    assert choose(scores, budget=0.2, readmit_hurt=True).ids == ["s1"]
    assert choose(scores, rule="paper").ids == ["s1"]
    assert choose(scores, rule="paper", readmit_hurt=False).ids == ["s2"]


def test_diagnostics_stand_at_the_exact_threshold() -> None:
    """1/3 has no float64: samples with exactly that D are not above it."""
    rows = [row(3, 3, 0, 3), *[row(c + 1, 3, c, 3) for c in (0, 1, 0)]]
    options = {"budget": 0.25, "order": "gain", "replace": False}
    selection = choose(scores_of(rows), **options)
    assert selection.settings["found"]["lambda_c_exact"] == "1/3"
    assert selection.diagnostics()["above"] == 1


def test_diagnostics_use_the_divergence_of_the_selection() -> None:
    rows = [{"status": "scored", "evidence": "logits"} for _ in range(4)]
    for i, r in enumerate(rows):
        r |= {"js": 0.01, "kl": float(i), "p_answer1": 0.5}
    selection = choose(scores_of(rows), budget=0.5, divergence="kl", order="gain")
    assert selection.diagnostics()["above"] == 2


def test_the_preset_is_the_whole_published_pipeline() -> None:
    config = ScoreConfig(**preset_of("paper", "score"))
    assert (config.evidence, config.m1, config.m0) == ("rollouts", 5, 5)
    assert (config.ace.normalise, config.ace.min_rows) == (False, 1)
    rows = [row(4, 5, 1, 5), row(3, 5, 1, 5)]
    selection = choose(scores_of(rows), preset="paper")
    assert selection.settings["choose"] == ChooseConfig(rule="paper").as_json()
    assert selection.ids == ["s0"]
    assert choose(scores_of(rows), preset="paper", lambda_c=0.3).ids == ["s0", "s1"]
    with pytest.warns(UserWarning, match="nothing of it is left .*'budget' replaces 'pap"):
        replaced = choose(scores_of(rows), preset="paper", rule="budget")
    assert replaced.ids == choose(scores_of(rows), rule="budget").ids
    with pytest.raises(RapConfigError, match="preset = 'best': expected one of"):
        choose(scores_of(rows), preset="best")


# ---------------------------------------------------------------- faults


@pytest.mark.parametrize("column", ["log_psi", "p_answer1", "kl", "attention_entropy"])
@pytest.mark.parametrize("value", [NAN, INF])
def test_fault_21_nothing_broken_is_ever_kept(column: str, value: float) -> None:
    good = answer(0.9, 0.1, log_psi=-2.0)
    scores = scores_of([good | {column: value}, good, answer(1.0, 0.0, log_psi=-2.0)])
    for options in ({"budget": 1}, {"rule": "paper"}, {"rule": "paper", "lambda_c": -1}):
        selection = choose(scores, **options)
        assert reasons(selection)[0] == "quarantined_nonfinite"
        assert "s0" not in selection.ids


def test_fault_23_short_and_empty_responses() -> None:
    empty = {"status": "quarantined", "stage": "model", "code": "empty_response"}
    short = row(3, 5, 0, 5, log_psi=-INF)
    selection = choose(scores_of([empty, short]), rule="paper")
    assert reasons(selection) == ["quarantined_empty_response", "kept_cognitive"]
    assert selection.settings["found"]["psi_too_short"] == 1


def test_fault_25_few_rollouts_are_counted_not_guessed() -> None:
    rows = [row(2, 2, 0, 0), row(2, 3, 0, 7), row(0, 0, 0, 0)]
    assert reasons(choose(scores_of(rows), rule="paper")) == [
        "quarantined_few_rollouts",
        "kept_cognitive",
        "quarantined_few_rollouts",
    ]


def test_fault_18_nothing_to_choose_from() -> None:
    with pytest.raises(RapInputError, match="no rows"):
        choose(scores_of([]))
    with pytest.raises(RapInputError, match="all 2 samples .*1 image_missing, 1 few_roll"):
        choose(scores_of([BAD, row(1, 1, 0, 0)]))
    selection = choose(scores_of([row(3, 5, 0, 5)]))
    assert len(selection) == 0
    assert any("allows no sample" in w for w in selection.warnings)


def test_fault_43_equal_scores_go_by_index() -> None:
    selection = choose(scores_of([row(3, 5, 1, 5)] * 50), budget=0.1, order="gain")
    assert selection.indices.tolist() == [0, 1, 2, 3, 4]
    assert selection.settings["found"]["at_lambda_c"] == [5, 50]


def test_fault_43_all_below_the_threshold() -> None:
    for options in ({"budget": 0.5}, {"rule": "paper"}):
        selection = choose(scores_of([row(1, 5, 1, 5)] * 10), **options)
        assert len(selection) == 0
        assert len(selection.warnings) == 1
        assert selection.counts()["dropped_language_prior"] == 10


def test_fault_43_fewer_candidates_than_asked() -> None:
    rows = [row(4, 5, 0, 5)] * 3 + [row(1, 5, 1, 5)] * 7
    selection = choose(scores_of(rows), budget=0.9)
    assert len(selection) == 3
    assert any("short result: 3 of 9" in w for w in selection.warnings)


@pytest.mark.parametrize(
    "options",
    [
        {"budget": 0},
        {"budget": 1.01},
        {"budget": -0.1},
        {"budget": NAN},
        {"budget": "0.1"},
        {"lambda_c": NAN},
        {"lambda_c": 2},
        {"lambda_a": NAN},
        {"lambda_a": 0},
        {"rule": "best"},
        {"rule": "paper", "budget": 0.1},
        {"trivial": 1.0},
        {"readmit_hurt": 1},
        {"order": "hardest"},
        {"rule": "paper", "order": "gain"},
        {"divergence": "wasserstein"},
    ],
)
def test_fault_43_nonsense_is_refused(options: dict) -> None:
    with pytest.raises(RapConfigError):
        choose(scores_of([row(3, 5, 1, 5)]), **options)


def test_fault_44_an_empty_pool_replaces_none() -> None:
    rows = [row(5, 5, 0, 5)] * 4 + [row(0, 5, 0, 5)] * 6
    for options, said in (
        ({"budget": 0.3}, "4 trivial samples left out, 0 of the kept ones in their place"),
        ({"rule": "paper"}, "0 of 4 trivial samples replaced"),
    ):
        selection = choose(scores_of(rows), **options)
        assert len(selection) == 0
        assert any("0 of 4 trivial" in w for w in selection.warnings)
        assert said in selection.summary()
        assert selection.counts()["dropped_trivial"] == 4


# ---------------------------------------------------------------- the score table


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": "s1"}, "id 's1' appears twice"),
        ({"index": 1}, "index appears twice"),
        ({"c1": 6}, "'s0' has c1 = 6 of m1 = 5"),
        ({"c0": -1}, "'s0' has c0 = -1"),
        ({"id": None}, "id is null"),
        ({"status": None}, "status is null"),
    ],
)
def test_impossible_tables_are_refused(change: dict, message: str) -> None:
    with pytest.raises(RapInputError, match=message):
        scores_of([row(3, 5, 1, 5) | change, row(3, 5, 1, 5)])


def test_tables_that_choose_cannot_compare() -> None:
    table = scores_of([row(3, 5, 1, 5)]).table
    with pytest.raises(RapInputError, match="missing or twice: c1"):
        Scores(table.drop_columns(["c1"]))
    with pytest.raises(RapInputError, match="score table"):
        Scores(table.set_column(0, "id", pa.array([[1]])))
    with pytest.raises(RapInputError, match="mixes evidence"):
        choose(scores_of([row(3, 5, 1, 5), answer(0.5, 0.1)]))
    with pytest.raises(RapInputError, match="evidence None is none of"):
        choose(scores_of([row(3, 5, 1, 5) | {"evidence": None}]))
    with pytest.raises(RapInputError, match="status is neither"):
        choose(scores_of([row(3, 5, 1, 5) | {"status": "done"}]))


# ---------------------------------------------------------------- selection


def mixed_scores(n: int = 300, seed: int = 0) -> Scores:
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        m1, m0 = (int(v) for v in rng.integers(1, 9, 2))
        c1, c0 = (
            int(rng.binomial(m1, rng.random())),
            int(rng.binomial(m0, rng.random() / 2)),
        )
        psi = float(rng.normal(-2, 0.5)) if i % 50 else 3.0
        rows.append(row(c1, m1, c0, m0, log_psi=psi, seconds=float(rng.random())))
    rows[7] = dict(BAD)
    return scores_of(rows, fingerprint={"model": "m"})


def test_compare() -> None:
    scores = mixed_scores()
    small, large = choose(scores, budget=0.05), choose(scores, rule="paper")
    comparison = large.compare(small)
    both = set(small.ids) & set(large.ids)
    assert comparison.overlap == len(both)
    assert comparison.jaccard == len(both) / len(set(small.ids) | set(large.ids))
    assert comparison.gained == tuple(i for i in large.ids if i not in both)
    assert comparison.lost == tuple(i for i in small.ids if i not in both)
    pairs = list(zip(reasons(small), reasons(large), strict=True))
    moved = {p: pairs.count(p) for p in set(pairs) if p[0] != p[1]}
    assert comparison.moved == moved
    assert list(comparison.moved.values()) == sorted(moved.values(), reverse=True)
    assert "Jaccard" in str(comparison) and "->" in str(comparison)
    same = small.compare(small)
    assert (same.jaccard, same.moved, same.gained, same.lost) == (1.0, {}, (), ())


def test_compare_matches_ids_not_rows() -> None:
    scores = mixed_scores(100)
    part = Scores(scores.table.slice(40))
    whole, half = choose(scores, rule="paper"), choose(part, rule="paper")
    comparison = half.compare(whole)
    assert comparison.unknown == (0, 40)
    assert comparison.overlap == len(set(whole.ids) & set(half.ids))
    assert set(comparison.lost) == set(whole.ids) - set(half.ids)
    empty = choose(scores, budget=0.001)
    assert empty.compare(empty).jaccard == 1.0


def test_save_and_load(tmp_path: Path) -> None:
    scores = mixed_scores()
    selection = choose(scores, budget=0.1)
    selection.save(tmp_path / "new" / "a")
    # another clock, other chunks, other row order in memory: the same bytes
    position = SCORE_SCHEMA.get_field_index("seconds")
    table = scores.table.set_column(
        position, SCORE_SCHEMA.field(position), pa.nulls(len(scores), pa.float32())
    )
    table = pa.concat_tables([table.slice(150), table.slice(0, 150)])
    choose(Scores(table, scores.meta), budget=0.1).save(tmp_path / "b")
    names = ["indices.npy", "selection.parquet", "settings.json"]
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == names
    for name in names:
        one, two = tmp_path / "new" / "a" / name, tmp_path / "b" / name
        assert one.read_bytes() == two.read_bytes()

    again = load(tmp_path / "b")
    assert again.ids == selection.ids
    assert again.counts() == selection.counts()
    assert again.settings == json.loads(json.dumps(selection.settings))
    assert again.summary() == selection.summary()
    assert again.diagnostics() == selection.diagnostics()
    assert np.array_equal(np.load(tmp_path / "b" / "indices.npy"), selection.indices)
    assert again.settings["scores"] == {"model": "m"}
    assert again.dataset is None

    with pytest.raises(RapStoreError, match="cannot be read"):
        load(tmp_path / "absent")
    scores.save(tmp_path / "b" / "selection.parquet")
    with pytest.raises(RapStoreError, match="holds 'scores', not selection"):
        load(tmp_path / "b")
    (tmp_path / "file").write_text("")
    with pytest.raises(RapStoreError, match="cannot be made"):
        selection.save(tmp_path / "file" / "x")


def test_scores_save_and_load(tmp_path: Path) -> None:
    scores = mixed_scores()
    scores.save(tmp_path / "scores.parquet")
    again = Scores.load(tmp_path / "scores.parquet")
    assert again.table.equals(scores.table)
    assert again.meta == scores.meta
    with pytest.raises(RapStoreError):
        Scores.load(tmp_path / "absent.parquet")


def test_dataset_rows_keep_their_columns() -> None:
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict({"n": list(range(300)), "odd": ["x"] * 300})
    scores = mixed_scores()
    selection = choose(Scores(scores.table, scores.meta, data), budget=0.1)
    assert selection.dataset["n"] == selection.indices.tolist()
    assert selection.dataset.column_names == ["n", "odd"]

    class SampleSet:
        def __len__(self) -> int:
            return 300

        def take(self, indices: np.ndarray) -> list[int]:
            return [int(i) for i in indices]

    selection = choose(Scores(scores.table, scores.meta, SampleSet()), budget=0.1)
    assert selection.dataset == selection.indices.tolist()


def test_fault_45_shown_in_a_notebook_escaped() -> None:
    evil = "<script>alert(1)</script>"
    bad = BAD | {"code": evil}
    shown = choose(scores_of([bad, row(3, 5, 0, 5)]), rule="paper")._repr_html_()
    assert evil not in shown
    assert html.escape("quarantined_" + evil) in shown
    assert "1 of 2 samples kept" in shown


def test_plot() -> None:
    pytest.importorskip("matplotlib")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of matplotlib's own imports
        figure = choose(mixed_scores()).plot()
    titles = [axes.get_title() for axes in figure.axes]
    assert len(titles) == 3 and all(titles)
    lines = [len(axes.lines) for axes in figure.axes]
    assert lines == [1, 0, 1]


def test_a_million_samples() -> None:
    """Nothing loops over rows in Python: a loop of one microsecond a row would fail.

    The figure promised (under a second) is in the benchmarks; this bound is loose, so
    that a busy machine does not fail it.
    """
    n, rng = 10**6, np.random.default_rng(0)
    m = rng.integers(1, 9, (2, n))
    c = rng.binomial(m, rng.random((2, n)))
    columns = {
        "id": pa.array(np.arange(n)).cast(pa.string()),
        "index": pa.array(np.arange(n)),
        "status": pa.array(["scored"] * n),
        "evidence": pa.array(["rollouts"] * n),
        "log_psi": pa.array(rng.normal(-2, 1, n).astype(np.float32)),
    }
    for i, arm in enumerate("10"):
        columns |= {f"c{arm}": c[i].astype(np.int16), f"m{arm}": m[i].astype(np.int16)}
    full = {f.name: columns.get(f.name, pa.nulls(n, f.type)) for f in SCORE_SCHEMA}
    scores = Scores(pa.table(full, schema=SCORE_SCHEMA))
    from time import process_time

    start = process_time()
    selection = choose(scores)
    assert process_time() - start < 3
    assert len(selection) == 90_000
