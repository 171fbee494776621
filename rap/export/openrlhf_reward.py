"""Written by `rap export`: OpenRLHF's reward that counts what rap counted.

    --reward.remote_url .../rap_reward.py
    --data.label_key rap_truth

A completion is graded by the rule that scored the data (rap-select must be installed where
OpenRLHF runs). OpenRLHF does not tell its reward which completions were cut off: all are
graded as finished.
"""

from typing import Any


def reward_func(queries: Any, prompts: Any, labels: Any, **more: Any) -> dict[str, Any]:
    import torch

    from rap.rewards.exported import reward, unpacked

    found = []
    for query, prompt, label in zip(queries, prompts, labels, strict=True):
        text = query[len(prompt) :] if query.startswith(prompt) else query
        found.append(reward(text, *unpacked(label)))
    rewards = torch.tensor(found, dtype=torch.float)
    return {"rewards": rewards, "scores": rewards, "extra_logs": {"accuracy": rewards}}
