"""What `score`, `plan` and `select` are called with: refused here, before any work, by a
sentence that says how the call is meant."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ..config import ChooseConfig
from ..errors import RapConfigError
from ..model.loading import LoadingOptions, require_named
from ..settings import require_known


def the_data(model: Any, processor: Any, dataset: Any, data: Any, owner: str) -> Any:
    """The data set, by whichever of its two names it was given. Raises
    ``RapConfigError`` for none, both, or a model or processor in its place."""
    if dataset is not None and data is not None:
        raise RapConfigError(f"{owner}: the data set is given twice, also as data=")
    if dataset is None and data is None:
        kind = (
            f" (the second argument, here a {type(processor).__name__}, is the processor)"
        )
        raise RapConfigError(
            f"{owner}: no data set{kind if processor is not None else ''}: {owner}(model, "
            f'processor, dataset), or {owner}("./model", data=...) for a model that lies '
            "in a folder or on the hub"
        )
    found = data if dataset is None else dataset
    what = _part_of_a_model(found)
    if what is not None:
        raise RapConfigError(
            f"{owner}: the data set is a {type(found).__name__}, which is a {what}; the "
            f"order is {owner}(model, processor, dataset)"
        )
    return found


def _part_of_a_model(value: Any) -> str | None:
    """ "model" or "processor", if it is one."""
    if callable(getattr(value, "get_input_embeddings", None)):
        return "model"
    if callable(getattr(value, "apply_chat_template", None)):
        return "processor"
    return None


def require_config(config: object, owner: str) -> None:
    """Raises ``RapConfigError`` for what stands in the place of ``config`` and is a setting
    of another kind."""
    if isinstance(config, ChooseConfig):
        meant = "rap.choose takes a ChooseConfig, and rap.select as choose="
    elif isinstance(config, (str, os.PathLike)):
        meant = f"the folder of the scores is store={os.fspath(config)!r}"
    else:
        return
    raise RapConfigError(
        f"{owner}: the fourth argument is config, a rap.ScoreConfig, and this is a "
        f"{type(config).__name__}; {meant}"
    )


def split_loading(
    model: Any, loading: Mapping[str, Any] | None, options: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(keyword arguments of `load_model`, the other options). Raises ``RapConfigError``
    where there are any for a model that is loaded already."""
    names = LoadingOptions.__annotations__
    rest = {name: value for name, value in options.items() if name not in names}
    own = {name: options[name] for name in names if name in options}
    found = {**(loading or {}), **own}
    require_known(found, names, "loading has no such option")
    require_named(model, found)
    return found, rest
