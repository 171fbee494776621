"""What this machine can do at best on one thread: the yardsticks of the other pieces."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import torch

import rap
from benchmarks.common import Row, row, seconds, shape_of


def best(call: Callable[[], object], repeats: int = 7) -> float:
    call()
    return min(seconds(call) for _ in range(repeats))


READERS: dict[str, Callable[[torch.Tensor], object]] = {
    "torch.sum": lambda x: x.sum(),
    "torch.max": lambda x: x.max(),
    "np.max": lambda x: x.numpy().max(),
    "np.max of int64": lambda x: x.numpy().view(np.int64).max(),
    "np.bitwise_or.reduce": lambda x: np.bitwise_or.reduce(x.numpy().view(np.int64)),
}


@cache
def fastest_reader() -> str:
    """Which of READERS reads a large float32 tensor fastest here."""
    x = torch.zeros(1 << 25)  # 128 MiB
    return min(READERS, key=lambda name: best(lambda: READERS[name](x), 3))


def read_all(*tensors: torch.Tensor) -> None:
    """Reads every byte of contiguous float32 tensors once, as fast as is known here."""
    for x in tensors:
        READERS[fastest_reader()](x.view(-1))


def run(quick: bool) -> list[Row]:
    out = []

    def limit(what: str, unit: str, value: float, shape: str) -> None:
        out.append(row("limits", what, shape, "", unit, value, None))

    x = torch.zeros(1 << (25 if quick else 26))
    rate = x.nbytes / best(lambda: read_all(x)) / 1e9
    limit(f"memory read ({fastest_reader()})", "GB/s", rate, shape_of(MB=x.nbytes >> 20))
    vocab, rows = 1024, 20_000
    line = np.linspace(-4, 4, vocab, dtype=np.float32)
    l1 = np.broadcast_to(line, (rows, vocab))  # every row is the same 4 KiB: in L1
    l0 = np.broadcast_to(line[::-1].copy(), (rows, vocab))
    took = best(lambda: rap.cde(l1, l0, want=("kl", "rkl"), threads=1))
    rate = 2 * rows * vocab / took / 1e9
    limit("exponentials of cde KL in L1", "Gexp/s", rate, shape_of(T=rows, V=vocab))
    n = 1024 if quick else 2048
    for dtype in (torch.float32, torch.bfloat16):
        a, b = torch.rand(n, n).to(dtype), torch.rand(n, n).to(dtype)
        rate = 2 * n**3 / best(lambda a=a, b=b: torch.mm(a, b), 3) / 1e9
        limit(f"torch.mm {str(dtype)[6:]}", "GFLOP/s", rate, shape_of(n=n))
    return out
