"""When a run goes on: which shards of its store are scored again."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from typing import Any

from ..config import ScoreConfig
from ..model.counterfactual import WITH_PARTNER
from ..samples.images import read_bytes
from ..samples.sample import BadSample, Sample
from ..samples.sampleset import SampleSet
from ..scores.store import ScoreStore
from ..scores.table import QUARANTINED
from .jobs import ahead


def redo_quarantined(shards: ScoreStore) -> None:
    """Shards with a quarantined sample, but for those whose row itself is bad."""
    for k in shards.finished():
        table = shards.read_shard(k).select(["status", "stage"]).to_pylist()
        if any(r["status"] == QUARANTINED and r["stage"] != "data" for r in table):
            shards.redo(k)


def redo_changed_images(
    shards: ScoreStore, samples: SampleSet, config: ScoreConfig
) -> None:
    """Images may change between two runs: rows made from others are not kept.

    Under ``shuffle`` an image is also its partner's counterfactual, in whatever shard:
    there one that changed has everything scored again.
    """

    def changed(row: Mapping[str, Any]) -> str | None:
        sample = samples[row["index"]]
        if row["image_sha256"] is None:
            return None
        if not isinstance(sample, Sample):  # its path now leads out of the root, say
            return row["id"]
        try:
            hashes = [hashlib.sha256(read_bytes(ref)).hexdigest() for ref in sample.images]
        except BadSample:
            hashes = []
        return None if ",".join(hashes) == row["image_sha256"] else row["id"]

    names = ["id", "index", "image_sha256"]
    found: list[str] = []
    there = sorted({*shards.finished(), *shards.parts()})
    redone = set()
    for k in there:
        part = shards.partial(k)
        table = shards.read_shard(k) if part is None else part.scores
        rows = table.select(names).to_pylist()
        stale = [id for id in ahead(changed, rows, workers=config.workers, depth=64) if id]
        if stale:
            redone.add(k)
            found += stale
    for k in there if found and config.counterfactual in WITH_PARTNER else sorted(redone):
        shards.redo(k)
    if found:
        warnings.warn(
            f"the images of {len(found)} samples changed since they were scored, "
            f"{found[0]!r} among them: what was made from them is scored again",
            stacklevel=3,
        )
