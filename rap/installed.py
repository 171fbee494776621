"""Versions of distributions: what is installed, and this package's own."""

from __future__ import annotations

import functools
import importlib.metadata
import tomllib
from pathlib import Path

NAME = "rap-select"


def version(distribution: str) -> str | None:
    """Version of an installed distribution; None if it is not installed. Of this one, the
    version of the code that runs: of a clone that was never installed, too."""
    if distribution == NAME and (own := _of_a_clone()) is not None:
        return own
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.cache
def _of_a_clone() -> str | None:
    """What ``pyproject.toml`` beside the package says; None where there is none of ours."""
    try:
        with (Path(__file__).parents[1] / "pyproject.toml").open("rb") as file:
            project = tomllib.load(file)["project"]
        return str(project["version"]) if project["name"] == NAME else None
    except (OSError, tomllib.TOMLDecodeError, KeyError, TypeError):
        return None
