"""A selection as files that trainers read.

``write``: ``export``; ``formats``: one writer a trainer, in the table ``TARGETS``;
``verl_reward``: the reward file that goes with verl's data.
"""

from .formats import TARGETS
from .write import Exported, export

__all__ = ["TARGETS", "Exported", "export"]
