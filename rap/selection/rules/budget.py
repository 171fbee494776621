"""Rule ``budget``: a share of the samples, the best by D or by what is left to learn."""

from __future__ import annotations

from fractions import Fraction

from ...config import DEFAULT_BUDGET, ChooseConfig
from ...scores.columns import as_fraction
from ...scores.evidence import Evidence
from .rule import VALUE_TEXT, Ranking, Rule


class Budget(Rule):
    """floor(budget * n) samples; the threshold on D follows from it."""

    trivial_first = True

    def describe(self, config: ChooseConfig | None = None) -> str:
        if config is None:
            share = f"a share of the samples ({100 * DEFAULT_BUDGET:g} % by default)"
        else:
            share = f"{100 * self.share(config):.4g} % of the samples"
        return f"keeps {share}; the thresholds follow from the scores."

    def threshold(self, config: ChooseConfig, evidence: str) -> Fraction:
        if config.lambda_c is None:
            return Fraction(0)
        return max(Fraction(0), as_fraction("lambda_c", config.lambda_c))

    def share(self, config: ChooseConfig) -> float:
        return DEFAULT_BUDGET if config.budget is None else config.budget

    def ranking(self, config: ChooseConfig, evidence: Evidence) -> Ranking:
        found, kind = evidence.measured, evidence.kind
        order = config.order or kind.ranks_by
        if order == "gain":
            return Ranking("gain", "D", found.order, found.d, of_d=True)
        if order == "posterior":
            value = found.value()
            return Ranking("posterior", VALUE_TEXT, value, value, of_d=False)
        text = kind.learn_text()
        return Ranking("learnable", text, found.learnable, found.learn, of_d=False)


RULE = Budget()
