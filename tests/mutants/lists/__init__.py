"""All mutants, in the order in which they are run: of each list in turn, so that a run that
is cut has seen all parts of the code."""

from __future__ import annotations

from itertools import chain, zip_longest

from ..mutant import Mutant
from .ace import ACE
from .arrays import ARRAYS
from .cde import CDE
from .drm import DRM
from .rules import RULES
from .stores import STORES
from .training import TRAINING

_LISTS = (RULES, STORES, TRAINING, ACE, CDE, DRM, ARRAYS)
MUTANTS: tuple[Mutant, ...] = tuple(
    mutant for mutant in chain.from_iterable(zip_longest(*_LISTS)) if mutant is not None
)
