"""Rewards that trainers log, and ``rap reselect`` on them."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_cli import refused, run

import rap
from rap.demo import published
from rap.errors import RapConfigError, RapInputError, RapStoreError
from rap.scores.owner import tmp_name
from rap.selection.reselection import pass_counts
from rap.trl.rewardfile import read_visits
from rap.trl.rewardlog import Outcome, RewardLog


def jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# ---------------------------------------------------------------- the reader


def test_this_projects_own_log_is_read_by_its_steps(tmp_path):
    log = RewardLog(tmp_path / "rewards.jsonl")
    log.start()
    log.append(1, {"a": Outcome.of([1, 0]), "b": Outcome.of([1, 1])})
    log.append(2, {"a": Outcome.of([1, 1])})
    log.start(2)  # resumed from a checkpoint: step 2 is done again
    log.append(2, {"a": Outcome.of([0, 0, None])})
    assert read_visits([log.path]) == [("a", 1, 2), ("b", 2, 2), ("a", 0, 2)]


def test_steps_of_this_projects_own_log_are_visits_the_oldest_first(tmp_path):
    log = RewardLog(tmp_path / "rewards.jsonl")
    log.append(2, {"a": Outcome.of([1])})
    log.append(1, {"a": Outcome.of([0, 0])}, process=1)  # a slower one
    assert read_visits([log.path]) == [("a", 0, 2), ("a", 1, 1)]


def test_a_line_whose_lists_have_other_lengths_is_passed_over(tmp_path):
    log = RewardLog(tmp_path / "rewards.jsonl")
    log.append(1, {"a": Outcome.of([1, 0])})
    line = json.loads(log.path.read_text()) | {"step": 2, "passed": [], "high": [1, 1]}
    with log.path.open("a") as file:
        file.write(json.dumps(line) + "\n")
    assert read_visits([log.path]) == [("a", 1, 2)]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    ("id", "reward"), [("id", "reward"), ("rap_id", "score"), ("index", "correct")]
)
def test_a_row_a_completion_under_common_names(tmp_path, kind, id, reward):
    truth = reward == "correct"
    values = [True, False, None] if truth else [0.9, 0.1, None]
    rows = [{id: "a", reward: value} for value in values] + [{id: "b", reward: values[0]}]
    path = tmp_path / f"log.{kind}"
    if kind == "jsonl":
        jsonl(path, rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    assert read_visits([path]) == [("a", 1, 2), ("b", 1, 1)]


def test_files_and_steps_are_visits_the_oldest_first(tmp_path):
    late = [{"id": 7, "step": 12, "reward": 1.0}, {"id": 7, "step": 3, "reward": 0.0}]
    first = jsonl(tmp_path / "1.jsonl", [{"id": 7, "reward": 0.0}] * 2)
    second = jsonl(tmp_path / "2.jsonl", late)
    visits = read_visits([first, second])
    assert visits == [("7", 0, 2), ("7", 0, 1), ("7", 1, 1)]
    assert pass_counts(visits) == {"7": (1.0, 2.0)}


def test_columns_can_be_named(tmp_path):
    path = jsonl(tmp_path / "log.jsonl", [{"uid": "a", "acc": 1, "r": 0.0, "n": 5}])
    columns = {"id": "uid", "reward": "r", "step": "n"}
    assert read_visits([path], columns) == [("a", 0, 1)]
    with pytest.raises(RapConfigError, match="no role 'name'; roles are id, reward, step"):
        read_visits([path], {"name": "uid"})
    with pytest.raises(RapInputError, match="no column for step .*looked for nope"):
        read_visits([path], {**columns, "step": "nope"})


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"uid": "a", "reward": 1}], "no column for id .*there are: uid, reward"),
        ([{"id": "a", "loss": 1}], "no column for reward"),
        ([{"id": "a", "reward": "good"}], "'a' has the reward 'good', which is no number"),
        ([{"id": "a", "reward": 1}, {"id": None, "reward": 1}], "row 1 has no id"),
        ([{"id": "a", "reward": 1, "step": "x"}], "row 0 has the step 'x'"),
        ([{"id": "a", "reward": None}], "not one reward is a number"),
        ([{"id": "a", "reward": math.nan}], "not one reward is a number"),
        ([{"id": "a", "reward": math.inf}], "not one reward is a number"),
    ],
)
def test_a_log_that_says_nothing_is_refused(tmp_path, rows, message):
    with pytest.raises(RapInputError, match=message):
        read_visits([jsonl(tmp_path / "log.jsonl", rows)])


def test_files_that_are_none_are_refused(tmp_path):
    with pytest.raises(RapInputError, match=r"none\.jsonl: no such file"):
        read_visits([tmp_path / "none.jsonl"])
    (tmp_path / "empty.jsonl").write_bytes(b"")
    with pytest.raises(RapInputError, match="no line holds a JSON object"):
        read_visits([tmp_path / "empty.jsonl"])


def test_a_torn_line_is_left_out_and_said(tmp_path):
    path = jsonl(tmp_path / "log.jsonl", [{"id": "a", "reward": 1.0}])
    with path.open("a") as file:
        file.write('{"id": "b", "rew')
    with pytest.warns(UserWarning, match="1 lines are not JSON objects"):
        assert read_visits([path]) == [("a", 1, 1)]


# ---------------------------------------------------------------- the shell


@pytest.fixture
def saved(tmp_path) -> Path:
    published().save(tmp_path / "selection")
    return tmp_path / "selection"


def rewards(folder: Path, selection: rap.Selection, trivial: int) -> Path:
    """The first ``trivial`` samples are always solved by now, the others half the time."""
    rows = [
        {"id": name, "reward": float(i < trivial or k % 2)}
        for i, name in enumerate(selection.ids)
        for k in range(8)
    ]
    return jsonl(folder / "rewards.jsonl", rows)


def test_a_line_that_is_half_written_is_an_error(tmp_path, monkeypatch):
    """A disk that takes a part of a line: the trainer is told, the next line is whole."""
    log, write = RewardLog(tmp_path / "rewards.jsonl"), os.write
    log.start()
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[: len(data) // 2]))
    with pytest.raises(RapStoreError, match="only a part was written"):
        log.append(1, {"a": Outcome.of([1.0])})
    monkeypatch.undo()
    log.append(2, {"b": Outcome.of([1.0, 0.0])})
    assert read_visits([log.path]) == [("b", 1, 2)]


def test_shell_selects_again_phase_by_phase(saved, tmp_path):
    first = rap.load(saved)
    log = rewards(tmp_path, first, trivial=4)
    out = tmp_path / "second"
    command = ("reselect", saved, "--rewards", log, "--out", out, "--keep", 0)
    text = run(*command).output
    assert "9 samples have rewards" in text
    assert "selected again, phase 1: 5 stays, 4 comes_harder, 4 leaves_trivial" in text
    second = rap.load(out)
    assert set(first.ids) - set(second.ids) == set(first.ids[:4]) and len(second) == 9

    before = {p.name: p.read_bytes() for p in out.iterdir()}
    run(*command)  # a run that is done again gives the same bytes
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before

    found = json.loads(
        run("reselect", out, "--rewards", log, "--out", tmp_path / "third", "--json").stdout
    )
    assert found["phase"] == 2 and found["kept"] == 9 and found["tried"] == 9
    assert found["counts"]["stays_first"] == 2


def test_shell_takes_in_what_is_newly_cognitive(saved, tmp_path):
    first = rap.load(saved)
    wider = rap.choose(rap.Scores(first.table, {}), budget=0.2)
    wider.save(tmp_path / "now")
    log = rewards(tmp_path, first, trivial=3)
    text = run(
        "reselect", saved, "--rewards", log, "--now", tmp_path / "now",
        "--out", tmp_path / "out",
    ).output  # fmt: skip
    assert "3 comes_cognitive" in text
    assert set(rap.load(tmp_path / "out").ids) <= set(wider.ids)


def test_shell_refuses_by_name(saved, tmp_path):
    log = rewards(tmp_path, rap.load(saved), trivial=0)
    out = ("--out", tmp_path / "out")
    there = ("reselect", saved, "--rewards", log)
    unknown = jsonl(tmp_path / "unknown.jsonl", [{"id": "zzz", "reward": 1.0}])
    refused("reselect", saved, "--rewards", unknown, *out, code=1, says="first is 'zzz'")
    refused(*there, "--out", saved, code=2, says="is SELECTION itself")
    refused(*there, *out, "--keep", 2, code=2, says="keep = 2.0")
    refused(*there, *out, "--reward-columns", "id", code=2, says="expected NAME=VALUE")
    refused("reselect", saved, *out, code=2, says="Missing option '--rewards'")
    refused("reselect", tmp_path, "--rewards", log, *out, code=1, says="selection.parquet")
    assert not os.path.exists(tmp_path / "out")


def test_shell_keeps_another_selection_that_lies_there(saved, tmp_path):
    first, out = rap.load(saved), tmp_path / "second"
    run("reselect", saved, "--rewards", rewards(tmp_path, first, trivial=4), "--out", out)
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    other = ("reselect", saved, "--rewards", rewards(tmp_path, first, trivial=2))
    refused(*other, "--out", out, code=2, says="holds another selection")
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "notes.txt").write_text("mine")
    refused(*other, "--out", foreign, code=2, says="holds something else")
    refused(*other, "--out", foreign / "notes.txt", code=1, says="notes.txt")
    assert (foreign / "notes.txt").read_text() == "mine"
    # what a killed run of the same command began to write is nobody's
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / tmp_name("selection.parquet")).write_text("half")
    run(*other, "--out", begun)
    assert rap.load(begun).ids != first.ids
    run(*other, "--out", out, "--force")
    assert rap.load(out).ids != first.ids
    assert {p.name: p.read_bytes() for p in out.iterdir()} != before
