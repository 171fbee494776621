"""What the model made of a sample, kept between its forwards: images and prompts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

GROWING = ("DynamicLayer",)
"""Cache layers that keep all tokens."""

HOST_BYTES = 1 << 30
"""What kept prompts may take up on the host."""
DEVICE_SHARE = 1 / 6
"""And on a CUDA device, of its memory less the weights: completions need about as much
again. Of all of its memory and not of what is free, so that the same samples share a batch
in every run."""


def room(device: torch.device, weights: int) -> int:
    """Bytes that the keys and values of prompts may take up which wait for completions.
    ``weights``: bytes of the model on the device."""
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        return int(max(0, total - weights) * DEVICE_SHARE)
    return HOST_BYTES


def token_bytes(cache: Any) -> int:
    """Bytes of the keys and values of one token. ``cache``: of growing layers, with
    tensors [B, Hkv, L, D]."""
    found = 0
    for layer in cache.layers:
        for x in (layer.keys, layer.values):
            found += x.shape[1] * x.shape[3] * x.element_size()
    return found


@dataclass(frozen=True, slots=True)
class Features:
    """What the vision tower and the projector made of the images of one sample."""

    kind: type
    """Class of what ``get_image_features`` gives."""
    parts: tuple[torch.Tensor, ...]
    """[.., E] each, in the order of the image tokens."""
    stacked: bool
    """Whether the model joins them itself (a list), or has one tensor for all."""
    deep: tuple[tuple[torch.Tensor, ...], ...] = ()
    """The same for each layer of the decoder that takes features of its own."""
    split: bool = True
    """Whether the model is given these by image, or those of a layer in one tensor."""

    @property
    def tokens(self) -> int:
        return sum(part[..., 0].numel() for part in self.parts)


@dataclass(slots=True, eq=False)
class Prefilled:
    """Prompts that the model has read. B rows of C tokens, padding included."""

    cache: Any
    mask: torch.Tensor
    """int64 [B, C]: 0 is padding."""
    input_ids: torch.Tensor
    """int64 [B, C]"""
    ids: list[torch.Tensor]
    """int64 [P] each, on the host."""
    following: torch.Tensor
    """int64 [B]: position of the token after each prompt."""
    hidden: torch.Tensor
    """[B, E]: final hidden state of each prompt's last token."""
    logits: torch.Tensor | None
    """float32 [B, V] there; None if they were not asked for."""

    @property
    def whole(self) -> bool:
        """Whether every layer keeps all tokens."""
        return all(type(layer).__name__ in GROWING for layer in self.cache.layers)
