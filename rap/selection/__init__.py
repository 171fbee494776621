"""Score table -> selection. ``rules``: ``choose``; ``selection``: the result with its
views; ``reselection``: a selection again, from rewards seen in training."""

from ..scores.scores import Scores
from ..scores.selected import DROPPED, KEPT, REASONS, Comparison
from .rules import choose
from .selection import Selection, load

__all__ = [
    "DROPPED",
    "KEPT",
    "REASONS",
    "Comparison",
    "Scores",
    "Selection",
    "choose",
    "load",
]
