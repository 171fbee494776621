"""The language-model head as the kernels take it: a matrix, a bias, a scale, a softcap.

An ordinary linear layer is taken as it is, a sharded or offloaded one gathered. Any other
head (LoRA and its kin, quantised weights, a tensor subclass, a float32 head) is asked for
its matrix: a linear map of the unit vectors is its own matrix. Whether that gives the
model's logits is checked by ``rap.model.probe``, whatever the form.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..errors import first_line
from .capture import UnsupportedModelError, unchanged
from .weights import FLOATS, is_fsdp2, plain, present

_BLOCK = 256
"""Unit vectors that a head is given at once."""


@dataclass(frozen=True, slots=True)
class Head:
    """The language-model head: ``softcap tanh(scale (hidden W^T + bias) / softcap)``."""

    weight: torch.Tensor
    """[V, E]"""
    bias: torch.Tensor | None
    """[V]"""
    softcap: float | None
    scale: float | None

    def to(self, device: torch.device | str) -> Head:
        """The same head on ``device``; itself if it is there already."""
        bias = None if self.bias is None else self.bias.to(device)
        return replace(self, weight=self.weight.to(device), bias=bias)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits [..., V] of hidden [..., E]: for checks, not for whole responses."""
        hidden = hidden.to(self.weight.dtype)
        x = torch.nn.functional.linear(hidden, self.weight, self.bias)
        if self.scale is not None:
            x = x * self.scale
        if self.softcap is not None:
            x = torch.tanh(x / self.softcap) * self.softcap
        return x


def head_forms(
    model: Any, module: torch.nn.Module, hidden: torch.Tensor
) -> Iterator[list[Head]]:
    """The matrices that a head may stand for, each with every cap and scale that the
    configs speak of: some classes have one in their config and do not use it.

    An ordinary layer's own matrix; the matrix it is when asked if it is not ordinary, or
    if it has hooks, which may change what it gives. hidden: [..., E] states as the head is
    given them, for device and dtype. Raises `UnsupportedModelError` if the head has no
    matrix in floating point.
    """
    options = head_options(model)
    own = _own_matrix(module)
    if own is not None and is_fsdp2(model):  # which frees the memory of a gathered weight
        own = own[0].clone(), None if own[1] is None else own[1].clone()
    if own is not None:
        yield [Head(*own, softcap, scale) for softcap, scale in options]
    if own is None or module._forward_hooks or module._forward_pre_hooks:
        asked = _asked_matrix(module, hidden)
        yield [Head(*asked, softcap, scale) for softcap, scale in options]


def _own_matrix(
    module: torch.nn.Module,
) -> tuple[torch.Tensor, torch.Tensor | None] | None:
    """(weight, bias) of a layer that does what ``torch.nn.Linear`` does, else None."""
    forward = vars(module).get("_old_forward", vars(module).get("forward"))  # accelerate
    if forward is None:
        forward = getattr(type(module), "forward", None)
    if getattr(forward, "__func__", forward) is not torch.nn.Linear.forward:
        return None
    found: list[torch.Tensor | None] = []
    for name in ("weight", "bias"):
        if name not in module._parameters:  # a property over it
            return None
        if module._parameters[name] is None:
            found.append(None)
            continue
        with present(module, name) as tensor:
            value = plain(tensor)
        if value is None or value.dtype not in FLOATS:
            return None
        found.append(value)
    weight, bias = found
    return None if weight is None or weight.dim() != 2 else (weight, bias)


@torch.no_grad()
def _asked_matrix(
    module: torch.nn.Module, hidden: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(weight, bias) of a linear map, from its values at 0 and at the unit vectors."""
    name, width = type(module).__name__, hidden.shape[-1]
    try:
        with unchanged(module):
            module.eval()
            at = hidden.new_zeros
            bias = _values(module(at(1, 1, width)))[0]
            # Columns of W are rows here; the matrix is filled in place.
            weight = bias.new_empty(len(bias), width)
            for start in range(0, width, _BLOCK):
                n = min(_BLOCK, width - start)
                unit = at(1, n, width)
                unit[0, :, start : start + n].fill_diagonal_(1)
                weight[:, start : start + n] = (_values(module(unit)) - bias).T
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise UnsupportedModelError(
            f"its language-model head ({name}) has no floating-point weight that can be "
            f"read: {type(error).__name__}: {first_line(error)}"
        ) from error
    return weight, bias if bool(bias.any()) else None


def _values(output: Any) -> torch.Tensor:
    """[n, V] of what a head gave for [1, n, E]."""
    values = plain(output)
    if values is None or values.dim() != 3 or values.dtype not in FLOATS:
        raise TypeError(f"it gives a {type(output).__name__} and not plain logits")
    return values[0]


def head_options(model: Any) -> list[tuple[float | None, float | None]]:
    """(softcap, scale) that the configs speak of, in every combination, all first."""
    config = model.config
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    softcap = getattr(text, "final_logit_softcapping", None)
    scale = getattr(text, "logit_scale", None)  # Cohere
    if getattr(text, "logits_scaling", None):  # Granite
        scale = 1.0 / text.logits_scaling
    softcaps = [float(softcap), None] if softcap else [None]
    scales = [float(scale), None] if isinstance(scale, (int, float)) and scale else [None]
    return [(a, b) for a in softcaps for b in scales]
