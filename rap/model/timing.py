"""Time the forwards of a model: vision tower, prefill, and the rest of what asked for them.

Module hooks around the model, its text decoder and what stands beside that decoder (vision
tower, projector); they are there inside `timed` only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch

from ..stopwatch import Stopwatch
from .capture import Parts, find_parts

if TYPE_CHECKING:
    from .driver import ModelDriver


def waiter(model: torch.nn.Module) -> Callable[[], None]:
    """Waits until the CUDA devices that hold the model have done what they were asked for;
    nothing to wait for elsewhere, nor while a CUDA graph is captured."""
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}

    def wait() -> None:
        if devices and not torch.cuda.is_current_stream_capturing():
            for device in devices:
                torch.cuda.synchronize(device)

    return wait


def beside_decoder(model: torch.nn.Module, parts: Parts) -> list[torch.nn.Module]:
    """Vision tower, projector, and whatever else turns inputs into embeddings: the modules
    next to the text decoder or to one that holds it, without the head."""
    paths = {id(module): name for name, module in model.named_modules()}
    steps = paths[id(parts.decoder)].split(".")
    above = [model.get_submodule(".".join(steps[:i])) for i in range(len(steps))]
    known = {id(module) for module in (*above, parts.decoder, parts.head)}
    known |= {id(module) for module in parts.head.modules()}
    return [m for a in above for m in a.children() if id(m) not in known]


@contextmanager
def timed(driver: ModelDriver, watch: Stopwatch) -> Iterator[None]:
    """Inside, ``driver.watch`` is ``watch``, and forwards of its model are charged:
    ``vision`` for what stands beside the text decoder, ``prefill`` for forwards of more
    than one position. One position is charged to the span around it: a decoding step."""
    if not watch.on:
        yield
        return
    parts = find_parts(driver.model)
    before, driver.watch = driver.watch, watch
    with ExitStack() as stack:
        stack.callback(setattr, driver, "watch", before)
        for module in beside_decoder(driver.model, parts):
            _hook(stack, module, watch, "vision", lambda args, kwargs: True)
        for module in (driver.model, parts.decoder):
            _hook(stack, module, watch, "prefill", _several_positions)
        yield


def _hook(
    stack: ExitStack,
    module: torch.nn.Module,
    watch: Stopwatch,
    name: str,
    counts: Callable[[tuple[Any, ...], dict[str, Any]], bool],
) -> None:
    """Charge forwards of ``module`` for which ``counts`` holds to ``name``."""

    def before(module: torch.nn.Module, args: Any, kwargs: Any) -> None:
        if counts(args, kwargs):
            watch.start(name)

    def after(module: torch.nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if counts(args, kwargs):
            watch.stop(name)

    handle = module.register_forward_pre_hook(before, with_kwargs=True)
    stack.callback(handle.remove)
    handle = module.register_forward_hook(after, with_kwargs=True)
    stack.callback(handle.remove)


def _several_positions(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a forward of a text decoder reads more than one position."""
    given = (kwargs.get("inputs_embeds"), kwargs.get("input_ids"), *args[:1])
    tensor = next((x for x in given if isinstance(x, torch.Tensor)), None)
    return tensor is not None and tensor.dim() > 1 and tensor.shape[1] > 1
