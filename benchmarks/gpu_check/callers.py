"""Arrays and callers of every kind: views, gradients, streams, graphs, threads, CuPy."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import rap

from .correct import attempt, near, true_cde
from .device import DEV, GPU, normal, sync
from .report import say


def views() -> None:
    a, b = normal(6, 5003), normal(6, 5003, seed=1)
    want = rap.cde(a.cpu(), b.cpu()).kl
    near("requires_grad", rap.cde(a.clone().requires_grad_(), b).kl, want, 1e-5)
    near("last dimension strided", rap.cde(a.T.contiguous().T, b).kl, want, 1e-5)
    row = a[:1].expand(6, -1)
    near("expanded rows", rap.cde(row, b).kl, rap.cde(row.cpu(), b.cpu()).kl, 1e-5)
    near("rows backwards", rap.cde(a.flip(0), b.flip(0)).kl, want.flip(0), 1e-5)
    h, w = normal(4, 64), normal(500, 64, seed=2)
    same = h[:1].expand(4, -1)
    got = rap.linear_cde(same, h, w.float(), want="kl").kl
    cpu = rap.linear_cde(same.cpu(), h.cpu(), w.float().cpu(), want="kl").kl
    near("hidden expanded, head float32", got, cpu, 1e-3)


def side_stream() -> None:
    a, b = normal(6, 5003), normal(6, 5003, seed=1)
    want = rap.cde(a.cpu(), b.cpu()).kl
    stream = torch.cuda.Stream()
    sync()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        x = a * 1
        got = rap.cde(x, b).kl
        del x
    stream.synchronize()
    near("a side stream behind a long kernel", got, want, 1e-5)


def large() -> None:
    big = torch.empty(1 << 14, 151_936, dtype=torch.bfloat16, device=DEV)
    big.normal_()
    other = big.flip(0)
    got = rap.cde(big, other, want="kl").kl[-3:]
    near("more than 2^31 elements", got, true_cde(big[-3:], other[-3:])["kl"], 1e-5)


def cupy_arrays() -> None:
    try:
        import cupy
    except ImportError as error:
        say("correct", "CuPy", skipped=str(error))
        return
    a, b = (normal(6, 5003, seed=s, dtype=torch.float32) for s in (0, 1))
    got = rap.cde(cupy.from_dlpack(a), cupy.from_dlpack(b), want="kl").kl
    near("CuPy", torch.from_dlpack(got), rap.cde(a.cpu(), b.cpu()).kl, 1e-5)


def _captured(name: str, call: Callable[[], Any]) -> None:
    call()
    sync()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call()
    for _ in range(3):
        graph.replay()
    sync()
    near(f"graph: {name}", out, call(), 1e-9)


def graphs() -> None:
    a, b = normal(6, 5003), normal(6, 5003, seed=1)
    h, w = normal(4, 64), normal(500, 64, seed=2)
    ids = torch.arange(6, device=DEV)
    _captured("cde", lambda: rap.cde(a, b, targets=ids, want="logp1").logp1)
    _captured("linear_cde", lambda: rap.linear_cde(h, h * 2, w, want="js").js)
    refused: list[str] = []
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = rap.cde(a, b, want="kl").kl
        for call in (
            lambda: rap.cde(a, b, targets=np.arange(6)),
            lambda: rap.drm(ids.float() / 6, 2),
        ):
            try:
                call()
            except rap.RapInputError as error:
                refused.append(str(error))
    graph.replay()
    sync()
    say("correct", "graph: refused", ok=len(refused) == 2, refused=refused)
    near("graph: goes on after a refusal", out, rap.cde(a, b, want="kl").kl, 1e-9)


def fresh_thread() -> None:
    a, b = normal(6, 5003), normal(6, 5003, seed=1)
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.append(rap.cde(a, b).kl))
    thread.start()
    thread.join()
    near("a fresh thread", got[0], rap.cde(a.cpu(), b.cpu()).kl, 1e-5)


def second_device() -> None:
    if torch.cuda.device_count() < 2:
        say("correct", "device 1", skipped="there is one device")
        return
    a, b = normal(6, 5003).to("cuda:1"), normal(6, 5003, seed=1).to("cuda:1")
    got = rap.cde(a, b).kl
    assert got.device.index == 1
    near("device 1", got, rap.cde(a.cpu(), b.cpu()).kl, 1e-5)


def run() -> None:
    for check in (views, fresh_thread):
        attempt(check.__name__, check)
    if not GPU:
        say("correct", "streams, graphs, CuPy, 2^31 elements", skipped="DEV=cpu")
        return
    for check in (side_stream, graphs, cupy_arrays, second_device, large):
        attempt(check.__name__, check)
        torch.cuda.empty_cache()
