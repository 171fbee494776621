"""How well does the method find what it claims to find? Planted causes, several worlds.

    python -m benchmarks.selection_quality --quick     # under ten minutes on two cores
    python -m benchmarks.selection_quality             # the tables that are committed
    python -m benchmarks.selection_quality --weights DIR --weights DIR2   # two models
    python -m benchmarks.selection_quality --learn --work DIR   # rule learn, both models

``--quick`` draws 120 samples a world instead of 200; 32 completions an arm are the truth
and three worlds are drawn either way.
Measuring comes first and is kept under --work: a run that was stopped goes on, and
``--collect-only`` does that half alone. Writes selection_quality.md, a Parquet file a
table and figures under benchmarks/results/. The committed verdict goes only onto the page
that is committed: of the full size, there. ``--learn``: `benchmarks.quality.learn`.
"""

from __future__ import annotations

import argparse
import logging
import platform
import shlex
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run by its path, too

from benchmarks.metrics import spread
from benchmarks.quality import collect, figures, learn, read, tables
from rap.demo.model import WEIGHTS, load_demo_model

RESULTS = Path(__file__).parent / "results"
VERDICT = Path(__file__).parent / "quality" / "verdict.md"
"""What the tables mean, written by hand after reading them."""

KEYS = {
    "estimators": ("estimator", "finds", "against"),
    "selections": ("selection", "against"),
    "evidence": ("evidence",),
    "counterfactuals": ("counterfactual", "evidence", "against"),
    "divergences": ("divergence", "over", "counterfactual", "against"),
    "psi": ("psi", "against"),
    "families": ("family",),
    "flags": ("family",),
    "stability": ("order", "compared"),
    "confidence": ("m",),
    "adaptive": ("m", "look", "order"),
    "transfer": ("selection",),
    "confirm": ("evidence",),
}
"""Columns that name a row; the others are means over worlds."""

CAPTIONS = {"evidence": "evidences", "psi": "psi_table"}
"""Functions whose docstring stands above a table, where it is not the table's name."""


def gather(
    worlds: Sequence[read.World], fresh: Sequence[collect.Fresh]
) -> dict[str, list[dict[str, Any]]]:
    """{table: rows}, each row with its model and seed."""
    made: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for w in worlds:
        name = {"model": w.measured.model, "seed": w.measured.seed}
        for table, rows in tables.TABLES.items():
            made[table] += [name | row for row in rows(w)]
    for i, a in enumerate(worlds):
        for b in worlds[i + 1 :]:
            if a.measured.seed == b.measured.seed:
                pair = f"{a.measured.model} / {b.measured.model}"
                name = {"model": pair, "seed": a.measured.seed}
                made["transfer"] += [name | row for row in tables.transfer(a, b)]
    for f in fresh:
        name = {"model": f.model, "seed": f.seed}
        made["confirm"] += [name | row for row in tables.confirm(f)]
    return dict(made)


def markdown(rows: Sequence[dict[str, Any]], keys: Sequence[str]) -> str:
    """Mean and spread over worlds of every number, one line a setting and model."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    many = len({r["model"] for r in rows}) > 1
    keys = ("model", *keys) if many else tuple(keys)
    for row in rows:
        groups[tuple(row[k] for k in keys)].append(row)
    numbers = [
        k for k, v in rows[0].items() if isinstance(v, (int, float)) and k not in keys
    ]
    numbers.remove("seed")
    lines = ["| " + " | ".join((*keys, *numbers)) + " |"]
    lines.append("|" + "---|" * len(keys) + "---:|" * len(numbers))
    for name, group in groups.items():
        cells = [str(spread([r[k] for r in group])) for k in numbers]
        names = (str(part).replace("|", "\\|") for part in name)
        lines.append("| " + " | ".join((*names, *cells)) + " |")
    return "\n".join(lines)


def held(rows: Sequence[dict[str, Any]]) -> str:
    """What the selections hold, world by world: the misses by name."""
    lines = ["| selection | model | seed | kept, by planted cause |", "|---|---|---|---|"]
    for r in rows:
        if r["against"] == "planted" and r["selection"].startswith(("rap", "confirm")):
            lines.append(f"| {r['selection']} | {r['model']} | {r['seed']} | {r['held']} |")
    return "\n".join(lines)


def report(
    made: dict[str, list[dict[str, Any]]], size: collect.Size, how: str, verdict: str = ""
) -> str:
    """The whole page; ``how``: the arguments it was made with; ``verdict``: of these very
    tables."""
    parts = [
        "# Does the selection find what was planted?",
        f"`python -m benchmarks.selection_quality {how}`".replace(" `", "`"),
        f"{size.n} samples a world, seeds {', '.join(map(str, size.seeds))}; truth: "
        f"M = {size.m} completions an arm; a tenth is selected. Mean ± standard deviation "
        f"over worlds. {platform.processor() or platform.machine()}. Actual causes: see "
        "world_agreement.md. The seconds are those of a machine that others used, too.",
        verdict,
    ]
    for table, rows in made.items():
        parts += [f"## {table.capitalize()}", markdown(rows, KEYS[table])]
        text = (getattr(tables, CAPTIONS.get(table, table)).__doc__ or "").strip()
        parts.insert(len(parts) - 1, " ".join(text.split()))
    confirmed = [
        r | {"selection": f"confirm, {r['evidence']}", "against": "planted"}
        for r in made["confirm"]
    ]
    parts += ["## What the selections hold", held(made["selections"] + confirmed)]
    return "\n\n".join(part for part in parts if part) + "\n"


def write(made: dict[str, list[dict[str, Any]]], page: str, out: Path) -> None:
    """The page, a Parquet file a table, the figures."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "selection_quality.md").write_text(page)
    for table, rows in made.items():
        pq.write_table(pa.Table.from_pylist(rows), out / f"quality_{table}.parquet")
    figures.draw(made, out)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--weights", type=Path, action="append", help="default: shipped")
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--n", type=int, help="samples a world")
    parser.add_argument("--m", type=int, help="completions an arm that are the truth")
    parser.add_argument("--work", type=Path, default=Path("out/quality"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--collect-only", action="store_true")
    parser.add_argument("--learn", action="store_true", help="the table of rule learn")
    argv = sys.argv[1:] if argv is None else argv
    args = parser.parse_args(argv)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    if args.learn:
        print(learn.run(args))
        return 0
    size = collect.resized(
        collect.QUICK if args.quick else collect.FULL, args.n, args.m, args.seeds
    )
    models = args.weights or [WEIGHTS]
    measured = list(collect.collect_all(args.work, models, size, load_demo_model))
    fresh = list(collect.confirm_all(args.work, models, size, load_demo_model))
    if args.collect_only:
        return 0
    made = gather([read.read(m) for m in measured], fresh)
    judged = size == collect.FULL and args.out == RESULTS and VERDICT.exists()
    verdict = VERDICT.read_text() if judged else ""
    write(made, report(made, size, shlex.join(argv), verdict), args.out)
    print(args.out / "selection_quality.md")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
