"""Samples -> score table with a real (tiny, random) Qwen2.5-VL."""

from __future__ import annotations

import itertools
import math
import threading
import time

import pytest

torch = pytest.importorskip("torch")

from rap.scoring import ahead, can_be_kept, in_halves, significant

# ---- pieces without a model ---------------------------------------------------


def test_significant_rounds_to_twelve_bits(rng):
    for x in [*rng.normal(size=200), 1.0, -0.75, 3e-300, 1e300, 2**-1040]:
        y = significant(float(x))
        mantissa, _ = math.frexp(y)
        assert (mantissa * 4096).is_integer()
        assert abs(y - x) <= abs(x) * 2**-12
        assert significant(y) == y
        assert significant(-float(x)) == -y
    for x in (0.0, math.inf, -math.inf):
        assert significant(x) == x
    assert math.isnan(significant(math.nan))


def test_can_be_kept_is_every_case_of_the_rules():
    """Against the definition, over all counts up to 4 completions an arm."""
    for m1, m0 in itertools.product(range(1, 5), repeat=2):
        for c1, c0 in itertools.product(range(m1 + 1), range(m0 + 1)):
            for limit, text in [(None, "0"), (0.5, "0.5"), (0.1, "0.1"), (-0.25, "-0.25")]:
                from fractions import Fraction

                gain = Fraction(c1, m1) - Fraction(c0, m0)
                difficulty = 1 - Fraction(c1, m1)
                expected = c1 > 0 and (gain > Fraction(text) or 0 < difficulty < 1)
                assert can_be_kept(c1, m1, c0, m0, limit) == expected


def test_fault_30_out_of_memory_halves_the_batch():
    sizes = []

    def run(items):
        sizes.append(len(items))
        if len(items) > 3 or 7 in items:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return [i * 10 for i in items]

    got = in_halves(run, list(range(10)))
    assert [g for g in got if isinstance(g, int)] == [0, 10, 20, 30, 40, 50, 60, 80, 90]
    assert got[7].code == "oom" and "2 GiB" in got[7].message
    assert sizes[0] == 10 and max(sizes[1:]) == 5


def test_one_item_that_spoils_a_batch_is_found():
    def run(items):
        if 5 in items:
            raise ValueError("image features and image tokens do not match\nlong story")
        return list(items)

    got = in_halves(run, list(range(8)))
    assert got[5].code == "model_error"
    assert got[5].message == "ValueError: image features and image tokens do not match"
    assert [g for i, g in enumerate(got) if i != 5] == [0, 1, 2, 3, 4, 6, 7]


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, TypeError])
def test_other_errors_pass_through_halving(error):
    def run(items):
        raise error

    with pytest.raises(error):
        in_halves(run, [1, 2])


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_ahead_keeps_order_and_bounds_what_waits(workers):
    made, taken, most = 0, 0, 0
    lock = threading.Lock()

    def prepare(i):
        nonlocal made, most
        time.sleep(0.001 * (i % 3))
        with lock:
            made += 1
            most = max(most, made - taken)
        return i

    got = []
    for item in ahead(prepare, range(40), workers=workers, depth=5):
        got.append(item)
        taken += 1
        time.sleep(0.0005)
    assert got == list(range(40))
    assert most <= 6


def test_ahead_passes_errors_on_and_leaves_no_thread():
    def prepare(i):
        if i == 3:
            raise KeyError("broken")
        return i

    before = threading.active_count()
    jobs = ahead(prepare, range(100), workers=2, depth=4)
    with pytest.raises(KeyError):
        list(jobs)
    jobs = ahead(prepare, range(3), workers=2, depth=2)
    next(jobs)
    jobs.close()
    assert threading.active_count() == before
