"""A batch that does not fit into memory, or that one item spoils, run in halves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from ..errors import RapError, first_line, is_device_fault, is_out_of_memory

Item = TypeVar("Item")
Made = TypeVar("Made")


@dataclass(frozen=True, slots=True)
class Failure:
    """Why one item fails even alone; ``code`` is one of the quarantine codes."""

    code: str
    message: str


def in_halves(
    run: Callable[[Sequence[Item]], Sequence[Made]], items: Sequence[Item]
) -> list[Made | Failure]:
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
    except RapError:
        raise
    except (RuntimeError, ValueError, IndexError) as error:
        if is_device_fault(error):
            raise
        text = first_line(error)
        if is_out_of_memory(error):  # the CPU's, or a library's on the device
            failure = Failure("oom", text)
        else:
            failure = Failure("model_error", f"{type(error).__name__}: {text}")
    # Outside of the handlers: the traceback no longer holds the failed batch's tensors.
    if failure.code == "oom" and torch.cuda.is_available():
        torch.cuda.empty_cache()
    if len(items) == 1:
        return [failure]
    half = (len(items) + 1) // 2
    return in_halves(run, items[:half]) + in_halves(run, items[half:])
