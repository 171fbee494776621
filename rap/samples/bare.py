"""Rows that are no samples (no question, say, or no image): their columns, their ids.

Completions that were graded elsewhere need no more of a data set than an id and a group.
"""

from __future__ import annotations

from ..errors import RapInputError
from .ids import read_ids
from .opening import open_rows
from .roles import CANDIDATES
from .sampleset import Known, SampleSet


def open_bare(source: object, id: str | None = None) -> SampleSet:
    """The rows of ``source``, what ``open_samples`` takes without a network, with the
    column ``id`` of ids; without it they are the row numbers. Only columns, ids and
    ``take`` can be asked for: every item is a ``Bad``.

    Raises ``RapInputError``: not such a source, unreadable, no column ``id``, an id that
    stands twice.
    """
    if isinstance(source, SampleSet):
        return source
    rows, _ = open_rows(source)
    if id is not None and id not in rows.columns:
        raise RapInputError(
            f"the data set has no column {id!r} to match the rollouts by; it has "
            f"{', '.join(rows.columns)}"
        )
    columns = {**dict.fromkeys(CANDIDATES), "id": id}
    return SampleSet(rows, columns, None, known=Known(read_ids(rows, id)))
