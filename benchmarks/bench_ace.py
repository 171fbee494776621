"""ace against building the attention matrix and reducing it, transformers' way included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

import rap
from benchmarks.common import Row, check, compare, optional, row, shape_of
from benchmarks.shapes import MODELS, QWEN
from rap import reference

OPTIONS: dict[str, Any] = dict(response_start=0, min_rows=1, normalise=False, threads=1)
BUILD = "build A in torch and reduce"


def causal(length: int) -> torch.Tensor:
    """True where a row must not look."""
    return torch.ones(length, length, dtype=torch.bool).triu(1)


def reduce(a: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """log psi_j of the head mean from A [H, L, L]."""
    return torch.log(2 * a.mean(0)).masked_fill_(hidden, 0).sum(0)


def build_and_reduce(
    q: torch.Tensor, k: torch.Tensor, hidden: torch.Tensor
) -> torch.Tensor:
    """The mask is made beforehand."""
    k = k.repeat_interleave(q.shape[0] // k.shape[0], 0)
    scores = (q @ k.transpose(1, 2)) * q.shape[-1] ** -0.5
    return reduce(scores.masked_fill_(hidden, float("-inf")).softmax(-1), hidden)


def build_each(q: torch.Tensor, k: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """log psi_j of every head, by the matrix."""
    k = k.repeat_interleave(q.shape[0] // k.shape[0], 0)
    scores = (q @ k.transpose(1, 2)) * q.shape[-1] ** -0.5
    a = scores.masked_fill_(hidden, float("-inf")).softmax(-1)
    return torch.log(a.mul_(2)).masked_fill_(hidden, 0).sum(1)


def check_ace(q: torch.Tensor, k: torch.Tensor, tol: float, **options: Any) -> None:
    """Every answer against the reference, which builds A in float64."""
    got = rap.ace(q, k, **options)
    truth = reference.ace(q, k, **{n: x for n, x in options.items() if n != "threads"})
    for name in ("log_psi_columns", "attention_entropy", "attention_top"):
        check(f"ace {name} {options}", getattr(got, name), truth[name], tol)


def check_small() -> None:
    g = torch.Generator().manual_seed(0)
    q, k = torch.randn(4, 300, 64, generator=g), torch.randn(2, 300, 64, generator=g)
    for heads in ("mean", "max", "each"):
        check_ace(q, k, 1e-5, response_start=100, heads=heads)


def inputs(heads: int, kv: int, length: int, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return (
        torch.randn(heads, length, dim, generator=g),
        torch.randn(kv, length, dim, generator=g),
    )


def log_sum_exps(q: torch.Tensor, k: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """As a flash kernel leaves them; head by head, to spare the memory."""
    group, scale = q.shape[0] // k.shape[0], q.shape[-1] ** -0.5
    rows = [
        (x @ k[h // group].T).mul_(scale).masked_fill_(hidden, float("-inf")).logsumexp(-1)
        for h, x in enumerate(q)
    ]
    return torch.stack(rows)


def ours(q: torch.Tensor, k: torch.Tensor, **extra: Any) -> Callable[[], rap.AceResult]:
    return lambda: rap.ace(q, k, **OPTIONS, **extra)


def run_matrix(length: int) -> list[Row]:
    """The table's rows: 16 heads with keys of their own, as the issue has it."""
    heads, dim = 16, 128
    q, k = inputs(heads, heads, length, dim)
    hidden = causal(length)
    shape = shape_of(H=heads, L=length, D=dim)
    mean = ours(q, k, stats=False)
    check("build A", mean().log_psi_columns, build_and_reduce(q, k, hidden), 1e-3)
    each = ours(q, k, heads="each", stats=False, lse=log_sum_exps(q, k, hidden))
    check("build A, each head", each().log_psi_columns, build_each(q, k, hidden), 1e-3)

    for reduced in ("mean", "max"):
        check_ace(q, k, 1e-3, **OPTIONS, heads=reduced)

    def build() -> torch.Tensor:
        return build_and_reduce(q, k, hidden)

    first = compare("ace", "ace head mean", shape, BUILD, mean, build, asked=6, budget=30)
    out = [first]
    out.append(
        row(
            "ace",
            "ace head mean, memory",
            shape,
            BUILD,
            "MB",
            first.ours_mb,
            first.theirs_mb,
            asked=30,
        )
    )
    cases = [
        ("ace head mean with statistics", ours(q, k), build, None),
        ("ace head max", ours(q, k, heads="max", stats=False), build, None),
        ("ace each head, log-sum-exps given", each, build, 100),
    ]
    for name, call, rival, asked in cases:
        out.append(
            compare(
                "ace", name, shape, BUILD, call, rival, asked=asked, budget=12, memory=False
            )
        )
    return out


def run_sdpa(length: int) -> list[Row]:
    """What the forward pass pays anyway for the same layer."""
    q, k = inputs(16, 16, length, 128)

    def attend() -> torch.Tensor:
        return F.scaled_dot_product_attention(q[None], k[None], k[None], is_causal=True)

    shape = shape_of(H=16, L=length, D=128)
    return [
        compare(
            "ace",
            "ace head mean",
            shape,
            "torch sdpa alone",
            ours(q, k, stats=False),
            attend,
        )
    ]


def run_layer(length: int) -> list[Row]:
    """transformers' own attention module, one layer: weights returned and reduced, against
    the same module with sdpa and ace on its q and k."""
    attention = optional("transformers.models.qwen2.modeling_qwen2", "Qwen2Attention")
    config_of = optional("transformers", "Qwen2Config")
    if attention is None or config_of is None:
        return []
    m = QWEN
    config = config_of(
        hidden_size=m.hidden,
        num_attention_heads=m.heads,
        num_key_value_heads=m.kv_heads,
        num_hidden_layers=1,
        intermediate_size=64,
        vocab_size=64,
    )
    layer = attention(config, 0).eval().requires_grad_(False)
    x = torch.randn(1, length, m.hidden, generator=torch.Generator().manual_seed(0))
    place = (torch.ones(1, length, m.dim), torch.zeros(1, length, m.dim))  # no rotation
    hidden = causal(length)
    mask = torch.zeros(1, 1, length, length).masked_fill_(hidden, torch.finfo().min)

    def split(y: torch.Tensor) -> torch.Tensor:
        return y[0].view(length, -1, m.dim).transpose(0, 1)

    q, k = split(layer.q_proj(x)), split(layer.k_proj(x))

    def eager() -> torch.Tensor:
        config._attn_implementation = "eager"
        return reduce(layer(x, place, mask)[1][0], hidden)

    def captured() -> torch.Tensor:
        config._attn_implementation = "sdpa"
        layer(x, place, None, is_causal=True)
        return rap.ace(q, k, **OPTIONS, stats=False).log_psi_columns

    check("Qwen2Attention", captured(), eager(), 1e-3)
    shape = shape_of(H=m.heads, Hkv=m.kv_heads, L=length, D=m.dim)
    rival = "the module eager, output_attentions"
    return [
        compare("ace", "one layer: sdpa + ace", shape, rival, captured, eager, budget=10)
    ]


def run_growth(quick: bool) -> list[Row]:
    """Time against L, then the models' heads."""
    lengths = (128, 256, 512) if quick else (128, 256, 512, 1024, 2048)
    sizes: list[tuple[str | None, str, int, int, int, int]] = [
        ("L", "16 heads", 16, 16, length, 128) for length in lengths
    ]
    models = MODELS[5:] if quick else MODELS
    for m in models:
        length = 1237 if m.name == "awkward" and not quick else 512 if quick else 1024
        sizes.append((None, m.name, m.heads, m.kv_heads, length, m.dim))
    out = []
    for axis, name, heads, kv, length, dim in sizes:
        q, k = inputs(heads, kv, length, dim)
        hidden = causal(length)
        call = ours(q, k, stats=False)
        check(f"ace {name}", call().log_psi_columns, build_and_reduce(q, k, hidden), 1e-3)
        out.append(
            compare(
                "ace",
                f"ace head mean, {name}",
                shape_of(H=heads, Hkv=kv, L=length, D=dim),
                BUILD,
                call,
                lambda q=q, k=k, hidden=hidden: build_and_reduce(q, k, hidden),
                budget=4,
                axis=axis,
                x=length if axis else None,
            )
        )
    return out


def run(quick: bool) -> list[Row]:
    check_small()
    length = 1024 if quick else 4096
    out = run_matrix(length) + run_sdpa(length)
    return out + run_layer(512 if quick else 2048) + run_growth(quick)
