"""The evidence of a table that is read a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import pyarrow as pa
import pyarrow.compute as pc

from .columns import BATCH, EXACT_BELOW
from .evidence import Evidence, kind_named, kinds_of, read_evidence
from .kinds import Kind
from .reader import Reader
from .table import SCORE_SCHEMA, VOLATILE_COLUMNS

EVIDENCE_COLUMNS = (
    "status",
    "code",
    "evidence",
    "decided_by",
    *("c1", "m1", "c0", "m0"),
    *(
        field.name
        for field in SCORE_SCHEMA
        if pa.types.is_floating(field.type) and field.name not in VOLATILE_COLUMNS
    ),
)
"""The columns that ``read_evidence`` reads: whatever the kind, no score may be NaN."""


def kind_of_rows(reader: Reader) -> Kind:
    """As ``evidence.kind_of``, of all rows."""
    names: dict[str, None] = {}
    for batch in reader.different(["status", "evidence"]):
        names.update(dict.fromkeys(kinds_of(batch)))
    return kind_named(list(names))


def batch_size(reader: Reader, kind: Kind) -> int:
    """Rows that may be read at a time. All of them where the kind of evidence must see all
    (``Kind.by_row``), or where so many completions were sampled
    that quotients are told apart by their rank among all (``columns.quotient_key``)."""
    if not kind.by_row:
        return max(reader.num_rows, 1)
    most = dict.fromkeys(("m1", "m0"), 0)
    for batch in reader.different(list(most)):
        for name in most:
            most[name] = max(most[name], pc.max(batch[name]).as_py() or 0)
    small = most["m1"] * most["m1"] * max(most["m0"], 1) <= EXACT_BELOW
    return BATCH if small else max(reader.num_rows, 1)


def evidence_of(
    reader: Reader,
    *,
    divergence: str = "js",
    likelihood: str = "product",
    unsolved: Fraction = Fraction(1),
) -> Iterator[Evidence]:
    """``read_evidence`` of all rows, a batch at a time. Sizes of counts do not matter here
    but for ``measured.order`` and ``measured.learnable``: see ``batch_size``."""
    kind = kind_of_rows(reader)
    size = BATCH if kind.by_row else max(reader.num_rows, 1)
    for batch in reader.batches(EVIDENCE_COLUMNS, size):
        yield read_evidence(
            batch,
            divergence=divergence,
            likelihood=likelihood,
            unsolved=unsolved,
            kind=kind,
        )
