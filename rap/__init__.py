"""RAP: which few per cent of multimodal data teach a model to reason, and why.

    import rap
    sel = rap.select(model, processor, dataset, budget=0.09, store="scores/")
    sel.dataset

``score`` drives the model and is heavy, ``choose`` is pure and instant, ``select`` is
both; ``ace``, ``cde``, ``linear_cde`` and ``drm`` are the kernels on arrays.
"""

from typing import TYPE_CHECKING, Any

from .config import AceConfig, ChooseConfig, Sampling, ScoreConfig
from .environment import info
from .errors import RapConfigError, RapError, RapInputError, RapModelError, RapStoreError
from .ops import AceResult, CdeResult, ace, cde, drm, linear_cde
from .selection import Scores, Selection, choose, load

if TYPE_CHECKING:
    from .scoring import score, select

__all__ = [
    "AceConfig",
    "AceResult",
    "CdeResult",
    "ChooseConfig",
    "RapConfigError",
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
    try:
        from . import scoring
    except ModuleNotFoundError as error:
        return _missing(name, str(error.name))
    return getattr(scoring, name)


def _missing(name: str, module: str) -> Any:
    """A function that says what to install: met at the call, not at ``import *``."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise RapConfigError(
            f"rap.{name} needs {module}, which is not installed: pip install 'rap-select[hf]'"
        )

    return refuse
