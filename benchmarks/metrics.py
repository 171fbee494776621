"""Small pure functions: how well a score finds what it should. Arrays are [n]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from benchmarks.demo_model import measure

Array = np.ndarray


def ranks(x: Array) -> Array:
    """1-based ranks, ties share their mean."""
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


def auroc(score: Array, positive: Array) -> float:
    """P(a positive's score is higher) + P(equal) / 2; NaN without both kinds.

    Raises ValueError where a score is NaN, which has no rank: see `rated`.
    """
    score, positive = np.asarray(score, float), np.asarray(positive, bool)
    if np.isnan(score).any():
        raise ValueError(f"{int(np.isnan(score).sum())} of {len(score)} scores are NaN")
    n_pos, n_neg = int(positive.sum()), int((~positive).sum())
    if not n_pos or not n_neg:
        return float("nan")
    return float((ranks(score)[positive].sum() - n_pos * (n_pos + 1) / 2) / (n_pos * n_neg))


def rated(score: Array, positive: Array) -> dict[str, float]:
    """{"auroc" of the scores that are known, "unknown": how many are not}."""
    known = ~np.isnan(np.asarray(score, float))
    found = auroc(np.asarray(score)[known], np.asarray(positive)[known])
    return {"auroc": found, "unknown": int((~known).sum())}


def precision_recall(flagged: Array, positive: Array) -> tuple[float, float]:
    """(share of the flagged that are positive, share of the positive that are flagged);
    NaN where nothing is flagged or positive."""
    both = int((flagged & positive).sum())
    n_flagged, n_positive = int(flagged.sum()), int(positive.sum())
    return (
        both / n_flagged if n_flagged else float("nan"),
        both / n_positive if n_positive else float("nan"),
    )


def spearman(a: Array, b: Array) -> float:
    """Rank correlation; NaN if one of them is constant."""
    if len(set(a)) < 2 or len(set(b)) < 2:
        return float("nan")
    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


def top(score: Array, k: int) -> Array:
    """bool [n]: the k largest, ties by index."""
    chosen = np.zeros(len(score), bool)
    chosen[np.argsort(-np.asarray(score, float), kind="stable")[:k]] = True
    return chosen


def jaccard(a: Array, b: Array) -> float:
    """Size of the intersection over the size of the union; 1 for two empty sets."""
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else 1.0


def wilson(c: int, m: int, level: float) -> tuple[float, float]:
    """Wilson's interval (1927) for a share of which c of m were seen."""
    return measure.interval(c / m, m, NormalDist().inv_cdf((1 + level) / 2))


def interval(c1: int, m1: int, c0: int, m0: int, level: float = 0.9) -> tuple[float, float]:
    """Newcombe's interval for p1 - p0 from Wilson's for each (Newcombe 1998, method 10)."""
    low1, high1 = wilson(c1, m1, level)
    low0, high0 = wilson(c0, m0, level)
    p1, p0 = c1 / m1, c0 / m0
    down = np.hypot(p1 - low1, high0 - p0)
    up = np.hypot(high1 - p1, p0 - low0)
    return float(p1 - p0 - down), float(p1 - p0 + up)


def keep_probability(
    c1: Array, m1: Array, c0: Array, m0: Array, threshold: float, draws: int, seed: int
) -> Array:
    """P(D > threshold), with Jeffreys' Beta(1/2, 1/2) behind both counts, by ``draws``."""
    rng = np.random.default_rng(seed)
    size = (draws, len(c1))
    p1 = rng.beta(c1 + 0.5, m1 - c1 + 0.5, size)
    p0 = rng.beta(c0 + 0.5, m0 - c0 + 0.5, size)
    return (p1 - p0 > threshold).mean(axis=0)


def teaches(p1: Array, p0: Array, group: int = 8) -> Array:
    """float64 [n]: the probability of what a keep-probability is of, where the pass rates
    are known: 1{p1 > p0} (1 - p1^group - (1 - p1)^group)."""
    return np.where(p1 > p0, 1.0 - p1**group - (1.0 - p1) ** group, 0.0)


def reliability(said: Array, truth: Array, bins: int = 10) -> list[dict[str, float | str]]:
    """Forecasts against probabilities of their events: a row of all, "all", then one a bin
    of what is said, named by its lower end; NaN forecasts are left out.

    ``brier``: of a forecast k its expected Brier score is (k - t)^2 + t (1 - t); ``excess``
    is the first part, which a perfect forecast has not. The row "all" has its parts, by
    the bins, too: ``murphy``.
    """
    known = ~np.isnan(said)
    place = np.minimum((np.nan_to_num(said) * bins).astype(int), bins - 1)
    masks = {f"{i / bins:.1f}": known & (place == i) for i in range(bins)}
    rows: list[dict[str, float | str]] = []
    parts = murphy(said, truth, list(masks.values()))
    for label, mask in ({"all": known} | masks).items():
        if mask.any():
            excess = (said - truth)[mask] ** 2
            rows.append(
                {
                    "bin": label,
                    "samples": int(mask.sum()),
                    "said": round(float(said[mask].mean()), 4),
                    "truth": round(float(truth[mask].mean()), 4),
                    "excess": round(float(excess.mean()), 4),
                    "brier": round(float((excess + (truth * (1 - truth))[mask]).mean()), 4),
                }
                | {name: part for name, part in parts.items() if label == "all"}
            )
    return rows


def murphy(said: Array, truth: Array, bins: Sequence[Array]) -> dict[str, float]:
    """How far a forecast is from the truth, taken apart over bins, bool [n] each:
    ``miscalibration``, the mean squared distance of what a bin says to its truth;
    ``resolution``, that of the bins' truths to the mean of all; ``constant``, the variance
    of the truth: what the mean, said of all, would be off by.

    excess = miscalibration - resolution + constant, up to the spread of the forecasts
    within a bin. Murphy, J. Applied Meteorology 12 (1973), 595-600.
    """
    filled = [b for b in bins if b.any()]
    if not filled:
        return dict.fromkeys(("miscalibration", "resolution", "constant"), float("nan"))
    weight = np.array([b.sum() for b in filled], float)
    weight /= weight.sum()
    at = np.array([said[b].mean() for b in filled])
    true = np.array([truth[b].mean() for b in filled])
    return {
        "miscalibration": round(float(weight @ (at - true) ** 2), 4),
        "resolution": round(float(weight @ (true - weight @ true) ** 2), 4),
        "constant": round(float(np.var(truth[np.logical_or.reduce(filled)])), 4),
    }


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean over worlds, and their standard deviation."""

    mean: float
    sd: float
    worlds: int

    def __str__(self) -> str:
        if not self.worlds:
            return "n/a"
        return f"{self.mean:.3f} ± {self.sd:.3f}" if self.worlds > 1 else f"{self.mean:.3f}"


def spread(values: Sequence[float]) -> Spread:
    """Of the values that are finite."""
    finite = np.array([v for v in values if np.isfinite(v)], float)
    if not len(finite):
        return Spread(float("nan"), float("nan"), 0)
    sd = float(finite.std(ddof=1)) if len(finite) > 1 else float("nan")
    return Spread(float(finite.mean()), sd, len(finite))
