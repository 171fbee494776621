"""drm against its specification: exact, so every index must agree."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import rap
from rap import _C, reference

ISAS = _C.isa_names()


@settings(max_examples=200, derandomize=True, deadline=None)
@given(st.data())
def test_any_scores(data):
    n = data.draw(st.integers(0, 60))
    value = st.sampled_from(
        [
            0.0,
            -0.0,
            1.0,
            0.2,
            0.4,
            0.6,
            0.8,
            5e-324,
            1 - 2**-53,
            np.nan,
            np.inf,
            -np.inf,
            2.0,
        ]
    )
    d = np.array(data.draw(st.lists(value, min_size=n, max_size=n)))
    g = np.array(data.draw(st.lists(value, min_size=n, max_size=n)))
    e = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)), bool)
    k = data.draw(st.integers(0, n + 2))
    np.testing.assert_array_equal(
        rap.drm(d, k, eligible=e, gain=g), reference.drm(d, k, eligible=e, gain=g)
    )
    np.testing.assert_array_equal(
        rap.drm(d.astype(np.float32), k), reference.drm(d.astype(np.float32), k)
    )


@pytest.mark.parametrize("isa", ISAS, indirect=True)
@pytest.mark.parametrize("kind", ["uniform", "counts", "equal", "tiny"])
def test_more_than_one_chunk(isa, kind, rng):
    n = (1 << 20) + 4099
    d = {
        "uniform": lambda: rng.random(n),
        "counts": lambda: rng.integers(0, 6, n) / 5,
        "equal": lambda: np.full(n, 0.5),
        "tiny": lambda: rng.random(n) * 1e-300,
    }[kind]()
    g = rng.integers(-5, 6, n) / 5
    d[rng.integers(0, n, 1000)] = np.nan
    g[rng.integers(0, n, 1000)] = np.nan
    for k in (1, 777, n // 3, n):
        truth = reference.drm(d, k, gain=g)
        for threads in (1, 3):
            np.testing.assert_array_equal(rap.drm(d, k, gain=g, threads=threads), truth)
    np.testing.assert_array_equal(rap.drm(d, 5000), reference.drm(d, 5000))


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_a_sample_that_misleads_costs_time_only(kind, rng):
    """The kernel looks at every step-th score first; here these are the only high ones,
    then the only low ones."""
    n = 1 << 20
    step = n // (n // 16 + 1)
    for seen, others in ((0.99, 0.1), (0.01, 0.9)):
        d = (rng.random(n) * 0.1 + others - 0.1).astype(kind)
        d[::step] = seen
        truth = reference.drm(d, n // 2)
        for k in (10, n // 2):
            np.testing.assert_array_equal(rap.drm(d, k, threads=2), truth[:k])


def test_fault_43_nothing_to_choose_from():
    for d in ([], [0.0, 1.0], [np.nan, np.nan]):
        assert rap.drm(np.array(d), 3).shape == (0,)
    assert rap.drm(np.array([0.5, 0.5]), 0).shape == (0,)
    np.testing.assert_array_equal(rap.drm(np.array([0.5, 0.5, 0.6]), 9), [2, 0, 1])


def test_fault_29_flushed_subnormals_change_nothing(rng):
    """torch.set_flush_denormal holds for the threads made after it: workers may disagree
    with their caller about whether 1e-310 is a candidate."""
    code = """
import numpy as np, torch, rap
from rap import reference
d = np.full(1 << 22, 1e-310)
d[::3] = 0.5
g = np.where(np.arange(d.size) % 2, 5e-324, -0.0)
rap.drm(d, 10, threads=2)  # the workers exist before the mode changes
torch.set_flush_denormal(True)
for threads in (1, 2):
    got = rap.drm(d, 3_000_000, gain=g, threads=threads)
    torch.set_flush_denormal(False)
    assert np.array_equal(got, reference.drm(d, 3_000_000, gain=g))
    torch.set_flush_denormal(True)
q = np.random.default_rng(0).normal(size=(2, 300, 8)).astype(np.float32) * 9
one, two = (rap.ace(q, q, response_start=9, threads=t, scale=1.0) for t in (1, 2))
assert one.log_psi_columns.tobytes() == two.log_psi_columns.tobytes()
assert float(torch.tensor(1e-310, dtype=torch.float64) * 1) == 0  # the mode is as it was
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_fault_28_scores_that_change_during_the_call():
    """Refused or answered, never written past the end."""
    code = """
import threading, numpy as np, rap
d = np.random.default_rng(0).random(1 << 21)
other, stop = np.random.default_rng(1).random(1 << 21), threading.Event()
def change():
    while not stop.is_set():
        d[:] = other; d[:] = 0.25; d[::2] = 0.75
thread = threading.Thread(target=change); thread.start()
refused = 0
for _ in range(15):
    try:
        got = rap.drm(d, 900_000, threads=2)
        assert ((got >= 0) & (got < d.size)).all()
    except rap.RapInputError as error:
        assert "changed" in str(error)
        refused += 1
stop.set(); thread.join()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_masks_may_hold_any_true_byte():
    two = np.array([0, 2, 255, 1], np.uint8).view(bool)
    assert rap.drm(np.full(4, 0.5), 4, eligible=two).tolist() == [1, 2, 3]
    q = np.zeros((1, 4, 8), np.float32)
    got = rap.ace(q, q, response_start=3, image_mask=two, column_mask=two, min_rows=1)
    assert got.image_mass[0] == pytest.approx(0.75) and got.position[0] == 3


def test_frameworks_and_errors():
    d = torch.tensor([0.1, 0.9, 0.5])
    answer = rap.drm(d, 2)
    assert isinstance(answer, torch.Tensor) and answer.tolist() == [1, 2]
    for bad in (-1, True, 1.5, "3"):
        with pytest.raises(rap.RapConfigError, match="k ="):
            rap.drm(d, bad)
    with pytest.raises(rap.RapInputError, match="gain"):
        rap.drm(d, 1, gain=torch.zeros(2))
    with pytest.raises(rap.RapInputError, match="dimensions"):
        rap.drm(torch.zeros(2, 2), 1)
    with pytest.raises(rap.RapInputError, match="booleans"):
        rap.drm(d, 1, eligible=np.array([1, 0, 1]))
    with pytest.raises(TypeError, match="objects"):
        rap.drm(np.array([0.5, None, "x"], object), 1)
