"""What a selection costs, and the epochs of training after which it has paid for itself.

    S = 1 - t - rho C / (E n)

S: share of the cost of training on everything that is saved, the scoring billed. t: cost of
training on the selection over that of training on everything. C: cost of the scores a
sample, in sampled completions (a forward counts as ``forward`` of one). E epochs with n
completions a prompt. rho = 1 / (1 + ``update``): sampling a completion over sampling it and
training on it. The selection pays after E* = rho C / ((1 - t) n) epochs.

With ``epoch_hours`` told, the same in hours: E* = hours of scoring / ((1 - t) epoch_hours).
Of a very small model a call costs more than its tokens, which C does not see and hours do.

Counts are the run's; prices are stated. The paper (arXiv 2506.04755) reports 52.8 h of
training on its selection against 93.2 h, t = 0.5665, the selection not counted.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import pyarrow.compute as pc

from ..config import TRAIN_GROUP
from ..errors import RapConfigError
from ..samples.text import counted
from ..settings import Ge, Gt, Le, Number, resolve, setting, settings, to_python

if TYPE_CHECKING:
    from .reader import Reader
    from .scores import Scores
    from .selected import Selected

EPOCHS = (1, 3, 15)
"""Epochs that a bill is written for; the paper trains for 15."""
MOST = 10**6
"""Epochs, and completions a prompt, at most: what is above is a mistake."""


@settings
class Prices:
    """What work costs. One sampled completion is the unit."""

    forward: Annotated[Number, Ge(0)] = setting(
        "A teacher-forced forward of prompt and response, in completions.", default=0.2
    )
    update: Annotated[Number, Ge(0)] = setting(
        "Training on a completion besides sampling it, in completions: six forwards at 0.2 "
        "(old policy and reference one each, forward 1, backward 2, recomputing 1).",
        default=1.2,
    )
    group: Annotated[int, Ge(1), Le(MOST)] = setting(
        "n: completions a prompt and epoch of training.", default=TRAIN_GROUP
    )
    training_share: Annotated[Number, Gt(0), Le(1)] | None = setting(
        "t: cost of training on the selection over that on everything (the paper's "
        "hours: 0.5665).",
        default=None,
        none="the share of the samples that is kept: as many epochs on either",
    )
    scoring_hours: Annotated[Number, Ge(0)] | None = setting(
        "Hours that the scoring took.",
        default=None,
        none="the seconds in the score table; a saved selection has none",
    )
    epoch_hours: Annotated[Number, Gt(0)] | None = setting(
        "Hours that one epoch of training on everything takes on the device that made the "
        "scores: the bill is then in hours, too.",
        default=None,
        none="not told",
    )
    gpu_hour: Annotated[Number, Ge(0)] | None = setting(
        "Money for an hour of the device that made the scores.",
        default=None,
        none="not told",
    )
    million_tokens: Annotated[Number, Ge(0)] | None = setting(
        "Money for a million sampled tokens, where a paid server sampled them.",
        default=None,
        none="not told",
    )

    @property
    def rho(self) -> float:
        """Sampling a completion over sampling it and training on it."""
        return 1.0 / (1.0 + self.update)


STAGES = {
    "answer": "p(answer)",
    "image": "completions with the image",
    "text": "completions without the image",
    "other": "other completions",
    "forwards": "forwards over responses",
}


@dataclass(frozen=True, slots=True)
class BilledStage:
    """One stage of scoring. ``tokens``: sampled, None: not known for this stage alone."""

    name: str
    samples: int
    completions: int
    forwards: int
    tokens: int | None

    @property
    def text(self) -> str:
        """What it is, in words."""
        return STAGES[self.name]


@dataclass(frozen=True, slots=True)
class Bill:
    """``stages``: of the scoring. ``kept``: samples, None: nothing was chosen yet.
    ``per_sample``: C. ``saved``: {epochs: S}. ``pays_after``: E*, None: never, since
    nothing is saved in training. ``seconds``: of the scoring, None: not recorded.
    ``pays_after_hours``: E* in hours and not in completions, None: ``epoch_hours`` was not
    told, the seconds were not recorded, or it never pays. ``money``: of the scoring at the
    prices told, None: none was told that applies."""

    prices: Prices
    samples: int
    kept: int | None
    stages: tuple[BilledStage, ...]
    training_share: float
    per_sample: float
    saved: dict[int, float]
    pays_after: float | None
    tokens: int | None
    seconds: float | None
    pays_after_hours: float | None
    money: float | None

    @property
    def completions(self) -> int:
        """Sampled for the scores."""
        return sum(stage.completions for stage in self.stages)

    @property
    def forwards(self) -> int:
        """Teacher-forced, for the scores."""
        return sum(stage.forwards for stage in self.stages)

    @property
    def whole_epochs(self) -> int | None:
        """The first number of epochs after which something is saved."""
        return None if self.pays_after is None else math.floor(self.pays_after) + 1

    @property
    def numbers(self) -> list[float]:
        """All that was worked out with the prices."""
        found = (self.pays_after, self.seconds, self.pays_after_hours, self.money)
        known = [x for x in found if x is not None]
        return [self.per_sample, *self.saved.values(), *known]

    def as_json(self) -> dict[str, Any]:
        """As JSON values."""
        found = dataclasses.asdict(self)
        found["saved"] = {str(epochs): share for epochs, share in self.saved.items()}
        return found | {"rho": self.prices.rho, "whole_epochs": self.whole_epochs}

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        told = any(s.tokens is not None for s in self.stages)  # of a stage by itself
        names = f"{'completions':>12} {'forwards':>10}" + f" {'tokens':>12}" * told
        yield f"{'stage':<10} {'samples':>10} {names}"
        for s in self.stages:
            text = f"{s.name:<10} {s.samples:>10,} {s.completions:>12,} {s.forwards:>10,}"
            yield text if s.tokens is None else f"{text} {s.tokens:>12,}"
        if len(self.stages) > 1:
            done = f"{self.completions:>12,} {self.forwards:>10,}"
            yield f"{'all':<10} {self.samples:>10,} {done}"
        if self.tokens is not None:
            yield f"sampled {counted(self.tokens, 'token')}"
        prices = self.prices
        if not self.stages:
            yield "what the scores cost was not counted, and is taken for nothing"
        yield (
            f"scoring costs C = {_short(self.per_sample, 3)} completions a sample (a "
            f"forward counts as {prices.forward:g})"
        )
        if self.seconds is not None:
            yield f"it took {self.seconds:,.0f} s"
        elif prices.gpu_hour is not None or prices.epoch_hours is not None:
            yield (
                "its hours are not known (a saved selection keeps none): tell "
                "scoring_hours, or take the bill of the score store"
            )
        if self.money is not None:
            yield f"at the prices told: {self.money:,.2f}"
        yield from self._training()
        for epochs, share in self.saved.items():
            word = "epoch: " if epochs == 1 else "epochs:"
            text = f"{epochs:>5} {word} {share:+.1%} of training on everything saved"
            yield text + (f" ({-share:.1%} more is spent)" if share < 0 else "")
        yield from self._paying()

    def _training(self) -> Iterator[str]:
        """What the training is compared with."""
        share, prices, why = self.training_share, self.prices, ""
        if self.kept is not None and prices.training_share is None:
            why = f": {self.kept:,} of {self.samples:,} samples, as many epochs"
        yield (
            f"training on the selection costs t = {100 * share:.4g}% of training on "
            f"everything{why}"
        )
        yield (
            f"an epoch has n = {prices.group} completions a prompt; sampling them is rho = "
            f"{prices.rho:.1%} of its cost"
        )

    def _paying(self) -> Iterator[str]:
        if self.pays_after is None:
            yield "it never pays: training on the selection is as dear as on everything"
            return
        yield (
            f"it pays after {_epochs(self.pays_after)}: from epoch {self.whole_epochs} on "
            "less is spent than on everything"
        )
        if self.pays_after_hours is not None:
            yield f"in hours it pays after {_epochs(self.pays_after_hours)}"


def _epochs(n: float) -> str:
    """Two digits, or as many as rounding needs to stay below the next whole one."""
    found = (_short(n, digits) for digits in range(2, 18))
    said = next(x for x in found if int(float(x.replace(",", ""))) == int(n))
    return f"{said} epoch{'s' * (said != '1')}"


def _short(x: float, digits: int) -> str:
    """So many significant digits; all of those before the point, and no power of ten."""
    said = f"{x:.{digits}g}"
    return f"{x:,.0f}" if "e+" in said else said


def saved_share(
    per_sample: float, epochs: float, training_share: float, prices: Prices
) -> float:
    """S; see the module's docstring."""
    scoring = prices.rho * per_sample / (epochs * prices.group)
    return 1.0 - training_share - scoring


def pays_after(per_sample: float, training_share: float, prices: Prices) -> float | None:
    """E*; None where training saves nothing."""
    if training_share >= 1.0:
        return None
    return prices.rho * per_sample / ((1.0 - training_share) * prices.group)


def cost(
    of: Scores | Selected,
    prices: Prices | None = None,
    *,
    epochs: Sequence[int] = EPOCHS,
    **overrides: Any,
) -> Bill:
    """The bill of a selection, or of scores, against training on everything.

        print(rap.cost(selection, group=5, training_share=0.5665))

    ``of``: a ``Selection`` or ``Scores``; of scores alone ``training_share`` must be told.
    ``prices``: `Prices`; ``overrides``: single fields of it. ``epochs``: what S is worked
    out for, each from 1 to `MOST`. Raises ``RapConfigError``.
    """
    given = resolve(Prices, "prices", prices, overrides, "rap.cost")
    if not hasattr(of, "reader"):
        raise RapConfigError(
            f"rap.cost: got {type(of).__name__}; expected a selection or scores: "
            "rap.load(folder), rap.Scores.load(store)"
        )
    wanted, (kept, share) = _whole(epochs), _kept_and_share(of, given)
    try:
        bill = _bill(of.reader, given, kept, share, wanted)
    except (OverflowError, ZeroDivisionError):
        bill = None
    if bill is None or not all(map(math.isfinite, bill.numbers)):
        raise RapConfigError(
            "the bill is no finite number: one of the prices told is far too large, or far "
            "too small"
        )
    return bill


def _whole(epochs: Iterable[int]) -> list[int]:
    """As Python's integers; NumPy's are taken, too."""
    try:
        found = list(map(to_python, epochs))
    except TypeError:  # one number
        found = []
    whole = [e for e in found if type(e) is int and 1 <= e <= MOST]
    if not whole or len(whole) < len(found):
        raise RapConfigError(
            f"epochs = {epochs!r}: expected integers from 1 to {MOST:,}, such as {EPOCHS}"
        )
    return whole


def _kept_and_share(of: Scores | Selected, prices: Prices) -> tuple[int | None, float]:
    """(samples kept, None: nothing was chosen yet; t)"""
    kept = len(of) if hasattr(of, "kept") else None
    if prices.training_share is not None:
        return kept, prices.training_share
    if kept is None:
        raise RapConfigError(
            "training_share = None: scores alone do not say how much is kept; give "
            "training_share, or a selection"
        )
    if not kept:
        raise RapConfigError(
            "nothing is kept, so there is no training to compare with: give training_share"
        )
    return kept, kept / max(of.reader.num_rows, 1)


def _bill(
    reader: Reader, prices: Prices, kept: int | None, share: float, epochs: Sequence[int]
) -> Bill:
    n, stages = reader.num_rows, tuple(stages_of(reader))
    completions, forwards = (
        sum(getattr(s, name) for s in stages) for name in ("completions", "forwards")
    )
    per_sample = (completions + prices.forward * forwards) / max(n, 1)
    tokens, seconds = (_total(reader, x) for x in ("generated_tokens", "seconds"))
    if prices.scoring_hours is not None:
        seconds = 3600 * prices.scoring_hours
    in_hours = None
    if prices.epoch_hours is not None and seconds is not None and share < 1.0:
        in_hours = seconds / 3600 / ((1.0 - share) * prices.epoch_hours)
    return Bill(
        prices,
        n,
        kept,
        stages,
        share,
        per_sample,
        {e: saved_share(per_sample, e, share, prices) for e in epochs},
        pays_after(per_sample, share, prices),
        None if tokens is None else int(tokens),
        seconds,
        in_hours,
        _money(prices, tokens, seconds),
    )


def _money(prices: Prices, tokens: float | None, seconds: float | None) -> float | None:
    found = []
    if prices.gpu_hour is not None and seconds is not None:
        found.append(prices.gpu_hour * seconds / 3600)
    if prices.million_tokens is not None and tokens is not None:
        found.append(prices.million_tokens * tokens / 1e6)
    return sum(found) if found else None


def _total(reader: Reader, name: str) -> float | None:
    """The sum of a column; None where every row is null."""
    total = None
    for batch in reader.batches([name]):
        part = pc.sum(batch[name]).as_py()
        if part is not None:
            total = part if total is None else total + part
    return total


def stages_of(reader: Reader) -> Iterator[BilledStage]:
    """The stages of a scoring, counted in its table: completions with the image, without
    it, forwards over what is teacher-forced. Of a cascade: p(answer) of all first."""
    counts = {
        name: np.zeros(2, np.int64) for name in ("image", "text", "other", "forwards")
    }
    first = 0
    for batch in reader.batches(["m1", "m0", "n_drawn", "forwards", "decided_by"]):
        m1, m0, drawn, forwards = (
            pc.fill_null(batch[n], 0).to_numpy().astype(np.int64)
            for n in ("m1", "m0", "n_drawn", "forwards")
        )
        other = np.maximum(drawn - m1 - m0, 0)  # greedy ones, and those never graded
        for name, x in zip(counts, (m1, m0, other, forwards), strict=True):
            counts[name] += np.array([x.sum(), np.count_nonzero(x)])
        first += len(batch["decided_by"]) - batch["decided_by"].null_count
    forwards_, asked = counts.pop("forwards").tolist()
    if first:  # two forwards over the answer of each
        yield BilledStage("answer", first, 0, 2 * first, None)
        forwards_, asked = max(0, forwards_ - 2 * first), counts["text"].tolist()[1]
    for name, (completions, samples) in counts.items():
        if completions:
            yield BilledStage(name, int(samples), int(completions), 0, None)
    if forwards_:
        yield BilledStage("forwards", asked, 0, forwards_, None)
