"""The rows that ``prepare`` makes for TRL."""

from __future__ import annotations

import pytest
from trl_inputs import selection_of, trainer

from rap.demo import world
from rap.errors import RapConfigError, RapInputError
from rap.trl.data import prepare
from rap.trl.reselect import Reselect

# TRL 1.16 reads attributes that transformers 5.23 has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*is deprecated")


def test_prepare_makes_the_rows_that_trl_takes(pool):
    data = prepare(pool)
    row = data[3]
    assert row["prompt"] == [{"role": "user", "content": pool[3].question}]
    assert [(im.size, im.mode) for im in row["images"]] == [((84, 84), "RGB")]
    assert row["solution"] == pool[3].answer and row["id"] == pool[3].id
    assert row["cause"] in world.CAUSES and "image" not in row
    assert list(data["id"]) == pool.ids and len(data) == 24


def test_prepare_writes_choices_as_they_were_scored(pool):
    row = dict(pool.row(0)) | {"choices": ["1", "2"], "answer": "2"}
    (found,) = prepare([row], prompt_template="Look. {question}{choices}")
    text = f"Look. {row['question']}\n(A) 1\n(B) 2"
    assert found["prompt"][0]["content"] == text and found["choices"] == ["1", "2"]


def test_prepare_takes_a_selection_by_its_ids(pool):
    sel = selection_of(pool, [1, 5, 6])
    assert list(prepare(sel)["id"]) == [pool.ids[i] for i in (1, 5, 6)]
    from rap.samples.sampleset import open_samples

    other = open_samples(world.rows(world.draw(4, seed=9)))
    with pytest.raises(RapInputError, match="3 of 3 selected samples are not in the data"):
        prepare(sel.__class__(sel.table, sel.settings, other))
    with pytest.raises(RapInputError, match="does not know its data set"):
        prepare(sel.__class__(sel.table, sel.settings, None))
    none = selection_of(pool, [1], lambda_c=1.0)
    with pytest.raises(RapInputError, match="no sample is selected"):
        prepare(none)


def test_prepare_names_the_image_that_vanished(tmp_path):
    path = world.write(world.draw(3, seed=2), tmp_path)
    data = prepare(path)
    assert data[1]["images"][0].size == (84, 84)
    name = data.with_format(None)["id"][1]
    (tmp_path / "images" / f"{name}.png").unlink()
    with pytest.raises(RapInputError, match=f"{name}.*image_missing.*resume from the last"):
        data[1]
    (tmp_path / "images" / f"{name}.png").write_bytes(b"")
    with pytest.raises(RapInputError, match="image_unreadable"):
        data[1]


def test_the_pool_has_the_prompts_that_were_scored(trl, tmp_path, pool):
    sel = selection_of(pool, [1, 5, 6, 9])
    scored = {"config": {"prompt_template": "Look closely. {question}"}}
    sel = sel.__class__(sel.table, {**sel.settings, "scores": scored}, pool)
    whole = prepare(sel, pool=True)
    assert len(whole) == len(pool) and len(prepare(sel)) == 4
    assert whole[0]["prompt"][0]["content"].startswith("Look closely. ")
    save = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1}
    trainer(tmp_path, whole, reselect=Reselect(sel), **save).train()
    made = trainer(tmp_path, prepare(pool), reselect=Reselect(sel), max_steps=2)
    with pytest.raises(RapConfigError, match="another prompt_template"):
        made.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
