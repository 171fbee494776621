"""The tables of the page: reasons, groups, cost, settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc

from ..scores.bill import BilledStage
from ..scores.bill import stages_of as billed
from ..scores.profile import COUNTS, STAGES, Profile
from ..scores.selected import ALWAYS_SHOWN
from .text import visible

if TYPE_CHECKING:
    from ..scores.selected import Selected

MAX_REASONS = 40
MAX_GROUPS = 50
SETTINGS = 6000  # characters of the settings that are shown

EXPLANATION = {
    "kept_cognitive": "The image changes the outcome.",
    "kept_replacement": "Solvable; takes the place of a trivial one, or fills the budget.",
    "kept_guard": "The image hurts, or one token holds the attention: the guard share.",
    "dropped_unsolved": "Never solved with the image: nothing to reward.",
    "dropped_attention_biased": "One token holds the response's attention: psi is above "
    "its limit.",
    "dropped_image_hurts": "Does better without the image than with it.",
    "dropped_language_prior": "The image changes too little: the text alone does nearly as "
    "well.",
    "dropped_trivial": "Always solved: nothing left to learn.",
    "dropped_over_budget": "Passes every test; the budget went to others.",
    "quarantined_psi_missing": "Attention was measured for others, not for this one.",
    "quarantined_few_rollouts": "No graded completion with the image, or none without it.",
    "quarantined_nonfinite": "A score is not a finite number.",
    "quarantined_oom": "Did not fit in memory, even alone.",
    "quarantined_empty_response": "The response holds no token.",
    "quarantined_system_turn": "Two system prompts for one sample.",
    "quarantined_prompt_too_long": "The prompt is too long; image tokens are never cut.",
    "quarantined_verifier_error": "The answer checker failed.",
    "quarantined_verifier_timeout": "The answer checker took too long.",
    "quarantined_model_error": "The model failed on this sample alone.",
    "quarantined_image_missing": "The image file is not there.",
    "quarantined_image_unreadable": "The image cannot be read.",
    "quarantined_image_truncated": "The image file ends too early.",
    "quarantined_image_too_large": "The image has too many pixels.",
    "quarantined_image_too_small": "The image is smaller than anything to see.",
    "quarantined_image_format": "The image format is not accepted.",
    "quarantined_image_count": "Images and image tags do not match.",
    "quarantined_text_only": "The row has no image: a text-only row.",
    "quarantined_video": "The row has a video; videos are not supported.",
    "quarantined_path_outside_root": "The image path leads out of the data folder.",
    "quarantined_not_regular_file": "The image path is no ordinary file.",
    "quarantined_url_refused": "The image is an address on the network; none is fetched.",
    "quarantined_bad_json": "The row is not valid JSON.",
    "quarantined_bad_answer": "Question or answer is missing, or no choice fits.",
    "quarantined_bad_text": "A text cannot be stored.",
}


@dataclass(frozen=True, slots=True)
class Reason:
    """A reason code with what the page says of it; ``label`` is the code to be shown."""

    code: str
    label: str
    kind: str  # kept | dropped | quarantined
    count: int
    share: float
    width: float  # of the bar, in units of the chart
    text: str


def reasons_of(selection: Selected) -> list[Reason]:
    counts = selection.counts()
    text = dict(EXPLANATION)
    found = selection.settings["found"]
    dropped = found.get("biased") != "report"
    if found["lambda_a"] is not None and dropped:  # else none was barred
        text["kept_cognitive"] += " No single token holds the attention."
    shown = [(c, k) for c, k in counts.items() if k or c in ALWAYS_SHOWN]
    most = max((k for _, k in shown), default=1) or 1
    n = max(selection.reader.num_rows, 1)
    return [
        Reason(
            code=code,
            label=visible(code, 80),
            kind=code.partition("_")[0],
            count=count,
            share=count / n,
            width=400 * count / most,
            text=text.get(code, ""),
        )
        for code, count in shown[:MAX_REASONS]
    ]


@dataclass(frozen=True, slots=True)
class Cost:
    """The ledger; None: not recorded. Completions are the unit both sides share.

    ``cut``: completions that ended at max_new_tokens.
    """

    group: int
    completions: int
    cut: int
    tokens: int | None
    forwards: int | None
    seconds: float | None
    kept_completions: int
    all_completions: int
    stages: tuple[BilledStage, ...]


def cost_of(selection: Selected, group: int) -> Cost:
    def total(name: str) -> Any:
        column = selection.reader.read([name])[name]
        return pc.sum(column).as_py()  # None where every row is null

    stages = tuple(billed(selection.reader))
    return Cost(
        group=group,
        completions=sum(stage.completions for stage in stages),
        cut=selection.settings["found"].get("cut") or 0,
        tokens=total("generated_tokens"),
        forwards=total("forwards"),
        seconds=total("seconds"),
        kept_completions=group * len(selection),
        all_completions=group * selection.reader.num_rows,
        stages=stages if len(stages) > 1 else (),
    )


@dataclass(frozen=True, slots=True)
class Stage:
    """One row of where the time went. ``width``: of its bar, 0 to 400."""

    name: str
    text: str
    seconds: float
    share: float
    width: float


@dataclass(frozen=True, slots=True)
class Times:
    """Where the time of the profiled runs went, and what they worked for it."""

    runs: int
    samples: int
    wall: float
    stages: list[Stage]
    beside: float
    """Seconds of worker threads that prepared samples meanwhile."""
    counts: list[tuple[str, str, int, float | None]]
    """(name, text, count, ratio or None)"""
    uncounted: int
    """Samples that no profiled run scored; 0 where it is not known."""


def times_of(profile: Profile | None, samples: int) -> Times | None:
    """``samples``: in the score table."""
    if profile is None:
        return None
    stages, ratios = profile.stages(), profile.ratios()
    most = max(seconds for _, seconds, _ in stages) or 1.0
    return Times(
        runs=profile.runs,
        samples=profile.samples,
        wall=profile.wall,
        stages=[
            Stage(name, STAGES[name], seconds, share, 400 * seconds / most)
            for name, seconds, share in stages
        ],
        beside=sum(profile.beside.values()),
        counts=[
            (name, text, profile.counts.get(name, 0), ratios.get(name))
            for name, text in COUNTS.items()
        ],
        uncounted=max(0, samples - profile.samples),
    )


def groups_of(selection: Selected) -> dict[str, Any] | None:
    groups = selection.settings["groups"]
    if not groups:
        return None
    largest = sorted(groups, key=lambda g: -g["samples"])[:MAX_GROUPS]  # stable
    rows = [
        (visible(g["group"], 80), g["samples"], g["kept"], g["lambda_c"]) for g in largest
    ]
    by = visible(selection.settings["choose"]["by"], 80)
    return {"by": by, "rows": rows, "more": len(groups) - len(rows)}


@dataclass(frozen=True, slots=True)
class Compared:
    """Two selections. ``moves``: (reason there, reason here, samples), ``more``: others."""

    here: int
    there: int
    both: int
    jaccard: float
    moves: list[tuple[str, str, int]]
    more: int
    unknown: tuple[int, int]


def compared(selection: Selected, other: Selected) -> Compared:
    found = selection.compare(other)
    moves = [(visible(a, 80), visible(b, 80), n) for (a, b), n in found.moved.items()]
    return Compared(
        here=found.kept,
        there=found.kept_other,
        both=found.overlap,
        jaccard=found.jaccard,
        moves=moves[:MAX_REASONS],
        more=len(moves[MAX_REASONS:]),
        unknown=found.unknown,
    )


def details_of(settings: Mapping[str, Any]) -> str:
    shown = {k: v for k, v in settings.items() if k not in ("warnings", "groups")}
    return visible(json.dumps(shown, indent=2, default=str), SETTINGS)
