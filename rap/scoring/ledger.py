"""What scoring cost, and what training on everything would."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ..config import TRAIN_GROUP
from ..scores.store import Drawn
from ..scores.table import SCORED


def count_rows(table: pa.Table) -> dict[str, int]:
    """Rows by status, quarantined ones by code."""
    pairs = table.select(["status", "code"]).group_by(["status", "code"])
    counts: Counter[str] = Counter()
    for row in pairs.aggregate([([], "count_all")]).to_pylist():
        scored = row["status"] == SCORED
        counts[SCORED if scored else f"quarantined_{row['code']}"] += row["count_all"]
    return dict(sorted(counts.items()))


def ledger(table: pa.Table, drawn: Drawn, wall_seconds: float) -> dict[str, Any]:
    """What the scores cost, and what training on everything would sample.

    ``forwards``: teacher-forced forwards, those with and without the image; ``rollouts``
    and ``generated_tokens``: completions and sampled tokens, end tokens counted;
    ``seconds``: the samples' shares of their batches' time, over all runs of the store;
    ``wall_seconds``: this call, without loading the model. ``train_all``: the completions
    of one epoch with groups of `TRAIN_GROUP` over every sample, and their tokens if as long
    as this run's mean completion with the image (None if it sampled none).
    """
    total = {
        name: pc.sum(table[name]).as_py() or 0
        for name in ("forwards", "generated_tokens", "seconds")
    }
    n = table.num_rows
    mean = drawn.tokens / drawn.with_image if drawn.with_image else None
    everything = TRAIN_GROUP * n
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
    }
