"""Arrays of one measured world: counts, probabilities, psi, causes planted and actual."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from rap.reference import ace_sample
from rap.scores.scores import Scores
from rap.scoring.evidence.rollouts import can_be_kept

from ..world_agreement import Seen, actual, follows
from .collect import Measured

Array = np.ndarray

DEFAULT_PSI = "default: head mean, normalised, min_rows 8"
PSI_FORMS: dict[str, dict[str, Any]] = {
    DEFAULT_PSI: {},
    "published: product, min_rows 1": {"normalise": False, "min_rows": 1},
    "product, min_rows 8": {"normalise": False},
    "normalised, min_rows 1": {"min_rows": 1},
    "normalised, min_rows 4": {"min_rows": 4},
    "window 8": {"window": 8},
    "window 16": {"window": 16},
    "head max": {"heads": "max"},
    "head max, product": {"heads": "max", "normalise": False},
    "largest of single heads": {"heads": "each"},
    "OPERA: head max, renormalised, product": {
        "heads": "max",
        "renormalise": True,
        "normalise": False,
    },
    "columns all": {"columns": "all"},
    "columns prompt": {"columns": "prompt"},
}
TOP_COLUMNS = "mean of the 3 largest columns"


@dataclass(frozen=True, slots=True)
class World:
    """One measured world, read. ``c``, ``m``: {"1", "0"} of all completions."""

    measured: Measured
    planted: Array
    actual: Array
    right: dict[str, Array]
    """{"1", "0"}: right or wrong, bool [n, M]; a completion not judged is wrong."""
    tokens: dict[str, Array]
    """{"1", "0"}: sampled tokens, end token counted, int [n, M]."""
    forms: dict[str, Array]
    """log psi of completion 0, [n], by form; see `psi_forms`."""

    @property
    def psi(self) -> Array:
        """log psi in the default form."""
        return self.forms[DEFAULT_PSI]

    def rate(self, arm: str, m: int | None = None) -> Array:
        """Share of the first m completions that are right."""
        return self.right[arm][:, :m].mean(axis=1)

    def counts(self, m: int) -> tuple[Array, Array, Array, Array]:
        """c1, m1, c0, m0 of a run with m completions an arm: numbers name the seeds, so
        they are the first m."""
        c1, c0 = (self.right[arm][:, :m].sum(axis=1) for arm in ("1", "0"))
        full = np.full(len(c1), min(m, self.right["1"].shape[1]))
        return c1, full, c0, full

    def column(self, scores: str, name: str) -> Array:
        """A column of a score table, null as NaN."""
        column = self.measured.scores[scores].table[name]
        return column.to_numpy().astype(float)


def read(measured: Measured) -> World:
    """Counts and causes of a measured world."""
    truth = measured.scores["truth"]
    right, tokens = _completions(truth, len(measured.samples))
    changed = measured.scores["reworded"]
    effect = follows(measured.samples, truth.rollouts, changed.rollouts)
    followed = [effect.get(s.id, 0.0) for s in measured.samples]
    planted = np.array([s.cause for s in measured.samples])
    p1, p0 = right["1"].mean(axis=1), right["0"].mean(axis=1)
    acts = [actual(Seen(*x)) for x in zip(planted, p1, p0, followed, strict=True)]
    forms = psi_forms(measured.traces)
    return World(measured, planted, np.array(acts), right, tokens, forms)


def _completions(scores: Scores, n: int) -> tuple[dict[str, Array], dict[str, Array]]:
    names = ["index", "arm", "number", "correct", "finish_reason", "token_ids"]
    table = scores.rollouts.select(names).to_pylist()
    m = 1 + max(r["number"] for r in table)
    right = {arm: np.zeros((n, m), bool) for arm in "10"}
    tokens = {arm: np.zeros((n, m), int) for arm in "10"}
    for r in table:
        arm = "1" if r["arm"] == "image" else "0"
        right[arm][r["index"], r["number"]] = r["correct"] is True
        end = r["finish_reason"] == "stop"
        tokens[arm][r["index"], r["number"]] = len(r["token_ids"]) + end
    return right, tokens


def rollout_scores(w: World, counts: tuple[Array, ...], log_psi: Array) -> Scores:
    """What ``rap.score`` would have returned for these counts: the truth's table with
    them in it, and psi of completion 0 where it would have measured one. (Its own psi is
    of the first right completion; the store ``m5`` has that.)"""
    table = w.measured.scores["truth"].table
    for name, values in zip(("c1", "m1", "c0", "m0"), counts, strict=True):
        at = table.schema.get_field_index(name)
        table = table.set_column(at, name, pa.array(values, pa.int16()))
    rows = zip(*(map(int, c) for c in counts), strict=True)
    measured = np.array([can_be_kept(*row) for row in rows])
    return with_psi(Scores(table), np.where(measured, log_psi, np.nan))


def with_psi(scores: Scores, log_psi: Array) -> Scores:
    """The same scores with another log psi (NaN: not measured)."""
    at = scores.table.schema.get_field_index("log_psi")
    column = pa.array(log_psi, pa.float32(), mask=np.isnan(log_psi))
    return dataclasses.replace(scores, table=scores.table.set_column(at, "log_psi", column))


def psi_forms(traces: list[dict[str, Array]]) -> dict[str, Array]:
    """{form: log psi [n]} over completion 0 of every sample, by NumPy's reference."""
    forms: dict[str, list[float]] = {name: [] for name in (*PSI_FORMS, TOP_COLUMNS)}
    for trace in traces:
        start, scale = int(trace["meta"][0]), float(trace["meta"][1])
        for name, options in PSI_FORMS.items():
            found = ace_sample(
                trace["q"],
                trace["k"],
                response_start=start,
                scale=scale,
                column_mask=~trace["special"],
                **options,
            )
            forms[name].append(float(found["log_psi"].max()))
            if not options:
                columns = np.sort(found["log_psi_columns"][0])[-3:]
                forms[TOP_COLUMNS].append(float(columns.mean()))
    return {name: np.array(values) for name, values in forms.items()}
