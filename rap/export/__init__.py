"""A selection as files that trainers read.

``write``: ``export``; ``formats``: one writer a trainer, and what tells its own form, in
the table ``TARGETS``; ``filter``, ``rows``: the chosen rows as they came in; ``folder``:
where they go;
``verl_reward``: the reward file that goes with verl's data.
"""

from .formats import TARGETS
from .write import Exported, export

__all__ = ["TARGETS", "Exported", "export"]
