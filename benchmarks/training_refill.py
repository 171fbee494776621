"""Exploratory, in no plan: DAPO refill on what rule learn selects, on the pools of the
second training table.

    python -m benchmarks.training_refill --work out/training2 [--pool 211 --seed 0]

With a pool it does that run, else it writes training_refill.md and .json into
benchmarks/results. All arms are compared after as many steps.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run by its path, too

from benchmarks import training
from benchmarks.training_arms import SECOND
from benchmarks.training_compare import (
    Answers,
    Cell,
    Costs,
    answers_of,
    billed,
    bootstrap,
    differences,
    mean_of,
    weights_of,
)
from benchmarks.training_second import (
    RUNS,
    Plan,
    Run,
    finished,
    read_costs,
    read_plan,
    train,
)

RESULTS = Path(__file__).parent / "results"
OURS = "learn_refill"
BASE = "learn_cascade"
ARM = dataclasses.replace(SECOND[BASE], title="learn, cascade, DAPO refill", refill=3)
OTHERS = ("learn_cascade", "dapo", "full", "random")
MEASURES = ("sighted", "mixed")


def do(plan: Plan, pool: int, seed: int, work: Path) -> None:
    """One run, in this process."""
    run = Run(OURS, plan.narrow, pool, seed)
    training.write_json(work / RUNS / f"{run.key}.json", train(plan, run, work, ARM))


def read(plan: Plan, work: Path) -> dict[str, list[Mapping[str, Any]]]:
    """{arm: its runs}, at the narrow budget or on all data."""
    of_arm: dict[str, list[Mapping[str, Any]]] = {OURS: []}
    for path in sorted((work / RUNS).glob(f"{OURS}-*.json")):
        of_arm[OURS].append(json.loads(path.read_text()))
    for run in finished(plan, work):
        if run["arm"] in OTHERS and run["budget"] in (None, plan.narrow):
            of_arm.setdefault(run["arm"], []).append(run)
    return of_arm


def answers_at(runs: Sequence[Mapping[str, Any]], step: int) -> dict[Cell, Answers]:
    """{(pool, seed): answers to the test at a step}"""
    return {(r["pool"], r["seed"]): answers_of(r, step) for r in runs}


def difference(
    ours: Mapping[Cell, Answers], other: Mapping[Cell, Answers], what: str
) -> str:
    """Ours less the other's, points, with the interval of 95 %."""
    cells, rows, groups = differences(ours, other, what)
    low, high = 100 * np.quantile(bootstrap(cells, rows, groups), (0.025, 0.975))
    return f"{100 * mean_of(cells, rows):+.1f} [{low:+.1f}, {high:+.1f}]"


def _completions(runs: Sequence[Mapping[str, Any]], step: int) -> float:
    """Sampled in training up to a step: mean over runs."""
    points = [p for run in runs for p in run["points"] if p["step"] == step]
    return float(np.mean([p["completions"] for p in points]))


HEAD = (
    "arm | step | runs | sighted | mixed | learn with refill less this: sighted | mixed | "
    "completions in training | for the scores"
)


def _lines(
    plan: Plan, of_arm: Mapping[str, list[Mapping[str, Any]]], costs: Costs
) -> list[str]:
    ours = answers_at(of_arm[OURS], plan.steps)
    lines = [f"| {HEAD} |", "|---|---:|---:|---:|---:|---:|---:|---:|---:|"]
    for arm in (OURS, *OTHERS):
        mine, about = of_arm[arm], ARM if arm == OURS else SECOND[arm]
        steps = [plan.steps] + [plan.whole_steps] * (about.pick is None)
        for step in steps:
            answers = answers_at(mine, step)
            cells = [about.title, str(step), str(len(mine))]
            for what in MEASURES:
                weight = weights_of(next(iter(answers.values())).groups, what)
                shares = [weight @ a.right["sighted"] for a in answers.values()]
                cells.append(f"{100 * np.mean(shares):.1f}")
            for what in MEASURES:
                same = arm == OURS
                cells.append("" if same else difference(ours, answers, what))
            cells.append(f"{_completions(mine, step):,.0f}")
            asked = [{**run, "arm": BASE} if arm == OURS else run for run in mine]
            cells.append(f"{np.mean([billed(run, costs)[1] for run in asked]):,.0f}")
            lines.append("| " + " | ".join(cells) + " |")
    return lines


ABOUT = """# DAPO refill on a selection

`python -m benchmarks.training_refill`. **Exploratory**: in no plan, {runs} runs, no
correction for looking at several differences. The pools, runs and questions of the second
training table (training_second.md); prompts whose completions are all right or all wrong
are replaced up to three times a step by others of the same selection. Differences are
paired by pool and seed, intervals by pools, seeds and questions drawn again.

"""


def write_report(plan: Plan, work: Path, results: Path) -> Path:
    """``training_refill.md`` and .json (the runs with refill) in ``results``."""
    of_arm = read(plan, work)
    missing = [arm for arm, runs in of_arm.items() if not runs]
    if missing or len(of_arm) < 1 + len(OTHERS):
        raise SystemExit(f"{work}: runs are missing, there are {sorted(of_arm)}")
    lines = _lines(plan, of_arm, read_costs(plan, work))
    path = results / "training_refill.md"
    text = ABOUT.format(runs=len(of_arm[OURS])) + "\n".join(lines) + "\n"
    path.write_text(text, encoding="utf-8")
    training.write_json(path.with_suffix(".json"), of_arm[OURS])
    return path


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training_refill")
    parser.add_argument("--work", type=Path, default=Path("out/training2"))
    parser.add_argument("--pool", type=int)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    plan = read_plan(args.work)
    if args.pool is not None:
        do(plan, args.pool, args.seed, args.work)
    else:
        print(write_report(plan, args.work, RESULTS))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
