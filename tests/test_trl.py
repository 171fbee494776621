"""Training on a selection with TRL: data, rewards, log, order, re-selection, resume.

The trainings are a few steps of the smallest model that goes through TRL; that a model
learns something is benchmarks/training.py's to show.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import types

import pytest

from rap.demo import world
from rap.errors import RapConfigError, RapInputError, RapStoreError
from rap.selection.reselection import NothingLeft, ReselectConfig
from rap.trl.data import prepare
from rap.trl.order import PromptOrder
from rap.trl.reselect import Reselect
from rap.trl.rewardlog import Outcome, RewardLog, grouped, read_rewards
from rap.trl.rewards import (
    builtin_reward,
    completion_text,
    end_tokens_of,
    tell_end_tokens,
    watched,
)

# TRL 1.16 reads attributes that transformers 5.23 has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*is deprecated")

# ---------------------------------------------------------------- the log


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


# ---------------------------------------------------------------- the order


def order(pool=10, active=None, batch=4, seed=3) -> PromptOrder:
    return PromptOrder(
        pool, range(pool) if active is None else active, batch=batch, seed=seed
    )


def test_order_deals_every_row_once_a_pass_and_never_twice_a_batch():
    dealt = order()
    batches = [dealt.batch_at(i) for i in range(50)]
    assert all(len(set(batch)) == 4 for batch in batches)
    flat = [row for batch in batches for row in batch]
    counts = [flat.count(row) for row in range(10)]
    assert set(counts) == {20}
    assert batches != [order(seed=4).batch_at(0)]


def steps(dealt: PromptOrder, numbers: range) -> dict[int, list[list[int]]]:
    """A trainer's life: batches looked ahead by one, spares, re-selections."""
    found = {}
    for i in numbers:
        found[i] = [dealt.batch_at(i)]
        dealt.batch_at(i + 1)
        if i % 5 == 4:
            found[i].append(dealt.spare(2, avoid=found[i][0]))
        if i % 7 == 6:
            dealt.replace(range(i % 3, 10 - i % 2))
    return found


@pytest.mark.parametrize("cut", [1, 5, 7, 23])
def test_order_restored_from_json_goes_on_the_same(cut):
    unbroken = steps(order(), range(30))
    killed = order()
    steps(killed, range(cut))
    saved = json.dumps(killed.state())
    steps(killed, range(cut, cut + 2))  # lost: after the checkpoint
    resumed = order()
    resumed.load(json.loads(saved))
    assert [resumed.batch_at(i) for i in range(cut)] == [unbroken[i][0] for i in range(cut)]
    assert steps(resumed, range(cut, 30)) == {i: unbroken[i] for i in range(cut, 30)}


def test_order_replace_keeps_the_turn_of_those_that_stay():
    dealt = order(pool=12, active=range(8), batch=2)
    first = set(dealt.batch_at(0)) | set(dealt.batch_at(1))
    assert dealt.replace([*range(4), 8, 9, 10]) == (3, 4)
    rest = [row for i in range(2, 20) for row in dealt.batch_at(i)]
    due = ({*range(4)} - first) | {8, 9, 10}
    assert set(rest[: len(due)]) == due
    assert set(rest) == {*range(4), 8, 9, 10}


def test_order_spares_avoid_the_batch_and_run_out():
    dealt = order(pool=6, batch=4)
    batch = dealt.batch_at(0)
    spare = dealt.spare(5, avoid=batch)
    assert len(spare) == 2 and not set(spare) & set(batch)
    assert dealt.spare(3, avoid=range(6)) == []


def test_order_refuses_by_name():
    with pytest.raises(RapConfigError, match="3 prompts are selected.* takes 4"):
        order(active=range(3))
    with pytest.raises(RapConfigError, match="rows 2 to 10 of a pool of 10"):
        order(active=range(2, 11))
    with pytest.raises(RapConfigError, match="seed = 3, this run has 4"):
        order(seed=4).load(order().state())
    with pytest.raises(RapConfigError, match="batch = 4, this run has 2"):
        order(batch=2).load(order().state())


# ---------------------------------------------------------------- the data


@pytest.fixture(scope="module")
def pool():
    pytest.importorskip("datasets")
    from rap.samples.sampleset import open_samples

    return open_samples(world.rows(world.draw(24, seed=2)))


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


def selection_of(pool, kept, **settings):
    """A selection of about these rows: their answers depend on the image, all others are
    right without it too (and as hard as their row number says)."""
    import pyarrow as pa

    from rap.scores.scores import Scores
    from rap.selection.choosing import choose

    rows = []
    for i, name in enumerate(pool.ids):
        right = (4, 0) if i in kept else (1 + i % 4, 5)
        for arm, passed in zip((True, False), right, strict=True):
            rows += [(name, arm, k < passed) for k in range(5)]
    names = ("id", "with_image", "correct")
    table = pa.table(dict(zip(names, zip(*rows, strict=True), strict=True)))
    scores = Scores.from_rollouts(table, dataset=pool)
    return choose(scores, budget=len(kept) / len(pool), **settings)


# ---------------------------------------------------------------- rewards


def test_builtin_reward_judges_as_the_checker_does():
    reward = builtin_reward()
    completions = [
        [{"role": "assistant", "content": "It is 4. The answer is 7."}],
        [{"role": "assistant", "content": "The answer is 4."}],
        "So (B).",
    ]
    found = reward(
        prompts=[None] * 3,
        completions=completions,
        solution=["7", "7", "12"],
        choices=[[], [], ["11", "12"]],
        trainer_state=None,
    )
    assert found == [1.0, 0.0, 1.0]
    with pytest.raises(RapInputError, match="needs a column 'solution'"):
        reward(prompts=[], completions=[], label=[])


def test_a_completion_that_was_cut_off_counts_as_when_scoring():
    """Its answer counts where it was marked; the last token tells, where it is known."""
    columns = {
        "prompts": [None] * 3,
        "completions": ["So it is 7", "So it is 7", "It is \\boxed{7}, because"],
        "completion_ids": [[5, 2], [5, 6], [5, 6]],
        "solution": ["7"] * 3,
    }
    assert builtin_reward()(**columns) == [1.0, 1.0, 1.0]  # nobody said what ends a turn
    assert builtin_reward(end_tokens=[2])(**columns) == [1.0, 0.0, 1.0]
    ends = types.SimpleNamespace(eos_token_id=[2, 3])
    model, tokenizer = (
        types.SimpleNamespace(generation_config=ends),
        types.SimpleNamespace(eos_token_id=1),
    )
    assert end_tokens_of(model, tokenizer) == {1, 2, 3}
    assert end_tokens_of(None, types.SimpleNamespace(tokenizer=tokenizer)) == {1}
    late, own = watched(builtin_reward()), builtin_reward(end_tokens=[6])
    tell_end_tokens([late, own, odd], model, tokenizer)
    assert late(**columns, id=["a"] * 3) == [1.0, 0.0, 1.0]
    assert own(**columns) == [0.0, 1.0, 1.0]  # what the user said stays


def test_completion_text_reads_parts():
    parts = [{"type": "text", "text": "a"}, {"type": "image"}]
    assert (
        completion_text([{"content": parts}, {"content": None}, {"content": "b"}]) == "ab"
    )


class State:
    global_step = 7


def test_watched_passes_rewards_on_and_logs_counts(tmp_path):
    metrics = {}
    reward = watched(lambda **columns: [1.0, None, 0.0, 0.0], tmp_path / "r.jsonl")
    columns = {"id": ["a", "a", "b", "b"], "trainer_state": State()}
    columns |= {"completions": [""] * 4, "log_metric": metrics.__setitem__}
    found = reward(prompts=[], **columns)
    assert found == [1.0, None, 0.0, 0.0]
    rows = read_rewards(tmp_path / "r.jsonl").to_pylist()
    assert [(r["id"], r["passed"], r["judged"], r["unjudged"]) for r in rows] == [
        ("a", 1, 1, 1),
        ("b", 0, 2, 0),
    ]
    assert rows[0]["step"] == 7
    assert metrics == {"rap/unjudged": 1, "rap/no_variance": 2}
    assert reward.rap_recorder.take() == {
        "a": Outcome(1, 1, 1, 1.0, 1.0),
        "b": Outcome(0, 2, 0, 0.0, 0.0),
    }
    assert reward.rap_recorder.take() == {}


def test_watched_names_a_reward_that_judges_nothing():
    reward = watched(lambda **columns: [None, math.nan])
    with pytest.raises(RapInputError, match="None or NaN for all 2 completions.*'a'"):
        reward(prompts=[], completions=["", ""], id=["a", "a"])


@pytest.mark.parametrize(
    "returned, message",
    [
        ([1.0], "'graded' returned 1 rewards for 2 completions"),
        (None, "'graded' returned None; expected a list"),
        (["good", 1.0], "'graded' returned .*expected a list with a number"),
        ([[1.0], [0.0]], "'graded' returned .*expected a list with a number"),
    ],
)
def test_watched_names_a_reward_that_returns_no_rewards(returned, message):
    def graded(**columns):
        return returned

    with pytest.raises(RapInputError, match=message):
        watched(graded)(prompts=[], completions=["", ""], id=["a", "a"])


def test_watched_keeps_infinity_from_the_trainer():
    reward = watched(lambda **columns: [math.inf, -math.inf, 1])
    assert reward(completions=[""] * 3, id=["a", "a", "b"]) == [None, None, 1.0]
    assert reward.rap_recorder.take()["a"] == Outcome(0, 0, 2)


def test_watched_needs_ids_and_a_function():
    with pytest.raises(RapInputError, match="the column 'id'.*has .*question"):
        watched(lambda **c: [1.0])(prompts=[], completions=[""], question=["q"])
    with pytest.raises(RapConfigError, match="reward is str"):
        watched("accuracy")


def test_watched_keeps_a_coroutine_function_one():
    import asyncio
    import inspect

    async def reward(prompts, completions, **columns):
        return [1.0 for _ in completions]

    kept = watched(reward)
    assert inspect.iscoroutinefunction(kept) and kept.__name__ == "reward"
    assert asyncio.run(kept(prompts=[], completions=["x"], id=["a"])) == [1.0]
    assert kept.rap_recorder.take()["a"].passed == 1


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


# ---------------------------------------------------------------- training


def odd(completions, **columns):
    """Something to learn for a model with random weights."""
    return [float(len(completion_text(c)) % 2) for c in completions]


@pytest.fixture
def trl():
    return pytest.importorskip("trl", reason="training needs trl")


def settings(out, algorithm="GRPO", **more):
    import trl

    options = dict(
        output_dir=str(out),
        per_device_train_batch_size=8,
        num_generations=4,
        max_completion_length=5,
        max_steps=3,
        learning_rate=1e-3,
        save_strategy="no",
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        bf16=False,
        beta=0.0,  # RLOO's reference model would be read from where the model came from
        disable_tqdm=True,
    )
    return getattr(trl, f"{algorithm}Config")(**options | more)


def trainer(out, data, algorithm="GRPO", reward=odd, reselect=None, model=None, **more):
    import rap.trl
    from rap.demo.tiny import tiny_qwen2_5_vl

    model, processor = model or tiny_qwen2_5_vl()
    return getattr(rap.trl, f"{algorithm}Trainer")(
        model,
        reward,
        args=settings(out, algorithm, **more),
        train_dataset=data,
        processing_class=processor,
        reselect=reselect,
    )


def weights(made):
    import torch

    return torch.cat([p.detach().flatten() for p in made.model.parameters()])


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


TWO_PROCESSES = """
import json, os, sys, warnings
warnings.simplefilter("ignore")
sys.path[:0] = [sys.argv[1], os.path.dirname(sys.argv[1])]
from pathlib import Path
import test_trl as tests
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


# ---------------------------------------------------------------- bad input


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
