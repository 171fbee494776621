"""All mutants, in the order in which they are run."""

from __future__ import annotations

from ..mutant import Mutant
from .ace import ACE
from .arrays import ARRAYS
from .cde import CDE
from .drm import DRM
from .rules import RULES
from .stores import STORES
from .training import TRAINING

MUTANTS: tuple[Mutant, ...] = (
    *ACE,
    *CDE,
    *DRM,
    *ARRAYS,
    *RULES,
    *STORES,
    *TRAINING,
)
