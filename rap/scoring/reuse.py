"""What a score depends on besides a sample's texts and images, and which rows of an older
data set are therefore still good.

A row is taken over where the id is the same (it seeds the completions), the sample is
(``sample_sha256``: question, answer, choices, images), and so is what else was read
(``inputs_sha256``). Batches then hold other samples than those of a run from the start:
that moves a score by no more than another batch size does (``scoring.run``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ..samples.sample import Sample
from ..samples.sampleset import SampleSet, canonical
from ..scores.match import is_sample
from ..scores.store import Reuse
from ..scores.table import QUARANTINED
from .jobs import ahead


def inputs_sha256(sample: Sample, columns: Collection[str]) -> str:
    """sha256 of what a row has in these columns; "" where it has nothing in them."""
    there = {
        name: sample.extra[name] for name in columns if sample.extra.get(name) is not None
    }
    if not there:
        return ""
    return hashlib.sha256(canonical(sorted(there.items()))).hexdigest()


def reuse_of(
    samples: SampleSet,
    columns: Collection[str],
    *,
    files: bool,
    retry: bool,
    workers: int,
) -> Reuse:
    """How a store finds what ``samples`` has in common with an older data set.

    columns: those that a score may depend on. files: compare image files, too. retry: what
    could not be scored is to be tried again.
    """
    place = {name: i for i, name in enumerate(samples.ids)}

    def find_one(asked: tuple[Mapping[str, Any], str]) -> int:
        row, inputs = asked
        i = place.get(row["id"], -1)
        if i < 0 or (retry and row["status"] == QUARANTINED):
            return -1
        item = samples[i]
        same = is_sample(row, item, files=files) and isinstance(item, Sample)
        return i if same and inputs_sha256(item, columns) == inputs else -1

    def find(rows: Sequence[Mapping[str, Any]], inputs: Sequence[str] | None) -> list[int]:
        pairs = zip(rows, inputs or [""] * len(rows), strict=True)
        return list(ahead(find_one, pairs, workers=workers, depth=64))

    def same(digest: object) -> bool:
        return digest == samples.content_hash(columns, source=True)

    return Reuse(find, same)
