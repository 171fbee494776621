"""Training on a selection with TRL: data, reward, log, and trainers that re-select.

    from rap.trl import GRPOTrainer, Reselect, builtin_reward, prepare, watched

    trainer = GRPOTrainer(                       # TRL's, plus the ``reselect`` argument
        model=model, processing_class=processor, args=GRPOConfig(...),
        reward_funcs=watched(builtin_reward(), "scores.rewards.jsonl"),
        train_dataset=prepare(sel, pool=True),   # the whole pool
        reselect=Reselect(sel, mode="rewards", every=50),
    )

Without re-selection TRL's own trainers do: ``train_dataset=prepare(sel)``, or
``sel.dataset`` itself where its columns are TRL's (``prompt`` as messages, ``images``).
GRPO and RLOO; TRL 1.16 has no PPO trainer.

Importing this module imports neither torch nor trl; ``GRPOTrainer`` and ``RLOOTrainer``
do (extra ``trl``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import RapConfigError, install
from .data import prepare
from .reselect import Reselect
from .rewards import NO_PPO, builtin_reward, watched

if TYPE_CHECKING:
    from .trainer import GRPOTrainer, RLOOTrainer

__all__ = [
    "GRPOTrainer",
    "RLOOTrainer",
    "Reselect",
    "builtin_reward",
    "prepare",
    "watched",
]


def _when_used(name: str) -> Any:
    if name in ("GRPOTrainer", "RLOOTrainer"):
        try:
            from . import trainer
        except ImportError as error:
            raise RapConfigError(
                f"training needs TRL ({error}): {install('trl')}"
            ) from error
        return getattr(trainer, name)
    if name == "PPOTrainer":
        raise AttributeError(NO_PPO)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


if not TYPE_CHECKING:  # a type checker would take any name for one of ours
    __getattr__ = _when_used
