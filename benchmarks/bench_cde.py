"""cde against what a user would write in torch, against TRL, and against the memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

import rap
from benchmarks.bench_limits import fastest_reader, read_all
from benchmarks.common import Row, WrongResult, check, compare, optional, shape_of
from benchmarks.shapes import MODELS, QWEN
from rap import reference

BOTH = ("kl", "rkl")
THREE = ("js", "tv", "hellinger2")
Pair = tuple[torch.Tensor, torch.Tensor]


def eager(l1: torch.Tensor, l0: torch.Tensor) -> Pair:
    """KL both ways, as most training code has it."""
    a1, a0 = torch.log_softmax(l1, -1), torch.log_softmax(l0, -1)
    kl = F.kl_div(a0, a1, log_target=True, reduction="none").sum(-1)
    return kl, F.kl_div(a1, a0, log_target=True, reduction="none").sum(-1)


def formula(l1: torch.Tensor, l0: torch.Tensor) -> Pair:
    """KL both ways, the formula written out: the form torch.compile fuses best."""
    a1, a0 = torch.log_softmax(l1, -1), torch.log_softmax(l0, -1)
    return (a1.exp() * (a1 - a0)).sum(-1), (a0.exp() * (a0 - a1)).sum(-1)


def logits(rows: int, vocab: int, dtype: torch.dtype = torch.float32) -> Pair:
    g = torch.Generator().manual_seed(0)
    l1 = torch.randn(rows, vocab, generator=g) * 3
    return l1.to(dtype), (l1 + 0.5 * torch.randn(rows, vocab, generator=g)).to(dtype)


def check_cde(l1: torch.Tensor, l0: torch.Tensor) -> None:
    got, truth = rap.cde(l1[:2], l0[:2]), reference.cde(l1[:2].double(), l0[:2].double())
    for name in (*BOTH, *THREE, "entropy1"):
        check(
            f"cde {name} {l1.dtype} {tuple(l1.shape)}",
            getattr(got, name),
            truth[name],
            1e-5,
        )


def kl(l1: torch.Tensor, l0: torch.Tensor) -> Callable[[], rap.CdeResult]:
    return lambda: rap.cde(l1, l0, want=BOTH, threads=1)


def run_float32(rows: int) -> list[Row]:
    """The shape of the table; more rows would only tire the allocator."""
    vocab = QWEN.vocab
    l1, l0 = logits(rows, vocab)
    check_cde(l1, l0)
    shape, ours = shape_of(T=rows, V=vocab) + " float32", kl(l1, l0)
    what = "cde KL both ways"
    rivals: list[tuple[str, Callable[[], object], float | None]] = [
        ("torch eager log_softmax + kl_div", lambda: eager(l1, l0), 30),
        ("torch eager formula", lambda: formula(l1, l0), None),
    ]
    try:
        compiled = torch.compile(formula)
        for name, got in zip(BOTH, compiled(l1, l0), strict=True):
            check(f"torch.compile {name}", got, getattr(ours(), name), 1e-4)
        rivals.append(("torch.compile", lambda: compiled(l1, l0), 5))
    except WrongResult:
        raise
    except Exception as error:  # no C++ compiler: said, and the rest goes on
        print(f"left out: torch.compile: {str(error)[:200]}", flush=True)
    out = [
        compare("cde", what, shape, name, ours, call, asked=asked)
        for name, call, asked in rivals
    ]
    reader = f"memory read of both inputs ({fastest_reader()})"
    return out + [
        compare(
            "cde",
            what,
            shape,
            reader,
            ours,
            lambda: read_all(l1, l0),
            asked=1.6,
            at_most=True,
        )
    ]


def run_trl(rows: int) -> list[Row]:
    jsd = optional("trl.experimental.gkd.gkd_trainer", "GKDTrainer.generalized_jsd_loss")
    gather = optional("trl.trainer.utils", "selective_log_softmax")
    l1, l0 = logits(rows, QWEN.vocab)
    shape, out = shape_of(T=rows, V=QWEN.vocab) + " float32", []
    if jsd is not None:

        def divergences() -> rap.CdeResult:
            return rap.cde(l1, l0, want=THREE, threads=1)

        check("TRL's JSD", divergences().js.mean(), jsd(l1, l0), 1e-4)
        out.append(
            compare(
                "cde",
                "cde JS + TV + Hellinger",
                shape,
                "TRL generalized_jsd_loss (JS alone)",
                divergences,
                lambda: jsd(l1, l0),
                asked=20,
            )
        )
    if gather is not None:
        ids = torch.arange(rows) * 997 % QWEN.vocab

        def targets() -> rap.CdeResult:
            return rap.cde(l1, l0, want=("logp1", "logp0"), targets=ids, threads=1)

        check("TRL's log-probability", targets().logp1, gather(l1, ids), 1e-4)
        check("TRL's log-probability, blind", targets().logp0, gather(l0, ids), 1e-4)
        out.append(
            compare(
                "cde",
                "cde target log-probabilities",
                shape,
                "TRL selective_log_softmax, both",
                targets,
                lambda: (gather(l1, ids), gather(l0, ids)),
            )
        )
    return out


def run_bfloat16(rows: int) -> list[Row]:
    l1, l0 = logits(rows, QWEN.vocab)
    b1, b0 = logits(rows, QWEN.vocab, torch.bfloat16)
    check_cde(b1, b0)
    what, shape = "cde KL both ways", shape_of(T=rows, V=QWEN.vocab) + " bfloat16"
    ours, name = kl(b1, b0), "torch eager, same bfloat16 logits"
    return [
        compare("cde", what, shape, name, ours, lambda: eager(b1, b0), asked=30),
        compare(
            "cde",
            what,
            shape,
            "ours from float32",
            ours,
            kl(l1, l0),
            asked=1.0,
            memory=False,
        ),
    ]


def run_growth(quick: bool) -> list[Row]:
    """Time against T, and against V over the models' vocabularies."""
    out, name = [], "torch eager log_softmax + kl_div"
    sizes = [
        ("T", t, t, QWEN.vocab, "Qwen2.5-VL-3B")
        for t in ((1, 4) if quick else (1, 4, 16, 64))
    ]
    models = MODELS[3:4] + MODELS[5:] if quick else MODELS
    sizes += [("V", m.vocab, 8, m.vocab, m.name) for m in models]
    for axis, x, rows, vocab, model in sizes:
        l1, l0 = logits(rows, vocab)
        check_cde(l1, l0)
        out.append(
            compare(
                "cde",
                f"cde KL both ways, {model}",
                shape_of(T=rows, V=vocab) + " float32",
                name,
                kl(l1, l0),
                lambda l1=l1, l0=l0: eager(l1, l0),
                budget=2,
                axis=axis,
                x=x,
            )
        )
    return out


def run(quick: bool) -> list[Row]:
    rows = 64  # 78 MB together: from memory, not from a cache
    return run_float32(rows) + run_trl(rows) + run_bfloat16(rows) + run_growth(quick)
