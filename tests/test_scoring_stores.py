"""A store of scores: gone on with, scored again where it changed, refused."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from pathlib import Path

import pytest
from scoring_inputs import FEW, make_rows, png, stable
from scoring_rewards import by_length
from tiny_models import build

from rap.config import AceConfig
from rap.errors import RapConfigError, RapModelError, RapStoreError
from rap.model.driver import ModelDriver
from rap.scores import files
from rap.scores.store import ScoreStore
from rap.scoring import filling
from rap.scoring.run import score


def test_fault_10_images_that_changed_since_they_were_scored(tiny, tmp_path):
    """Their shards are scored again and said so; the others stay."""
    rows, folder = make_rows(9), tmp_path / "images"
    folder.mkdir()
    for i, row in enumerate(rows):
        (folder / f"{i}.png").write_bytes(row["image"]["bytes"])
        row["image"] = f"images/{i}.png"
    options = {"store": tmp_path / "store", "shard_size": 3, "root": tmp_path}
    before = score(*tiny, rows, **options)
    (folder / "4.png").write_bytes((folder / "0.png").read_bytes())
    stale = score(*tiny, rows, verify_images=False, **options)
    assert stable(stale.table).equals(stable(before.table))
    with pytest.warns(UserWarning, match="images of 1 samples changed"):
        after = score(*tiny, rows, **options)
    fresh = score(*tiny, rows, **options | {"store": tmp_path / "fresh"})
    assert stable(after.table).equals(stable(fresh.table))
    assert after.table["image_sha256"][4] == before.table["image_sha256"][0]
    (folder / "8.png").unlink()
    with pytest.warns(UserWarning, match="images of 1 samples changed"):
        gone = score(*tiny, rows, **options)
    assert gone.table["code"][8].as_py() == "image_missing"


@pytest.mark.proof
def test_fault_10_under_shuffle_an_image_is_its_partners_too(tiny, tmp_path):
    rows = make_rows(6)
    for i, row in enumerate(rows):
        (tmp_path / f"{i}.png").write_bytes(row["image"]["bytes"])
        row["image"] = f"{i}.png"
    options = {"store": tmp_path / "store", "shard_size": 2, "root": tmp_path}
    options["counterfactual"] = "shuffle"
    score(*tiny, rows, **options)
    (tmp_path / "3.png").write_bytes(png(77))
    with pytest.warns(UserWarning, match="images of 1 samples changed"):
        after = score(*tiny, rows, **options)
    fresh = score(*tiny, rows, **options | {"store": tmp_path / "fresh"})
    assert stable(after.table).equals(stable(fresh.table))


def test_what_a_score_reads_is_in_the_fingerprint(tiny, tmp_path):
    rows = make_rows(4)
    for row in rows:
        row["solution"] = "First the left one, then the right one, that makes it."
    options = {"store": tmp_path, "evidence": "logits"}
    score(*tiny, rows, **options)
    for row in rows:
        row["solution"] += " Really."
    with pytest.raises(RapConfigError, match="dataset"):
        score(*tiny, rows, **options)
    options = {"store": tmp_path / "answer", "evidence": "answer"}  # reads no solution
    score(*tiny, rows, **options)
    rows[0]["solution"] = "Another."
    score(*tiny, rows, **options)


def test_fault_36_another_setting_on_the_same_store_is_refused(tiny, tmp_path):
    rows = make_rows(4)
    score(*tiny, rows, store=tmp_path, seed=1)
    for options, name in (
        ({"seed": 2}, "seed"),
        ({"seed": 1, "evidence": "answer"}, "evidence"),
        ({"seed": 1, "answer_prefix": "So"}, "answer_prefix"),
        ({"seed": 1, "ace": AceConfig(sigma=3.0)}, "sigma"),
    ):
        with pytest.raises(RapConfigError, match=name):
            score(*tiny, rows, store=tmp_path, **options)
    others = [row | {"id": f"other {i}"} for i, row in enumerate(rows)]
    with pytest.raises(RapConfigError, match="dataset: the data set is another"):
        score(*tiny, others, store=tmp_path, seed=1)
    with pytest.raises(RapConfigError, match="weights"):
        score(*build("qwen2_5_vl", seed=5), rows, store=tmp_path, seed=1)
    # speed may change
    again = score(*tiny, rows, store=tmp_path, seed=1, batch_size=1, workers=0)
    assert len(again) == 4


@pytest.mark.parametrize(
    ("evidence", "error"),
    [
        ("answer", KeyboardInterrupt),
        ("answer", OSError),
        ("rollouts", SystemExit),
        ("logits", RapModelError),
    ],
)
def test_fault_32_interrupt_loses_at_most_the_current_batch(
    tiny, tmp_path, monkeypatch, evidence, error
):
    rows = make_rows(12)
    options = {"shard_size": 4, "batch_size": 2, "evidence": evidence, "m1": 2, "m0": 2}
    options |= {"sampling": FEW, "max_bad_fraction": 0.5}
    if evidence == "rollouts":
        options["reward"] = by_length
    rows[4]["image"] = {"bytes": b"", "path": None}  # its shard: one batch of 2, one of 1
    whole = score(*tiny, rows, store=tmp_path / "whole", **options)
    calls = 0
    score_batch = filling.score_batch

    def interrupted(scorer, jobs):
        nonlocal calls
        calls += 1
        score_batch(scorer, jobs)
        if calls == 4:  # second shard, last batch: its rows are filled in, not counted
            raise error("stop")

    threads = threading.active_count()
    monkeypatch.setattr(filling, "score_batch", interrupted)
    seconds = 0.0 if error is OSError else 1e9
    monkeypatch.setattr(filling, "PARTIAL_SECONDS", seconds)
    broken = tmp_path / "broken"
    with pytest.raises(error):
        score(*tiny, rows, store=broken, **options)
    assert threading.active_count() == threads
    there = ScoreStore.load(broken)
    assert (there.missing(), there.parts(), there.n_kept()) == ([1, 2], [1], 4 + 3)
    calls = 100
    resumed = score(*tiny, rows, store=broken, **options)
    assert calls == 100 + 1 + 2  # a batch of shard 1, two of shard 2
    assert stable(resumed.table).equals(stable(whole.table))
    if evidence == "rollouts":
        assert resumed.rollouts.equals(whole.rollouts)
    assert sorted(p.name for p in broken.iterdir()) == sorted(
        p.name for p in (tmp_path / "whole").iterdir()
    )


def test_fault_32_a_failed_write_of_what_is_left_hides_no_error(
    tiny, tmp_path, monkeypatch
):
    def full(*args, **kwargs):
        raise RapStoreError("no space left")

    calls = itertools.count()
    trace = ModelDriver.trace

    def interrupted(self, *args, **kwargs):
        if next(calls) == 2:
            raise KeyboardInterrupt
        return trace(self, *args, **kwargs)

    monkeypatch.setattr(ModelDriver, "trace", interrupted)
    monkeypatch.setattr(ScoreStore, "write_partial", full)
    with pytest.raises(KeyboardInterrupt) as stopped:
        score(*tiny, make_rows(4), store=tmp_path, batch_size=2, evidence="answer")
    assert "could not be kept: no space left" in stopped.value.__notes__[0]


def test_fault_32_a_long_shard_is_kept_while_it_is_in_progress(tiny, tmp_path, monkeypatch):
    kept, one = [], {"evidence": "logits"}
    write = ScoreStore.write_partial

    def written(self, k, scores, *args, **kwargs):
        kept.append((k, scores.num_rows))
        write(self, k, scores, *args, **kwargs)

    monkeypatch.setattr(ScoreStore, "write_partial", written)
    score(*tiny, make_rows(8), store=tmp_path / "quick", batch_size=2, shard_size=6, **one)
    assert kept == []  # not half a minute
    monkeypatch.setattr(filling, "PARTIAL_SECONDS", 0.0)
    score(*tiny, make_rows(8), store=tmp_path / "slow", batch_size=2, shard_size=6, **one)
    assert kept == [(0, 2), (0, 4)]
    assert not list((tmp_path / "slow").glob("partial*"))


def test_a_run_that_finds_all_done_reads_each_file_once(tiny, tmp_path, monkeypatch):
    options = {"store": tmp_path, "evidence": "rollouts", "shard_size": 4, "m1": 2, "m0": 2}
    options |= {"allow_degenerate": True, "sampling": {"max_new_tokens": 3}}
    first = score(*tiny, make_rows(10), **options)
    read: Counter[str] = Counter()
    opened = files.read_regular

    def noted(path: Path) -> bytes:
        if path.suffix == ".parquet":
            read[path.name] += 1
        return opened(path)

    monkeypatch.setattr(files, "read_regular", noted)
    again = score(*tiny, make_rows(10), **options)
    assert again.table.equals(first.table)
    names = [f"{kind}-0000{k}.parquet" for kind in ("scores", "rollouts") for k in range(3)]
    assert read == dict.fromkeys(names, 1)
