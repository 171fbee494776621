"""Files that belong together: a rollouts file that another run of the same shard made, and
what a killed process left beside the file that it was writing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import rap
from rap.errors import RapStoreError
from rap.scores.files import write_result
from rap.scores.owner import tmp_name
from rap.scores.store import ScoreStore
from rap.scores.table import ROLLOUT_SCHEMA, table_from_rows


def one_sample(path: Path, text: str) -> ScoreStore:
    """A finished store of one sample whose completion is ``text``."""
    score = {"id": "s0", "index": 0, "status": "scored", "evidence": "rollouts"}
    score |= {"c1": 1, "m1": 1, "c0": 0, "m0": 1}
    rollout = {"id": "s0", "index": 0, "arm": "image", "number": 0, "text": text}
    with ScoreStore.open(path, {"config": {}}, 1, 1) as store:
        for k in store.missing():
            rollouts = table_from_rows([rollout], ROLLOUT_SCHEMA)
            store.write(k, table_from_rows([score]), rollouts)
    return ScoreStore.load(path)


def test_rollouts_of_another_generation_are_not_taken_for_these(tmp_path: Path) -> None:
    """Whole, undamaged and of the same run's settings, yet not what was scored."""
    one_sample(tmp_path / "a", "first").close()
    one_sample(tmp_path / "b", "second").close()
    name = "rollouts-00000.parquet"
    shutil.copy(tmp_path / "b" / name, tmp_path / "a" / name)
    with pytest.raises(RapStoreError, match="is not what scores-00000.parquet was made"):
        with ScoreStore.load(tmp_path / "a") as store:
            store.read_rollouts()


def left_by_a_dead_process(name: str) -> str:
    """A temporary name of a process that has ended."""
    code = f"from rap.scores.owner import tmp_name; print(tmp_name({name!r}))"
    command = [sys.executable, "-c", code]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout[:-1]


def test_fault_33_what_a_killed_writer_of_a_result_left_goes_with_the_next(
    tmp_path,
) -> None:
    """Of the same file only: not what another process is writing, nor what is another's."""
    dead = [left_by_a_dead_process(name) for name in ("report.html", "other.html")]
    mine = tmp_name("report.html")
    others = [mine, dead[1], ".report.html.tmp", ".report.html.notes.tmp", "report.tmp"]
    for name in (dead[0], *others):
        (tmp_path / name).write_text("half")
    write_result(tmp_path / "report.html", lambda file: file.write(b"whole"))
    assert sorted(os.listdir(tmp_path)) == sorted([*others, "report.html"])
    assert (tmp_path / "report.html").read_bytes() == b"whole"


def test_fault_33_a_selection_is_written_over_what_a_killed_process_left(tmp_path) -> None:
    rows = [{"id": f"s{i}", "with_image": i % 2 > 0, "correct": 1} for i in range(4)]
    rows += [{"id": f"s{i}", "with_image": i % 2 < 1, "correct": 0} for i in range(4)]
    selection = rap.choose(rap.Scores.from_rollouts(rows), budget=0.5)
    out, names = tmp_path / "out", ("selection.parquet", "indices.npy", "settings.json")
    out.mkdir()
    for name in names:
        (out / left_by_a_dead_process(name)).write_text("half")
    selection.save(out)
    assert sorted(os.listdir(out)) == sorted(names)
    scores = rap.Scores.from_rollouts(rows)
    (tmp_path / left_by_a_dead_process("scores.parquet")).write_text("half")
    scores.save(tmp_path / "scores.parquet")
    assert sorted(os.listdir(tmp_path)) == ["out", "scores.parquet"]
