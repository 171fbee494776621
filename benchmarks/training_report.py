"""Results of benchmarks/training.py: a row a measurement, a table, a picture.

Headline: share of right answers to held-out questions that need their picture, every family
alike, at the last step. Differences are paired by seed (same start, same questions);
intervals are Student's, 95 %.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.training_arms import ARMS
from benchmarks.training_plan import Plan, finished, read_costs, runs

T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Two-sided 95 % of Student's t for 1, 2, ... degrees of freedom."""
LOSS_ALLOWED = 0.01


def share(groups: Mapping[str, Sequence[int]], kind: str) -> float:
    """Mean over the groups of a kind (``image``, ``mixed``): ``image`` weighs every family
    alike, ``mixed`` every question."""
    found = [counts for name, counts in groups.items() if name.startswith(f"{kind}/")]
    if kind == "mixed":
        return sum(r for r, _ in found) / sum(n for _, n in found)
    return float(np.mean([r / n for r, n in found]))


def billed(run: Mapping[str, Any], costs: Mapping[str, Any]) -> tuple[float, int]:
    """(seconds, completions) of the scoring that an arm needs."""
    arm = ARMS[run["arm"]]
    if arm.billed == "nothing":
        return 0.0, 0
    cost = costs[arm.evidence]
    part = cost["image_share"] if arm.billed == "image" else 1.0
    # evidence logits draws one completion a sample; its ledger does not call it a rollout
    return part * cost["seconds"], round(part * (cost["rollouts"] or cost["samples"]))


def points_table(found: Iterable[Mapping[str, Any]], costs: Mapping[str, Any]) -> pa.Table:
    """One row a measurement: run, step, costs, accuracies, and the counts as JSON."""
    rows = []
    for run in found:
        seconds, completions = billed(run, costs)
        for point in run["points"]:
            row = {k: run[k] for k in ("algorithm", "arm", "budget", "seed", "prompts")}
            row |= {"step": point["step"], "train_seconds": point["seconds"]}
            row["total_seconds"] = point["seconds"] + seconds
            row["train_completions"] = point["completions"]
            row["total_completions"] = point["completions"] + completions
            for arm in ("sighted", "blind"):
                for kind in ("image", "mixed"):
                    row[f"{kind}_{arm}"] = share(point[arm], kind)
            row["groups"] = json.dumps({k: point[k] for k in ("sighted", "blind")})
            rows.append(row)
    return pa.Table.from_pylist(rows)


def interval(values: Sequence[float]) -> tuple[float, float | None]:
    """(mean, half of the 95 % interval; None for one value)."""
    n = len(values)
    if n < 2:
        return float(np.mean(values)), None
    t = T_QUANTILES[n - 2] if n - 2 < len(T_QUANTILES) else 1.96 + 2.7 / (n - 1)
    return float(np.mean(values)), float(t * np.std(values, ddof=1) / np.sqrt(n))


Key = tuple[str, str, float | None]
"""(algorithm, arm, budget)"""


def by_arm(table: pa.Table) -> dict[Key, dict[int, list[dict[str, Any]]]]:
    """{arm: {seed: its measurements by step}}."""
    found: dict[Key, dict[int, list[dict[str, Any]]]] = defaultdict(dict)
    for row in table.sort_by("step").to_pylist():
        key = (row["algorithm"], row["arm"], row["budget"])
        found[key].setdefault(row["seed"], []).append(row)
    return dict(found)


def paired(
    ours: Mapping[int, list[dict[str, Any]]],
    other: Mapping[int, list[dict[str, Any]]],
    name: str,
) -> list[float]:
    """Differences at the last step, seed by seed."""
    return [ours[s][-1][name] - other[s][-1][name] for s in sorted(set(ours) & set(other))]


def reached(
    runs: Mapping[int, list[dict[str, Any]]], target: float, cost: str
) -> tuple[float, float] | None:
    """(steps, cost) at which the mean curve over seeds first is at ``target``."""
    shared = zip(*runs.values(), strict=True)
    for rows in shared:
        if rows[0]["step"] and np.mean([r["image_sighted"] for r in rows]) >= target:
            return rows[0]["step"], float(np.mean([r[cost] for r in rows]))
    return None


def saving(
    ours: Mapping[int, list[dict[str, Any]]],
    full: Mapping[int, list[dict[str, Any]]],
    cost: str,
    draws: int = 2000,
) -> tuple[float, float]:
    """95 % of the share of ``full``'s cost that is saved until its last value: both curves
    from the same seeds drawn again, with replacement; -inf: never reached."""
    seeds = sorted(set(ours) & set(full))
    found = []
    for picked in np.random.default_rng(0).choice(seeds, (draws, len(seeds))):
        a, b = ({i: runs[s] for i, s in enumerate(picked)} for runs in (ours, full))
        target = float(np.mean([rows[-1]["image_sighted"] for rows in b.values()]))
        to, whole = (reached(runs, target, cost) for runs in (a, b))
        assert whole is not None  # it is its own last value
        found.append(-np.inf if to is None else 1 - to[1] / whole[1])
    low, high = np.quantile(found, (0.025, 0.975), method="nearest")
    return float(low), float(high)


def _percent(value: tuple[float, float | None], signed: bool = False) -> str:
    mean, half = value
    text = f"{100 * mean:+.1f}" if signed else f"{100 * mean:.1f}"
    return text if half is None else f"{text} ± {100 * half:.1f}"


ABOUT = """# Training on what each rule selects

`python -m benchmarks.training`: {runs} of {total} runs. A world of {plan.pool} samples,
{plan.steps} steps of {plan.prompts} prompts x {plan.generations} completions, learning rate
{plan.learning_rate:g}, every run from the same start: {trained}, on selections that
{scored} made. Scoring the pool took
{scoring}; an arm is billed what it needs of that. Seconds are CPU time of one thread.

Accuracy in per cent at the last step, mean over seeds ± half of the 95 % interval of the
mean; differences are paired by seed. *sighted*: held-out questions that need their picture,
families alike; *blind*: the same without it; *mixed*: a whole held-out world, by the true
answers. *reached*: when the mean curve is at the last value of training on all data, on
the grid of measurements: a point estimate.

Intervals cover the training seeds only: the world, its scores and the held-out questions
are the same in every run, and so is what RAP selects. All data is dealt {passes:.1f} passes
in these steps, 9.3 % of it {often:.1f}. Arms that read no attention are billed it too."""


def markdown(plan: Plan, table: pa.Table, costs: Mapping[str, Any], total: int) -> str:
    """The tables of the report."""
    arms = by_arm(table)
    runs = sum(len(seeds) for seeds in arms.values())
    scoring = " and ".join(
        f"{cost['seconds']:.0f} s and {cost['rollouts'] or cost['samples']} completions "
        f"(evidence {name})"
        for name, cost in costs.items()
    )
    trained, scored = (
        f"`{name}`" if name else "the demo's model"
        for name in (plan.model, plan.scorer or plan.model)
    )
    about: dict[str, Any] = {"trained": trained, "scored": scored, "scoring": scoring}
    about["passes"] = plan.steps * plan.prompts / plan.pool
    about["often"] = about["passes"] / 0.093
    lines = [ABOUT.format(runs=runs, total=total, plan=plan, **about)]
    for algorithm in dict.fromkeys(key[0] for key in arms):
        lines += ["", f"## {algorithm}", "", *_table(arms, algorithm)]
    return "\n".join(lines) + "\n"


HEAD = (
    "arm | budget | prompts | seeds | sighted | spread | blind | mixed | - all data | "
    "- random | blind - random | train s | total s | reached: steps | total s | "
    "total completions"
)


def _table(arms: Mapping[Key, Any], algorithm: str) -> list[str]:
    full = arms.get((algorithm, "full", None))
    lines = [f"| {HEAD} |", "|---|" + "---:|" * HEAD.count("|")]
    order = list(ARMS)
    keys = [key for key in arms if key[0] == algorithm]
    keys.sort(key=lambda key: (key[2] or 0.0, order.index(key[1])))
    for key in keys:
        _, arm, budget = key
        runs = arms[key]
        last = [rows[-1] for rows in runs.values()]
        other = arms.get((algorithm, "random", budget)) if budget is not None else None
        cells = [ARMS[arm].title, "all" if budget is None else f"{100 * budget:g} %"]
        cells += [str(last[0]["prompts"]), str(len(last))]
        sighted = [r["image_sighted"] for r in last]
        cells.append(_percent(interval(sighted)))
        cells.append(f"{100 * min(sighted):.1f} to {100 * max(sighted):.1f}")
        cells += [_percent(interval([r[n] for r in last])) for n in OTHERS]
        cells += [
            _difference(runs, full if arm != "full" else None, "image_sighted"),
            _difference(runs, other if arm != "random" else None, "image_sighted"),
            _difference(runs, other if arm != "random" else None, "image_blind"),
        ]
        cells += [f"{np.mean([r[n] for r in last]):.0f}" for n in SECONDS]
        cells += _reached(runs, full)
        lines.append("| " + " | ".join(cells) + " |")
    return lines


OTHERS = ("image_blind", "mixed_sighted")
SECONDS = ("train_seconds", "total_seconds")


def _difference(runs: Any, other: Any, name: str) -> str:
    values = [] if other is None else paired(runs, other, name)
    return _percent(interval(values), signed=True) if values else ""


def _reached(runs: Any, full: Any) -> list[str]:
    if full is None:
        return ["", "", ""]
    target = float(np.mean([rows[-1]["image_sighted"] for rows in full.values()]))
    found = [reached(runs, target, c) for c in ("total_seconds", "total_completions")]
    if found[0] is None or found[1] is None:
        return ["never", "", ""]
    return [f"{found[0][0]:.0f}", f"{found[0][1]:.0f}", f"{found[1][1]:.0f}"]


def goals(table: pa.Table, budget: float) -> list[str]:
    """The issue's goals against what was measured; a line each."""
    arms = by_arm(table)
    need = [("GRPO", "rap", budget), ("GRPO", "full", None), ("GRPO", "random", budget)]
    if any(key not in arms for key in need):
        return ["Goals: not all arms are there."]
    ours, full, random = (arms[key] for key in need)
    lines = []

    def judge(
        text: str, values: list[float], passes: Callable[[float, float], bool]
    ) -> None:
        mean, half = interval(values)
        if half is None:
            verdict = "one seed: no interval"
        else:
            verdict = "reached" if passes(mean, half) else "missed"
        lines.append(f"- {text}: {_percent((mean, half), signed=True)} points: {verdict}")

    judge(
        "RAP - all data, sighted; no loss of more than 1 point",
        paired(ours, full, "image_sighted"),
        lambda mean, half: mean >= 0 and mean - half > -LOSS_ALLOWED,
    )
    judge(
        "RAP - random of equal size, sighted; the interval excludes 0",
        paired(ours, random, "image_sighted"),
        lambda mean, half: mean - half > 0,
    )
    judge(
        "RAP - random, blind; lower, the interval excludes 0",
        paired(ours, random, "image_blind"),
        lambda mean, half: mean + half < 0,
    )
    lines += _costs("RAP", ours, full)
    other = ("GRPO", "rap_logits", max(share or 0.0 for _, _, share in arms))
    if other in arms:  # the default evidence, where it has room
        lines += _costs(f"RAP on logits, {100 * other[2]:g} %", arms[other], full)
    return ["## Goals", "", *lines]


def _costs(title: str, ours: Any, full: Any) -> list[str]:
    """The goal on costs, in seconds and in completions."""
    target = float(np.mean([rows[-1]["image_sighted"] for rows in full.values()]))
    lines = []
    for name, unit in (("total_seconds", "s"), ("total_completions", "completions")):
        to, whole = (reached(runs, target, name) for runs in (ours, full))
        text = f"- {title}: total {unit} to all data's accuracy, 43 % less"
        if to is None or whole is None:
            lines.append(f"{text}: missed, not reached in these steps")
            continue
        less = 1 - to[1] / whole[1]
        verdict = "reached" if less >= 0.43 else "missed"
        low, high = (
            "never there" if np.isinf(x) else f"{x:.0%}" for x in saving(ours, full, name)
        )
        lines.append(
            f"{text}: {to[1]:.0f} against {whole[1]:.0f}, {less:.0%} less "
            f"(seeds drawn again: {low} to {high}): {verdict}"
        )
    return lines


def draw(table: pa.Table, budget: float, path: Path) -> None:
    """Accuracy against steps, training seconds and total seconds, one line an arm."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    axes_of = {
        "step": "optimiser steps",
        "train_seconds": "training seconds",
        "total_seconds": "seconds with the selection's cost",
    }
    figure, panels = plt.subplots(2, 3, figsize=(14, 9), layout="constrained")
    arms = by_arm(table)
    for row, name in zip(panels, ("image_sighted", "image_blind"), strict=True):
        for axes, (cost, title) in zip(row, axes_of.items(), strict=True):
            for (algorithm, arm, share_), curves in arms.items():
                if algorithm != "GRPO" or share_ not in (None, budget):
                    continue
                points = list(zip(*curves.values(), strict=True))
                x = [np.mean([r[cost] for r in rows]) for rows in points]
                y = [100 * np.mean([r[name] for r in rows]) for rows in points]
                number = list(ARMS).index(arm)  # ten colours, then another line
                style = {"color": f"C{number % 10}", "ls": ("-", "--")[number // 10]}
                axes.plot(x, y, marker=".", label=ARMS[arm].title, **style)
            axes.set(xlabel=title, ylabel=f"{name.partition('_')[2]} accuracy, %")
            axes.grid(True, alpha=0.3)
    figure.suptitle(f"GRPO: all data, and {100 * budget:g} % of it")
    shown = panels[0][0].get_legend_handles_labels()
    figure.legend(*shown, loc="outside lower center", ncols=5, fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def write_report(
    plan: Plan, work: Path, results: Path, *, name: str = "training", verdict: str = ""
) -> list[Path]:
    """``name``.parquet, .md (``verdict`` after its goals) and .png in ``results``."""
    found = list(finished(plan, work))
    if not found:
        raise SystemExit(f"{work}: no run is done")
    costs = read_costs(plan, work)
    table = points_table(found, costs)
    results.mkdir(parents=True, exist_ok=True)
    paths = [results / f"{name}.{end}" for end in ("parquet", "md", "png")]
    pq.write_table(table, paths[0], compression="zstd")
    text = markdown(plan, table, costs, len(runs(plan)))
    text += "\n" + "\n".join(goals(table, plan.main_budget)) + "\n" + verdict
    text += selected(found)
    paths[1].write_text(text)
    draw(table, plan.main_budget, paths[2])
    return paths


def selected(found: Sequence[Mapping[str, Any]]) -> str:
    """What the arms hold, by planted cause (seed 0)."""
    rows = [run for run in found if run["seed"] == 0 and run["algorithm"] == "GRPO"]
    causes = sorted({cause for run in rows for cause in run["causes"]})
    lines = ["", "## What was selected, by planted cause (seed 0)", ""]
    lines += ["| arm | budget | " + " | ".join(causes) + " |"]
    lines += ["|---|---:|" + "---:|" * len(causes)]
    for run in rows:
        budget = "all" if run["budget"] is None else f"{100 * run['budget']:g} %"
        counts = [str(run["causes"].get(cause, ".")) for cause in causes]
        lines.append(
            f"| {ARMS[run['arm']].title} | {budget} | " + " | ".join(counts) + " |"
        )
    return "\n".join(lines) + "\n"
