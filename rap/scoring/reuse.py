"""What a score depends on besides a sample's texts and images, and which rows of an older
data set are therefore still valid.

A row is taken over where the id is the same (it seeds the completions), the sample is
(``sample_sha256``: question, answer, choices, images), and so is what else was read
(``inputs_sha256``). Batches then hold other samples than those of a run from the start:
that moves a score by no more than another batch size does (``scoring.run``).
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import pyarrow as pa

from ..samples.canonical import canonical
from ..samples.sample import Sample
from ..samples.sampleset import SampleSet
from ..scores.match import is_sample
from ..scores.previous import Reuse
from ..scores.store import ScoreStore
from ..scores.table import QUARANTINED
from .jobs import ahead

log = logging.getLogger("rap")


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
    accepts: Callable[[int, Mapping[str, Any]], bool] | None = None,
) -> Reuse:
    """How a store finds what ``samples`` has in common with an older data set.

    columns: those that a score may depend on. files: compare image files, too. retry: what
    could not be scored is to be tried again. accepts: what else a row must be, for its
    sample; None: nothing.
    """

    def find_one(asked: tuple[Mapping[str, Any], str, int]) -> int:
        row, inputs, i = asked
        if i < 0 or (retry and row["status"] == QUARANTINED):
            return -1
        item = samples[i]
        if not isinstance(item, Sample) or not is_sample(row, item, files=files):
            return -1
        if accepts is not None and not accepts(i, row):
            return -1
        return i if inputs_sha256(item, columns) == inputs else -1

    def find(rows: Sequence[Mapping[str, Any]], inputs: Sequence[str] | None) -> list[int]:
        places = samples.rows_of(pa.array([row["id"] for row in rows], pa.string()))
        asked = zip(rows, inputs or [""] * len(rows), places.tolist(), strict=True)
        return list(ahead(find_one, asked, workers=workers, depth=64))

    def same(digest: object) -> bool:
        return digest == samples.content_hash(columns, source=True)

    return Reuse(find, same)


def look_back(
    shards: ScoreStore, reuse: Reuse, settled: Callable[[int], bool] | None = None
) -> None:
    """Find what an older data set has left for this one; one line says how much it is.
    settled: whether a sample is scored without a model here."""
    if not shards.look_back(reuse):
        return
    todo = _to_score(shards)
    n, new = shards.n_samples, sum(1 for i in todo if settled is None or not settled(i))
    log.warning(
        "%s: the data set changed: %d of %d samples are as they were and keep their "
        "scores, %d are new or changed and are scored",
        *(shards.path, n - new, n, new),
    )


def _to_score(shards: ScoreStore) -> list[int]:
    """Samples that neither the store nor what it looked back on has."""
    todo: list[int] = []
    for k in shards.missing():
        part = shards.partial(k)
        kept = set() if part is None else set(part.scores["index"].to_pylist())
        rest = (i for i in shards.shard_range(k) if i not in kept)
        todo += [i for i in rest if not shards.reusable(i)]
    return todo


def put_in_groups(shards: ScoreStore, samples: SampleSet) -> None:
    """The group decides no score: it follows the data set as it is now."""
    for k in shards.finished():
        table = shards.read_shard(k)
        if _stand_there(samples, shards.shard_range(k), table["source"]):
            continue
        groups = [group_of(samples, i) for i in table["index"].to_pylist()]
        if groups != table["source"].to_pylist():
            at = table.schema.get_field_index("source")
            shards.replace(k, table.set_column(at, "source", pa.array(groups, pa.string())))


def _stand_there(samples: SampleSet, rows: range, groups: pa.ChunkedArray) -> bool:
    """Whether the column of the groups holds just these texts, so that no row need be
    looked at: one that cannot be used has none."""
    name = samples.columns["source"]
    if name is None:
        return groups.null_count == len(groups)
    found = samples.texts(name, rows)
    return found is not None and found.null_count == 0 and found.equals(groups)


def group_of(samples: SampleSet, i: int) -> str | None:
    """The group of sample ``i``; None if the row cannot be used."""
    item = samples[i]
    return item.source if isinstance(item, Sample) else None
