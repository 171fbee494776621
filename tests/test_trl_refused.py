"""Training that is refused, or ends with a name: bad rows, settings, checkpoints."""

from __future__ import annotations

import json

import pytest
from trl_inputs import odd, selection_of, trainer

from rap.demo import world
from rap.errors import RapConfigError, RapInputError
from rap.trl.data import prepare
from rap.trl.reselect import Reselect
from rap.trl.rewards import watched

# TRL 1.16 reads attributes that transformers 5.23 has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*is deprecated")


def test_an_image_that_vanishes_in_mid_training_is_named(trl, tmp_path):
    path = world.write(world.draw(6, seed=2), tmp_path / "data")

    def reward(completions, id, **columns):
        for name in set(id):
            (tmp_path / "data" / "images" / f"{name}.png").unlink(missing_ok=True)
        return odd(completions)

    made = trainer(tmp_path, prepare(path), reward=reward, max_steps=20)
    with pytest.raises(RapInputError, match="selection-2-0.*image_missing"):
        made.train()


def test_a_text_that_stands_for_a_picture_is_named(trl, tmp_path, pool):
    def place(row):
        content = row["prompt"][0]["content"] + " <|image_pad|>"
        return {"id": row["id"], "prompt": [{"role": "user", "content": content}]}

    rows = [place(row) | {"images": row["images"]} for row in prepare(pool)]
    import datasets

    made = trainer(tmp_path, datasets.Dataset.from_list(rows))
    with pytest.raises(RapInputError, match="'selection-2-.*holds '<.image_pad.>'"):
        made.train()


def test_a_budget_smaller_than_a_batch_is_refused(trl, tmp_path, pool):
    with pytest.raises(RapConfigError, match="1 prompts are selected.* takes 2 different"):
        trainer(tmp_path, prepare(pool), reselect=Reselect(selection_of(pool, [3])))


def test_resuming_with_another_selection_is_refused(trl, tmp_path, pool):
    sel = selection_of(pool, [1, 5, 6, 9])
    save = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1}
    trainer(tmp_path, prepare(pool), reselect=Reselect(sel), **save).train()
    checkpoint = str(tmp_path / "checkpoint-1")
    for match, other in {
        "another selection": Reselect(selection_of(pool, [1, 5, 6])),
        "another mode": Reselect(sel, mode="rewards"),
        "another settings": Reselect(sel, refill=1),
    }.items():
        with pytest.raises(RapConfigError, match=match):
            made = trainer(tmp_path, prepare(pool), reselect=other, max_steps=2)
            made.train(resume_from_checkpoint=checkpoint)
    with pytest.raises(RapConfigError, match="another num_generations"):
        made = trainer(tmp_path, prepare(pool), reselect=Reselect(sel), num_generations=2)
        made.train(resume_from_checkpoint=checkpoint)
    with pytest.raises(RapConfigError, match="another algorithm .GRPO, here RLOO"):
        made = trainer(tmp_path, prepare(pool), "RLOO", reselect=Reselect(sel))
        made.train(resume_from_checkpoint=checkpoint)
    with pytest.raises(RapConfigError, match="another pool"):  # rows have other numbers
        turned = prepare(pool).select(range(len(pool) - 1, -1, -1))
        made = trainer(tmp_path, turned, reselect=Reselect(sel))
        made.train(resume_from_checkpoint=checkpoint)
    with pytest.raises(RapConfigError, match="seed = 42, this run has 7"):
        made = trainer(tmp_path, prepare(pool), reselect=Reselect(sel), seed=7)
        made.train(resume_from_checkpoint=checkpoint)
    state = json.loads((tmp_path / "checkpoint-1" / "trainer_state.json").read_text())
    del state["stateful_callbacks"]["RapReselection"]
    (tmp_path / "checkpoint-1" / "trainer_state.json").write_text(json.dumps(state))
    with pytest.raises(RapConfigError, match="made without rap's sampler"):
        made = trainer(tmp_path, prepare(pool), reselect=Reselect(sel))
        made.train(resume_from_checkpoint=checkpoint)


def test_what_makes_no_sense_is_refused_by_name(trl, tmp_path, pool):
    sel = selection_of(pool, [1, 5, 6, 9])
    with pytest.raises(RapConfigError, match="it is the whole pool, prepare"):
        trainer(tmp_path, prepare(sel), reselect=Reselect(sel, mode="rewards"))
    with pytest.raises(RapConfigError, match="1 ids .* more than once.*selection-2-000003"):
        trainer(tmp_path, prepare(pool).select([0, 3, 4, 3]))
    with pytest.raises(RapConfigError, match="shuffle_dataset = False"):
        trainer(tmp_path, prepare(pool), shuffle_dataset=False)
    for match, options in {
        "mode = 'on'": {"mode": "on"},
        "every = 0": {"every": 0},
        "refill = -1": {"refill": -1},
        "needs the first selection": {"mode": "rewards"},
    }.items():
        with pytest.raises(RapConfigError, match=match):
            Reselect(**options)
    with pytest.raises(RapConfigError, match="selected ids are not in train_dataset"):
        trainer(tmp_path, prepare(selection_of(pool, [2, 3])), reselect=Reselect(sel))
    with pytest.raises(RapConfigError, match="no id column 'name'"):
        trainer(tmp_path, prepare(pool), reselect=Reselect(id_column="name"))
    twice = [watched(odd), watched(odd)]
    with pytest.raises(RapConfigError, match="2 reward functions are watched"):
        trainer(tmp_path, prepare(pool), reward=twice)
