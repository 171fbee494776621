"""What scoring cost, and what training on everything would."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ..config import TRAIN_GROUP
from ..model.rollouts import BLIND_ARM, IMAGE_ARM
from ..scores.table import SCORED


def count_rows(table: pa.Table) -> dict[str, int]:
    """Rows by status, quarantined ones by code."""
    statuses, codes = table["status"].to_pylist(), table["code"].to_pylist()
    names = (
        status if status == SCORED else f"quarantined_{code}"
        for status, code in zip(statuses, codes, strict=True)
    )
    return dict(sorted(Counter(names).items()))


def ledger(
    table: pa.Table,
    rollouts: pa.Table | None,
    wall_seconds: float,
    first: pa.Table | None = None,
) -> dict[str, Any]:
    """What the scores cost, and what training on everything would sample.

    ``forwards``: teacher-forced forwards, those with and without the image; ``rollouts``
    and ``generated_tokens``: completions and sampled tokens, end tokens counted;
    ``seconds``: the samples' shares of their batches' time, over all runs of the store;
    ``wall_seconds``: this call, without loading the model. ``train_all``: the completions
    of one epoch with groups of `TRAIN_GROUP` over every sample, and their tokens if as long
    as this run's mean completion with the image (None if it sampled none).
    ``stages``: what each stage of a cascade cost, see ``bill_stages``; only with ``first``,
    the table of its first stage.
    """
    total = {
        name: pc.sum(table[name]).as_py() or 0
        for name in ("forwards", "generated_tokens", "seconds")
    }
    n = table.num_rows
    n_rollouts, mean = 0, None
    if rollouts is not None and rollouts.num_rows:
        n_rollouts = rollouts.num_rows
        with_image = rollouts.filter(pc.equal(rollouts["arm"], IMAGE_ARM))
        mean = pc.mean(pc.list_value_length(with_image["token_ids"])).as_py()
    everything = TRAIN_GROUP * n
    stages = {} if first is None else {"stages": bill_stages(table, rollouts, first)}
    return {
        "samples": n,
        "rollouts": n_rollouts,
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
    table: pa.Table, rollouts: pa.Table | None, first: pa.Table
) -> dict[str, dict[str, int | float]]:
    """What each stage of a cascade cost.

    ``samples``: that it was asked about; ``decided``: those it has the last word on
    (``decided_by``). ``answer``: forwards and seconds over the whole pool. ``image``,
    ``text``: completions with and without the image, and their tokens as they are stored.
    ``psi``: forwards. ``seconds`` of the last three together: ``completions_seconds``.
    """

    def total(of: pa.Table, name: str) -> float:
        return pc.sum(of[name]).as_py() or 0

    decided = Counter(table["decided_by"].to_pylist())
    stages: dict[str, dict[str, int | float]] = {
        "answer": {
            "samples": first.num_rows,
            "decided": decided["answer"],
            "forwards": total(first, "forwards"),
            "seconds": total(first, "seconds"),
        }
    }
    for stage, arm in (("image", IMAGE_ARM), ("text", BLIND_ARM)):
        own = (
            rollouts
            if rollouts is None
            else rollouts.filter(pc.equal(rollouts["arm"], arm))
        )
        stages[stage] = {
            "samples": 0 if own is None else pc.count_distinct(own["index"]).as_py(),
            "decided": decided[stage],
            "rollouts": 0 if own is None else own.num_rows,
            "tokens": 0
            if own is None
            else pc.sum(pc.list_value_length(own["token_ids"])).as_py() or 0,
        }
    stages["psi"] = {
        "forwards": total(table, "forwards") - total(first, "forwards"),
        "completions_seconds": max(0.0, total(table, "seconds") - total(first, "seconds")),
    }
    return stages
