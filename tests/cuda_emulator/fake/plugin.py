"""pytest -p cuda_emulator.fake.plugin: the public tests of the kernels, with every
array moved to the fake device before a call and the answers moved back after it.

The tests stay as they are; what they say about the CPU alone is left out by name, with the
reason.
"""

from __future__ import annotations

import functools
import gc

import numpy as np
import pytest
import torch
from hypothesis import settings

import rap
from rap import cuda, ops
from rap.cuda import DeviceArray

from . import device

MOVED = {
    "cde": ("logits1", "logits0"),
    "linear_cde": ("hidden1", "hidden0", "weight", "bias"),
    "ace": ("q", "k", "lse", "column_mask", "image_mask"),
    "drm": ("difficulty", "gain", "eligible"),
}
ARRAYS_FIRST = {"cde": 2, "linear_cde": 3, "ace": 2, "drm": 1}  # positional ones
CPU_ONLY = {
    "number_of_threads": "threads say nothing on a device",
    "more_than_one_chunk": "a million samples are too many for fibers",
    "misleads": "a million samples are too many for fibers; the device takes no sample",
    "no_sample_sees": "the device takes no sample, and the samples are too many for fibers",
    "fault_28": "another thread cannot write device memory: a stream does, in "
    "checks_host.py",
    "fault_29": "in a process of its own, about CPU threads",
    "small_call": "the time of a call on host memory",
    "long_input": "in a process of its own, about host memory",
    "memory_change_no_bit": "threads and memory say nothing on a device",
    "percentages": "said of arrays of NumPy and torch, where none is a candidate",
}
EXAMPLES = 15  # of a property: fibers are slow
calls = {"device": 0, "host": 0}


def _fewer_examples(test) -> None:
    said = getattr(test, "_hypothesis_internal_use_settings", None)
    if said is not None:
        test._hypothesis_internal_use_settings = settings(said, max_examples=EXAMPLES)


def _numpy(x: object) -> tuple[np.ndarray | None, str | None]:
    """The array as NumPy with its strides, and its kind if NumPy has no name for it."""
    if isinstance(x, torch.Tensor):
        x = x.detach()
        if x.dtype == torch.bfloat16:
            return x.view(torch.int16).numpy().view(np.uint16), "bf"
        return x.numpy(), None
    if isinstance(x, np.ndarray):
        if x.dtype.name == "bfloat16":
            return x.view(np.uint16), "bf"
        return x, None
    return None, None


def to_device(x: object) -> object:
    array, kind = _numpy(x)
    if array is None or (kind or array.dtype.str[1:]) not in device.KINDS:
        return x
    if array.ndim and array.shape[-1] > 1 and array.strides[-1] != array.itemsize:
        array = np.ascontiguousarray(array)
    return device.FakeArray(array, kind)


def _back(x: object, like: object) -> object:
    if not isinstance(x, DeviceArray):
        return x
    host = x.numpy()
    return torch.from_numpy(host) if isinstance(like, torch.Tensor) else host


def on_device(name: str, function):
    @functools.wraps(function)
    def call(*args, **kwargs):
        first = [to_device(x) for x in args[: ARRAYS_FIRST[name]]]
        rest = args[ARRAYS_FIRST[name] :]
        kwargs = {n: to_device(x) if n in MOVED[name] else x for n, x in kwargs.items()}
        got = function(*first, *rest, **kwargs)
        answers = got if isinstance(got, tuple) else (got,)
        where = "device" if any(isinstance(x, DeviceArray) for x in answers) else "host"
        calls[where] += 1
        back = [_back(x, args[0]) for x in answers]
        return type(got)(*back) if isinstance(got, tuple) else back[0]

    return call


def pytest_configure(config: pytest.Config) -> None:
    for name in MOVED:
        function = on_device(name, getattr(ops, name))
        setattr(rap, name, function)
        setattr(ops, name, function)


def pytest_collection_modifyitems(config, items) -> None:
    from rap import _C

    for item in items:
        _fewer_examples(item.obj)
        reason = next((why for part, why in CPU_ONLY.items() if part in item.name), None)
        isa = getattr(item, "callspec", None) and item.callspec.params.get("isa")
        if isa is not None and isa != _C.isa_names()[0]:
            reason = "one instruction set is enough: the device has its own"
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))


def pytest_sessionfinish(session, exitstatus) -> None:
    cuda.release()
    gc.collect()
    device.FAKE.rap_fake_read(None, 0, 0)  # drains the queues
    left = {n: device.count(n) for n in ("allocations", "retained", "queued")}
    print(f"\ndevice calls {calls['device']} host calls {calls['host']} "
          f"launches {device.count('launches')} left {left}")  # fmt: skip
    if device.problem() or any(left.values()) or not calls["device"]:
        print(f"problem: {device.problem()!r}")
        session.exitstatus = 1
