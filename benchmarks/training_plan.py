"""What benchmarks/training.py runs: the plan, its training runs and scorings.

Also how both are read back from a work folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.training_arms import ARMS

PLAN, RUNS = "plan.json", "runs"
SCORINGS = {f"scores-{name}": name for name in ("rollouts", "logits", "part")}
"""Pieces that score the pool, each into a store of that name."""
RLOO_ARMS = ("full", "random", "rap")


@dataclass(frozen=True, slots=True)
class Plan:
    """What is run. Two plans never share a work folder."""

    model: str = ""
    """Folder of the weights that are trained; "": the demo's."""
    scorer: str = ""
    """Folder of the weights that score the pool; "": the trained model's own. Another one
    shows whether a selection transfers."""
    pool: int = 2000
    """Samples of the world that is selected from."""
    pool_seed: int = 0
    completions: int = 5
    """With the image and without it, for the selection."""
    part: int = 1200
    """Samples, the pool's first, that the arm scores which leaves the others unread."""
    part_completions: tuple[int, int] = (4, 1)
    """Its completions with the image and without it."""
    steps: int = 150
    prompts: int = 8
    """Different prompts an optimiser step."""
    generations: int = 8
    tokens: int = 48
    learning_rate: float = 1e-4
    every: int = 25
    """Steps between measurements on held-out questions."""
    reselect_every: int = 25
    questions: int = 100
    """Held-out questions of each family that needs its picture."""
    mixed: int = 200
    """Held-out samples of a whole world, causes in its shares."""
    budgets: tuple[float, ...] = (0.05, 0.093, 0.2)
    main_budget: float = 0.093
    main_seeds: int = 5
    other_seeds: int = 3
    main_arms: tuple[str, ...] = ("full", "random", "rap", "rap_logits")
    arms: tuple[str, ...] = tuple(ARMS)
    once: tuple[str, ...] = ("rap_learnable", "rap_readmit", "rap_part")
    """Further forms of RAP: at the main budget only."""
    rloo: bool = True


QUICK = Plan(
    pool=300,
    steps=40,
    every=20,
    reselect_every=10,
    questions=20,
    mixed=60,
    budgets=(0.093,),
    main_seeds=2,
    other_seeds=1,
    arms=("full", "random", "variance", "rap", "rap_logits", "rap_reselect", "dapo"),
    rloo=False,
)


TRANSFER = Plan(
    budgets=(0.093,), main_seeds=3, arms=("full", "random", "rap", "rap_logits"), rloo=False
)
"""With ``--scorer`` or ``--model``: does a selection serve a model that did not make it?"""


@dataclass(frozen=True, slots=True)
class Run:
    """One training run."""

    arm: str
    budget: float | None
    """None: all data."""
    seed: int
    algorithm: str = "GRPO"

    @property
    def key(self) -> str:
        share = "all" if self.budget is None else f"{self.budget:g}"
        return f"{self.algorithm}-{self.arm}-{share}-{self.seed}"


def runs(plan: Plan) -> list[Run]:
    """All of them, the most wanted first: main arms at the main budget, the others there,
    RLOO, other budgets; seed by seed."""
    found = []
    for seed in range(max(plan.main_seeds, plan.other_seeds)):
        for arm in plan.arms:
            main = arm in plan.main_arms
            if seed >= (plan.main_seeds if main else plan.other_seeds):
                continue
            selects = ARMS[arm].pick is not None
            budgets = (plan.main_budget,) if arm in plan.once else plan.budgets
            for budget in budgets if selects else (None,):
                found.append(Run(arm, budget, seed))
            if plan.rloo and arm in RLOO_ARMS:
                budget = plan.main_budget if selects else None
                found.append(Run(arm, budget, seed, "RLOO"))
    return sorted(found, key=lambda r: _rank(plan, r))


def _rank(plan: Plan, run: Run) -> tuple[bool, bool, bool, int]:
    elsewhere = run.budget not in (None, plan.main_budget)
    return elsewhere, run.algorithm != "GRPO", run.arm not in plan.main_arms, run.seed


def scorings(plan: Plan) -> list[str]:
    """Pieces of scoring that the plan's arms read."""
    read = {f"scores-{ARMS[arm].evidence}" for arm in plan.arms if ARMS[arm].pick}
    return [name for name in SCORINGS if name in read]


def read_costs(plan: Plan, work: Path) -> dict[str, Any]:
    """{evidence: ledger of the scoring}"""
    return {
        SCORINGS[name]: json.loads((work / f"{name}.json").read_text())
        for name in scorings(plan)
    }


def read_plan(work: Path) -> Plan:
    found: dict[str, Any] = json.loads((work / PLAN).read_text())
    found.pop("start")
    return Plan(**{k: tuple(v) if isinstance(v, list) else v for k, v in found.items()})


def finished(plan: Plan, work: Path) -> Iterator[dict[str, Any]]:
    """Results of the runs that are done, in the plan's order."""
    for run in runs(plan):
        path = work / RUNS / f"{run.key}.json"
        if path.exists():
            yield json.loads(path.read_text())
