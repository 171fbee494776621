"""Select the few per cent of a multimodal data set that are worth RL training (RAP,
arXiv 2506.04755).

    import rap
    sel = rap.select(model, processor, dataset, budget=0.09, store="scores/")
    sel.dataset

``score`` runs the model on every sample (slow, resumable), ``choose`` makes a selection of
the scores (instant), ``select`` is both; ``check`` says whether a model can be scored with,
``cost`` when a selection has paid for itself. ``plan`` and ``merge`` are for stores that
many processes fill.
``ace``, ``cde``, ``linear_cde`` and ``drm`` are the kernels on arrays.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import (
    RapConfigError,
    RapDeviceError,
    RapError,
    RapInputError,
    RapModelError,
    RapStoreError,
    RapWorkerError,
    install,
    missing,
)

if "t" in getattr(sys, "abiflags", ""):
    raise ImportError(
        f"rap-select: this Python {sys.version.split()[0]} is free-threaded (PEP 703) and "
        "loads no extension of the stable ABI (abi3), as rap._C is one. Use the build of "
        "Python with the GIL"
    )

if TYPE_CHECKING:
    from .config import AceConfig, ChooseConfig, Sampling, ScoreConfig
    from .environment import info
    from .model.check import check
    from .ops import AceResult, CdeResult, ace, cde, drm, linear_cde
    from .scores.bill import Bill, Prices, cost
    from .scores.merge import merge
    from .scores.scores import Scores
    from .scoring.causal import cut
    from .scoring.run import plan, score, select
    from .selection.choosing import choose
    from .selection.selection import Selection, load

    __version__: str

_FROM = {
    ".config": ("AceConfig", "ChooseConfig", "Sampling", "ScoreConfig"),
    ".environment": ("info",),
    ".ops": ("AceResult", "CdeResult", "ace", "cde", "drm", "linear_cde"),
    ".scores.bill": ("Bill", "Prices", "cost"),
    ".scores.merge": ("merge",),
    ".scores.scores": ("Scores",),
    ".selection.choosing": ("choose",),
    ".selection.selection": ("Selection", "load"),
}
"""{module: the names that are imported from it when one is first used}: ``import rap``
alone takes no time, and Ctrl-C on the way into the shell meets ``rap.__main__``."""
_MODULES = {
    *("config", "cuda", "divergences", "environment", "host", "ops", "reference"),
    *("samples", "scores", "selection", "settings", "torchops"),
}
"""Parts of the package that need not be imported by name."""
_HEAVY = {
    "check": ".model.check",
    "cut": ".scoring.causal",
    "plan": ".scoring.run",
    "score": ".scoring.run",
    "select": ".scoring.run",
}
"""{name: the module that it is imported from when it is first used}"""

__all__ = [
    "AceConfig",
    "AceResult",
    "Bill",
    "CdeResult",
    "ChooseConfig",
    "Prices",
    "RapConfigError",
    "RapDeviceError",
    "RapError",
    "RapInputError",
    "RapModelError",
    "RapStoreError",
    "RapWorkerError",
    "Sampling",
    "ScoreConfig",
    "Scores",
    "Selection",
    "ace",
    "cde",
    "check",
    "choose",
    "cost",
    "cut",
    "drm",
    "info",
    "linear_cde",
    "load",
    "merge",
    "plan",
    "score",
    "select",
]


def _when_used(name: str) -> Any:
    if name == "__version__":
        from .installed import version

        return version("rap-select") or "0+unknown"
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    for module, names in _FROM.items():
        if name in names:
            found = globals()[name] = getattr(import_module(module, __name__), name)
            return found
    # these need torch and transformers, which the kernels do without
    if name not in _HEAVY:
        from .settings import near

        meant = "" if name.startswith("_") else near(name, __all__)
        raise AttributeError(f"module 'rap' has no attribute {name!r}{meant}")
    if lacking := missing("torch", "transformers"):
        return _missing(name, " and ".join(lacking))
    return getattr(import_module(_HEAVY[name], __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})


def _missing(name: str, modules: str) -> Any:
    """A function that says what to install: met at the call, not at ``import *``."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise RapConfigError(f"rap.{name} needs {modules}: {install('hf')}")

    refuse.__name__ = name
    refuse.__doc__ = f"Needs {modules}: {install('hf')}."
    return refuse


if not TYPE_CHECKING:  # a type checker would take any name for one of ours
    __getattr__ = _when_used
