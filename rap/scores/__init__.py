"""The score table, in memory and on disk, and a selection from it, as data.

``table``: the columns; ``files``: Parquet and JSON, written atomically; ``store``: shards
that resume; ``claims``, ``shardplan``, ``sealing``: a store that many processes fill;
``merge``: stores scored apart; ``records``: rollouts made elsewhere; ``scores``:
``Scores``; ``selected``: a selection without its views.
"""

from .scores import Scores
from .selected import Comparison, Selected
from .store import ScoreStore

__all__ = ["Comparison", "ScoreStore", "Scores", "Selected"]
