"""Work on a batch that may fail: halved where it does not fit, one failure a sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import RapError, first_line

if TYPE_CHECKING:
    import torch

    from ..model.driver import Trace


@dataclass(frozen=True, slots=True)
class Failure:
    """Why the work on one item failed: a quarantine code and a sentence."""

    code: str
    message: str


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


def in_halves(
    run: Callable[[Sequence[Any]], list[Any]], items: Sequence[Any]
) -> list[Any | Failure]:
    """``run(items)``, halved where the batch does not fit or one item spoils it.

    Out of memory, and errors that one sample can cause (image features that do not match
    its tokens, a position outside a table), end in a `Failure` for the item that fails
    alone. A broken device and our own errors pass through.
    """
    import torch

    if not items:
        return []
    try:
        return list(run(items))
    except torch.OutOfMemoryError as error:
        failure = Failure("oom", first_line(error))
    except torch.AcceleratorError:
        raise
    except RapError:
        raise
    except (RuntimeError, ValueError, IndexError) as error:
        failure = Failure("model_error", f"{type(error).__name__}: {first_line(error)}")
    # Outside of the handlers: the traceback no longer holds the failed batch's tensors.
    if failure.code == "oom" and torch.cuda.is_available():
        torch.cuda.empty_cache()
    if len(items) == 1:
        return [failure]
    half = (len(items) + 1) // 2
    return in_halves(run, items[:half]) + in_halves(run, items[half:])
