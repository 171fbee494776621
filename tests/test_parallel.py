"""Threads, forks and signals around the C calls."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import rap


def run(code: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=1500,
        **options,
    )


def test_fault_40_a_forked_child_computes_too():
    """What a DataLoader worker is: the parent's pool has threads, the child has none."""
    done = run("""
        import os, warnings
        import numpy as np, rap
        warnings.simplefilter("ignore", DeprecationWarning)  # the point here
        x = np.random.default_rng(0).normal(size=(64, 20000)).astype(np.float32)
        want = rap.cde(x, x[::-1], threads=4).kl.tobytes()
        for _ in range(3):
            pid = os.fork()
            if pid == 0:
                same = rap.cde(x, x[::-1], threads=4).kl.tobytes() == want
                workers = len(os.listdir("/proc/self/task")) - 1
                os._exit(0 if same and workers == 3 else 1)
            assert os.waitpid(pid, 0)[1] == 0
        assert rap.cde(x, x[::-1], threads=4).kl.tobytes() == want
    """)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kernel", ["cde", "ace", "linear_cde", "drm"])
def test_fault_32_ctrl_c_is_obeyed_within_a_second(kernel):
    """SIGINT in the middle of a call that would take far longer."""
    call = {
        "cde": "rap.cde(x, x, threads=2)",
        "ace": "rap.ace(q, q, response_start=0, threads=2)",
        "linear_cde": "rap.linear_cde(q[0], q[0], w, threads=2)",
        "drm": "rap.drm(tied, d.size, gain=d, threads=1)",
    }[kernel]
    code = f"""
import time, signal, os, threading
import numpy as np, rap
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job started with & ignores it
x = np.broadcast_to(np.zeros((1, 200_000), np.float32), (60_000, 200_000))
q = np.broadcast_to(np.zeros((1, 12_000, 128), np.float32), (64, 12_000, 128))
w = np.broadcast_to(np.zeros((1, 128), np.float32), (3_000_000, 128))
d = np.random.default_rng(0).random(16_000_000 if {kernel == "drm"} else 1)
tied = np.full(d.size, 0.5)  # one bucket, sorted by gain alone
sent = []
def send():
    time.sleep({0.2 if kernel == "drm" else 0.7})
    sent.append(time.process_time())
    os.kill(os.getpid(), signal.SIGINT)
try:
    threading.Thread(target=send).start()
    {call}
    print("finished")
except KeyboardInterrupt:
    print(time.process_time() - sent[0])
rap.cde(x[:3, :100], x[:3, :100], threads=2)  # the pool is whole again
"""
    done = run(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() != "finished", "the call was too short to be interrupted"
    # a second of two threads: not of the clock, since the machine may be loaded
    assert float(done.stdout) < 2.0


@pytest.mark.parametrize("kernel", ["cde", "long ace", "long linear_cde"])
def test_the_gil_is_released(kernel):
    """Judged by the work, not by the bytes of one input."""
    x = np.broadcast_to(np.zeros((1, 100_000), np.float32), (2_000, 100_000))
    h = np.broadcast_to(np.zeros((1, 64), np.float32), (100_000, 64))
    q = np.zeros((1, 12_000, 1), np.float32)
    call = {
        "cde": lambda: rap.cde(x, x, threads=1),
        "long ace": lambda: rap.ace(q, q, response_start=0, threads=1),
        "long linear_cde": lambda: rap.linear_cde(h, h, h[:200], threads=1),
    }[kernel]
    ticks = 0
    done = threading.Event()

    def count() -> None:
        nonlocal ticks
        while not done.is_set():
            ticks += 1
            time.sleep(0.001)

    counter = threading.Thread(target=count)
    counter.start()
    call()
    done.set()
    counter.join()
    assert ticks > 10


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="reads /proc")
def test_signals_are_the_main_thread_s():
    """Workers block them all: a handler of Python's would never run in one, and a call of
    the system would fail with EINTR there."""
    done = run("""
        import os
        import numpy as np, rap
        before = set(os.listdir("/proc/self/task"))
        x = np.zeros((64, 20000), np.float32)
        rap.cde(x, x, threads=4)
        made = set(os.listdir("/proc/self/task")) - before
        assert len(made) == 3, made
        for task in made:
            with open(f"/proc/self/task/{task}/status") as lines:
                blocked = next(x.split()[1] for x in lines if x.startswith("SigBlk"))
            # all but SIGKILL, SIGSTOP and two of the C library's own (33, 34 or 32, 33)
            missing = ~int(blocked, 16) & (1 << 64) - 1
            assert bin(missing).count("1") <= 4 and missing & 0x7FFFFFFF == 0x40100, blocked
    """)
    assert done.returncode == 0, done.stderr


def test_fault_28_many_python_threads_at_once(rng):
    """One pool, many callers: whoever finds it busy works alone, with the same bits."""
    x = rng.normal(size=(16, 20_000)).astype(np.float32)
    q = rng.normal(size=(4, 200, 16)).astype(np.float32)
    want = (
        rap.cde(x, x[::-1]).kl.tobytes(),
        rap.ace(q, q, response_start=9).log_psi.tobytes(),
    )

    def work(_: int) -> bool:
        got = (
            rap.cde(x, x[::-1], threads=3).kl.tobytes(),
            rap.ace(q, q, response_start=9, threads=3).log_psi.tobytes(),
        )
        return got == want

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(work, range(60)))


def test_a_call_waits_for_its_workers(rng):
    """Their part of the answer is there when it returns."""
    x = rng.normal(size=(48, 60_000)).astype(np.float32)
    want = rap.cde(x, x[::-1], threads=1).kl.tobytes()
    for _ in range(40):
        assert rap.cde(x, x[::-1], threads=4).kl.tobytes() == want


def test_signal_handler_that_does_not_raise_lets_the_call_finish(rng):
    x = np.broadcast_to(rng.normal(size=(1, 100_000)).astype(np.float32), (4_000, 100_000))
    seen = []
    before = signal.signal(signal.SIGUSR1, lambda *_: seen.append(1))
    try:
        threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGUSR1)).start()
        assert rap.cde(x, x, threads=2).kl.shape == (4_000,)
    finally:
        signal.signal(signal.SIGUSR1, before)
    time.sleep(0.2)
    assert seen == [1]
