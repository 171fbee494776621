"""How each kind of evidence is read from the score table: D and difficulty of a row.

``KINDS`` has them all: ``rollouts``, ``answer``, ``logits``, ``cascade``. What fills the
table is the class of the same name in ``rap.scoring.evidence``. A new kind is a class and a
line here, and a module there with its line in that table.

Source: arXiv 2506.04755, CDE (what the image changes) and DRM (how hard a sample is).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..config import TRAIN_GROUP
from .columns import counts, distinct_rows, floats, integers, mask_of, quotient_key
from .learning import value_of_answers, value_of_counts
from .posterior import Arm, keep_probability
from .prior import FEATURES, WITH_IMAGE, WITHOUT, features, fit, predict


@dataclass(frozen=True, slots=True)
class Measured:
    """What a kind of evidence says of each row. Arrays are float64 [n], NaN: unknown.

    ``d``: D. ``order``: a key whose order and equality are those of the exact D.
    ``learn``: D times what is left to learn; ``learnable``: its exact key.
    ``enough``: bool, what a decision needs is there. ``d_bound``: D is at most this where
    only the completions without the image were sampled. ``counts``: c1, m1, c0, m0, int64.
    ``posterior``: what completions say of the pass rates; None: nothing was graded.
    ``psi_unread``: bool, the attention was not read because ACE need not judge the row.
    ``psi_times``: int64, for how many rows its psi stands in the calibration; None: one.
    ``first``: where all else is the same for equal counts, a row of each distinct one, and
    ``back``, which of those each row is equal to; None: no such rows are known.
    ``value``: what training can learn of it (``rap.scores.learning``), when asked.
    """

    d: np.ndarray
    order: np.ndarray
    learn: np.ndarray
    learnable: np.ndarray
    difficulty: np.ndarray
    enough: np.ndarray
    d_bound: np.ndarray
    value: Callable[[], np.ndarray]
    counts: tuple[np.ndarray, ...] | None = None
    posterior: Posterior | None = None
    psi_unread: np.ndarray | None = None
    psi_times: np.ndarray | None = None
    first: np.ndarray | None = None
    back: np.ndarray | None = None

    def spread(self, first: np.ndarray, back: np.ndarray) -> Measured:
        """Of rows of which these are the distinct ones: see ``first``."""

        def each(value: Any) -> Any:
            if isinstance(value, np.ndarray):
                return value[back]
            if isinstance(value, tuple):
                return tuple(map(each, value))
            if isinstance(value, Posterior):
                mean1, mean0, keep = map(each, value.arrays)
                return Posterior(mean1, mean0, keep, value.prior)
            if callable(value):
                return lambda: each(value())
            return value

        made = {f.name: each(getattr(self, f.name)) for f in dataclasses.fields(self)}
        return Measured(**made | {"first": first, "back": back})


@dataclass(frozen=True, slots=True)
class Posterior:
    """Of each row, float64 [n], NaN: nothing is known. ``mean1``, ``mean0``: posterior
    means of the pass rates with and without the image. ``keep``: the keep-probability.
    Formulas: ``rap.scores.posterior``. ``prior``: in words."""

    mean1: np.ndarray
    mean0: np.ndarray
    keep: np.ndarray
    prior: str

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        return self.mean1, self.mean0, self.keep


class Kind:
    """One kind of evidence, as it is read. Texts are shown in help, summary and report."""

    name: str
    summary: str
    """One sentence: what is computed, and what it costs."""
    signed: bool = True
    """Whether D can be below 0: the image hurts."""
    graded: bool = False
    """Whether completions are graded, so that a reward function has something to do."""
    ranks_by: str = "learnable"
    """What a budget ranks by unless asked otherwise; one of ``config.ORDERS``."""
    by_row: bool = True
    """Whether what is read of a row is the same whatever other rows the table has."""
    short_of: str = "nonfinite"
    """Quarantine code of a row without what a decision needs."""
    difficulty_text: str

    def d_text(self, divergence: str) -> str:
        """What D is, in words."""
        raise NotImplementedError

    def learn_text(self) -> str:
        """What "what is left to learn" multiplies D by, in words."""
        return "D times the difficulty"

    def alike(self, table: pa.Table) -> tuple[np.ndarray, np.ndarray] | None:
        """(a row of each different one, which of those each row is as good as), as
        ``columns.distinct_rows``, where ``read`` asks little of a row; else None."""
        return None

    def read(
        self, table: pa.Table, *, divergence: str, likelihood: str, threshold: float
    ) -> Measured:
        """See ``Measured``. ``divergence``: which one is D, for ``logits``.
        ``likelihood``: which p(answer), where there is one. ``threshold``: of the
        keep-probability, on D."""
        raise NotImplementedError

    def rates(self, table: pa.Table) -> list[tuple[str, np.ndarray]]:
        """(label, float64 [n], NaN: unknown) with and without the image."""
        raise NotImplementedError

    def lines(self, row: Mapping[str, Any]) -> list[tuple[str, str | float]]:
        """(label, text or number) of one row, with and without the image."""
        raise NotImplementedError


class Rollouts(Kind):
    """c1 of m1 completions right with the image, c0 of m0 without."""

    name = "rollouts"
    summary = (
        "completions with and without the image, each graded (the paper's): for small "
        "pools, and about five times the completions of cascade"
    )
    graded = True
    ranks_by = "posterior"
    short_of = "few_rollouts"
    difficulty_text = "share of the completions with the image that are wrong"

    def d_text(self, divergence: str) -> str:
        return "pass rate with the image minus pass rate without"

    def read(
        self, table: pa.Table, *, divergence: str, likelihood: str, threshold: float
    ) -> Measured:
        few = self.alike(table)
        if few is None:
            return self._read(counts_of(table), threshold)
        first = pa.array(few[0])
        ones = table.select(_COUNTS).take(first)
        return self._read(counts_of(ones), threshold).spread(*few)

    def alike(self, table: pa.Table) -> tuple[np.ndarray, np.ndarray] | None:
        return distinct_rows([counts(table[name]) for name in _COUNTS])

    def _read(self, counts: tuple[np.ndarray, ...], threshold: float) -> Measured:
        c1, m1, c0, m0 = counts
        both, text_only = (m1 > 0) & (m0 > 0), (m1 == 0) & (m0 > 0)
        number, scale = c1 * m0 - c0 * m1, m1 * m0
        # Quotients of integers below 2**53: correctly rounded, so equal D are equal.
        d = _quotient(number, scale, both)
        difficulty = _quotient(m1 - c1, m1, m1 > 0)
        learn = d * difficulty
        arm1, arm0 = Arm(c1, m1), Arm(c0, m0)
        return Measured(
            d=d,
            order=quotient_key(d, number, scale),
            learn=learn,
            learnable=quotient_key(learn, number * (m1 - c1), scale * m1),
            difficulty=difficulty,
            enough=both | text_only,
            d_bound=_quotient(m0 - c0, m0, text_only),
            value=lambda: value_of_counts(arm1, arm0, d, both),
            counts=counts,
            posterior=_posterior(arm1, arm0, both, threshold, "uniform"),
        )

    def rates(self, table: pa.Table) -> list[tuple[str, np.ndarray]]:
        found = []
        for label, c, m in (
            ("Pass rate with the image", "c1", "m1"),
            ("Pass rate without the image", "c0", "m0"),
        ):
            judged = integers(table[m])
            found.append((label, _quotient(integers(table[c]), judged, judged > 0)))
        return found

    def lines(self, row: Mapping[str, Any]) -> list[tuple[str, str | float]]:
        arms = (("with image", "c1", "m1"), ("without", "c0", "m0"))
        return [(n, f"{row[c]} of {row[m]}") for n, c, m in arms if row[m] is not None]


class _Probabilities(Kind):
    """p(answer) with and without the image, teacher-forced.

    A difficulty that is not known counts as 1/2 where D is multiplied by it. A divergence
    has no sign, and may be large where the model is nearly always wrong: there D is
    multiplied by 1 - Diff, too.
    """

    difficulty_text = "1 \u2212 p(answer) with the image"

    def read(
        self, table: pa.Table, *, divergence: str, likelihood: str, threshold: float
    ) -> Measured:
        p1, p0 = (probability(table, arm, likelihood) for arm in "10")
        difficulty = 1.0 - p1
        d = self._d(table, p1, p0, divergence)
        left = np.nan_to_num(difficulty, nan=0.5)
        learn = d * left * (1.0 if self.signed else 1.0 - left)
        unknown, known = np.full(table.num_rows, np.nan), ~np.isnan(d)
        return Measured(
            *(d, d, learn, learn, difficulty, known, unknown),
            value=lambda: value_of_answers(p1, self._moved(table, d), known),
        )

    def _moved(self, table: pa.Table, d: np.ndarray) -> np.ndarray:
        """Nats by which the image moves the prediction."""
        return floats(table["js"])

    def _d(
        self, table: pa.Table, p1: np.ndarray, p0: np.ndarray, divergence: str
    ) -> np.ndarray:
        raise NotImplementedError

    def rates(self, table: pa.Table) -> list[tuple[str, np.ndarray]]:
        return [
            ("p(answer) with the image", floats(table["p_answer1"])),
            ("p(answer) without the image", floats(table["p_answer0"])),
        ]

    def lines(self, row: Mapping[str, Any]) -> list[tuple[str, str | float]]:
        arms = (("p with image", "p_answer1"), ("p without", "p_answer0"))
        return [(name, row[p]) for name, p in arms if row[p] is not None]


class Answer(_Probabilities):
    """D = p1(answer) - p0(answer)."""

    name = "answer"
    summary = (
        "two forward passes over the reference answer: samples nothing, but an answer is "
        "too short to read attention off it"
    )

    def d_text(self, divergence: str) -> str:
        return "p(answer) with the image minus p(answer) without"

    def _d(
        self, table: pa.Table, p1: np.ndarray, p0: np.ndarray, divergence: str
    ) -> np.ndarray:
        return p1 - p0


class Logits(_Probabilities):
    """D = a divergence of the two next-token distributions, mean over one response."""

    name = "logits"
    summary = (
        "divergence of the predictions with and without the image, over one response (the "
        "reference solution, else one greedy completion)"
    )
    signed = False

    def d_text(self, divergence: str) -> str:
        return f"{divergence.upper()} divergence of the two predictions, nats"

    def learn_text(self) -> str:
        return "D times difficulty times (1 \u2212 difficulty)"

    def _d(
        self, table: pa.Table, p1: np.ndarray, p0: np.ndarray, divergence: str
    ) -> np.ndarray:
        return floats(table[divergence])

    def _moved(self, table: pa.Table, d: np.ndarray) -> np.ndarray:
        return d


class Cascade(Kind):
    """p(answer) of every sample, completions of those that can still be kept.

    What two forwards say is a prior of both pass rates (``rap.scores.prior``, fitted to the
    completions of this table), completions make it a posterior. D is the difference of the
    posterior means, and what is left to learn is the keep-probability
    (``rap.scores.posterior``): one order for all samples, whatever stage decided them.
    """

    name = "cascade"
    by_row = False  # the prior is fitted to the table
    summary = (
        "two forward passes for every sample, then graded completions for the share that "
        "can still be kept, each sample until it is decided: a fifth of the completions of "
        "rollouts"
    )
    graded = True
    ranks_by = "learnable"
    short_of = "few_rollouts"
    difficulty_text = (
        "share of the completions with the image that are wrong; where none was sampled "
        "what is expected of them"
    )

    def d_text(self, divergence: str) -> str:
        return "pass rate with the image minus pass rate without (posterior means)"

    def learn_text(self) -> str:
        return (
            f"the keep-probability (the image helps, and {TRAIN_GROUP} completions are "
            "mixed)"
        )

    def read(
        self, table: pa.Table, *, divergence: str, likelihood: str, threshold: float
    ) -> Measured:
        c1, m1, c0, m0 = counts_of(table)
        columns = {name: floats(table[name]) for name in FEATURES}
        q1, q0 = (probability(table, arm, likelihood) for arm in "10")
        z = features(columns | {"p_answer1": q1, "p_answer0": q0})
        arm1 = Arm(c1, m1, predict(fit(z, c1, m1, WITH_IMAGE), z))
        arm0 = Arm(c0, m0, predict(fit(z, c0, m0, WITHOUT), z))
        drawn = m1 > 0
        enough = drawn | (~np.isnan(q1) & ~np.isnan(q0))
        prior = (
            f"p(answer), divergence and entropies, as fitted to {int(drawn.sum())} samples "
            "with completions"
        )
        found = _posterior(arm1, arm0, enough, threshold, prior)
        d = found.mean1 - found.mean0
        mixed = (c1 > 0) & (c1 < m1)
        unknown = np.full(table.num_rows, np.nan)

        def value() -> np.ndarray:
            sampled = value_of_counts(arm1, arm0, d, drawn)
            js = floats(table["js"])
            return np.where(drawn, sampled, value_of_answers(q1, js, enough, untried=True))

        return Measured(
            d=d,
            order=d,
            learn=found.keep,
            learnable=found.keep,
            difficulty=np.where(drawn, _quotient(m1 - c1, m1, drawn), 1.0 - found.mean1),
            enough=enough,
            d_bound=unknown,
            value=value,
            posterior=found,
            psi_unread=enough & ~mixed,
            psi_times=_psi_times(table),
        )

    def rates(self, table: pa.Table) -> list[tuple[str, np.ndarray]]:
        return [*KINDS["rollouts"].rates(table), *KINDS["answer"].rates(table)]

    def lines(self, row: Mapping[str, Any]) -> list[tuple[str, str | float]]:
        counted = {k: row[k] or None for k in ("m1", "m0")}
        return [
            *KINDS["rollouts"].lines({**row, **counted}),
            *KINDS["answer"].lines(row),
        ]


KINDS: Mapping[str, Kind] = {
    kind.name: kind for kind in (Rollouts(), Answer(), Logits(), Cascade())
}
"""Every kind of evidence by its name."""


def describe() -> str:
    """What each kind is, for a help text: "rollouts: ... answer: ..."."""
    return " ".join(f"{name}: {kind.summary}." for name, kind in KINDS.items())


def counts_of(table: pa.Table) -> tuple[np.ndarray, ...]:
    """c1, m1, c0, m0 as int64 [n], null as 0."""
    return tuple(integers(table[name]) for name in _COUNTS)


_COUNTS = ["c1", "m1", "c0", "m0"]


def _psi_times(table: pa.Table) -> np.ndarray:
    """For how many samples each stands where psi is looked at as a whole, int64 [n]: the
    cascade reads it where outcomes are mixed, so more often of attention-biased samples
    than the pool has them; of the others the pilot's stand for all."""
    answer, pilot = (
        mask_of(pc.equal(table["decided_by"], name)) for name in ("answer", "pilot")
    )
    times = np.ones(table.num_rows, np.int64)
    times[pilot] += int(answer.sum()) // max(1, int(pilot.sum()))
    return times


def _posterior(
    with_image: Arm, without: Arm, known: np.ndarray, threshold: float, prior: str
) -> Posterior:
    """Of the rows that are ``known``, bool [n]."""
    rows = np.flatnonzero(known)
    one, zero = with_image.take(rows), without.take(rows)
    values = (
        one.mean(),
        zero.mean(),
        keep_probability(one, zero, threshold, TRAIN_GROUP),
    )
    spread = np.full((3, len(known)), np.nan)
    spread[:, rows] = values
    return Posterior(spread[0], spread[1], spread[2], prior)


def _quotient(number: np.ndarray, scale: np.ndarray, where: np.ndarray) -> np.ndarray:
    return np.divide(number, scale, out=np.full(len(number), np.nan), where=where)


def probability(table: pa.Table, arm: str, likelihood: str) -> np.ndarray:
    """float64 [n]: p(answer), NaN where unknown. ``arm``: "1" with the image, "0" without.
    ``likelihood``: "product" over the answer's tokens, or their geometric "mean"."""
    if likelihood == "product":
        return floats(table[f"p_answer{arm}"])
    return np.exp(floats(table[f"logp_mean{arm}"]))
