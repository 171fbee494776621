"""A batch on the model's device: out of memory there, and which traces are finite."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from ..model.driver import Trace


@contextmanager
def memory_of(device: torch.device) -> Iterator[None]:
    """Make a kernel's MemoryError on a device torch.OutOfMemoryError, so that the batch is
    halved as for the model. On the host a MemoryError stays what it is."""
    import torch

    try:
        yield
    except MemoryError as error:
        if device.type != "cuda":
            raise
        raise torch.OutOfMemoryError(str(error)) from error


def all_finite(traces: Sequence[Trace]) -> Iterator[bool]:
    """Whether each trace is finite; one copy, one wait for a device."""
    import torch

    return iter(torch.stack([t.finite() for t in traces]).tolist() if traces else ())
