"""What ``choose`` warns of, in sentences, and the counts behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from ..errors import RapInputError
from ..rewards.checker import PASSES, shown_name
from ..rewards.sameness import LEAST_SAMPLES, same_text
from ..scores.reader import Reader
from .judged import UNSOLVED, VALID, Judged, probabilities
from .learn import warnings_of

CUT_SHARE = 0.1
"""A warning from this share of completions on that were cut at max_new_tokens."""
FAINT = 1e-6
"""A median p(answer) below this says that the model does not answer in the reference's
form, rather than that the questions are hard."""


FEW = 64
"""Samples below which a cascade's bill is not held, and its prior rests on few."""


@dataclass(frozen=True, slots=True)
class Counted:
    """``cut``: (completions cut, sampled), None: not counted. ``median_p``: the median
    p(answer) with the image, None: no probabilities. ``meta``: ``Scores.meta``."""

    cut: tuple[int, int] | None
    median_p: float | None
    meta: Mapping[str, Any]

    @property
    def found(self) -> dict[str, Any]:
        """As the settings of a selection hold it."""
        cut, drawn = self.cut or (None, None)
        return {"completions": drawn, "cut": cut, "median_p_answer": self.median_p}

    @property
    def max_new_tokens(self) -> str:
        """ "max_new_tokens = 256", or without the number where it is not known."""
        tree: Any = self.meta
        for name in ("fingerprint", "config", "sampling", "max_new_tokens"):
            tree = tree.get(name) if isinstance(tree, Mapping) else None
        return "max_new_tokens" + (f" = {tree}" if isinstance(tree, int) else "")


def median_probability(reader: Reader, judged: Judged) -> float | None:
    """The median p(answer) with the image over valid samples; None if none has one.

    Raises ``RapInputError`` if it has one and not a single sample is solved: no selection
    could be made.
    """
    if judged.counted:
        return None
    p = probabilities(reader, judged)
    if not p.size:
        return None
    median = float(np.median(p, overwrite_input=True))
    solved = judged.where(lambda f: (f & VALID != 0) & (f & UNSOLVED == 0))
    if not solved.any():
        limit = judged.reading.config.unsolved
        raise RapInputError(
            f"nothing to choose from: all {p.size} samples with an answer are unsolved, "
            f"difficulty >= {limit:g} (median p(answer) {median:.2g}). "
            f"{_CHECKED.format(judged) if judged.drawn else _FORM}"
        )
    return median


_FORM = (
    "The model gives the reference answers almost no probability: is the reference the "
    "bare answer, in the form the model writes after answer_prefix? For long references "
    "choose with likelihood='mean'"
)

_CHECKED = (
    "{0.drawn} completions were graded, {0.cut} of them cut at max_new_tokens, where an "
    "answer counts as wrong: score with more tokens if these are many; else see whether "
    "the model answers in the form of the reference, or give a reward function"
)


def notes_of(
    judged: Judged,
    found: dict[str, Any],
    groups: Sequence[dict[str, Any]],
    threshold: Fraction | None,
    counted: Counted,
) -> list[str]:
    """The warnings of a selection, but for those about attention."""
    asked = "" if threshold is None else f"D > {float(threshold):g} and "
    learned = [g["learned"] for g in groups if "learned" in g]
    why = f"{found['candidates']} samples have {asked}pass ACE"
    if learned:
        why = "no other sample is valid and solved"
        if len(groups) > 1:
            why += " in the groups that have not kept all of theirs"
    return [
        *_about_refusal(counted.meta),
        *_about_size(found, asked, why),
        *(warnings_of(learned) if learned else ()),
        *(() if learned else _about_replacing(found)),
        *_about_screening(judged, groups, threshold),
        *_about_few(judged),
        *_about_answers(counted),
        *_about_reward(judged, counted.meta),
        *_about_engine(counted.meta),
    ]


def _about_refusal(meta: Mapping[str, Any]) -> list[str]:
    refused = meta.get("refused")
    return [f"the run that made these scores was refused: {refused}"] if refused else []


def _about_size(found: dict[str, Any], asked: str, why: str) -> list[str]:
    target, kept = found["target"], found["kept"]
    if target == 0:
        return [f"the budget allows no sample: floor(budget * {found['samples']}) = 0"]
    if target is not None and kept < target:
        return [f"short result: {kept} of {target} kept; {why}"]
    if kept == 0:
        return [f"no sample is kept: none has {asked}passes ACE"]
    return []


def _about_replacing(found: dict[str, Any]) -> list[str]:
    notes, removed, replaced = [], found["trivial_removed"], found["replaced"]
    if replaced < removed and (found["target"] is None or found["kept"] < found["target"]):
        notes.append(
            f"{replaced} of {removed} trivial samples replaced: no more candidates"
        )
    if replaced and replaced == found["kept"]:
        notes.append(
            "every kept sample is a replacement: all survivors of CDE and ACE are trivial"
        )
    return notes


def _about_screening(
    judged: Judged, groups: Sequence[dict[str, Any]], threshold: Fraction | None
) -> list[str]:
    if threshold is None:
        return []
    lowest = min((g["lambda_c"] for g in groups), default=float(threshold))
    screened = sum(count for bound, count in judged.bounds.items() if bound > lowest)
    if not screened:
        return []
    return [
        f"{screened} samples were never tried with the image (screen_lambda_c, of an "
        f"earlier version) though their D may exceed {lowest:g}; score again"
    ]


def _about_few(judged: Judged) -> list[str]:
    n = len(judged)
    if judged.reading.kind.name != "cascade" or n >= FEW:
        return []
    return [
        f"evidence cascade of {n} samples, fewer than {FEW}: what p(answer) says is "
        "learned from few completions, and cascade_completions is not held; "
        "evidence='rollouts' asks about each sample"
    ]


def _about_engine(meta: Mapping[str, Any]) -> list[str]:
    tree: Any = meta
    for name in ("fingerprint", "engine", "ace_skipped"):
        tree = tree.get(name) if isinstance(tree, Mapping) else None
    return [f"ACE is skipped: {tree}"] if isinstance(tree, str) else []


def _about_reward(judged: Judged, meta: Mapping[str, Any]) -> list[str]:
    """A user's reward that is the same for all: no sample is told from another."""
    c1, m1, c0, m0 = judged.graded
    tree = meta.get("fingerprint")
    name = tree.get("checker") if isinstance(tree, Mapping) else None
    few = not m1 or not m0 or judged.graded_rows < LEAST_SAMPLES
    if few or not isinstance(name, str) or name.startswith("builtin/"):
        return []
    right, graded = c1 + c0, m1 + m0
    if 0 < right < graded:
        return []
    value = f"at least {PASSES:g}" if right else f"less than {PASSES:g}"
    return [same_text(shown_name(name), value, graded)]


def _about_answers(counted: Counted) -> list[str]:
    notes = []
    cut, drawn = counted.cut or (0, 0)
    if drawn and cut >= CUT_SHARE * drawn:
        notes.append(
            f"{cut} of {drawn} completions were cut at {counted.max_new_tokens}: an answer "
            "that was cut counts as wrong; score again with more"
        )
    if counted.median_p is not None and counted.median_p < FAINT:
        notes.append(f"median p(answer) with the image is {counted.median_p:.2g}. {_FORM}")
    return notes
