"""Planned comparisons of the second edition, with intervals over pools, seeds, questions.

(`benchmarks.training_second_page` writes them down.)

A run is an array of 0/1 answers to the test at its last step. Two arms are paired by pool
and seed (same start, same questions). Interval and p of a difference: hierarchical
bootstrap (pools, in each the seeds, and the questions within their family, all with
replacement), `DRAWS` draws, seed 0. The p values of a family of tests are corrected by
Holm (1979).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run by its path, too

from benchmarks.training_arms import SECOND, Arm
from benchmarks.training_second import Plan

DRAWS = 4000
MARGIN = 0.01
"""Not below by more than this, in shares of the questions."""

Cell = tuple[int, int]
"""(pool, seed)"""


@dataclass(frozen=True, slots=True)
class Test:
    """H1: accuracy of ``ours`` less that of ``other`` is above ``-margin``; ``sign`` -1:
    other less ours. ``what``: sighted, mixed or blind."""

    ours: str
    other: str
    budget: float
    what: str
    margin: float = 0.0
    sign: int = 1


def planned(plan: Plan) -> dict[str, list[Test]]:
    """The families of benchmarks/training_plan.md."""
    narrow, wide = plan.narrow, plan.wide
    rivals = ("band", "variance", "public_script", "dapo")
    first = [Test("learn_cascade", "random", narrow, "sighted")]
    for what in ("sighted", "mixed"):
        first += [Test("learn_cascade", r, narrow, what, MARGIN) for r in rivals]
    first.append(Test("learn_cascade", "full", narrow, "mixed", MARGIN))
    second = [Test("learn_answer", "random", wide, "sighted")]
    for what in ("sighted", "mixed"):
        second += [
            Test("learn_answer", r, wide, what, MARGIN)
            for r in ("band", "variance", "full")
        ]
    parts = []
    for evidence, budget in (("cascade", narrow), ("answer", wide)):
        arm = f"learn_{evidence}"
        parts += [
            Test(arm, f"{arm}_no_guard", budget, "mixed"),
            Test(arm, f"{arm}_coverage", budget, "sighted"),
        ]
    parts += [
        Test("learn_cascade", "rap", narrow, "mixed"),
        Test("rap_no_ace", "rap", narrow, "sighted"),
        Test("learn_cascade", "random", narrow, "blind", sign=-1),
    ]
    return {"primary": first, "answer evidence": second, "parts of the rule": parts}


# ---------------------------------------------------------------- answers


def group_slices(groups: Mapping[str, Sequence[int]]) -> dict[str, slice]:
    """{group: its questions}, for groups in the order in which they were asked. The mixed
    world is one group: its samples are not asked cause by cause."""
    found, at, mixed = {}, 0, 0
    for name, (_, asked) in groups.items():
        if name.startswith("image/"):
            found[name] = slice(at, at + asked)
            at += asked
        else:
            mixed += asked
    return found | {"mixed": slice(at, at + mixed)}


def test_point(run: Mapping[str, Any], step: int) -> Mapping[str, Any]:
    """The test that a run took at ``step``."""
    (found,) = [p["test"] for p in run["points"] if p["step"] == step and "test" in p]
    return found


@dataclass(frozen=True, slots=True)
class Answers:
    """``right``: {arm of the exam: float64 [questions]}; ``groups``: of questions."""

    right: Mapping[str, np.ndarray]
    groups: Mapping[str, slice]


def answers_of(run: Mapping[str, Any], step: int) -> Answers:
    point = test_point(run, step)
    right = {
        arm: np.array(list(map(int, digits)), float)
        for arm, digits in point["answers"].items()
    }
    return Answers(right, group_slices(point["sighted"]))


def weights_of(groups: Mapping[str, slice], what: str) -> np.ndarray:
    """Weight of each question in ``sighted``, ``blind`` (families alike) or ``mixed``."""
    n = max(part.stop for part in groups.values())
    weight = np.zeros(n)
    wanted = [g for g in groups if (g == "mixed") == (what == "mixed")]
    for name in wanted:
        part = groups[name]
        weight[part] = 1.0 / (len(wanted) * (part.stop - part.start))
    return weight


def table_of(
    found: Sequence[Mapping[str, Any]], plan: Plan
) -> dict[tuple[str, float | None], dict[Cell, Answers]]:
    """{(arm, budget): {(pool, seed): answers at the arm's last step}}"""
    table: dict[tuple[str, float | None], dict[Cell, Answers]] = {}
    for run in found:
        step = plan.whole_steps if run["budget"] is None else plan.steps
        key = (run["arm"], run["budget"])
        table.setdefault(key, {})[run["pool"], run["seed"]] = answers_of(run, step)
    return table


# ---------------------------------------------------------------- bootstrap


def differences(
    ours: Mapping[Cell, Answers], other: Mapping[Cell, Answers], what: str
) -> tuple[list[Cell], np.ndarray, Mapping[str, slice]]:
    """(cells, weighted answers of ours less the other's [cells, questions], groups)"""
    cells = sorted(set(ours) & set(other))
    arm = "blind" if what == "blind" else "sighted"
    if not cells:
        return [], np.empty((0, 0)), {}
    groups = ours[cells[0]].groups
    weight = weights_of(groups, what)
    rows = [weight * (ours[c].right[arm] - other[c].right[arm]) for c in cells]
    return cells, np.array(rows), groups


def mean_of(cells: Sequence[Cell], rows: np.ndarray) -> float:
    """The mean difference, pools alike as in ``bootstrap``, however many seeds each has."""
    pools = np.array([pool for pool, _ in cells])
    of_cell = rows.sum(axis=1)
    return float(np.mean([of_cell[pools == p].mean() for p in np.unique(pools)]))


def bootstrap(
    cells: Sequence[Cell],
    rows: np.ndarray,
    groups: Mapping[str, slice],
    *,
    draws: int | None = None,
    seed: int = 0,
) -> np.ndarray:
    """float64 [draws]: the mean difference with pools, seeds and questions drawn again.
    ``draws`` None: `DRAWS`."""
    draws = DRAWS if draws is None else draws
    rng = np.random.default_rng(seed)
    pools = sorted({pool for pool, _ in cells})
    of_pool = [[i for i, c in enumerate(cells) if c[0] == p] for p in pools]
    found = np.empty(draws)
    for d in range(draws):
        weight = np.zeros(len(cells))
        for p in rng.integers(len(pools), size=len(pools)):
            own = of_pool[p]
            picked = rng.integers(len(own), size=len(own))
            weight += np.bincount(np.array(own)[picked], minlength=len(cells)) / (
                len(own) * len(pools)
            )
        times = np.zeros(rows.shape[1])
        for part in groups.values():
            n = part.stop - part.start
            times[part] = np.bincount(rng.integers(n, size=n), minlength=n)
        found[d] = weight @ rows @ times
    return found


def p_value(draws: np.ndarray, margin: float) -> float:
    """One-sided, of "not above -margin"."""
    return float((1 + np.count_nonzero(draws <= -margin)) / (1 + len(draws)))


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted p values, in the order given (Holm 1979)."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    found, most = [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        most = max(most, min(1.0, (len(p) - rank) * p[i]))
        found[i] = most
    return found


LEVEL = 0.025
"""One-sided, of a family."""


def judge(
    tests: Sequence[Test],
    table: Mapping[tuple[str, float | None], Mapping[Cell, Answers]],
    draws: int | None = None,
) -> list[dict[str, Any]]:
    """A row a test; those whose runs are missing have ``cells`` 0 and p 1."""
    rows = []
    for test in tests:
        ours, other = (
            table.get((arm, None if SECOND[arm].pick is None else test.budget), {})
            for arm in (test.ours, test.other)
        )
        cells, values, groups = differences(ours, other, test.what)
        row: dict[str, Any] = {"test": test, "cells": len(cells), "p": 1.0}
        if cells:
            drawn = test.sign * bootstrap(cells, values, groups, draws=draws)
            low, high = np.quantile(drawn, (0.025, 0.975))
            row |= {"mean": test.sign * mean_of(cells, values)}
            row |= {"low": float(low), "high": float(high)}
            row["p"] = p_value(drawn, test.margin)
        rows.append(row)
    for row, adjusted in zip(rows, holm([r["p"] for r in rows]), strict=True):
        row |= {"holm": adjusted, "holds": adjusted <= LEVEL}
    return rows


# ---------------------------------------------------------------- cost to an accuracy


Costs = Mapping[tuple[str, int], Any]
"""{(evidence, pool): ledger of the scoring}"""
Point = Mapping[str, float]


def billed(
    run: Mapping[str, Any], costs: Costs, arm: Arm | None = None
) -> tuple[float, int]:
    """(CPU seconds, completions) of the scoring that a run's arm needs. ``arm``: if it is
    none of the plan's."""
    arm = arm or SECOND[run["arm"]]
    if arm.billed == "nothing":
        return 0.0, 0
    cost = costs[arm.evidence, run["pool"]]
    part = cost["image_share"] if arm.billed == "image" else 1.0
    drawn = cost["samples"] if arm.evidence == "logits" else cost["rollouts"]
    return part * cost["seconds"], round(part * drawn)


OVER_RUNS = {"accuracy": np.mean, "seconds": np.median, "completions": np.mean}


def curve(found: Sequence[Mapping[str, Any]], costs: Costs) -> list[Point]:
    """Over runs, by step: mean validation accuracy (sighted), mean completions and median
    seconds, which a run slowed down by other work on the machine leaves as they are; the
    scoring billed."""
    points: dict[int, list[dict[str, float]]] = {}
    for run in found:
        seconds, completions = billed(run, costs)
        for point in run["points"]:
            groups = point["validation"]["sighted"]
            shares = [r / n for g, (r, n) in groups.items() if g.startswith("image/")]
            points.setdefault(point["step"], []).append(
                {
                    "accuracy": float(np.mean(shares)),
                    "seconds": point["seconds"] + seconds,
                    "completions": point["completions"] + completions,
                }
            )
    return [
        {"step": step}
        | {k: float(over([r[k] for r in rows])) for k, over in OVER_RUNS.items()}
        for step, rows in sorted(points.items())
        if len(rows) == len(found)
    ]


def reached(points: Sequence[Point], target: float) -> Point | None:
    """The first measured point after the start at ``target`` or above."""
    return next((p for p in points if p["step"] and p["accuracy"] >= target), None)
