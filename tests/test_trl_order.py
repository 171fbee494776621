"""The order in which prompts are dealt to a trainer."""

from __future__ import annotations

import json

import pytest

from rap.errors import RapConfigError
from rap.trl.order import PromptOrder


def order(pool=10, active=None, batch=4, seed=3) -> PromptOrder:
    return PromptOrder(
        pool, range(pool) if active is None else active, batch=batch, seed=seed
    )


def test_order_deals_every_row_once_a_pass_and_never_twice_a_batch():
    dealt = order()
    batches = [dealt.batch_at(i) for i in range(50)]
    assert all(len(set(batch)) == 4 for batch in batches)
    flat = [row for batch in batches for row in batch]
    counts = [flat.count(row) for row in range(10)]
    assert set(counts) == {20}
    assert batches != [order(seed=4).batch_at(0)]


def steps(dealt: PromptOrder, numbers: range) -> dict[int, list[list[int]]]:
    """A trainer's life: batches looked ahead by one, spares, re-selections."""
    found = {}
    for i in numbers:
        found[i] = [dealt.batch_at(i)]
        dealt.batch_at(i + 1)
        if i % 5 == 4:
            found[i].append(dealt.spare(2, avoid=found[i][0]))
        if i % 7 == 6:
            dealt.replace(range(i % 3, 10 - i % 2))
    return found


@pytest.mark.parametrize("cut", [1, 5, 7, 23])
def test_order_restored_from_json_goes_on_the_same(cut):
    unbroken = steps(order(), range(30))
    killed = order()
    steps(killed, range(cut))
    saved = json.dumps(killed.state())
    steps(killed, range(cut, cut + 2))  # lost: after the checkpoint
    resumed = order()
    resumed.load(json.loads(saved))
    assert [resumed.batch_at(i) for i in range(cut)] == [unbroken[i][0] for i in range(cut)]
    assert steps(resumed, range(cut, 30)) == {i: unbroken[i] for i in range(cut, 30)}


def test_order_replace_keeps_the_turn_of_those_that_stay():
    dealt = order(pool=12, active=range(8), batch=2)
    first = set(dealt.batch_at(0)) | set(dealt.batch_at(1))
    assert dealt.replace([*range(4), 8, 9, 10]) == (3, 4)
    rest = [row for i in range(2, 20) for row in dealt.batch_at(i)]
    due = ({*range(4)} - first) | {8, 9, 10}
    assert set(rest[: len(due)]) == due
    assert set(rest) == {*range(4), 8, 9, 10}


def test_order_spares_avoid_the_batch_and_run_out():
    dealt = order(pool=6, batch=4)
    batch = dealt.batch_at(0)
    spare = dealt.spare(5, avoid=batch)
    assert len(spare) == 2 and not set(spare) & set(batch)
    assert dealt.spare(3, avoid=range(6)) == []


def test_order_refuses_by_name():
    with pytest.raises(RapConfigError, match="3 prompts are selected.* takes 4"):
        order(active=range(3))
    with pytest.raises(RapConfigError, match="rows 2 to 10 of a pool of 10"):
        order(active=range(2, 11))
    with pytest.raises(RapConfigError, match="seed = 3, this run has 4"):
        order(seed=4).load(order().state())
    with pytest.raises(RapConfigError, match="batch = 4, this run has 2"):
        order(batch=2).load(order().state())
