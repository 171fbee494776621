"""The report of the second training table: planned comparisons, arms, families, curves.

    python -m benchmarks.training_second_page --work out/training2

Writes training_second.md, .png and .json (every run: its answers, costs and what it was
trained on) into benchmarks/results.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run by its path, too

from benchmarks.training_arms import SECOND
from benchmarks.training_compare import (
    Costs,
    billed,
    curve,
    judge,
    planned,
    reached,
    table_of,
    test_point,
    weights_of,
)
from benchmarks.training_report import share
from benchmarks.training_second import (
    COMPARED,
    UNTRAINED,
    Plan,
    finished,
    read_costs,
    read_plan,
    runs,
)

RESULTS = Path(__file__).parent / "results"
VERDICT = Path(__file__).with_name("training_verdict.md")
"""What the table says, in words; goes into the report of the whole plan's size."""


def _percent(row: Mapping[str, Any]) -> str:
    if "mean" not in row:
        return "no runs"
    return f"{100 * row['mean']:+.1f} [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"


HEAD = "comparison | budget | accuracy | margin | runs | points [95 %] | p | Holm | "
ARMS_HEAD = (
    "arm | budget | prompts | runs | sighted | mixed | blind | scoring s | training s | "
    "reached: step | total s | completions"
)


def _families(plan: Plan, table: Any) -> list[str]:
    lines = []
    for name, tests in planned(plan).items():
        lines += ["", f"## Planned: {name}", ""]
        lines += [f"| {HEAD} |"]
        lines += ["|---|---:|---|---:|---:|---:|---:|---:|---|"]
        for row in judge(tests, table):
            t = row["test"]
            a, b = (SECOND[x].title for x in (t.ours, t.other))
            a, b = (a, b) if t.sign > 0 else (b, a)
            verdict = "holds" if row["holds"] else "not shown"
            lines.append(
                f"| {a} - {b} | {100 * t.budget:g} % | {t.what} | {100 * t.margin:g} | "
                f"{row['cells']} | {_percent(row)} | {row['p']:.4f} | {row['holm']:.4f} | "
                f"{verdict} |"
            )
    return lines


Runs = dict[tuple[str, float | None], list[Mapping[str, Any]]]
"""{(arm, budget): its runs}"""


def _runs_of(found: Sequence[Mapping[str, Any]]) -> Runs:
    of_arm: Runs = {}
    for run in found:
        of_arm.setdefault((run["arm"], run["budget"]), []).append(run)
    return of_arm


def _untrained(exam: Mapping[str, Any]) -> str:
    """The row of the model before training."""
    asked = (("sighted", "image"), ("sighted", "mixed"), ("blind", "image"))
    shares = (f"{100 * share(exam[arm], kind):.1f}" for arm, kind in asked)
    return f"| before training |  |  |  | {' | '.join(shares)} |" + "  |" * 5


def _arms(
    found: Sequence[Mapping[str, Any]], costs: Costs, table: Any, untrained: Any
) -> list[str]:
    lines = ["", "## Arms", ""]
    lines += [f"| {ARMS_HEAD} |", "|---|---:|" + "---:|" * 10, _untrained(untrained)]
    of_arm = _runs_of(found)
    whole = curve(of_arm.get(("full", None), []), costs)
    target = whole[-1]["accuracy"] if whole else float("inf")
    for key, mine in of_arm.items():
        cells = [SECOND[key[0]].title, "all" if key[1] is None else f"{100 * key[1]:g} %"]
        cells += [f"{np.mean([r['prompts'] for r in mine]):.0f}", str(len(mine))]
        for what in ("sighted", "mixed", "blind"):
            arm = "blind" if what == "blind" else "sighted"
            values = [
                weights_of(a.groups, what) @ a.right[arm] for a in table[key].values()
            ]
            cells.append(f"{100 * np.mean(values):.1f}")
        cells.append(f"{np.mean([billed(r, costs)[0] for r in mine]):.0f}")
        cells.append(f"{np.median([r['points'][-1]['seconds'] for r in mine]):.0f}")
        point = reached(curve(mine, costs), target)
        names = ("step", "seconds", "completions")
        cells += ["never", "", ""] if point is None else [f"{point[n]:.0f}" for n in names]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _saved(found: Sequence[Mapping[str, Any]], costs: Costs, plan: Plan) -> list[str]:
    """What each arm saves until all data's last value, pool by pool and over all."""
    of_arm = _runs_of(found)
    whole = of_arm.pop(("full", None), [])
    lines = ["", "## Saved until all data's last value", ""]
    lines += ["Step, then the share of the seconds and of the completions that is saved,"]
    lines += ["scoring billed; of the runs on each pool and of all.", ""]
    titles = [f"pool {pool}" for pool in plan.pools] + ["all"]
    lines += [f"| arm | budget | {' | '.join(titles)} |"]
    lines += ["|---|---:|" + "---:|" * len(titles)]
    for (arm, budget), mine in of_arm.items():
        cells = [SECOND[arm].title, "all" if budget is None else f"{100 * budget:g} %"]
        for pools in (*((pool,) for pool in plan.pools), plan.pools):
            theirs, ours = (
                curve([r for r in runs if r["pool"] in pools], costs)
                for runs in (whole, mine)
            )
            point = reached(ours, theirs[-1]["accuracy"]) if theirs and ours else None
            if point is None:
                cells.append("never")
                continue
            saved = (1 - point[n] / theirs[-1][n] for n in ("seconds", "completions"))
            cells.append(f"{point['step']:.0f}, " + ", ".join(f"{x:.0%}" for x in saved))
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _by_family(table: Any) -> list[str]:
    """Test accuracy with the picture at each arm's last step, family by family."""
    images = sorted(
        {g for cells in table.values() for a in cells.values() for g in a.groups}
        - {"mixed"}
    )
    names = [g.removeprefix("image/") for g in images]
    lines = ["", "## By family", "", "| arm | budget | " + " | ".join(names) + " |"]
    lines.append("|---|---:|" + "---:|" * len(names))
    for (arm, budget), cells in table.items():
        shown = [SECOND[arm].title, "all" if budget is None else f"{100 * budget:g} %"]
        for group in images:
            values = [a.right["sighted"][a.groups[group]].mean() for a in cells.values()]
            shown.append(f"{100 * np.mean(values):.1f}")
        lines.append("| " + " | ".join(shown) + " |")
    return lines


def _title(run: Mapping[str, Any]) -> str:
    budget = "all" if run["budget"] is None else f"{100 * run['budget']:g} %"
    return f"| {SECOND[run['arm']].title} | {budget} | "


def _by_arm(found: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    of_arm: dict[str, list[Mapping[str, Any]]] = {}
    for run in found:
        of_arm.setdefault(_title(run), []).append(run)
    return of_arm


def _by_cause(
    found: Sequence[Mapping[str, Any]], plan: Plan, exam: str = "sighted"
) -> list[str]:
    """Accuracy on the mixed world at each arm's last step, by the cause of the sample.
    ``exam``: sighted or blind."""
    rows = {}
    for title, mine in _by_arm(found).items():
        right: dict[str, np.ndarray] = {}
        for run in mine:
            step = plan.whole_steps if run["budget"] is None else plan.steps
            for group, counts in test_point(run, step)[exam].items():
                if group.startswith("mixed/"):
                    name = group.removeprefix("mixed/")
                    right[name] = right.get(name, np.zeros(2)) + counts
        rows[title] = right
    causes = sorted({cause for right in rows.values() for cause in right})
    without = "" if exam == "sighted" else ", without the picture"
    lines = ["", f"## The mixed world by cause{without}", ""]
    lines += ["| arm | budget | " + " | ".join(causes) + " |"]
    lines += ["|---|---:|" + "---:|" * len(causes)]
    for title, right in rows.items():
        shown = (f"{100 * right[cause][0] / right[cause][1]:.0f}" for cause in causes)
        lines.append(title + " | ".join(shown) + " |")
    return lines


def _kept(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the arms were trained on, by planted cause: means over runs."""
    causes = sorted({cause for run in found for cause in run.get("causes", {})})
    lines = ["", "## What was selected, by planted cause", ""]
    lines += ["| arm | budget | " + " | ".join(causes) + " |"]
    lines += ["|---|---:|" + "---:|" * len(causes)]
    for title, mine in _by_arm(found).items():
        means = (np.mean([r["causes"].get(c, 0) for r in mine]) for c in causes)
        lines.append(title + " | ".join(f"{x:.0f}" for x in means) + " |")
    return lines


ABOUT = """# Training on what each rule selects, second edition

`python -m benchmarks.training_second`: {done} of {total} runs of the plan
(benchmarks/training_plan.md), which was committed before the first. Pools: worlds {pools}
of {pool} samples; every compared arm has {seeds} of the {wanted} planned training seeds a
pool, or more (all arms: *runs* below). Test accuracy, per cent, at
step {steps} (all data: {whole}), paired by pool and seed; intervals: pools, seeds and
questions drawn again; p: one-sided, corrected by Holm within a family. *reached*: where the
mean validation curve is at all data's last value. Seconds are CPU time of one thread, the
scoring billed: medians over runs, since other work beside a run makes its seconds dearer.
"""


def whole_seeds(found: Sequence[Mapping[str, Any]], plan: Plan) -> int:
    """Training seeds of which every compared arm has a run on every pool."""
    done = {(r["arm"], r["pool"], r["seed"]) for r in found if r["budget"] != plan.wide}
    wanted = [(arm, pool) for arm in COMPARED for pool in plan.pools]
    seeds = range(plan.seeds)
    return sum(all((*cell, seed) in done for cell in wanted) for seed in seeds)


def write_report(plan: Plan, work: Path, results: Path) -> Path:
    """``training_second.md``, .png and .json in ``results``; returns the first."""
    found = list(finished(plan, work))
    if not found:
        raise SystemExit(f"{work}: no run is done")
    costs, table = read_costs(plan, work), table_of(found, plan)
    untrained = json.loads((work / f"{UNTRAINED}.json").read_text())
    about = {"pools": ", ".join(map(str, plan.pools)), "pool": plan.pool}
    about |= {"seeds": whole_seeds(found, plan), "wanted": plan.seeds}
    about |= {"steps": plan.steps, "whole": plan.whole_steps}
    text = ABOUT.format(done=len(found), total=len(runs(plan)), **about)
    parts: list[Callable[[], list[str]]] = [
        lambda: _families(plan, table),
        lambda: _arms(found, costs, table, untrained),
        lambda: _saved(found, costs, plan),
        lambda: _by_family(table),
        lambda: _by_cause(found, plan),
        lambda: _by_cause(found, plan, "blind"),
        lambda: _kept(found),
    ]
    if plan == Plan():
        text += "\n" + VERDICT.read_text()
    text += "\n".join(line for part in parts for line in part()) + "\n"
    results.mkdir(parents=True, exist_ok=True)
    path = results / "training_second.md"
    path.write_text(text)
    all_of_it = {"costs": _plain(costs), UNTRAINED: untrained, "runs": found}
    rows = json.dumps(all_of_it, separators=(",", ":"))
    path.with_suffix(".json").write_text(rows + "\n")
    draw(plan, found, costs, path.with_suffix(".png"))
    return path


def _plain(costs: Costs) -> dict[str, Any]:
    return {f"{name}@{pool}": cost for (name, pool), cost in costs.items()}


def draw(plan: Plan, found: Sequence[Mapping[str, Any]], costs: Costs, path: Path) -> None:
    """Validation accuracy by optimiser step, and by seconds with the scoring billed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(12, 5.2), layout="constrained")
    for number, arm in enumerate(COMPARED):
        mine = [r for r in found if r["arm"] == arm and r["budget"] != plan.wide]
        points = curve(mine, costs)
        y = [100 * p["accuracy"] for p in points]
        wide = 2.6 if arm == "learn_cascade" else 1.4
        for axes, name in zip(panels, ("step", "seconds"), strict=True):
            x = [p[name] for p in points]
            style = {"marker": ".", "lw": wide, "color": f"C{number}"}
            axes.plot(x, y, label=SECOND[arm].title, **style)
    panels[0].set(xlabel="optimiser steps", ylabel="sighted validation accuracy, %")
    panels[1].set(xlabel="CPU seconds, the scoring billed")
    for axes in panels:
        axes.grid(True, alpha=0.3)
    panels[0].legend(fontsize=9)
    figure.suptitle(f"GRPO on all data, and on {100 * plan.narrow:g} % of it")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training_second_page")
    parser.add_argument("--work", type=Path, default=Path("out/training2"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    print(write_report(read_plan(args.work), args.work, args.results))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
