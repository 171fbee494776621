"""Exploratory, in no plan: two arms more, on the pools of the second training table.

    python -m benchmarks.training_explored --work out/training2 [--pool 211 --seed 0]
    python -m benchmarks.training_explored --what paper ...

``refill``: DAPO refill on what rule learn selects. ``paper``: all that rule paper keeps.
With a pool it does that run, else it writes training_refill.md (training_paper.md) and
.json into benchmarks/results. All arms are compared after as many steps. Runs of a
published .json that --work lacks are taken up, not done again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run by its path, too

from benchmarks import training
from benchmarks.training_arms import SECOND, Arm, paper
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
    run_of,
    train,
    write_lacking,
)

RESULTS = Path(__file__).parent / "results"
BASE = SECOND["learn_cascade"]
MEASURES = ("sighted", "mixed")


@dataclass(frozen=True, slots=True)
class Explored:
    """An arm of no plan. ``key``: of its runs; ``narrow``: it has the plan's narrow budget,
    else a size of its own; ``others``: arms that it is compared with."""

    key: str
    arm: Arm
    narrow: bool
    others: tuple[str, ...]
    short: str
    title: str
    about: str

    def run(self, plan: Plan, pool: int, seed: int) -> Run:
        return Run(self.key, plan.narrow if self.narrow else None, pool, seed)


REFILL = Explored(
    "learn_refill",
    dataclasses.replace(BASE, title="learn, cascade, DAPO refill", refill=3),
    True,
    ("learn_cascade", "dapo", "full", "random"),
    "learn with refill",
    "DAPO refill on a selection",
    "prompts whose completions are all right or all wrong\nare replaced up to three times "
    "a step by others of the same selection",
)
PAPER = Explored(
    "paper",
    Arm("rule paper, all it keeps", paper, "all"),
    False,
    ("rap", "learn_cascade", "public_script", "random", "full"),
    "rule paper",
    "What the paper's rule keeps",
    '`rule="paper"` has no budget:\nit keeps {prompts} of 2,000 samples, of which 100 '
    "steps deal 800 prompts. Published limits (D > 0.5,\npsi <= 0.1) on these scores' "
    "normalised psi; trivial samples are replaced by the hardest solved",
)
EXPLORED = {"refill": REFILL, "paper": PAPER}


def do(what: Explored, plan: Plan, pool: int, seed: int, work: Path) -> None:
    """One run, in this process."""
    run = what.run(plan, pool, seed)
    training.write_json(work / RUNS / f"{run.key}.json", train(plan, run, work, what.arm))


def take_up(published: Path, work: Path) -> None:
    """Write the runs of a published table that ``work`` lacks."""
    found = json.loads(published.read_text()) if published.exists() else []
    write_lacking(work, {f"{RUNS}/{run_of(run).key}": run for run in found})


def read(what: Explored, plan: Plan, work: Path) -> dict[str, list[Mapping[str, Any]]]:
    """{arm: its runs}, at the narrow budget or on all data."""
    of_arm: dict[str, list[Mapping[str, Any]]] = {what.key: []}
    for path in sorted((work / RUNS).glob(f"{what.key}-*.json")):
        of_arm[what.key].append(json.loads(path.read_text()))
    for run in finished(plan, work):
        if run["arm"] in what.others and run["budget"] in (None, plan.narrow):
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
    "arm | step | runs | sighted | mixed | {short} less this: sighted | mixed | "
    "completions in training | for the scores"
)


def _lines(
    what: Explored, plan: Plan, of_arm: Mapping[str, list[Mapping[str, Any]]], costs: Costs
) -> list[str]:
    ours = answers_at(of_arm[what.key], plan.steps)
    lines = [f"| {HEAD.format(short=what.short)} |"]
    lines += ["|---|---:|---:|---:|---:|---:|---:|---:|---:|"]
    for arm in (what.key, *what.others):
        mine, about = of_arm[arm], what.arm if arm == what.key else SECOND[arm]
        steps = [plan.steps] + [plan.whole_steps] * (about.pick is None)
        for step in steps:
            answers = answers_at(mine, step)
            cells = [about.title, str(step), str(len(mine))]
            for measure in MEASURES:
                weight = weights_of(next(iter(answers.values())).groups, measure)
                shares = [weight @ a.right["sighted"] for a in answers.values()]
                cells.append(f"{100 * np.mean(shares):.1f}")
            for measure in MEASURES:
                same = arm == what.key
                cells.append("" if same else difference(ours, answers, measure))
            cells.append(f"{_completions(mine, step):,.0f}")
            scored = [billed(run, costs, about)[1] for run in mine]
            cells.append(f"{np.mean(scored):,.0f}")
            lines.append("| " + " | ".join(cells) + " |")
    return lines


ABOUT = """# {title}

`python -m benchmarks.training_explored{option}`. **Exploratory**: in no plan, {runs} runs,
no correction for looking at several differences. The pools, runs and questions of the
second training table (training_second.md); {about}. Differences are
paired by pool and seed, intervals by pools, seeds and questions drawn again.

"""


def write_report(what: Explored, plan: Plan, work: Path, results: Path) -> Path:
    """``training_refill.md`` (``_paper``) and .json (its runs) in ``results``."""
    of_arm = read(what, plan, work)
    missing = [arm for arm, runs in of_arm.items() if not runs]
    if missing or len(of_arm) < 1 + len(what.others):
        raise SystemExit(f"{work}: runs are missing, there are {sorted(of_arm)}")
    ours = of_arm[what.key]
    lines = _lines(what, plan, of_arm, read_costs(plan, work))
    (name,) = [name for name, x in EXPLORED.items() if x is what]
    kept = sorted({run["prompts"] for run in ours})
    text = ABOUT.format(
        title=what.title,
        option="" if what is REFILL else f" --what {name}",
        runs=len(ours),
        about=what.about.format(prompts=f"{kept[0]} to {kept[-1]}"),
    )
    path = results / f"training_{name}.md"
    path.write_text(text + "\n".join(lines) + "\n", encoding="utf-8")
    training.write_json(path.with_suffix(".json"), ours)
    return path


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training_explored")
    parser.add_argument("--work", type=Path, default=Path("out/training2"))
    parser.add_argument("--what", choices=EXPLORED, default="refill")
    parser.add_argument("--pool", type=int)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    plan, what = read_plan(args.work), EXPLORED[args.what]
    take_up(RESULTS / f"training_{args.what}.json", args.work)
    if args.pool is not None:
        do(what, plan, args.pool, args.seed, args.work)
    else:
        print(write_report(what, plan, args.work, RESULTS))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
