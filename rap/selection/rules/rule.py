"""The contract of a rule: its thresholds, ranking order, number of samples and texts.

``choose`` asks a rule for these and does the rest alike for all of them: what is barred,
how a group is filled, and one reason a sample.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType
from typing import Any

import numpy as np

from ...config import LEARN_ONLY, ChooseConfig
from ...errors import RapConfigError
from ...scores.evidence import Evidence
from ..attention import Limit, calibrated, given


@dataclass(frozen=True, slots=True)
class Ranking:
    """What a rule ranks by, float64 [n]. ``key``: larger is better, its order and equality
    exact. ``value``: the same number as it is shown (NaN: unknown). ``of_d``: it is D."""

    name: str
    text: str
    key: np.ndarray
    value: np.ndarray
    of_d: bool


VALUE_TEXT = (
    "E[p1 (1 \u2212 p1)] times the probability that the image matters (below 0: not known "
    "to have mixed outcomes)"
)
"""What ``Measured.value`` is, in words."""
FOR_LEARN = "is not rule='learn'"
"""Why a rule has no use for the settings of rule learn."""


class Rule:
    """One rule of ``choose``. What is not overridden is as for a budget."""

    no_use_for: Mapping[str, str] = MappingProxyType(dict.fromkeys(LEARN_ONLY, FOR_LEARN))
    """Fields of ``ChooseConfig`` that must be None -> why, after "which"."""
    readmits_hurt: bool = False
    """Whether a sample that the image hurts (D < 0) may replace a trivial one."""
    trivial_first: bool = False
    """Whether trivial samples are removed before the budget is shared out, not after."""
    by_value: bool = False
    """Whether ``selection.learn`` fills the groups, not ``selection.picking``."""

    def describe(self, config: ChooseConfig | None = None) -> str:
        """One sentence: what the rule does, with its numbers where settings are given."""
        raise NotImplementedError

    def check(self, config: ChooseConfig, evidence: str) -> None:
        """Raises ``RapConfigError`` for settings that make no sense with this rule."""
        for name, why in self.no_use_for.items():
            value = getattr(config, name)
            if value is not None:
                raise RapConfigError(
                    f"{name} = {value!r}: expected None with rule={config.rule!r}, "
                    f"which {why}"
                )

    def threshold(self, config: ChooseConfig, evidence: str) -> Fraction | None:
        """What D must exceed before any budget is looked at; None: D is not asked."""
        raise NotImplementedError

    def psi_limit(
        self, log_psi: np.ndarray, config: ChooseConfig, meta: Mapping[str, Any]
    ) -> Limit:
        """The limit on psi, from the finite ``log_psi`` of valid samples."""
        if config.lambda_a is not None:
            return given(config.lambda_a)
        return calibrated(log_psi)

    def share(self, config: ChooseConfig) -> float | None:
        """The share of the samples to keep; None: whatever passes the thresholds."""
        return None

    def ranking(self, config: ChooseConfig, evidence: Evidence) -> Ranking | None:
        """What decides who is kept where more pass than the share allows."""
        return None
