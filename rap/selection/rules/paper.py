"""Rule ``paper``: the thresholds of arXiv 2506.04755, whatever passes them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from types import MappingProxyType
from typing import Any

import numpy as np

from ...config import ChooseConfig
from ...errors import RapConfigError
from ...scores.columns import as_fraction
from ...scores.kinds import KINDS
from ...scores.scores import PAPER_LAMBDA_C
from ..attention import Limit, given
from .rule import Rule

PAPER_LAMBDA_A = 0.1
"""The paper's threshold on psi, for the unnormalised product."""


class Paper(Rule):
    """D > 0.5 and psi <= 0.1."""

    no_use_for = MappingProxyType(
        {
            "budget": "keeps what passes its thresholds",
            "order": "ranks nothing",
            "by": "has no budget to divide",
            **Rule.no_use_for,
        }
    )
    readmits_hurt = True  # whatever CDE dropped may come back

    def describe(self, config: ChooseConfig | None = None) -> str:
        d, psi = PAPER_LAMBDA_C, PAPER_LAMBDA_A
        if config is None or (config.lambda_c, config.lambda_a) == (None, None):
            which = "the published thresholds"
        else:
            which = "these thresholds"
            d = d if config.lambda_c is None else config.lambda_c
            psi = psi if config.lambda_a is None else config.lambda_a
        return f"keeps what passes {which}, D > {d:g} and psi <= {psi:g}."

    def check(self, config: ChooseConfig, evidence: str) -> None:
        super().check(config, evidence)
        if config.lambda_c is None and not KINDS[evidence].signed:
            raise RapConfigError(
                "lambda_c = None: rule='paper' publishes 0.5 for a difference of "
                f"accuracies; evidence {evidence!r} is a divergence and needs an explicit "
                "lambda_c, or score with evidence 'rollouts'"
            )

    def threshold(self, config: ChooseConfig, evidence: str) -> Fraction:
        given_c = PAPER_LAMBDA_C if config.lambda_c is None else config.lambda_c
        return as_fraction("lambda_c", given_c)

    def psi_limit(
        self, log_psi: np.ndarray, config: ChooseConfig, meta: Mapping[str, Any]
    ) -> Limit:
        if config.lambda_a is not None:
            return given(config.lambda_a)
        return Limit(math.log(PAPER_LAMBDA_A), "published", _another_psi(meta))


def _another_psi(meta: Mapping[str, Any]) -> list[str]:
    """A warning where the scores hold another psi than the one the limit is for."""
    tree: Any = meta
    for name in ("fingerprint", "config", "ace"):
        tree = tree.get(name) if isinstance(tree, Mapping) else None
    if not isinstance(tree, Mapping):
        return []
    if not tree.get("normalise") and tree.get("min_rows") == 1:
        return []
    return [
        "lambda_a = 0.1 was published for the unnormalised psi; these scores hold the "
        "normalised one (pass lambda_a, or use rule='budget')"
    ]


RULE = Paper()
