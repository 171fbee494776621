"""Written by `rap export`: verl's own reward, and a log of it by sample.

    reward.custom_reward_function.path=.../rap_reward.py
    +reward.custom_reward_function.reward_kwargs.log=.../rewards.jsonl

`rap reselect SELECTION --rewards rewards.jsonl` reads the log: one line a completion.
"""

import json
import os
from typing import Any

from verl.utils.reward_score import default_compute_score


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: object,
    extra_info: dict[str, Any] | None = None,
    log: str | None = None,
    **more: Any,
) -> Any:
    score = default_compute_score(
        data_source, solution_str, ground_truth, extra_info=extra_info, **more
    )
    info = extra_info or {}
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
