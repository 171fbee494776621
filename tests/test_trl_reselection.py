"""Re-selection while a trainer runs, and groups that are filled again."""

from __future__ import annotations

import math

import pytest
from trl_inputs import selection_of, trainer

from rap.errors import RapConfigError
from rap.selection.reselection import NothingLeft, ReselectConfig
from rap.trl.data import prepare
from rap.trl.reselect import Reselect

# TRL 1.16 reads attributes that transformers 5.23 has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*is deprecated")


def test_reselection_by_rewards_takes_effect_a_batch_later(trl, tmp_path, pool):
    """Rewards that say: the first selection is trivial. All of it but the share that is
    kept goes, harder ones come in."""
    sel = selection_of(pool, [0, 2, 4, 6, 8, 10, 12, 14])
    first = set(sel.ids)

    def reward(id, completions, **columns):
        return [1.0 if name in first else float(k % 2) for k, name in enumerate(id)]

    made = trainer(
        tmp_path,
        prepare(pool),
        reward=reward,
        reselect=Reselect(sel, mode="rewards", every=3),
        max_steps=5,
    )
    made.train()
    (only,) = made.reselections
    assert only["step"] == 3 and only["gone"] == only["came"] == 6
    assert only["counts"]["stays_first"] == 2 and only["counts"]["leaves_trivial"] == 6
    dealt = [{made.pool_ids[i] for i in rows} for rows in made.order.dealt]
    assert set().union(*dealt[:4]) == first  # the fourth was dealt ahead
    assert dealt[4] - first


def test_reselection_that_leaves_less_than_a_batch_changes_nothing(trl, tmp_path, pool):
    sel = selection_of(pool, [1, 5, 6, 9])
    made = trainer(
        tmp_path,
        prepare(pool),
        reward=lambda completions, **columns: [1.0] * len(completions),
        reselect=Reselect(sel, mode="rewards", every=4, rules=ReselectConfig(size=1)),
        max_steps=4,
    )
    with pytest.warns(RuntimeWarning, match="step 4 leaves 1 prompts.* takes 2: the sel"):
        made.train()
    (only,) = made.reselections
    assert only["too_few"] and only["active"] == 4 and only["came"] == only["gone"] == 0


def test_reselection_that_leaves_nothing_changes_nothing(trl, tmp_path, pool, monkeypatch):
    def nothing(*_):
        raise NothingLeft("no sample is left to train on")

    monkeypatch.setattr(Reselect, "next_ids", nothing)
    sel = selection_of(pool, [1, 5, 6, 9])
    reselect = Reselect(sel, mode="rewards", every=2)
    made = trainer(tmp_path, prepare(pool), reselect=reselect, max_steps=3)
    with pytest.warns(RuntimeWarning, match="step 2 leaves 0 prompts"):
        made.train()
    assert made.reselections[0]["too_few"] and made.reselections[0]["active"] == 4


def test_reselection_off_trains_on_the_first_selection_only(trl, tmp_path, pool):
    sel = selection_of(pool, [1, 5, 6, 9])
    made = trainer(tmp_path, prepare(pool), reselect=Reselect(sel), max_steps=6)
    made.train()
    assert {made.pool_ids[i] for rows in made.order.dealt for i in rows} == set(sel.ids)
    assert made.reselections == []


def test_reselection_by_rescoring_asks_the_policy_as_it_is(trl, tmp_path, pool):
    from rap.config import ScoreConfig

    sel = selection_of(pool, [1, 5, 6, 9], lambda_a=10)
    config = ScoreConfig(sampling={"max_new_tokens": 8})  # 256 of random weights take long
    made = trainer(
        tmp_path,
        prepare(pool),
        reselect=Reselect(sel, mode="rescore", every=2, config=config),
        max_steps=4,
    )
    made.train()
    assert [r["step"] for r in made.reselections] == [2, 4]
    assert made.rescoring_seconds > 0 and made.model.training
    with pytest.raises(RapConfigError, match="does not know its data set"):
        Reselect(sel.__class__(sel.table, sel.settings), mode="rescore")


def test_rescoring_goes_on_as_the_selection_was_scored(pool):
    from rap.config import ScoreConfig

    sel = selection_of(pool, [1, 5, 6, 9], lambda_a=10)
    config = ScoreConfig(evidence="cascade", m1=3)
    sel.settings["scores"] = {"config": config.fingerprint()}
    assert Reselect(sel, mode="rescore").score_config() == config


def test_refill_replaces_groups_without_variance(trl, tmp_path, pool):
    barren = set(pool.ids[::2])

    def reward(id, completions, **columns):
        return [0.0 if name in barren else float(k % 2) for k, name in enumerate(id)]

    made = trainer(
        tmp_path, prepare(pool), reward=reward, reselect=Reselect(refill=3), max_steps=6
    )
    advantages = []
    inner = made._generate_and_score_completions
    made._generate_and_score_completions = lambda rows: _seen(inner(rows), advantages)
    made.train()
    done = made.refilled
    assert done["replaced"] > 0 and done["no_variance"] > 0
    assert done["groups"] >= 12 + done["replaced"]
    alike = [a.std() == 0 for batch in advantages for a in batch.view(-1, 4)]
    assert len(alike) == 12 and sum(alike) == done["kept_anyway"]


def _seen(batch, advantages):
    advantages.append(batch["advantages"])
    assert batch["num_items_in_batch"] == batch["completion_mask"].sum()
    return batch


def test_refill_in_rloo_goes_by_rewards_not_by_the_divergence(trl, tmp_path, pool):
    """RLOO's advantages contain the KL term, so that they always differ a little."""
    from rap.demo.tiny import tiny_qwen2_5_vl

    model, processor = tiny_qwen2_5_vl()
    model.save_pretrained(tmp_path / "start")  # RLOO reads its reference model there
    model = type(model).from_pretrained(tmp_path / "start")
    barren = set(pool.ids[::2])

    def reward(id, completions, **columns):
        return [0.0 if name in barren else float(k % 2) for k, name in enumerate(id)]

    made = trainer(
        tmp_path,
        prepare(pool),
        "RLOO",
        reward=reward,
        reselect=Reselect(refill=3),
        model=(model, processor),
        beta=0.05,
        max_steps=4,
    )
    made.train()
    assert made.refilled["no_variance"] > 0 and made.refilled["replaced"] > 0
    assert any(h.get("kl", 0) > 0 for h in made.state.log_history)


def test_refill_counts_what_was_judged():
    torch = pytest.importorskip("torch")
    pytest.importorskip("trl")
    from rap.trl.groups import totals, without_variance

    nan = math.nan
    rewards = torch.tensor([[1, 0], [0, 2], [nan, 2], [1, 0], [nan, nan], [1, nan]])
    totals = totals(rewards, torch.tensor([1.0, 0.5]))
    assert totals[:4].tolist() == [1] * 4 and totals[4].isnan() and totals[5] == 1
    assert without_variance(totals, 2) == [0, 1, 2]
    assert without_variance(torch.tensor([nan, nan, 0, nan, 0, 1]), 2) == [0, 1]


def test_refill_pads_both_batches_to_the_same_width():
    torch = pytest.importorskip("torch")
    pytest.importorskip("trl")
    from rap.trl.groups import exchange

    def batch(prompt, length, first):
        rows = torch.arange(first, first + 4)
        return {
            "prompt_ids": rows[:, None].repeat(1, prompt),
            "prompt_mask": torch.ones(4, prompt, dtype=torch.int64),
            "completion_ids": 100 + rows[:, None].repeat(1, length),
            "completion_mask": torch.ones(4, length, dtype=torch.int64),
            "mm_token_type_ids": torch.ones(4, prompt + length, dtype=torch.int64),
            "old_per_token_logps": rows[:, None].repeat(1, length) * 1.0,
            "advantages": rows * 1.0,
            "num_items_in_batch": torch.tensor(4 * length),
            "pixel_values": rows[:, None].repeat(1, 4).reshape(16, 1) * 1.0,
            "image_grid_thw": torch.tensor([[1, 2, 2]] * 4),
            "num_images": [1] * 4,
        }

    found = exchange(batch(2, 3, 0), batch(4, 2, 10), [(0, 1)], 2, pad=-1)
    assert found["prompt_ids"].tolist() == [
        [12] * 4,
        [13] * 4,
        [-1, -1, 2, 2],
        [-1, -1, 3, 3],
    ]
    assert found["prompt_mask"].sum(1).tolist() == [4, 4, 2, 2]
    assert found["completion_ids"][0].tolist() == [112, 112, -1]
    assert found["completion_ids"][3].tolist() == [103] * 3
    assert found["mm_token_type_ids"].tolist()[0] == [1] * 6 + [0]
    assert found["mm_token_type_ids"].tolist()[2] == [0, 0] + [1] * 5
    assert found["advantages"].tolist() == [12, 13, 2, 3]
    assert found["pixel_values"][:, 0].tolist() == [12] * 4 + [13] * 4 + [2] * 4 + [3] * 4
    assert found["num_items_in_batch"] == 2 + 2 + 3 + 3
