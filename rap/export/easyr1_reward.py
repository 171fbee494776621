"""Written by `rap export`: EasyR1's reward that counts what rap counted.

    worker.reward.reward_function=.../rap_reward.py:compute_score
    data.answer_key=rap_truth

A completion is graded by the rule that scored the data (rap-select must be installed where
EasyR1 runs). With worker.reward.reward_function_kwargs.max_response_length set to
data.max_response_length, a completion of that many tokens counts as cut off, as when
scoring; without it EasyR1 does not tell.
"""

from typing import Any


def compute_score(rewards: Any, max_response_length: int | None = None) -> Any:
    """reward_type batch (a list comes in) or sequential (one dict)."""
    if isinstance(rewards, dict):
        return _score(rewards, max_response_length)
    return [_score(one, max_response_length) for one in rewards]


def _score(one: dict[str, Any], most: int | None) -> dict[str, float]:
    from rap.rewards.exported import reward, unpacked

    cut = most is not None and int(one["response_length"]) >= most
    answer, choices = unpacked(one["ground_truth"])
    right = reward(one["response"], answer, choices, finished=not cut)
    return {"overall": right, "accuracy": right}
