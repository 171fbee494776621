"""ace against building the attention matrix in torch and reducing it."""

from __future__ import annotations

import torch

import rap
from benchmarks.common import Row, check, compare
from rap import reference


def build_and_reduce(
    q: torch.Tensor, k: torch.Tensor, hidden: torch.Tensor
) -> torch.Tensor:
    """log psi_j of the head mean from A [H, L, L]; the mask is made beforehand."""
    scores = (q @ k.transpose(1, 2)) * q.shape[-1] ** -0.5
    a = scores.masked_fill_(hidden, float("-inf")).softmax(-1)
    return torch.log(2 * a.mean(0)).masked_fill_(hidden, 0).sum(0)


def check_ace() -> None:
    g = torch.Generator().manual_seed(0)
    q, k = torch.randn(4, 300, 64, generator=g), torch.randn(2, 300, 64, generator=g)
    for heads in ("mean", "max", "each"):
        got = rap.ace(q, k, response_start=100, heads=heads)
        truth = reference.ace(q, k, response_start=100, heads=heads)
        for name in ("log_psi_columns", "attention_entropy", "attention_top"):
            check(f"ace {heads} {name}", getattr(got, name).numpy(), truth[name], 1e-5)


def run(quick: bool) -> list[Row]:
    check_ace()
    g = torch.Generator().manual_seed(0)
    options = dict(response_start=0, min_rows=1, normalise=False, threads=1)
    out = []
    for length in (2048,) if quick else (2048, 4096):
        q, k = (torch.randn(16, length, 128, generator=g) for _ in range(2))
        hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
        ours = rap.ace(q, k, **options)
        check("build A", ours.log_psi_columns.numpy(), build_and_reduce(q, k, hidden), 1e-3)
        kinds: list[tuple[str, dict, float | None]] = [
            ("head mean", {"stats": False}, 3 if length == 2048 else None),
            ("head mean with statistics", {}, None),
            ("per head, log-sum-exps given", {"heads": "each", "stats": False}, None),
        ]
        for name, extra, floor in kinds:
            if "given" in name:
                scores = (q @ k.transpose(1, 2)) * 128**-0.5
                lse = scores.masked_fill_(hidden, float("-inf")).logsumexp(-1)
                extra = extra | {"lse": lse}
                del scores
            out.append(
                compare(
                    "ace",
                    f"{name}, 16 heads, L {length}, D 128",
                    "build A in torch and reduce",
                    lambda q=q, k=k, extra=extra: rap.ace(q, k, **options, **extra),
                    lambda q=q, k=k, hidden=hidden: build_and_reduce(q, k, hidden),
                    floor=floor,
                    repeats=3,
                )
            )
    return out
