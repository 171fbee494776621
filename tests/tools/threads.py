"""Many Python threads in the kernels at once, under ThreadSanitizer: `make tsan`.

Each has its own arrays, some share them; the pool has one owner at a time, the others work
alone. Answers are compared with those of one thread.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

import rap
from rap import _C

ROUNDS = int(sys.argv[1]) if len(sys.argv) > 1 else 20


def calls() -> dict[str, Callable[[int], bytes]]:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 12, 9000)).astype(np.float32)
    w = rng.normal(size=(700, 64)).astype(np.float16)
    h = rng.normal(size=(40, 64)).astype(np.float16)
    q = rng.normal(size=(4, 150, 16)).astype(np.float32)
    cu, start = np.array([0, 60, 150]), np.array([20, 30])
    d, gain = rng.integers(0, 6, 70_000) / 5, rng.random(70_000)
    return {
        "cde": lambda n: rap.cde(x, y, threads=n).js.tobytes(),
        "linear_cde": lambda n: rap.linear_cde(h, h[::-1], w, threads=n).js.tobytes(),
        "ace": lambda n: rap.ace(
            q, q, response_start=start, cu_seqlens=cu, threads=n
        ).log_psi.tobytes(),
        "drm": lambda n: rap.drm(d, 20_000, gain=gain, threads=n).tobytes(),
    }


def main() -> None:
    made = calls()
    want = {name: call(1) for name, call in made.items()}

    def work(number: int) -> None:
        for at in range(ROUNDS):
            name = list(made)[(number + at) % len(made)]
            assert made[name](1 + (number + at) % 4) == want[name], name

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    print(f"{6 * ROUNDS} calls in 6 threads, kernels {_C.isa()}: the same bytes")


main()
