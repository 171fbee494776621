"""The score table, in memory and on disk, and what was chosen from it, as data.

``table``: the columns; ``files``: Parquet and JSON, whole or not at all; ``store``: shards
that resume; ``records``: rollouts made elsewhere; ``scores``: ``Scores``; ``selected``: a
selection without its views.
"""

from .scores import Scores
from .selected import Comparison, Selected
from .store import ScoreStore

__all__ = ["Comparison", "ScoreStore", "Scores", "Selected"]
