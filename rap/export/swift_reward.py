"""Written by `rap export`: ms-swift's reward that counts what rap counted.

    --external_plugins .../rap_reward.py --reward_funcs rap

A completion is graded by the rule that scored the data (rap-select must be installed where
ms-swift runs). Where the rollout says that it was cut off, only an answer that it had
marked and completed counts.
"""

from typing import Any

from swift.rewards import ORM, orms


class RapReward(ORM):  # type: ignore[misc]  # ms-swift is not installed here
    def __call__(
        self, completions: list[str], solution: list[str], choices: Any = None, **more: Any
    ) -> list[float]:
        from rap.rewards.exported import reward

        count = len(completions)
        reasons = more.get("finish_reason") or [None] * count
        cut = more.get("is_truncated") or [reason == "length" for reason in reasons]
        rows = zip(completions, solution, choices or [()] * count, cut, strict=True)
        return [
            reward(text, answer, options, finished=not over)
            for text, answer, options, over in rows
        ]


orms["rap"] = RapReward
