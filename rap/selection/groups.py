"""``by=``: the groups of a table, and how many samples the budget gives each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa

from ..config import ChooseConfig
from ..errors import RapConfigError
from ..scores.columns import as_fraction
from ..scores.scores import Scores
from ..scores.table import ROLLOUT_SCHEMA, SCORE_SCHEMA
from ..settings import near

NAMED = ("by", "coverage_by")
"""Settings that name a column."""

Group = tuple[object, np.ndarray | slice]
"""(value, int64 rows, ascending); a slice: all rows"""


def require_columns(config: ChooseConfig, data: Sequence[str]) -> None:
    """Raises ``RapConfigError`` for a column that neither the scores of these data nor
    their completions will have: before a model runs. ``data``: the data set's columns."""
    known = dict.fromkeys([*SCORE_SCHEMA.names, *ROLLOUT_SCHEMA.names, *data])
    for option in NAMED:
        name = getattr(config, option)
        if name is None or name in known or name.partition(".")[0] in data:
            continue
        raise RapConfigError(
            f"{option} = {name!r}: the data set has no such column{near(name, data)}. "
            f"There are: {', '.join(known)}"
        )


def groups_of(scores: Scores, by: str | None) -> list[Group]:
    """The groups by the values of a column (null too), in order of first appearance.

    Raises ``RapConfigError`` if there is no such column (``Scores.column`` says where it
    looks), or it holds neither text, integers nor true/false.
    """
    if by is None:
        return [(None, slice(None))]
    codes, names = codes_of(scores, "by", by)
    order = np.argsort(codes, kind="stable")
    bounds = np.cumsum(np.bincount(codes, minlength=len(names)))[:-1]
    return list(zip(names, np.split(order, bounds), strict=True))


def codes_of(scores: Scores, option: str, by: str) -> tuple[np.ndarray, list[Any]]:
    """(int32 [n]: the place of each row's value, the values of a column, null too, in order
    of first appearance). ``option``: which setting names it. Raises as ``groups_of``."""
    try:
        column = scores.column(by)
    except RapConfigError as error:
        raise RapConfigError(f"{option} = {error}") from None
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kinds = (
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_integer,
        pa.types.is_boolean,
        pa.types.is_null,
    )
    if not any(kind(column.type) for kind in kinds):
        raise RapConfigError(f"{option} = {by!r}: a {column.type} column makes no groups")
    if pa.types.is_null(column.type):
        column = column.cast(pa.string())
    encoded = column.dictionary_encode(null_encoding="encode")
    codes = encoded.indices.to_numpy(zero_copy_only=False)
    return codes, encoded.dictionary.to_pylist()


def budget_size(budget: float, n: int) -> int:
    """How many of ``n`` samples a budget keeps: k if ``budget`` is the float k/n, else
    the budget as a decimal times n, rounded down (see ``choose``)."""
    share = as_fraction("budget", budget)
    nearest = round(share * n)
    return nearest if nearest / n == float(share) else math.floor(share * n)


def rows_in(group: Group, n: int) -> int:
    """How many rows a group of a table of ``n`` has."""
    return n if isinstance(group[1], slice) else len(group[1])


def budget_by_group(
    budget: float,
    groups: Sequence[Group],
    passes: np.ndarray,
    rank: np.ndarray,
    last: np.ndarray | None = None,
) -> list[int]:
    """How many samples each group keeps: largest remainder.

    Each group gets ``budget_size`` of its own rows. What is then missing to
    ``budget_size`` of all rows goes, one each, to the groups with the largest remainder
    that have another candidate; among equal remainders to those whose next one is best.
    passes: bool [n], candidates. rank: int64 [n], unique, the best candidate's the least.
    last: bool [n], what a rule fills a budget with: so are given what is missing after all
    groups with another candidate have theirs. None: nothing.
    """
    sizes = [rows_in(group, len(passes)) for group in groups]
    base = [budget_size(budget, size) for size in sizes]
    left = budget_size(budget, sum(sizes)) - sum(base)
    share = as_fraction("budget", budget)
    raised: set[int] = set()
    for among in (passes,) if last is None else (passes, last):
        if left <= 0 or len(groups) < 2:
            break
        open_groups: list[tuple[Fraction, int, int]] = []
        for i, (_, rows) in enumerate(groups):
            candidates = rank[rows][among[rows]]
            if i not in raised and base[i] < len(candidates):
                best = int(np.partition(candidates, base[i])[base[i]])
                open_groups.append((base[i] - share * sizes[i], best, i))
        for _, _, i in sorted(open_groups)[:left]:
            base[i] += 1
            left -= 1
            raised.add(i)
    return base
