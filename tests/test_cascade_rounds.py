"""All rounds of a cascade, with a tiny model."""

from __future__ import annotations

import json
import re
import warnings

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from cascade_inputs import make_rows
from model_inputs import png
from scoring_inputs import stable
from scoring_rewards import by_length, sometimes

from rap.config import Sampling, ScoreConfig
from rap.errors import RapConfigError
from rap.model import kept
from rap.samples.sampleset import open_samples
from rap.scores.profile import Profile
from rap.scores.scores import Scores
from rap.scoring import filling
from rap.scoring.asking import Asking, in_pilot
from rap.scoring.plan import folder_of, rounds_of
from rap.scoring.run import score

FEW = Sampling(max_new_tokens=8)
OPTIONS_OF_ROUNDS = {"evidence": "cascade", "cascade_pilot": 0.3}
OPTIONS = {
    "evidence": "cascade",
    "m1": 4,
    "m0": 3,
    "sampling": FEW,
    "reward": by_length,
    "allow_degenerate": True,
    "shard_size": 5,
    "batch_size": 2,
    "max_bad_fraction": 0.3,
    "progress": False,
    "cascade_completions": 0.4,
    "cascade_pilot": 0.3,
}


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """(store, scores) of an uninterrupted run over 22 samples, two of them bad."""
    store = tmp_path_factory.mktemp("whole") / "store"
    return store, score(*tiny, pool(), store=store, **OPTIONS)


def pool(n: int = 22) -> list[dict]:
    rows = make_rows(n)
    rows[5]["answer"] = "nonsense"
    rows[11]["image"] = {"bytes": b"no image", "path": None}
    return rows


def test_every_round_has_a_bar_with_its_own_name(tiny, capfd):
    score(*tiny, pool(12), **OPTIONS | {"progress": "force"})
    bars = re.findall(r"(?m)(scoring[^:]*): 100%", capfd.readouterr().err)
    assert list(dict.fromkeys(bars)) == [
        "scoring the pilot, round 1 of 2",
        "scoring the rest, round 2 of 2",
    ]


def test_every_row_says_which_stage_decided_it(whole):
    store, scores = whole
    rows = scores.table.to_pylist()
    usable = [r for r in rows if r["status"] == "scored"]
    assert len(usable) == 20
    pilot = {r["id"] for r in usable if in_pilot(ScoreConfig(cascade_pilot=0.3), r["id"])}
    assert {r["decided_by"] for r in usable} >= {"answer", "text"} and 2 < len(pilot) < 12
    for row in rows:
        if row["status"] != "scored":
            assert row["decided_by"] is None and row["code"] in (
                "bad_answer",
                "image_unreadable",
                "image_format",
            )
            continue
        right = bool(row["c1"])
        assert (row["log_psi"] is not None) == right
        assert row["forwards"] == 2 + right
        if row["decided_by"] == "answer":
            assert (row["m1"], row["m0"]) == (None, None) and row["id"] not in pilot
            assert row["generated_tokens"] == 0
            continue
        assert row["n_drawn"] == row["m1"] + row["m0"]
        if row["id"] in pilot:
            assert row["m1"] >= 2 and row["m0"] >= 1
        if row["decided_by"] == "pilot":
            assert row["id"] in pilot
        else:
            assert row["decided_by"] == ("text" if row["m0"] else "image")
    rounds = rounds_of(open_samples(pool()), ScoreConfig(**OPTIONS_OF_ROUNDS))
    for number, part in enumerate(rounds):
        first = Scores.load(store / folder_of(number))
        same = scores.table.take(pa.array(part.places))
        for name in set(same.column_names) - {"index", "decided_by"}:
            assert same[name].equals(first.table[name]), name
        said = scores.rollouts.filter(pc.is_in(scores.rollouts["id"], same["id"]))
        names = [n for n in said.column_names if n != "index"]
        assert said.select(names).equals(first.rollouts.select(names))


def test_every_image_is_encoded_and_every_prompt_read_once(tiny, whole):
    scores = score(*tiny, pool(), **OPTIONS, profile=True)
    profile = Profile.of(scores.meta["profile"])
    assert profile.samples == 22 and profile.counts["images_encoded"] == 20
    assert profile.ratios()["images_encoded"] == 1.0
    assert profile.ratios()["prefilled_tokens"] == 1.0
    assert stable(scores.table).equals(stable(whole[1].table))


def test_completions_are_the_first_of_those_of_rollouts(tiny, whole):
    """The same seeds: what the cascade samples, evidence rollouts samples, too."""
    _, scores = whole
    options = OPTIONS | {"evidence": "rollouts"}
    full = score(*tiny, pool(), **options)

    def texts(of):
        names = ("id", "arm", "number", "text", "correct", "seed")
        return {tuple(r[n] for n in names) for r in of.rollouts.to_pylist()}

    assert texts(scores) < texts(full)


def test_a_cascade_is_replayed_without_its_model(tiny, whole):
    """What benchmarks make of stored answers and completions is what the model gave."""
    from benchmarks import replayed

    scores, given = whole[1], OPTIONS | {"evidence": "rollouts"}
    full = score(*tiny, pool(), **{k: v for k, v in given.items() if "cascade" not in k})
    names = ("evidence", "m1", "m0", "cascade_completions", "cascade_pilot")
    config = ScoreConfig(**{name: OPTIONS[name] for name in names})
    found = replayed.cascade(scores, full, pool(), config)
    names = ["id", "p_answer1", "c1", "m1", "c0", "m0", "n_drawn", "decided_by", "status"]
    assert found.table.select(names).to_pylist() == scores.table.select(names).to_pylist()


def test_the_ledger_bills_each_stage(whole):
    _, scores = whole
    cost, rollouts = scores.meta["cost"], scores.rollouts.to_pylist()
    stages = cost["stages"]
    rows = scores.table.to_pylist()
    drawn = [r for r in rows if r["m1"]]
    assert stages["answer"]["samples"] == 22
    assert stages["answer"]["forwards"] == 2 * 20
    assert stages["image"]["samples"] == len(drawn) > 0
    assert stages["image"]["rollouts"] == sum(r["m1"] for r in drawn)
    assert stages["text"]["rollouts"] == sum(r["m0"] for r in drawn)
    assert stages["psi"]["forwards"] == sum(r["log_psi"] is not None for r in rows)
    pilot = Scores.load(whole[0] / folder_of(0)).table
    assert stages["pilot"]["samples"] == len(pilot) - pilot["m1"].null_count > 0
    assert stages["pilot"]["rollouts"] == pc.sum(pilot["n_drawn"]).as_py()
    for stage in ("answer", "pilot", "image", "text"):
        assert stages[stage]["decided"] == sum(r["decided_by"] == stage for r in rows)
    tokens = sum(len(r["token_ids"]) for r in rollouts)
    assert stages["image"]["tokens"] + stages["text"]["tokens"] == tokens
    assert cost["rollouts"] == len(rollouts)


def test_batches_workers_and_shards_change_no_decision(tiny, whole):
    names = ["id", "decided_by", "c1", "m1", "c0", "m0", "code"]
    wanted = whole[1].table.select(names)
    for more in (
        {"batch_size": 1, "workers": 0},
        {"batch_size": 7, "shard_size": 22, "workers": 3},
    ):
        got = score(*tiny, pool(), **OPTIONS | more)
        assert got.table.select(names).equals(wanted)


def test_as_many_samples_are_asked_at_once_as_memory_holds(tiny, whole, monkeypatch):
    """Three batches at least; what is decided of a sample does not depend on it."""
    real, sizes = filling.score_batch, []

    def seen(scorer, jobs):
        sizes.append(len(jobs))
        real(scorer, jobs)

    monkeypatch.setattr(filling, "score_batch", seen)
    names = ["id", "decided_by", "c1", "m1", "c0", "m0", "code"]
    wanted = whole[1].table.select(names)
    options = OPTIONS | {"batch_size": 1, "shard_size": 22}
    assert score(*tiny, pool(), **options).table.select(names).equals(wanted)
    together, sizes[:] = list(sizes), []
    monkeypatch.setattr(kept, "HOST_BYTES", 1)
    assert score(*tiny, pool(), **options).table.select(names).equals(wanted)
    assert max(together) > max(sizes) == 3
    assert sum(together) == sum(sizes) and len(together) < len(sizes)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("batches", [1, 3, 5])
def test_a_run_killed_in_either_round_ends_in_the_same_bytes(
    tiny, whole, tmp_path, monkeypatch, batches
):
    """Killed after so many batches, with no word to the store."""
    real, seen = filling.score_batch, []

    def killed(scorer, jobs):
        if len(seen) == batches:
            raise Killed
        seen.append(jobs[0].asking == Asking(scorer.config))  # in the first round
        real(scorer, jobs)

    monkeypatch.setattr(filling, "score_batch", killed)
    monkeypatch.setattr(filling, "PARTIAL_SECONDS", 0.0)
    monkeypatch.setattr(filling.Run, "_keep_after", lambda *_: None)  # as kill -9
    store = tmp_path / "store"
    with pytest.raises(Killed):
        score(*tiny, pool(), store=store, **OPTIONS)
    monkeypatch.setattr(filling, "score_batch", real)
    again = score(*tiny, pool(), store=store, **OPTIONS)
    assert stable(again.table).equals(stable(whole[1].table))
    assert again.rollouts.equals(whole[1].rollouts)
    there = {p.relative_to(store) for p in store.rglob("*")}
    assert there == {p.relative_to(whole[0]) for p in whole[0].rglob("*")}
    if batches == 5:
        assert set(seen) == {True, False}


def test_a_finished_store_asks_no_model(tiny, whole, monkeypatch):
    def never(*_):
        raise AssertionError("a batch was scored again")

    monkeypatch.setattr(filling, "score_batch", never)
    again = score(*tiny, pool(), store=whole[0], **OPTIONS)
    assert stable(again.table).equals(stable(whole[1].table))


def test_a_lost_round_is_scored_again_and_changes_nothing(tiny, whole, tmp_path):
    import shutil

    store = tmp_path / "store"
    shutil.copytree(whole[0], store)
    shutil.rmtree(store / folder_of(0))
    before = {p.name: p.stat().st_mtime_ns for p in store.glob("*.parquet")}
    again = score(*tiny, pool(), store=store, **OPTIONS)
    assert stable(again.table).equals(stable(whole[1].table))
    after = {p.name: p.stat().st_mtime_ns for p in store.glob("*.parquet")}
    assert before == after


def test_shards_of_another_plan_are_scored_again(tiny, whole, tmp_path):
    """Images that changed move what the first round says, and with it who is drawn: no
    shard stays that the new plan would have filled otherwise."""
    from pathlib import Path

    folder = tmp_path / "images"
    folder.mkdir()

    def on_disk() -> list[dict]:
        rows = make_rows(12)
        for i, row in enumerate(rows):
            row["image"] = f"{i}.png"
        return rows

    for i in range(12):
        (folder / f"{i}.png").write_bytes(png(i))
    options = OPTIONS | {"root": Path(folder), "shard_size": 3}
    store = tmp_path / "store"
    first = score(*tiny, on_disk(), store=store, **options)
    for i in range(4):
        (folder / f"{i}.png").write_bytes(png(i + 100))
    with warnings.catch_warnings(record=True) as said:  # one for the store of each round
        warnings.simplefilter("always")
        again = score(*tiny, on_disk(), store=store, **options)
    assert "images of 4 samples changed" in str(said[-1].message)
    fresh = score(*tiny, on_disk(), **options)
    assert stable(again.table).equals(stable(fresh.table))
    assert again.rollouts.equals(fresh.rollouts)
    assert not stable(first.table).equals(stable(fresh.table))


def test_an_edited_data_set_keeps_what_its_plan_still_asks_for(tiny, whole, tmp_path):
    import shutil

    store = tmp_path / "store"
    shutil.copytree(whole[0], store)
    rows = pool()
    longer = rows[:3] + make_rows(30)[24:] + rows[3:]
    again = score(*tiny, longer, store=store, **OPTIONS)
    fresh = score(*tiny, longer, **OPTIONS)
    names = ["id", "decided_by", "c1", "m1", "c0", "m0", "code"]
    assert again.table.select(names).equals(fresh.table.select(names))
    old = {r["id"]: r["seconds"] for r in whole[1].table.to_pylist()}
    kept = [
        r["id"]
        for r in again.table.to_pylist()
        if r["m1"] and old.get(r["id"]) == r["seconds"]
    ]
    assert kept, "no completion was taken over"
    # the first round, which nothing decides, has taken over all of its rows
    assert not (store / folder_of(0) / "previous").exists()


def test_a_checker_that_fails_quarantines_in_stage_2(tiny):
    options = OPTIONS | {"reward": sometimes, "cascade_completions": 1.0, "m1": 2, "m0": 2}
    options["cascade_pilot"] = 0.0
    options |= {"max_bad_fraction": 1.0}
    rows = score(*tiny, make_rows(4), **options).table.to_pylist()
    assert [r["code"] for r in rows][1:3] == ["verifier_error", "verifier_error"]
    assert rows[0]["decided_by"] == "image" and rows[0]["c1"] == 2
    assert rows[1]["forwards"] == 2


def test_bad_samples_of_a_round_are_judged_with_the_pool(tiny):
    """Most of the pilot is bad, little of the whole."""
    rows = make_rows(40)
    pilot = [r for r in rows if in_pilot(ScoreConfig(cascade_pilot=0.08), r["id"])]
    for row in pilot[:2]:
        row["answer"] = "nonsense"
    assert 2 <= len(pilot) <= 4
    options = OPTIONS | {"cascade_pilot": 0.08, "max_bad_fraction": 0.05}
    table = score(*tiny, rows, **options).table.to_pylist()
    assert sum(r["status"] != "scored" for r in table) == 2


def test_other_settings_are_refused_by_name(tiny, whole):
    for name, value in (("cascade_completions", 0.5), ("cascade_sure", 0.9), ("m1", 5)):
        with pytest.raises(RapConfigError, match=name):
            score(*tiny, pool(), store=whole[0], **OPTIONS | {name: value})


def test_a_store_of_two_passes_is_refused_in_words(tiny, whole, tmp_path):
    """Stores from before there were rounds are read, and not gone on with."""
    import shutil

    store = tmp_path / "store"
    shutil.copytree(whole[0], store)
    header = json.loads((store / "store.json").read_text())
    assert header["fingerprint"]["config"].pop("cascade") == "rounds"
    (store / "store.json").write_text(json.dumps(header))
    with pytest.raises(RapConfigError, match="cascade scores every sample in one round"):
        score(*tiny, pool(), store=store, **OPTIONS)


def test_p_answer_is_that_of_evidence_answer(tiny, whole):
    options = {k: v for k, v in OPTIONS.items() if k != "reward"}
    alone = score(*tiny, pool(), **options | {"evidence": "answer"}).table
    names = ["id", "status", "code", "p_answer1", "p_answer0", "js", "entropy1", "entropy0"]
    assert whole[1].table.select(names).equals(alone.select(names))
