"""Rule ``learn``: a share of the samples, those that training learns most of."""

from __future__ import annotations

from fractions import Fraction
from types import MappingProxyType

from ...config import DEFAULT_BUDGET, ChooseConfig
from ...errors import RapConfigError
from ...scores.columns import as_fraction
from ...scores.evidence import Evidence
from ...scores.kinds import KINDS
from ...scores.learning import FLOOR
from .rule import VALUE_TEXT, Ranking, Rule


class Learn(Rule):
    """Mixed outcomes only, a guard share for what misleads the model, coverage of groups,
    and a budget that is filled; ``rap.selection.learn`` does it."""

    by_value = True
    no_use_for = MappingProxyType(
        {
            "order": "has its own",
            "readmit_hurt": "has guard_hurt for what the image hurts",
        }
    )

    def describe(self, config: ChooseConfig | None = None) -> str:
        share = "a share" if config is None else f"{100 * self.share(config):.4g} %"
        shares = ChooseConfig(rule="learn").shares if config is None else config.shares
        guards = [100 * share for share in shares]
        covers = config is not None and config.covers_main
        return (
            f"keeps {share} of the samples: those with mixed outcomes, by p1 (1 \u2212 p1) "
            f"times the dependence on the image{', spread over groups' if covers else ''}; "
            f"of these places {guards[0]:.4g} % are for attention-biased samples, "
            f"{guards[1]:.4g} % for samples that the image hurts."
        )

    def check(self, config: ChooseConfig, evidence: str) -> None:
        super().check(config, evidence)
        if not config.replace:
            raise RapConfigError(
                "replace = False: expected True with rule='learn', which always fills its "
                "budget"
            )

        if config.trivial:
            raise RapConfigError(
                f"trivial = {config.trivial}: expected 0 with rule='learn', which ranks by "
                "p1 (1 - p1) and so leaves out what is nearly always solved"
            )

    def threshold(self, config: ChooseConfig, evidence: str) -> Fraction:
        if config.lambda_c is not None:
            return as_fraction("lambda_c", config.lambda_c)
        return Fraction(0) if KINDS[evidence].signed else as_fraction("floor", FLOOR)

    def share(self, config: ChooseConfig) -> float:
        return DEFAULT_BUDGET if config.budget is None else config.budget

    def ranking(self, config: ChooseConfig, evidence: Evidence) -> Ranking:
        value = evidence.measured.value()
        return Ranking("value", VALUE_TEXT, value, value, of_d=False)


RULE = Learn()
