"""cde and linear_cde against what a user would write in torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F

import rap
from benchmarks.common import Row, check, compare
from rap import reference

VOCAB = 151_936  # Qwen2.5-VL


def eager(l1: torch.Tensor, l0: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """KL both ways, as most training code has it."""
    a1, a0 = torch.log_softmax(l1, -1), torch.log_softmax(l0, -1)
    kl = F.kl_div(a0, a1, log_target=True, reduction="none").sum(-1)
    return kl, F.kl_div(a1, a0, log_target=True, reduction="none").sum(-1)


def formula(l1: torch.Tensor, l0: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """KL both ways, the formula written out: the form torch.compile fuses best."""
    a1, a0 = torch.log_softmax(l1, -1), torch.log_softmax(l0, -1)
    return (a1.exp() * (a1 - a0)).sum(-1), (a0.exp() * (a0 - a1)).sum(-1)


def all_divergences(l1: torch.Tensor, l0: torch.Tensor) -> torch.Tensor:
    a1, a0 = torch.log_softmax(l1, -1), torch.log_softmax(l0, -1)
    p1, p0 = a1.exp(), a0.exp()
    mix = torch.log(0.5 * (p1 + p0))
    js = 0.5 * ((p1 * (a1 - mix)).sum(-1) + (p0 * (a0 - mix)).sum(-1))
    return js + (p1 - p0).abs().sum(-1) + (p1 * p0).sqrt().sum(-1)


def logits(rows: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    l1 = torch.randn(rows, VOCAB, generator=g) * 3
    return l1.to(dtype), (l1 + 0.5 * torch.randn(rows, VOCAB, generator=g)).to(dtype)


def check_cde(l1: torch.Tensor, l0: torch.Tensor) -> None:
    got, truth = rap.cde(l1[:4], l0[:4]), reference.cde(l1[:4].double(), l0[:4].double())
    for name in ("kl", "rkl", "js", "tv", "hellinger2", "entropy1"):
        check(f"cde {name} {l1.dtype}", getattr(got, name).numpy(), truth[name], 1e-5)


def run(quick: bool) -> list[Row]:
    rows = 64  # fewer fit the allocator's cache and spare torch its page faults
    both = ("kl", "rkl")
    l1, l0 = logits(rows, torch.float32)
    check_cde(l1, l0)
    work = f"KL both ways, [{rows}, {VOCAB}] float32"

    def ours() -> object:
        return rap.cde(l1, l0, want=both, threads=1)

    out = [
        compare(
            "cde", work, "torch eager log_softmax + kl_div", ours, lambda: eager(l1, l0)
        ),
        compare(
            "cde", work, "torch eager formula", ours, lambda: formula(l1, l0), floor=15
        ),
    ]
    compiled = torch.compile(formula)
    check("torch.compile", compiled(l1, l0)[0].numpy(), ours().kl.numpy(), 1e-4)
    out.append(
        compare("cde", work, "torch.compile", ours, lambda: compiled(l1, l0), floor=3)
    )
    out.append(
        compare(
            "cde",
            f"JS + TV + Hellinger, [{rows}, {VOCAB}] float32",
            "torch eager formula",
            lambda: rap.cde(l1, l0, want=("js", "tv", "hellinger2"), threads=1),
            lambda: all_divergences(l1, l0),
        )
    )
    b1, b0 = logits(rows, torch.bfloat16)
    check_cde(b1, b0)
    out.append(
        compare(
            "cde",
            f"KL both ways, [{rows}, {VOCAB}] bfloat16",
            "torch eager formula, same logits",
            lambda: rap.cde(b1, b0, want=both, threads=1),
            lambda: formula(b1, b0),
        )
    )
    return out + run_linear(quick)


def run_linear(quick: bool) -> list[Row]:
    tokens, hidden, vocab = (64, 1024, 32_000) if quick else (256, 2048, VOCAB)
    g = torch.Generator().manual_seed(1)
    h1, h0 = (torch.randn(tokens, hidden, generator=g) for _ in range(2))
    weight = torch.randn(vocab, hidden, generator=g) / hidden**0.5
    small = weight[:3000]
    got = rap.linear_cde(h1[:8], h0[:8], small)
    truth = reference.linear_cde(h1[:8].double(), h0[:8].double(), small.double())
    for name in ("kl", "rkl", "js", "tv"):
        check(f"linear_cde {name}", getattr(got, name).numpy(), truth[name], 1e-5)
    out = []
    for dtype in (torch.float32, torch.bfloat16):
        a, b, w = h1.to(dtype), h0.to(dtype), weight.to(dtype)
        out.append(
            compare(
                "linear_cde",
                f"KL both ways, T {tokens}, E {hidden}, V {vocab} {str(dtype)[6:]}",
                "the two torch products alone",
                lambda a=a, b=b, w=w: rap.linear_cde(
                    a, b, w, want=("kl", "rkl"), threads=1
                ),
                lambda a=a, b=b, w=w: (a @ w.T, b @ w.T),
                repeats=3,
            )
        )
    return out
