"""What benchmarks/gpu_check.sh runs on a real GPU. Never run on one so far.

python -m benchmarks.gpu_check values|small|scoring|times
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import torch

import rap
from benchmarks.bench_ace import log_sum_exps

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _same(name: str, device: object, host: object, rtol: float) -> None:
    for field, a, b in zip(type(host)._fields, device, host, strict=True):
        if b is None:
            continue
        assert a.is_cuda, (name, field)
        np.testing.assert_allclose(
            a.cpu().numpy(), b.numpy(), rtol=rtol, atol=rtol, err_msg=f"{name} {field}"
        )


def values(rows: int, vocab: int, hidden: int, length: int) -> None:
    """Every kernel and dtype, on the current stream and on another, against the CPU."""
    g = torch.Generator().manual_seed(0)
    hidden_keys = torch.ones(length, length, dtype=torch.bool).triu(1)
    for dtype in DTYPES:
        l1, l0 = (torch.randn(rows, vocab, generator=g).to(dtype) for _ in range(2))
        h1, h0 = (torch.randn(rows, hidden, generator=g).to(dtype) for _ in range(2))
        w = (torch.randn(vocab, hidden, generator=g) / hidden**0.5).to(dtype)
        q = torch.randn(8, length, 64, generator=g).to(dtype)
        k = torch.randn(2, length, 64, generator=g).to(dtype)
        targets = torch.randint(0, vocab, (rows,), generator=g)
        for stream in (torch.cuda.current_stream(), torch.cuda.Stream()):
            with torch.cuda.stream(stream):
                a, b = l1.cuda(), l0.cuda()
                got = rap.cde(a, b, targets=targets.cuda())
                _same("cde", got, rap.cde(l1, l0, targets=targets), 1e-4)
                again = rap.cde(a, b)
                assert torch.equal(again.kl, rap.cde(a, b).kl), "not the same bits"
                got = rap.linear_cde(h1.cuda(), h0.cuda(), w.cuda(), softcap=20.0)
                _same("linear_cde", got, rap.linear_cde(h1, h0, w, softcap=20.0), 1e-3)
                for heads in ("mean", "max", "each"):
                    options = {"response_start": length // 3, "heads": heads}
                    got = rap.ace(q.cuda(), k.cuda(), **options)
                    _same("ace", got, rap.ace(q, k, **options), 1e-3)
                lse = log_sum_exps(q.float(), k.float(), hidden_keys)
                linear = {"lse": lse, "stats": False} | options
                given = linear | {"lse": lse.cuda()}
                got = rap.ace(q.cuda(), k.cuda(), **given)
                _same("ace, linear form", got, rap.ace(q, k, **linear), 1e-9)
    for n in (1, 1000, rows * vocab):
        d = torch.randint(0, 9, (n,), generator=g) / 8
        gain = torch.randn(n, generator=g)
        got = rap.drm(d.cuda(), n // 3 + 1, gain=gain.cuda())
        assert torch.equal(got.cpu(), rap.drm(d, n // 3 + 1, gain=gain)), "drm"
    print(f"values agree: {rows} x {vocab}, hidden {hidden}, length {length}")


def scoring() -> None:
    """The demo's model on the GPU scores a small world as it does on the CPU."""
    from rap.demo import world
    from rap.demo.model import load_demo_model

    data = world.to_dataset(world.draw(24, seed=0))
    model, processor = load_demo_model()
    for evidence, column in (("logits", "js"), ("answer", "logp_answer1")):
        tables = [
            rap.score(model.to(device), processor, data, evidence=evidence, progress=False)
            for device in ("cpu", "cuda")
        ]
        host, device = (t.table[column].to_numpy() for t in tables)
        # float32 sums in another order, and values kept to twelve bits
        np.testing.assert_allclose(device, host, rtol=5e-3, atol=1e-4, err_msg=column)
    print(f"scores agree: {len(host)} samples of the demo's world")


def _time(call: Callable[[], object], flush: torch.Tensor, repeats: int = 20) -> float:
    """Median milliseconds by CUDA events, the L2 cache overwritten before each."""
    found = []
    for i in range(repeats + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        flush.zero_()
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        if i >= 3:
            found.append(start.elapsed_time(end))
    return float(np.median(found))


def _eager(l1: torch.Tensor, l0: torch.Tensor) -> torch.Tensor:
    a, b = torch.log_softmax(l1.float(), -1), torch.log_softmax(l0.float(), -1)
    return (a.exp() * (a - b)).sum(-1)


def _eager_top(d: torch.Tensor, k: int) -> torch.Tensor:
    return torch.topk(torch.where((d > 0) & (d < 1), d, -1.0), k).indices


def _liger(h1: torch.Tensor, h0: torch.Tensor, w: torch.Tensor) -> Callable[[], object]:
    """Its fused Jensen-Shannon divergence, which also makes gradients: rap's is "js"."""
    from liger_kernel.transformers import LigerFusedLinearJSD

    jsd = LigerFusedLinearJSD(jsd_beta=0.5)
    return lambda: jsd(h1, w, h0, w)


def _cce(h1: torch.Tensor, w: torch.Tensor) -> Callable[[], object]:
    """Log-probabilities of targets of one branch only: less than any divergence."""
    from cut_cross_entropy import linear_cross_entropy

    targets = torch.zeros(len(h1), dtype=torch.int64, device="cuda")
    return lambda: linear_cross_entropy(h1, w, targets, reduction="none")


def _rival(name: str, make: Callable[..., Callable[[], object]], *arrays: torch.Tensor):
    """[(name, call)], or nothing and the reason printed."""
    try:
        call = make(*arrays)
        call()
    except Exception as error:  # whatever somebody else's package says
        print(f"skip  {name}: {type(error).__name__}: {str(error)[:100]}")
        return []
    return [(name, call)]


def times() -> None:
    """One table: shape, rap, rival, ratio."""
    flush = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    rows, vocab, hidden = 1024, 151_936, 2048
    l1, l0 = (torch.randn(rows, vocab, device="cuda").bfloat16() for _ in range(2))
    h1, h0 = (torch.randn(rows, hidden, device="cuda").bfloat16() for _ in range(2))
    w = (torch.randn(vocab, hidden, device="cuda") / hidden**0.5).bfloat16()
    d = torch.rand(100_000_000, device="cuda")
    table = [
        ("cde kl", lambda: rap.cde(l1, l0, want="kl"), "eager", lambda: _eager(l1, l0)),
        ("linear_cde kl", lambda: rap.linear_cde(h1, h0, w, want="kl"), "eager",
         lambda: _eager(h1 @ w.T, h0 @ w.T)),
        ("drm 1e8, 9 %", lambda: rap.drm(d, 9_000_000), "topk",
         lambda: _eager_top(d, 9_000_000)),
        # torch.sort of one large array is CUB's radix sort
        ("drm 1e8, 9 %", lambda: rap.drm(d, 9_000_000), "CUB sort", lambda: torch.sort(d)),
    ]  # fmt: skip
    for name, rival in _rival("Liger", _liger, h1, h0, w):
        js = ("linear_cde js", lambda: rap.linear_cde(h1, h0, w, want="js"))
        table.append((*js, name, rival))
    for name, rival in _rival("CCE (less)", _cce, h1, w):
        kl = ("linear_cde kl", lambda: rap.linear_cde(h1, h0, w, want="kl"))
        table.append((*kl, name, rival))
    print(f"{torch.cuda.get_device_name()}: milliseconds, median of 20")
    print(f"{'':16}{'rap':>10}{'rival':>10}  ratio")
    for name, ours, rival_name, rival in table:
        a, b = _time(ours, flush), _time(rival, flush)
        print(f"{name:16}{a:10.3f}{b:10.3f}  {b / a:.2f} x {rival_name}")
    q = torch.randn(16, 8192, 128, device="cuda").bfloat16()
    k = torch.randn(4, 8192, 128, device="cuda").bfloat16()
    a = _time(lambda: rap.ace(q, k, response_start=6144), flush)
    print(f"{'ace L=8192':16}{a:10.3f}{'-':>10}  (eager attention would be 4 GiB)")


def main(what: str) -> None:
    if what == "values":
        values(rows=67, vocab=32_003, hidden=512, length=600)
    elif what == "small":
        values(rows=3, vocab=5001, hidden=64, length=70)
    elif what == "scoring":
        scoring()
    else:
        times()


if __name__ == "__main__":
    main(sys.argv[1])
