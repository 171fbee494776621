"""The log of rewards: what a training leaves for the next selection."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest

from rap.errors import RapStoreError
from rap.trl.rewardlog import Outcome, RewardLog, grouped, read_rewards


def test_log_sums_processes_and_keeps_the_order(tmp_path):
    log = RewardLog(tmp_path / "deep" / "rewards.jsonl")
    log.start()
    log.append(0, {"b": Outcome.of([1, 0, 1])}, process=0)
    log.append(0, {"b": Outcome.of([0.2, None]), "a": Outcome.of([math.nan])}, process=1)
    log.append(1, {"b": Outcome.of([1.0])})
    rows = read_rewards(log.path).to_pylist()
    assert [(r["id"], r["step"]) for r in rows] == [("b", 0), ("a", 0), ("b", 1)]
    assert list(rows[0].values()) == ["b", 0, 2, 4, 1, 0.0, 1.0]
    assert rows[1]["judged"] == 0 and rows[1]["unjudged"] == 1 and rows[1]["low"] is None


def test_log_start_makes_void_what_is_done_again(tmp_path):
    log = RewardLog(tmp_path / "rewards.jsonl")
    for step in range(4):
        log.append(step, {f"s{step}": Outcome.of([1.0])})
    log.start(2)
    log.append(2, {"again": Outcome.of([0.0])})
    assert read_rewards(log.path)["id"].to_pylist() == ["s0", "s1", "again"]


@pytest.mark.parametrize(
    "torn",
    [
        b'{"kind": "rewards", "st',
        b"\x00\xff",
        b"{}",
        b'{"kind": "rewards", "step": 0}',
        b'{"kind": "rewards", "step": 0, "ids": ["a"], "passed": [], "judged": [1], '
        b'"unjudged": [0], "low": [0], "high": [1]}',
    ],
)
def test_log_torn_line_is_passed_over_and_closed(tmp_path, torn):
    log = RewardLog(tmp_path / "rewards.jsonl")
    log.append(0, {"a": Outcome.of([1.0])})
    with log.path.open("ab") as file:
        file.write(torn)
    assert read_rewards(log.path)["id"].to_pylist() == ["a"]
    log.append(1, {"b": Outcome.of([1.0])})
    assert read_rewards(log.path)["id"].to_pylist() == ["a", "b"]


def test_log_that_cannot_be_read_or_written_is_a_store_error(tmp_path):
    with pytest.raises(RapStoreError, match="cannot be read"):
        read_rewards(tmp_path / "none.jsonl")
    (tmp_path / "other.jsonl").write_text('{"id": 1}\n')
    with pytest.raises(RapStoreError, match="no line of a rewards log"):
        read_rewards(tmp_path / "other.jsonl")
    with pytest.raises(RapStoreError, match="cannot be written"):
        RewardLog(tmp_path).start()


KILLED = """
import os, sys
from rap.selection.reselection import ReselectConfig
from rap.trl.rewardlog import Outcome, RewardLog
log = RewardLog(sys.argv[1])
print("up", flush=True)
for step in range(10**9):
    log.append(step, {f"s{step}-{i}": Outcome.of([1.0, 0.0]) for i in range(50)})
"""


def test_log_killed_trainer_leaves_whole_batches(tmp_path):
    path = tmp_path / "rewards.jsonl"
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, path], stdout=subprocess.PIPE, cwd=os.getcwd()
    )
    assert child.stdout.readline() == b"up\n"
    while not path.exists() or path.stat().st_size < 20_000:
        assert child.poll() is None
    child.kill()
    child.communicate()
    table = read_rewards(path)
    steps = table["step"].to_pylist()
    assert table.num_rows >= 50 and table.num_rows % 50 == 0
    assert sorted(set(steps)) == list(range(max(steps) + 1))


def test_outcomes_count_none_and_nan_as_neither(rng):
    outcome = Outcome.of([None, math.nan, math.inf, 0.5, 0.49])
    assert (outcome.passed, outcome.judged, outcome.unjudged) == (1, 2, 3)
    assert outcome.varies and not Outcome.of([1.0, None, 1.0]).varies
    assert not Outcome.of([None]).varies
    assert grouped(["b", "a", "b"], [1, 0, 0])["b"] == Outcome.of([1, 0])
