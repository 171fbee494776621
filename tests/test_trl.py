"""Training on a selection with TRL: whole runs, resumed, in two processes.

The trainings are a few steps of the smallest model that goes through TRL; that a model
learns something is benchmarks/training.py's to show.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys

import pytest
from trl_inputs import odd, selection_of, settings, trainer, weights

from rap.demo import world
from rap.errors import RapConfigError, RapInputError
from rap.trl.data import prepare
from rap.trl.reselect import Reselect
from rap.trl.rewardlog import read_rewards
from rap.trl.rewards import builtin_reward, watched

# TRL 1.16 reads attributes that transformers 5.23 has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*is deprecated")


def test_importing_rap_trl_imports_no_torch_and_no_trl():
    code = "import sys, rap.trl; print({'torch', 'trl', 'transformers'} & set(sys.modules))"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "set()"


def test_no_ppo_is_said_by_name():
    import rap.trl

    with pytest.raises(AttributeError, match="TRL 1.16 has no PPO trainer"):
        rap.trl.PPOTrainer  # noqa: B018


@pytest.mark.parametrize("algorithm", ["GRPO", "RLOO"])
def test_selected_rows_go_into_trls_own_trainer(trl, tmp_path, pool, algorithm):
    """No class of ours: what ``prepare`` makes is TRL's multimodal format."""
    from rap.demo.tiny import tiny_qwen2_5_vl

    seen = []

    def reward(prompts, completions, id, images, solution, cause, **columns):
        seen.extend(id)
        assert all(len(pictures) == 1 for pictures in images)
        assert all(p[0]["content"][0]["type"] == "image" for p in prompts)
        return odd(completions)

    sel = selection_of(pool, [1, 5, 6, 9])
    model, processor = tiny_qwen2_5_vl()
    processor.tokenizer.padding_side = "left"
    made = getattr(trl, f"{algorithm}Trainer")(
        model=model,
        reward_funcs=reward,
        args=settings(tmp_path, algorithm),
        train_dataset=prepare(sel),
        processing_class=processor,
    )
    before = weights(made).clone()
    made.train()
    assert set(seen) <= set(sel.ids) and len(seen) == 3 * 8
    assert not weights(made).equal(before)


def test_a_dataset_in_trls_columns_goes_in_unchanged(trl, tmp_path):
    import datasets

    from rap.samples.sampleset import open_samples

    text = datasets.Value("string")
    features = {"id": text, "solution": text, "images": datasets.List(datasets.Image())}
    features["prompt"] = datasets.List({"role": text, "content": text})
    rows = [
        {
            "id": row["id"],
            "prompt": [{"role": "user", "content": row["question"]}],
            "images": [row["image"]],
            "solution": row["answer"],
        }
        for row in world.rows(world.draw(12, seed=4))
    ]
    mine = datasets.Dataset.from_list(rows, features=datasets.Features(features))
    sel = selection_of(open_samples(mine), [0, 3, 7])
    assert sel.dataset.features == mine.features
    made = trainer(tmp_path, sel.dataset, reward=builtin_reward())
    made.train()
    assert {i for rows in made.order.dealt for i in rows} == {0, 1, 2}
    assert sum(tried for _, tried in made.passes.values()) > 0


def test_the_demo_model_trains_with_the_builtin_reward(trl, tmp_path, pool):
    from rap.demo.model import load_demo_model

    made = trainer(
        tmp_path,
        prepare(pool),
        reward=watched(builtin_reward(), tmp_path / "r.jsonl"),
        model=load_demo_model(),
        max_steps=2,
        max_completion_length=32,
        learning_rate=1e-5,
    )
    assert made.reward_funcs[0].rap_end_tokens == set(made.eos_token_ids)
    made.train()
    table = read_rewards(tmp_path / "r.jsonl")
    assert set(table["judged"].to_pylist()) == {4}
    # it reads pictures: many answers are right, by chance alone hardly one would be
    assert sum(table["passed"].to_pylist()) >= 4


def test_log_holds_what_was_dealt(trl, tmp_path, pool):
    path = tmp_path / "r.jsonl"
    made = trainer(tmp_path, prepare(pool), reward=watched(odd, path), max_steps=5)
    made.train()
    table = read_rewards(path)
    logged = [set() for _ in range(5)]
    for name, step in zip(table["id"].to_pylist(), table["step"].to_pylist(), strict=True):
        logged[step].add(pool.ids.index(name))
    assert logged == [set(rows) for rows in made.order.dealt[:5]]
    assert len(made.order.dealt) == 6  # one ahead: the loader's


@pytest.mark.parametrize("algorithm", ["GRPO", "RLOO"])
def test_resumed_training_is_the_unbroken_one(trl, tmp_path, pool, algorithm):
    """Order, re-selections, log and weights; a checkpoint in the middle of an epoch and
    of a re-selection's interval."""
    sel = selection_of(pool, [1, 5, 6, 9])

    def run(out, resume=None):
        made = trainer(
            out,
            prepare(pool),
            algorithm,
            reward=watched(odd, out / "r.jsonl"),
            reselect=Reselect(sel, mode="rewards", every=2),
            max_steps=8,
            save_strategy="steps",
            save_steps=3,
        )
        made.train(resume_from_checkpoint=resume)
        return made

    unbroken = run(tmp_path / "whole")
    log = read_rewards(tmp_path / "whole" / "r.jsonl")
    # as a crash after step 8 would leave it: the log has steps that are done again
    resumed = run(tmp_path / "whole", str(tmp_path / "whole" / "checkpoint-3"))
    assert resumed.order.state() == unbroken.order.state()
    assert resumed.reselections == unbroken.reselections
    assert len(resumed.reselections) == 4 and resumed.reselections[0]["step"] == 2
    assert resumed.passes == unbroken.passes
    assert read_rewards(tmp_path / "whole" / "r.jsonl").equals(log)
    assert weights(resumed).equal(weights(unbroken))


def test_of_several_rewards_the_watched_one_counts(trl, tmp_path, pool):
    """TRL lets a function return None for samples that are not its own."""

    def form(completions, **columns):
        return [None] * len(completions)

    sel = selection_of(pool, [1, 5, 6, 9])
    made = trainer(tmp_path, prepare(pool), reward=[form, odd], reselect=Reselect(sel))
    made.train()
    assert made.passes == {}
    reselect = Reselect(sel, mode="rewards")
    with pytest.raises(RapConfigError, match="2 reward functions: wrap the one"):
        trainer(tmp_path, prepare(pool), reward=[form, odd], reselect=reselect)
    both = [form, watched(odd)]
    made = trainer(tmp_path, prepare(pool), reward=both, reselect=reselect)
    made.train()
    assert made.passes


TWO_PROCESSES = """
import json, os, sys, warnings
warnings.simplefilter("ignore")
sys.path[:0] = [sys.argv[1], os.path.dirname(sys.argv[1])]
from pathlib import Path
import trl_inputs as tests
from rap.demo import world
from rap.samples import open_samples
from rap.trl import Reselect, prepare, watched

out = Path(sys.argv[2])
pool = open_samples(world.rows(world.draw(24, seed=2)))
sel = tests.selection_of(pool, [0, 2, 4, 6, 8, 10, 12, 14])
first = set(sel.ids)

def reward(id, completions, **columns):
    return [1.0 if name in first else float(k % 2) for k, name in enumerate(id)]

made = tests.trainer(
    out,
    prepare(pool),
    reward=watched(reward, out / "r.jsonl"),
    reselect=Reselect(sel, mode="rewards", every=3),
    per_device_train_batch_size=4,
    max_steps=5,
)
made.train()
state = {"order": made.order.state(), "passes": made.passes, "again": made.reselections}
(out / f"{os.environ['RANK']}.json").write_text(json.dumps(state))
import torch.distributed
torch.distributed.barrier()  # who leaves first must not abort the other
torch.distributed.destroy_process_group()
os._exit(0)  # threads of gloo may abort Python's own way out on a busy machine
"""


@pytest.mark.proof
def test_two_processes_agree_on_the_order(trl, tmp_path):
    """Each sees its own half of the rewards; re-selection is by all of them."""
    (tmp_path / "two.py").write_text(TWO_PROCESSES)
    run = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    here = os.path.dirname(os.path.abspath(__file__))
    run += ["--standalone", tmp_path / "two.py", here, tmp_path]
    done = subprocess.run(run, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr[-3000:]
    states = [(tmp_path / f"{rank}.json").read_text() for rank in (0, 1)]
    assert states[0] == states[1]
    (only,) = json.loads(states[0])["again"]
    assert only["came"] == only["gone"] == 6
    table = read_rewards(tmp_path / "r.jsonl")
    assert table["step"].to_pylist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_a_reward_of_none_or_nan_is_counted_and_training_goes_on(trl, tmp_path, pool):
    def reward(completions, **columns):
        return [[1.0, None, math.nan, 0.0][k % 4] for k, _ in enumerate(completions)]

    made = trainer(tmp_path, prepare(pool), reward=watched(reward, tmp_path / "r.jsonl"))
    made.train()
    table = read_rewards(tmp_path / "r.jsonl")
    assert set(table["judged"].to_pylist()) == set(table["unjudged"].to_pylist()) == {2}
    assert weights(made).isfinite().all()
    assert {h["rap/unjudged"] for h in made.state.log_history if "rap/unjudged" in h} == {4}


def test_a_group_without_variance_is_counted_and_changes_nothing(trl, tmp_path, pool):
    made = trainer(tmp_path, prepare(pool), reward=lambda completions, **c: [1.0] * 8)
    before = weights(made).clone()
    made.train()
    counted = {h["rap/no_variance"] for h in made.state.log_history if "reward" in h}
    assert counted == {2} and weights(made).equal(before)


@pytest.mark.proof
def test_a_crash_of_the_trainer_leaves_store_and_log_whole(trl, tmp_path, pool):
    from rap.demo.tiny import tiny_qwen2_5_vl
    from rap.scores.scores import Scores
    from rap.scoring.run import score

    score(*tiny_qwen2_5_vl(), pool, store=tmp_path / "scores", progress=False)
    files = {p: p.read_bytes() for p in sorted((tmp_path / "scores").rglob("*.parquet"))}
    calls = []

    def reward(completions, **columns):
        calls.append(1)
        return [None] * 8 if len(calls) == 3 else odd(completions)

    log = tmp_path / "scores.rewards.jsonl"
    made = trainer(tmp_path, prepare(pool), reward=watched(reward, log), max_steps=9)
    with pytest.raises(RapInputError, match="None or NaN for all 8 completions"):
        made.train()
    assert files and files == {p: p.read_bytes() for p in files}
    assert len(Scores.load(tmp_path / "scores")) == 24
    assert set(read_rewards(log)["step"].to_pylist()) == {0, 1}
