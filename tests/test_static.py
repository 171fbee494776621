"""Decoding with a cache of fixed size: the tokens of the growing one, compiled or not."""

from __future__ import annotations

import itertools
import logging
from functools import partial

import pytest
import torch
import torch._dynamo
from test_once import EIGHT, SLIDING, make
from tiny_models import NAMES

from rap.config import Sampling
from rap.model import static
from rap.model.rollouts import generate

SEEDS = [[3, 4], [5], [6, 7]]


def drawn(name: str, sampling: Sampling = EIGHT, **settings):
    """(completions, driver)"""
    driver, _, prompts = make(name, **settings)
    return list(itertools.chain(*generate(driver, prompts, SEEDS, sampling))), driver


def assert_same(found, expected) -> None:
    assert [c.token_ids for c in found] == [c.token_ids for c in expected]
    for a, b in zip(found, expected, strict=True):
        assert a.logp == pytest.approx(b.logp, abs=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_the_tokens_are_those_of_a_growing_cache(name, monkeypatch):
    steps = []

    def plain(forward):
        def step(**inputs):
            steps.append(tuple(inputs["input_ids"].shape))
            return forward(**inputs)

        return step

    monkeypatch.setattr(static, "COMPILER", plain)
    expected, before = drawn(name)
    found, driver = drawn(name, compile_decode=True)
    assert_same(found, expected)
    assert driver.counts.decoded_tokens == before.counts.decoded_tokens
    if name == SLIDING:  # its cache forgets tokens: it grows and is cut
        return
    assert set(steps) == {(8, 1)}  # five rows and three that do not count
    longest = max(c.n_sampled for c in found)
    assert len(steps) == longest - 1 and driver.counts.forwards == longest - 1 + 1


def test_tokens_so_far_are_penalised(monkeypatch):
    sampling = Sampling(max_new_tokens=8, repetition_penalty=1.5, top_k=5)
    monkeypatch.setattr(static, "COMPILER", lambda forward: forward)
    assert_same(
        drawn("qwen2_5_vl", sampling, compile_decode=True)[0],
        drawn("qwen2_5_vl", sampling)[0],
    )


def test_a_shape_is_compiled_once_and_whole(monkeypatch):
    compiler = partial(torch.compile, backend="eager", dynamic=False, fullgraph=True)
    monkeypatch.setattr(static, "COMPILER", compiler)
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    expected, _ = drawn("qwen2_5_vl")
    driver, _, prompts = make("qwen2_5_vl", compile_decode=True)
    for _ in range(2):  # the second time in the memory of the first
        found = generate(driver, prompts, SEEDS, EIGHT)
        assert_same(list(itertools.chain(*found)), expected)
        assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"] and len(driver.pool.fixed) == 1


@pytest.mark.parametrize("late", [False, True])
def test_what_cannot_be_compiled_steps_as_it_is(monkeypatch, caplog, late):
    def broken(forward):
        def step(**inputs):
            steps.append(0)
            if late and len(steps) < 3:
                return forward(**inputs)
            raise torch._dynamo.exc.Unsupported("no such operation")

        return step

    steps: list[int] = []
    monkeypatch.setattr(static, "COMPILER", broken)
    expected, _ = drawn("llava")
    with caplog.at_level(logging.WARNING, logger="rap"):
        found, _ = drawn("llava", compile_decode=True)
    assert_same(found, expected)
    said = [r.message for r in caplog.records if "uncompiled" in r.message]
    assert len(said) == 1 and len(steps) == (3 if late else 1)


def test_tensors_of_few_shapes_are_kept():
    class Layer:
        keys = values = torch.ones(1, 2, 3, 4)

    class Growing:
        layers = (Layer(),)

    pool = static.Pool()
    mask, following = torch.ones(1, 3, dtype=torch.int64), torch.tensor([3])
    made = [
        pool.begin(Growing(), mask, following, 1, limit)
        for limit in (1, 300, 600, 900, 300, 1)
    ]
    assert list(pool.fixed) == [(1, 1024), (1, 512), (1, 256)]
    assert made[1] is made[4] and made[0] is not made[5]
    layer = made[5].layers[0]
    assert layer.keys.shape == (1, 2, 256, 4) and int(layer.cumulative_length) == 3
    assert layer.keys[:, :, :3].eq(1).all() and layer.keys[:, :, 3:].eq(0).all()


def test_rows_are_filled_up_to_a_power_of_two():
    assert static.rows_for([5]) == [5] and static.rows_for([1, 2]) == [1, 2]
    assert static.rows_for([1, 2, 2]) == [1, 2, 2, 1]
    assert len(static.rows_for([7] * 9)) == 16
