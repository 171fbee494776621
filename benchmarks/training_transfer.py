"""Exploratory, in no plan: what another model selects, for the model that is trained.

    python -m benchmarks.training_transfer --work out/training2 [--pool 211 --seed 0]

``benchmarks/second_model`` (the same architecture with another width and seed, trained
apart) scores the pools of the second training table by the cascade; rule learn selects
9.3 % by its scores, on which the demo's model is trained. With a pool it does that run,
scoring the pool first if that is not done; else it writes training_second_transfer.md and
.json into benchmarks/results.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run by its path, too

from benchmarks import training
from benchmarks.training_arms import SECOND
from benchmarks.training_compare import weights_of
from benchmarks.training_explored import answers_at, difference, take_up
from benchmarks.training_second import (
    RUNS,
    Plan,
    Run,
    finished,
    pool_of,
    read_plan,
    train,
)

RESULTS = Path(__file__).parent / "results"
SCORER = Path(__file__).parent / "second_model"
OURS = "learn_transfer"
OWN = "learn_cascade"
ARM = dataclasses.replace(
    SECOND[OWN], title="learn, cascade, scored by another model", evidence="transfer"
)
OTHERS = ("learn_cascade", "random", "full")
MEASURES = ("sighted", "mixed")


def score_pool(plan: Plan, pool: int, work: Path) -> None:
    """The cascade's scores of a pool by the other model; goes on where it was."""
    from rap import score
    from rap.config import Sampling

    store = work / f"scores-{ARM.evidence}@{pool}"
    if store.with_name(store.name + ".json").exists():
        return
    model, processor = training.load(str(SCORER))
    base, begin = plan.base, time.process_time()
    scores = score(
        *(model, processor, pool_of(plan, pool)),
        evidence="cascade",
        m1=base.completions,
        m0=base.completions,
        sampling=Sampling(max_new_tokens=base.tokens),
        store=store,
        batch_size=16,
        shard_size=64,
        progress=False,
    )
    cost = training.cost_of(scores, store) | {"seconds": time.process_time() - begin}
    training.write_json(store.with_name(store.name + ".json"), cost)


def do(plan: Plan, pool: int, seed: int, work: Path) -> None:
    """One run, in this process."""
    score_pool(plan, pool, work)
    run = Run(OURS, plan.narrow, pool, seed)
    training.write_json(work / RUNS / f"{run.key}.json", train(plan, run, work, ARM))


def read(plan: Plan, work: Path) -> dict[str, list[Mapping[str, Any]]]:
    """{arm: its runs}, of the pools and seeds that ours has."""
    ours: list[Mapping[str, Any]] = [
        json.loads(path.read_text())
        for path in sorted((work / RUNS).glob(f"{OURS}-*.json"))
    ]
    done = {(run["pool"], run["seed"]) for run in ours}
    of_arm = {OURS: ours}
    for run in finished(plan, work):
        wanted = run["arm"] in OTHERS and run["budget"] in (None, plan.narrow)
        if wanted and (run["pool"], run["seed"]) in done:
            of_arm.setdefault(run["arm"], []).append(run)
    return of_arm


def shared_rows(
    ours: Sequence[Mapping[str, Any]], own: Sequence[Mapping[str, Any]]
) -> float:
    """Share of the selected samples that both selected: mean over the runs."""
    by_cell = {(r["pool"], r["seed"]): set(r["rows"]) for r in own}
    shares = [
        len(by_cell[r["pool"], r["seed"]] & set(r["rows"])) / len(r["rows"]) for r in ours
    ]
    return float(np.mean(shares))


HEAD = "arm | step | runs | sighted | mixed | transfer less this: sighted | mixed"


def _lines(plan: Plan, of_arm: Mapping[str, list[Mapping[str, Any]]]) -> list[str]:
    ours = answers_at(of_arm[OURS], plan.steps)
    lines = [f"| {HEAD} |", "|---|---:|---:|---:|---:|---:|---:|"]
    for arm in (OURS, *OTHERS):
        about = ARM if arm == OURS else SECOND[arm]
        step = plan.whole_steps if about.pick is None else plan.steps
        answers = answers_at(of_arm[arm], step)
        cells = [about.title, str(step), str(len(of_arm[arm]))]
        for what in MEASURES:
            weight = weights_of(next(iter(answers.values())).groups, what)
            shares = [weight @ a.right["sighted"] for a in answers.values()]
            cells.append(f"{100 * np.mean(shares):.1f}")
        for what in MEASURES:
            cells.append("" if arm == OURS else difference(ours, answers, what))
        lines.append("| " + " | ".join(cells) + " |")
    return lines


ABOUT = """# A selection by another model

`python -m benchmarks.training_transfer`. **Exploratory**: in no plan, {runs} runs, no
correction for looking at several differences. `benchmarks/second_model` (the same
architecture with another width and seed, trained apart) scored the pools of the second
training table (training_second.md) by the cascade; the demo's model was trained on what
rule learn selects by these scores. {shared:.0f} % of the samples are those that it selects
by its own scores. Differences are paired by pool and seed, intervals by pools, seeds and
questions drawn again.

"""


def write_report(plan: Plan, work: Path, results: Path) -> Path:
    """``training_second_transfer.md`` and .json (our runs) in ``results``."""
    of_arm = read(plan, work)
    if not of_arm[OURS] or len(of_arm) < 1 + len(OTHERS):
        raise SystemExit(f"{work}: runs are missing, there are {sorted(of_arm)}")
    shared = 100 * shared_rows(of_arm[OURS], of_arm[OWN])
    path = results / "training_second_transfer.md"
    text = ABOUT.format(runs=len(of_arm[OURS]), shared=shared)
    path.write_text(text + "\n".join(_lines(plan, of_arm)) + "\n", encoding="utf-8")
    training.write_json(path.with_suffix(".json"), of_arm[OURS])
    return path


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training_transfer")
    parser.add_argument("--work", type=Path, default=Path("out/training2"))
    parser.add_argument("--pool", type=int)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    plan = read_plan(args.work)
    take_up(RESULTS / "training_second_transfer.json", args.work)
    if args.pool is not None:
        do(plan, args.pool, args.seed, args.work)
    else:
        print(write_report(plan, args.work, RESULTS))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
