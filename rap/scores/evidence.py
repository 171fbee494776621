"""What the rules ask of the rows of a score table, whatever the kind of evidence: D and
difficulty compared exactly, and which rows can be judged at all.

Which columns say so is each kind's own (``kinds``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import RapInputError
from .columns import exceeds, mask_of
from .kinds import KINDS, Kind, Measured
from .table import QUARANTINED, SCORE_SCHEMA, SCORED, VOLATILE_COLUMNS

# -inf is a value here: probability 0, or a response too short to judge.
_MAY_BE_MINUS_INF = ("log_psi", "logp_answer1", "logp_answer0", "logp_mean1", "logp_mean0")


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the rules ask of each sample, whatever the evidence. All arrays are [n].

    ``kind``: how it was measured. ``valid``: scored, with every score finite. ``code``:
    quarantine code of the rows that are not valid. ``measured``: D, difficulty, keys.
    ``unsolved_from``: the difficulty from which on a sample counts as never solved.
    """

    kind: Kind
    valid: np.ndarray
    code: pa.ChunkedArray
    measured: Measured
    unsolved_from: Fraction = Fraction(1)

    @property
    def d(self) -> np.ndarray:
        """D as float64 (NaN: unknown), correctly rounded from the exact quotient for
        rollouts."""
        return self.measured.d

    @property
    def difficulty(self) -> np.ndarray:
        """Diff as float64 (NaN: unknown)."""
        return self.measured.difficulty

    @property
    def negative(self) -> np.ndarray:
        """bool [n]: D < 0; False where D is unknown.

        For rollouts D is the quotient of the integers c1*m0 - c0*m1 and m1*m0, whose sign
        float64 keeps."""
        return self.d < 0

    @property
    def unsolved(self) -> np.ndarray:
        """bool [n]: Diff >= ``unsolved_from``; False where Diff is unknown."""
        if self.measured.counts is None:
            return self.difficulty >= float(self.unsolved_from)
        c1, m1, _, _ = self.measured.counts
        # 1 - c1/m1 >= t is c1 <= (1 - t) m1
        return ~np.isnan(self.difficulty) & ~exceeds(c1, m1, 1 - self.unsolved_from)

    def above(self, threshold: Fraction | None) -> np.ndarray:
        """D > threshold; False where D is unknown. Without a threshold: D is known."""
        if threshold is None:
            return ~np.isnan(self.d)
        if self.measured.counts is None:
            return self.d > float(threshold)
        c1, m1, c0, m0 = self.measured.counts
        return ~np.isnan(self.d) & exceeds(c1 * m0 - c0 * m1, m1 * m0, threshold)

    def trivial(self, threshold: Fraction) -> np.ndarray:
        """Diff <= threshold; False where Diff is unknown."""
        if self.measured.counts is None:
            return self.difficulty <= float(threshold)
        c1, m1, _, _ = self.measured.counts
        return ~np.isnan(self.difficulty) & ~exceeds(m1 - c1, m1, threshold)

    def exact(self, row: int) -> Fraction | None:
        """D of one sample as a fraction (rollouts only)."""
        if self.measured.counts is None:
            return None
        c1, m1, c0, m0 = (int(a[row]) for a in self.measured.counts)
        return Fraction(c1 * m0 - c0 * m1, m1 * m0)


def kind_of(table: pa.Table) -> str:
    """The evidence of a score table ("rollouts" if no row is scored).

    Raises ``RapInputError`` for an unknown status or evidence, or two kinds of it.
    """
    return kind_named(kinds_of(table)).name


def kinds_of(table: pa.Table) -> list[str]:
    """The evidence that scored rows name. Raises ``RapInputError``: unknown status."""
    scored = mask_of(pc.equal(table["status"], SCORED))
    if not np.all(scored | mask_of(pc.equal(table["status"], QUARANTINED))):
        raise RapInputError(
            f"score table: status is neither {SCORED!r} nor {QUARANTINED!r}"
        )
    return pc.unique(table["evidence"].filter(pa.array(scored))).to_pylist()


def kind_named(kinds: list[str]) -> Kind:
    """The one kind that scored rows name ("rollouts" if there are none). Raises
    ``RapInputError``."""
    if len(kinds) > 1:
        raise RapInputError(f"score table: mixes evidence {kinds}; their D do not compare")
    name = kinds[0] if kinds else "rollouts"
    if name not in KINDS:
        raise RapInputError(f"score table: evidence {name!r} is none of {tuple(KINDS)}")
    return KINDS[name]


def read_evidence(
    table: pa.Table,
    *,
    divergence: str = "js",
    likelihood: str = "product",
    unsolved: Fraction = Fraction(1),
    threshold: Fraction | None = None,
    kind: Kind | None = None,
) -> Evidence:
    """What the rows of a score table say; the options are those of ``ChooseConfig``.
    ``threshold``: what D must exceed, for the keep-probability (None: 0).
    ``kind``: that of the whole table, where these rows are a part of it.

    Raises ``RapInputError`` for an unknown status or evidence, or two kinds of it.
    """
    kind = kind_named(kinds_of(table)) if kind is None else kind
    measured = kind.read(
        table,
        divergence=divergence,
        likelihood=likelihood,
        threshold=float(threshold or 0),
    )
    usable = usable_rows(table)
    code = codes_of(table, kind)
    return Evidence(kind, usable & measured.enough, code, measured, unsolved)


def usable_rows(table: pa.Table) -> np.ndarray:
    """bool [n]: scored, with every score finite."""
    return mask_of(pc.equal(table["status"], SCORED)) & _all_finite(table)


def codes_of(table: pa.Table, kind: Kind) -> pa.ChunkedArray:
    """The quarantine code of each row, if it is not valid."""
    scored, finite = pc.equal(table["status"], SCORED), _all_finite(table)
    own = pc.if_else(pa.array(finite), kind.short_of, "nonfinite")
    return pc.if_else(scored, own, pc.fill_null(table["code"], "unknown"))


def _all_finite(table: pa.Table) -> np.ndarray:
    """No score of the row is NaN or infinite (null is fine: not measured)."""
    good = np.ones(table.num_rows, dtype=bool)
    for column_field in SCORE_SCHEMA:
        name = column_field.name
        if not pa.types.is_floating(column_field.type) or name in VOLATILE_COLUMNS:
            continue
        column = table[name]
        if column.null_count == len(column):
            continue
        if not column.null_count and np.isfinite(column.to_numpy()).all():
            continue
        ok = pc.is_finite(column)
        if name in _MAY_BE_MINUS_INF:
            ok = pc.or_(ok, pc.equal(column, pa.scalar(-math.inf, column_field.type)))
        good &= pc.fill_null(ok, True).to_numpy()
    return good
