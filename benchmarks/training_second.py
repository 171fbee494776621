"""The second edition of the training table: three pools, planned comparisons.

    python -m benchmarks.training_second --minutes 9    # nine minutes of it; call it again
    python -m benchmarks.training_second_page           # the report of what there is
    python -m benchmarks.training_second --list         # pieces that are left
    python -m benchmarks.training_second --published benchmarks/results/training_second.json
                                        # take up its runs first: they are not done again

The plan is benchmarks/training_plan.md, committed before the first run; the numbers of it
stand in `Plan` here. A piece is one scoring of a pool by one evidence, or one training run:
a process of its own with one thread. What is done lies in --work and is not done again.
Every measurement keeps one digit an answered question, so that intervals cover questions,
seeds and pools; comparisons: `benchmarks.training_compare`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run by its path, too

from benchmarks import training
from benchmarks.training_arms import SECOND, Arm
from benchmarks.training_plan import RUNS
from benchmarks.training_plan import Plan as FirstPlan
from benchmarks.training_plan import Run as FirstRun

MODULE = "benchmarks.training_second"
PLAN = "plan2.json"

COMPARED = ("learn_cascade", "random", "band", "variance", "public_script", "dapo", "full")
"""Arms of the planned comparisons."""
ALSO = ("learn_answer",)
"""Compared at ``wide``, with the others at that budget."""
UNTRAINED = "untrained"
"""The piece of work that examines the model that all runs start from."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is run; benchmarks/training_plan.md says why."""

    pools: tuple[int, ...] = (211, 212, 213)
    """Seeds of the worlds that are selected from; nothing was set on any of them."""
    pool: int = 2000
    narrow: float = 0.093
    wide: float = 0.2
    seeds: int = 5
    """Training seeds of the compared arms, each on every pool."""
    other_seeds: int = 3
    steps: int = 100
    """Optimiser steps of an arm that selects."""
    whole_steps: int = 150
    """Of all data, with and without refill."""
    every: int = 25
    validation_questions: int = 40
    validation_mixed: int = 100
    questions: int = 100
    mixed: int = 200

    @property
    def base(self) -> FirstPlan:
        """The settings that are those of the first edition."""
        return FirstPlan(
            pool=self.pool, every=self.every, questions=self.questions, mixed=self.mixed
        )


QUICK = Plan(
    pools=(901, 902),
    pool=200,
    seeds=1,
    other_seeds=1,
    steps=4,
    whole_steps=4,
    every=2,
    validation_questions=4,
    validation_mixed=10,
    questions=5,
    mixed=20,
)
"""For trying the machinery: says nothing."""

VALIDATION_SEED = 3_000_017


@dataclass(frozen=True, slots=True)
class Run:
    """One training run."""

    arm: str
    budget: float | None
    pool: int
    seed: int

    @property
    def key(self) -> str:
        share = "all" if self.budget is None else f"{self.budget:g}"
        return f"{self.arm}-{share}-pool{self.pool}-{self.seed}"


def runs(plan: Plan) -> list[Run]:
    """All of them, the most wanted first: the compared arms seed by seed over all pools,
    then the compared ones at the wide budget, then the others."""
    found: list[tuple[int, int, Run]] = []
    for arm, about in SECOND.items():
        budgets = (plan.narrow, plan.wide) if about.pick is not None else (None,)
        for budget in budgets:
            first = arm in COMPARED and budget in (None, plan.narrow)
            wide = budget == plan.wide and arm in (*COMPARED, *ALSO)
            rank = 0 if first else 1 if wide else 2
            for seed in range(plan.seeds if rank < 2 else plan.other_seeds):
                found += [(rank, seed, Run(arm, budget, p, seed)) for p in plan.pools]
    found.sort(key=lambda x: x[:2])  # stable
    return [run for _, _, run in found]


def scorings(plan: Plan) -> list[str]:
    """ "scores-<evidence>@<pool>" for all that the arms read."""
    evidence = dict.fromkeys(a.evidence for a in SECOND.values() if a.pick is not None)
    return [f"scores-{name}@{pool}" for pool in plan.pools for name in evidence]


def pending(plan: Plan, work: Path) -> list[str]:
    """Keys of what is not done; the scores come first, and the model as it is."""
    before = (*scorings(plan), UNTRAINED)
    lacking = [key for key in before if not (work / f"{key}.json").exists()]
    if lacking:
        return lacking
    return [r.key for r in runs(plan) if not (work / RUNS / f"{r.key}.json").exists()]


def finished(plan: Plan, work: Path) -> Iterator[dict[str, Any]]:
    """Results of the runs that are done, in the plan's order."""
    for run in runs(plan):
        path = work / RUNS / f"{run.key}.json"
        if path.exists():
            yield json.loads(path.read_text())


def read_costs(plan: Plan, work: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """{(evidence, pool): ledger of the scoring} of those that are done."""
    found = {}
    for key in scorings(plan):
        path = work / f"{key}.json"
        if path.exists():
            name, pool = key.removeprefix("scores-").split("@")
            found[name, int(pool)] = json.loads(path.read_text())
    return found


def pool_of(plan: Plan, seed: int) -> Any:
    from rap.demo import world
    from rap.samples.sampleset import open_samples

    return open_samples(world.to_dataset(world.draw(plan.pool, seed=seed)))


def score_pool(plan: Plan, key: str, work: Path) -> dict[str, Any]:
    """Score a pool by one evidence; returns the ledger. Goes on where it was."""
    from rap import score
    from rap.config import Sampling

    name, pool = key.removeprefix("scores-").split("@")
    base = plan.base
    settings: dict[str, Any] = {"evidence": name, "store": work / key}
    if name in ("rollouts", "cascade"):
        settings |= {"m1": base.completions, "m0": base.completions}
        settings["sampling"] = Sampling(max_new_tokens=base.tokens)
    model, processor = training.load("")
    begin = time.process_time()
    try:
        scores = score(
            *(model, processor, pool_of(plan, int(pool))),
            batch_size=16,
            shard_size=plan.pool,  # a cascade asks a shard at once, at most
            progress=False,
            **settings,
        )
    finally:
        training.spend(work / f"{key}.seconds", time.process_time() - begin)
    cost = training.cost_of(scores, work / key)
    return cost | {"seconds": float((work / f"{key}.seconds").read_text())}


class Exams:
    """Validation at every measurement, the test at the end of a run and at `steps`."""

    def __init__(self, plan: Plan, processor: Any, last: int) -> None:
        self.last = {plan.steps, last}
        self.test = training.Exam(plan.base, processor)
        self.validation = training.Exam(
            *(plan.base, processor),
            seed=VALIDATION_SEED,
            questions=plan.validation_questions,
            mixed=plan.validation_mixed,
            arms=("sighted",),
        )

    def __call__(self, model: Any, step: int) -> dict[str, Any]:
        found = {"validation": self.validation(model)}
        if step in self.last:
            found["test"] = self.test(model)
        return found


def train(plan: Plan, run: Run, work: Path, arm: Arm | None = None) -> dict[str, Any]:
    """One run; returns what the report reads. ``arm``: if it is none of the plan's."""
    import rap
    import rap.trl

    arm, samples = arm or SECOND[run.arm], pool_of(plan, run.pool)
    rows = None
    if arm.pick is not None:
        key = f"scores-{arm.evidence}@{run.pool}"
        if not (work / key).exists():  # its ledger was published, the scores were not
            score_pool(plan, key, work)
        stored = rap.Scores.load(work / key)
        scores = dataclasses.replace(stored, dataset=samples)
        rows = sorted(int(i) for i in arm.pick(scores, run.budget, run.seed))
    steps = plan.whole_steps if rows is None else plan.steps
    model, processor = training.load("")
    first = dataclasses.replace(plan.base, steps=steps)
    found = training.train_on(
        *(first, FirstRun(run.arm, run.budget, run.seed), samples, rows),
        *(model, processor, Exams(plan, processor, steps), work),
        reselect=rap.trl.Reselect(refill=arm.refill),
    )
    return found | dataclasses.asdict(run) | {"rows": rows}


def do(plan: Plan, key: str, work: Path) -> None:
    """One piece of work, in this process."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    if key.startswith("scores-"):
        training.write_json(work / f"{key}.json", score_pool(plan, key, work))
        return
    if key == UNTRAINED:
        model, processor = training.load("")
        exam = training.Exam(plan.base, processor)
        training.write_json(work / f"{key}.json", exam(model))
        return
    (run,) = [r for r in runs(plan) if r.key == key]
    wall, cpu = time.perf_counter(), time.process_time()
    found = train(plan, run, work)
    spent = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    training.write_json(work / RUNS / f"{key}.json", found | spent)


def open_work(plan: Plan, work: Path) -> None:
    """Make the folder, or see that it is this plan's, from the same start."""
    start = training.start_of(plan.base)
    wanted = json.loads(json.dumps(dataclasses.asdict(plan) | {"start": start}))
    if (work / PLAN).exists():
        there = json.loads((work / PLAN).read_text())
        changed = [k for k in wanted if there.get(k) != wanted[k]]
        if changed:
            raise SystemExit(
                f"{work} was made with another {', '.join(changed)}: name another --work"
            )
        return
    training.write_json(work / PLAN, wanted)


def take_up(published: Path, plan: Plan, work: Path) -> int:
    """Write what ``work`` lacks of a published table's runs and ledgers; how many runs.
    Of the same plan: a run that is none of it is left out."""
    there = json.loads(published.read_text())
    known = {run.key for run in runs(plan)}
    new = [run for run in there["runs"] if run_of(run).key in known]
    write_lacking(work, {f"{RUNS}/{run_of(run).key}": run for run in new})
    write_lacking(work, {f"scores-{k}": ledger for k, ledger in there["costs"].items()})
    write_lacking(work, {UNTRAINED: there[UNTRAINED]})
    return len(new)


def run_of(result: Mapping[str, Any]) -> Run:
    """Which run a result is of."""
    return Run(**{f.name: result[f.name] for f in dataclasses.fields(Run)})


def write_lacking(work: Path, values: Mapping[str, Any]) -> None:
    """Write {key: value} as key.json in ``work``, but for what is there."""
    for key, value in values.items():
        if not (work / f"{key}.json").exists():
            training.write_json(work / f"{key}.json", value)


def read_plan(work: Path) -> Plan:
    found: dict[str, Any] = json.loads((work / PLAN).read_text())
    found.pop("start")
    return Plan(**{k: tuple(v) if isinstance(v, list) else v for k, v in found.items()})


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--work", type=Path, help="[out/training2(-quick)]")
    parser.add_argument("--quick", action="store_true", help="tries the machinery")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--list", action="store_true", help="print what is left")
    parser.add_argument("--published", type=Path, help="a table whose runs are taken up")
    parser.add_argument("--do", metavar="KEY", help="one piece of work, in this process")
    args = parser.parse_args(argv)
    work = args.work or Path("out") / ("training2-quick" if args.quick else "training2")
    if args.do:
        do(read_plan(work), args.do, work)
        return 0
    plan = QUICK if args.quick else Plan()
    open_work(plan, work)
    if args.published:
        print(f"{take_up(args.published, plan, work)} runs were there")
    if args.list:
        print("\n".join(pending(plan, work)))
        return 0

    def begin(key: str) -> subprocess.Popen[bytes]:
        return training.start(key, work, MODULE)

    longest = max((done["wall"] for done in finished(plan, work)), default=0.0)
    done = training.drive_pieces(
        *(lambda: pending(plan, work), begin),
        longest=longest,
        jobs=args.jobs,
        minutes=args.minutes,
    )
    print("done" if done else f"{len(pending(plan, work))} left, call it again")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
