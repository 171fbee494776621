"""The device, its ceilings, and how calls on it are timed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import torch

from .report import say

DEV = os.environ.get("DEV", "cuda")
GPU = DEV == "cuda"
SLEEP = 2_000_000  # cycles, about 1 ms: the host gets ahead of the device
ceilings: dict[str, float] = {}
"""bytes/ms and FLOP/ms that a copy and a product reach here."""
_flush: list[torch.Tensor] = []


def sync() -> None:
    if GPU:
        torch.cuda.synchronize()


def normal(
    *shape: int, seed: int = 0, std: float = 1.0, dtype: torch.dtype = torch.bfloat16
) -> torch.Tensor:
    """Random numbers on the device, from a seed."""
    g = torch.Generator(DEV).manual_seed(seed)
    return (torch.randn(*shape, generator=g, device=DEV) * std).to(dtype)


def device_ms(call: Callable[[], Any], repeats: int = 12) -> float:
    """Median milliseconds between two events, the L2 cache overwritten before each; the
    launches wait behind a sleeping kernel, so that what the host takes does not count. On
    the CPU the wall time of one call."""
    if not GPU:
        return wall_ms(call, 1)
    if not _flush:
        _flush.append(torch.empty(512 << 20, dtype=torch.uint8, device=DEV))
    found = []
    for _ in range(repeats + 2):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in "ab")
        _flush[0].zero_()
        torch.cuda._sleep(SLEEP)
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize()
        found.append(begin.elapsed_time(end))
    return float(torch.tensor(found[2:]).median())


def wall_ms(call: Callable[[], Any], repeats: int = 5) -> float:
    """Milliseconds a call as the caller waits for it, one after the other."""
    call()
    sync()
    begin = time.perf_counter()
    for _ in range(repeats):
        call()
    sync()
    return 1e3 * (time.perf_counter() - begin) / repeats


def launches(call: Callable[[], Any]) -> int | None:
    """Kernels that one call runs, counted by CUPTI; None where it cannot count."""
    if not GPU:
        return None
    from torch.profiler import ProfilerActivity, profile

    call()
    sync()
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        call()
        sync()
    kinds = [e for e in found.events() if "Memcpy" not in e.name and "Memset" not in e.name]
    return len([e for e in kinds if e.device_type == torch.autograd.DeviceType.CUDA])


def measure_ceilings() -> None:
    """What a copy of 2 GiB and a bfloat16 product of 8,192^3 reach."""
    n, side = (2 << 30, 8192) if GPU else (1 << 20, 64)
    x = torch.empty(n, dtype=torch.uint8, device=DEV)
    y = torch.empty_like(x)
    a, b = normal(side, side), normal(side, side, seed=1)
    ceilings["bytes"] = 2 * n / device_ms(lambda: y.copy_(x))
    ceilings["flop"] = 2 * side**3 / device_ms(lambda: a @ b)
    say(
        "environment", "ceilings", copy_TB_s=ceilings["bytes"] / 1e9,
        bfloat16_TFLOP_s=ceilings["flop"] / 1e9,
    )  # fmt: skip


def floor_ms(bytes_: float, flop: float) -> float | None:
    """The least time of a call by the ceilings; None before they are known."""
    if not ceilings:
        return None
    return max(bytes_ / ceilings["bytes"], flop / ceilings["flop"])
