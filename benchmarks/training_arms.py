"""Which prompts each arm of benchmarks/training.py trains on, all of one size.

Every arm takes a ``Selection`` apart: it sees the score table and, where it draws, a seed.
The size is that of ``rap.choose`` at the same budget; an arm that finds fewer is short and
says so in its run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import rap
from rap.scores.columns import floats
from rap.selection.groups import budget_size
from rap.selection.selection import Selection

NO_LIMIT = 1e300
"""A lambda_a that flags nothing."""


@dataclass(frozen=True, slots=True)
class Arm:
    """A row of the table."""

    title: str
    pick: Callable[[rap.Scores, float, int], np.ndarray] | None
    """(scores, budget, seed) -> row numbers; None: all data."""
    billed: str
    """What of the scoring it needs: nothing, the completions with the image, or all."""
    evidence: str = "rollouts"
    """Of the scores that it reads; "part": rollouts, fewer, of a part of the pool."""
    reselect: bool = False
    refill: int = 0


@dataclass(frozen=True, slots=True)
class _Columns:
    p1: np.ndarray
    d: np.ndarray
    usable: np.ndarray


def _columns(scores: rap.Scores) -> _Columns:
    table = scores.table
    c1, m1, c0, m0 = (floats(table[name]) for name in ("c1", "m1", "c0", "m0"))
    with np.errstate(invalid="ignore", divide="ignore"):
        p1, p0 = c1 / m1, c0 / m0
    return _Columns(p1, p1 - p0, np.isfinite(p1) & np.isfinite(p0))


def _drawn(rows: np.ndarray, k: int, seed: int) -> np.ndarray:
    """``k`` of ``rows`` by lot; all of them if there are fewer."""
    return np.random.default_rng(seed).permutation(rows)[:k]


def _best(score: np.ndarray, usable: np.ndarray, k: int, seed: int) -> np.ndarray:
    """The ``k`` largest; ties by lot, so that the order of the rows decides nothing."""
    rows = np.random.default_rng(seed).permutation(np.flatnonzero(usable))
    return rows[np.argsort(-score[rows], kind="stable")][:k]


def choose(scores: rap.Scores, budget: float, **settings: object) -> Selection:
    """``rap.choose``; what it warns of is in the selection. Attention-biased samples are
    dropped, as they were by default when the arms were planned."""
    return rap.choose(scores, budget=budget, **({"biased": "drop"} | settings))


def random(scores: rap.Scores, budget: float, seed: int) -> np.ndarray:
    """Equal size by lot, of all rows: nothing is known about them."""
    n = len(scores)
    return _drawn(np.arange(n), budget_size(budget, n), seed)


def band(scores: rap.Scores, budget: float, seed: int) -> np.ndarray:
    """Pass rate between 0.2 and 0.8, by lot."""
    c = _columns(scores)
    rows = np.flatnonzero(c.usable & (c.p1 >= 0.2 - 1e-9) & (c.p1 <= 0.8 + 1e-9))
    return _drawn(rows, budget_size(budget, len(scores)), seed)


def variance(scores: rap.Scores, budget: float, seed: int) -> np.ndarray:
    """The largest p (1 - p)."""
    c = _columns(scores)
    size = budget_size(budget, len(scores))
    return _best(c.p1 * (1 - c.p1), c.usable, size, seed)


def cde(scores: rap.Scores, budget: float, seed: int) -> np.ndarray:
    """The largest D; no attention, no replacement of trivial ones."""
    more = {"lambda_a": NO_LIMIT, "replace": False}
    return choose(scores, budget, order="gain", **more).indices


def ace(scores: rap.Scores, budget: float, seed: int) -> np.ndarray:
    """By lot, of those whose attention is not captured."""
    limit = choose(scores, budget).settings["found"]["log_lambda_a"]
    log_psi = floats(scores.table["log_psi"])
    with np.errstate(invalid="ignore"):
        passes = log_psi <= (np.inf if limit is None else limit)
    rows = np.flatnonzero(_columns(scores).usable & passes)
    return _drawn(rows, budget_size(budget, len(scores)), seed)


def cde_ace(scores: rap.Scores, budget: float, seed: int) -> np.ndarray:
    """Both, no replacement."""
    return choose(scores, budget, order="gain", replace=False).indices


def public(scores: rap.Scores, budget: float, seed: int) -> np.ndarray:
    """What the first edition took for the authors' script, cut to size: the largest
    accuracy gap of those not always solved, and a tenth of those solved once, by lot. Their
    script: `public_script`."""
    c = _columns(scores)
    m1 = floats(scores.table["m1"])
    k = budget_size(budget, len(scores))
    once = np.flatnonzero(c.usable & (np.abs(c.p1 * m1 - 1) < 1e-9))
    hard = _drawn(once, min(len(once) // 10, k), seed)
    rest = c.usable & (c.p1 < 1)
    rest[hard] = False
    return np.concatenate([hard, _best(c.d, rest, k - len(hard), seed)])


def public_script(scores: rap.Scores, budget: float, seed: int) -> np.ndarray:
    """The authors' script as both stored versions have it: gap > 0.2 and similarity >= 0.6,
    of those not always solved; cut to size by lot, since it ranks nothing."""
    c = _columns(scores)
    fits = (c.d > 0.2 + 1e-9) & (c.p1 >= 0.6 - 1e-9) & (c.p1 < 1)
    return _drawn(np.flatnonzero(c.usable & fits), budget_size(budget, len(scores)), seed)


def learner(**options: Any) -> Callable[[rap.Scores, float, int], np.ndarray]:
    """Rule learn with these settings; psi drops nothing, which is the default."""

    def pick(scores: rap.Scores, budget: float, seed: int) -> np.ndarray:
        return rap.choose(scores, rule="learn", budget=budget, **options).indices

    return pick


def without_ace(scores: rap.Scores, budget: float, seed: int) -> np.ndarray:
    """``rap.choose`` as it comes, but psi drops none."""
    return choose(scores, budget, lambda_a=NO_LIMIT).indices


def full_rap(scores: rap.Scores, budget: float, seed: int) -> np.ndarray:
    """``rap.choose`` as it comes."""
    return choose(scores, budget).indices


def paper(scores: rap.Scores, budget: float, seed: int) -> np.ndarray:
    """Rule paper with its published limits: what it keeps, whatever the budget."""
    return rap.choose(scores, rule="paper").indices


def learnable(scores: rap.Scores, budget: float, seed: int) -> np.ndarray:
    """``rap.choose`` by D times difficulty, as it ranks the other evidence."""
    return choose(scores, budget, order="learnable").indices


def readmitting(scores: rap.Scores, budget: float, seed: int) -> np.ndarray:
    """``rap.choose`` as published: what the image hurts may replace trivial samples."""
    return choose(scores, budget, readmit_hurt=True).indices


ARMS = {
    "full": Arm("all data", None, "nothing"),
    "random": Arm("random, equal size", random, "nothing"),
    "band": Arm("difficulty band 0.2 to 0.8", band, "image"),
    "variance": Arm("p (1 - p)", variance, "image"),
    "cde": Arm("CDE only", cde, "all"),
    "ace": Arm("ACE only", ace, "image"),
    "cde_ace": Arm("CDE + ACE", cde_ace, "all"),
    "public": Arm("the authors' public rule", public, "all"),
    "rap": Arm("RAP", full_rap, "all"),
    "rap_logits": Arm("RAP, evidence logits", full_rap, "all", evidence="logits"),
    "rap_learnable": Arm("RAP, order learnable", learnable, "all"),
    "rap_readmit": Arm("RAP, image-hurts readmitted", readmitting, "all"),
    "rap_part": Arm("RAP, a part of the pool scored", full_rap, "all", evidence="part"),
    "rap_reselect": Arm("RAP, re-selected by rewards", full_rap, "all", reselect=True),
    "dapo": Arm("all data, DAPO refill", None, "nothing", refill=3),
}

NO_GUARD: dict[str, Any] = {"guard_attention": 0.0, "guard_hurt": 0.0}
GUARD = 0.3
"""Share of what the image hurts, as the plan was amended."""


def _learners(evidence: str) -> dict[str, Arm]:
    """Rule learn, without its guard, and with coverage of the main part, too."""
    forms = {
        "": ("", learner(guard_hurt=GUARD)),
        "_no_guard": (", no guard", learner(**NO_GUARD)),
        "_coverage": (", coverage", learner(guard_hurt=GUARD, coverage=True)),
    }
    return {
        f"learn_{evidence}{name}": Arm(
            f"learn, {evidence}{title}", pick, "all", evidence=evidence
        )
        for name, (title, pick) in forms.items()
    }


SECOND = {
    **{name: ARMS[name] for name in ("full", "dapo", "random", "band", "variance")},
    "public_script": Arm("the authors' public script", public_script, "all"),
    "rap": Arm("RAP, rule budget, ACE drops", full_rap, "all"),
    "rap_no_ace": Arm("RAP, rule budget, ACE drops none", without_ace, "all"),
    "rap_logits": ARMS["rap_logits"],
    **_learners("cascade"),
    **_learners("answer"),
    "learn_answer_any_sign": Arm(
        "learn, answer, any sign of D",
        learner(lambda_c=-1.0, **NO_GUARD),
        "all",
        evidence="answer",
    ),
}
"""The arms of the second edition (benchmarks/training_second.py)."""
