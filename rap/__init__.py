"""RAP: which few per cent of multimodal data teach a model to reason, and why.

    import rap
    sel = rap.select(model, processor, dataset, budget=0.09, store="scores/")
    sel.dataset

``score`` drives the model and is heavy, ``choose`` is pure and instant, ``select`` is
both; ``ace``, ``cde``, ``linear_cde`` and ``drm`` are the kernels on arrays.
"""

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from .config import AceConfig, ChooseConfig, Sampling, ScoreConfig
from .environment import info
from .errors import (
    RapConfigError,
    RapDeviceError,
    RapError,
    RapInputError,
    RapModelError,
    RapStoreError,
)
from .ops import AceResult, CdeResult, ace, cde, drm, linear_cde
from .scores.scores import Scores
from .selection.choosing import choose
from .selection.selection import Selection, load

if TYPE_CHECKING:
    from .scoring.run import score, select

__all__ = [
    "AceConfig",
    "AceResult",
    "CdeResult",
    "ChooseConfig",
    "RapConfigError",
    "RapDeviceError",
    "RapError",
    "RapInputError",
    "RapModelError",
    "RapStoreError",
    "Sampling",
    "ScoreConfig",
    "Scores",
    "Selection",
    "ace",
    "cde",
    "choose",
    "drm",
    "info",
    "linear_cde",
    "load",
    "score",
    "select",
]


def __getattr__(name: str) -> Any:
    # score and select need torch and transformers, which the kernels do without
    if name not in ("score", "select"):
        raise AttributeError(f"module 'rap' has no attribute {name!r}")
    missing = [module for module in ("torch", "transformers") if not _installed(module)]
    if missing:
        return _missing(name, " and ".join(missing))
    from . import scoring

    return getattr(scoring, name)


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ValueError:  # sys.modules holds something without a spec
        return False


def _missing(name: str, modules: str) -> Any:
    """A function that says what to install: met at the call, not at ``import *``."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise RapConfigError(f"rap.{name} needs {modules}: pip install 'rap-select[hf]'")

    return refuse
