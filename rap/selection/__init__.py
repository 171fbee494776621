"""Score table -> selection. ``choosing``: ``choose``; ``rules``: one module a rule, in the
table ``RULES``; ``selection``: the result with its views; ``reselection``: a selection
again, from rewards seen in training."""

from ..scores.scores import Scores
from ..scores.selected import DROPPED, KEPT, REASONS, Comparison
from .choosing import choose
from .rules import RULES
from .selection import Selection, load

__all__ = [
    "DROPPED",
    "KEPT",
    "REASONS",
    "RULES",
    "Comparison",
    "Scores",
    "Selection",
    "choose",
    "load",
]
