"""Is a completion right? ``grading``: the rules; ``checker``: the built-in checker and
users' reward functions behind one call; ``functions``: how those are called; ``runners``:
where they run."""

from .checker import Checker, make_checker
from .grading import grade

__all__ = ["Checker", "grade", "make_checker"]
