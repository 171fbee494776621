"""Calls without end: Python's blocks, the memory of the process, its open files stay flat.

    python tests/tools/leaks.py 100000      # make leaks: calls of each kind

Small arrays, errors too. After a tenth of the calls as warm-up, what is there is noted, and
again at the end.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable

import numpy as np

import rap
from rap import _C

BLOCKS, KILOBYTES = 300, 2048
"""Of all calls together: less than a block in three hundred calls at 10^5."""


def calls() -> dict[str, Callable[[], object]]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 40)).astype(np.float32)
    w = rng.normal(size=(30, 40)).astype(np.float32)
    q = rng.normal(size=(2, 12, 8)).astype(np.float32)
    d = rng.random(50)
    cu, start = np.array([0, 5, 12]), np.array([1, 2])

    def refused(call: Callable[[], object]) -> Callable[[], None]:
        def tried() -> None:
            with contextlib.suppress(TypeError, rap.RapError):
                call()
                raise AssertionError("not refused")

        return tried

    return {
        "cde": lambda: rap.cde(x, x[::-1], targets=[1, 2]),
        "cde means": lambda: rap.cde(x, x, cu_seqlens=[0, 2], weights=[1, 2]),
        "linear_cde": lambda: rap.linear_cde(x, x, w),
        "ace": lambda: rap.ace(q, q, response_start=3),
        "ace packed": lambda: rap.ace(q, q, response_start=start, cu_seqlens=cu),
        "drm": lambda: rap.drm(d, 9, gain=d, eligible=d > 0.2),
        "isa": lambda: (_C.isa(), _C.isa_names()),
        "cde refused": refused(lambda: rap.cde(x, x[:, :3])),
        "cde of objects": refused(lambda: rap.cde(x.astype(object), x)),
        "ace refused": refused(lambda: rap.ace(q, q, response_start=99)),
        "drm refused": refused(lambda: rap.drm(d[None], 1)),
    }


def held() -> tuple[int, int, int]:
    """(blocks of Python, KiB of the process, open files)"""
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[1])
    return sys.getallocatedblocks(), pages * 4, len(os.listdir("/proc/self/fd"))


def main(count: int) -> None:
    for name, call in calls().items():
        for _ in range(count // 10 + 100):
            call()
        before = held()
        for _ in range(count):
            call()
        blocks, kilobytes, files = (b - a for a, b in zip(before, held(), strict=True))
        print(
            f"{name:16} {count} calls: {blocks:+} blocks {kilobytes:+} KiB {files:+} files"
        )
        assert blocks < BLOCKS and kilobytes < KILOBYTES and files == 0, name


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
