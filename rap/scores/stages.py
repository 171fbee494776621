"""The stages of a cascade, counted in a selection's table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .columns import floats, integers, mask_of
from .reader import Reader

STAGES = {
    "answer": "p(answer) of two forward passes; no completion was sampled",
    "pilot": "completions of the pilot, from which is learned what p(answer) says",
    "image": "completions with the image",
    "text": "completions with and without the image",
}
"""Values of the column ``decided_by`` -> what the last word on a sample rests on."""


@dataclass(frozen=True, slots=True)
class Stage:
    """``samples`` that this stage decided, how many of them are ``kept``, their
    graded ``completions`` of both arms, and the mean keep-probability of all and of the
    kept ones (None: of none)."""

    name: str
    text: str
    samples: int
    kept: int
    completions: int
    keep: float | None
    keep_kept: float | None


def stages_of(reader: Reader, kept: np.ndarray) -> list[Stage]:
    """One entry a stage; [] where no cascade made the scores. ``kept``: bool [n]."""
    if "decided_by" not in reader.schema.names:
        return []
    if _all_null(reader.read(["decided_by"])["decided_by"]):
        return []
    return list(_stages(reader.read(["decided_by", "keep_probability", "m1", "m0"]), kept))


def _stages(table: pa.Table, kept: np.ndarray) -> Iterator[Stage]:
    keep = floats(table["keep_probability"])
    completions = integers(table["m1"]) + integers(table["m0"])
    for name, text in STAGES.items():
        mine = mask_of(pc.equal(table["decided_by"], name))
        yield Stage(
            name,
            text,
            int(mine.sum()),
            int((mine & kept).sum()),
            int(completions[mine].sum()),
            mean_of(keep, mine),
            mean_of(keep, mine & kept),
        )


def mean_of(values: np.ndarray, mask: np.ndarray) -> float | None:
    """Mean over the rows of ``mask`` that have a value (NaN: none); None over no row."""
    found = values[mask & ~np.isnan(values)]
    return float(found.mean()) if found.size else None


def _all_null(column: pa.ChunkedArray) -> bool:
    return column.null_count == len(column)
