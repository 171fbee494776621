"""linear_cde against the two products alone, and its memory against Liger's on paper."""

from __future__ import annotations

import torch

import rap
from benchmarks.common import Row, check, compare, peak_mb, row, shape_of
from benchmarks.shapes import MODELS, QWEN
from rap import reference

BOTH = ("kl", "rkl")


def inputs(tokens: int, hidden: int, vocab: int) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(1)
    h1, h0 = (torch.randn(tokens, hidden, generator=g) for _ in range(2))
    return h1, h0, torch.randn(vocab, hidden, generator=g).div_(hidden**0.5)


def check_linear(h1: torch.Tensor, h0: torch.Tensor, w: torch.Tensor) -> None:
    """What is timed, on a few of its rows and the whole vocabulary; rows do not meet."""
    a, b = h1[:4], h0[:4]
    got = rap.linear_cde(a, b, w, want=BOTH)
    truth = reference.linear_cde(a.double(), b.double(), w.double())
    for name in BOTH:
        check(f"linear_cde {name} {w.dtype}", getattr(got, name), truth[name], 1e-5)


def against_products(
    tokens: int, hidden: int, vocab: int, model: str, budget: float, asked: bool
) -> list[Row]:
    h1, h0, weight = inputs(tokens, hidden, vocab)
    out = []
    for dtype in (torch.float32, torch.bfloat16):
        a, b, w = h1.to(dtype), h0.to(dtype), weight.to(dtype)
        check_linear(a, b, w)
        at_most = dtype == torch.float32
        wanted = {"asked": 1.25 if at_most else 2.0, "at_most": at_most} if asked else {}
        out.append(
            compare(
                "linear",
                f"linear_cde KL, {model}",
                shape_of(T=tokens, E=hidden, V=vocab) + f" {str(dtype)[6:]}",
                "the two torch products alone",
                lambda a=a, b=b, w=w: rap.linear_cde(a, b, w, want=BOTH, threads=1),
                lambda a=a, b=b, w=w: (a @ w.T, b @ w.T),
                budget=budget,
                **wanted,
            )
        )
    return out


def memory(quick: bool) -> Row:
    """The scratch depends on T and E, not on V: a short head spares the minutes of the
    product. The first call makes resident what all calls share (code, threads' stacks); of
    the others the largest peak counts."""
    tokens, vocab = (1024 if quick else 4096), 4800
    h1, h0, w = inputs(tokens, QWEN.hidden, vocab)

    def call() -> object:
        return rap.linear_cde(h1, h0, w, want=BOTH, threads=1)

    call()
    peaks = [peak_mb(call) for _ in range(2 if quick else 4)]
    peak = max((p for p in peaks if p is not None), default=None)
    liger = tokens * QWEN.vocab * 4 / 2**20
    return row(
        "linear",
        "linear_cde peak memory",
        shape_of(T=tokens, E=QWEN.hidden, V=vocab),
        f"Liger's float32 [T, {QWEN.vocab}] on paper",
        "MB",
        peak,
        liger,
        asked=20,
    )


def run(quick: bool) -> list[Row]:
    out = []
    if quick:
        out += against_products(64, 1024, 32_064, "small", 6, asked=True)
    else:
        q = QWEN
        out += against_products(256, q.hidden, q.vocab, q.name, 60, asked=True)
        for m in MODELS[2:]:
            out += against_products(16, m.hidden, m.vocab, m.name, 6, asked=False)
    return [*out, memory(quick)]
