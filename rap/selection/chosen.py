"""The table of a selection: the score table and what ``choose`` found, read when asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
import pyarrow as pa

from ..scores.columns import look_up, nullable
from ..scores.reader import Reader
from ..scores.readings import EVIDENCE_COLUMNS
from ..scores.table import CHOSEN_COLUMNS
from .judged import Reading
from .rules import Rule

FOUND = {**dict.fromkeys(CHOSEN_COLUMNS, pa.float64()), "reason": pa.string()}
"""The columns that ``choose`` puts behind those of the score table."""


class ChosenReader(Reader):
    """``reason``: int [n], places in ``reasons``. D, Diff and what was ranked by are
    computed of the scores again, which takes no room."""

    def __init__(
        self,
        scores: Reader,
        reading: Reading,
        rule: Rule,
        reason: np.ndarray,
        reasons: Sequence[str],
    ) -> None:
        self.scores, self.reading, self.rule = scores, reading, rule
        self.reason, self.reasons = reason, pa.array(reasons, pa.string())
        self.num_rows = scores.num_rows
        own = [field for field in scores.schema if field.name not in FOUND]
        self.schema = pa.schema([*own, *FOUND.items()])

    def _batches(self, names: list[str], size: int) -> Iterator[pa.Table]:
        there = [name for name in names if name not in FOUND]
        computed = [name for name in names if name in FOUND and name != "reason"]
        whole = self._whole if computed and not self.reading.kind.by_row else None
        more = EVIDENCE_COLUMNS if computed and whole is None else ()
        read = list(dict.fromkeys([*there, *more]))
        if whole is not None and not read:
            read = ["status"]
        if not read and not computed:
            for at in range(0, self.num_rows, size):
                reason = pa.array(self.reason[at : at + size])
                yield pa.table({"reason": self.reasons.take(reason)})
            return
        start = 0
        for batch in self.scores.batches(read, size):
            reason = pa.array(self.reason[start : start + batch.num_rows])
            columns: dict[str, pa.Array] = {}
            if computed and whole is None:
                columns = self._computed(batch)
            elif whole is not None:
                columns = {n: c.slice(start, batch.num_rows) for n, c in whole.items()}
            start += batch.num_rows
            if "reason" in names:
                columns["reason"] = self.reasons.take(reason)
            found = {name: columns.get(name, None) for name in names}
            yield pa.table(
                [batch[n] if c is None else c for n, c in found.items()], names=names
            )

    def mask(self, name: str, values: Sequence[str]) -> np.ndarray:
        if name != "reason":
            return super().mask(name, values)
        return look_up(np.isin(self.reasons.to_pylist(), values), self.reason)

    @cached_property
    def _whole(self) -> dict[str, pa.Array]:
        """Of a kind of evidence that must see all rows at once."""
        return self._computed(self.scores.read(EVIDENCE_COLUMNS))

    def _computed(self, batch: pa.Table) -> dict[str, pa.Array]:
        evidence = self.reading.evidence(batch)
        ranking = self.rule.ranking(self.reading.config, evidence)
        key = np.full(batch.num_rows, np.nan) if ranking is None else ranking.value
        known, unknown = evidence.measured.posterior, np.full(batch.num_rows, np.nan)
        return {
            "D": nullable(evidence.d),
            "difficulty": nullable(evidence.difficulty),
            "rank_key": nullable(key),
            "posterior1": nullable(unknown if known is None else known.mean1),
            "posterior0": nullable(unknown if known is None else known.mean0),
            "keep_probability": nullable(unknown if known is None else known.keep),
        }
