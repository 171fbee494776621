"""benchmarks/training.py without its trainings: what is run, what an arm picks, what a
report says of made-up results."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks import training, training_arms, training_plan, training_report
from benchmarks.training_arms import ARMS, SECOND
from rap.scores.scores import Scores

N = 200


@pytest.fixture(scope="module")
def scores():
    """Row i passes i % 6 of 5 with the image (5: always) and (i // 6) % 3 without."""
    rows = []
    for i in range(N):
        for arm, passed in ((True, i % 6), (False, (i // 6) % 3)):
            rows += [(f"s{i}", arm, k < passed) for k in range(5)]
    names = ("id", "with_image", "correct")
    table = pa.table(dict(zip(names, zip(*rows, strict=True), strict=True)))
    made = Scores.from_rollouts(table)
    log_psi = np.where(np.arange(N) % 10 == 0, 5.0, np.linspace(-3, -2, N))
    at = made.table.schema.get_field_index("log_psi")
    column = pa.array(log_psi, pa.float32())
    return dataclasses.replace(made, table=made.table.set_column(at, "log_psi", column))


def test_the_whole_table_is_as_the_issue_asks():
    found = training_plan.runs(training_plan.Plan())
    assert len({r.key for r in found}) == len(found)
    grpo = [r for r in found if r.algorithm == "GRPO"]
    seeds = {
        (arm, budget): len([r for r in grpo if (r.arm, r.budget) == (arm, budget)])
        for arm, budget in {(r.arm, r.budget) for r in grpo}
    }
    assert {arm for arm, _ in seeds} == set(ARMS)
    for (arm, _), count in seeds.items():
        assert count == (5 if arm in ("full", "random", "rap", "rap_logits") else 3)
    budgets = {b for arm, b in seeds if arm == "band"}
    assert budgets == {0.05, 0.093, 0.2}
    rloo = {(r.arm, r.budget) for r in found if r.algorithm == "RLOO"}
    assert rloo == {("full", None), ("random", 0.093), ("rap", 0.093)}
    # what is wanted most comes first
    assert {r.arm for r in found[:20]} == {"full", "random", "rap", "rap_logits"}
    assert [r.seed for r in found[:5]] == [0, 0, 0, 0, 1]
    assert {r.budget for r in found[:20]} == {None, 0.093} and found[-1].budget != 0.093


@pytest.mark.parametrize("arm", [name for name, a in ARMS.items() if a.pick])
def test_arms_pick_the_size_of_the_budget(scores, arm):
    rows = ARMS[arm].pick(scores, 0.1, 3)
    assert len(rows) == len(set(rows)) == 20
    assert 0 <= min(rows) and max(rows) < N
    again = ARMS[arm].pick(scores, 0.1, 3)
    assert list(rows) == list(again)
    p = np.arange(N) % 6 / 5
    d = p - (np.arange(N) // 6) % 3 / 5
    captured = np.arange(N) % 10 == 0
    if arm == "band":
        assert {0.2, 0.4, 0.6, 0.8} == set(p[rows])
    if arm == "variance":
        assert set(p[rows]) <= {0.4, 0.6}
    if arm == "cde":
        assert sorted(d[rows])[0] == pytest.approx(sorted(d)[-20])
    if arm in ("ace", "cde_ace", "rap"):
        assert not captured[rows].any()
    if arm == "public":
        assert p[rows].max() < 1 and np.sum(np.isclose(p[rows], 0.2)) == 3
    if arm == "rap":
        assert p[rows].max() < 1


def test_arms_that_draw_follow_the_seed(scores):
    for arm in ("random", "band", "ace", "variance", "public"):
        first, second = (set(ARMS[arm].pick(scores, 0.1, seed)) for seed in (0, 1))
        assert first != second, arm


def test_a_work_folder_is_of_one_plan_and_one_start(tmp_path, monkeypatch):
    plan = dataclasses.replace(training_plan.QUICK, main_seeds=1)
    training.open_work(plan, tmp_path)
    plan = dataclasses.replace(plan, main_seeds=5)
    training.open_work(plan, tmp_path)  # more runs: what is done stays
    assert training_plan.read_plan(tmp_path) == plan
    with pytest.raises(SystemExit, match="made with another steps: name another --work"):
        training.open_work(dataclasses.replace(plan, steps=7), tmp_path)
    monkeypatch.setattr(training, "start_of", lambda plan: "other weights")
    with pytest.raises(SystemExit, match="made with another start"):
        training.open_work(plan, tmp_path)


def made_up(run: training_plan.Run, accuracy: float, blind: float) -> dict:
    """A run whose accuracy rises from 0.5 in two measurements."""

    def groups(value):
        right = round(100 * value)
        return {"image/bar": [right, 100], "image/sum": [right, 100], "mixed/x": [5, 10]}

    points = [
        {
            "step": step,
            "seconds": 10.0 * step,
            "completions": 64 * step,
            "sighted": groups(0.5 + (accuracy - 0.5) * part),
            "blind": groups(blind),
        }
        for step, part in ((0, 0.0), (10, 0.5), (20, 1.0))
    ]
    about = {"prompts": 30, "causes": {"cognitive": 30}, "points": points}
    return dataclasses.asdict(run) | about


COST = {"seconds": 50.0, "rollouts": 1000, "samples": 100, "image_share": 0.6}


def report(tmp_path, plan, accuracy):
    """The report of made-up runs; ``accuracy(run) -> (sighted, blind)``."""
    (tmp_path / "runs").mkdir()
    for name in training_plan.scorings(plan):
        (tmp_path / f"{name}.json").write_text(json.dumps(COST))
    for run in training_plan.runs(plan):
        path = tmp_path / "runs" / f"{run.key}.json"
        path.write_text(json.dumps(made_up(run, *accuracy(run))))
    assert training.pending(plan, tmp_path) == []
    parquet, text, png = training_report.write_report(plan, tmp_path, tmp_path / "results")
    assert png.read_bytes()[:4] == b"\x89PNG"
    return pq.read_table(parquet), text.read_text()


PLAN = dataclasses.replace(
    training_plan.QUICK,
    main_seeds=3,
    other_seeds=3,
    arms=("full", "random", "variance", "rap"),
)


def test_report_bills_the_selection_and_pairs_by_seed(tmp_path):
    pytest.importorskip("matplotlib")
    values = {"full": 0.7, "random": 0.6, "variance": 0.65, "rap": 0.8}

    def accuracy(run):
        noise = 0.01 * run.seed  # shared by the seed: gone from the differences
        return values[run.arm] + noise, (0.1 if run.arm == "rap" else 0.2) + noise

    table, text = report(tmp_path, PLAN, accuracy)
    assert table.num_rows == 4 * 3 * 3
    rap = table.filter(
        (pa.compute.field("arm") == "rap") & (pa.compute.field("step") == 20)
    )
    assert set(rap["total_seconds"].to_pylist()) == {200 + 50}
    assert set(rap["total_completions"].to_pylist()) == {64 * 20 + 1000}
    lines = text[: text.index("## Goals")].splitlines()
    (row,) = [line for line in lines if line.startswith("| RAP | 9.3 %")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[4] == "81.0 ± 2.5" and cells[5] == "80.0 to 82.0"
    assert cells[8] == "+10.0 ± 0.0" and cells[9] == "+20.0 ± 0.0"
    assert cells[10] == "-10.0 ± 0.0"
    assert cells[13:] == ["20", "250", "2280"]  # all data's 0.71, with the scoring billed
    (row,) = [line for line in lines if line.startswith("| p (1 - p)")]
    assert "| 200 | 230 | never |" in row  # 60 % of the scoring: no blind completions
    assert "excludes 0: +20.0 ± 0.0 points: reached" in text
    again = "(seeds drawn again: -25% to -25%)"
    assert f"250 against 200, -25% less {again}: missed" in text


def test_report_says_what_is_missed(tmp_path):
    pytest.importorskip("matplotlib")

    def accuracy(run):
        wrong = {"rap": 0.55}.get(run.arm, 0.6)
        return wrong + 0.02 * (run.seed if run.arm == "rap" else -run.seed), 0.2

    _, text = report(tmp_path, PLAN, accuracy)
    goals = text[text.index("## Goals") :].splitlines()[2:7]
    assert len(goals) == 5 and all("missed" in line for line in goals)


def test_saving_draws_the_seeds_again():
    def rows(*values):
        return [
            {"step": 10 * i, "cost": 10.0 * i, "image_sighted": value}
            for i, value in enumerate(values)
        ]

    full = {seed: rows(0.1, 0.2, 0.3) for seed in range(4)}
    ours = {seed: rows(0.1, 0.5, 0.5) for seed in range(4)}
    assert training_report.saving(ours, full, "cost") == (0.5, 0.5)
    ours[3] = rows(0.1, 0.1, 0.1)  # two of four drawn seeds must be others: 5 % are not
    assert training_report.saving(ours, full, "cost") == (-np.inf, 0.5)


def test_interval_is_students():
    mean, half = training_report.interval([1.0, 2.0, 3.0])
    assert mean == 2 and half == pytest.approx(4.303 / np.sqrt(3))
    assert training_report.interval([4.0]) == (4.0, None)


def test_drive_stops_in_time_and_goes_on(tmp_path, monkeypatch):
    """With pieces that only leave their file."""
    import sys

    plan = dataclasses.replace(PLAN, main_seeds=1, other_seeds=1)
    training.open_work(plan, tmp_path)
    code = (
        "import pathlib, sys; key, work = sys.argv[1], pathlib.Path(sys.argv[2]);"
        "scores = key.startswith('scores');"
        "p = work / (f'{key}.json' if scores else f'runs/{key}.json');"
        "p.parent.mkdir(exist_ok=True); p.write_text('{}')"
    )
    started = []

    def start(key, work):
        started.append(key)
        import subprocess

        return subprocess.Popen([sys.executable, "-c", code, key, work])

    monkeypatch.setattr(training, "_start", start)
    said = []

    def echo(text, **_):
        said.append(text)

    assert not training.drive(plan, tmp_path, jobs=2, minutes=0, echo=echo)
    assert started == []
    assert training.drive(plan, tmp_path, jobs=2, minutes=5, echo=echo)
    assert started[0] == "scores-rollouts" and len(started) == len(set(started)) == 5
    assert len(said) == 5 and training.pending(plan, tmp_path) == []
    assert training.drive(plan, tmp_path, jobs=2, minutes=5, echo=echo)
    assert len(started) == 5


def test_the_authors_script_and_rule_learn_pick_their_kind(scores):
    p = np.arange(N) % 6 / 5
    d = p - (np.arange(N) // 6) % 3 / 5
    rows = SECOND["public_script"].pick(scores, 0.1, 3)
    assert set(p[rows]) <= {0.6, 0.8} and (d[rows] > 0.2 + 1e-9).all()
    rows = training_arms.learner(guard_hurt=0.1)(scores, 0.1, 0)
    assert len(rows) == 20 and ((p[rows] > 0) & (p[rows] < 1)).all()
    assert (d[rows] < 0).sum() == 2
    assert SECOND["rap_no_ace"].pick(scores, 0.3, 0).tolist() != (
        SECOND["rap"].pick(scores, 0.3, 0).tolist()
    )
