"""What a sample is worth to training: how far its reward varies, times how surely the image
matters. Pure NumPy. Rule ``learn`` and ``order="posterior"`` rank by it.

    value = E[p1 (1 - p1)] * V

With completions p1 ~ Beta(a, b), p0 likewise (``rap.scores.posterior``):
E[p1 (1 - p1)] = a b / ((a + b) (a + b + 1)), and V is the probability that D = p1 - p0 has
the sign it was measured with: P(p1 > p0) where D >= 0, else 1 - P(p1 > p0), to four
decimals, which is as exact as the grid behind it. With p(answer) alone:
E[p1 (1 - p1)] = p (1 - p), 1/6 (p uniform) where no p is known, and V is 1 where the image
moves the prediction by more than ``FLOOR``, else 0.

p1 (1 - p1) is the variance of a 0/1 reward, in which the advantages of GRPO (arXiv
2402.03300, section 4.1) are measured: it is 0 where nothing can be learned.
"""

from __future__ import annotations

import numpy as np

from .posterior import Arm, prob_above

FLOOR = 0.01
"""Nats of divergence that the image must make, where only p(answer) is known."""
UNKNOWN = 1.0 / 6.0
"""E[p (1 - p)] of a uniform p."""
UNTRIED, SETTLED = 1.0, 2.0
"""What is taken off the value. ``UNTRIED``: others of the table have completions, this one
has p(answer) alone. ``SETTLED``: its completions are all right or all wrong, or the image
does not move p(answer). So ``value > 0`` says: the outcomes are known to be mixed."""


def spread(arm: Arm) -> np.ndarray:
    """E[p (1 - p)], float64 [n], in (0, 1/4)."""
    a, b = arm.beta()
    return a * b / ((a + b) * (a + b + 1.0))


def value_of_counts(
    with_image: Arm, without: Arm, d: np.ndarray, known: np.ndarray
) -> np.ndarray:
    """float64 [n], NaN where not ``known`` (bool [n]). ``d``: the sign of D."""
    value = np.full(len(d), np.nan)
    rows = np.flatnonzero(known)
    one, zero = with_image.take(rows), without.take(rows)
    above = prob_above(one, zero).round(4)
    value[rows] = spread(one) * np.where(d[rows] < 0, 1.0 - above, above)
    settled = ~((one.c > 0) & (one.c < one.m))
    value[rows[settled]] -= SETTLED
    return value


def value_of_answers(
    p: np.ndarray, moved: np.ndarray, known: np.ndarray, *, untried: bool = False
) -> np.ndarray:
    """float64 [n], NaN where not ``known``. ``p``: p(answer) with the image, NaN: not
    known. ``moved``: nats by which the image moves the prediction, NaN: not measured,
    which counts as enough. ``untried``: see ``UNTRIED``."""
    value = np.where(np.isnan(p), UNKNOWN, p * (1.0 - p))
    mixed = (value > 0) & ~(moved <= FLOOR)
    value = np.where(mixed, value - UNTRIED * untried, value - SETTLED)
    return np.where(known, value, np.nan)


def harm_of(difficulty: np.ndarray, d: np.ndarray) -> np.ndarray:
    """float64 [n]: p1 (1 - p1) (p0 - p1), 0 where D = p1 - p0 is not below 0 or one of
    them is not known: what there is to learn, times how much the image takes away.

    A D just below 0 is chance where a model knows half of the answer without the image, and
    such samples are many: the size of D tells them from those whose image misleads.
    """
    with np.errstate(invalid="ignore"):
        found = difficulty * (1.0 - difficulty) * np.maximum(-d, 0.0)
    return np.nan_to_num(found, nan=0.0)
