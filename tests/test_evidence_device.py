"""A model on a CUDA device: what its scoring hands to the kernels lies there too.

No GPU: tensors of a subclass that says it is on one. The kernels themselves on a device:
tests/test_cuda_*.py; scoring on a real one: benchmarks/gpu_check.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from scoring_inputs import make_rows
from tiny_models import build

import rap
from rap import cuda, ops
from rap.model.driver import Head, ModelDriver

CUDA = torch.device("cuda", 0)


class OnDevice(torch.Tensor):
    """A tensor that says it is on CUDA device 0; what is made of it says so, too."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return CUDA

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True


def moved(x: torch.Tensor | None, device: Any) -> torch.Tensor | None:
    to = OnDevice if torch.device(device).type == "cuda" else torch.Tensor
    return None if x is None else x.as_subclass(to)


@pytest.fixture
def calls(monkeypatch):
    """Of each call of a kernel (its name, {argument: is on the device})."""
    found: list[tuple[str, dict[str, bool]]] = []
    real_to, real_trace = torch.Tensor.to, ModelDriver.trace
    real_head = ModelDriver.head.fget

    def to(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if args and isinstance(args[0], torch.device | str):
            return moved(x, args[0])
        return real_to(x, *args, **kwargs)

    def trace(self: ModelDriver, *args: Any, **kwargs: Any) -> list[Any]:
        with pytest.MonkeyPatch.context() as inside:  # the model's own moves are real
            inside.setattr(torch.Tensor, "to", real_to)
            traces = real_trace(self, *args, **kwargs)
        return [
            dataclasses.replace(t, **{n: moved(getattr(t, n), CUDA) for n in "qk"},
                                hidden=moved(t.hidden, CUDA))
            for t in traces
        ]  # fmt: skip

    def head(self: ModelDriver) -> Head:
        there = real_head(self)
        weight, bias = moved(there.weight, CUDA), moved(there.bias, CUDA)
        return dataclasses.replace(there, weight=weight, bias=bias)

    def watched(name: str) -> Any:
        kernel = getattr(ops, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            given = dict(enumerate(args)) | kwargs
            tensors = {k: v for k, v in given.items() if isinstance(v, torch.Tensor)}
            found.append((name, {str(k): v.is_cuda for k, v in tensors.items()}))
            plain = {k: moved(v, "cpu") for k, v in tensors.items()}
            args = tuple(plain.get(i, x) for i, x in enumerate(args))
            return kernel(*args, **kwargs | {k: plain[k] for k in kwargs if k in plain})

        return call

    monkeypatch.setattr(torch.Tensor, "to", to)
    monkeypatch.setattr(ModelDriver, "trace", trace)
    monkeypatch.setattr(ModelDriver, "head", property(head))
    for name in ("linear_cde", "ace"):
        monkeypatch.setattr(ops, name, watched(name))
    return found


@pytest.mark.parametrize("evidence", ["logits", "answer"])
@pytest.mark.parametrize("kernels", [True, False])
def test_arrays_of_a_call_are_on_one_device(calls, monkeypatch, evidence, kernels):
    monkeypatch.setattr(cuda, "kernels", lambda: ("cde", "ace", "drm") if kernels else ())
    rows = [r | {"solution": "because it is so"} for r in make_rows(4)]
    model, processor = build("qwen2_5_vl")
    scores = rap.score(model, processor, rows, evidence=evidence, progress=False)
    assert scores.table["status"].to_pylist() == ["scored"] * 4
    assert {name for name, _ in calls} == {"linear_cde", "ace"}
    for name, there in calls:
        assert there["0"] and there["1"], name  # masks may be in host memory
        assert name == "ace" or there["2"] == kernels  # else copied once to the host
