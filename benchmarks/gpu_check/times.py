"""Times against rivals: milliseconds on the device and on the wall, the share of the floor,
launches. A rival that is not installed or fails is named with its reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import rap

from .correct import heads_of
from .device import DEV, GPU, device_ms, floor_ms, launches, normal, wall_ms
from .report import say

Call = Callable[[], Any]


def row(name: str, ours: Call, rivals: dict[str, Call], bytes_: float, flop: float) -> None:
    """bytes_, flop: the least that the task needs of memory and of the tensor cores."""
    ms, floor = device_ms(ours), floor_ms(bytes_, flop)
    found: dict[str, Any] = {}
    for rival, call in rivals.items():
        try:
            call()
            found[rival] = round(device_ms(call) / ms, 2)
        except Exception as error:  # whatever somebody else's package says
            found[rival] = f"{type(error).__name__}: {str(error)[:60]}"
    say(
        "times", name, ms=ms, wall_ms=wall_ms(ours),
        of_floor=round(floor / ms, 3) if floor else None, launches=launches(ours), **found,
    )  # fmt: skip


def kl(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    a, b = torch.log_softmax(a.float(), -1), torch.log_softmax(b.float(), -1)
    return (a.exp() * (a - b)).sum(-1)


def js(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    a, b = torch.log_softmax(a.float(), -1), torch.log_softmax(b.float(), -1)
    m = torch.logaddexp(a, b) - 0.6931472
    return (a.exp() * (a - m) + b.exp() * (b - m)).sum(-1) / 2


FORMULAS = {"kl": kl, "js": js}


def compiled(f: Call) -> Call:
    return torch.compile(f, dynamic=False) if GPU else f


def cde(rows: int, vocab: int) -> None:
    l1, l0 = (normal(rows, vocab, seed=s, std=2.5) for s in (0, 1))
    for name, f in FORMULAS.items():
        fast = compiled(f)
        row(
            f"cde {name} T={rows} V={vocab}",
            lambda n=name: rap.cde(l1, l0, want=n),
            {"eager": lambda f=f: f(l1, l0), "compile": lambda f=fast: f(l1, l0)},
            bytes_=4 * rows * vocab * (1 if name == "kl" else 2), flop=0,
        )  # fmt: skip
    row(
        f"cde everything T={rows} V={vocab}", lambda: rap.cde(l1, l0), {},
        bytes_=8 * rows * vocab, flop=0,
    )  # fmt: skip


def liger(h1: torch.Tensor, h0: torch.Tensor, w: torch.Tensor) -> Call:
    """Its fused Jensen-Shannon divergence, which also makes gradients."""
    from liger_kernel.transformers import LigerFusedLinearJSD

    jsd = LigerFusedLinearJSD(jsd_beta=0.5)
    return lambda: jsd(h1, w, h0, w)


def linear(vocab: int, hidden: int) -> None:
    rows = 512 if GPU else 5
    h1, h0 = normal(rows, hidden), normal(rows, hidden, seed=1)
    w, both = normal(vocab, hidden, seed=2, std=3 * hidden**-0.5), torch.cat([h1, h0])
    flop = 4.0 * rows * vocab * hidden
    for name, f in FORMULAS.items():
        fast = compiled(f)
        rivals: dict[str, Call] = {
            "stacked product only": lambda: both @ w.T,
            "product + rap.cde": lambda n=name: rap.cde(*(both @ w.T).split(rows), want=n),
            "product + compile": lambda f=fast: f(h1 @ w.T, h0 @ w.T),
        }
        if name == "js":
            rivals["Liger, with gradients"] = lambda: liger(h1, h0, w)()
        row(
            f"linear_cde {name} T={rows} E={hidden} V={vocab}",
            lambda n=name: rap.linear_cde(h1, h0, w, want=n), rivals, bytes_=0, flop=flop,
        )  # fmt: skip
    ids = torch.zeros(rows, dtype=torch.int64, device=DEV)
    row(
        f"linear_cde logp1 alone T={rows}",
        lambda: rap.linear_cde(h1, h0, w, want="logp1", targets=ids),
        {"log_softmax": lambda: torch.log_softmax((h1 @ w.T).float(), -1)[:, 0]},
        bytes_=0, flop=flop / 2,
    )  # fmt: skip
    row("linear_cde everything", lambda: rap.linear_cde(h1, h0, w), {}, bytes_=0, flop=flop)


def ace() -> None:
    shapes = ((28, 4, 4096, 1024, 128), (28, 4, 16_384, 8192, 128))
    for heads, groups, length, rows, dim in shapes if GPU else ((4, 2, 90, 40, 16),):
        q, k = heads_of(length, heads, dim, 0), heads_of(length, groups, dim, 1)
        qq, kk = q[None].contiguous(), k[None].contiguous()

        def bare(q: Any = qq, k: Any = kk, n: int = rows) -> Any:
            attend = torch.nn.functional.scaled_dot_product_attention
            return attend(q[:, :, -n:], k, k, enable_gqa=True)

        flop = 2.0 * heads * dim * rows * (length - rows / 2)
        for stats in (False, True):
            row(
                f"ace mean L={length} R={rows}{', statistics' if stats else ''}",
                lambda s=stats, q=q, k=k, at=length - rows: rap.ace(
                    q, k, response_start=at, stats=s
                ),
                {"bare sdpa of these rows": bare},
                bytes_=2.0 * dim * length * (heads + groups), flop=flop,
            )  # fmt: skip


def drm() -> None:
    for n in (1_000_000, 100_000_000) if GPU else (999,):
        d = torch.rand(n, device=DEV)
        k = n * 9 // 100
        row(
            f"drm N={n:.0e}, 9 %",
            lambda d=d, k=k: rap.drm(d, k),
            {
                "topk": lambda d=d, k=k: torch.topk(
                    torch.where((d > 0) & (d < 1), d, -1.0), k
                ),
                "sort": lambda d=d: torch.sort(d),
            },
            bytes_=8.0 * n, flop=0,
        )  # fmt: skip


def run() -> None:
    vocab, hidden = (152_064, 3584) if GPU else (700, 16)
    for rows in (512, 24) if GPU else (3,):
        cde(rows, vocab)
    linear(vocab, hidden)
    ace()
    drm()
