"""The rules of selection on published records of real models, as far as records go.

    python -m benchmarks.records                # reads ../shared/data; about a minute

Two sets of published outputs (each folder's SOURCE.md): every question was answered once by
several models with its image and once by others without it. So a "pass rate" here is the
share of *models* that are right, not of one model's completions, the models without the
image are others than those with it, and nothing is trained. What can be asked:

- what each rule keeps: the sign of D, the overlap with the largest p (1 - p);
- stability: the models are split into halves at random, each half selects, and the other
  half says what the kept are. Both settings of a model stay in one half. Of the settings
  without the image MathVista's are split as well; MATH-V has one only, in both halves.

Random guesses and the text models that were given the image as text (captions, OCR) are
left out. Writes ``results/records.md`` and ``results/records.csv``; nothing of the records
is copied there.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

import rap
from benchmarks import training_arms as arms
from benchmarks.metrics import jaccard, spearman, spread
from rap.scores.columns import floats

RESULTS = Path(__file__).parent / "results"
DATA = Path(__file__).parents[2] / "shared" / "data"
SETS = {"mathvision_records": "subject", "mathvista_records": "task"}
"""{folder: the column of gold.jsonl that coverage is over}"""
BUDGETS = (0.093, 0.2)
SEEDS = 20
Pick = Callable[[rap.Scores, float, int], np.ndarray]


def paper(scores: rap.Scores, budget: float, seed: int) -> np.ndarray:
    """Rule paper, whatever the budget: its thresholds say how many."""
    return arms.choose(scores, None, rule="paper").indices


RULES: dict[str, Pick] = {
    "random": arms.random,
    "band 0.2 to 0.8, by lot": arms.band,
    "p (1 - p)": arms.variance,
    "public script, by lot": arms.public_script,
    "paper (own size)": paper,
    "budget": arms.full_rap,
    "learn": arms.learner(coverage=False),
    "learn, no guard": arms.learner(coverage=False, **arms.NO_GUARD),
    "learn, coverage": arms.learner(coverage_by="topic"),
}


@dataclass(frozen=True, slots=True)
class Records:
    """``table``: id, setting, model, with_image, correct, topic; sorted by id."""

    name: str
    table: pa.Table

    def settings(self, with_image: bool) -> dict[str, str]:
        """{setting: its model} of one arm."""
        rows = self.table.filter(pc.equal(self.table["with_image"], with_image))
        names = zip(rows["setting"].to_pylist(), rows["model"].to_pylist(), strict=True)
        return dict(sorted(set(names)))

    def scores(self, settings: Sequence[str] | None = None) -> rap.Scores:
        """Of these settings, None: of all. Rows are in the order of the ids."""
        where = None if settings is None else {"setting": list(settings)}
        return rap.Scores.from_rollouts(self.table, where=where)


def read(folder: Path, topic: str) -> Records:
    """The records of one set, without guesses and without images told in words."""
    table = pq.read_table(folder / "records.parquet")
    table = table.filter(
        pc.and_(pc.equal(table["augment"], "none"), pc.not_equal(table["model"], "random"))
    )
    gold = map(json.loads, (folder / "gold.jsonl").read_text().splitlines())
    topics = {row["id"]: row[topic] for row in gold}
    setting = pc.binary_join_element_wise(table["model"], table["prompt"], "/")
    topic_of = pa.array([topics[i] for i in table["id"].to_pylist()])
    table = table.select(["id", "model", "with_image", "correct"])
    table = table.append_column("setting", setting).append_column("topic", topic_of)
    return Records(folder.name, table.sort_by("id"))


def halves(groups: dict[str, str], seed: int) -> tuple[list[str], list[str]]:
    """The settings in two halves, all of a group in one; where there is one group only,
    all in both. ``groups``: {setting: its group}."""
    names = sorted(set(groups.values()))
    if len(names) == 1:
        return sorted(groups), sorted(groups)
    drawn = np.random.default_rng(seed).permutation(len(names))
    first = {names[i] for i in drawn[: len(names) // 2]}
    own = [setting for setting in sorted(groups) if groups[setting] in first]
    return own, sorted(set(groups) - set(own))


def split(records: Records, seed: int) -> tuple[rap.Scores, rap.Scores]:
    """Scores of two halves of the models. Without the image it is the settings that are
    divided: there are three models at most."""
    image = halves(records.settings(True), seed)
    text = halves({setting: setting for setting in records.settings(False)}, seed)
    one, other = (records.scores([*a, *b]) for a, b in zip(image, text, strict=True))
    return one, other


@dataclass(frozen=True, slots=True)
class Rates:
    """What counts say of the questions, float64 [n] each: D = p1 - p0, and p1 (1 - p1)
    without the bias of few counts, c (m - c) / (m (m - 1))."""

    d: np.ndarray
    variance: np.ndarray


def rates(scores: rap.Scores) -> Rates:
    """Of the counts of a table."""
    c1, m1, c0, m0 = (floats(scores.table[name]) for name in ("c1", "m1", "c0", "m0"))
    return Rates(c1 / m1 - c0 / m0, c1 * (m1 - c1) / (m1 * (m1 - 1)))


def signs(d: np.ndarray) -> tuple[float, float, float]:
    """Shares of D > 0, = 0, < 0; NaN for none."""
    if not len(d):
        return (float("nan"),) * 3
    d = np.round(d, 9)
    return float((d > 0).mean()), float((d == 0).mean()), float((d < 0).mean())


def mask(n: int, rows: np.ndarray) -> np.ndarray:
    """bool [n], true at these rows."""
    found = np.zeros(n, bool)
    found[rows] = True
    return found


def whole(records: Records, budget: float) -> list[dict[str, Any]]:
    """What every rule keeps with all models: one row a rule."""
    scores = records.scores()
    rate, n = rates(scores), len(scores)
    largest = mask(n, arms.variance(scores, budget, 0))
    rows = []
    for name, pick in RULES.items():
        kept = mask(n, pick(scores, budget, 1))  # other ties than ``largest``
        above, none, below = signs(rate.d[kept])
        rows.append(
            {
                "set": records.name,
                "budget": budget,
                "rule": name,
                "kept": int(kept.sum()),
                "same": float((kept & largest).sum() / max(1, kept.sum())),
                "above": above,
                "none": none,
                "below": below,
            }
        )
    above, none, below = signs(rate.d)
    pool = {"above": above, "none": none, "below": below}
    return [
        {
            "set": records.name,
            "budget": budget,
            "rule": "(all questions)",
            "kept": n,
            "same": len(largest.nonzero()[0]) / n,
            **pool,
        },
        *rows,
    ]


def half(
    pair: tuple[rap.Scores, rap.Scores], budget: float, rule: str, seed: int
) -> dict[str, float]:
    """One rule on two halves: ``overlap`` (Jaccard) of what they keep, ``chance`` of two
    draws of these sizes; of what one keeps the other half's mean p (1 - p) over that of all
    questions, ``variance``, and its signs of D. Means over both directions."""
    n, pick = len(pair[0]), RULES[rule]
    kept = [mask(n, pick(scores, budget, 2 * seed + k)) for k, scores in enumerate(pair)]
    sizes = [int(k.sum()) for k in kept]
    both = sizes[0] * sizes[1] / n
    told: list[tuple[float, ...]] = []
    for rows, judge in zip(kept, reversed(pair), strict=True):
        rate = rates(judge)
        if rows.any():
            of_all = rate.variance.mean()
            told.append((rate.variance[rows].mean() / of_all, *signs(rate.d[rows])))
    variance, above, none, below = np.mean(told, axis=0) if told else np.full(4, np.nan)
    return {
        "kept": float(np.mean(sizes)),
        "overlap": jaccard(*kept),
        "chance": both / max(1.0, sum(sizes) - both),
        "variance": float(variance),
        "above": float(above),
        "none": float(none),
        "below": float(below),
    }


def stability(records: Records, seeds: int) -> list[dict[str, Any]]:
    """Every rule and budget over ``seeds`` splits: mean, and standard deviation over the
    splits (``sd_...``) of overlap and p (1 - p)."""
    pairs = [split(records, seed) for seed in range(seeds)]
    rows = []
    for budget in BUDGETS:
        for rule in RULES:
            made = [half(pair, budget, rule, k) for k, pair in enumerate(pairs)]
            found: dict[str, Any] = {
                "set": records.name,
                "budget": budget,
                "rule": rule,
            }
            for key in made[0]:
                of = spread([m[key] for m in made])
                found[key] = of.mean
                if key in ("overlap", "variance"):
                    found[f"sd_{key}"] = of.sd
            rows.append(found)
    return rows


def orders(records: Records) -> dict[str, float]:
    """Rank correlation of what a rule ranks by with p (1 - p), over the questions that at
    least one model but not all solve."""
    scores = records.scores()
    rate = rates(scores)
    mixed = rate.variance > 0
    found = {}
    for name, settings in (
        ("budget", {}),
        ("learn", {"rule": "learn", "coverage": False}),
        ("D", {"order": "gain"}),
    ):
        key = floats(rap.choose(scores, budget=0.2, **settings).table["rank_key"])
        known = mixed & np.isfinite(key)
        found[name] = spearman(key[known], rate.variance[known])
    return found


READ = """What it says, read off the tables by hand:

- The order of `budget` and `learn` is close to p (1 - p) where nearly every mixed question
  has D > 0 (MATH-V: rank correlation 0.93, 85 % and 67 % in common at 9.3 %), and another
  one where the models without the image are as good (MathVista: 0.61, 23 % and 33 %).
- There p (1 - p) fills 61 % of its 93 places with questions of D <= 0, the band 54 %;
  `budget` none, `learn` 29 % by its guard share.
- Judged by other models, p (1 - p) finds the largest p (1 - p): on MathVista clearly (1.47
  against 1.31 and 1.35 at 9.3 %), on MATH-V level with `learn` (1.86, 1.93). What
  `budget` has for it is a smaller share of D <= 0: 61 % against 71 % (MathVista), 20 %
  against 31 % (MATH-V; its one text setting judges both halves, so its column D < 0 is
  not independent, nor is the rules' better overlap). `learn` takes such questions by its
  guard: 64 and 42 %.
- No rule is stable when half of the models is exchanged: overlaps of 0.07 to 0.22 at 9.3 %
  where chance is 0.05. A choice of questions is one model's.
- Thresholds on D find little: the authors' script keeps 23 and 41 questions, the paper's
  36 and 10."""
"""Changed by hand when the tables change; tests/test_bench_records.py compares some."""


def report(
    sets: Sequence[Records],
    kept: Sequence[dict[str, Any]],
    held: Sequence[dict[str, Any]],
    seeds: int,
) -> str:
    """The Markdown page."""
    parts = [
        "# The rules on published records",
        "Written by `python -m benchmarks.records`; every number is in `records.csv`. A "
        "pass rate here is the share of models that are right on a question, each asked "
        "once (a setting is a model and a prompt); the models without the image are others "
        "than those with it, and D is a difference between two groups of models. So this "
        "says how rules relate and how far a choice depends on which models were asked; "
        "it says nothing about training, nor about one model with and without its image.",
        "| set | questions | settings with image | without | D > 0 | D = 0 | D < 0 |\n"
        "|---|---:|---:|---:|---:|---:|---:|\n"
        + "\n".join(_pool_line(records) for records in sets),
        READ,
        "## What is kept, all models",
        "Same: share of the kept that the same number by p (1 - p) holds, too (ties by "
        "lot; two lots of p (1 - p) differ for that reason alone).",
        _table(
            ("set", "budget", "rule", "kept", "same", "D > 0", "D = 0", "D < 0"),
            [
                [r["set"], f"{r['budget']:.1%}", r["rule"], str(r["kept"])]
                + [_percent(r[k]) for k in ("same", "above", "none", "below")]
                for r in kept
            ],
        ),
        "## Half of the models chooses, the other half judges",
        f"{seeds} random splits; mean, and ± standard deviation over splits. Overlap: "
        "Jaccard of what the two halves keep, and of two random draws of their sizes. "
        "p (1 - p): mean over the kept, by the other half, divided by the mean over all "
        "questions. Shares of D by the other half.",
        _table(
            (
                *("set", "budget", "rule", "kept", "overlap", "by chance", "p (1 - p)"),
                *("D > 0", "D = 0", "D < 0"),
            ),
            [
                [r["set"], f"{r['budget']:.1%}", r["rule"], f"{r['kept']:.0f}"]
                + [f"{r['overlap']:.2f} ± {r['sd_overlap']:.2f}", f"{r['chance']:.2f}"]
                + [f"{r['variance']:.2f} ± {r['sd_variance']:.2f}"]
                + [_percent(r[k]) for k in ("above", "none", "below")]
                for r in held
            ],
        ),
        "## What the rules rank by, against p (1 - p)",
        "Rank correlation over the questions that some but not all settings solve.",
        _table(
            ("set", "rule budget", "rule learn", "D alone"),
            [
                [records.name, *(f"{v:+.2f}" for v in orders(records).values())]
                for records in sets
            ],
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _percent(x: float) -> str:
    return "." if np.isnan(x) else f"{x:.0%}"


def _pool_line(records: Records) -> str:
    scores = records.scores()
    shares = " | ".join(f"{x:.1%}" for x in signs(rates(scores).d))
    many = [len(records.settings(arm)) for arm in (True, False)]
    return f"| {records.name} | {len(scores)} | {many[0]} | {many[1]} | {shares} |"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    numbers = [not r.isdigit() and r in ("set", "rule") for r in head]
    lines = ["| " + " | ".join(head) + " |"]
    lines.append("|" + "".join("---|" if text else "---:|" for text in numbers))
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def write(path: Path, parts: dict[str, Sequence[dict[str, Any]]]) -> None:
    """All rows of all tables, long: table, set, budget, rule, what, value."""
    with path.open("w", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(("table", "set", "budget", "rule", "what", "value"))
        for name, rows in parts.items():
            for row in rows:
                key = (name, row["set"], row["budget"], row["rule"])
                for what, value in row.items():
                    if what not in ("set", "budget", "rule"):
                        out.writerow((*key, what, f"{value:.4f}"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    given = parser.parse_args()
    sets = [read(given.data / name, topic) for name, topic in SETS.items()]
    kept = [row for records in sets for b in BUDGETS for row in whole(records, b)]
    held = [row for records in sets for row in stability(records, given.seeds)]
    page = report(sets, kept, held, given.seeds)
    print(page)
    if given.seeds == SEEDS:
        (RESULTS / "records.md").write_text(page)
        write(RESULTS / "records.csv", {"kept": kept, "halves": held})


if __name__ == "__main__":
    main()
