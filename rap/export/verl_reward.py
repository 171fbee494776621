"""Written by `rap export`: the reward that counts what rap counted, and a log by sample.

    reward.custom_reward_function.path=.../rap_reward.py
    +reward.custom_reward_function.reward_kwargs.log=.../rewards.jsonl

A completion is graded by the rule that scored the data (rap-select must be installed where
verl runs): 1.0 for a right answer, else 0.0. Rows with a data_source of your own, and all
with `reward_kwargs.judge=verl`, get verl's reward for their data_source.
verl does not tell its reward which completions were cut off: all are graded as finished.
`rap reselect SELECTION --rewards rewards.jsonl` reads the log: one line a completion.
"""

import json
import os
from typing import Any

SOURCE = "hiyouga/geometry3k"  # what `rap export` writes where no data_source was given


def _as_rap_scored(text: str, truth: str, choices: Any) -> float:
    try:
        from rap.rewards.exported import reward
    except ImportError as error:
        raise ImportError(
            "rap_reward.py grades as rap scored and needs it here: pip install --no-deps "
            "rap-select (in a clone of the repository: pip install --no-deps .); or set "
            "reward_kwargs.judge=verl for verl's own reward"
        ) from error
    return reward(text, truth, choices)


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: dict[str, Any] | None = None,
    log: str | None = None,
    judge: str | None = None,
    **more: Any,
) -> Any:
    info = extra_info or {}
    if judge == "verl" or (judge is None and data_source != SOURCE):
        from verl.utils.reward_score import default_compute_score

        score = default_compute_score(
            data_source, solution_str, ground_truth, extra_info=extra_info, **more
        )
    else:
        score = _as_rap_scored(solution_str, ground_truth, info.get("choices"))
    if log is not None and info.get("split") == "train":
        reward = score["score"] if isinstance(score, dict) else score
        line = json.dumps({"id": info["index"], "reward": float(reward)}) + "\n"
        # one write to the end of the file: many workers may log at once
        handle = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(handle, line.encode())
        finally:
            os.close(handle)
    return score
