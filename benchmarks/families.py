"""Results by family of question: pass rates, language priors among the half-solved, and
what ACE flags wrongly. Pure functions of arrays, one value a sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rap.selection.attention import fence

Array = np.ndarray
Row = dict[str, Any]
LOW, HIGH = 0.2, 0.8
"""A pass rate between them is half-solved."""
ALL = "all"


def _each(families: Sequence[str]) -> list[tuple[str, Array]]:
    """(family, bool [n]) in order of name, and all together last."""
    named = np.array(families)
    found = [(str(name), named == name) for name in np.unique(named)]
    return [*found, (ALL, np.ones(len(named), bool))]


def _share(part: Array) -> float:
    return float(part.mean()) if len(part) else float("nan")


def constant(p1: Array) -> bool:
    """Whether a family's pass rate says nothing: solved always, or by one in fifty, with
    no sample between."""
    return bool(np.all(p1 > 0.98) or np.all(p1 < 0.02)) if len(p1) else True


def rates(families: Sequence[str], p1: Array, p0: Array) -> list[Row]:
    """Pass rates with and without the image; the share of the samples whose pass rate lies
    in ``LOW .. HIGH``, and of those the share that the image does not help (D <= 0): what
    the pass rate alone cannot tell from what needs the picture."""
    rows = []
    mid = (p1 >= LOW) & (p1 <= HIGH)
    for family, mine in _each(families):
        rows.append(
            {
                "family": family,
                "n": int(mine.sum()),
                "p_image": _share(p1[mine]),
                "p_blind": _share(p0[mine]),
                "spread": float(p1[mine].std()) if mine.any() else float("nan"),
                "half_solved": _share(mid[mine]),
                "not_helped": _share((p1 <= p0)[mine & mid]),
            }
        )
    return rows


def flags(
    families: Sequence[str], biased: Array, log_psi: Array, limit: float | None = None
) -> list[Row]:
    """What a limit on psi flags, by family. ``biased``: bool [n], truly attention-biased.
    ``log_psi``: NaN where it was not measured. ``limit``: None is the calibrated one of all
    finite psi. ``false_positive``: share of those measured that are not biased and flagged
    all the same; ``found``: share of the biased that are flagged."""
    finite = log_psi[np.isfinite(log_psi)]
    if limit is None:
        limit = fence(finite) if len(finite) else float("inf")
    measured = ~np.isnan(log_psi)
    flagged = measured & (np.nan_to_num(log_psi, nan=-np.inf) > limit)
    return [
        {
            "family": family,
            "measured": int((mine & measured).sum()),
            "biased": int((mine & measured & biased).sum()),
            "flagged": int((mine & flagged).sum()),
            "false_positive": _share(flagged[mine & measured & ~biased]),
            "found": _share(flagged[mine & measured & biased]),
        }
        for family, mine in _each(families)
    ]


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a table: shares with two digits, n/a where there is nothing."""
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|---|" + "---:|" * (len(names) - 1)]
    return "\n".join(
        [*lines, *("| " + " | ".join(map(_cell, r.values())) + " |" for r in rows)]
    )


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "n/a" if np.isnan(value) else f"{value:.2f}"
    return str(value)
