"""What scoring cost, and what training on everything would."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ..config import TRAIN_GROUP
from ..scores.drawn import Drawn
from ..scores.table import SCORED

BILLED = [
    *("status", "code", "forwards", "generated_tokens", "seconds", "decided_by"),
    "log_psi",
]
"""The columns of the score table that are read here."""


def count_rows(table: pa.Table) -> dict[str, int]:
    """Rows by status, quarantined ones by code."""
    names = ["status", "code"]
    pairs = table.select(names).group_by(names, use_threads=False)
    counts: Counter[str] = Counter()
    for row in pairs.aggregate([([], "count_all")]).to_pylist():
        scored = row["status"] == SCORED
        counts[SCORED if scored else f"quarantined_{row['code']}"] += row["count_all"]
    return dict(sorted(counts.items()))


def ledger(
    table: pa.Table, drawn: Drawn, wall_seconds: float, first: pa.Table | None = None
) -> dict[str, Any]:
    """What the scores cost, and what training on everything would sample.

    ``forwards``: teacher-forced forwards, those with and without the image; ``rollouts``
    and ``generated_tokens``: completions and sampled tokens, end tokens counted;
    ``seconds``: the samples' shares of their batches' time, over all runs of the store;
    ``wall_seconds``: this call, without loading the model. ``train_all``: the completions
    of one epoch with groups of `TRAIN_GROUP` over every sample, and their tokens if as long
    as this run's mean completion with the image (None if it sampled none).
    ``stages``: what each stage of a cascade cost, see ``bill_stages``; only with ``first``,
    the table of its first round.
    """
    total = {
        name: pc.sum(table[name]).as_py() or 0
        for name in ("forwards", "generated_tokens", "seconds")
    }
    n = table.num_rows
    image = drawn.image
    mean = image.tokens / image.counted if image.counted else None
    everything = TRAIN_GROUP * n
    stages = {} if first is None else {"stages": bill_stages(table, drawn, first)}
    return {
        "samples": n,
        "rollouts": drawn.rollouts,
        **total,
        "wall_seconds": wall_seconds,
        "train_all": {
            "group": TRAIN_GROUP,
            "epochs": 1,
            "rollouts": everything,
            "tokens": None if mean is None else round(everything * mean),
        },
        **stages,
    }


def bill_stages(
    table: pa.Table, drawn: Drawn, first: pa.Table
) -> dict[str, dict[str, int | float]]:
    """What each stage of a cascade cost. ``first``: the table of its first round.

    ``samples``: that it was asked about; ``decided``: those it has the last word on
    (``decided_by``). ``answer``: the forwards of p(answer). ``image``, ``text``:
    completions with and without the image, ``pilot``'s among them, and their tokens as
    they are stored. ``psi``: forwards.
    """

    def total(of: pa.Table, name: str) -> int:
        return pc.sum(of[name]).as_py() or 0

    counted = pc.value_counts(table["decided_by"]).to_pylist()
    decided = Counter({c["values"]: c["counts"] for c in counted})
    traced = len(table) - table["log_psi"].null_count
    pilot = first.filter(pc.equal(first["decided_by"], "pilot"))
    stages: dict[str, dict[str, int | float]] = {
        "answer": {
            "samples": len(table),
            "decided": decided["answer"],
            "forwards": total(table, "forwards") - traced,
        },
        "pilot": {
            "samples": len(pilot),
            "decided": decided["pilot"],
            "rollouts": total(pilot, "n_drawn"),
        },
    }
    for stage, own in (("image", drawn.image), ("text", drawn.text)):
        stages[stage] = {
            "samples": own.samples,
            "decided": decided[stage],
            "rollouts": own.rollouts,
            "tokens": own.tokens,
        }
    stages["psi"] = {"forwards": traced}
    return stages
