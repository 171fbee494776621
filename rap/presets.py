"""One word for the settings of a whole pipeline: a part of ``rap.config``, which has these
names, too."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from .errors import RapConfigError

PresetName = Literal["paper"]


@dataclasses.dataclass(frozen=True, slots=True)
class Preset:
    """Fields of ``ScoreConfig`` and of ``ChooseConfig`` that belong together."""

    text: str
    score: Mapping[str, Any]
    choose: Mapping[str, Any]


PRESETS: Mapping[str, Preset] = {
    "paper": Preset(
        "the whole published pipeline: five graded completions with the image and five "
        "without any, the unnormalised psi over all response rows, D > 0.5 and psi <= 0.1",
        score={
            "evidence": "rollouts",
            "counterfactual": "drop",
            "m1": 5,
            "m0": 5,
            "ace": {"normalise": False, "min_rows": 1},
        },
        choose={"rule": "paper"},
    )
}
"""What ``preset=`` names: one word for evidence, form of psi and rule. Single fields given
besides replace those of the preset."""


def preset_of(
    name: PresetName | None,
    step: Literal["score", "choose"],
    given: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """The fields that a preset sets; {} for None. ``given``: single fields that replace
    them; a ``UserWarning`` says so where they leave nothing of the preset.

    Raises ``RapConfigError``."""
    if name is None:
        return {}
    if name not in PRESETS:
        raise RapConfigError(f"preset = {name!r}: expected one of {tuple(PRESETS)} or None")
    found = dict(getattr(PRESETS[name], step))
    if all(field in given and given[field] != value for field, value in found.items()):
        lost = ", ".join(f"{k} = {given[k]!r} replaces {v!r}" for k, v in found.items())
        also = "; what it sets for scoring holds" if step == "choose" else ""
        warnings.warn(
            f"preset {name!r}: nothing of it is left for choosing ({lost}){also}",
            UserWarning,
            stacklevel=3,
        )
    return found
