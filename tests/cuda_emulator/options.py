"""Every option of rap.cde, linear_cde, ace and drm on the device: the answers of the CPU,
or its error. Run as a program, in which rap finds the fakes, or on a real GPU:

    python -m cuda_emulator.options NAME
    RAP_OPTIONS_DEVICE=cuda python -m cuda_emulator.options NAME

An option that OPTIONS does not name is an error here: what the CPU path can do the device
must do, or say why not.
"""

from __future__ import annotations

import inspect
import itertools
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

import rap

REAL = os.environ.get("RAP_OPTIONS_DEVICE")
"""torch's name of a device to run on; else the fake one."""
if not REAL:
    from .fake.device import FakeArray

UNIT = 2.0**-24
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
Options = dict[str, Any]


def on_device(x: Any) -> Any:
    """Of NumPy or torch; bfloat16 as the bits it is."""
    if REAL:
        return torch.as_tensor(x).to(REAL)
    if not isinstance(x, torch.Tensor):
        return FakeArray(np.asarray(x))
    if x.dtype == torch.bfloat16:
        return FakeArray(x.view(torch.int16).numpy().view(np.uint16), "bf")
    return FakeArray(x.numpy())


class Device:
    """Marks an option that lies on the device for the device's call."""

    def __init__(self, value: Any) -> None:
        self.value = value


rng = np.random.default_rng(4)
T, V, E, L = 3, 40, 24, 18
MASK = rng.random(L) < 0.7
ROWS = {
    "want": ["kl", ("js", "tv"), None, "all of it"],
    "targets": [
        np.arange(T), Device(np.arange(T)), np.arange(T, dtype=np.int32),
        np.full(T, V), np.ones(T), np.arange(T + 1),
    ],
    "cu_seqlens": [[0, 2, 2, T], Device(np.array([0, 2, 2, T])), [0, 1], [0, 3, 1, T]],
    "weights": [None, rng.random(T), Device(rng.random(T)), -np.ones(T), np.ones(2)],
    "ignore_index": [None, -7, 1.5],
    "threads": [3, None, 0, 1.5],
}  # fmt: skip
LSE = "the log-sum-exps of q and k"
OPTIONS: dict[str, Options] = {
    "cde": ROWS,
    "linear_cde": ROWS
    | {
        "bias": [
            np.ones(V, np.float32),
            np.ones(V, np.float16),
            np.ones(V - 1, np.float32),
        ],
        "scale": [None, 0.25, float("nan")],
        "softcap": [None, 4.0, -1.0],
        "memory": [1 << 20, -1],
    },
    "ace": {
        "response_start": [5, [5, 3], 0, L, L + 1],
        "cu_seqlens": [None, [0, 10, L], [0, 3]],
        "scale": [None, 0.2, -1.0],
        "sigma": [0.5, 0.0],
        "heads": ["mean", "max", "each", "none"],
        "renormalise": [True],
        "normalise": [False],
        "min_rows": [1, 0],
        "window": [None, 4, 0],
        "key_window": [None, 9, -3],
        "columns": ["response", "prompt", "all", "odd"],
        "column_mask": [MASK, Device(MASK), np.ones(L), np.ones(3, bool)],
        "image_mask": [~MASK, Device(~MASK), Device(np.ones(L)), Device(MASK[:3])],
        "lse": [LSE, np.zeros((1, L), np.float32)],
        "top": [1, 64, 65],
        "stats": [False],
        "threads": [2, 0],
    },
    "drm": {
        "k": [0, 1, 9, 60, -1, 2.5],
        "eligible": [rng.random(50) < 0.5, Device(rng.random(50) < 0.5), np.ones(50)],
        "gain": [rng.normal(size=50), rng.normal(size=50).astype(np.float32), np.ones(3)],
        "threads": [2, 0],
    },
}


def _log_sum_exps(q: torch.Tensor, k: torch.Tensor) -> np.ndarray:
    scores = torch.einsum("hld,hmd->hlm", q.double(), k.double().repeat(2, 1, 1)) / 8**0.5
    hidden = torch.triu(torch.ones(L, L, dtype=torch.bool), 1)
    return scores.masked_fill(hidden, -torch.inf).logsumexp(-1).numpy()


def inputs(name: str) -> Iterator[tuple[Callable, dict[str, Any], Options, float]]:
    """(function, arrays, options that every call has, bound of the CPU's or the device's
    own error). The bounds are those of the kernels' own tests."""

    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.from_numpy(rng.normal(size=shape)).to(dtype)

    if name == "drm":
        for dtype in (torch.float32, torch.float64):
            scores = torch.from_numpy(rng.integers(0, 7, 50) / 6).to(dtype)
            yield rap.drm, {"difficulty": scores}, {"k": 20}, 0.0
        return
    for dtype in FLOATS:
        if name == "cde":
            arrays = {"logits1": normal(T, V, dtype=dtype) * 3, "logits0": normal(T, V)}
            # four times a naive error of some units of the largest logit
            yield rap.cde, arrays, {}, 16 * UNIT * 12
        elif name == "linear_cde":
            arrays = {"hidden1": normal(T, E, dtype=dtype), "hidden0": normal(T, E)}
            arrays["weight"] = normal(V, E, dtype=dtype) / 2
            # E products of a logit, each rounded, seen by a divergence twice
            yield rap.linear_cde, arrays, {}, (2 * E + 16) * UNIT * 12
        else:
            arrays = {"q": normal(2, L, 8, dtype=dtype), "k": normal(1, L, 8, dtype=dtype)}
            # checks_ace's, for a sum of at most L logarithms
            yield rap.ace, arrays, {"response_start": 5, "min_rows": 2}, 4e-6 * L


def cases(name: str, arrays: dict[str, Any]) -> Iterator[Options]:
    """One option at a time, and the pairs that belong together."""
    for option, values in OPTIONS[name].items():
        for value in values:
            yield {option: _log_sum_exps(**arrays) if value is LSE else value}
    if name in ("cde", "linear_cde"):
        pairs = itertools.product(ROWS["cu_seqlens"][:2], ROWS["weights"])
        yield from ({"cu_seqlens": cu, "weights": w} for cu, w in pairs)
    if name == "ace":
        lse = _log_sum_exps(**arrays)
        for heads, stats in itertools.product(("mean", "max", "each"), (True, False)):
            yield {"lse": lse, "heads": heads, "stats": stats, "columns": "all"}
            yield {"lse": lse.astype(np.float32), "heads": heads, "stats": stats}
            yield {"cu_seqlens": [0, 10, L], "response_start": [5, 3], "heads": heads,
                   "stats": stats, "image_mask": Device(MASK)}  # fmt: skip


def _answer(function: Callable, arguments: Options) -> Any:
    try:
        return function(**arguments)
    except (TypeError, rap.RapInputError, rap.RapConfigError) as error:
        return error


def _placed(option: str, value: Any, device: bool) -> Any:
    if isinstance(value, Device):
        return on_device(value.value) if device else value.value
    return on_device(value) if device and option in ("bias", "lse", "gain") else value


def _compare(case: Options, got: Any, want: Any, bound: float) -> None:
    if isinstance(want, Exception):
        assert type(got) is type(want), (case, got, want)
        return
    assert not isinstance(got, Exception), (case, got)
    fields = zip(got, want, strict=True) if isinstance(want, tuple) else ((got, want),)
    for a, b in fields:
        assert (a is None) == (b is None), case
        if b is None:
            continue
        a, b = (a.cpu() if REAL else a).numpy(), b.numpy()
        assert a.dtype == b.dtype and a.shape == b.shape, case
        largest = max(1.0, np.abs(b[np.isfinite(b)]).max(initial=0.0))
        np.testing.assert_allclose(
            a, b, rtol=0, atol=2 * bound * largest, err_msg=str(case)
        )


def main(name: str) -> None:
    parameters = inspect.signature(getattr(rap, name)).parameters
    answers = errors = 0
    for function, arrays, always, bound in inputs(name):
        assert set(arrays) | set(OPTIONS[name]) == set(parameters), set(parameters)
        placed = {key: on_device(x) for key, x in arrays.items()}
        for case in cases(name, arrays):
            options = always | case
            want = _answer(
                function, arrays | {k: _placed(k, v, False) for k, v in options.items()}
            )
            got = _answer(
                function, placed | {k: _placed(k, v, True) for k, v in options.items()}
            )
            _compare(case, got, want, bound)
            answers += not isinstance(want, Exception)
            errors += isinstance(want, Exception)
    assert answers > 10 and errors > 3, (answers, errors)
    print(f"{name}: {answers} answers, {errors} errors")


if __name__ == "__main__":
    main(sys.argv[1])
