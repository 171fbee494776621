"""The language-model head as the kernels take it: a matrix, a bias, a scale, a softcap."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch


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
        x = torch.nn.functional.linear(hidden, self.weight, self.bias)
        if self.scale is not None:
            x = x * self.scale
        if self.softcap is not None:
            x = torch.tanh(x / self.softcap) * self.softcap
        return x


def head_forms(model: Any, module: torch.nn.Module) -> list[Head]:
    """The head's matrix with every cap and scale that the configs speak of, in every
    combination, all first: some classes have one in their config and do not use it."""
    weight = module.get_parameter("weight").detach()
    bias: torch.Tensor | None = getattr(module, "bias", None)
    bias = None if bias is None else bias.detach()
    return [Head(weight, bias, softcap, scale) for softcap, scale in head_options(model)]


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
