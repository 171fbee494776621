"""The built-in reward, and rewards that are watched while a trainer calls them."""

from __future__ import annotations

import math
import types

import pytest
from trl_inputs import odd

from rap.errors import RapConfigError, RapInputError
from rap.trl.rewardlog import Outcome, read_rewards
from rap.trl.rewards import (
    builtin_reward,
    completion_text,
    end_tokens_of,
    tell_end_tokens,
    watched,
)


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
