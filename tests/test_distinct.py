"""Rollouts are judged by their distinct counts: the same as row by row, in less room."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from test_rows import RULES, world

import rap
from rap.scores import kinds
from rap.scores.columns import distinct_rows
from rap.scores.kinds import KINDS, Measured
from rap.selection import column
from rap.selection.column import Column


@pytest.mark.parametrize("low", [0, 7])
def test_distinct_rows_are_those_of_numpy(low: int) -> None:
    random = np.random.default_rng(0)
    columns = [low + random.integers(0, high, 500) for high in (3, 1, 6, 2)]
    found = distinct_rows(columns)
    assert found is not None
    first, back = found
    rows = np.stack(columns, axis=1)
    unique, index = np.unique(rows, axis=0, return_index=True)
    assert (rows[first] == unique).all() and (first == index).all()
    assert (rows[first][back] == rows).all()


@pytest.mark.parametrize("large", [2**20, -1])
def test_counts_that_are_too_many_to_count_are_read_row_by_row(large: int) -> None:
    assert distinct_rows([np.array([0, large])]) is None
    empty = distinct_rows([np.empty(0, np.int64)])
    assert empty is not None and [len(x) for x in empty] == [0, 0]


def same(a: Any, b: Any) -> bool:
    if isinstance(a, tuple):
        return all(map(same, a, b))
    return np.array_equal(a, b, equal_nan=a.dtype.kind == "f")


def test_evidence_by_distinct_counts_is_that_of_each_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = world(3000, m=7)
    options = {"divergence": "js", "likelihood": "product", "threshold": 0.2}
    found = KINDS["rollouts"].read(table, **options)
    monkeypatch.setattr(kinds, "distinct_rows", lambda counts: None)
    plain = KINDS["rollouts"].read(table, **options)
    assert found.first is not None and len(found.first) < 3000 and plain.first is None
    for field in dataclasses.fields(Measured):
        value = getattr(plain, field.name)
        if isinstance(value, (np.ndarray, tuple)):
            assert same(value, getattr(found, field.name)), field.name
    assert found.posterior is not None and plain.posterior is not None
    assert same(plain.posterior.arrays, found.posterior.arrays)
    assert found.posterior.prior == plain.posterior.prior


@pytest.mark.parametrize("options", RULES)
def test_selections_are_the_same_bytes_however_they_are_held(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = rap.Scores(world(2000))
    expected = rap.choose(scores, **options).table
    for name, place, value in (
        ("few values", column, 3),  # a column gives up in the middle
        ("row by row", kinds, None),
    ):
        with monkeypatch.context() as patch:
            if value is None:
                patch.setattr(place, "distinct_rows", lambda counts: None)
            else:
                patch.setattr(place, "MANY", value)
            assert rap.choose(scores, **options).table.equals(expected), name


def test_a_column_is_an_array() -> None:
    values = np.array([0.0, -0.0, np.nan, 1.5, 0.0, np.nan])
    few = np.arange(3), np.array([0, 1, 2])
    made = Column(6)
    blank = KINDS["rollouts"].read(
        world(3), divergence="js", likelihood="mean", threshold=0
    )
    told = dataclasses.replace(blank, first=few[0], back=few[1])
    made.put(slice(0, 3), values[:3], told)
    made.put(slice(3, 6), values[3:], told)
    assert len(made) == 6
    for array in (made[:], np.asarray(made), np.negative(-made)):
        assert array.tobytes() == values.tobytes()
    assert made[np.array([3, 0])].tolist() == [1.5, 0.0] and made[3] == 1.5
    made.put(slice(0, 2), np.array([7.0, 8.0]), dataclasses.replace(blank, first=None))
    assert made[:].tolist()[:2] == [7.0, 8.0] and made[3:].tobytes() == values[3:].tobytes()


def test_values_that_counts_do_not_tell_are_held_as_they_are() -> None:
    told = KINDS["rollouts"].read(
        world(400, m=1), divergence="js", likelihood="mean", threshold=0
    )
    values = np.random.default_rng(0).random(400)
    made = Column(400)
    made.put(slice(0, 400), values, told)
    assert made[:].tobytes() == values.tobytes()


def test_memory_of_choosing_is_bytes_a_row() -> None:
    """Two bytes a key and one of flags; float64 keys alone would be 16."""
    from rap.config import ChooseConfig
    from rap.scores.reader import TableReader
    from rap.selection.judged import judge, reading_of
    from rap.selection.rules import RULES as BY_NAME

    reader, rule = TableReader(world(5000)), BY_NAME["budget"]
    judged = judge(reader, reading_of(reader, ChooseConfig(), rule), rule)
    held = [judged.order._codes, judged.difficulty._codes, judged.flags]
    assert sum(part.nbytes for part in held if part is not None) == 5 * 5000
