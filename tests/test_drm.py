"""drm against its specification: exact, so every index must agree."""

from __future__ import annotations

import subprocess
import sys
import timeit

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
            -0.3,
            -0.7,
            2.0,
        ]
    )
    d = np.array(data.draw(st.lists(value, min_size=n, max_size=n)))
    g = np.array(data.draw(st.lists(value, min_size=n, max_size=n)))
    e = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)), bool)
    k = data.draw(st.integers(0, n + 2))
    for scores, options in ((d, {"eligible": e, "gain": g}), (d.astype(np.float32), {})):
        shares = (scores > 0) & (scores < 1)
        if k and (scores == 2).any() and not shares.any():
            with pytest.raises(rap.RapInputError, match="up to 2 .* percentages"):
                rap.drm(scores, k, **options)
            continue
        np.testing.assert_array_equal(
            rap.drm(scores, k, **options), reference.drm(scores, k, **options)
        )


def test_percentages_are_refused():
    """Of 0 to 100, too; some values above 1 beside shares are no candidates, as before."""
    for d in ([0, 20, 100], [100.0, 0.0], torch.tensor([80, 40])):
        with pytest.raises(rap.RapInputError, match="divide percentages by 100"):
            rap.drm(d, 2)
    assert rap.drm([0.0, 1.0, np.inf], 2).size == 0
    assert rap.drm([0.5, 30.0], 2).tolist() == [0]
    assert rap.drm([30.0], 0).size == 0


@pytest.mark.parametrize("isa", ISAS, indirect=True)
@pytest.mark.parametrize("kind", ["uniform", "counts", "equal", "tiny", "near", "dense"])
def test_more_than_one_chunk(isa, kind, rng):
    n = (1 << 20) + 4099
    d = {
        "uniform": lambda: rng.random(n),
        "counts": lambda: rng.integers(0, 6, n) / 5,
        "equal": lambda: np.full(n, 0.5),
        "tiny": lambda: rng.random(n) * 1e-300,
        "near": lambda: np.where(rng.random(n) < 0.01, np.nextafter(0.5, 1), 0.5),
        "dense": lambda: np.ldexp(  # the last bits, of any bucket
            1 + rng.integers(0, 1 << 16, n) * 2.0**-52, -rng.integers(1, 17, n)
        ),
    }[kind]()
    g = rng.integers(-5, 6, n) / 5
    d[rng.integers(0, n, 1000)] = np.nan
    g[rng.integers(0, n, 1000)] = np.nan
    for k in (1, 777, n // 3, n):
        truth = reference.drm(d, k, gain=g)
        for threads in (1, 3):
            np.testing.assert_array_equal(rap.drm(d, k, gain=g, threads=threads), truth)
    for x in (d, d.astype(np.float32)):
        np.testing.assert_array_equal(rap.drm(x, 5000), reference.drm(x, 5000))


def test_ranks_that_no_sample_sees_are_halved_again_and_again(rng):
    """Neighbouring gains of one difficulty; where the kernel takes its sample of them there
    is no candidate, so it cuts their range in the middle, down to single gains."""
    n = 1 << 18
    d = np.full(n, 0.5)
    with np.errstate(over="ignore"):
        places = np.arange(1, 16384 + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    d[[int(place) * n >> 64 for place in places]] = 1.0
    steps = np.float64(0.75).view(np.int64) + rng.integers(0, 64, n)
    gain = steps.view(np.float64)
    whole = reference.drm(d, n // 8, gain=gain)
    for k in (5000, n // 8):
        np.testing.assert_array_equal(rap.drm(d, k, gain=gain), whole[:k])
    # nearly all have one gain, which then is once the least that is left
    for heavy in range(24, 41):
        most = np.where(rng.random(n) < 0.9, heavy, rng.integers(0, 64, n))
        gain = (np.float64(0.75).view(np.int64) + most).view(np.float64)
        whole = reference.drm(d, n // 4, gain=gain)
        np.testing.assert_array_equal(rap.drm(d, n // 4, gain=gain), whole)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_a_sample_that_misleads_costs_time_only(kind, rng):
    """The kernel looks at every step-th score first; here these are the only high ones,
    then the only low ones."""
    n = 1 << 20
    step = n // (16384 + 1)  # RAP_DRM_SAMPLE
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


def test_memory_is_bounded_whatever_the_scores():
    """At most 1.5x the scores' bytes, the answer included, for 9 % of the samples: address
    space, which is no less than what is resident, of a forked child a case."""
    code = """
import os, numpy as np, rap
n = 4_000_000
rng = np.random.default_rng(0)
even, half = rng.random(n, dtype=np.float32), np.full(n, 0.5, np.float32)
near = np.where(even < 0.5, half, np.nextafter(half, np.float32(1)))
mixed = rng.choice(np.array([-np.inf, np.nan, 0.0, 0.5, 1.0], np.float32), n)
cases = {
    "even": (even, None), "ties": (half, None), "ties, gain": (half, even),
    "ties, gain of two values": (half, near), "two values": (near, None),
    "one bucket": (half + even / 20000, None), "tiny": (even.astype(float) * 1e-300, None),
    "pass rates": (np.ceil(even * 5) / 5, None), "mixed": (mixed, even),
}
def status(field):
    with open("/proc/self/status") as lines:
        return next(1024 * int(x.split()[1]) for x in lines if x.startswith(field))
for name, (d, gain) in cases.items():
    for threads in (1, 8):
        child = os.fork()
        if child == 0:
            rap.drm(even[:300_000].astype(float), 100_000, threads=threads)  # their stacks
            before = status("VmSize")
            rap.drm(d, n * 9 // 100, gain=gain, threads=threads)
            most = (status("VmPeak") - before) / (d.nbytes + getattr(gain, "nbytes", 0))
            if most > 1.5:
                print(f"{name}, {threads} threads: {most:.2f}x", flush=True)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "", done.stdout + done.stderr


def test_a_thread_with_a_small_stack_is_enough():
    code = """
import threading, numpy as np, rap
x = np.random.default_rng(0).random(2 << 20)
g = np.random.default_rng(1).integers(0, 3, x.size) / 3
threading.stack_size(128 << 10)
found = []
def call():
    found.append(len(rap.drm(x, x.size // 2, threads=1)))
    found.append(len(rap.drm(np.ceil(x * 5) / 5, x.size // 2, gain=g, threads=1)))
thread = threading.Thread(target=call)
thread.start()
thread.join()
assert found == [x.size // 2] * 2, found
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, (done.returncode, done.stderr)


def test_fault_32_a_signal_ends_the_call_soon():
    """Counted in processor time of the process, which other work does not add to."""
    code = """
import signal, time, numpy as np, rap
n = 12_000_000
d, gain = np.full(n, 0.5), np.random.default_rng(0).random(n)
def stop(number, frame):
    raise KeyboardInterrupt
signal.signal(signal.SIGPROF, stop)
stopped = 0
for delay in (0.1, 0.2, 0.3, 0.4, 0.5):
    signal.setitimer(signal.ITIMER_PROF, delay)
    start = time.process_time()
    try:
        rap.drm(d, n, gain=gain, threads=1)
    except KeyboardInterrupt:
        print(delay, round(time.process_time() - start - delay, 3))
        stopped += 1
    signal.setitimer(signal.ITIMER_PROF, 0)
assert stopped
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    late = [float(line.split()[-1]) for line in done.stdout.splitlines()]
    assert max(late) < 0.15, done.stdout


def test_a_small_call_walks_no_large_tables():
    def least(call):
        return min(timeit.repeat(call, number=20, repeat=50))

    nothing, two = np.empty(0), np.array([0.25, 0.5])
    assert least(lambda: rap.drm(two, 1)) < 8 * least(lambda: rap.drm(nothing, 1))


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


def test_fault_28_scores_that_fall_during_the_call_are_told():
    """Fewer are found than were counted: places would stay empty."""
    code = """
import signal, time, numpy as np, rap
n = 1 << 25
old = np.random.default_rng(0).random(n, np.float32)
d, refused = old.copy(), 0
begin = time.process_time()
rap.drm(d, n // 4, threads=1)
whole = time.process_time() - begin
def change(number, frame):
    d[:] = 0.25
signal.signal(signal.SIGVTALRM, change)
for share in range(1, 20):
    d[:] = old
    signal.setitimer(signal.ITIMER_VIRTUAL, whole * share / 20)
    try:
        rap.drm(d, n // 4, threads=1)
    except rap.RapInputError as error:
        assert "changed" in str(error)
        refused += 1
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    if refused:
        break
assert refused
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_masks_may_hold_any_true_byte():
    two = np.array([0, 2, 255, 1], np.uint8).view(bool)
    assert rap.drm(np.full(4, 0.5), 4, eligible=two).tolist() == [1, 2, 3]
    q = np.zeros((1, 4, 8), np.float32)
    got = rap.ace(q, q, response_start=3, image_mask=two, column_mask=two, min_rows=1)
    assert got.image_mass[0] == pytest.approx(0.75) and got.position[0] == 3


def test_masks_and_gains_of_other_lengths():
    d = np.full(6, 0.5)
    for n in (5, 7):
        with pytest.raises(rap.RapInputError, match="eligible"):
            rap.drm(d, 1, eligible=np.ones(n, bool))
        with pytest.raises(rap.RapInputError, match="gain"):
            rap.drm(d, 1, gain=np.ones(n))


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
