"""Answers against float64 at shapes that no small test has: many blocks of rows, real
vocabularies, lengths that are a multiple of nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

import rap

from .device import DEV, GPU, normal
from .report import say


def near(name: str, got: Any, want: Any, most: float) -> None:
    """Say the largest difference, relative to the largest value; where one is not finite
    the other must not be, and something must be."""
    a, b = (torch.as_tensor(x).double().cpu() for x in (got, want))
    finite = torch.isfinite(b)
    same = a.shape == b.shape and bool((torch.isfinite(a) == finite).all())
    same = same and bool(finite.any())
    error = 0.0
    if same:
        scale = max(1.0, float(b[finite].abs().max()))
        error = float((a - b)[finite].abs().max()) / scale
    say("correct", name, error=error, most=most, ok=same and error <= most)


def attempt(name: str, check: Callable[[], None]) -> None:
    """Run one check; what it raises is its failure and not the section's."""
    try:
        check()
    except Exception as error:  # whatever a device says
        say("correct", name, ok=False, error=f"{type(error).__name__}: {str(error)[:300]}")


def true_cde(l1: torch.Tensor, l0: torch.Tensor) -> dict[str, torch.Tensor]:
    """The formulas of csrc/cde/cde.h, in float64 on the device."""
    a, b = (torch.log_softmax(x.double(), -1) for x in (l1, l0))
    m = torch.logaddexp(a, b) - math.log(2)
    js = (a.exp() * (a - m) + b.exp() * (b - m)).sum(-1) / 2
    return {
        "kl": (a.exp() * (a - b)).sum(-1),
        "rkl": (b.exp() * (b - a)).sum(-1),
        "js": js,
        "tv": (a.exp() - b.exp()).abs().sum(-1) / 2,
        "hellinger2": 1 - ((a + b) / 2).exp().sum(-1),
        "entropy1": -(a.exp() * a).sum(-1),
        "entropy0": -(b.exp() * b).sum(-1),
    }


def true_psi(q: torch.Tensor, k: torch.Tensor, start: int) -> torch.Tensor:
    """ln psi of every response column, head mean, row by row in float64."""
    length, group = q.shape[1], q.shape[0] // k.shape[0]
    mean = torch.zeros(length - start, length, dtype=torch.float64, device=q.device)
    seen = torch.ones(length, length, dtype=torch.bool, device=q.device).tril()[start:]
    for h in range(q.shape[0]):
        scores = q[h, start:].double() @ k[h // group].double().T * q.shape[-1] ** -0.5
        mean += scores.masked_fill(~seen, -math.inf).softmax(-1) / q.shape[0]
    logs = torch.log(2 * mean).masked_fill(~seen, 0)[:, start:]
    rows = torch.arange(length - start, 0, -1, device=q.device)
    return torch.where(rows >= 8, logs.sum(0) / rows, -math.inf)


def heads_of(length: int, heads: int, dim: int, seed: int) -> torch.Tensor:
    """[heads, length, dim] with the strides that Hugging Face leaves."""
    return normal(length, heads, dim, seed=seed).transpose(0, 1)


def cde() -> None:
    vocab = 151_936 if GPU else 331
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        l1, l0 = (normal(40, vocab, seed=s, std=2.5, dtype=dtype) for s in (0, 1))
        got, want = rap.cde(l1, l0), true_cde(l1, l0)
        for name, value in want.items():
            near(f"cde {name} {dtype}", getattr(got, name), value, 1e-5)
    wide = normal(9, vocab + 3, std=2.5)
    for name, a, b in (
        ("one offset", wide[:, 1:-1], wide[:, 1:-1].flip(0)),
        ("two offsets", wide[:, 1:-2], wide[:, 2:-1]),
    ):
        got = rap.cde(a, b, want=("kl", "js"))
        near(f"cde rows off 16 bytes, {name}", got.js, true_cde(a, b)["js"], 1e-5)
    a, b = (normal(6, vocab, seed=s, dtype=torch.float32) for s in (0, 1))
    seen = torch.arange(vocab, device=DEV) % 3 > 0
    want = true_cde(a[:, seen], b[:, seen])
    a[:, ~seen] = b[:, ~seen] = -math.inf
    got = rap.cde(a, b)
    for name in ("kl", "js"):
        near(f"cde {name}, a third masked", getattr(got, name), want[name], 1e-5)


def linear() -> None:
    rows, vocab, hidden = (1300, 40_000, 1024) if GPU else (7, 300, 16)
    h1, h0 = normal(rows, hidden), normal(rows, hidden, seed=1)
    w = normal(vocab, hidden, seed=2, std=3 * hidden**-0.5)
    want = true_cde(h1.float() @ w.float().T, h0.float() @ w.float().T)
    for memory in (None, 8 * 64 * 40_000):
        got = rap.linear_cde(h1, h0, w, memory=memory)
        for name, value in want.items():
            near(f"linear_cde {name}, memory {memory}", getattr(got, name), value, 3e-4)
    capped = rap.linear_cde(h1[:5], h0[:5], w.float(), softcap=9.0, scale=0.5, want="kl")
    logits = [9 * torch.tanh(0.5 * (h[:5].float() @ w.float().T) / 9) for h in (h1, h0)]
    near("linear_cde, float32 head, softcap", capped.kl, true_cde(*logits)["kl"], 1e-3)


def ace() -> None:
    shapes = ((28, 4, 4096, 1024, 128), (28, 4, 4099, 333, 128), (16, 2, 16_384, 512, 128))
    for heads, groups, length, rows, dim in shapes if GPU else ((4, 2, 90, 40, 16),):
        q, k = heads_of(length, heads, dim, 0), heads_of(length, groups, dim, 1)
        got = rap.ace(q, k, response_start=length - rows).log_psi_columns
        near(
            f"ace {heads}/{groups} heads L={length} R={rows}",
            got[length - rows :], true_psi(q, k, length - rows), 1e-4,
        )  # fmt: skip


def drm() -> None:
    for n in (3_000_001, 50_000_000) if GPU else (999,):
        d = torch.randint(0, 9, (n,), device=DEV) / 8
        near(f"drm N={n}, ties", rap.drm(d, n // 11), rap.drm(d.cpu(), n // 11), 0)


def run() -> None:
    for check in (cde, linear, ace, drm):
        attempt(check.__name__, check)
