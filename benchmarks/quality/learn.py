"""Rule ``learn`` on demo worlds: what it keeps, by evidence, guard and coverage.

Worlds (`SEEDS`) and stores are those of `benchmarks.cascade` (``--work``); what is missing
is scored. Stores of an older version hold no hidden states of the prompts: those of the
store of evidence ``answer`` are joined by row.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
import math
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import rap
from rap.demo import world
from rap.scores.scores import Scores
from rap.scores.states import COLUMN

from ..cascade import SEEDS, WORLDS, World, measure, ordered
from ..metrics import auroc, spread

EVIDENCE = ("answer", "logits", "cascade", "rollouts")
BUDGETS = (0.093, 0.2)
NO_GUARD = {"guard_attention": 0.0, "guard_hurt": 0.0}
RULES: dict[str, dict[str, Any]] = {
    "budget": {},
    "learn": {"rule": "learn"},
    "learn, no guard": {"rule": "learn", **NO_GUARD},
    "learn, no coverage at all": {"rule": "learn", "coverage": False},
    "learn, coverage of all": {"rule": "learn", "coverage": True},
}
CAUSES = ("cognitive", "attention_biased", "image_misleads", "language_prior", "trivial")


def with_states(scores: Scores, states: pa.ChunkedArray) -> Scores:
    """``scores`` in memory, with the column of hidden states, where it has none."""
    table = scores.table
    if table[COLUMN].null_count < table.num_rows:
        return dataclasses.replace(scores, table=table)
    at = table.schema.get_field_index(COLUMN)
    table = table.set_column(at, table.schema.field(COLUMN), states)
    return dataclasses.replace(scores, table=table)


def evenness(families: np.ndarray) -> float:
    """Entropy of the families among the kept, over that of as many alike: 1 is even."""
    counts = np.unique(families, return_counts=True)[1]
    share = counts / counts.sum()
    return float(-(share * np.log(share)).sum() / math.log(len(world.FAMILIES)))


def rivals(scores: Scores, k: int) -> Iterator[tuple[str, np.ndarray]]:
    """(name, rows) of rules that need the completions with the image alone."""
    c1, m1 = (scores.table[n].to_numpy().astype(float) for n in ("c1", "m1"))
    p = c1 / m1
    jitter = np.random.default_rng(0).random(len(p))  # ties at random, not by index
    inside = np.where((p >= 0.2 - 1e-9) & (p <= 0.8 + 1e-9), 1.0, 0.0)
    for name, key in (("band 0.2 to 0.8", inside), ("p (1 - p)", p * (1 - p))):
        yield name, np.sort(np.argsort(-(key + 1e-6 * jitter))[:k])


def row_of(
    about: dict[str, Any],
    kept: np.ndarray,
    samples: Sequence[world.WorldSample],
    mixed: np.ndarray,
) -> dict[str, Any]:
    """What a selection holds. ``mixed``: bool [n], of five completions with the image some
    are right and some wrong."""
    causes = Counter(samples[i].cause for i in kept)
    families = np.array([samples[i].family for i in kept])
    found = about | {
        "kept": len(kept),
        "cognitive_share": causes["cognitive"] / max(1, len(kept)),
        "mixed_share": float(mixed[kept].mean()),
        "evenness": evenness(families),
    }
    return found | {cause: causes[cause] for cause in CAUSES}


def rows_of(work: Path, model: str, of: World) -> Iterator[dict[str, Any]]:
    """All evidence, rules and budgets on one world."""
    samples = world.draw(of.n, seed=of.seed, split=of.split)
    cognitive = np.array([s.cause == "cognitive" for s in samples])
    states = measure(work, model, of, "answer").table[COLUMN]
    truth = measure(work, model, of, "rollouts").table
    c1, m1 = (truth[name].to_numpy() for name in ("c1", "m1"))
    mixed = (c1 > 0) & (c1 < m1)
    for evidence in EVIDENCE:
        scores = measure(work, model, of, evidence, replay=evidence == "cascade")
        scores = with_states(scores, states)
        for budget in BUDGETS:
            about = {"model": model, "seed": of.seed, "evidence": evidence}
            for name, options in RULES.items():
                chosen = rap.choose(scores, budget=budget, **options)
                more = {"budget": budget, "rule": name}
                counted = chosen.counts()
                yield row_of(about | more, chosen.indices, samples, mixed) | {
                    "guard": counted["kept_guard"],
                    "filled": counted["kept_replacement"],
                    "auroc": auroc(ordered(chosen), cognitive),
                }
            if evidence == "rollouts":
                for name, kept in rivals(scores, int(budget * of.n)):
                    more = {"budget": budget, "rule": name}
                    yield row_of(about | more, kept, samples, mixed)


NOTE = (
    "Written by `python -m benchmarks.selection_quality --learn`; a row a world is in "
    "`selection_learn.csv`. Demo worlds, both models, seeds "
    f"{' and '.join(map(str, SEEDS))} (600 samples of split test, on which nothing was "
    "set: the rule was designed on an earlier form of the world); mean ± standard "
    "deviation over worlds. Cognitive: share of the kept samples planted as such (the pool "
    "has about 0.18). Mixed: share whose five completions with the image (evidence "
    "rollouts) are neither all right nor all wrong. Evenness: entropy of the question "
    "families kept, 1 is even. AUROC: of the ranking, for cognitive, barred samples last. "
    "Guard, filled and the other causes are shares of the kept, means. This says what is "
    "selected, not whether it trains."
)


def report(rows: Sequence[dict[str, Any]]) -> str:
    """The table of ``results/selection_learn.md``."""
    head = (
        "model | evidence | budget | rule | cognitive | mixed | evenness | AUROC | guard | "
        "filled | attention-biased | misleading | language prior | trivial"
    )
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for r in rows:
        key = (r["model"], r["evidence"], f"{100 * r['budget']:g} %", r["rule"])
        groups.setdefault(key, []).append(r)
    lines = ["# What rule learn keeps", "", textwrap.fill(NOTE, 98), ""]
    lines += [f"| {head} |", "|---|---|---:|---|" + "---:|" * (head.count("|") - 3)]
    for key, group in groups.items():
        shares = ("cognitive_share", "mixed_share", "evenness", "auroc")
        cells = [str(spread([r.get(n, math.nan) for r in group])) for n in shares]
        counts = ("guard", "filled", *CAUSES[1:])
        for name in counts:
            values = [r[name] / r["kept"] for r in group if name in r and r["kept"]]
            cells.append(f"{100 * np.mean(values):.1f} %" if values else "")
        lines.append("| " + " | ".join((*key, *cells)) + " |")
    return "\n".join(lines) + "\n"


def write(rows: Sequence[dict[str, Any]], out: Path) -> Path:
    names = list(dict.fromkeys(name for r in rows for name in r))
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, names, lineterminator="\n")
    writer.writeheader()
    rounded = [
        {k: round(v, 4) if isinstance(v, float) else v for k, v in r.items()} for r in rows
    ]
    writer.writerows(rounded)
    (out / "selection_learn.csv").write_text(table.getvalue())
    path = out / "selection_learn.md"
    path.write_text(report(rows))
    return path


def run(args: argparse.Namespace) -> Path:
    """The whole table; what is measured already is read."""
    rows = [
        row
        for model, worlds in WORLDS.items()
        for of in worlds
        if of.seed in SEEDS
        for row in rows_of(args.work, model, of)
    ]
    return write(rows, args.out)
