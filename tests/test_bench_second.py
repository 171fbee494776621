"""The second training table without its trainings: plan, arms, comparisons, report."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter

import numpy as np
import pytest

from benchmarks import (
    training,
    training_compare,
    training_explored,
    training_second,
    training_second_page,
    training_transfer,
)
from benchmarks.training_arms import SECOND
from benchmarks.training_compare import Test as Planned
from benchmarks.training_compare import (
    bootstrap,
    differences,
    holm,
    judge,
    mean_of,
    planned,
)
from benchmarks.training_explored import PAPER, REFILL
from benchmarks.training_second import Plan, Run, runs

PLAN = Plan()


def test_the_compared_arms_run_first_on_every_pool() -> None:
    found = runs(PLAN)
    assert len({r.key for r in found}) == len(found)
    first = found[: 3 * 7]
    assert {(r.arm, r.pool) for r in first} == {
        (arm, pool) for arm in training_second.COMPARED for pool in PLAN.pools
    }
    assert {r.seed for r in first} == {0}
    counted = Counter((r.arm, r.budget) for r in found)
    for arm in training_second.COMPARED:
        budget = None if SECOND[arm].pick is None else 0.093
        assert counted[arm, budget] == 15
    assert counted["learn_answer", 0.2] == 15
    assert counted["learn_answer_no_guard", 0.2] == counted["rap_no_ace", 0.093] == 9


def test_every_planned_comparison_is_run() -> None:
    keys = {(r.arm, r.budget) for r in runs(PLAN)}
    families = planned(PLAN)
    assert [len(tests) for tests in families.values()] == [10, 7, 7]
    for test in (t for tests in families.values() for t in tests):
        for arm in (test.ours, test.other):
            whole = SECOND[arm].pick is None
            assert (arm, None if whole else test.budget) in keys


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_a_run_without_training_is_read_back(tmp_path) -> None:
    training_second.open_work(training_second.QUICK, tmp_path)
    training_second.open_work(training_second.QUICK, tmp_path)
    assert training_second.read_plan(tmp_path) == training_second.QUICK
    with pytest.raises(SystemExit, match="made with another pools"):
        training_second.open_work(PLAN, tmp_path)


SIZES = {"image/bar": 40, "image/sum": 60, "mixed/x": 30, "mixed/y": 20}


def point(rng: np.random.Generator, sighted: float, mixed: float) -> dict:
    """A test in which questions are right by lot, image questions first."""
    share = {"image": sighted, "mixed": mixed}
    right = {g: rng.random(n) < share[g.partition("/")[0]] for g, n in SIZES.items()}
    digits = "".join(str(int(x)) for part in right.values() for x in part)
    groups = {g: [int(x.sum()), len(x)] for g, x in right.items()}
    return {
        "sighted": groups,
        "blind": groups,
        "answers": {"sighted": digits, "blind": digits},
    }


def made_up(run: Run, sighted: float, mixed: float, steps: int) -> dict:
    rng = np.random.default_rng([run.pool, run.seed, len(run.arm)])
    points = []
    for step in (0, steps // 2, steps):
        found = {"step": step, "seconds": 1.0 * step, "completions": 64 * step}
        found["validation"] = point(rng, 0.4 + (sighted - 0.4) * step / steps, mixed)
        points.append(found)
    points[-1]["test"] = point(rng, sighted, mixed)
    about = {"prompts": 18, "points": points, "wall": 1.0, "causes": {"x": 10, "y": 8}}
    return dataclasses.asdict(run) | about


ACCURACY = {"learn_cascade": (0.75, 0.9), "random": (0.5, 0.8)}


@pytest.fixture
def work(tmp_path):
    """Made-up runs of the whole plan: learn on the cascade is better than all others."""
    (tmp_path / "runs").mkdir()
    for key in training_second.scorings(PLAN):
        cost = {"seconds": 20.0, "rollouts": 3000, "samples": 2000, "image_share": 0.6}
        (tmp_path / f"{key}.json").write_text(json.dumps(cost))
    exam = point(np.random.default_rng(0), 0.4, 0.5)
    exam["blind"] = {"image/bar": [10, 40], "image/sum": [3, 60]}
    exam["sighted"] = exam["blind"] | {"mixed/x": [30, 30], "mixed/y": [5, 20]}
    (tmp_path / f"{training_second.UNTRAINED}.json").write_text(json.dumps(exam))
    for run in runs(PLAN):
        steps = PLAN.whole_steps if run.budget is None else PLAN.steps
        found = made_up(run, *ACCURACY.get(run.arm, (0.65, 0.85)), steps)
        if run.seed == 0:  # beside other work: the saving stays what it is
            found["points"] = [p | {"seconds": 2 * p["seconds"]} for p in found["points"]]
        (tmp_path / "runs" / f"{run.key}.json").write_text(json.dumps(found))
    return tmp_path


def test_the_report_of_made_up_runs(work, monkeypatch) -> None:
    monkeypatch.setattr(training_compare, "DRAWS", 500)  # p >= 1 / 501, ten tests
    assert training_second.pending(PLAN, work) == []
    text = training_second_page.write_report(PLAN, work, work / "results").read_text()
    lines = text.splitlines()
    first = [line for line in lines if line.startswith("| learn, cascade - random, equal")]
    assert first[0].endswith("holds |") and "| 15 |" in first[0]
    assert "## Planned: primary" in text and "## Arms" in text
    # 100 steps and 20 s of scoring for 150 steps; 6,400 and 3,000 completions for 9,600
    assert "| before training |  |  |  | 15.0 | 70.0 | 15.0 |" + "  |" * 5 in lines
    assert "| learn, cascade | 9.3 % |" + " 100, 20%, 2% |" * 4 in lines
    assert "| random, equal size | 9.3 % |" + " never |" * 4 in lines
    family = text.split("## By family")[1].splitlines()
    assert family[2] == "| arm | budget | bar | sum |"
    table = training_compare.table_of(list(training_second.finished(PLAN, work)), PLAN)
    own = table["learn_cascade", 0.093].values()
    bar, total = (
        100 * np.mean([a.right["sighted"][part].mean() for a in own])
        for part in (slice(0, 40), slice(40, 100))
    )
    wanted = f"| learn, cascade | 9.3 % | {bar:.1f} | {total:.1f} |"
    assert wanted in family
    row = next(line for line in lines if line.startswith("| learn, cascade | 9.3 %"))
    assert row.split(" | ")[-3:-1] == ["100", "120"]  # steps; training and scoring seconds
    assert row.endswith("9400 |")
    assert (
        "every compared arm has 5 of the 5 planned training seeds a\npool, or more" in text
    )
    kept = text.split("## What was selected, by planted cause")[1].splitlines()
    assert "| learn, cascade | 9.3 % | 10 | 8 |" in kept
    causes = text.split("## The mixed world by cause")[1].splitlines()
    assert causes[2] == "| arm | budget | x | y |"
    x, y = (
        100 * np.mean([a.right["sighted"][part].mean() for a in own])
        for part in (slice(100, 130), slice(130, 150))
    )
    assert f"| learn, cascade | 9.3 % | {x:.0f} | {y:.0f} |" in causes
    blind = text.split("by cause, without the picture")[1].splitlines()
    assert f"| learn, cascade | 9.3 % | {x:.0f} | {y:.0f} |" in blind  # made up alike
    stored = json.loads((work / "results" / "training_second.json").read_text())
    assert len(stored["runs"]) == len(runs(PLAN))
    assert (work / "results" / "training_second.png").stat().st_size > 10_000


def test_published_runs_are_taken_up_and_give_the_same_report(work, tmp_path) -> None:
    written = training_second_page.write_report(PLAN, work, tmp_path / "first")
    other, published = tmp_path / "other", written.with_suffix(".json")
    training_second.open_work(PLAN, other)
    kept = other / "runs" / f"{runs(PLAN)[0].key}.json"
    kept.parent.mkdir()
    kept.write_text((work / "runs" / kept.name).read_text())
    begun = kept.stat().st_mtime_ns
    assert training_second.take_up(published, PLAN, other) == len(runs(PLAN))
    assert kept.stat().st_mtime_ns == begun, "what is there stays"
    assert training_second.pending(PLAN, other) == []
    again = training_second_page.write_report(PLAN, other, tmp_path / "second")
    assert again.read_bytes() == written.read_bytes()
    assert again.with_suffix(".json").read_bytes() == published.read_bytes()
    one = training_second.Plan(pools=(PLAN.pools[0],))
    assert training_second.take_up(published, one, tmp_path / "third") == len(runs(one))


def test_refill_on_a_selection_is_compared_after_as_many_steps(work, monkeypatch) -> None:
    monkeypatch.setattr(training_compare, "DRAWS", 50)
    with pytest.raises(SystemExit, match="runs are missing"):
        training_explored.write_report(REFILL, PLAN, work, work)
    for path in (work / "runs").glob("*-all-*"):
        run = json.loads(path.read_text())
        run["points"].insert(2, run["points"][-1] | {"step": PLAN.steps, "completions": 7})
        path.write_text(json.dumps(run))
    for pool in PLAN.pools:
        run = REFILL.run(PLAN, pool, 0)
        found = made_up(run, 0.8, 0.9, PLAN.steps)
        (work / "runs" / f"{run.key}.json").write_text(json.dumps(found))
    lines = (
        training_explored.write_report(REFILL, PLAN, work, work).read_text().splitlines()
    )
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")][1:]
    assert [(row[0], row[1], row[2]) for row in rows] == [
        ("learn, cascade, DAPO refill", "100", "3"),
        ("learn, cascade", "100", "15"),
        ("all data, DAPO refill", "100", "15"),
        ("all data, DAPO refill", "150", "15"),
        ("all data", "100", "15"),
        ("all data", "150", "15"),
        ("random, equal size", "100", "15"),
    ]
    assert [row[-2:] for row in rows[:3]] == [
        ["6,400", "3,000"],
        ["6,400", "3,000"],
        ["7", "0"],
    ]
    assert rows[-1][5].startswith("+")  # above random
    assert len(json.loads((work / "training_refill.json").read_text())) == 3


def test_what_rule_paper_keeps_is_compared_and_published_runs_are_taken_up(
    work, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(training_compare, "DRAWS", 50)
    for path in (work / "runs").glob("*-all-*"):
        run = json.loads(path.read_text())
        run["points"].insert(2, run["points"][-1] | {"step": PLAN.steps})
        path.write_text(json.dumps(run))
    published = []
    for pool in PLAN.pools:
        run = PAPER.run(PLAN, pool, 0)
        assert run.key == f"paper-all-pool{pool}-0"
        published.append(made_up(run, 0.4, 0.5, PLAN.steps) | {"prompts": 500 + pool})
    (tmp_path / "published.json").write_text(json.dumps(published))
    training_explored.take_up(tmp_path / "published.json", work)
    training_explored.take_up(tmp_path / "missing.json", work)
    path = training_explored.write_report(PAPER, PLAN, work, tmp_path)
    assert path.name == "training_paper.md"
    assert json.loads(path.with_suffix(".json").read_text()) == published
    text = path.read_text()
    assert "keeps 711 to 713 of 2,000 samples" in text and "--what paper" in text
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line[:2] == "| "]
    assert [row[:3] for row in rows[1:3]] == [
        ["rule paper, all it keeps", "100", "3"],
        ["RAP, rule budget, ACE drops", "100", "9"],
    ]
    assert rows[3][5].startswith("-") and rows[3][0] == "learn, cascade"
    assert rows[1][-1] == "3,000"  # all completions of the scores are billed


def test_a_selection_by_another_model_is_compared_cell_by_cell(work, monkeypatch) -> None:
    monkeypatch.setattr(training_compare, "DRAWS", 50)
    with pytest.raises(SystemExit, match="runs are missing"):
        training_transfer.write_report(PLAN, work, work)
    for pool in PLAN.pools[:2]:
        run = Run(training_transfer.OURS, PLAN.narrow, pool, 0)
        found = made_up(run, 0.8, 0.9, PLAN.steps) | {"rows": [1, 2, 3, 4]}
        (work / "runs" / f"{run.key}.json").write_text(json.dumps(found))
        own = work / "runs" / f"learn_cascade-0.093-pool{pool}-0.json"
        own.write_text(json.dumps(json.loads(own.read_text()) | {"rows": [2, 3, 4, 9]}))
    text = training_transfer.write_report(PLAN, work, work).read_text()
    assert "75 % of the samples" in text
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line[:2] == "| "]
    assert [row[:3] for row in rows[1:]] == [
        ["learn, cascade, scored by another model", "100", "2"],
        ["learn, cascade", "100", "2"],
        ["random, equal size", "100", "2"],
        ["all data", "150", "2"],
    ]
    assert rows[3][5].startswith("+")  # above random
    assert len(json.loads((work / "training_second_transfer.json").read_text())) == 2


def test_differences_cover_pools_seeds_and_questions(work) -> None:
    found = list(training_second.finished(PLAN, work))
    table = training_compare.table_of(found, PLAN)
    ours, other = (table[arm, 0.093] for arm in ("learn_cascade", "random"))
    cells, rows, groups = differences(ours, other, "sighted")
    assert len(cells) == 15
    assert rows.shape == (15, 150)
    # families alike: 40 and 60 questions, half of the weight each; the mixed ones, none
    one = ours[cells[0]].right["sighted"] - other[cells[0]].right["sighted"]
    wanted = (one[:40].mean() + one[40:100].mean()) / 2
    assert rows[0].sum() == pytest.approx(wanted)
    drawn = bootstrap(cells, rows, groups, draws=400)
    assert drawn.mean() == pytest.approx(rows.sum(axis=1).mean(), abs=0.01)
    spread = rows.sum(axis=1).std(ddof=1) / np.sqrt(15)
    assert drawn.std() > 0.7 * spread
    mixed = differences(ours, other, "mixed")[1]
    assert mixed[0].sum() == pytest.approx(one[100:].mean())


def test_the_mean_is_the_intervals_where_a_pool_has_more_seeds() -> None:
    """One pool with three seeds at 0.3, one with one at 0: alike, 0.15; by runs 0.225."""
    cells = [(1, 0), (1, 1), (1, 2), (2, 0)]
    rows = np.array([[0.3], [0.3], [0.3], [0.0]])
    assert mean_of(cells, rows) == pytest.approx(0.15)
    drawn = bootstrap(cells, rows, {"image/x": slice(0, 1)}, draws=400)
    assert drawn.mean() == pytest.approx(0.15, abs=0.02)


def test_equal_arms_show_nothing_and_missing_ones_say_so(work) -> None:
    found = list(training_second.finished(PLAN, work))
    table = training_compare.table_of(found, PLAN)
    tests = [
        Planned("band", "variance", 0.093, "sighted"),
        Planned("band", "random", 0.4, "sighted"),
    ]
    equal, missing = judge(tests, table, draws=200)
    assert not equal["holds"] and equal["low"] < 0 < equal["high"]
    assert (missing["cells"], missing["p"], missing["holds"]) == (0, 1.0, False)


def test_pieces_start_in_processes_of_their_own(tmp_path, monkeypatch) -> None:
    started: list[list[str]] = []

    class Ended:
        returncode = 0

        def __init__(self, command, **_):
            started.append([str(word) for word in command])

    monkeypatch.setattr(training.subprocess, "Popen", Ended)
    training.start("scores-answer@211", tmp_path, training_second.MODULE)
    assert started[0][-6:] == [
        *("-m", "benchmarks.training_second", "--do", "scores-answer@211"),
        *("--work", str(tmp_path)),
    ]
