"""Samples that cannot be scored are quarantined, and too many stop the run."""

from __future__ import annotations

import copy
import math
import re

import pytest
import torch
from scoring_inputs import FEW, STEP, make_rows, png, stable

import rap
from rap.config import Sampling
from rap.errors import RapInputError, RapModelError
from rap.scores.store import ScoreStore
from rap.scores.table import VOLATILE_COLUMNS
from rap.scoring.run import score


def test_shuffle_skips_a_partner_that_is_bad(tiny):
    rows = make_rows(3)
    rows[1]["image"] = {"bytes": b"no image", "path": None}
    options = {"evidence": "answer", "counterfactual": "shuffle", "max_bad_fraction": 0.5}
    assert score(*tiny, rows, **options).meta["counts"] == {
        "quarantined_image_unreadable": 1,
        "scored": 2,
    }
    with pytest.raises(RapInputError, match="two samples"):
        score(*tiny, rows[:1], **options)


def poison(model, token: int):
    """NaN in the embedding of one token: only sequences that hold it are touched."""

    def hook(module, args, output):
        return output.masked_fill((args[0] == token)[..., None], math.nan)

    return model.get_input_embeddings().register_forward_hook(hook)


@pytest.mark.parametrize("evidence", ["answer", "logits", "rollouts"])
def test_fault_21_nan_quarantines_its_own_sample_only(tiny, evidence):
    (token,) = tiny[1].tokenizer("\u00fe", add_special_tokens=False)["input_ids"][-1:]
    rows = make_rows(7)
    rows[2]["question"] += " \u00fe"
    options = {
        "evidence": evidence,
        "m1": 2,
        "m0": 2,
        "sampling": FEW,
        "batch_size": 4,
        "max_bad_fraction": 0.5,
    }
    clean = score(*tiny, make_rows(7), **options).table.to_pylist()
    hook = poison(tiny[0], token)
    try:
        table = score(*tiny, rows, **options).table.to_pylist()
    finally:
        hook.remove()
    bad = table[2]
    assert (bad["status"], bad["stage"], bad["code"]) == (
        "quarantined",
        "model",
        "nonfinite",
    )
    assert re.search("with(out)? the image", bad["message"])
    assert all(bad[name] is None for name in ("kl", "log_psi", "p_answer1", "c1", "m0"))
    for i in (0, 1, 3, 4, 5, 6):
        for name, value in clean[i].items():
            if name not in VOLATILE_COLUMNS:
                assert table[i][name] == value or table[i][name] == pytest.approx(
                    value, rel=STEP
                )


def test_bad_rows_and_images_are_quarantined_and_counted(tiny, tmp_path):
    rows = make_rows(12)
    rows[0]["image"] = {"bytes": None, "path": "../../etc/passwd"}
    rows[1]["image"] = {"bytes": png(1)[:200], "path": None}
    rows[2]["answer"] = None
    rows[3]["question"] = "Look at <|image_pad|>"
    rows[4]["image"] = {"bytes": None, "path": "missing.png"}
    rows[5]["question"] = "long " * 9000
    scores = score(*tiny, rows, root=tmp_path, max_bad_fraction=0.6, batch_size=4)
    table = scores.table.to_pylist()
    assert [row["code"] for row in table] == [
        "path_outside_root",
        "image_truncated",
        "bad_answer",
        "image_count",
        "image_missing",
        "prompt_too_long",
        *[None] * 6,
    ]
    assert [row["index"] for row in table] == list(range(12))
    assert [row["id"] for row in table] == [row["id"] for row in rows]
    assert all(row["message"] for row in table[:6])
    assert sum(scores.meta["counts"].values()) == 12
    assert scores.meta["counts"]["scored"] == 6
    chosen = rap.choose(scores, budget=0.5)
    assert not {0, 1, 2, 3, 4, 5} & set(chosen.indices.tolist())


def test_too_many_bad_samples_stop_the_run_and_keep_the_shards(tiny, tmp_path):
    rows = make_rows(60)
    for row in rows[20:30]:
        row["image"] = {"bytes": b"<html>", "path": None}
    with pytest.raises(RapInputError, match="10 of 60 .*image/image_unreadable: 10"):
        score(
            *tiny, rows, store=tmp_path, max_bad_fraction=0.16, shard_size=8, batch_size=4
        )
    fingerprinted = ScoreStore.load(tmp_path)
    done = set(range(8)) - set(fingerprinted.missing())
    assert {0, 1, 2} <= done and 7 not in done  # stopped as soon as it was hopeless
    scores = score(*tiny, rows, store=tmp_path, max_bad_fraction=0.17, shard_size=8)
    assert scores.meta["counts"]["quarantined_image_unreadable"] == 10
    # the finished store says so too, without scoring
    with pytest.raises(RapInputError, match="10 of 60"):
        score(*tiny, rows, store=tmp_path, max_bad_fraction=0.16, shard_size=8)
    warnings = rap.choose(rap.Scores.load(tmp_path)).warnings
    assert any("refused: 10 of 60 samples are bad" in text for text in warnings)


def test_too_many_bad_samples_lose_no_row(tiny, tmp_path):
    """Rows of the shard in progress, and those of a shard whose end is the last straw. Of a
    shard the bad ones come first; 20 have to be seen."""
    rows = make_rows(24)
    for i in (0, 10, 11, 23):
        rows[i]["image"] = {"bytes": b"<html>", "path": None}
    options = {"evidence": "logits", "batch_size": 4, "max_bad_fraction": 0.15}
    for shard_size, kept in ((24, 20), (12, 21), (50, 20)):
        options |= {"store": tmp_path / f"{shard_size}", "shard_size": shard_size}
        with pytest.raises(RapInputError, match=f"4 of 24 .*{kept} seen"):
            score(*tiny, rows, **options)
        assert ScoreStore.load(options["store"]).n_kept() == kept
    options |= {"store": tmp_path / "end", "shard_size": 20}
    with pytest.raises(RapInputError, match="4 of 20 .*20 seen"):
        score(*tiny, rows[:12] + rows[-8:], **options)
    assert ScoreStore.load(options["store"]).missing() == []
    # stopped in the middle, after the first batch that shows 20 samples: the bad come first
    options |= {"store": tmp_path / "middle", "max_bad_fraction": 0.05, "shard_size": 30}
    with pytest.raises(RapInputError, match="4 of 24 .*20 seen"):
        score(*tiny, rows, **options)
    assert ScoreStore.load(tmp_path / "middle").n_kept() == 20
    assert len(score(*tiny, rows, **options | {"max_bad_fraction": 1.0})) == 24


@pytest.mark.parametrize("n", [2, pytest.param(10, marks=pytest.mark.proof)])
def test_one_bad_sample_never_stops_a_run(tiny, n):
    rows = make_rows(n)
    rows[1]["image"] = {"bytes": b"<html>", "path": None}
    counts = score(*tiny, rows).meta["counts"]
    assert counts == {"quarantined_image_unreadable": 1, "scored": n - 1}
    rows = make_rows(10)
    for i in (1, 2):
        rows[i]["image"] = {"bytes": b"<html>", "path": None}
    with pytest.raises(RapInputError, match="2 of 10"):
        score(*tiny, rows)


def test_fault_18_nothing_usable_is_an_error(tiny):
    with pytest.raises(RapInputError):
        score(*tiny, [])
    rows = make_rows(3)
    for row in rows:
        row["image"] = {"bytes": b"<html>", "path": None}
    with pytest.raises(RapInputError, match="3 of 3 .*none is left"):
        score(*tiny, rows, max_bad_fraction=1.0)
    (one,) = score(*tiny, make_rows(1)).table.to_pylist()
    assert one["status"] == "scored"


def test_fault_23_empty_responses(tiny):
    model, processor = tiny
    theirs = model.generation_config.eos_token_id
    model.generation_config.eos_token_id = list(range(len(processor.tokenizer)))
    rows = make_rows(4)
    rows[1].pop("solution")
    try:
        for options in ({"evidence": "rollouts", "m1": 2, "m0": 2}, {"evidence": "logits"}):
            if options["evidence"] == "rollouts":
                with pytest.raises(RapModelError, match="4 of 4 .*model/empty_response: 4"):
                    score(*tiny, rows, sampling=FEW, max_bad_fraction=1.0, **options)
            else:  # only the one without a solution needs a completion
                table = score(*tiny, rows, max_bad_fraction=0.3, **options).table
                assert table["code"].to_pylist() == [None, "empty_response", None, None]
    finally:
        model.generation_config.eos_token_id = theirs


def test_an_empty_completion_is_a_wrong_one(tiny):
    """A third of all tokens end the turn, so some completions are empty."""
    model, processor = tiny
    theirs = model.generation_config.eos_token_id
    model.generation_config.eos_token_id = list(range(0, len(processor.tokenizer), 3))
    options = {"evidence": "rollouts", "m1": 4, "m0": 4, "sampling": FEW}
    try:
        scores = score(*tiny, make_rows(8), max_bad_fraction=0.5, **options)
    finally:
        model.generation_config.eos_token_id = theirs
    kept = scores.rollouts.to_pylist()
    empty = [r for r in kept if not r["text"].strip()]
    assert 5 < len(empty) < 40
    assert all(r["correct"] is False and r["code"] == "empty_response" for r in empty)
    for got in scores.table.to_pylist():
        mine = [r for r in empty if r["id"] == got["id"] and r["arm"] == "image"]
        assert (got["code"] == "empty_response") == (len(mine) == 4)
        assert got["m0"] == 4 or got["m0"] is None


def test_fault_23_a_response_of_one_token_is_too_short_for_psi(tiny):
    rows = make_rows(2)
    for row in rows:
        row["choices"], row["answer"] = None, "4"
    table = score(*tiny, rows, evidence="answer", answer_prefix="\\boxed{").table
    assert table["n_response"].to_pylist() == [1, 1]
    assert table["log_psi"].to_pylist() == [-math.inf] * 2
    assert table["psi_position"].to_pylist() == [-1, -1]
    assert table["psi_token"].to_pylist() == [None, None]
    assert table["status"].to_pylist() == ["scored"] * 2
    assert len(rap.choose(rap.Scores(table), rule="paper", lambda_c=-1.0)) <= 2


def test_degenerate_rollouts_stop_the_run(tiny):
    options = {"evidence": "rollouts", "m1": 3, "m0": 3, "batch_size": 4}
    greedy = Sampling(top_k=1, max_new_tokens=8)
    with pytest.raises(RapModelError, match="8 of 8 groups .*identical.*top_k=1"):
        score(*tiny, make_rows(12), sampling=greedy, **options)
    scores = score(*tiny, make_rows(12), sampling=greedy, allow_degenerate=True, **options)
    assert scores.meta["counts"] == {"scored": 12}


def test_answers_without_any_probability_stop_the_run(tiny):
    """Random logits far apart: each token of the answer is one in e**1000."""
    model, processor = copy.deepcopy(tiny[0]), tiny[1]
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(1e6)
    options = {"evidence": "answer", "batch_size": 8}
    with pytest.raises(RapInputError, match=r"median p\(answer\) a token is .* 2\d sam"):
        score(model, processor, make_rows(24), **options)
    scores = score(model, processor, make_rows(24), allow_degenerate=True, **options)
    assert len(scores) == 24
    few = score(model, processor, make_rows(4), **options)  # too few to tell
    assert few.meta["counts"] == {"scored": 4}


def test_degenerate_rollouts_of_few_samples_and_of_earlier_runs(tiny, tmp_path):
    options = {"evidence": "rollouts", "m1": 3, "m0": 3, "batch_size": 1}
    options |= {"sampling": Sampling(top_k=1, max_new_tokens=8)}
    with pytest.raises(RapModelError, match="2 of 2 groups"):  # one sample, two arms
        score(*tiny, make_rows(1), **options)
    # six samples in a partial shard and two in a whole one, then one run more
    options |= {"store": tmp_path, "shard_size": 4}
    with pytest.raises(RapModelError, match="8 of 8 groups"):
        score(*tiny, make_rows(6), **options)
    there = ScoreStore.load(tmp_path)
    assert (there.n_kept(), there.parts()) == (3, [0])
    with pytest.raises(RapModelError, match="8 of 8 groups"):  # three, and one sample more
        score(*tiny, make_rows(6), **options)
    scores = score(*tiny, make_rows(6), allow_degenerate=True, **options)
    assert len(scores) == 6
    assert ScoreStore.load(tmp_path).tally(0) == {"groups": 8, "degenerate": 8}
    with pytest.raises(RapModelError, match="12 of 12 groups"):  # nothing left to score
        score(*tiny, make_rows(6), **options)


def test_quarantined_samples_can_be_retried(tiny, tmp_path):
    rows, good = make_rows(9), tmp_path / "4.png"
    for i, row in enumerate(rows):
        path = tmp_path / f"{i}.png"
        if i != 4:
            path.write_bytes(row["image"]["bytes"])
        row["content"], row["image"] = row["image"]["bytes"], path.name
    contents = [row.pop("content") for row in rows]
    options = {"store": tmp_path / "store", "shard_size": 3, "root": tmp_path}
    first = score(*tiny, rows, **options)
    assert first.meta["counts"] == {"scored": 8, "quarantined_image_missing": 1}
    good.write_bytes(contents[4])
    assert score(*tiny, rows, **options).meta["counts"] == first.meta["counts"]
    again = score(*tiny, rows, retry_quarantined=True, **options)
    assert again.meta["counts"] == {"scored": 9}
    fresh = score(*tiny, rows, **options | {"store": tmp_path / "fresh"})
    assert stable(again.table).equals(stable(fresh.table))
